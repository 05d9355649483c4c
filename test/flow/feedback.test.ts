// Mail that comes back to the whole daemon: a copy goes out over a real MX, its return path and its
// unsubscribe address are read there as a receiver would, and a report, a complaint or a request comes
// back through the inbound door. What counts is what the next message meets.
import { readFileSync, readdirSync } from 'node:fs';
import { spawn, spawnSync } from 'node:child_process';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createTransport } from 'nodemailer';
import t from 'tap';
import { makeGrounds } from '../lib/daemon.ts';
import { startMx, type Received } from '../lib/mx.ts';

const mx = await startMx();
const grounds = await makeGrounds(mx.port);
const inbound = await new Promise<number>((done) => {
  const server = createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address() as AddressInfo;
    server.close(() => done(port));
  });
});
grounds.edit('postern.yaml', (text) => text.replace('listeners:\n', `listeners:\n  inbound: ["127.0.0.1:${inbound}"]\n`));
const at = (name: string): string => `${name}@people.example`;
const PEOPLE = ['dead', 'policy', 'slow', 'leaver', 'waiting', 'complainer', 'abuse', 'mailto', 'suspended', 'plain'];
await grounds.consent(Object.fromEntries(PEOPLE.map((name) => [at(name), 'individual'])));
const daemon = await grounds.serve();
t.teardown(async () => {
  await daemon.stop();
  await mx.close();
  grounds.remove();
});
const ended = ['delivered', 'failed', 'suppressed', 'expired'];
const letter = (to: string): { from: string; to: string; subject: string; text: string; html: string } => ({ from: 'news@demo.example', to, subject: 'News', text: 'Hello', html: '<p>Hello <a href="https://demo.example/x">there</a></p>' });

interface Copy { readonly id: string; readonly returnPath: string; readonly header: string; readonly mailto: string; readonly subject: string }

/** Sends one message and reads at the MX what its receiver would. */
async function deliver(name: string, user?: string): Promise<Copy> {
  const { id, reply } = await grounds.send(letter(at(name)), user);
  if (id === '') throw new Error(reply);
  await grounds.event(id, ended);
  const got = mx.messages.findLast(({ to }) => to.includes(at(name))) as Received;
  const header = got.body.toString('latin1').split('\r\n\r\n')[0] ?? '';
  const ways = /^List-Unsubscribe: <(https?:[^>]+)>(?:,\r\n <mailto:([^?]+)\?subject=([^>]+)>)?\r?$/m.exec(header);
  return { id, returnPath: /<([^>]*)>/.exec(got.from)?.[1] ?? got.from, header, mailto: ways?.[2] ?? '', subject: ways?.[3] ?? '' };
}

/** Mail to the inbound door by a real client. @returns the last reply */
async function come(to: string, raw: string, from = ''): Promise<string> {
  const transport = createTransport({ host: '127.0.0.1', port: inbound, tls: { rejectUnauthorized: false } });
  try {
    return (await transport.sendMail({ envelope: { from, to: [to] }, raw: raw.replaceAll(/\r?\n/g, '\r\n') })).response;
  } catch (error) {
    return (error as { response?: string }).response ?? String(error);
  } finally {
    transport.close();
  }
}

const dsn = (copy: Copy, fields: string, returned = ''): string => `From: MAILER-DAEMON@mx.people.example
To: ${copy.returnPath}
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

It did not work.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.people.example

Final-Recipient: rfc822; somebody@people.example
${fields}

--b
Content-Type: text/rfc822-headers

${returned === '' ? 'Subject: News' : returned}
--b--
`;
const DEAD = 'Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 <somebody@people.example>: no such user';

t.test('a dead address by a report: the next message is refused', async (t) => {
  const copy = await deliver('dead');
  t.match(copy.returnPath, /^b-[a-z2-7]{55}@bounces\.demo\.example$/);
  t.match(await come(copy.returnPath, dsn(copy, DEAD)), /^250 2\.0\.0/);
  const event = await grounds.event(copy.id, ['bounced']);
  t.match(event, { event: 'bounced', class: 'bad-mailbox', reason: 'failed' });
  t.notMatch(event.reply ?? '', /somebody/);
  t.match((await grounds.send(letter(at('dead')))).reply, /^550 .*suppressed-hard-bounce/);
});

t.test('transactional mail: no link in it, the table of copies says who it was', async (t) => {
  const copy = await deliver('plain', 'demo-receipts');
  t.equal(copy.mailto, '');
  t.match(await come(copy.returnPath.toUpperCase(), dsn(copy, DEAD)), /^250/);
  t.match((await grounds.send(letter(at('plain')), 'demo-receipts')).reply, /^550 .*suppressed-hard-bounce/);
});

t.test('policy, delay and answers of programs condemn nobody', async (t) => {
  const policy = await deliver('policy');
  t.match(await come(policy.returnPath, dsn(policy, 'Action: failed\nStatus: 5.7.1\nDiagnostic-Code: smtp; 550 5.7.1 not wanted')), /^250/);
  t.match(await grounds.event(policy.id, ['bounced']), { class: 'security' });
  const slow = await deliver('slow');
  t.match(await come(slow.returnPath, dsn(slow, 'Action: delayed\nStatus: 4.4.1')), /^250/);
  t.match(await grounds.event(slow.id, ['bounced']), { reason: 'delayed' });
  t.match(await come(slow.returnPath, 'From: x@people.example\nSubject: Away\nAuto-Submitted: auto-replied (vacation)\n\n550 5.1.1\n'), /^250/);
  for (const name of ['policy', 'slow']) t.match((await grounds.send(letter(at(name)))).reply, /^250/);
});

t.test('forged, foreign, invented: one text, and nothing is relayed', async (t) => {
  const copy = await deliver('slow');
  const forged = copy.returnPath.replace(/(?<=^.{20})./, (c) => (c === 'a' ? 'b' : 'a'));
  const elsewhere = copy.returnPath.replace(/@.*/, '@relay.demo.example');
  const said = new Set<string>();
  for (const to of [forged, elsewhere, 'nobody@bounces.demo.example', 'info@demo.example', 'x@gmail.example', copy.mailto.replace(/^u-/, 'b-'), copy.returnPath.replace(/^b-/, 'u-')]) {
    said.add(await come(to, dsn(copy, DEAD)));
  }
  t.same([...said], ['550 5.1.1 no such mailbox here']);
  t.match((await grounds.send(letter(at('slow')))).reply, /^250/);
});

t.test('unsubscribe by mail', async (t) => {
  const copy = await deliver('leaver');
  t.match(copy.mailto, /^u-[a-z2-7]{55}@bounces\.demo\.example$/);
  t.ok(copy.header.split('\r\n').every((line) => line.length <= 998));
  t.match(await come(copy.mailto, `Subject: ${copy.subject}\nAuto-Submitted: auto-generated\n\n`, at('leaver')), /^250/);
  t.match((await grounds.send(letter(at('leaver')))).reply, /^250/, 'a program wished nothing');
  for (const subject of [copy.subject, '', `unsubscribe ${copy.subject.replace(/.{60}/g, '$&\n ')}`]) {
    t.match(await come(copy.mailto, `Subject: ${subject}\nFrom: ${at('leaver')}\n\nplease\n`, at('leaver')), /^250/);
  }
  t.match(await grounds.event(copy.id, ['unsubscribed']), { event: 'unsubscribed' });
  t.match((await grounds.send(letter(at('leaver')))).reply, /^550 5\.7\.1/);
});

t.test('unsubscribe by mail while a message waits: no further connection', async (t) => {
  const copy = await deliver('waiting');
  mx.script = { answers: { rcpt: (_n, line) => (line.includes('waiting') ? '450 4.2.0 later' : undefined) } };
  const { id } = await grounds.send(letter(at('waiting')));
  await grounds.event(id, ['deferred']);
  t.match(await come(copy.mailto, `Subject: ${copy.subject}\n\n`, at('waiting')), /^250/);
  const before = mx.connections();
  await grounds.control('queue.retry', { id });
  t.match(await grounds.event(id, ended), { event: 'suppressed' });
  t.equal(mx.connections(), before);
  mx.script = {};
});

const arf = (header: string, type = 'abuse'): string => `From: fbl@provider.example
To: abuse@demo.example
Subject: complaint
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="f"

--f
Content-Type: text/plain

A complaint.
--f
Content-Type: message/feedback-report

Feedback-Type: ${type}
User-Agent: Provider/1
Version: 1

--f
Content-Type: message/rfc822

${header}

Hello
--f--
`;

t.test('complaints: at the return path, and at abuse@ with the mail inside', async (t) => {
  const copy = await deliver('complainer');
  t.match(await come(copy.returnPath, arf('Subject: News', 'not-spam')), /^250/);
  t.match((await grounds.send(letter(at('complainer')))).reply, /^250/);
  t.match(await come(copy.returnPath, arf('Subject: News')), /^250/);
  t.match(await grounds.event(copy.id, ['complained']), { event: 'complained' });
  t.match((await grounds.send(letter(at('complainer')))).reply, /^550 /);
  const other = await deliver('abuse');
  t.match(await come('abuse@demo.example', arf(other.header), 'fbl@provider.example'), /^250/);
  t.match(await grounds.event(other.id, ['complained']), { event: 'complained' });
  t.match((await grounds.send(letter(at('abuse')))).reply, /^550 /);
});

t.test('postmaster and abuse are filed, sealed', async (t) => {
  for (const to of ['postmaster', 'PostMaster@relay.demo.example', 'abuse@bounces.demo.example', 'postmaster@demo.example']) {
    t.match(await come(to, 'From: ann@people.example\nSubject: a secret wish\n\nplease call\n', 'ann@people.example'), /^250/, to);
  }
  const dir = join(grounds.dataDir, 'cases');
  const files = readdirSync(dir);
  t.equal(files.length, 4);
  for (const name of files) t.notMatch(readFileSync(join(dir, name)).toString('latin1'), /secret wish|ann@/);
});

t.test('a suspended tenant: its recipients are heard all the same', async (t) => {
  const copy = await deliver('suspended');
  await grounds.control('suspend', { tenant: 'demo', cause: 'test' });
  t.match(await come(copy.mailto, `Subject: ${copy.subject}\n\n`, at('suspended')), /^250/);
  await grounds.control('resume', { tenant: 'demo' });
  t.match((await grounds.send(letter(at('suspended')))).reply, /^550 5\.7\.1/);
});

t.test('swaks, with STARTTLS', { skip: spawnSync('swaks', ['--version']).status === null && 'swaks is not installed' }, async (t) => {
  const copy = await deliver('mailto');
  const ran = await new Promise<string>((done) => {
    const child = spawn('swaks', ['--server', `127.0.0.1:${inbound}`, '--tls', '--from', at('mailto'), '--to', copy.mailto, '--h-Subject', copy.subject, '--body', 'x']);
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.once('close', () => done(out));
  });
  t.match(ran, /<~  250 2\.0\.0 taken/);
  t.notMatch(ran, /AUTH/);
  t.match((await grounds.send(letter(at('mailto')))).reply, /^550 5\.7\.1/);
});
