// The ledger on a real LMDB environment: what is recorded, what is kept, isolation, imports, and that
// a store which cannot answer says so.
import { spawnSync } from 'node:child_process';
import { createHash, createHmac, createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openLedger, type ConsentEntry, type Ledger } from '../../daemon/ledger/index.ts';
import { AddressHash } from '../../daemon/ledger/address-hash.ts';
import { parseAddress, type AddressHashes } from '../../daemon/mail/index.ts';
import { openKeyring, type Clock } from '../../daemon/runtime/index.ts';
import { isLmdbCommitError, openLedgerStore, type LedgerStore } from '../../daemon/store/index.ts';

const POLICY = 'ab'.repeat(32);
const T0 = Date.UTC(2026, 0, 1);
const master = createSecretKey(randomBytes(32));

interface Room {
  readonly dir: string;
  readonly store: LedgerStore;
  readonly ledger: Ledger;
  readonly clock: Clock & { at: number };
  readonly who: (email: string, tenant?: string) => AddressHashes;
}

function room(t: Test): Room {
  const dir = mkdtempSync(join(tmpdir(), 'postern-ledger-'));
  const clock = { at: T0, now: () => clock.at, after: () => () => undefined };
  const store = openLedgerStore(dir);
  t.teardown(() => store.close());
  const ledger = openLedger({ store, clock, keyring: openKeyring(join(dir, 'keys'), master) });
  return { dir, store, ledger, clock, who: (email, tenant = 'acme') => ledger.hashes(tenant, parseAddress(email)) };
}

function consent(hashes: AddressHashes, over: Partial<ConsentEntry> = {}): ConsentEntry {
  return {
    hashes, purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: POLICY, method: 'form', by: 'test',
    evidence: { source: 'form', time: T0 - 1000 }, tracking: { opens: 'individual', clicks: 'none' }, ...over,
  };
}

t.test('a consent comes back as it was given, under 300 octets a record', async (t) => {
  const { ledger, store, who, dir } = room(t);
  const entry = consent(who('jane@x.example'), {
    expiresAt: T0 + 5000,
    evidence: { source: 'shop checkout', time: T0 - 9, formHash: 'cd'.repeat(32), ipPseudonym: 'k3', doubleOptIn: { requestedAt: T0 - 20, confirmedAt: T0 - 9 } },
  });
  const { kind, record } = await ledger.give('acme', entry);
  t.equal(kind, 'recorded');
  const { consent: found } = await ledger.facts('acme', 'news', 's', entry.hashes);
  t.same(found, record);
  t.match(found, { state: 'given', policyHash: POLICY, expiresAt: T0 + 5000, tracking: entry.tracking, givenAt: T0 - 9 });
  t.same(await ledger.show('acme', entry.hashes), [{ ...record, method: 'form', evidence: entry.evidence, changedBy: 'test' }]);
  for (let batch = 0; batch < 20; batch++) {
    await ledger.giveAll('acme', Array.from({ length: 500 }, (_, i) => consent(who(`p${batch}.${i}@x.example`), { method: 'import', evidence: { source: 'list-2025.csv', time: T0 - 9 } })));
  }
  let octets = 0;
  let records = 0;
  for await (const { key, value } of store.scan(Buffer.of(1))) {
    octets += key.length + value.length + 8; // LMDB's node header
    records++;
  }
  t.equal(records, 10_001);
  // Pages are two thirds full after random inserts.
  const onDisk = octets / records / 0.67;
  t.comment(`${Math.round(octets / records)} octets a record, about ${Math.round(onDisk)} on disk; the file with its free pages: ${Math.round(statSync(join(dir, 'ledger', 'data.mdb')).size / records)}`);
  t.ok(onDisk < 300);
});

t.test('a withdrawal is seen by the next facts(), and no older yes undoes it', async (t) => {
  const { ledger, who, clock } = room(t);
  const hashes = who('jane@x.example');
  await ledger.giveAll('acme', [consent(hashes), consent(hashes, { purpose: 'offers' })]);
  t.equal(await ledger.withdraw('acme', 'news', hashes, 'recipient'), 1);
  t.equal((await ledger.facts('acme', 'news', 's', hashes)).consent?.state, 'withdrawn');
  t.equal((await ledger.facts('acme', 'offers', 's', hashes)).consent?.state, 'given');
  t.equal(await ledger.withdraw('acme', 'news', hashes, 'recipient'), 0, 'once is enough');
  clock.at += 10;
  t.equal((await ledger.give('acme', consent(hashes))).kind, 'kept', 'last year\'s list imported again');
  t.equal((await ledger.give('acme', consent(hashes, { state: 'pending', evidence: { source: 'form', time: clock.at } }))).kind, 'recorded');
  t.equal((await ledger.give('acme', consent(hashes))).kind, 'kept', 'nor by way of a pending one');
  t.equal((await ledger.give('acme', consent(hashes, { evidence: { source: 'form', time: clock.at } }))).kind, 'recorded', 'a new yes is a new yes');
  t.equal((await ledger.give('acme', consent(hashes, { state: 'pending', evidence: { source: 'form', time: clock.at + 1 } }))).kind, 'kept', 'somebody else\'s form takes no consent away');
  t.equal(await ledger.withdraw('acme', '*', hashes, 'recipient'), 2);
  t.same((await ledger.show('acme', hashes)).map((r) => r.state), ['withdrawn', 'withdrawn']);
  t.equal(await ledger.withdraw('acme', 'unheard-of', hashes, 'recipient'), 0);
});

t.test('(c), (d), (e): suppression is wide, consent narrow', async (t) => {
  const { ledger, who, clock } = room(t);
  const causes = async (email: string): Promise<string[]> => (await ledger.facts('acme', 'news', 's', who(email))).suppressions.map((s) => s.cause);
  await ledger.give('acme', consent(who('a+news@gmail.com')));
  t.equal((await ledger.facts('acme', 'news', 's', who('a@gmail.com'))).consent, undefined);
  await ledger.suppress('acme', { hashes: who('a.b@gmail.com'), scope: 'all', cause: 'objection', by: 'test' });
  t.same(await causes('AB+x@googlemail.com'), ['objection']);
  await ledger.suppress('acme', { hashes: who('Straße@x.example'), scope: 'all', cause: 'hard-bounce', by: 'test' });
  t.same(await causes('STRASSE@X.example'), ['hard-bounce']);
  await ledger.suppress('acme', { hashes: who('c.d@gmail.com'), scope: 'purpose:news', cause: 'unsubscribe', by: 'test' });
  t.same(await causes('cd@gmail.com'), [], 'an unsubscribe stays with its mailbox');
  t.same(await causes('c.d@gmail.com'), ['unsubscribe']);
  t.same((await ledger.facts('acme', 'offers', 's', who('c.d@gmail.com'))).suppressions, [], 'and with its purpose');
  const first = await ledger.suppress('acme', { hashes: who('e@x.example'), scope: 'all', cause: 'manual', until: T0 + 5, by: 'test' });
  clock.at += 3;
  const again = await ledger.suppress('acme', { hashes: who('e@x.example'), scope: 'all', cause: 'manual', by: 'test' });
  t.match(again, { id: first.id, since: first.since, until: undefined }, 'the longer one stays');
  const kept = await ledger.suppress('acme', { hashes: who('e@x.example'), scope: 'all', cause: 'manual', until: T0 + 9, by: 'test' });
  t.equal(kept.until, undefined);
  const listed = [];
  for await (const s of ledger.list('acme')) listed.push(`${s.width} ${s.cause} ${s.scope}`);
  const hashes: string[] = [];
  for await (const { hash } of ledger.list('acme')) hashes.push(hash);
  for (const from of hashes) {
    const rest: string[] = [];
    for await (const { hash } of ledger.list('acme', from)) rest.push(hash);
    t.same(rest, hashes.slice(hashes.indexOf(from)), 'a page is read from its beginning, not from the first row');
  }
  t.same(listed.sort(), ['address hard-bounce all', 'address unsubscribe purpose:news', 'family manual all', 'family objection all']);
  t.equal(await ledger.lift('acme', who('c.d@gmail.com'), 'test', { cause: 'objection' }), 0);
  t.equal(await ledger.lift('acme', who('c.d@gmail.com'), 'test'), 1);
  t.same(await causes('c.d@gmail.com'), []);
});

t.test('I-1, I-7: tenants know nothing of each other', async (t) => {
  const { ledger, who, store } = room(t);
  await ledger.give('other', consent(who('jane@x.example', 'other')));
  await ledger.suppress('other', { hashes: who('jane@x.example', 'other'), scope: 'all', cause: 'hard-bounce', by: 'test' });
  await ledger.suspend('other', 'complaints', 'test');
  t.same(await ledger.facts('acme', 'news', 's', who('jane@x.example')), { suppressions: [] });
  t.same(await ledger.facts('acme', 'news', 's', who('jane@x.example', 'other')), { suppressions: [] }, 'not even with the other one\'s hashes');
  t.notSame(who('jane@x.example').consent, who('jane@x.example', 'other').consent);
  const { consent: c, suppression: s, family: f } = who('jane@x.example');
  t.notSame(c, s, 'the suppression that outlives an erasure does not name the row that went');
  t.same(s, f, 'one look-up finds what stands against the address and its family');
  t.notSame(who('jane@gmail.com').suppression, who('j.ane@gmail.com').suppression);
  t.same(who('jane@gmail.com').family, who('j.ane+x@googlemail.com').family);
  t.same([c, s, f].map((hash) => hash.length), [16, 16, 16]);
  t.throws(() => ledger.hashes('../x', parseAddress('a@x.example')));
  await store.close();
});

t.test('suspension', async (t) => {
  const { ledger, who } = room(t);
  const made = await ledger.suspend('acme', 'complaint rate', 'cli');
  t.same(await ledger.suspend('acme', 'again', 'cli'), made, 'the first one stays');
  t.same((await ledger.facts('acme', 'news', 's', who('a@x.example'))).suspension, made);
  t.equal(await ledger.resume('acme', 'cli'), true);
  t.equal(await ledger.resume('acme', 'cli'), false);
  t.equal(await ledger.suspension('acme'), undefined);
});

t.test('T27, T30: no address on disk; records outlive the process; a closed store is E_STORE', async (t) => {
  const { ledger, who, store, dir } = room(t);
  const hashes = who('jane.unmistakable@x.example');
  const { record } = await ledger.give('acme', consent(hashes));
  await ledger.suppress('acme', { hashes, scope: 'all', cause: 'manual', by: 'test' });
  await store.close();
  for (const name of readdirSync(join(dir, 'ledger'))) t.notOk(readFileSync(join(dir, 'ledger', name)).includes('unmistakable'), name);
  await t.rejects(ledger.facts('acme', 'news', 's', hashes), { code: 'E_STORE' });
  await t.rejects(ledger.give('acme', consent(hashes)), { code: 'E_STORE' });
  const again = openLedgerStore(dir);
  const reopened = openLedger({ store: again, keyring: openKeyring(join(dir, 'keys'), master), clock: { now: () => T0, after: () => () => undefined } });
  const facts = await reopened.facts('acme', 'news', 's', hashes);
  t.same(facts.consent, record);
  t.equal(facts.suppressions.length, 1);
  const key = Buffer.concat([Buffer.of(1), keyOf('acme'), hashes.consent, Buffer.from('news')]);
  await again.commit([key], ([value]) => [{ part: 'state', key, value: value?.subarray(0, 40) }]);
  await t.rejects(reopened.facts('acme', 'news', 's', hashes), { code: 'E_STORE' }, 'a damaged record is no absence');
  await again.close();
});

function keyOf(tenant: string): Buffer {
  return createHash('sha256').update(tenant).digest().subarray(0, 8);
}

t.test('a full disk: the writer is told, what stood there stands, and the rejections beside it are known', async (t) => {
  // A file size limit is what an unprivileged process has for a full disk.
  const script = `
    import { openLedgerStore, isLmdbCommitError } from ${JSON.stringify(join(import.meta.dirname, '../../daemon/store/index.ts'))};
    process.on('SIGXFSZ', () => undefined);
    process.on('unhandledRejection', (e) => { if (!isLmdbCommitError(e)) { console.log('UNKNOWN', e); process.exit(3); } });
    const store = openLedgerStore(process.argv[1]);
    const batch = (i) => Array.from({ length: 300 }, (_, j) => ({ part: 'state', key: Buffer.from(i + '-' + j), value: Buffer.alloc(200, 1) }));
    let last = -1, code = '';
    for (let i = 0; i < 40 && code === ''; i++) try { await store.commit([], () => batch(i)); last = i; } catch (e) { code = e.code; }
    const [there, notThere] = await store.getMany([Buffer.from(last + '-299'), Buffer.from((last + 1) + '-0')]);
    await new Promise((done) => setTimeout(done, 50));
    console.log('RESULT', code, there?.length, notThere?.length);`;
  const dir = mkdtempSync(join(tmpdir(), 'postern-full-'));
  const run = spawnSync('sh', ['-c', 'ulimit -f 600; exec "$0" --disable-warning=ExperimentalWarning --input-type=module -e "$1" "$2"', process.execPath, script, dir], { encoding: 'utf8' });
  t.match(run.stdout, /RESULT E_STORE 200 undefined/, run.stderr.slice(0, 500));
  t.equal(isLmdbCommitError(Object.assign(new Error('ENOSPC: no space'), { code: 'ENOSPC' })), false, 'an error of Node\'s is not one of these');
});

t.test('the address hash is HMAC-SHA-256, cut in two', async (t) => {
  const key = createSecretKey(randomBytes(32));
  const hasher = new AddressHash(key, 'address/1');
  for (const text of ['', 'a@x.example', 'ö'.repeat(100), 'x'.repeat(320), '\u{1F600}@x.example']) {
    const expected = createHmac('sha256', key).update(`address/1\0${text}`).digest();
    const { consent, suppression } = hasher.of(text);
    t.ok(Buffer.concat([consent, suppression]).equals(expected), `${text.length} characters`);
  }
  t.throws(() => hasher.of('ö'.repeat(300)), RangeError);
});
