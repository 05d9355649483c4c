// What the relay keeps and shows: after a campaign no address, subject or text of a message is readable in
// its data, its metrics or its log; files are its owner's alone; and without the right key it does not start.
import t from 'tap';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { eventually, makeGrounds, spawnDaemon } from '../lib/daemon.ts';
import { startMx } from '../lib/mx.ts';

t.test('a campaign leaves nothing readable', async (t) => {
  const mx = await startMx({ answers: { rcpt: (_n, line) => (line.includes('waits') ? '450 4.2.0 later for <waits-secretly@example.com>' : line.includes('deadly') ? '550 5.1.1 <deadly-secretly@example.com> unknown' : undefined) } });
  const grounds = await makeGrounds(mx.port);
  t.teardown(async () => { await mx.close(); grounds.remove(); });
  const people = ['reads-secretly@example.com', 'waits-secretly@example.com', 'deadly-secretly@example.com'];
  await grounds.consent(Object.fromEntries(people.map((address) => [address, 'individual'])));
  const daemon = await spawnDaemon(grounds.root);
  t.teardown(() => daemon.child.kill('SIGKILL'));
  for (const to of [...people, 'stranger-secretly@example.com']) {
    const { id } = await grounds.send({ from: 'news@demo.example', to, subject: 'Subject-secretly', text: 'Body-secretly', html: '<a href="https://demo.example/Link-secretly">x</a>' });
    if (id !== '') t.not((await grounds.event(id, ['delivered', 'deferred', 'failed'])).event, 'nothing');
  }
  await eventually(() => mx.messages.length >= 2);
  const metrics = await (await fetch(`http://127.0.0.1:${grounds.ports.metrics}/metrics`)).text();
  const seen = mx.messages[0]?.body.toString('latin1') ?? '';
  const headers = seen.slice(0, seen.indexOf('\r\n\r\n'));
  t.notMatch(headers, /127\.0\.0\.1(?!:\d)|demo-app|\[/, 'headers name neither client nor credential');
  await daemon.kill('SIGTERM');
  t.notMatch(metrics + daemon.output(), /secretly/i, 'metrics and log');
  const found: string[] = [];
  for (const entry of readdirSync(grounds.dataDir, { recursive: true, withFileTypes: true })) {
    const file = join(entry.parentPath, entry.name);
    const mode = statSync(file).mode & 0o777;
    t.equal(mode & 0o077, 0, `${entry.name} is its owner's alone`);
    if (entry.isFile() && /secretly/i.test(readFileSync(file, 'latin1'))) found.push(entry.name);
  }
  t.same(found, [], 'the data directory');

  const key = readFileSync(join(grounds.root, 'master.key'));
  writeFileSync(join(grounds.root, 'master.key'), `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
  await t.rejects(grounds.serve(), { code: 'E_KEY_WRONG' }, 'the wrong master key');
  rmSync(join(grounds.root, 'master.key'));
  await t.rejects(grounds.serve(), Error, 'no master key');
  writeFileSync(join(grounds.root, 'master.key'), key, { mode: 0o600 });
  await (await grounds.serve()).stop();
});
