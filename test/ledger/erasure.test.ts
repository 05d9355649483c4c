// A person is forgotten in the data, in every backup of it and in the log, which verifies all the same;
// the log shows every octet that was changed, and an end that was cut off. T6, compliance of design §4.
import { createSecretKey, randomBytes } from 'node:crypto';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openLedger, type ConsentEntry, type Ledger } from '../../daemon/ledger/index.ts';
import { openPersonKeys } from '../../daemon/ledger/person-keys.ts';
import { decodeConsent, slotOf } from '../../daemon/ledger/records.ts';
import { TABLE, consentKey, entryKey, rowKey, subtreeKey } from '../../daemon/ledger/row-keys.ts';
import { parseAddress, type AddressHashes } from '../../daemon/mail/index.ts';
import { openKeyring, type Clock, type Keyring } from '../../daemon/runtime/index.ts';
import { openLedgerStore, type LedgerStore, type StorePart } from '../../daemon/store/index.ts';

const T0 = Date.UTC(2026, 0, 1);
const DAY = 86_400_000;

interface Room {
  readonly dir: string;
  readonly store: LedgerStore;
  readonly ledger: Ledger;
  readonly keyring: Keyring;
  readonly clock: Clock & { at: number };
  readonly who: (email: string, tenant?: string) => AddressHashes;
  close(): Promise<void>;
}

function room(t: Test, { dir = mkdtempSync(join(tmpdir(), 'postern-forget-')), master = Buffer.alloc(32, 7) } = {}): Room {
  const clock = { at: T0, now: () => clock.at, after: () => () => undefined };
  const store = openLedgerStore(dir);
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(master));
  const ledger = openLedger({ store, clock, keyring, hostname: 'mx.example' });
  const close = async (): Promise<void> => {
    await ledger.close().catch(() => undefined); // the store may be closed already
    await store.close();
  };
  t.teardown(async () => {
    await store.close();
    rmSync(dir, { recursive: true, force: true });
  });
  return { dir, store, ledger, keyring, clock, who: (email, tenant = 'acme') => ledger.hashes(tenant, parseAddress(email)), close };
}

function consent(hashes: AddressHashes, over: Partial<ConsentEntry> = {}): ConsentEntry {
  return {
    hashes, purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: 'ab'.repeat(32), method: 'form', by: 'test',
    evidence: { source: 'form', time: T0 - 1000 }, tracking: { opens: 'individual', clicks: 'none' }, ...over,
  };
}

const SOURCE = 'the unmistakable form of the summer fair';

/** Jane with two purposes and a withdrawal, among three hundred others. */
async function withJane(t: Test): Promise<Room & { readonly jane: AddressHashes }> {
  const made = room(t);
  const { ledger, who, clock } = made;
  const jane = who('ja.ne+fair@gmail.com');
  await ledger.giveAll('acme', Array.from({ length: 300 }, (_, i) => consent(who(`p${i}@x.example`))));
  await ledger.giveAll('acme', [consent(jane, { evidence: { source: SOURCE, time: T0 - 5 } }), consent(jane, { purpose: 'offers', jurisdiction: 'unmistakable-land', evidence: { source: SOURCE, time: T0 - 5 } })]);
  clock.at += 1000;
  await ledger.withdraw('acme', 'offers', jane, 'recipient');
  await ledger.log.checkpoint('acme');
  return { ...made, jane };
}

function filesOf(dir: string): readonly { readonly name: string; readonly octets: Buffer }[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' }).filter((name) => statSync(join(dir, name)).isFile()).map((name) => ({ name, octets: readFileSync(join(dir, name)) }));
}

t.test('an erased person is in no row and in no file; only the suppression stays', async (t) => {
  const { ledger, store, keyring, who, jane, dir, close } = await withJane(t);
  const before = (await store.getMany([consentKey('acme', jane, 'news'), consentKey('acme', jane, 'offers')])).map((row) => row ?? Buffer.of());
  const slots = before.map(slotOf);
  const secrets = ['person', 'evidence'].flatMap((name) => slots.map((slot) => readFileSync(join(dir, `keys/people/acme.${name}`)).subarray(slot * 16, slot * 16 + 16)));
  const leaves = (await ledger.history('acme', jane)).map(({ leaf }) => leaf);
  t.equal(leaves.length, 3);
  t.equal(await ledger.erase('acme', jane, 'test'), 2);
  t.match(await ledger.facts('acme', 'news', 's', jane), { consent: undefined, suppressions: [{ cause: 'erasure', scope: 'all', by: 'test' }] });
  t.equal((await ledger.facts('acme', 'news', 's', who('j.a.n.e+x@googlemail.com'))).suppressions.length, 1, 'whatever spelling is tried');
  t.same([await ledger.show('acme', jane), await ledger.history('acme', jane)], [[], []]);
  for (const leaf of leaves) {
    t.match(await ledger.log.entry('acme', leaf), { leaf, payload: undefined, salt: undefined });
    t.equal(await ledger.log.receipt('acme', leaf), undefined);
  }
  t.match(await ledger.log.verify('acme'), { ok: true, erased: 3, leaves: 305 });
  const tables = new Set<number>();
  for (const part of ['state', 'log'] as const) {
    for await (const { key, value } of store.scan(Buffer.alloc(0), part)) {
      const row = Buffer.concat([key, value]);
      if ([jane.consent, jane.suppression].some((hash) => row.includes(hash) || row.includes(hash.toString('hex')))) t.fail('a row still has a hash that is hers alone');
      if (row.includes(jane.family)) tables.add(part === 'state' ? key[0] ?? 0 : 99);
    }
  }
  t.same([...tables], [TABLE.suppressed], 'her family\'s hash stands in the suppression and nowhere else');
  await close();
  for (const { name, octets } of filesOf(dir)) {
    t.notOk(secrets.some((secret) => octets.includes(secret)), `${name}: none of her secrets`);
    t.notOk(octets.includes('unmistakable') || octets.includes('ja.ne'), `${name}: nothing she said`);
    t.notOk(['consent', 'suppression', 'family'].some((kind) => octets.includes(jane[kind as keyof AddressHashes].toString('hex'))), `${name}: no hash of hers as text`);
  }
  // LMDB gives pages back without clearing them: an old row may stand in a free page until it is used again.
  // It is veiled under a secret that is zeros now, and zeros are no key to it either.
  const data = readFileSync(join(dir, 'ledger/data.mdb'));
  const found = before.filter((row) => data.includes(row));
  t.comment(`${found.length} of 2 old rows stand in free pages, her consent hash ${data.includes(jane.consent) ? 'as well' : 'not'}`);
  const people = openPersonKeys(join(dir, 'keys/people'));
  for (const [i, row] of before.entries()) {
    t.equal(people.person('acme', slotOf(row)), undefined);
    t.equal(people.evidence('acme', slotOf(row)), undefined);
    for (const secret of [Buffer.alloc(16), Buffer.alloc(16, 0xff), people.person('acme', 0) ?? Buffer.alloc(16)]) {
      let read = 'nothing';
      try {
        read = JSON.stringify(decodeConsent(row, 'news', keyring.tenant('acme').people, secret));
      } catch (error) {
        t.match(error, { code: 'E_STORE' });
      }
      t.notMatch(read, /abababab|unmistakable/, `old row ${i} does not open`);
    }
  }
  people.close();
});

t.test('yesterday\'s backup beside today\'s keys: nothing of the person opens', async (t) => {
  const today = await withJane(t);
  const { jane } = today;
  const dir = mkdtempSync(join(tmpdir(), 'postern-forget-'));
  cpSync(join(today.dir, 'ledger'), join(dir, 'ledger'), { recursive: true });
  const lastLeaf = 302;
  await today.ledger.erase('acme', jane, 'test');
  await today.close();
  cpSync(join(today.dir, 'keys'), join(dir, 'keys'), { recursive: true });
  const old = room(t, { dir });
  await old.ledger.recover();
  t.equal((await old.store.getMany([consentKey('acme', jane, 'news')]))[0]?.length !== undefined, true, 'the row is back');
  t.equal((await old.ledger.facts('acme', 'news', 's', jane)).consent, undefined, 'and says nothing');
  t.same([await old.ledger.show('acme', jane), await old.ledger.history('acme', jane)], [[], []]);
  t.match(await old.ledger.log.entry('acme', lastLeaf), { leaf: lastLeaf, payload: undefined });
  t.equal((await old.ledger.facts('acme', 'news', 's', old.who('p5@x.example'))).consent?.state, 'given', 'the others are there');
  t.match(await old.ledger.log.verify('acme'), { ok: false, firstBad: 303, reason: /cut back, or an old backup was restored/ }, 'the log tells that it is an old one');
  // A new yes after that is a new record under a new secret.
  t.equal((await old.ledger.give('acme', consent(jane, { evidence: { source: 'again', time: T0 + 1 } }))).kind, 'recorded');
  t.equal((await old.ledger.facts('acme', 'news', 's', jane)).consent?.givenAt, T0 + 1);
  rmSync(join(dir, 'keys/checkpoints/acme'));
  t.match(await old.ledger.log.verify('acme'), { ok: true, leaves: 304, erased: 3 }, 'by itself it is whole, and says nothing of her');
});

t.test('evidence that is kept opens by its leaf until its time is over', async (t) => {
  const { ledger, clock, jane, who } = await withJane(t);
  const receipt = await ledger.log.receipt('acme', 300);
  t.match(receipt?.payload, /unmistakable form/);
  await ledger.erase('acme', jane, 'test', 3 * DAY);
  t.equal((await ledger.facts('acme', 'news', 's', jane)).consent, undefined);
  t.same(await ledger.show('acme', jane), [], 'not by who it was about');
  t.match((await ledger.log.entry('acme', 300))?.payload, /unmistakable form/, 'but by its number, to defend a claim');
  t.match(await ledger.log.verify('acme'), { ok: true, erased: 0 });
  t.equal(await ledger.sweep(), 0, 'not before its time');
  clock.at += 3 * DAY;
  t.equal(await ledger.sweep(), 2);
  t.equal(await ledger.sweep(), 0);
  t.equal((await ledger.log.entry('acme', 300))?.payload, undefined);
  t.match(await ledger.log.verify('acme'), { ok: true, erased: 3 });
  t.equal((await ledger.facts('acme', 'news', 's', jane)).suppressions[0]?.cause, 'erasure', 'the suppression stays');
  t.equal(await ledger.lift('acme', who('someone.else@x.example'), 'test'), 0);
  const twice = await ledger.erase('acme', jane, 'test');
  t.equal(twice, 0, 'asked for again there is nothing left');
  t.equal((await ledger.facts('acme', 'news', 's', jane)).suppressions.length, 1);
});

t.test('T6: one bit of any row of the log, and its end', async (t) => {
  const { ledger, store, who, dir } = room(t);
  await ledger.giveAll('acme', Array.from({ length: 400 }, (_, i) => consent(who(`p${i}@x.example`))));
  await ledger.suppressAll('acme', Array.from({ length: 150 }, (_, i) => ({ hashes: who(`q${i}@x.example`), scope: 'all' as const, cause: 'manual' as const, by: 'test' })));
  const { size } = await ledger.log.checkpoint('acme');
  t.equal(size, 550);
  t.match(await ledger.log.verify('acme'), { ok: true, leaves: 550, opened: 550 });
  const put = (part: StorePart, key: Buffer, value: Buffer | undefined): Promise<void> => store.commit([], () => [{ part, key, value }]);
  /** Verifies with one row changed, and puts it back. */
  const withRow = async (part: StorePart, key: Buffer, change: (value: Buffer) => Buffer | undefined): Promise<{ readonly ok: boolean; readonly firstBad?: number; readonly reason: string }> => {
    const [value] = await store.getMany([key], part);
    if (value === undefined) throw new Error('no such row');
    await put(part, key, change(Buffer.from(value)));
    try {
      return await ledger.log.verify('acme');
    } finally {
      await put(part, key, value);
    }
  };
  const flip = (at: number, bit = 1) => (value: Buffer): Buffer => {
    value[at] = (value[at] ?? 0) ^ bit;
    return value;
  };
  for (const leaf of [0, 255, 256, 399, 400, 549]) {
    const key = entryKey('acme', leaf);
    for (const [what, at, bit] of [['version', 0, 1], ['class', 1, 1], ['class', 1, 2], ['commitment', 7, 1], ['commitment', 38, 128], ['payload', 39, 1], ['payload', 120, 64]] as const) {
      t.match(await withRow('log', key, flip(at, bit)), { ok: false, firstBad: leaf }, `${what} of leaf ${leaf}`);
    }
    if (leaf < 400) for (const at of [2, 6]) t.match(await withRow('log', key, flip(at)), { ok: false, firstBad: leaf }, `slot of leaf ${leaf}, octet ${at}`);
    t.match(await withRow('log', key, (value) => value.subarray(0, 60)), { ok: false, firstBad: leaf }, `leaf ${leaf} cut short`);
    t.match(await withRow('log', key, () => undefined), { ok: false, firstBad: leaf, reason: /missing|ends at/ }, `leaf ${leaf} taken out`);
  }
  t.match(await withRow('log', subtreeKey('acme', 8, 0), flip(5)), { ok: false, reason: /leaves 0 to 255/ }, 'a stored subtree');
  t.match(await withRow('log', subtreeKey('acme', 8, 1), flip(31, 128)), { ok: false, reason: /leaves 256 to 511/ });
  t.match(await withRow('log', subtreeKey('acme', 8, 1), () => undefined), { ok: false, reason: /leaves 256 to 511/ });
  const head = rowKey(TABLE.head, 'acme');
  t.match(await withRow('state', head, flip(20)), { ok: false, reason: /head|roots differ/ }, 'the head');
  const short = withRow('state', head, flip(5, 64));
  await short.then((verified) => t.match(verified, { ok: false }), (error: unknown) => t.match(error, { code: 'E_STORE' }, 'the head\'s size'));
  await put('log', entryKey('acme', 550), (await store.getMany([entryKey('acme', 3)], 'log'))[0]);
  t.match(await ledger.log.verify('acme'), { ok: false, firstBad: 550, reason: /behind the end/ });
  await put('log', entryKey('acme', 550), undefined);

  await t.test('a leaf changed with everything above it still does not agree with the kept checkpoint', async (t) => {
    // Whoever can write the store but has not the keys of the log takes the last leaf off and puts another on.
    const copy = mkdtempSync(join(tmpdir(), 'postern-forget-'));
    await ledger.close();
    cpSync(dir, copy, { recursive: true });
    const forged = room(t, { dir: copy });
    const shorter = room(t);
    await shorter.close();
    t.match(await forged.ledger.log.verify('acme'), { ok: true });
    await forged.ledger.note('acme', 'one more', 'test', {});
    await forged.close();
    // The store of then beside the checkpoint of now: cut back.
    cpSync(join(copy, 'keys/checkpoints'), join(dir, 'keys/checkpoints'), { recursive: true });
    t.match(await ledger.log.verify('acme'), { ok: false, firstBad: 550, reason: /ends at 550 leaves, but a checkpoint of 551 was signed/ });
    await ledger.note('acme', 'another', 'test', {});
    t.match(await ledger.log.verify('acme'), { ok: false, reason: /first 551 leaves are not those the kept checkpoint signed/ }, 'grown again, it is another log');
  });

  await t.test('another log\'s checkpoint, or none that can be read', async (t) => {
    await ledger.note('bravo', 'x', 'test', {});
    await ledger.log.checkpoint('bravo');
    const file = join(dir, 'keys/checkpoints/acme');
    const own = readFileSync(file);
    const broken: readonly (readonly [string, Buffer | string])[] = [
      ['another tenant\'s', readFileSync(join(dir, 'keys/checkpoints/bravo'))], ['cut', own.subarray(0, 60)], ['empty', ''], ['a flipped bit', flip(own.length - 20)(Buffer.from(own))],
      ['another size', own.toString().replace('\n551\n', '\n550\n')],
    ];
    for (const [what, text] of broken) {
      writeFileSync(file, text);
      await t.rejects(ledger.log.verify('acme'), { code: 'E_KEY_UNREADABLE', message: /is not a checkpoint of this log: it is damaged, or another log's/ }, what);
    }
    writeFileSync(file, own);
  });
  const stranger = room(t, { master: randomBytes(32) });
  await stranger.ledger.note('acme', 'x', 'test', {});
  await stranger.ledger.log.checkpoint('acme');
  writeFileSync(join(dir, 'keys/checkpoints/acme'), readFileSync(join(stranger.dir, 'keys/checkpoints/acme')));
  await t.rejects(ledger.log.verify('acme'), { code: 'E_KEY_UNREADABLE' }, 'the same tenant\'s log of another house');
});

t.test('a clock that goes backwards: a no stays a no', async (t) => {
  const { ledger, clock, who } = room(t);
  const state = async (email: string): Promise<string | undefined> => (await ledger.facts('acme', 'news', 's', who(email))).consent?.state;
  const [ann, bob, cat, dan] = ['ann@x.example', 'bob@x.example', 'cat@x.example', 'dan@x.example'] as const;
  await ledger.giveAll('acme', [ann, bob, cat].map((email) => consent(who(email), { evidence: { source: 'form', time: T0 } })));
  clock.at = T0 - DAY;
  t.equal(await ledger.withdraw('acme', 'news', who(ann), 'recipient'), 1);
  t.equal(await state(ann), 'withdrawn', 'a withdrawal by an older clock says no');
  const again = await ledger.give('acme', consent(who(ann), { evidence: { source: 'form', time: T0 } }));
  t.equal(await state(ann), 'withdrawn', `the yes it took back, imported again, is ${again.kind}`);
  await ledger.suppress('acme', { hashes: who(bob), scope: 'purpose:news', cause: 'unsubscribe', by: 'recipient' });
  await ledger.give('acme', consent(who(bob), { evidence: { source: 'form', time: T0 } }));
  t.equal((await ledger.facts('acme', 'news', 's', who(bob))).suppressions.length, 1, 'an unsubscribe by an older clock is not lifted by the yes before it');
  await ledger.give('acme', consent(who(dan), { state: 'refused', evidence: { source: 'form', time: T0 - 2 * DAY } }));
  t.equal(await state(dan), 'refused');
  await ledger.erase('acme', who(cat), 'test', DAY);
  t.equal(await state(cat), undefined);
  clock.at = T0 - 9 * DAY;
  t.equal(await ledger.sweep(), 0, 'and evidence is kept longer rather than shorter');
  t.match(await ledger.log.verify('acme'), { ok: true });
  clock.at = T0 + DAY;
  await ledger.give('acme', consent(who(ann), { evidence: { source: 'form', time: T0 + DAY } }));
  t.equal(await state(ann), 'given', 'a later yes is one');
});
