// Lists of consents and suppressions: good rows are taken, bad ones named by line and reason, whatever the
// file is made of and wherever its pieces end.
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { importConsents, importSuppressions, openConsentImport, openLedger, type ImportOptions, type ImportProgress, type ImportResult, type Ledger } from '../../daemon/ledger/index.ts';
import { parseAddress, type AddressHashes } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import type { Tenant } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const POLICY = 'ab'.repeat(32);
const FOREIGN = 'cd'.repeat(32);
const T0 = Date.UTC(2026, 0, 1);
const FILE = '12'.repeat(32);
const HEADER = 'email,purpose,source,time,policy';

const tenant = {
  id: 'acme',
  policies: [{ version: '1', hash: POLICY, text: '', effectiveAt: 0, purposes: ['news', 'offers'], tracking: { opens: 'individual', clicks: 'individual' } }],
} as unknown as Tenant;

interface Told {
  readonly result: ImportResult;
  /** `line: reason` */
  readonly errors: readonly string[];
}

interface Room {
  readonly ledger: Ledger;
  readonly who: (email: string) => AddressHashes;
  readonly leaves: () => Promise<number>;
  consents(pieces: readonly (string | Uint8Array)[] | string, over?: Partial<ImportOptions>): Promise<Told>;
  suppressions(text: string, over?: Partial<ImportOptions>): Promise<Told>;
}

function room(t: Test): Room {
  const dir = mkdtempSync(join(tmpdir(), 'postern-import-'));
  const store = openLedgerStore(dir);
  const ledger = openLedger({ store, clock: { now: () => T0, after: () => () => undefined }, keyring: openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32))) });
  t.teardown(async () => {
    await ledger.close();
    await store.close();
    rmSync(dir, { recursive: true });
  });
  const told = async (importer: typeof importConsents, pieces: readonly (string | Uint8Array)[] | string, over: Partial<ImportOptions>): Promise<Told> => {
    const errors: string[] = [];
    const result = await importer(ledger, tenant, stream(typeof pieces === 'string' ? [pieces] : pieces), {
      format: 'csv', now: T0, by: 'import', jurisdictions: ['de', 'fr'], onError: ({ line, reason }) => errors.push(`${line}: ${reason}`), ...over,
    });
    t.notMatch(errors.join(), /x\.example/, 'no reason repeats an address');
    return { result, errors };
  };
  return {
    ledger, who: (email) => ledger.hashes('acme', parseAddress(email)),
    leaves: async () => (await ledger.log.verify('acme')).leaves,
    consents: (pieces, over = {}) => told(importConsents, pieces, over),
    suppressions: (text, over = {}) => told(importSuppressions, text, over),
  };
}

async function* stream(pieces: readonly (string | Uint8Array)[]): AsyncGenerator<string | Uint8Array> {
  yield* pieces;
}

function cut(text: string | Buffer, octets: number): Uint8Array[] {
  const all = Buffer.from(text);
  return Array.from({ length: Math.ceil(all.length / octets) }, (_, i) => all.subarray(i * octets, (i + 1) * octets));
}

const row = (email: string, rest = 'news,s,2025-12-31,1'): string => `${email},${rest}`;

t.test('good rows are taken, bad ones named, nothing withdrawn returns, wherever a piece ends', async (t) => {
  const csv = [
    '\uFEFFemail,purpose,source,time,policy,opens,clicks', 'jane@x.example,news,"shop, ""main""\r\nfloor",2025-12-31T10:00:00Z,1,individual,none', 'bad,news,s,2025-12-31,1,,',
    'gone@x.example,news,s,2025-06-01,1,,', 'a@x.example,other,s,2025-12-31,1,,', 'a@x.example,news,s,2025-12-31,9,,', 'a@x.example,news,s,soon,1,,', 'a@x.example,news,s,2027-01-01,1,,',
    'a@x.example,news,,2025-12-31,1,,', 'a@x.example,news', '', 'a@x.example,news,s,2025-12-31,1,all,', 'b@x.example,news,"s,2025-12-31,1,,',
  ].join('\r\n');
  for (const octets of [1, 7, 64, 4_096]) {
    const { ledger, who, consents } = room(t);
    await consents(`${HEADER}\n${row('gone@x.example')}\n`);
    await ledger.withdraw('acme', '*', who('gone@x.example'), 'recipient');
    const { result, errors } = await consents(cut(csv, octets));
    t.match(result, { rows: 11, recorded: 1, kept: 1, errors: 9 }, `pieces of ${octets}`);
    t.same(errors.map((e) => e.split(':')[0]), ['4', '6', '7', '8', '9', '10', '11', '13', '14']);
    t.match((await ledger.show('acme', who('jane@x.example')))[0], { evidence: { source: 'shop, "main"\r\nfloor', time: Date.UTC(2025, 11, 31, 10) }, tracking: { opens: 'individual', clicks: 'none' } });
    t.equal((await ledger.facts('acme', 'news', 's', who('gone@x.example'))).consent?.state, 'withdrawn');
  }
});

t.test('NDJSON, and suppressions', async (t) => {
  const { consents, suppressions, ledger, who } = room(t);
  const many = Array.from({ length: 1_234 }, (_, i) => JSON.stringify({ email: `n${i}@x.example`, purpose: 'offers', source: 's', time: T0 - 1, policy: POLICY })).join('\n');
  const bad = ['{"email":1}', 'nonsense', '[]', '{"email":"a@x.example","purpose":"news","time":"2025-12-31","policy":"1"}', '{"email":"a@x.example","colour":"red"}', '{"email":{}}'];
  const { result, errors } = await consents([many, '\n', ...bad.map((line) => `${line}\n`)], { format: 'ndjson' });
  t.match(result, { rows: 1_240, recorded: 1_234, errors: 6 });
  t.match(errors[3], /^1238: the row lacks source$/, 'evidence is missing');
  const found = await suppressions('email,cause,scope\na@x.example,manual,\nb@x.example,unsubscribe,purpose:news\nc@x.example,whim,\n');
  t.match(found.result, { rows: 3, recorded: 2, errors: 1 });
  t.match((await suppressions('email,cause\na@x.example,manual\n')).result.rows, 1);
  const long = await suppressions(`email,cause,scope\nd@x.example,manual,\ne@x.example,manual,purpose:${'€'.repeat(100)}\nf@x.example,manual,\n`);
  t.match(long, { result: { rows: 3, recorded: 2, errors: 1 }, errors: ['3: scope is longer than 255 octets'] }, 'one row is refused, not all of them');
  t.equal((await ledger.facts('acme', 'news', 's', who('a@x.example'))).suppressions.length, 1);
});

t.test('facts, jurisdiction and legal basis, in both formats', async (t) => {
  const { consents, ledger, who } = room(t);
  const header = `${HEADER},facts,jurisdiction,legal_basis`;
  const { errors } = await consents([header, row('a@x.example', 'news,s,2025-12-31,1,double-opt-in; opt-out-offered,de,eprivacy_13_2'), row('b@x.example', 'news,s,2025-12-31,1,said-so,de,'),
    row('b@x.example', 'news,s,2025-12-31,1,,xx,'), row('b@x.example', 'news,s,2025-12-31,1,,,because')].join('\n'));
  t.same(errors.map((e) => e.slice(0, 22)), ['3: facts is not one of', '4: jurisdiction is not', '5: legal_basis is not ']);
  t.match((await ledger.show('acme', who('a@x.example')))[0], { facts: ['double-opt-in', 'opt-out-offered'], jurisdiction: 'de', legalBasis: 'eprivacy_13_2' });
  await consents(JSON.stringify({ email: 'c@x.example', purpose: 'news', source: 's', time: '2025-12-31', policy: '1', facts: 'obtained-in-sale own-similar-products', jurisdiction: 'fr' }), { format: 'ndjson' });
  t.match((await ledger.show('acme', who('c@x.example')))[0], { facts: ['obtained-in-sale', 'own-similar-products'], jurisdiction: 'fr', legalBasis: 'gdpr_6_1_a' });
  const json = (email: string, over: object): string => JSON.stringify({ email, purpose: 'news', source: 's', time: '2025-12-31', policy: '1', ...over });
  const lists = await consents([json('d@x.example', { facts: ['double-opt-in', 'opt-out-offered'] }), '\n', json('e@x.example', { facts: [1] })], { format: 'ndjson' });
  t.same(lists.errors, ['2: facts is not a text']);
  t.match((await ledger.show('acme', who('d@x.example')))[0], { facts: ['double-opt-in', 'opt-out-offered'] });
  const unknown = await consents([json('f@x.example', { jurisdiction: 'ca' }), '\n', json('g@x.example', { jurisdiction: 'C4' })], { format: 'ndjson', jurisdictions: undefined });
  t.same(unknown.errors, ['2: jurisdiction is not a profile id such as de'], 'where the profiles are not known any word is taken');
});

t.test('what a file should not hold', async (t) => {
  const { consents, ledger, who } = room(t);
  const good = (name: string): string => row(`${name}@x.example`);
  const cases: readonly (readonly [string, string | Buffer, RegExp, Partial<ImportOptions>?])[] = [
    ['a NUL', `${HEADER}\n${good('a')}\n${good('b\0')}\n${good('c')}\n`, /^3: the row has a NUL character$/],
    ['a line of a million characters', `${HEADER}\n${good('a')}\n${'y'.repeat(1_000_000)}\n${good('c')}\n`, /^3: the row is longer than 16384 octets$/],
    ['a line of a million characters, JSON', `${'y'.repeat(1_000_000)}\n`, /^1: the row is longer than 16384 octets$/, { format: 'ndjson' }],
    ['missing evidence', `${HEADER}\n${good('a')}\n${row('b@x.example', 'news,,2025-12-31,1')}\n${good('c')}\n`, /^3: source is empty: a consent without evidence is none$/],
    ['a quote inside a field', `${HEADER}\n${good('a')}\n${row('b@x.example', 'news,a "shop",2025-12-31,1')}\n${good('c')}\n`, /^3: the row is badly quoted$/],
    ['a quote that never closes', `${HEADER}\n${good('a')}\n"${good('b')}\n${good('c')}\n${`${good('d')}\n`.repeat(2_000)}`, /^3: a quote is opened that is not closed$/],
    ['not UTF-8', Buffer.from(`${HEADER}\n${good('a')}\n${row('b@x.example', 'news,\xe9t\xe9,2025-12-31,1')}\n${good('c')}\n`, 'latin1'), /^3: the row is not UTF-8$/],
    ['a time in the future', `${HEADER}\n${good('a')}\n${row('b@x.example', 'news,s,2026-03-01,1')}\n${good('c')}\n`, /^3: time is in the future$/],
    ['an address of 320 octets', `${HEADER}\n${good('a')}\n${row(`${'l'.repeat(64)}@${'d'.repeat(247)}.example`)}\n${good('c')}\n`, /^3: the address is longer than 254 octets$/],
    ['the 31st of February', `${HEADER}\n${good('a')}\n${row('b@x.example', 'news,s,2025-02-31,1')}\n${good('c')}\n`, /^3: time is not a time/],
    ['another tenant\'s policy', `${HEADER}\n${good('a')}\n${row('b@x.example', `news,s,2025-12-31,${FOREIGN}`)}\n${good('c')}\n`, /^3: policy is not a version or hash of a policy of this tenant$/],
  ];
  for (const [name, octets, reason, over] of cases) {
    for (const pieces of [cut(Buffer.from(octets), 300), cut(Buffer.from(octets), 1 << 20)]) {
      const { errors } = await consents(pieces, over);
      t.equal(errors.length, 1, name);
      t.match(errors[0], reason, name);
    }
  }
  for (const name of ['a', 'c', 'd']) t.equal((await ledger.facts('acme', 'news', 's', who(`${name}@x.example`))).consent?.state, 'given', 'the rows around it are taken');
});

t.test('files without rows, and headers that cannot be used', async (t) => {
  const { consents, leaves } = room(t);
  for (const text of ['', '\uFEFF', '\r\n\r\n', `${HEADER}`, `${HEADER}\r\n`]) t.match((await consents(text)).result, { rows: 0, recorded: 0, errors: 0 }, JSON.stringify(text));
  for (const [header, says] of [
    [`${HEADER},purpose`, /names purpose twice/], [`${HEADER},colour`, /column 6 of the header/], ['email', /lacks purpose, source, time, policy/], ['"email,purpose\n', /header/],
    [`${HEADER}\0`, /NUL/], [Buffer.from(`${HEADER},\xff`, 'latin1'), /not UTF-8/],
  ] as const) {
    await t.rejects(consents([typeof header === 'string' ? Buffer.from(`${header}\n`) : header]), { code: 'E_CONTROL', message: says });
  }
  t.equal(await leaves(), 0);
});

t.test('the same file again changes nothing; a dry run writes nothing', async (t) => {
  const { consents, suppressions, leaves } = room(t);
  const csv = [HEADER, ...Array.from({ length: 3_000 }, (_, i) => row(`p${i}@x.example`)), 'broken'].join('\r\n');
  t.match((await consents(csv, { dryRun: true })).result, { rows: 3_001, recorded: 0, errors: 1 });
  t.equal(await leaves(), 0);
  t.match((await consents(csv)).result, { recorded: 3_000, kept: 0, errors: 1 });
  t.match((await consents(csv)).result, { recorded: 0, kept: 3_000, errors: 1 });
  const no = 'email,cause\nq@x.example,manual\n';
  await suppressions(no);
  t.match((await suppressions(no, { now: T0 + 1 })).result, { recorded: 0, kept: 1 });
  t.equal(await leaves(), 3_001);
});

t.test('an import ended anywhere is gone on with', async (t) => {
  const people = Array.from({ length: 5_000 }, (_, i) => row(`p${i}@x.example`, i % 2 === 0 ? 'news,"two\nlines",2025-12-31,1' : 'news,s,2025-12-31,1'));
  const header = Buffer.from(`\uFEFF${HEADER}\n`);
  const file = Buffer.concat([header, Buffer.from(`${people.join('\n')}\n`)]);
  const { ledger, leaves, who } = room(t);
  const options = { format: 'csv', now: T0, by: 'import', file: FILE, windowRows: 1_000 } as const;
  let progress: ImportProgress | undefined;
  for (const stop of [60_000, 61_000, 150_000, file.length]) {
    const run = openConsentImport(ledger, tenant, { ...options, ...(progress !== undefined && { from: { progress, header } }) });
    for (const piece of cut(file.subarray(progress?.octets ?? 0, stop), 9_999)) {
      if (run.full) await run.flush();
      await run.take(Buffer.from(piece));
    }
    // Here the process would have been killed: what was read and not flushed is gone.
    if (stop === file.length) {
      await run.take(Buffer.alloc(0), true);
      await run.flush(true);
      t.match(run.result, { rows: 5_000, errors: 0 });
    } else {
      const found = await ledger.importProgress('acme', FILE);
      t.ok(found !== undefined && found.octets <= stop && found.octets >= (progress?.octets ?? 0), `ended at ${stop}`);
      t.equal(file.subarray(0, found?.octets).toString().split('\n').length, found?.line, 'it stands at the beginning of a line');
      t.equal(found?.recorded, found?.rows);
      progress = found;
    }
  }
  t.equal(await ledger.importProgress('acme', FILE), undefined, 'done: the same file would begin anew');
  t.equal(await leaves(), 5_000, 'each row once');
  t.equal((await ledger.show('acme', who('p4998@x.example')))[0]?.evidence.source, 'two\nlines');
  t.equal(await ledger.importProgress('other', FILE), undefined);
});
