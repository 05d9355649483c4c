// A tenant that abuses the service loses all access quickly: a transfer under way is not taken, open
// sessions end, nothing that waits leaves, and its return stands in the log. Promise 9 of the design.
import t from 'tap';
import { connect, type TLSSocket } from 'node:tls';
import { eventually, serveDaemon } from '../lib/daemon.ts';

t.setTimeout(60_000);
const QUEUED = 100;
const people = Array.from({ length: QUEUED }, (_, i) => `p${i}@example.com`);
const { mx, grounds } = await serveDaemon(t, Object.fromEntries(people.map((address) => [address, 'none'])));

/** A logged-in session that has said DATA: what it heard, and whether it is over. */
async function openData(): Promise<{ readonly socket: TLSSocket; readonly heard: () => string; readonly over: () => boolean }> {
  const socket = connect({ host: '127.0.0.1', port: grounds.ports.submissions, rejectUnauthorized: false });
  let heard = '';
  let over = false;
  socket.on('data', (octets: Buffer) => (heard += octets.toString('latin1')));
  socket.on('close', () => (over = true));
  socket.on('error', () => undefined); // a reset is an end like another
  const say = async (line: string, answer: RegExp): Promise<void> => {
    heard = '';
    if (line !== '') socket.write(`${line}\r\n`);
    if (!await eventually(() => answer.test(heard), 5_000)) throw new Error(`${line}: ${heard}`);
  };
  await say('', /^220 /);
  await say('EHLO app.example', /^250 /m);
  await say(`AUTH PLAIN ${Buffer.from(`\0${grounds.username}\0${grounds.secret}`).toString('base64')}`, /^235 /);
  await say('MAIL FROM:<news@demo.example>', /^250 /);
  await say(`RCPT TO:<${people[0] ?? ''}>`, /^250 /);
  await say('DATA', /^354 /);
  heard = '';
  return { socket, heard: () => heard, over: () => over };
}

t.test('T34: suspended during a DATA of 20 MB: no 250, and the session is over within 5 s', async (t) => {
  const session = await openData();
  session.socket.write('From: <news@demo.example>\r\nTo: <p0@example.com>\r\nSubject: long\r\n\r\n');
  const line = `${'x'.repeat(998)}\r\n`.repeat(1_000);
  for (let sent = 0; sent < 10; sent++) session.socket.write(line);
  await grounds.control('suspend', { tenant: 'demo', cause: 'test' });
  for (let sent = 0; sent < 10 && !session.over(); sent++) session.socket.write(line);
  session.socket.write('\r\n.\r\n');
  t.ok(await eventually(session.over, 5_000), 'the session is over');
  t.notMatch(session.heard(), /^2\d\d /m, 'nothing was taken');
  t.match(session.heard(), /^421 4\.7\.0 /m);
  t.match(await grounds.control('status'), { recipients: 0 });
  t.match((await grounds.send({ from: 'news@demo.example', to: people[0], subject: 'x', text: 'x' })).reply, /^535 5\.7\.8 /);
});

t.test('T37: the way back is an act of an operator, and stands in the log', async (t) => {
  await grounds.control('resume', { tenant: 'demo' });
  const { tenants } = await grounds.control('ledger.verify', { tenant: 'demo' }) as { tenants: { ok: boolean; leaves: number }[] };
  const { ok, leaves } = tenants[0] ?? { ok: false, leaves: 0 };
  t.ok(ok);
  const told = await Promise.all(Array.from({ length: leaves }, async (_, leaf) => (await grounds.control('ledger.receipt', { tenant: 'demo', leaf }) as { payload: string }).payload));
  const acts = told.map((payload) => JSON.parse(payload) as { event: string; by: string }).filter(({ event }) => event === 'suspended' || event === 'resumed');
  t.match(acts, [{ event: 'suspended', by: 'cli' }, { event: 'resumed', by: 'cli' }]);
  t.equal(acts.length, 2);
});

t.test('T35: a hundred queued messages: after the suspension not one connection is made for them', async (t) => {
  mx.script = { answers: { rcpt: () => '450 4.2.0 later' } };
  const ids = await Promise.all(people.map(async (to) => (await grounds.send({ from: 'news@demo.example', to, subject: 'x', html: '<p><a href="https://demo.example/">x</a></p>', text: 'x' })).id));
  t.notOk(ids.includes(''), 'all are taken');
  t.ok(await eventually(() => new Set(mx.lines.filter((line) => line.startsWith('RCPT'))).size === QUEUED), 'and were tried once');
  await grounds.control('suspend', { tenant: 'demo', cause: 'test' });
  mx.script = {};
  const before = mx.lines.length;
  for (const id of ids) await grounds.control('queue.retry', { id });
  await eventually(() => mx.lines.length > before, 1_000);
  t.equal(mx.lines.slice(before).filter((line) => /^(?:EHLO|MAIL|RCPT|DATA)/.test(line)).length, 0, 'no command reached the MX');
  t.equal(mx.messages.length, 0);
  t.match(await grounds.control('status'), { recipients: QUEUED }, 'and all of them wait');
});
