// The process that erasure.test.ts lets die between the steps of an erasure, or gives a damaged store. It
// says on standard output what it reached, one line a fact, written synchronously.
import { createSecretKey } from 'node:crypto';
import { writeSync } from 'node:fs';
import { join } from 'node:path';
import { openLedger } from '../../daemon/ledger/index.ts';
import { isMailError, parseAddress } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const [, , dir = '', mode = '', keepMs = '0'] = process.argv;
const say = (line: string): void => void writeSync(1, `${line}\n`);
const clock = { now: () => Date.UTC(2026, 0, 2), after: () => () => undefined };

try {
  const store = openLedgerStore(dir);
  let commits = 0;
  const die = (where: string): void => {
    if (mode !== where) return;
    say(`dying ${where}`);
    process.kill(process.pid, 'SIGKILL');
  };
  const watched = {
    ...store, getMany: store.getMany.bind(store), scan: store.scan.bind(store), snapshot: store.snapshot.bind(store), size: store.size.bind(store), close: store.close.bind(store),
    async commit(...[keys, decide]: Parameters<typeof store.commit>) {
      // The first commit of an erasure is its note, the second takes the rows away: the secrets go between.
      if (mode !== '' && ++commits === 2) die('after-keys');
      await store.commit(keys, decide);
      if (commits === 1) die('after-note');
      if (commits === 2) die('after-rows');
    },
  };
  const ledger = openLedger({ store: watched, clock, keyring: openKeyring(join(dir, 'keys'), createSecretKey(Buffer.alloc(32, 7))) });
  const jane = ledger.hashes('acme', parseAddress('jane@x.example'));
  if (mode === 'read') {
    await ledger.recover();
    const { consent } = await ledger.facts('acme', 'news', 's', jane);
    say(`facts ${consent?.state ?? 'absent'}`);
    say(`verify ${JSON.stringify(await ledger.log.verify('acme'))}`);
  } else {
    say(`erased ${await ledger.erase('acme', jane, 'test', Number(keepMs))}`);
  }
} catch (error) {
  say(isMailError(error) ? `refused ${error.code}` : `broke ${String(error)}`);
}
