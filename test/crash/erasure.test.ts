// kill -9 between the steps of an erasure: the next opening finishes it. And a store cut to half its
// length: an error that says so, never a crash and never an absence.
import { spawnSync } from 'node:child_process';
import { createSecretKey } from 'node:crypto';
import { cpSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openLedger, type Ledger } from '../../daemon/ledger/index.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import { openLedgerStore, type LedgerStore } from '../../daemon/store/index.ts';

const CHILD = join(import.meta.dirname, 'erasure-child.ts');
const T0 = Date.UTC(2026, 0, 1);

interface Opened {
  readonly store: LedgerStore;
  readonly ledger: Ledger;
  readonly clock: { at: number };
  close(): Promise<void>;
}

function openIn(dir: string): Opened {
  const clock = { at: T0, now: () => clock.at, after: () => () => undefined };
  const store = openLedgerStore(dir);
  const ledger = openLedger({ store, clock, keyring: openKeyring(join(dir, 'keys'), createSecretKey(Buffer.alloc(32, 7))) });
  return {
    store, ledger, clock,
    async close() {
      await ledger.close();
      await store.close();
    },
  };
}

/** Jane with three consents, and a thousand others. */
async function made(t: Test): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-erasure-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const { ledger, close } = openIn(dir);
  const people = ['jane@x.example', ...Array.from({ length: 1_000 }, (_, i) => `p${i}@x.example`)];
  await ledger.giveAll('acme', people.flatMap((address) => (address.startsWith('jane') ? ['news', 'offers', 'events'] : ['news']).map((purpose) => ({
    hashes: ledger.hashes('acme', parseAddress(address)), purpose, state: 'given' as const, legalBasis: 'gdpr_6_1_a' as const, policyHash: 'ab'.repeat(32), method: 'form', by: 'test',
    evidence: { source: 'form', time: T0 - 1000 }, tracking: { opens: 'none' as const, clicks: 'none' as const },
  }))));
  await close();
  return dir;
}

function zeros(secrets: Buffer): number {
  let count = 0;
  for (let at = 0; at < secrets.length; at += 16) if (secrets.subarray(at, at + 16).equals(Buffer.alloc(16))) count++;
  return count;
}

function child(...args: readonly string[]): { readonly said: string; readonly signal: string | null } {
  const { stdout, signal, stderr } = spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', CHILD, ...args], { encoding: 'utf8' });
  return { said: stdout + stderr, signal };
}

t.test('kill -9 after each step of an erasure: opened again, it is finished', async (t) => {
  const start = await made(t);
  for (const step of ['after-note', 'after-keys', 'after-rows'] as const) {
    for (const keepMs of [0, 1_000_000]) {
      const dir = mkdtempSync(join(tmpdir(), 'postern-erasure-'));
      t.teardown(() => rmSync(dir, { recursive: true, force: true }));
      cpSync(start, dir, { recursive: true });
      const { said, signal } = child(dir, step, String(keepMs));
      t.match([said, signal], [`dying ${step}`, 'SIGKILL'], said);
      const { store, ledger, clock, close } = openIn(dir);
      const jane = ledger.hashes('acme', parseAddress('jane@x.example'));
      if (step !== 'after-note') t.equal((await ledger.facts('acme', 'news', 's', jane)).consent, undefined, `${step}: nothing is read of her, recovered or not`);
      await ledger.recover();
      const facts = await ledger.facts('acme', 'news', 's', jane);
      t.match(facts, { consent: undefined, suppressions: [{ cause: 'erasure', scope: 'all' }] }, `${step}, evidence kept ${keepMs}`);
      t.equal(facts.suppressions.length, 1);
      t.same(await ledger.show('acme', jane), []);
      for (const file of ['person', ...(keepMs === 0 ? ['evidence'] : [])]) t.equal(zeros(readFileSync(join(dir, `keys/people/acme.${file}`))), 3, `${file}: three slots of zeros`);
      t.match(await ledger.log.verify('acme'), { ok: true, leaves: 1_005, erased: keepMs === 0 ? 3 : 0 });
      for await (const _ of store.scan(Buffer.of(6))) t.fail('the note of the first step stays');
      if (keepMs > 0) {
        const kept: number[] = [];
        for await (const { value } of store.scan(Buffer.of(7))) kept.push((JSON.parse(value.toString()) as { slots: number[] }).slots.length);
        t.same(kept, [3], 'kept once');
        clock.at = T0 + 10 * 86_400_000;
        t.equal(await ledger.sweep(), 3);
        t.match(await ledger.log.verify('acme'), { ok: true, erased: 3 });
      }
      t.equal((await ledger.facts('acme', 'news', 's', ledger.hashes('acme', parseAddress('p5@x.example')))).consent?.state, 'given');
      t.equal(await ledger.erase('acme', jane, 'test'), 0, 'and may be asked for again');
      await close();
    }
  }
});

t.test('a store cut to half, a quarter, to nothing: E_STORE, no crash, no absence', async (t) => {
  const start = await made(t);
  const { size } = statSync(join(start, 'ledger/data.mdb'));
  for (const octets of [size / 2, size / 4, 4_096, 100, 0]) {
    const dir = mkdtempSync(join(tmpdir(), 'postern-erasure-'));
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    cpSync(start, dir, { recursive: true });
    truncateSync(join(dir, 'ledger/data.mdb'), octets);
    t.match(child(dir, 'read'), { said: /^refused E_STORE\n$/, signal: null }, `${octets} octets of ${size}`);
  }
  t.match(child(start, 'read').said, /facts given\nverify \{"ok":true,"leaves":1003/, 'while the whole one is read');
});
