// T18, T19 and I-13 on real stores: a tenant moves to another data directory under another master key and
// is judged there as it was here; its file holds nothing of another tenant and cannot be changed or cut
// unnoticed; a deleted one cannot be read again.
import { createHash, createPublicKey, createSecretKey, randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { judgeRecipient } from '../../daemon/gate/index.ts';
import { readCheckpoint } from '../../daemon/ledger/checkpoint.ts';
import { SUPPRESSION_CAUSES, linesOf, openLedger, openSealed, sealLines, type ConsentEntry, type Facts, type Ledger, type Receipt, type SuppressionScope } from '../../daemon/ledger/index.ts';
import { EMPTY_ROOT, leafHash, CompactRange, rootFromInclusion } from '../../daemon/ledger/merkle.ts';
import { CLICK_MODES, OPEN_MODES, parseAddress, type AddressHashes } from '../../daemon/mail/index.ts';
import { openKeyring, type Clock, type Keyring } from '../../daemon/runtime/index.ts';
import type { Policy, Stream, Tenant } from '../../daemon/settings/index.ts';
import { openLedgerStore, type LedgerStore } from '../../daemon/store/index.ts';

const T0 = Date.UTC(2026, 0, 1);
const DAY = 86_400_000;
const PURPOSES = ['news', 'offers', 'surveys', 'events'] as const;
const policies: readonly Policy[] = [1, 2].map((n) => ({
  version: String(n), hash: `${n}`.repeat(64), text: `policy ${n}`, effectiveAt: T0 - 10 * DAY + n, purposes: PURPOSES, tracking: { opens: 'individual', clicks: 'individual' },
}));
const tenant: Tenant = {
  id: 'acme', contact: { name: '', email: '', postal: '', url: '' }, policies, streams: new Map(), credentials: [], softRefuse: false, domains: [],
};
const streams: readonly Stream[] = PURPOSES.map((purpose): Stream => ({
  id: `s-${purpose}`, purpose, class: 'marketing', consentRequired: true, retryForMs: 1, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '',
}));

interface House {
  readonly dir: string;
  readonly store: LedgerStore;
  readonly ledger: Ledger;
  readonly keyring: Keyring;
  readonly clock: Clock & { at: number };
  readonly who: (email: string, tenant?: string) => AddressHashes;
  close(): Promise<void>;
}

function house(t: Test, hostname: string, { dir = mkdtempSync(join(tmpdir(), 'postern-transfer-')), master = randomBytes(32) } = {}): House {
  const clock = { at: T0, now: () => clock.at, after: () => () => undefined };
  const store = openLedgerStore(dir);
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(master));
  const ledger = openLedger({ store, clock, keyring, hostname });
  t.teardown(async () => {
    await store.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return {
    dir, store, ledger, keyring, clock, who: (email, id = 'acme') => ledger.hashes(id, parseAddress(email)),
    async close() {
      await ledger.close();
      await store.close();
    },
  };
}

function consent(hashes: AddressHashes, over: Partial<ConsentEntry> = {}): ConsentEntry {
  return {
    hashes, purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: '1'.repeat(64), method: 'form', by: 'test',
    evidence: { source: 'form', time: T0 - 1000 }, tracking: { opens: 'individual', clicks: 'none' }, ...over,
  };
}

/** Mulberry32: the same people each time. */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

async function collect(lines: AsyncIterable<string>): Promise<string[]> {
  const all: string[] = [];
  for await (const line of lines) all.push(line);
  return all;
}

async function* each<T>(items: Iterable<T>): AsyncGenerator<T> {
  yield* items;
}

const bare = (lines: readonly string[]): string[] => lines.map((line) => line.slice(0, -1));

/** Name, hash and key of a verifier key; base64 has plus signs of its own. */
function partsOf(verifierKey: string): { readonly origin: string; readonly key64: string } {
  const [, origin = '', key64 = ''] = /^([^+]+)\+[0-9a-f]{8}\+(.+)$/.exec(verifierKey) ?? [];
  return { origin, key64 };
}

function proves(receipt: Receipt): boolean {
  const { origin, key64 } = partsOf(receipt.verifier_key);
  const key = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from(key64, 'base64').subarray(1)]), format: 'der', type: 'spki' });
  const checkpoint = readCheckpoint(receipt.checkpoint, key, origin);
  const commitment = createHash('sha256').update(Buffer.from(receipt.salt, 'base64')).update(receipt.payload).digest();
  const root = rootFromInclusion(receipt.leaf, receipt.size, leafHash(commitment), receipt.proof.map((one) => Buffer.from(one, 'base64')));
  return checkpoint !== undefined && root !== undefined && checkpoint.size === receipt.size && root.equals(checkpoint.root);
}

/** People in every state there is. */
async function populate({ ledger, clock, who }: House, addresses: readonly string[], random: () => number): Promise<void> {
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  const entries: ConsentEntry[] = [];
  const [withdrawals, erasures]: [[string, AddressHashes][], AddressHashes[]] = [[], []];
  for (const address of addresses) {
    const hashes = who(address);
    for (const purpose of PURPOSES) {
      const dice = random();
      if (dice < 0.2) continue;
      entries.push(consent(hashes, {
        purpose, state: dice < 0.75 ? 'given' : dice < 0.85 ? 'pending' : 'refused', policyHash: random() < 0.05 ? 'f'.repeat(64) : pick(policies).hash,
        legalBasis: pick(['gdpr_6_1_a', 'eprivacy_13_2', 'casl_express']), tracking: { opens: pick(OPEN_MODES), clicks: pick(CLICK_MODES) },
        evidence: { source: 'a form, with "quotes"\n', time: T0 - Math.floor(random() * DAY) },
        ...(random() < 0.3 && { expiresAt: T0 + Math.floor((random() - 0.3) * 20 * DAY) }), ...(random() < 0.3 && { facts: ['double-opt-in'] as const }), ...(random() < 0.2 && { jurisdiction: 'de' }),
      }));
      if (dice < 0.05 + 0.2) withdrawals.push([purpose, hashes]);
    }
    if (random() < 0.01) erasures.push(hashes);
  }
  for (let i = 0; i < entries.length; i += 500) await ledger.giveAll('acme', entries.slice(i, i + 500));
  clock.at += 1000;
  await Promise.all(withdrawals.map(([purpose, hashes]) => ledger.withdraw('acme', purpose, hashes, 'recipient')));
  const scopes: readonly SuppressionScope[] = ['all', 'purpose:news', 'purpose:offers', 'stream:s-events', 'stream:gone'];
  await ledger.suppressAll('acme', addresses.filter(() => random() < 0.15).map((address) => ({
    hashes: who(address), scope: pick(scopes), cause: pick(SUPPRESSION_CAUSES), by: 'test', ...(random() < 0.3 && { until: T0 + Math.floor((random() - 0.3) * 20 * DAY) }),
  })));
  for (const [i, hashes] of erasures.entries()) await ledger.erase('acme', hashes, 'test', i % 2 === 0 ? 0 : 5 * DAY);
}

async function verdicts({ ledger, who }: House, addresses: readonly string[], times: readonly number[]): Promise<string[]> {
  const told: string[] = [];
  for (const address of addresses) {
    const hashes = who(address);
    for (const stream of streams) {
      const facts: Facts = await ledger.facts('acme', stream.purpose, stream.id, hashes);
      for (const now of times) told.push(JSON.stringify(judgeRecipient({ tenant, stream, now, facts })));
    }
  }
  return told;
}

t.test('T18, I-13: 2,500 people and 4 purposes are judged there as they were here', async (t) => {
  const old = house(t, 'mx.old.example');
  const random = seeded(20_260_101);
  const addresses = Array.from({ length: 2_500 }, (_, i) => (i % 5 === 0 ? `p.${i}+x@gmail.com` : `p${i}@${i % 7 === 0 ? 'bücher' : 'x'}.example`));
  const others = Array.from({ length: 300 }, (_, i) => `only-bravo-${i}@y.example`);
  await old.ledger.register('acme', policies);
  await old.ledger.published('acme', '1'.repeat(64), 'test');
  await old.ledger.published('acme', '2'.repeat(64), 'test');
  await old.ledger.giveAll('bravo', [...others, ...addresses.slice(0, 200)].map((address) => consent(old.who(address, 'bravo'))));
  await old.ledger.suppressAll('bravo', others.map((address) => ({ hashes: old.who(address, 'bravo'), scope: 'all', cause: 'manual', by: 'test' })));
  await populate(old, addresses, random);
  const receipts = [0, 7, 1_000, 5_000].map((leaf) => old.ledger.log.receipt('acme', leaf));
  const before = (await Promise.all(receipts)).filter((receipt) => receipt !== undefined);
  t.ok(before.length >= 3 && before.every(proves));
  const lines = await collect(old.ledger.transfers.export('acme', policies));
  const text = lines.join('');

  const fresh = house(t, 'mx.new.example');
  const progress: number[] = [];
  const done = await fresh.ledger.transfers.import(each(bare(lines)), (n) => progress.push(n));
  const end = JSON.parse(lines.at(-1) ?? '') as { consents: number; suppressions: number; leaves: number };
  t.match(done, { tenant: 'acme', hostname: 'mx.old.example', consents: end.consents, suppressions: end.suppressions, leaves: end.leaves, policies: policies.map(({ version, hash }) => ({ version, hash })) });
  t.comment(`${lines.length} lines, ${Math.round(text.length / 1024)} KiB, progress at ${progress.join()}`);
  const times = [T0 + 2_000, T0 + 3 * DAY, T0 + 30 * DAY];
  const [here, there] = [await verdicts(old, addresses, times), await verdicts(fresh, addresses, times)];
  t.equal(here.length, 30_000);
  t.equal(there.filter((verdict, i) => verdict !== here[i]).length, 0, 'verdict, rule, evidence and tracking of each');
  const rules = new Set(here.map((verdict) => (JSON.parse(verdict) as { rule: string }).rule));
  t.ok(rules.size >= 12, `rules that decided: ${[...rules].join(' ')}`);
  t.same(await collect2(fresh.ledger.list('acme')), await collect2(old.ledger.list('acme')));

  t.match(await fresh.ledger.log.verify('acme'), { ok: true, leaves: end.leaves + 1 }, 'and one leaf that says where it comes from');
  t.equal((await fresh.ledger.log.verify('acme')).erased, (await old.ledger.log.verify('acme')).erased, 'what was erased stays so');
  const [o, n] = [old.ledger.log.verifierKey('acme'), fresh.ledger.log.verifierKey('acme')];
  t.equal(partsOf(o).key64, partsOf(n).key64, 'the key octets are the same');
  t.not(partsOf(o).origin, partsOf(n).origin, 'its name has the host in it');
  const after = await Promise.all(before.map(({ leaf }) => fresh.ledger.log.receipt('acme', leaf)));
  t.same(after.map((receipt) => [receipt?.payload, receipt?.salt]), before.map(({ payload, salt }) => [payload, salt]));
  t.ok(after.every((receipt) => receipt !== undefined && proves(receipt)));

  await t.test('life goes on there', async (t) => {
    const hashes = fresh.who(addresses[3] ?? '');
    fresh.clock.at = T0 + DAY;
    await fresh.ledger.give('acme', consent(hashes, { evidence: { source: 'again', time: T0 + DAY } }));
    t.equal((await fresh.ledger.facts('acme', 'news', 's', hashes)).consent?.givenAt, T0 + DAY);
    t.match(fresh.ledger.policyConflicts('acme', [{ ...policies[0] as Policy, hash: '9'.repeat(64) }]), [{ version: '1', reason: /published as 1111/ }], 'the policy book came along');
    t.same(fresh.ledger.policyConflicts('acme', policies), []);
    await fresh.ledger.register('acme', policies);
    t.equal(fresh.ledger.unpublished('acme').size, 0, 'with what was published');
    fresh.clock.at = T0 + 10 * DAY;
    t.ok(await fresh.ledger.sweep() > 0, 'evidence kept for a time ends here as it would have there');
    t.match(await fresh.ledger.log.verify('acme'), { ok: true });
    await t.rejects(fresh.ledger.transfers.import(each(bare(lines))), { code: 'E_CONTROL', message: /already/ });
    t.match(await fresh.ledger.log.verify('acme'), { ok: true }, 'a refused import touches nothing');
  });

  await t.test('I-13: nothing of another tenant', async (t) => {
    const keys = old.keyring.reveal('bravo');
    const theirs = Object.values(keys).filter((key) => key.length === 64);
    t.equal(theirs.length, 7);
    const hashes = [...others, ...addresses.slice(0, 200)].map((address) => old.who(address, 'bravo')).flatMap(({ consent: c, suppression, family }) => [c, suppression, family]);
    // Every run of hex in the file, looked up; the base64 of eight megabytes only for the keys and some hashes.
    const runs = new Set(text.match(/[0-9a-f]{32,}/g));
    const found = [...theirs.map((key) => Buffer.from(key, 'hex')), ...hashes].filter((octets, i) => runs.has(octets.toString('hex')) || (i < 60 && text.includes(octets.toString('base64').slice(0, 21))));
    t.ok(runs.has(old.who(addresses[1] ?? '').consent.toString('hex')) || runs.size > 1_000);
    t.equal(found.length, 0, `of ${theirs.length} keys and ${hashes.length} hashes`);
    t.notMatch(text, /bravo|@[xy]\.example|gmail/, 'nor its name, nor any address');
    const secrets = readFileSync(join(old.dir, 'keys/people/bravo.person'));
    const slots = Buffer.concat(lines.filter((line) => line.startsWith('{"line":"slots"')).map((line) => Buffer.from((JSON.parse(line) as { person: string }).person, 'base64')));
    let shared = 0;
    for (let at = 0; at < secrets.length; at += 16) if (slots.includes(secrets.subarray(at, at + 16))) shared++;
    t.equal(shared, 0, 'nor a person\'s secret');
    // Whoever holds the file tries the other tenant's addresses under the key in it.
    const known = new Set([...text.matchAll(/"(?:hash|pii_principal_id\\)":?\\?"([0-9a-f]{32})/g)].map((m) => m[1]));
    t.ok(known.size > 1_500);
    const hits = (list: readonly string[]): number => list.filter((one) => Object.values(fresh.who(one)).some((hash: Buffer) => known.has(hash.toString('hex')))).length;
    t.equal(hits(others), 0, 'a dictionary of the other tenant\'s addresses: 0 matches');
    t.ok(hits(addresses.filter((one) => one.endsWith('@x.example'))) > 1_000, 'while its own are found, so the search would have');
  });
});

async function collect2<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

async function small(t: Test): Promise<{ readonly old: House; readonly lines: string[] }> {
  const old = house(t, 'mx.old.example');
  await old.ledger.register('acme', policies);
  await old.ledger.giveAll('acme', Array.from({ length: 1_300 }, (_, i) => consent(old.who(`p${i}@x.example`))));
  await old.ledger.suppress('acme', { hashes: old.who('no@x.example'), scope: 'all', cause: 'manual', by: 'test' });
  return { old, lines: await collect(old.ledger.transfers.export('acme', policies)) };
}

t.test('a file that is not whole brings nothing in', async (t) => {
  const { lines } = await small(t);
  const at = (kind: string): number => lines.findIndex((line) => line.startsWith(`{"line":"${kind}"`));
  const changed = (i: number, change: (line: string) => string): string[] => bare(lines).map((line, n) => (n === i ? change(line) : line));
  const table: readonly (readonly [string, string[], RegExp])[] = [
    ['a consent changed', changed(at('consent'), (line) => line.replace(/"state":"\w+"/, '"state":"expired"')), /checksum/],
    ['a member of another kind', changed(at('consent'), (line) => line.replace(/"slot":\d+/, '"slot":"1"')), /line \d+ .*consent.*slot/],
    ['a state nobody knows', changed(at('consent'), (line) => line.replace(/"state":"\w+"/, '"state":"maybe"')), /state is "maybe"/],
    ['a payload changed', changed(at('entry'), (line) => line.replace('recorded_at', 'recorded_by')), /leaf 0 does not say/],
    ['a leaf left out', bare(lines).toSpliced(at('entry') + 5, 1), /leaf 5 is missing/],
    ['a suppression left out', bare(lines).toSpliced(at('suppressed'), 1), /checksum/],
    ['cut off at a line', bare(lines).slice(0, -1), /cut off/],
    ['lines behind the end', [...bare(lines), bare(lines).at(-1) ?? ''], /behind the last/],
    ['out of order', bare(lines).with(at('consent'), '{"line":"policy","version":"3","hash":"' + '0'.repeat(64) + '","published":true}'), /consent|stands behind|checksum|slots/],
    ['a key that is none', changed(1, (line) => line.replace(/"address":"\w\w/, '"address":"zz')), /address key/],
    ['another log\'s key', changed(1, (line) => line.replace(/"log":"(\w{64})"/, `"log":"${'ab'.repeat(32)}"`)), /checksum|signed/],
    ['another form', changed(0, (line) => line.replace('tenant/1', 'tenant/9')), /postern-tenant\/1/],
    ['no export', ['{"line":"tenant"}'], /format/],
    ['no JSON', ['x'], /not JSON/],
    ['nothing', [], /missing/],
  ];
  const target = house(t, 'mx.third.example');
  for (const [what, broken, reason] of table) {
    await t.rejects(target.ledger.transfers.import(each(broken)), { message: reason }, what);
    for (const part of ['state', 'log'] as const) t.same(await collect2(target.store.scan(Buffer.alloc(0), part)), [], `${what}: no row stays`);
    t.notOk(existsSync(join(target.dir, 'keys/acme.json')) || existsSync(join(target.dir, 'keys/people/acme.person')), `${what}: no key stays`);
  }
  t.equal((await target.ledger.transfers.import(each(bare(lines)))).leaves, 1_303, 'and the whole one is taken after all that');
});

t.test('an import a crash ended: of no use, refused to every change, and made again', async (t) => {
  const { lines } = await small(t);
  const master = randomBytes(32);
  const target = house(t, 'mx.new.example', { master });
  let reached: () => void = () => undefined;
  const halfway = new Promise<void>((done) => { reached = done; });
  async function* hanging(): AsyncGenerator<string> {
    yield* bare(lines).slice(0, -400);
    reached();
    await new Promise(() => undefined); // what a crash leaves: nothing comes after it
  }
  void target.ledger.transfers.import(hanging());
  await halfway;
  await t.rejects(target.ledger.transfers.import(each(bare(lines))), { message: /at this moment/ });
  for (const again of ['import', 'delete'] as const) {
    const dir = mkdtempSync(join(tmpdir(), 'postern-transfer-'));
    cpSync(target.dir, dir, { recursive: true });
    const crashed = house(t, 'mx.new.example', { master, dir });
    await crashed.ledger.recover();
    const facts = await crashed.ledger.facts('acme', 'news', 's-news', crashed.who('p1@x.example'));
    t.match(facts.suspension, { cause: /import is not finished/ });
    t.equal(judgeRecipient({ tenant, stream: streams[0] as Stream, now: T0, facts }).answer, 'no');
    await t.rejects(crashed.ledger.resume('acme', 'cli'), { code: 'E_CONTROL', message: /not finished/ });
    await t.rejects(crashed.ledger.register('acme', [{ ...policies[0] as Policy, version: '3', hash: '3'.repeat(64) }]), { code: 'E_CONTROL' });
    await t.rejects(crashed.ledger.give('acme', consent(crashed.who('p1@x.example'))), { code: 'E_CONTROL' });
    await t.rejects(collect(crashed.ledger.transfers.export('acme', [])), { code: 'E_CONTROL' });
    if (again === 'delete') await crashed.ledger.transfers.delete('acme', 'cli');
    if (again === 'delete') t.same(await collect2(crashed.store.scan(Buffer.alloc(0))), []);
    await crashed.ledger.transfers.import(each(bare(lines)));
    t.match(await crashed.ledger.log.verify('acme'), { ok: true });
    t.equal((await crashed.ledger.facts('acme', 'news', 's-news', crashed.who('p1@x.example'))).consent?.state, 'given');
    t.equal(await crashed.ledger.suspension('acme'), undefined);
    await crashed.close();
  }
});

t.test('an export is of one moment, whatever is recorded meanwhile', async (t) => {
  const { old } = await small(t);
  const lines: string[] = [];
  for await (const line of old.ledger.transfers.export('acme', policies)) {
    lines.push(line);
    if (lines.length === 10) await old.ledger.giveAll('acme', Array.from({ length: 50 }, (_, i) => consent(old.who(`later${i}@x.example`))));
    if (lines.length === 20) await old.ledger.withdraw('acme', '*', old.who('p1299@x.example'), 'recipient');
    if (lines.length === 30) await old.ledger.erase('acme', old.who('p7@x.example'), 'test');
  }
  const fresh = house(t, 'mx.new.example');
  t.match(await fresh.ledger.transfers.import(each(bare(lines))), { leaves: 1_303 });
  t.match(await fresh.ledger.log.verify('acme'), { ok: true });
  t.equal((await fresh.ledger.facts('acme', 'news', 's', fresh.who('later1@x.example'))).consent, undefined);
  t.match(await old.ledger.log.verify('acme'), { ok: true, leaves: 1_303 + 50 + 1 + 2 });
});

t.test('the sealed form: another passphrase, every cut, every flipped bit', async (t) => {
  const { lines } = await small(t);
  const passphrase = 'correct horse battery staple';
  const COST = 2; // the form's own takes half a second a file; the whole daemon's test uses it
  const sealed = Buffer.concat(await collect2(sealLines(each(lines), passphrase, COST)));
  const open = async (octets: Buffer, words = passphrase): Promise<string> => {
    // Pieces of odd sizes, as a stream gives them.
    async function* pieces(): AsyncGenerator<Buffer> {
      for (let at = 0; at < octets.length; at += 50_001) yield octets.subarray(at, at + 50_001);
    }
    let text = '';
    for await (const line of linesOf(openSealed(pieces(), words, COST))) text += `${line}\n`;
    return text;
  };
  t.equal(await open(sealed), lines.join(''));
  t.notOk(sealed.includes('acme') || sealed.includes(Buffer.from(PURPOSES[0])), 'nothing in clear');
  t.not(Buffer.concat(await collect2(sealLines(each(lines), passphrase, COST))).toString('hex', 24, 64), sealed.toString('hex', 24, 64), 'sealed twice is not the same twice');
  await t.rejects(open(sealed, `${passphrase}.`), { code: 'E_CONTROL', message: /passphrase/ });
  const piece = 65_536 + 16;
  const cuts = [];
  for (let at = 40; at < sealed.length; at += piece) cuts.push(at);
  t.ok(cuts.length >= 5, `${cuts.length} pieces`);
  for (const at of cuts) await t.rejects(open(sealed.subarray(0, at)), { code: 'E_CONTROL', message: /cut off/ }, `cut at ${at}`);
  for (const at of [0, 10, 24, 39, 41, piece + 3, sealed.length - 17]) await t.rejects(open(sealed.subarray(0, at)), { code: 'E_CONTROL' }, `cut at ${at}`);
  for (const at of [3, 30, 50, 40 + piece - 1, 40 + piece + 5, sealed.length - 1]) {
    const flipped = Buffer.from(sealed);
    flipped[at] = (flipped[at] ?? 0) ^ 1;
    await t.rejects(open(flipped), { code: 'E_CONTROL', message: at < 24 ? /not a sealed/ : at < 40 + piece ? /passphrase.*damaged/ : /damaged/ }, `octet ${at}`);
  }
  const swapped = Buffer.concat([sealed.subarray(0, 40), sealed.subarray(40 + piece, 40 + 2 * piece), sealed.subarray(40, 40 + piece), sealed.subarray(40 + 2 * piece)]);
  await t.rejects(open(swapped), { code: 'E_CONTROL' }, 'pieces in another order');
  await t.rejects(open(Buffer.concat([sealed, sealed.subarray(sealed.length - 40)])), { code: 'E_CONTROL' }, 'something behind the end');
  for (const exact of [65_536, 65_537, 131_072]) {
    const line = `${'x'.repeat(exact - 1)}\n`;
    t.equal(await open(Buffer.concat(await collect2(sealLines(each([line]), passphrase, COST)))), line, `${exact} octets`);
  }
  await t.rejects(collect(linesOf(each([Buffer.from('{"a":1}\n{"b"')]))), { message: /middle of a line/ });
  await t.rejects(collect(linesOf(each([Buffer.from([0x7b, 0xff, 0x0a])]))), { code: 'E_CONTROL', message: /UTF-8/ });
});

t.test('T19: a deleted tenant cannot be read again; commitments and the last checkpoint stay', async (t) => {
  const { old, lines } = await small(t);
  const { ledger, store, keyring, dir } = old;
  await ledger.give('bravo', consent(old.who('jane@x.example', 'bravo')));
  await t.rejects(ledger.transfers.delete('acme', 'cli'), { code: 'E_CONTROL', message: /not suspended/ });
  await t.rejects(ledger.transfers.delete('nobody', 'cli'), { code: 'E_CONTROL', message: /nothing is recorded/ });
  t.notOk(existsSync(join(dir, 'keys/nobody.json')), 'the question makes nobody keys');
  await ledger.erase('acme', old.who('p3@x.example'), 'test', 9 * DAY);
  const commitments = lines.filter((line) => line.startsWith('{"line":"entry"')).map((line) => (JSON.parse(line) as { commitment: string }).commitment);
  const hashes = [old.who('p5@x.example'), old.who('no@x.example')];
  const keys = keyring.reveal('acme');
  const secrets = readFileSync(join(dir, 'keys/people/acme.person'));
  await ledger.suspend('acme', 'moved', 'cli');
  const deleted = await ledger.transfers.delete('acme', 'cli');
  t.equal(deleted.leaves, commitments.length + 4, 'an erasure is two, and suspended, deleted');
  t.notOk(existsSync(join(dir, 'keys/acme.json')) || existsSync(join(dir, 'keys/people/acme.person')) || existsSync(join(dir, 'keys/people/acme.evidence')));

  // What stays: 39 octets a leaf, of which 32 are the commitment, and they are those of the last checkpoint.
  const range = CompactRange.decode(undefined);
  const octets = createHash('sha256').update('acme').digest().subarray(0, 8);
  for await (const { key, value } of store.scan(Buffer.concat([octets, Buffer.of(0)]), 'log')) {
    if (value.length !== 39) t.fail(`leaf ${range.size} has ${value.length} octets`);
    if (range.size < commitments.length && value.toString('base64', 7) !== commitments[range.size]) t.fail(`leaf ${range.size} is another`);
    t.equal(key.length, 15);
    range.append(leafHash(value.subarray(7)));
  }
  t.notSame(range.root(), EMPTY_ROOT);
  const kept = readFileSync(join(dir, 'keys/checkpoints/acme'), 'utf8');
  t.equal(kept, deleted.checkpoint);
  const { origin, key64 } = partsOf(deleted.verifierKey);
  const publicKey = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from(key64, 'base64').subarray(1)]), format: 'der', type: 'spki' });
  t.same(readCheckpoint(kept, publicKey, origin)?.root, range.root(), 'anybody can hold them against it');
  const tables: Record<number, number> = {};
  for await (const { key } of store.scan(Buffer.alloc(0))) if (key.subarray(1, 9).equals(octets)) tables[key[0] ?? 0] = (tables[key[0] ?? 0] ?? 0) + 1;
  t.same(tables, { 3: 1, 4: 1, 9: 1 }, 'of the state: suspended, the end of the log, the mark');

  t.match((await ledger.facts('acme', 'news', 's', hashes[0] as AddressHashes)), { consent: undefined, suspension: { cause: 'moved' } }, 'even its old hashes find nothing');
  await t.rejects(ledger.give('acme', consent(hashes[0] as AddressHashes)), { code: 'E_CONTROL', message: /deleted.*another id/ });
  await t.rejects(ledger.register('acme', [{ ...policies[0] as Policy, version: '7', hash: '7'.repeat(64) }]), { code: 'E_CONTROL', message: /deleted/ });
  await t.rejects(ledger.resume('acme', 'cli'), { code: 'E_CONTROL' });
  t.match(ledger.policyConflicts('acme', policies), [{ version: '1', reason: /was deleted on/ }], 'a configuration that names it again is told so');
  await t.rejects(ledger.transfers.delete('acme', 'cli'), { code: 'E_CONTROL', message: /was deleted/ });
  await t.rejects(ledger.transfers.import(each(bare(lines))), { code: 'E_CONTROL', message: /was deleted/ });
  t.equal((await ledger.facts('bravo', 'news', 's', old.who('jane@x.example', 'bravo'))).consent?.state, 'given', 'the neighbour has lost nothing');
  t.match(await ledger.log.verify('bravo'), { ok: true });
  t.equal(await ledger.sweep(), 0, 'and kept evidence went with the rest');
  await old.close();
  const files = readdirSync(dir, { recursive: true, encoding: 'utf8' }).map((name) => join(dir, name)).filter((name) => statSync(name).isFile()).map((name) => readFileSync(name));
  const traces = [...Object.values(keys).map((key) => Buffer.from(key, 'hex')).filter((key) => key.length === 32), ...Array.from({ length: 1_300 }, (_, i) => secrets.subarray(i * 16, i * 16 + 16)).filter((one) => !one.equals(Buffer.alloc(16)))];
  t.equal(traces.filter((trace) => files.some((file) => file.includes(trace))).length, 0, `none of ${traces.length} keys and secrets is left in any file`);
});

t.test('a delete a crash ended goes on; a tenant of nobody leaves its name', async (t) => {
  const { old } = await small(t);
  const { ledger, store, keyring, dir } = old;
  await ledger.suspend('acme', 'moved', 'cli');
  const destroy = keyring.destroy.bind(keyring);
  Object.assign(keyring, { destroy: () => { throw new Error('the power went'); } });
  await t.rejects(ledger.transfers.delete('acme', 'cli'), { message: 'the power went' });
  Object.assign(keyring, { destroy });
  t.equal((await ledger.facts('acme', 'news', 's', old.who('p5@x.example'))).consent, undefined, 'the people\'s secrets go first');
  await t.rejects(ledger.resume('acme', 'cli'), { code: 'E_CONTROL', message: /deletion.*not finished/ });
  t.match(await ledger.transfers.delete('acme', 'cli'), { leaves: 1_305 });
  t.notOk(existsSync(join(dir, 'keys/acme.json')));
  await ledger.register('new', policies);
  await ledger.suspend('new', 'by mistake', 'cli');
  t.same(await ledger.transfers.delete('new', 'cli'), { leaves: 0, checkpoint: '', verifierKey: '' });
  const octets = createHash('sha256').update('new').digest().subarray(0, 8);
  for (const part of ['state', 'log'] as const) for (const { key } of await collect2(store.scan(Buffer.alloc(0), part))) t.notOk(key.includes(octets));
  t.same(ledger.policyConflicts('new', policies), []);
  await ledger.register('new', policies);
  t.match(await ledger.log.verify('new'), { ok: true, leaves: 2 });
});
