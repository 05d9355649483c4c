// Clicks and opens, mode by mode: what each may leave behind, looked for in the very rows of the store and
// in the events, over real sockets with real keys, ledger and gate. T11, T13, T14, T15 and T17 of the
// research's test plan; and the rules for machines, each with its fixture.
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, request, type IncomingHttpHeaders } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NOBODY, NO_MESSAGE, sealToken, type Claim } from '../../daemon/compose/index.ts';
import type { Event } from '../../daemon/events/index.ts';
import { openLedger, type Ledger, type OpenCount } from '../../daemon/ledger/index.ts';
import { parseAddress, type AddressHashes, type Tracking } from '../../daemon/mail/index.ts';
import { Metrics, newId, openKeyring, systemClock, unseal, type Clock, type Keyring } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';
import { openLedgerStore, type LedgerStore } from '../../daemon/store/index.ts';
import { LINK_BOUND, MACHINES, machineOf, openPages, type Pages } from '../../daemon/web/index.ts';

const DAY_MS = 86_400_000;
const TODAY = 20_700;
const HASH = 'ab'.repeat(32);
const TARGET = 'https://shop.example/a?b=1&c=%20d;e=[f]&&utm=x#ü';
const PERSON = { 'user-agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.5.0' };
const ZERO = Buffer.alloc(16);
const NOBODYS: Partial<Claim> = { kind: 'open', mode: 'aggregate', recipient: NOBODY, hashes: { consent: ZERO, suppression: ZERO, family: ZERO } };
const message = newId(TODAY * DAY_MS);
const log = { debug() {}, info() {}, warn() {}, error() {} };
// Table numbers as row-keys.ts has them.
const TABLES = { lastOpen: 10, opens: 11 };

const policy = { version: '1', hash: HASH, text: 'x', effectiveAt: 0, purposes: ['newsletter'], tracking: { opens: 'individual', clicks: 'individual' } };
const stream = { id: 'news', purpose: 'newsletter', class: 'marketing', consentRequired: true };
const acme = { id: 'acme', policies: [policy], domains: [{ pages: 'https://news.acme.example' }], streams: new Map([['news', stream]]) };
const settings = { server: { hostname: 'mx.example', listeners: { pages: [{ host: '127.0.0.1', port: 0 }], pagesTls: false } }, tenants: new Map([['acme', acme]]) } as unknown as Settings;

interface World {
  /** Moves on with it. */
  now: number;
  readonly pages: Pages;
  readonly ledger: Ledger;
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly told: { readonly event: Event; readonly sealed: Buffer | undefined }[];
  readonly hashes: AddressHashes;
  readonly metrics: Metrics;
  token(fields: Partial<Claim>, tenant?: string): string;
  consent(tracking: Tracking, address?: string): Promise<void>;
  hit(path: string, headers?: Record<string, string>, method?: string): Promise<{ readonly status: number; readonly headers: IncomingHttpHeaders; readonly text: string }>;
  rows(table: number): Promise<{ readonly key: Buffer; readonly value: Buffer }[]>;
  /** Everything the store has, without the log. */
  everything(): Promise<string>;
  counts(): Promise<OpenCount[]>;
}

async function open(test: Test, tracking: Tracking = { opens: 'individual', clicks: 'individual' }): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-hits-'));
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  keyring.load(['acme', 'other']);
  const store = openLedgerStore(dir);
  const agent = new Agent({ keepAlive: true });
  const clock: Clock = { now: () => world.now, after: (ms, run) => systemClock.after(ms, run) };
  const ledger = openLedger({ store, keyring, clock });
  const hashes = ledger.hashes('acme', parseAddress('jo@example.com'));
  const told: World['told'] = [];
  const metrics = new Metrics();
  const pages = await openPages({ settings: () => settings, keyring, ledger, clock, log, metrics, record: (event, sealed) => told.push({ event, sealed }) });
  const rows = async (prefix: Buffer): Promise<{ key: Buffer; value: Buffer }[]> => {
    const found: { key: Buffer; value: Buffer }[] = [];
    for await (const row of store.scan(prefix)) found.push(row);
    return found;
  };
  const world: World = {
    now: TODAY * DAY_MS + 1_000, pages, ledger, store, keyring, told, hashes, metrics,
    token: (fields, tenant = 'acme') => sealToken(keyring.tenant(tenant), { kind: 'click', message, recipient: 3, stream: 'news', purpose: 'newsletter', hashes, ...fields }),
    async consent(choice, address = 'jo@example.com') {
      world.now += 1_000;
      await ledger.give('acme', { hashes: ledger.hashes('acme', parseAddress(address)), purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: HASH, method: 'form', by: 'test', evidence: { source: 'form', time: world.now }, tracking: choice });
    },
    hit: (path, headers = PERSON, method = 'GET') => new Promise((done, fail) => {
      const call = request({ host: '127.0.0.1', port: pages.addresses[0]?.port, path, method, headers, agent }, (answer) => {
        const parts: Buffer[] = [];
        answer.on('data', (part: Buffer) => parts.push(part));
        answer.on('end', () => {
          const raw = answer.rawHeaders.filter((_, i, all) => all[i - (i % 2)] !== 'Date').join('|');
          done({ status: answer.statusCode ?? 0, headers: answer.headers, text: `${answer.statusCode} ${raw} ${Buffer.concat(parts).toString('hex')}` });
        });
      });
      call.on('error', fail);
      call.end();
    }),
    rows: (table) => rows(Buffer.of(table)),
    async everything() {
      return (await rows(Buffer.of())).map(({ key, value }) => `${key.toString('hex')}=${value.toString('hex')}`).join('\n');
    },
    async counts() {
      const found: OpenCount[] = [];
      for await (const count of ledger.tracking.counts('acme')) found.push(count);
      return found;
    },
  };
  test.teardown(async () => {
    agent.destroy();
    await pages.close();
    await ledger.close().catch(() => undefined); // where the test has closed the store
    await store.close();
    rmSync(dir, { recursive: true });
  });
  await world.consent(tracking);
  return world;
}

t.test('T11, T17: the answers tell nothing and change nothing', async (t) => {
  const world = await open(t);
  const valid = world.token({ kind: 'open', mode: 'individual' });
  const expected = await world.hit(`/o/${valid}.gif`);
  t.match(expected.headers, { 'content-type': 'image/gif', 'content-length': '43', 'cache-control': 'no-store', 'referrer-policy': 'no-referrer' });
  for (const header of ['set-cookie', 'etag', 'last-modified', 'location']) t.notOk(expected.headers[header], header);
  for (const other of [
    'forged', valid.slice(0, -2), `A${valid.slice(1)}`, world.token({ kind: 'open', mode: 'individual' }, 'other'), world.token({ ...NOBODYS }), world.token({ target: TARGET }), world.token({ kind: 'unsubscribe' }), 'x'.repeat(5_000),
  ]) t.equal((await world.hit(`/o/${other}.gif`)).text, expected.text, other.slice(0, 12));
  await world.ledger.withdraw('acme', 'newsletter', world.hashes, 'test');
  t.equal((await world.hit(`/o/${valid}.gif`)).text, expected.text, 'withdrawn');
  const wrong = await world.hit('/c/forged');
  for (const other of [world.token({ kind: 'open', mode: 'individual' }), world.token({ target: 'ftp://a.example/' }), world.token({ target: '//evil.example' }), world.token({ target: 'javascript:x' }), `${world.token({ target: TARGET })}A`]) {
    t.equal((await world.hit(`/c/${other}`)).text, wrong.text, 'no click of ours');
  }
  const click = await world.hit(`/c/${world.token({ target: TARGET })}?utm_source=added`);
  t.equal(Buffer.from(String(click.headers.location), 'latin1').toString(), TARGET, 'byte for byte');
  t.equal(click.headers['referrer-policy'], 'no-referrer');
  t.notOk(click.headers['set-cookie']);
});

t.test('individual: an event of the person and the message; the link is for the tenant alone', async (t) => {
  const world = await open(t);
  const before = await world.everything();
  await world.hit(`/c/${world.token({ target: TARGET })}`);
  await world.hit(`/o/${world.token({ kind: 'open', mode: 'individual' })}.gif`);
  await world.hit(`/o/${world.token({ kind: 'open', mode: 'individual' })}.gif`, { 'user-agent': 'Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)' });
  await world.pages.settled();
  const person = world.hashes.consent.toString('hex').slice(0, 12);
  t.match(world.told.map(({ event }) => event), [
    { event: 'clicked', tenant: 'acme', stream: 'news', message_id: message, recipient: 3, person, class: 'person' },
    { event: 'opened', person, class: 'person' }, { event: 'opened', person, class: 'gmail-image-proxy' },
  ]);
  const [{ sealed } = { sealed: undefined }] = world.told;
  t.notMatch(JSON.stringify(world.told.map((one) => one.event)), /shop|127\.0|Mozilla|ggpht/);
  t.equal(unseal(world.keyring.tenant('acme').payload, sealed ?? ZERO, LINK_BOUND)?.toString(), TARGET);
  t.equal(unseal(world.keyring.tenant('other').payload, sealed ?? ZERO, LINK_BOUND), undefined);
  t.equal(await world.everything(), before, 'the ledger keeps nothing of it');
});

t.test('T13: aggregate is a counter of message and day', async (t) => {
  const world = await open(t);
  for (let i = 0; i < 5; i++) await world.hit(`/o/${world.token(NOBODYS)}.gif`);
  t.equal(world.token(NOBODYS), world.token(NOBODYS), 'one pixel for everybody');
  await world.hit(`/o/${world.token(NOBODYS)}.gif`, { 'user-agent': 'YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html' });
  await world.hit(`/o/${world.token(NOBODYS)}.gif`, { 'user-agent': 'Mozilla/5.0' });
  await world.pages.settled();
  t.same(await world.counts(), [{ stream: 'news', message, day: TODAY, opens: { people: 5, proxies: 1, machines: 1 } }]);
  world.now += DAY_MS;
  await world.hit(`/o/${world.token(NOBODYS)}.gif`);
  await world.hit(`/o/${world.token({ ...NOBODYS, message: NO_MESSAGE })}.gif`);
  // Whose choice has become narrower since their copy was made is counted where nobody stands alone.
  await world.consent({ opens: 'aggregate', clicks: 'none' });
  await world.hit(`/o/${world.token({ kind: 'open', mode: 'individual' })}.gif`);
  await world.hit(`/o/${world.token({ kind: 'open' })}.gif`);
  await world.pages.settled();
  t.same((await world.counts()).map(({ message: of, day, opens }) => [of, day, opens.people]), [['', TODAY + 1, 2], [message, TODAY, 5], [message, TODAY + 1, 1]]);
  t.same(world.told, [], 'no event');
  t.same(await world.rows(TABLES.lastOpen), [], 'no row of a person');
  for (const { key, value } of await world.rows(TABLES.opens)) {
    t.equal(value.length, 19, 'three numbers and a version');
    t.match(key.toString('latin1', 9), /^(?:[0-9A-Z]{26})?\/\d{5}\/news$/);
  }
});

t.test('T14: lastOpenDate is one date that is overwritten', async (t) => {
  const world = await open(t, { opens: 'lastOpenDate', clicks: 'none' });
  const path = `/o/${world.token({ kind: 'open', mode: 'individual' })}.gif`;
  const seen = new Set<string>();
  for (let i = 0; i < 5; i++) {
    world.now = (TODAY + i) * DAY_MS + i * 12_345_678;
    await world.hit(path);
    await world.hit(`/o/${world.token({ kind: 'open', mode: 'lastOpenDate', message: newId(world.now) })}.gif`);
    await world.pages.settled();
    seen.add((await world.rows(TABLES.lastOpen)).map(({ value }) => value.toString('hex')).join());
  }
  t.same(await world.ledger.tracking.lastOpens('acme', world.hashes), [{ purpose: 'newsletter', day: TODAY + 4 }]);
  const rows = await world.rows(TABLES.lastOpen);
  t.equal(rows.length, 1, 'one row');
  t.equal(rows[0]?.value.length, 15, 'version, slot, nonce and three octets of a date: nothing else has room');
  t.equal(seen.size, 5);
  t.same(world.told, []);
  t.same(await world.counts(), []);
  await world.hit(path, { 'user-agent': 'Mozilla/5.0' });
  world.now += DAY_MS;
  await world.hit(path, { 'user-agent': 'Mozilla/5.0' });
  await world.hit(`/c/${world.token({ target: TARGET })}`);
  await world.pages.settled();
  t.same(await world.ledger.tracking.lastOpens('acme', world.hashes), [{ purpose: 'newsletter', day: TODAY + 4 }], 'machines move no date, and clicks are not recorded');
  t.same(world.told, []);
  const other = world.ledger.hashes('acme', parseAddress('sam@example.com'));
  t.same(await world.ledger.tracking.lastOpens('acme', other), [], 'nobody else has one');
  t.same(await world.ledger.tracking.lastOpens('other', world.hashes), [], 'nor has another tenant');
});

t.test('T15: what was withdrawn is not recorded, whatever the old links say, and the date goes', async (t) => {
  for (const ending of ['withdrawn', 'none chosen', 'restricted', 'erased', 'stream gone', 'store down'] as const) {
    const world = await open(t, { opens: 'lastOpenDate', clicks: 'individual' });
    const where = ending === 'stream gone' ? { stream: 'old' } : {};
    const paths = [`/o/${world.token({ kind: 'open', mode: 'individual', ...where })}.gif`, `/c/${world.token({ target: TARGET, ...where })}`];
    const first = await Promise.all(paths.map((path) => world.hit(path)));
    await world.pages.settled();
    const events = world.told.length;
    t.equal(events, ending === 'stream gone' ? 0 : 1);
    t.equal((await world.rows(TABLES.lastOpen)).length, ending === 'stream gone' ? 0 : 1);
    if (ending === 'withdrawn') await world.ledger.withdraw('acme', 'newsletter', world.hashes, 'recipient');
    if (ending === 'none chosen') await world.consent({ opens: 'none', clicks: 'none' });
    if (ending === 'restricted') await world.ledger.suppress('acme', { hashes: world.hashes, scope: 'all', cause: 'restriction', by: 'test' });
    if (ending === 'erased') await world.ledger.erase('acme', world.hashes, 'test');
    if (ending === 'withdrawn' || ending === 'none chosen' || ending === 'erased') t.same(await world.rows(TABLES.lastOpen), [], ending);
    const before = await world.everything();
    if (ending === 'store down') await world.store.close();
    world.now += 3 * DAY_MS;
    for (let i = 0; i < 3; i++) t.same((await Promise.all(paths.map((path) => world.hit(path)))).map(({ text }) => text), first.map(({ text }) => text), `${ending}: answered alike`);
    await world.pages.settled();
    t.equal(world.told.length, events, `${ending}: no event`);
    if (ending !== 'store down') t.equal(await world.everything(), before, `${ending}: not an octet`);
  }
});

t.test('a withdrawal between the question and the write wins', async (t) => {
  const world = await open(t, { opens: 'lastOpenDate', clicks: 'none' });
  const date = { hashes: world.hashes, purpose: 'newsletter', day: TODAY };
  const path = `/o/${world.token({ kind: 'open', mode: 'lastOpenDate' })}.gif`;
  await world.hit(path);
  await world.ledger.withdraw('acme', 'newsletter', world.hashes, 'recipient');
  await world.pages.settled();
  await world.ledger.tracking.record('acme', [], [date]);
  t.same(await world.rows(TABLES.lastOpen), []);
  await world.consent({ opens: 'lastOpenDate', clicks: 'none' });
  await world.ledger.tracking.record('acme', [], [date]);
  t.equal((await world.rows(TABLES.lastOpen)).length, 1, 'a new yes is a new beginning');
});

t.test('dates and counters go with a tenant, and with it they end', async (t) => {
  const world = await open(t, { opens: 'lastOpenDate', clicks: 'none' });
  await world.hit(`/o/${world.token({ kind: 'open', mode: 'lastOpenDate' })}.gif`);
  await world.hit(`/o/${world.token(NOBODYS)}.gif`);
  await world.pages.settled();
  const lines: string[] = [];
  for await (const line of world.ledger.transfers.export('acme', [])) lines.push(line.trimEnd());
  t.notMatch(lines.filter((line) => line.includes('last-open')).join(), new RegExp(String(TODAY)), 'an export does not tell when somebody opened their mail');
  const dir = mkdtempSync(join(tmpdir(), 'postern-hits-'));
  const store = openLedgerStore(dir);
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  const there = openLedger({ store, keyring, clock: systemClock });
  t.teardown(async () => {
    await there.close();
    await store.close();
    rmSync(dir, { recursive: true });
  });
  await there.transfers.import((async function* () { yield* lines; })());
  t.same(await there.tracking.lastOpens('acme', there.hashes('acme', parseAddress('jo@example.com'))), [{ purpose: 'newsletter', day: TODAY }]);
  const counts: OpenCount[] = [];
  for await (const count of there.tracking.counts('acme', message)) counts.push(count);
  t.match(counts, [{ message, day: TODAY, opens: { people: 1 } }]);
  await world.ledger.suspend('acme', 'leaves', 'test');
  await world.ledger.transfers.delete('acme', 'test');
  t.same([...await world.rows(TABLES.lastOpen), ...await world.rows(TABLES.opens)], []);
});

t.test('every rule for machines is met by a fixture of its own', async (t) => {
  const fixtures = JSON.parse(readFileSync(join(import.meta.dirname, 'machines.json'), 'utf8')) as { readonly rule: string | null; readonly method?: string; readonly headers: Record<string, string> }[];
  for (const { rule, method = 'GET', headers } of fixtures) {
    t.equal(machineOf({ method, headers })?.id ?? null, rule, headers['user-agent'] ?? 'nameless');
  }
  for (const { id, source, kind } of MACHINES) {
    t.ok(fixtures.some(({ rule }) => rule === id), `${id} has a fixture`);
    t.ok(source.length > 15 && kind, `${id} has a source`);
  }
  t.equal(new Set(MACHINES.map(({ id }) => id)).size, MACHINES.length);
  t.ok(fixtures.filter(({ rule }) => rule === null).length >= 5, 'people are people');
});

t.test('no network address, name of a program or header is kept anywhere', async (t) => {
  const world = await open(t);
  const headers = { 'user-agent': 'Zanzibar/1.0', 'x-forwarded-for': '203.0.113.77', cookie: 'a=kilimanjaro', referer: 'https://mail.example/inbox' };
  for (const claim of [{ target: TARGET }, { kind: 'open', mode: 'individual' }, { kind: 'open', mode: 'lastOpenDate' }, NOBODYS] as const) {
    const token = world.token(claim);
    await world.hit(`/${'target' in claim ? 'c' : 'o'}/${token}`, headers);
  }
  await world.pages.settled();
  const told = `${JSON.stringify(world.told.map(({ event }) => event))}${await world.metrics.registry.metrics()}${Buffer.from((await world.everything()).replaceAll(/[=\n]/g, ''), 'hex').toString('latin1')}`;
  t.notMatch(told, /Zanzibar|203\.0\.113|127\.0\.0\.1|kilimanjaro|mail\.example|shop\.example/);
  t.match(await world.metrics.registry.metrics(), /postern_page_hits_total\{page="open",result="aggregate"\} 1/);
});
