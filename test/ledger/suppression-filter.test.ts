// The filter before the suppressions: it may say "may be" too often, and never "absent" of what is there.
import { randomBytes } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { SuppressionFilter } from '../../daemon/ledger/suppression-filter.ts';
import { TABLE, rowKey } from '../../daemon/ledger/row-keys.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

t.test('never absent, while it is built, grows and is told of more', async (t) => {
  const store = openLedgerStore(mkdtempSync(join(tmpdir(), 'postern-filter-')));
  const running = new Set<Promise<void>>();
  const filter = new SuppressionFilter(store, () => Promise.allSettled(running));
  const there: Buffer[] = [];
  const write = async (count: number): Promise<void> => {
    const hashes = Array.from({ length: count }, () => randomBytes(16));
    const commit = store.commit([], () => {
      for (const hash of hashes) filter.add('acme', hash);
      return hashes.map((hash) => ({ part: 'state' as const, key: rowKey(TABLE.suppressed, 'acme', hash), value: Buffer.of(1) }));
    });
    running.add(commit);
    await commit.finally(() => running.delete(commit));
    there.push(...hashes);
  };
  const missed = (): number => there.filter((hash) => !filter.mayHave('acme', hash)).length;
  const wrong = (): number => Array.from({ length: 20_000 }, () => randomBytes(16)).filter((hash) => filter.mayHave('acme', hash)).length;

  await write(3_000);
  const beside = write(500); // begins before the filter is asked for, ends while it is built
  t.ok(filter.mayHave('acme', randomBytes(16)), 'not built yet: may be');
  await Promise.all([beside, write(500)]);
  t.equal(missed(), 0);
  for (let i = 0; i < 100 && wrong() > 1_000; i++) await new Promise((done) => setTimeout(done, 10));
  t.ok(wrong() < 200, 'built: one in four hundred');
  t.notOk(filter.mayHave('acme', randomBytes(16)) && filter.mayHave('acme', randomBytes(16)) && filter.mayHave('acme', randomBytes(16)));
  for (let i = 0; i < 20; i++) {
    await write(1_000); // five times what it was made for
    t.equal(missed(), 0, `${there.length} of them`);
  }
  await new Promise((done) => setTimeout(done, 200));
  t.equal(missed(), 0);
  t.ok(wrong() < 400, 'it has grown with them');
  t.ok(filter.mayHave('bravo', there[0] ?? randomBytes(16)), 'another tenant has a filter of its own, not built yet');
  await new Promise((done) => setTimeout(done, 50));
  t.notOk(filter.mayHave('bravo', there[0] ?? randomBytes(16)));
  filter.forget('acme');
  t.ok(filter.mayHave('acme', randomBytes(16)));
  await new Promise((done) => setTimeout(done, 50));
  await store.close();
});
