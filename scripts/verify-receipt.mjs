// Checks a consent receipt offline: that the event it tells of is a leaf of the log whose signed checkpoint
// it carries. It stands alone, so that nobody has to trust the sender's daemon to check the sender: plain
// Node 20 or newer, no package, nothing of the daemon. Callers may rely on: exit 0 only when every check
// held, 1 when one did not or the file is no receipt, 2 when the command was not understood; no network.
// RFC 9162 §2.1, RFC 8032, C2SP signed-note and tlog-checkpoint.
import { createHash, createPublicKey, verify } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { parseArgs } from 'node:util';

const HELP = `usage: verify-receipt RECEIPT.json [--key VERIFIER_KEY] [--json]

Checks, without asking anybody, that a consent receipt is part of the log its sender has signed.
RECEIPT.json may be - for standard input.

  --key VERIFIER_KEY  the log's key as the sender publishes it (name+hash+key); the receipt must be signed by it.
                      Without it the key is taken from the receipt, and is only as good as your comparing it.
  --json              says the same as one JSON object
  --help              says this

Exit status: 0 the receipt is good, 1 it is not, 2 the command was not understood.`;

const FORMAT = 'postern-receipt/1';
// A proof of the largest log is 48 hashes; a policy text is some pages.
const LARGEST_FILE = 4 * 1024 * 1024;
const LARGEST_PROOF = 48;
const MOST_SIGNATURES = 100;
/** What a key's name cannot have: white space, a plus sign, a control character. */
const NAME = /^[^\s+\p{Cc}]+$/u;

/** A check that did not hold; its message is for the reader. */
class Fault extends Error {
  constructor(check, message) {
    super(message);
    this.check = check;
  }
}

function sha256(...parts) {
  const made = createHash('sha256');
  for (const part of parts) made.update(part);
  return made.digest();
}

/** Octets of canonical base64, or a Fault naming the field. */
function base64(value, field, sizeBytes) {
  const octets = typeof value === 'string' ? Buffer.from(value, 'base64') : undefined;
  if (octets === undefined || octets.toString('base64') !== value) throw new Fault('format', `"${field}" is not base64`);
  if (sizeBytes !== undefined && octets.length !== sizeBytes) throw new Fault('format', `"${field}" is ${octets.length} octets, not ${sizeBytes}`);
  return octets;
}

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function textField(object, field) {
  if (typeof object[field] !== 'string') throw new Fault('format', `"${field}" is missing or not a text`);
  return object[field];
}

function wholeField(object, field) {
  if (!Number.isSafeInteger(object[field]) || object[field] < 0) throw new Fault('format', `"${field}" is missing or not a whole number`);
  return object[field];
}

function parseJson(text, what) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Fault('format', `${what} is not JSON`); // where exactly would quote a person's data into a terminal
  }
}

/** The receipt's fields, decoded. */
function readReceipt(text) {
  const receipt = parseJson(text, 'the file');
  if (!isObject(receipt)) throw new Fault('format', 'the file is not a JSON object');
  if (receipt.format !== FORMAT) throw new Fault('format', `"format" is ${JSON.stringify(receipt.format) ?? 'missing'}; this checks ${FORMAT}`);
  const payloadText = textField(receipt, 'payload');
  // A half of a surrogate pair is hashed as U+FFFD, so that two texts would have one hash.
  if (!payloadText.isWellFormed()) throw new Fault('format', '"payload" is not a text of whole characters');
  const payload = parseJson(payloadText, '"payload"');
  if (!isObject(payload)) throw new Fault('format', '"payload" is not a JSON object');
  if (!Array.isArray(receipt.proof) || receipt.proof.length > LARGEST_PROOF) throw new Fault('format', `"proof" is not a list of at most ${LARGEST_PROOF} hashes`);
  return {
    payloadText,
    payload,
    leaf: wholeField(receipt, 'leaf'),
    size: wholeField(receipt, 'size'),
    salt: base64(receipt.salt, 'salt', 16),
    proof: receipt.proof.map((one, i) => base64(one, `proof[${i}]`, 32)),
    checkpoint: textField(receipt, 'checkpoint'),
    verifierKey: textField(receipt, 'verifier_key'),
    policy: receipt.policy,
  };
}

/** name+hash+key, as published for verifiers of signed notes. */
function readVerifierKey(text) {
  const [, name = '', id = '', encoded = ''] = /^([^+]+)\+([0-9a-f]{8})\+(.+)$/su.exec(text) ?? [];
  if (!NAME.test(name)) throw new Fault('key', 'the verifier key is not of the form name+hash+key');
  const octets = Buffer.from(encoded, 'base64');
  if (octets.toString('base64') !== encoded || octets.length !== 33 || octets[0] !== 1) throw new Fault('key', 'the verifier key is not an Ed25519 key');
  if (sha256(`${name}\n`, octets).toString('hex', 0, 4) !== id) throw new Fault('key', 'the verifier key does not have the hash it states; it was cut or altered');
  // RFC 8410 §4: what comes before the 32 octets in a SubjectPublicKeyInfo.
  const key = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), octets.subarray(1)]), format: 'der', type: 'spki' });
  return { name, id: Buffer.from(id, 'hex'), key };
}

/** What the note says, once a signature of the key is found to hold; others' lines are passed over. */
function readCheckpoint(note, { name, id, key }) {
  const split = note.lastIndexOf('\n\n');
  if (split < 0 || !note.endsWith('\n') || /[^\P{Cc}\n]|\p{Cs}/u.test(note)) throw new Fault('checkpoint', 'the checkpoint is not a signed note');
  const body = note.slice(0, split + 1);
  const lines = note.slice(split + 2, -1).split('\n');
  if (lines.length > MOST_SIGNATURES) throw new Fault('checkpoint', `the checkpoint has more than ${MOST_SIGNATURES} signatures`);
  const ours = [];
  for (const line of lines) {
    const [, signer = '', encoded = ''] = /^\u2014 (\S+) (\S+)$/u.exec(line) ?? [];
    const octets = Buffer.from(encoded, 'base64');
    if (!NAME.test(signer) || octets.toString('base64') !== encoded || octets.length <= 4) throw new Fault('checkpoint', 'the checkpoint has a signature line that is none');
    if (signer === name && octets.length === 68 && octets.subarray(0, 4).equals(id)) ours.push(octets.subarray(4));
  }
  if (ours.length === 0) throw new Fault('signature', 'the checkpoint is not signed by the verifier key');
  if (!ours.every((one) => verify(null, Buffer.from(body), key, one))) throw new Fault('signature', 'the signature does not fit the checkpoint: one of them was altered, or another key made it');
  const [origin = '', size = '', root = '', ...rest] = body.slice(0, -1).split('\n');
  const octets = Buffer.from(root, 'base64');
  if (!/^(0|[1-9]\d{0,15})$/.test(size) || octets.length !== 32 || octets.toString('base64') !== root || rest.includes('')) throw new Fault('checkpoint', 'the checkpoint does not state a log, a size and a root');
  if (origin !== name) throw new Fault('checkpoint', `the checkpoint is of the log ${shown(origin)}, the key of ${shown(name)}`);
  return { origin, size: Number(size), root: octets };
}

/** RFC 9162 §2.1.3.2; undefined when the proof is not of the length this place needs. */
function rootFromProof(leaf, size, hash, proof) {
  let at = leaf;
  let last = size - 1;
  let root = hash;
  for (const step of proof) {
    if (last === 0) return undefined;
    if (at % 2 === 1 || at === last) {
      root = sha256(Buffer.of(1), step, root);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      root = sha256(Buffer.of(1), root, step);
    }
    [at, last] = [half(at), half(last)];
  }
  return last === 0 ? root : undefined;
}

function half(value) {
  return Math.floor(value / 2); // a shift would stop at 32 bits
}

/** The hash that a policy's published text and permissions have. */
function policyHash(policy) {
  if (!isObject(policy)) throw new Fault('policy', '"policy" is not an object');
  const { purposes, tracking } = policy;
  if (!Array.isArray(purposes) || !purposes.every((one) => typeof one === 'string')) throw new Fault('policy', '"policy.purposes" is not a list of texts');
  if (!isObject(tracking) || typeof tracking.clicks !== 'string' || typeof tracking.opens !== 'string') throw new Fault('policy', '"policy.tracking" does not state opens and clicks');
  const permissions = JSON.stringify({ purposes: [...new Set(purposes)].sort(), tracking: { clicks: tracking.clicks, opens: tracking.opens } });
  return sha256(base64(policy.text, 'policy.text'), Buffer.of(0), permissions).toString('hex');
}

/** Every check in order. @throws Fault at the first that does not hold */
function check(text, published, held) {
  const receipt = readReceipt(text);
  held('format', `it is a ${FORMAT}`);
  const key = readVerifierKey(receipt.verifierKey);
  if (published !== undefined && published !== receipt.verifierKey) throw new Fault('key', `the receipt's verifier key is not the one given with --key: it has ${shown(receipt.verifierKey)}`);
  held('key', published === undefined ? 'the verifier key is well formed, and comes from the receipt itself' : 'the verifier key is the one given with --key');
  const checkpoint = readCheckpoint(receipt.checkpoint, key);
  held('signature', `the checkpoint of ${shown(checkpoint.origin)} is signed by that key`);
  if (checkpoint.size !== receipt.size) throw new Fault('size', `the receipt speaks of a log of ${receipt.size} events, its checkpoint of ${checkpoint.size}`);
  if (receipt.leaf >= receipt.size) throw new Fault('size', `there is no event ${receipt.leaf} in a log of ${receipt.size}`);
  const commitment = sha256(receipt.salt, receipt.payloadText);
  const root = rootFromProof(receipt.leaf, receipt.size, sha256(Buffer.of(0), commitment), receipt.proof);
  if (root === undefined) throw new Fault('inclusion', `the proof has ${receipt.proof.length} hashes, which does not fit event ${receipt.leaf} of ${receipt.size}`);
  if (!root.equals(checkpoint.root)) throw new Fault('inclusion', 'the proof does not lead from this payload and salt to the root that was signed: payload, salt, place or proof was altered');
  held('inclusion', `the payload is event ${receipt.leaf} of the ${receipt.size} that were signed`);
  if (receipt.policy !== undefined) {
    const hash = policyHash(receipt.policy);
    if (hash !== receipt.payload.privacy_notice) throw new Fault('policy', `the policy in the receipt has the hash ${hash}, the event names ${shown(receipt.payload.privacy_notice)}`);
    held('policy', 'the policy text and permissions are those the event names');
  }
  return { receipt, checkpoint };
}

/** For a terminal: what comes from the file cannot move the cursor or hide a line. */
function shown(value) {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? 'not stated');
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
}

/** What is proved: where, and what was said there. */
function claims({ receipt: { payload, leaf }, checkpoint }) {
  return {
    who: payload.pii_principal_id,
    purpose: payload.purpose,
    state: payload.event_state ?? payload.event,
    when: payload.event_time ?? payload.recorded_at,
    policy_hash: payload.privacy_notice,
    log: checkpoint.origin,
    leaf,
    size: checkpoint.size,
    root: checkpoint.root.toString('base64'),
    payload,
  };
}

const WARNING = 'The key comes from the receipt itself. Compare it with the one the sender publishes, or give that one with --key:';
/** Members of the payload that have a line of their own. */
const NAMED = new Set(['pii_principal_id', 'purpose', 'event_state', 'event_time', 'privacy_notice']);

function sayToPeople({ good, checks, fault, proved, key, compared }) {
  for (const one of checks) console.log(`ok      ${one.check.padEnd(10)} ${one.says}`);
  if (!good) {
    console.log(`FAILED  ${fault.check.padEnd(10)} ${fault.says}`);
    if (fault.check !== 'file') console.log('\nThis receipt proves nothing.');
    return;
  }
  console.log('\nProved: the owner of the key has put on record');
  const rows = [
    ['who', `${shown(proved.who)} (a pseudonym: the sender's keyed hash of the address)`],
    ['purpose', shown(proved.purpose)],
    ['state', shown(proved.state)],
    ['when', shown(proved.when)],
    ['policy', `${shown(proved.policy_hash)} (its SHA-256)`],
    ['log', shown(proved.log)],
    ['place', `event ${proved.leaf}, counted from 0, of ${proved.size}`],
    ...Object.entries(proved.payload).filter(([name]) => !NAMED.has(name)).map(([name, value]) => [shown(name), shown(value)]),
  ];
  const wide = Math.max(...rows.map(([name]) => name.length));
  for (const [name, says] of rows) console.log(`  ${name.padEnd(wide)}  ${says}`);
  if (!compared) console.log(`\n${WARNING}\n  ${shown(key)}`);
}

/** The whole file as text. @throws Fault when it cannot be read, is too large, or is not UTF-8 */
function readText(path) {
  const chunks = [];
  let sizeBytes = 0;
  const file = path === '-' ? 0 : openSync(path, 'r');
  try {
    for (;;) {
      const chunk = Buffer.alloc(65_536);
      const got = readSync(file, chunk, 0, chunk.length, null);
      if (got === 0) break;
      sizeBytes += got;
      if (sizeBytes > LARGEST_FILE) throw new Fault('format', `the file is larger than ${LARGEST_FILE} octets; no receipt is`);
      chunks.push(chunk.subarray(0, got));
    }
  } finally {
    if (file !== 0) closeSync(file);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
  } catch {
    throw new Fault('format', 'the file is not UTF-8'); // the decoder says no more than that
  }
}

function main() {
  let args;
  try {
    args = parseArgs({ allowPositionals: true, options: { key: { type: 'string' }, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
  } catch (error) {
    console.error(`verify-receipt: ${error.message}\n\n${HELP}`);
    return 2;
  }
  const { values, positionals } = args;
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  if (positionals.length !== 1) {
    console.error(`verify-receipt: one receipt is checked at a time, not ${positionals.length}\n\n${HELP}`);
    return 2;
  }
  const outcome = verdict(() => readText(positionals[0]), values.key?.trim());
  if (values.json) console.log(JSON.stringify({ ...outcome, ...(outcome.good && !outcome.compared && { warning: `${WARNING} ${outcome.key}` }) }));
  else sayToPeople(outcome);
  return outcome.good ? 0 : 1;
}

/** Whether the receipt is good, every check that held, and what failed or what is proved; `published` is the key to be compared. */
export function verdict(read, published) {
  const checks = [];
  const told = { checks, compared: published !== undefined };
  try {
    const checked = check(read(), published, (name, says) => checks.push({ check: name, says }));
    return { good: true, ...told, key: checked.receipt.verifierKey, proved: claims(checked) };
  } catch (error) {
    // The system's own words for a file that cannot be read are plain; anything else is a fault in the receipt.
    if (!(error instanceof Fault) && error.syscall === undefined) throw error;
    return { good: false, ...told, fault: { check: error.check ?? 'file', says: error.message } };
  }
}

// Runs unless a test asks for the functions alone; the other way round a mistake would end in exit status 0.
if (!import.meta.url.endsWith('?functions')) {
  try {
    process.exitCode = main();
  } catch (error) {
    // Nothing is known that gets here but what the engine refuses, such as values nested a million deep.
    console.error(`verify-receipt: this receipt cannot be checked: ${error.message}`);
    process.exitCode = 1;
  }
}
