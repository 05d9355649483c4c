// Notices by RFC 3461 through the whole relay: handed over, still waiting, failed with the whole message, of an
// address beyond ASCII; each read back by another program, each once, and none that nobody asked for.
import { simpleParser } from 'mailparser';
import t from 'tap';
import { converse, eventually, pause, serveDaemon } from '../lib/daemon.ts';

t.setTimeout(60_000);
const SENDER = 'bounce@demo.example';
const people = ['plain', 'slow', 'gone', 'jös', 'jür', 'late'].map((name) => `${name}@example.com`);
const scene = await serveDaemon(t, Object.fromEntries(people.map((address) => [address, 'none'])), ({ edit }) => {
  edit('tenants/demo.yaml', (text) => text.replace('class: marketing }', 'class: marketing, delay_notice: 2500ms }'));
  edit('shaping.yaml', (text) => text.replace(/^retry: .*$/m, 'retry: { first: 1s, max: 1s }'));
});
const { mx, grounds } = scene;

const notices = (): readonly Buffer[] => mx.messages.filter(({ to }) => to === SENDER).map(({ body }) => body);
const rcpts = (to: string): readonly string[] => mx.lines.filter((line) => line.startsWith('RCPT') && line.includes(to));
async function send(to: string, notify: readonly string[], more: object = {}): Promise<string> {
  const { id, reply } = await grounds.send({ from: 'news@demo.example', to, subject: 'x', text: 'The story.', envelope: { from: SENDER, to: [to] }, dsn: { id: 'env 1', return: 'headers', notify, ...more } } as never);
  t.match(reply, /^250/);
  return id;
}

interface Notice {
  readonly type: string;
  readonly fields: string;
  readonly returned: string;
  readonly text: string;
}

async function read(raw: Buffer): Promise<Notice> {
  const mail = await simpleParser(raw, { keepDeliveryStatus: true });
  const part = (type: RegExp): { contentType: string; content: Buffer } | undefined => mail.attachments.find(({ contentType }) => type.test(contentType));
  const status = part(/delivery-status$/);
  return { type: status?.contentType ?? '', fields: status?.content.toString('utf8') ?? '', returned: part(/^message\/(?:rfc822|global(?:-headers)?)$/)?.content.toString('utf8') ?? '', text: mail.text ?? '' };
}

t.test('NOTIFY=SUCCESS: handed over, said by us and asked of nobody else', async (t) => {
  mx.messages.length = 0;
  const id = await send('plain@example.com', ['success', 'failure'], { recipient: 'plain@old.example' });
  t.match(await grounds.event(id, ['delivered']), { event: 'delivered' });
  t.ok(await eventually(() => notices().length === 1));
  const { fields, type } = await read(notices()[0] ?? Buffer.alloc(0));
  t.equal(type, 'message/delivery-status');
  for (const field of [/^Action: relayed$/m, /^Status: 2\.\d\.\d$/m, /^Final-Recipient: rfc822; plain@example\.com$/m, /^Original-Envelope-Id: env 1$/m, /^Remote-MTA: dns; /m]) t.match(fields.replaceAll('\r', ''), field);
  t.match(rcpts('plain@'), [/NOTIFY=FAILURE(?: |$)/], 'reports come to our reverse-path, where nobody waits for good news');
  await pause(100);
  t.equal(notices().length, 1);
});

t.test('NOTIFY=DELAY: told once, at its time, and nobody who did not ask', async (t) => {
  mx.messages.length = 0;
  mx.script = { answers: { rcpt: (_n, line) => (/slow|late/.test(line) ? '450 4.2.0 mailbox busy' : undefined) } };
  const asked = await send('slow@example.com', ['delay', 'failure']);
  const silent = await send('late@example.com', ['failure']);
  const started = Date.now();
  t.ok(await eventually(() => notices().length === 1), 'it comes');
  t.ok(Date.now() - started > 2_000, 'not before its time');
  const { fields, text } = await read(notices()[0] ?? Buffer.alloc(0));
  for (const field of [/^Action: delayed$/m, /^Status: 4\.2\.0$/m, /^Diagnostic-Code: smtp; 450 4\.2\.0 mailbox busy$/m, /^Will-Retry-Until: \w{3}, /m, /^Final-Recipient: rfc822; slow@example\.com$/m]) t.match(fields.replaceAll('\r', ''), field);
  t.match(text, /is still waiting[^]*nothing needs to be done/);
  const tries = rcpts('slow@').length;
  t.ok(await eventually(() => rcpts('slow@').length >= tries + 2), 'it goes on being tried');
  t.equal(notices().length, 1, 'and is told once');
  for (const id of [asked, silent]) await grounds.control('queue.drop', { id });
  mx.script = {};
});

t.test('RET=FULL brings the whole message back, of a failure only', async (t) => {
  mx.messages.length = 0;
  mx.script = { answers: { rcpt: (_n, line) => (line.includes('gone@') ? '550 5.7.1 not wanted' : undefined) } };
  await send('gone@example.com', ['failure', 'success'], { return: 'full' });
  await send('plain@example.com', ['success'], { return: 'full' });
  t.ok(await eventually(() => notices().length === 2));
  const all = notices().map((raw) => raw.toString('latin1'));
  t.same(all.map((text) => [/^Action: (\w+)/m.exec(text)?.[1], text.includes('The story.')]).toSorted(), [['failed', true], ['relayed', false]]);
  mx.script = {};
});

t.test('an address beyond ASCII: RFC 6533, as octets and not as escapes', async (t) => {
  mx.messages.length = 0;
  mx.script = { answers: { rcpt: (_n, line) => (line.includes('s@example.com') && !line.includes('bounce') ? '550 5.1.1 kein Postfach' : undefined) } };
  await send('jös@example.com', ['failure']);
  t.ok(await eventually(() => notices().length === 1));
  const { type, fields } = await read(notices()[0] ?? Buffer.alloc(0));
  t.equal(type, 'message/global-delivery-status');
  t.match(fields.replaceAll('\r', ''), /^Final-Recipient: utf-8; jös@example\.com$/m);
  t.match(fields.replaceAll('\r', ''), /^Status: 5\.1\.1$/m);
  mx.script = {};
});

const HELLO = (): readonly string[] => ['EHLO app.example', `AUTH PLAIN ${Buffer.from(`\0demo-app\0${grounds.secret}`).toString('base64')}`];
const LETTER = ['DATA', 'From: <news@demo.example>\r\nTo: <plain@example.com>\r\nSubject: x\r\n\r\nHello\r\n.', 'QUIT'];

t.test('ORCPT beyond ASCII: any form in, the fitting form out, plain in the notice', async (t) => {
  mx.messages.length = 0;
  mx.script = { answers: { rcpt: (_n, line) => (line.includes('plain@') ? '550 5.7.1 not wanted' : undefined) } };
  for (const orcpt of ['utf-8;j\\x{F6}s\\x{2B}x@old.example', 'utf-8;jös\\x{2B}x@old.example']) {
    const replies = await converse(grounds.ports.submissions, [...HELLO(), `MAIL FROM:<${SENDER}> SMTPUTF8`, `RCPT TO:<plain@example.com> NOTIFY=FAILURE ORCPT=${orcpt}`, ...LETTER]);
    t.match(replies.at(-2), /queued as/, replies.join(' '));
  }
  t.ok(await eventually(() => notices().length === 2));
  t.match(rcpts('plain@').slice(-2), [/ ORCPT=utf-8;j\\x\{F6\}s\\x\{2B\}x@old\.example$/, / ORCPT=utf-8;j\\x\{F6\}s\\x\{2B\}x@old\.example$/], 'an ASCII command needs no SMTPUTF8');
  for (const raw of notices()) {
    const { type, fields } = await read(raw);
    t.equal(type, 'message/global-delivery-status');
    t.match(fields.replaceAll('\r', ''), /^Original-Recipient: utf-8;jös\+x@old\.example\nFinal-Recipient: rfc822; plain@example\.com$/m);
  }
  mx.script = {};
});

t.test('statuses: of a delay never 5yz, of what we would not send our own', async (t) => {
  mx.messages.length = 0;
  mx.script = { answers: { rcpt: (_n, line) => (line.includes('slow@') ? '552 5.2.2 mailbox full' : undefined) } };
  const id = await send('slow@example.com', ['delay']);
  t.ok(await eventually(() => notices().length === 1));
  t.match((await read(notices()[0] ?? Buffer.alloc(0))).fields.replaceAll('\r', ''), /^Action: delayed\nStatus: 4\.2\.2$/m);
  await grounds.control('queue.drop', { id });
  mx.messages.length = 0;
  mx.dropAll(); // what a kept session knows of the host is of yesterday
  mx.script = { extensions: ['DSN'] };
  const failed = await send('jür@example.com', ['failure']);
  t.match(await grounds.event(failed, ['failed']), { event: 'failed' });
  t.ok(await eventually(() => notices().length === 1));
  t.match((await read(notices()[0] ?? Buffer.alloc(0))).fields.replaceAll('\r', ''), /^Action: failed\nStatus: 5\.6\.7$/m);
  mx.dropAll();
  mx.script = {};
});

t.test('no room for a notice of success: it is lost, the copy does not go out twice', async (t) => {
  mx.script = { answers: { rcpt: () => '450 4.2.0 later' } };
  const id = await send('plain@example.com', ['success']);
  await grounds.event(id, ['deferred']);
  await scene.daemon.stop();
  grounds.edit('postern.yaml', (text) => text.replace(/^limits:\n/m, 'limits:\n  disk_reserve: 1000000GiB\n'));
  mx.messages.length = 0;
  mx.script = {};
  scene.daemon = await grounds.serve();
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ['delivered']), { event: 'delivered' });
  t.ok(await settled(id), 'settled');
  t.same(mx.messages.map(({ to }) => to), ['plain@example.com']);
});

async function settled(id: string): Promise<boolean> {
  for (let i = 0; i < 100; i++) {
    const { rows } = await grounds.control('queue.list', { tenant: 'demo' }) as { rows: readonly { id: string }[] };
    if (!rows.some((row) => row.id === id)) return true;
    await pause(20);
  }
  return false;
}
