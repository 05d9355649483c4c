// Receipts as the ledger makes them, checked by the script that anybody may run: good ones, every kind of
// altered one, and what is no receipt at all.
import { spawn } from 'node:child_process';
import { createHash, createSecretKey, randomBytes } from 'node:crypto';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import { ed25519FromSeed, signCheckpoint, verifierKey } from '../../daemon/ledger/checkpoint.ts';
import { openLedger } from '../../daemon/ledger/index.ts';
import { CompactRange, inclusionProof, leafHash, subtreeReader } from '../../daemon/ledger/merkle.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import { hashPolicy } from '../../daemon/settings/build.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const SCRIPT = join(import.meta.dirname, '../../scripts/verify-receipt');

interface Verdict {
  readonly good: boolean;
  readonly compared: boolean;
  readonly checks: readonly { readonly check: string; readonly says: string }[];
  readonly fault?: { readonly check: string; readonly says: string };
  readonly proved?: Readonly<Record<string, unknown>>;
  readonly key?: string;
}

// A plain script has no types; what the address names is a string here so that none are looked for.
const address: string = `${SCRIPT}.mjs?functions`;
const { verdict } = await import(address) as { readonly verdict: (read: () => string, published?: string) => Verdict };

type Receipt = Readonly<Record<string, unknown>> & {
  readonly payload: string; readonly salt: string; readonly proof: readonly string[]; readonly checkpoint: string; readonly verifier_key: string; readonly leaf: number; readonly size: number;
};

const ORIGIN = 'mx.acme.example/ledger/00112233445566aa';
const keys = ed25519FromSeed(Buffer.alloc(32, 3));
const TEXT = Buffer.from('# What we do\n\nWe write once a month. \u00e4\u00f6\u00fc\n');
const PERMISSIONS = { purposes: ['news', 'events'], tracking: { opens: 'none', clicks: 'aggregate' } };
const PAYLOAD = {
  event: 'consent', recorded_at: '2026-02-03T04:05:07.000Z', by: 'api', pii_principal_id: 'c0ffee'.repeat(6), purpose: 'news', event_state: 'given',
  event_time: '2026-02-03T04:05:06.000Z', lawful_basis: 'gdpr_6_1_a', privacy_notice: hashPolicy(TEXT, PERMISSIONS), source: 'the form \u2014 \u4f60',
};
const POLICY = { text: TEXT.toString('base64'), ...PERMISSIONS };

/** A receipt of a log of `size` events, made by hand. */
function receiptOf(leaf: number, size: number, over: Readonly<Record<string, unknown>> = {}): Receipt {
  const payload = JSON.stringify({ ...PAYLOAD, ...over });
  const salt = Buffer.alloc(16, 0xa5);
  const leaves = Array.from({ length: size }, (_, i) => leafHash(i === leaf ? createHash('sha256').update(salt).update(payload).digest() : Buffer.alloc(32, i)));
  const range = CompactRange.decode(undefined);
  for (const one of leaves) range.append(one);
  return {
    format: 'postern-receipt/1', leaf, payload, salt: salt.toString('base64'), size,
    proof: inclusionProof(leaf, size, subtreeReader((from, to) => leaves.slice(from, to), () => undefined)).map((one) => one.toString('base64')),
    checkpoint: signCheckpoint({ origin: ORIGIN, size, root: range.root() }, keys.privateKey), verifier_key: verifierKey(ORIGIN, keys.publicKey),
  };
}

const GOOD = receiptOf(12, 40);
const dir = mkdtempSync(join(tmpdir(), 'postern-receipt-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function judge(receipt: unknown, published?: string): Verdict {
  return verdict(() => (typeof receipt === 'string' ? receipt : JSON.stringify(receipt)), published);
}

interface Said {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

async function run(args: readonly string[], script = SCRIPT, input = ''): Promise<Said> {
  const child = spawn(script, args, { env: { PATH: process.env['PATH'] ?? '' }, stdio: ['pipe', 'pipe', 'pipe'] });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => { out += text; });
  child.stderr.setEncoding('utf8').on('data', (text: string) => { err += text; });
  child.stdin.end(input);
  return await new Promise((done) => child.on('close', (status) => done({ status, out, err })));
}

let files = 0;

function fileOf(receipt: unknown): string {
  const file = join(dir, `${++files}.json`);
  writeFileSync(file, typeof receipt === 'string' || Buffer.isBuffer(receipt) ? receipt : JSON.stringify(receipt, null, 2));
  return file;
}

t.test('what the ledger gives out is good, and says what it proves', async (t) => {
  const at = Date.UTC(2026, 1, 3);
  const clock = { now: () => at, after: () => () => undefined };
  const data = mkdtempSync(join(dir, 'ledger-'));
  const store = openLedgerStore(data);
  t.teardown(() => store.close());
  const ledger = openLedger({ store, clock, keyring: openKeyring(join(data, 'keys'), createSecretKey(randomBytes(32))), hostname: 'mx.acme.example' });
  const policyHash = hashPolicy(TEXT, PERMISSIONS);
  await ledger.giveAll('acme', Array.from({ length: 300 }, (_, i) => ({
    hashes: ledger.hashes('acme', parseAddress(`p${i}@example.org`)), purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash, method: 'form', by: 'test',
    evidence: { source: 'form', time: at - 1000 }, tracking: { opens: 'none', clicks: 'none' },
  } as const)));
  const { size } = await ledger.log.checkpoint('acme');
  t.ok(size >= 300);
  for (const leaf of [0, 1, 254, 255, 256, size - 1]) {
    const receipt = await ledger.log.receipt('acme', leaf);
    const { good, fault, proved } = judge(receipt, ledger.log.verifierKey('acme'));
    t.ok(good, `leaf ${leaf}: ${fault?.says ?? 'good'}`);
    t.match(proved, { leaf, size });
  }
  const said = await run([fileOf(await ledger.log.receipt('acme', size - 1)), '--key', ledger.log.verifierKey('acme')]);
  t.equal(said.status, 0, said.out + said.err);
  t.match(said.out, /purpose +news\n/);
  t.match(said.out, /state +given\n/);
  t.match(said.out, new RegExp(`policy +${policyHash}`));
  t.match(said.out, /log +mx\.acme\.example\/ledger\/[0-9a-f]{16}\n/);
});

t.test('as people and programs run it', async (t) => {
  const file = fileOf({ ...GOOD, policy: POLICY });
  const lone = mkdtempSync(join(dir, 'lone-'));
  for (const name of ['verify-receipt', 'verify-receipt.mjs']) copyFileSync(join(SCRIPT, '..', name), join(lone, name));
  symlinkSync(SCRIPT, join(dir, 'linked'));
  const [plain, compared, json, help, linked, alone, piped] = await Promise.all([
    run([file]), run([file, '--key', GOOD.verifier_key]), run(['--json', file]), run(['--help']), run([file], join(dir, 'linked')), run([file], join(lone, 'verify-receipt')),
    run(['-', '--json'], SCRIPT, readFileSync(file, 'utf8')),
  ]);
  t.equal(plain.status, 0);
  t.equal(plain.err, '');
  for (const text of [PAYLOAD.pii_principal_id, 'news', 'given', PAYLOAD.event_time, PAYLOAD.privacy_notice, ORIGIN, 'event 12, counted from 0, of 40', 'gdpr_6_1_a', 'ok      policy']) t.ok(plain.out.includes(text), text);
  t.match(plain.out, /The key comes from the receipt itself[^]*Compare it with the one the sender publishes/);
  t.ok(plain.out.includes(GOOD.verifier_key));
  t.equal(compared.status, 0);
  t.notMatch(compared.out, /comes from the receipt itself/);
  t.equal(json.status, 0);
  const told = JSON.parse(json.out) as Record<string, unknown>;
  t.match(told, { good: true, compared: false, warning: /sender publishes/, proved: { who: PAYLOAD.pii_principal_id, purpose: 'news', state: 'given', when: PAYLOAD.event_time, log: ORIGIN, leaf: 12, size: 40, payload: PAYLOAD } });
  t.equal(help.status, 0);
  t.match(help.out, /usage: verify-receipt/);
  t.same([linked, alone], [plain, plain], 'through a link, and with nothing of the house beside it');
  t.same(piped, json, 'from standard input');
  t.notMatch(readFileSync(`${SCRIPT}.mjs`, 'utf8'), /from '(?!node:)|import\(|require\(/, 'imports nothing but Node');

  const another = verifierKey(ORIGIN, ed25519FromSeed(Buffer.alloc(32, 4)).publicKey);
  const failing: readonly (readonly [string, readonly string[], number, RegExp])[] = [
    ['another key', [file, '--key', another], 1, /FAILED {2}key .*not the one given with --key[^]*proves nothing/],
    ['altered', [fileOf({ ...GOOD, payload: GOOD.payload.replace('given', 'ready') })], 1, /FAILED {2}inclusion .*altered[^]*proves nothing/],
    ['altered, for a program', ['--json', fileOf({ ...GOOD, size: 41 })], 1, /"good":false.*"fault":\{"check":"size"/],
    ['no such file', [join(dir, 'none')], 1, /FAILED {2}file .*no such file/],
    ['a directory', [dir], 1, /FAILED {2}file .*directory/],
    ['not UTF-8', [fileOf(Buffer.of(0xff, 0xfe, 0x00))], 1, /not UTF-8/],
    ['too large', [fileOf(Buffer.alloc(5 * 1024 * 1024, 0x20))], 1, /larger than/],
    ['nested a million deep', [fileOf(`{"format":${'['.repeat(1_000_000)}${']'.repeat(1_000_000)}}`)], 1, /cannot be checked|"format"|not JSON/],
    ['no file', [], 2, /one receipt is checked at a time/],
    ['two files', [file, file], 2, /one receipt is checked at a time/],
    ['an unknown option', [file, '--kee', 'x'], 2, /Unknown option '--kee'[^]*usage/],
    ['an option without its value', [file, '--key'], 2, /usage/],
  ];
  for (const [name, args, status, says] of failing) {
    const said = await run(args);
    t.equal(said.status, status, name);
    t.match(said.out + said.err, says, name);
    t.notMatch(said.out + said.err, /^ +at |node:internal/m, `${name}: no stack`);
  }
});

t.test('every place of every small log', (t) => {
  const wrong: string[] = [];
  for (let size = 1; size <= 20; size++) for (let leaf = 0; leaf < size; leaf++) if (!judge(receiptOf(leaf, size)).good) wrong.push(`${leaf} of ${size}`);
  t.same(wrong, []);
  t.match(judge(receiptOf(999, 1_000)), { good: true });
  t.end();
});

t.test('one bit the other way round anywhere is found', (t) => {
  const wrong: string[] = [];
  const flip = (base64: string, bit: number): string => {
    const octets = Buffer.from(base64, 'base64');
    octets[bit >> 3] = (octets[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    return octets.toString('base64');
  };
  for (let bit = 0; bit < 16 * 8; bit++) if (judge({ ...GOOD, salt: flip(GOOD.salt, bit) }).fault?.check !== 'inclusion') wrong.push(`salt ${bit}`);
  for (const [i, one] of GOOD.proof.entries()) {
    for (let bit = 0; bit < 32 * 8; bit++) if (judge({ ...GOOD, proof: GOOD.proof.with(i, flip(one, bit)) }).fault?.check !== 'inclusion') wrong.push(`proof ${i} ${bit}`);
  }
  for (const field of ['payload', 'checkpoint', 'verifier_key'] as const) {
    const text = GOOD[field];
    for (let i = 0; i < text.length; i++) {
      if (judge({ ...GOOD, [field]: text.slice(0, i) + String.fromCharCode(text.charCodeAt(i) ^ 1) + text.slice(i + 1) }).good) wrong.push(`${field} ${i}`);
      if (judge({ ...GOOD, [field]: text.slice(0, i) }).good) wrong.push(`${field} cut at ${i}`);
    }
  }
  for (let leaf = 0; leaf < 45; leaf++) if (leaf !== 12 && judge({ ...GOOD, leaf }).good) wrong.push(`leaf ${leaf}`);
  t.same(wrong, []);
  t.end();
});

t.test('which check fails, and why', (t) => {
  const other = ed25519FromSeed(Buffer.alloc(32, 4));
  const root = Buffer.alloc(32, 1);
  const signedBy = (origin: string, pair: typeof keys, size = 40): string => signCheckpoint({ origin, size, root }, pair.privateKey);
  const note = GOOD.checkpoint;
  const witness = `\u2014 witness.example/w1 ${Buffer.alloc(76, 5).toString('base64')}\n`;
  t.ok(judge({ ...GOOD, checkpoint: note + witness }).good, 'a witness is passed over');
  t.ok(judge({ ...GOOD, policy: { ...POLICY, purposes: ['events', 'news', 'news'] } }).good, 'purposes in any order');
  const rows: readonly (readonly [string, unknown, string, RegExp])[] = [
    ['another root', { ...GOOD, checkpoint: signedBy(ORIGIN, keys) }, 'inclusion', /root/],
    ['another key signed', { ...GOOD, checkpoint: signedBy(ORIGIN, other) }, 'signature', /not signed by the verifier key/],
    ['another log', { ...GOOD, checkpoint: signedBy('mx.other.example', keys) }, 'signature', /not signed/],
    ['another size signed', { ...GOOD, checkpoint: signedBy(ORIGIN, keys, 41) }, 'size', /a log of 40 events, its checkpoint of 41/],
    ['behind the end', { ...GOOD, leaf: 40 }, 'size', /no event 40/],
    ['a proof too short', { ...GOOD, proof: GOOD.proof.slice(1) }, 'inclusion', /5 hashes|does not/],
    ['a proof too long', { ...GOOD, proof: [...GOOD.proof, ...GOOD.proof] }, 'inclusion', /does not fit/],
    ['CRLF', { ...GOOD, checkpoint: note.replaceAll('\n', '\r\n') }, 'checkpoint', /not a signed note/],
    ['rubbish among the signatures', { ...GOOD, checkpoint: `${note}rubbish\n` }, 'checkpoint', /signature line/],
    ['a crowd of signatures', { ...GOOD, checkpoint: note + witness.repeat(100) }, 'checkpoint', /more than 100/],
    ['a key cut', { ...GOOD, verifier_key: GOOD.verifier_key.slice(0, -4) }, 'key', /Ed25519/],
    ['a key of another name', { ...GOOD, verifier_key: GOOD.verifier_key.replace('acme', 'evil') }, 'key', /hash it states/],
    ['another policy', { ...GOOD, policy: { ...POLICY, text: Buffer.from('We write daily.').toString('base64') } }, 'policy', /has the hash [0-9a-f]{64}, the event names [0-9a-f]{64}/],
    ['other permissions', { ...GOOD, policy: { ...POLICY, tracking: { opens: 'individual', clicks: 'aggregate' } } }, 'policy', /the event names/],
    ['a policy for an event without', { ...receiptOf(1, 2, { privacy_notice: undefined }), policy: POLICY }, 'policy', /names not stated/],
    ['a policy that is none', { ...GOOD, policy: null }, 'policy', /not an object/],
    ['a policy without tracking', { ...GOOD, policy: { ...POLICY, tracking: {} } }, 'policy', /opens and clicks/],
    ['purposes that are none', { ...GOOD, policy: { ...POLICY, purposes: 'news' } }, 'policy', /purposes/],
    ['another format', { ...GOOD, format: 'postern-receipt/2' }, 'format', /"postern-receipt\/2"; this checks postern-receipt\/1/],
    ['no JSON', '{', 'format', /the file is not JSON/],
    ['nothing', '', 'format', /not JSON/],
    ['a list', [], 'format', /not a JSON object/],
    ['null', null, 'format', /not a JSON object/],
    ['a payload that is no JSON', { ...GOOD, payload: 'x' }, 'format', /"payload" is not JSON/],
    ['a payload that is an object', { ...GOOD, payload: PAYLOAD }, 'format', /"payload" is missing or not a text/],
    ['half a character', { ...GOOD, payload: '{"a":"\ud800"}' }, 'format', /whole characters/],
    ['a salt too short', { ...GOOD, salt: 'AAAA' }, 'format', /"salt" is 3 octets, not 16/],
    ['a salt that is no base64', { ...GOOD, salt: '!' }, 'format', /"salt" is not base64/],
    ['a proof that is no list', { ...GOOD, proof: 'x' }, 'format', /"proof"/],
    ['a proof without end', { ...GOOD, proof: Array.from({ length: 49 }, () => root.toString('base64')) }, 'format', /at most 48/],
    ['a step that is no hash', { ...GOOD, proof: ['AAAA'] }, 'format', /"proof\[0\]" is 3 octets, not 32/],
    ...['leaf', 'size'].flatMap((field) => [-1, 0.5, 2 ** 60, '12', null].map((value) => [`${field} ${value}`, { ...GOOD, [field]: value }, 'format', new RegExp(`"${field}"`)] as const)),
    ...Object.keys(GOOD).map((field) => [`without ${field}`, { ...GOOD, [field]: undefined }, 'format', new RegExp(`"${field}"`)] as const),
  ];
  for (const [name, receipt, check, says] of rows) {
    const { good, fault } = judge(receipt);
    t.notOk(good, name);
    t.equal(fault?.check, check, name);
    t.match(fault?.says, says, name);
  }
  t.end();
});

t.test('hostile receipts: a terminal is not written to, and nothing else is thrown', async (t) => {
  const said = await run([fileOf(receiptOf(0, 3, { source: '\u001b[2Jok\r\n\u202egood', '\u0007bell': 1 }))]);
  t.equal(said.status, 0);
  t.notMatch(said.out, /[^\P{Cc}\n]|\p{Cf}/u);
  t.match(said.out, /\\u\{1b\}\[2Jok/);
  t.doesNotThrow(() => fc.assert(fc.property(fc.constantFrom(...Object.keys(GOOD), 'policy'), fc.jsonValue(), (field, value) => {
    const { good } = judge({ ...GOOD, [field]: value });
    return !good || JSON.stringify(value) === JSON.stringify(GOOD[field]);
  }), { numRuns: 300 }));
});
