// Checkpoints: what a log says of itself, signed. C2SP tlog-checkpoint (origin, size, root) inside a C2SP
// signed note with an Ed25519 key, so that any witness or verifier of transparency logs can read ours.
// Callers may rely on: a checkpoint read is signed by the key that was given, for the origin that was
// given; lines signed by others are passed over; whatever is not exactly such a note is undefined, never
// an exception. RFC 8032.
import { createPrivateKey, createPublicKey, hash, sign, verify, type KeyObject } from 'node:crypto';

export interface Checkpoint {
  /** The log's name, which is also the name of its key: no spaces, no plus signs. */
  readonly origin: string;
  /** Leaves. */
  readonly size: number;
  /** 32 octets. */
  readonly root: Buffer;
}

const ED25519 = Buffer.of(0x01); // the algorithm's number in a signed note
const KEY_HASH_BYTES = 4;
const SIGNATURE_BYTES = KEY_HASH_BYTES + 64;
const ROOT_BYTES = 32;
// Ours has one; a log with witnesses has tens. More is somebody wasting our time.
const MOST_SIGNATURES = 100;
// RFC 8410 §7: what comes before the 32 octets of a seed in PKCS #8.
const PKCS8_HEAD = Buffer.from('302e020100300506032b657004220420', 'hex');
const NAME = /^[^\s+\p{Cc}]+$/u;

/** The signed note of a checkpoint, ending in a line feed. @throws RangeError when the origin cannot be a key's name */
export function signCheckpoint(checkpoint: Checkpoint, key: KeyObject): string {
  const { origin, size, root } = checkpoint;
  if (!NAME.test(origin)) throw new RangeError(`${JSON.stringify(origin)} cannot be the origin of a log`);
  if (!Number.isSafeInteger(size) || size < 0 || root.length !== ROOT_BYTES) throw new RangeError('not the size and root of a log');
  const text = `${origin}\n${size}\n${root.toString('base64')}\n`;
  const signature = Buffer.concat([keyHash(origin, rawKey(createPublicKey(key))), sign(null, Buffer.from(text), key)]);
  return `${text}\n\u2014 ${origin} ${signature.toString('base64')}\n`;
}

/** What the note says; undefined when it is not signed by this key, is another log's, or is not well formed. */
export function readCheckpoint(text: string, publicKey: KeyObject, origin: string): Checkpoint | undefined {
  const split = text.lastIndexOf('\n\n');
  // A C2SP note has no control character but the line feed, so no CRLF; half a surrogate pair would be signed as U+FFFD.
  if (split < 0 || !text.endsWith('\n') || /[^\P{Cc}\n]|\p{Cs}/u.test(text)) return undefined;
  const body = text.slice(0, split + 1);
  const checkpoint = parseBody(body);
  const signatures = parseSignatures(text.slice(split + 2, -1));
  if (checkpoint?.origin !== origin || signatures === undefined) return undefined;
  const id = keyHash(origin, rawKey(publicKey));
  const ours = signatures.filter((one) => one.name === origin && one.octets.length === SIGNATURE_BYTES && one.octets.subarray(0, KEY_HASH_BYTES).equals(id));
  const signed = ours.length > 0 && ours.every((one) => verify(null, Buffer.from(body), publicKey, one.octets.subarray(KEY_HASH_BYTES)));
  return signed ? checkpoint : undefined;
}

/** The key as a verifier of signed notes takes it: name, key hash and key, joined with plus signs. */
export function verifierKey(origin: string, publicKey: KeyObject): string {
  const raw = rawKey(publicKey);
  return `${origin}+${keyHash(origin, raw).toString('hex')}+${Buffer.concat([ED25519, raw]).toString('base64')}`;
}

/** The key pair of a seed of 32 octets: the same for ever. @throws RangeError when it is not 32 octets */
export function ed25519FromSeed(seed: Buffer): { readonly privateKey: KeyObject; readonly publicKey: KeyObject } {
  if (seed.length !== 32) throw new RangeError(`an Ed25519 seed is 32 octets, not ${seed.length}`);
  const privateKey = createPrivateKey({ key: Buffer.concat([PKCS8_HEAD, seed]), format: 'der', type: 'pkcs8' });
  return Object.freeze({ privateKey, publicKey: createPublicKey(privateKey) });
}

/** Lines after the root are extensions: signed, and nothing to us. */
function parseBody(body: string): Checkpoint | undefined {
  const [origin = '', size = '', root = '', ...rest] = body.slice(0, -1).split('\n');
  if (!NAME.test(origin) || !/^(0|[1-9][0-9]{0,15})$/.test(size) || !Number.isSafeInteger(Number(size)) || rest.includes('')) return undefined;
  const octets = fromBase64(root);
  return octets?.length === ROOT_BYTES ? Object.freeze({ origin, size: Number(size), root: octets }) : undefined;
}

interface NoteSignature {
  readonly name: string;
  readonly octets: Buffer;
}

function parseSignatures(text: string): readonly NoteSignature[] | undefined {
  const lines = text.split('\n');
  if (lines.length > MOST_SIGNATURES) return undefined;
  const signatures: NoteSignature[] = [];
  for (const line of lines) {
    const [dash, name = '', base64 = '', ...rest] = line.split(' ');
    const octets = fromBase64(base64);
    // One line that is no signature makes it no signed note, whoever signed the others.
    if (dash !== '\u2014' || !NAME.test(name) || octets === undefined || octets.length <= KEY_HASH_BYTES || rest.length > 0) return undefined;
    signatures.push({ name, octets });
  }
  return signatures;
}

/** Undefined unless it is base64 in its one canonical form. */
function fromBase64(text: string): Buffer | undefined {
  const octets = Buffer.from(text, 'base64');
  return octets.toString('base64') === text ? octets : undefined;
}

/** The 32 octets of a public key, which end its SubjectPublicKeyInfo. */
function rawKey(publicKey: KeyObject): Buffer {
  if (publicKey.asymmetricKeyType !== 'ed25519') throw new TypeError('a log is signed with an Ed25519 key');
  return publicKey.export({ format: 'der', type: 'spki' }).subarray(-32);
}

function keyHash(name: string, raw: Buffer): Buffer {
  return Buffer.from(hash('sha256', Buffer.concat([Buffer.from(`${name}\n`), ED25519, raw]), 'hex').slice(0, 2 * KEY_HASH_BYTES), 'hex');
}
