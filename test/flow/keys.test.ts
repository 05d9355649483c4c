// T28: keys that are lost. Without the master key nothing starts (privacy.test.ts); people's keys that are lost
// while the relay runs mean that it cannot tell, which is a 451: never a yes, and never "no consent".
import { readdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { serveDaemon } from '../lib/daemon.ts';

t.test('T28: keys lost while running', async (t) => {
  const { grounds, mx } = await serveDaemon(t, { 'a@example.com': 'none' });
  const people = join(grounds.dataDir, 'keys/people');
  const send = (): ReturnType<typeof grounds.send> => grounds.send({ from: 'news@demo.example', to: 'a@example.com', subject: 'x', text: 'x' });
  t.match(await grounds.event((await send()).id, ['delivered']), { event: 'delivered' });
  for (const octets of [10, 0]) {
    for (const name of readdirSync(people)) truncateSync(join(people, name), octets);
    t.match((await send()).reply, /^451 4\.7\.1 the consent ledger does not answer/);
    const { rows } = await grounds.control('queue.list') as { rows: readonly unknown[] };
    t.equal(rows.length, 0, 'nothing was taken');
  }
  t.equal(mx.messages.length, 1);
});
