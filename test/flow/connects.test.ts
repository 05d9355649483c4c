// T7, T9: whom the relay talks to. All that a campaign makes it ask the system for is its resolver and the
// recipients' MX, and its own pages, where it looks whether a policy is published; and no library opens
// anything by being loaded.
import t from 'tap';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CHECKOUT, makeGrounds, spawnDaemon } from '../lib/daemon.ts';
import { startMx } from '../lib/mx.ts';
import { startZone } from '../lib/zone.ts';

const recorder = (file: string): NodeJS.ProcessEnv => ({ ...process.env, NODE_OPTIONS: `--import=${join(CHECKOUT, 'test/lib/record-connects.ts')}`, CONNECTS: file });

t.test('T7: the resolver, the MX hosts, its own pages, and nobody else', async (t) => {
  const mx = await startMx({ tls: true, answers: { rcpt: (_n, line) => (line.includes('dead') ? '550 5.1.1 unknown' : undefined) } });
  const zone = await startZone({ 'example.com': { MX: [[10, 'mx.example.com']] }, 'mx.example.com': { A: ['127.0.0.1'] } });
  const grounds = await makeGrounds(mx.port);
  t.teardown(async () => { await mx.close(); await zone.close(); grounds.remove(); });
  await grounds.consent({ 'reader@example.com': 'individual', 'dead@example.com': 'individual' });
  grounds.edit('postern.yaml', (text) => `${text}resolver: { servers: ["127.0.0.1:${zone.port}"] }\n`);
  grounds.edit('shaping.yaml', (text) => text.replace(/via: \[[^\]]*\], tls: opportunistic/, `loopback_mx: ${mx.port}`));
  const file = join(grounds.dir, 'connects');
  const daemon = await spawnDaemon(grounds.root, recorder(file));
  t.teardown(() => daemon.child.kill('SIGKILL'));
  for (const to of ['reader@example.com', 'dead@example.com', 'stranger@example.com']) {
    const { id } = await grounds.send({ from: 'news@demo.example', to, subject: 'x', text: 'x', html: '<p><a href="https://story.example/">x</a><img src="https://tracker.example/o" width="1" height="1"></p>' });
    if (id !== '') t.match(await grounds.event(id, ['delivered', 'failed']), { event: to.startsWith('dead') ? 'failed' : 'delivered' });
  }
  const copy = mx.messages.find(({ to }) => to === 'reader@example.com')?.body.toString().replaceAll('=\r\n', '').replaceAll('=3D', '=') ?? '';
  const links = [...copy.matchAll(/http:\/\/127\.0\.0\.1:\d+\/[cou]\/[\w-]+/g)].map(([url]) => url);
  t.ok(links.length >= 3, 'a click, an open, a way out');
  for (const url of links) await fetch(url, { redirect: 'manual', method: url.includes('/u/') ? 'POST' : 'GET' });
  await fetch(`http://127.0.0.1:${grounds.ports.metrics}/metrics`);
  await grounds.control('reload');
  await daemon.kill('SIGTERM');
  const asked = new Set(readFileSync(file, 'utf8').trim().split('\n'));
  t.same([...asked].toSorted(), [`tcp 127.0.0.1:${mx.port}`, `tcp 127.0.0.1:${grounds.ports.pages}`, `udp 127.0.0.1:${zone.port}`].toSorted());
});

t.test('T9: no dependency opens anything when it is loaded', async (t) => {
  const { dependencies } = JSON.parse(readFileSync(join(CHECKOUT, 'package.json'), 'utf8')) as { dependencies: Record<string, string> };
  const file = join(t.testdir(), 'connects');
  const script = `for (const name of ${JSON.stringify(Object.keys(dependencies))}) await import(name);
    console.log(JSON.stringify(process.getActiveResourcesInfo().filter((kind) => /TCP|UDP|GetAddrInfo|Pipe(?!Wrap)/.test(kind))));`;
  const out = execFileSync(join(CHECKOUT, 'scripts/node'), ['--input-type=module', '-e', script], { cwd: CHECKOUT, env: recorder(file), encoding: 'utf8' });
  t.same(JSON.parse(out), [], 'no socket, no listener');
  t.notOk(existsSync(file), 'and nothing was asked for');
});
