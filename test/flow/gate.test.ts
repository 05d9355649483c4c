// The compliance promises through the whole relay: who is refused at RCPT and why, what a change of mind
// does to mail that waits, what becomes of each fault of a receiving MX, and the notices tenants get.
import t from 'tap';
import { connect } from 'node:net';
import { get } from 'node:http';
import { indexHeader, indexMime } from '../../daemon/mail/index.ts';
import { eventually, makeGrounds, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx, type MxScript } from '../lib/mx.ts';

const HTML = '<html><body><p><a href="https://demo.example/story">the story</a></p></body></html>';
const letter = (to: string): Record<string, unknown> => ({ from: 'news@demo.example', to, subject: 'The letter', html: HTML, text: 'The story.' });
const ended = ['delivered', 'failed', 'expired', 'suppressed'];
const PEOPLE = ['reader', 'waiting', 'waiting2', 'leaver', 'gone', 'gone2', 'policy', 'a', 'b', 'c', 'd', 'e', 'f', 'frozen', 'old', 'odd', 'never', 'bouncer'];

let mx: Mx;
let grounds: Grounds;
let daemon: Awaited<ReturnType<Grounds['serve']>>;
const at = (name: string): string => `${name}@example.com`;
/** Answers RCPT for one recipient, 250 for the rest. */
const onRcpt = (name: string, answer: string): MxScript => ({ answers: { rcpt: (_n, line) => (line.includes(`<${at(name)}>`) ? answer : undefined) } });

t.before(async () => {
  mx = await startMx();
  grounds = await makeGrounds(mx.port);
  grounds.edit('tenants/demo.yaml', (text) => text.replace('class: marketing }', 'class: marketing }\n  - { id: brief, purpose: newsletter, class: marketing, retry_for: 2s }')
    .replace('credentials:', `credentials:\n  - username: brief-app\n    secret: "${/sha256:[0-9a-f]+/.exec(text)?.[0] ?? ''}"\n    stream: brief\n    from: [demo.example]`));
  grounds.edit('shaping.yaml', (text) => text.replace('routes:', 'routes:\n  - { domain: "nowhere.example", via: ["127.0.0.1:1"], tls: opportunistic }').replace('first: 5m', 'first: 1s'));
  await grounds.consent(Object.fromEntries([...PEOPLE.map(at), 'x@nowhere.example'].map((address) => [address, 'individual'])));
  daemon = await grounds.serve();
});
t.teardown(async () => {
  await daemon.stop();
  await mx.close();
  grounds.remove();
});

t.test('refusals at RCPT name their rule, and nothing is queued', async (t) => {
  await grounds.control('consent.withdraw', { tenant: 'demo', rcpt: at('f') });
  await grounds.control('suppress.add', { tenant: 'demo', rcpt: at('e'), cause: 'complaint' });
  for (const [who, text] of [
    [at('stranger'), /^550 5\.7\.1 no consent on record for purpose newsletter \(rule consent-missing, ref /],
    [at('f'), /^550 5\.7\.1 .*\(rule consent-withdrawn/],
    [at('e'), /^550 5\.7\.1 the recipient has complained \(rule suppressed-complaint/],
  ] as const) {
    const { id, reply } = await grounds.send(letter(who));
    t.equal(id, '');
    t.match(reply, text);
  }
  t.match(await grounds.control('status'), { recipients: 0 });
});

t.test('what a message must be', async (t) => {
  const raw = (head: string, more = {}): Promise<{ id: string; reply: string }> => grounds.send({ envelope: { from: 'news@demo.example', to: at('reader') }, raw: `${head}\r\n\r\nbody\r\n`, ...more });
  t.match((await raw('Subject: x')).reply, /^550 5\.\d\.\d .*message-from-count/);
  t.match((await raw('From: a@demo.example\r\nFrom: b@demo.example')).reply, /message-from-(count|malformed)/);
  t.match((await raw('From: a@other.example')).reply, /message-from-(not-allowed|domain)/);
  t.match((await raw(`From: a@demo.example\r\nTo: ${at('a')}, ${at('b')}`)).reply, /message-visible-recipients/);
});

t.test('T31: consent withdrawn while the message waits: no further connection, and it ends as suppressed, class policy', async (t) => {
  mx.script = onRcpt('waiting', '450 4.2.0 later');
  const { id } = await grounds.send(letter(at('waiting')));
  t.match(await grounds.event(id, ['deferred']), { event: 'deferred' });
  await grounds.control('consent.withdraw', { tenant: 'demo', rcpt: at('waiting') });
  const before = mx.lines.filter((line) => line.startsWith('RCPT') && line.includes(at('waiting'))).length;
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ended), { event: 'suppressed', rule: 'consent-withdrawn', class: 'suppressed' });
  t.ok(await eventually(() => mx.messages.some(({ to, body }) => to === 'news@demo.example' && /^Final-Recipient: rfc822; waiting@[^]*^Action: failed\r\n[^]*^Status: 5\.7\.1\r\n/m.test(body.toString('latin1')))), 'the sender is told, as of a policy');
  t.equal(mx.lines.filter((line) => line.startsWith('RCPT') && line.includes(at('waiting'))).length, before);
});

t.test('suppressed after acceptance', async (t) => {
  mx.script = onRcpt('waiting2', '450 4.2.0 later');
  const { id } = await grounds.send(letter(at('waiting2')));
  await grounds.event(id, ['deferred']);
  await grounds.control('suppress.add', { tenant: 'demo', rcpt: at('waiting2'), cause: 'manual' });
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ended), { event: 'suppressed', rule: 'suppressed-manual' });
});

t.test('one-click unsubscribe stops mail that waits', async (t) => {
  mx.script = {};
  await grounds.event((await grounds.send(letter(at('leaver')))).id, ended);
  const copy = mx.messages.find(({ to }) => to.includes(at('leaver')))?.body.toString('latin1').replaceAll('\r\n ', ' ') ?? '';
  const link = /^List-Unsubscribe:.*<(http[^>]+)>/m.exec(copy)?.[1] ?? '';
  mx.script = onRcpt('leaver', '450 4.2.0 later');
  const { id } = await grounds.send(letter(at('leaver')));
  await grounds.event(id, ['deferred']);
  const answer = await fetch(link, { method: 'POST', body: 'List-Unsubscribe=One-Click', headers: { 'content-type': 'application/x-www-form-urlencoded' } });
  t.equal(answer.status, 200);
  await grounds.control('queue.retry', { id });
  t.match((await grounds.event(id, ended)).event, 'suppressed');
  t.match((await grounds.send(letter(at('leaver')))).reply, /^550 5\.7\.1/);
});

t.test('5.1.1 is a dead address, 5.7.1 is not', async (t) => {
  mx.script = onRcpt('gone', '550 5.1.1 no such user');
  t.match(await grounds.event((await grounds.send(letter(at('gone')))).id, ended), { event: 'failed' });
  t.match((await grounds.send(letter(at('gone')))).reply, /rule suppressed-hard-bounce/);
  mx.script = onRcpt('policy', '550 5.7.1 not wanted');
  t.match(await grounds.event((await grounds.send(letter(at('policy')))).id, ended), { event: 'failed' });
  mx.script = {};
  t.match(await grounds.event((await grounds.send(letter(at('policy')))).id, ended), { event: 'delivered' });
});

t.test('the failure notice', async (t) => {
  mx.messages.length = 0;
  mx.script = onRcpt('bouncer', '550 5.7.1 not wanted');
  const { id, reply } = await grounds.send({ ...letter(at('bouncer')), envelope: { from: 'bounce@demo.example', to: [at('bouncer')] }, dsn: { id: 'envid-1', return: 'headers', notify: ['failure'] } } as never);
  t.match(reply, /^250/);
  t.match(await grounds.event(id, ended), { event: 'failed' });
  t.ok(await eventually(() => mx.messages.some(({ to }) => to.includes('bounce@demo.example'))), 'it comes');
  const notice = mx.messages.find(({ to }) => to.includes('bounce@demo.example'));
  t.equal(notice?.from.replace(/^.*<(.*)>.*$/, '$1'), '', 'null reverse-path');
  const raw = notice?.body ?? Buffer.alloc(0);
  const { leaves } = indexMime(raw, indexHeader(raw));
  t.match(leaves.map(({ type }) => type).join(' '), /^text\/plain message\/delivery-status (text\/rfc822-headers|message\/rfc822)/);
  const text = raw.toString('latin1');
  t.match(text, /^Content-Type: multipart\/report;\s+report-type="?delivery-status/mi);
  for (const field of [/^Reporting-MTA: dns; ?relay\.demo\.example/m, /^Original-Envelope-Id: envid-1/m, /^Final-Recipient: rfc822; ?bouncer@example\.com/m, /^Action: failed/m, /^Status: 5\.7\.1/m, /^Diagnostic-Code: smtp; ?550/m]) t.match(text, field);
  t.notMatch(text, /The story\./, 'headers only, as asked');
});

t.test('no notice of a notice, none where NOTIFY=NEVER', async (t) => {
  mx.messages.length = 0;
  mx.lines.length = 0;
  mx.script = { answers: { rcpt: () => '550 5.7.1 not wanted' } };
  const { id } = await grounds.send({ ...letter(at('never')), envelope: { from: 'nobody@demo.example', to: [at('never')] }, dsn: { id: 'x', return: 'headers', notify: 'never' } } as never);
  await grounds.event(id, ended);
  await grounds.event((await grounds.send({ ...letter(at('a')), envelope: { from: 'loop@demo.example', to: [at('a')] } })).id, ended);
  t.ok(await eventually(() => mx.lines.some((line) => line.includes('loop@demo.example') && line.startsWith('RCPT'))), 'the one notice is tried');
  await eventually(() => false, 300);
  t.equal(mx.lines.filter((line) => line.startsWith('RCPT') && line.includes('loop@')).length, 1, 'and its failure is the end of it');
  t.notOk(mx.lines.some((line) => line.startsWith('RCPT') && line.includes('nobody@')));
  t.equal(mx.messages.length, 0);
  mx.script = {};
});

t.test('faults of the MX at each phase', async (t) => {
  for (const [phase, answer, event] of [
    ['connect', '421 4.3.2 busy', 'deferred'], ['ehlo', { fault: 'close' }, 'deferred'], ['mail', '450 4.7.1 slow down', 'deferred'],
    ['mail', '550 5.7.1 no', 'failed'], ['rcpt', { raw: 'garbage\r\n' }, 'deferred'], ['data', '450 4.3.0 later', 'deferred'], ['data', { fault: 'close' }, 'deferred'],
    ['final', '550 5.7.1 spam', 'failed'], ['final', { fault: 'reset' }, 'deferred'], ['final', '450 4.3.0 later', 'deferred'],
  ] as const) {
    mx.dropAll();
    mx.script = { answers: { [phase]: answer } };
    const { id } = await grounds.send({ ...letter(at('c')), envelope: { from: 'news@demo.example', to: [at('c')] }, dsn: { id: 'x', return: 'headers', notify: 'never' } } as never);
    t.equal((await grounds.event(id, ['deferred', ...ended])).event, event, `${phase} ${JSON.stringify(answer)}`);
    await grounds.control('queue.drop', { id }).catch(() => undefined); // what failed is gone already
  }
  mx.dropAll();
  mx.script = {};
});

t.test('no way there, and the end of the time it is tried', async (t) => {
  const { id } = await grounds.send(letter('x@nowhere.example'));
  t.match(await grounds.event(id, ['deferred', ...ended]), { event: 'deferred' });
  await grounds.control('queue.drop', { id });
  mx.script = onRcpt('old', '450 4.2.0 later');
  mx.messages.length = 0;
  const brief = await grounds.send(letter(at('old')), 'brief-app');
  t.match(await grounds.event(brief.id, ended), { event: 'expired' });
  t.ok(await eventually(() => mx.messages.some(({ to, body }) => to.includes('news@demo.example') && /^Status: 4\./m.test(body.toString('latin1')))), 'the tenant is told');
  mx.script = {};
});

t.test('hostile and unreadable MIME is delivered untouched', async (t) => {
  const bodies = [
    'Content-Type: multipart/mixed\r\n\r\nno boundary',
    'Content-Type: text/html; charset=utf-16\r\n\r\n<a href="https://demo.example/x">x</a>',
    'Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!not base64!!!',
    `Content-Type: multipart/mixed; boundary=a\r\n\r\n${'--a\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n'.repeat(500)}`,
  ];
  for (const body of bodies) {
    mx.messages.length = 0;
    const { id } = await grounds.send({ envelope: { from: 'news@demo.example', to: at('odd') }, raw: `From: news@demo.example\r\nMIME-Version: 1.0\r\n${body}\r\n` });
    t.match(await grounds.event(id, ended), { event: 'delivered' });
    t.ok(mx.messages[0]?.body.toString('latin1').endsWith(`${body.slice(body.indexOf('\r\n\r\n'))}\r\n`), 'octet for octet');
  }
  t.match(await read(`http://127.0.0.1:${grounds.ports.metrics}/metrics`), /untouched\w*\{[^}]*why="[^"]+"[^}]*\} [1-9]/);
});

t.test('a suspended tenant: AUTH refused, the queue frozen', async (t) => {
  mx.script = onRcpt('frozen', '450 4.2.0 later');
  const { id } = await grounds.send(letter(at('frozen')));
  await grounds.event(id, ['deferred']);
  mx.script = {};
  await grounds.control('suspend', { tenant: 'demo', cause: 'test' });
  t.match((await grounds.send(letter(at('reader')))).reply, /^(535|550|454|525|451)/);
  await grounds.control('queue.retry', { id });
  await eventually(() => false, 300);
  t.notOk(mx.messages.some(({ to }) => to.includes(at('frozen'))), 'nothing goes out');
  t.match(await grounds.control('queue.list'), { counts: { recipients: Number } });
  await grounds.control('resume', { tenant: 'demo' });
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ended), { event: 'delivered' });
});

t.test('without TLS nobody logs in', async (t) => {
  const said = await new Promise<string>((done) => {
    const socket = connect(grounds.ports.submission, '127.0.0.1');
    let all = '';
    socket.on('data', (chunk) => {
      all += chunk.toString();
      if (all.startsWith('220') && !all.includes('250')) socket.write('EHLO x\r\n');
      if (/^250 /m.test(all)) socket.end();
    });
    socket.on('close', () => done(all));
  });
  t.notMatch(said, /AUTH/);
});

const read = (url: string): Promise<string> => new Promise((done, fail) => {
  get(url, (answer) => {
    let all = '';
    answer.on('data', (chunk: Buffer) => { all += chunk.toString(); });
    answer.on('end', () => done(all));
  }).on('error', fail);
});
