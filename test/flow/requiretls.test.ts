// REQUIRETLS (RFC 8689) through the whole relay, from MAIL to the receiver and to the notice that comes back.
import t from 'tap';
import { converse, eventually, pause, serveDaemon } from '../lib/daemon.ts';
import { makeAuthority } from '../lib/deliver.ts';

t.setTimeout(60_000);
const SENDER = 'bounce@demo.example';
const authority = makeAuthority(t.testdir());
authority.trust(t);
const certificate = authority.certificate('IP:127.0.0.1');
const { mx, grounds } = await serveDaemon(t, { 'plain@example.com': 'none' });
const OFFERED = ['PIPELINING', '8BITMIME', 'DSN'];

async function submit(parameters: string): Promise<string> {
  const replies = await converse(grounds.ports.submissions, [
    'EHLO app.example', `AUTH PLAIN ${Buffer.from(`\0demo-app\0${grounds.secret}`).toString('base64')}`, `MAIL FROM:<${SENDER}> ${parameters}`,
    'RCPT TO:<plain@example.com> NOTIFY=FAILURE', 'DATA', 'From: <news@demo.example>\r\nTo: <plain@example.com>\r\nSubject: x\r\n\r\nThe story.\r\n.', 'QUIT',
  ]);
  return /queued as (\S+)/.exec(replies.at(-2) ?? '')?.[1] ?? replies.join(' ');
}
const mails = (): readonly string[] => mx.lines.filter((line) => line.startsWith('MAIL'));

t.test('a host without TLS hears nothing, and the message waits', async (t) => {
  mx.script = { extensions: [...OFFERED, 'REQUIRETLS'] };
  const id = await submit('REQUIRETLS');
  t.match(await grounds.event(id, ['deferred', 'failed', 'delivered']), { event: 'deferred', class: 'tls' });
  t.same(mails(), []);
  mx.script = { tls: true, certificate, extensions: [...OFFERED, 'REQUIRETLS'] };
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ['delivered']), { event: 'delivered', tls: / PKIX$/ }, 'and goes when it can');
  t.match(mails(), [/ REQUIRETLS$/]);
  t.equal(mx.messages.at(-1)?.tls, true);
});

t.test('its notice asks for the same, and brings back no body', async (t) => {
  mx.messages.length = 0;
  mx.script = { tls: true, certificate, extensions: [...OFFERED, 'REQUIRETLS'], answers: { rcpt: (_n, line) => (line.includes('plain@') ? '550 5.7.1 not wanted' : undefined) } };
  t.match(await grounds.event(await submit('REQUIRETLS RET=FULL'), ['failed']), { event: 'failed' });
  t.ok(await eventually(() => mx.messages.some(({ to }) => to === SENDER)));
  t.match(mails().at(-1), /^MAIL FROM:<> .*REQUIRETLS$/);
  const notice = mx.messages.find(({ to }) => to === SENDER)?.body.toString() ?? '';
  t.match(notice, /^Subject: x\r$/m);
  t.notMatch(notice, /The story\./);
});

t.test('a host that does not promise it: 5.7.30 at once, and not a word, of the notice neither', async (t) => {
  mx.messages.length = 0;
  mx.lines.length = 0;
  mx.dropAll();
  mx.script = { tls: true, certificate, extensions: OFFERED };
  const id = await submit('REQUIRETLS');
  t.match(await grounds.event(id, ['failed']), { event: 'failed', reason: /^5\.7\.30 / });
  await pause(300);
  t.same(mails(), []);
  t.match(await grounds.event(await submit(''), ['delivered']), { event: 'delivered' }, 'another message goes');
});
