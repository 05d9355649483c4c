// T30: a ledger that does not answer is a 451 at RCPT and a wait at the attempt, never a yes.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { openJournal } from '../../daemon/events/index.ts';
import { openLedger } from '../../daemon/ledger/index.ts';
import { openPipeline, type House } from '../../daemon/pipeline.ts';
import { Metrics, newId, openKeyring, openLog, readMasterKey, systemClock as clock } from '../../daemon/runtime/index.ts';
import { loadSettings } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';
import { makeSandbox } from '../../scripts/sandbox.ts';

t.test('T30: store down', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-t30-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const { root } = await makeSandbox(dir);
  const loaded = loadSettings(root);
  if (!loaded.ok) throw new Error('the sandbox does not load');
  const { settings } = loaded;
  const keyring = openKeyring(join(dir, 'keys'), readMasterKey(settings.server.masterKeyFile));
  const store = openLedgerStore(join(dir, 'store'));
  const log = openLog('silent');
  const journal = openJournal({ dir: join(dir, 'events'), clock, keepMs: 86_400_000, log });
  t.teardown(() => journal.close());
  const touched: string[] = [];
  // Whoever reaches for the spool, the signer or the network has gone on after a "cannot tell".
  const forbidden = (room: string): never => new Proxy({}, { get: (_, what) => touched.push(`${room}.${String(what)}`) }) as never;
  const house: House = {
    settings: () => settings, clock, log, metrics: new Metrics(), keyring, ledger: openLedger({ store, keyring, clock }), journal,
    spool: forbidden('spool'), signer: forbidden('signer'), deliverer: forbidden('deliverer'),
  };
  const pipeline = openPipeline(house);
  const credential = settings.credentials.get('demo-app');
  if (credential === undefined) throw new Error('the sandbox has no credential');
  const context = { id: newId(clock.now()), credential };
  t.equal(await pipeline.sender(context, 'news@demo.example'), undefined, 'while it answers, the sender may go on');
  await store.close();
  t.match(await pipeline.sender(context, 'news@demo.example'), { code: 451, enhanced: '4.7.1' });
  t.match(await pipeline.recipient(context, { wire: 'reader@example.com' }), { code: 451, enhanced: '4.7.1' });
  t.same(touched, []);
});
