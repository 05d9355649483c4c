// The adapter over smtp-server: one test for each thing it overrides, on real sockets.
import { connect as connectTcp } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { createRequire } from 'node:module';
import t from 'tap';
import { REPLIES, reply } from '../../daemon/mail/index.ts';
import { systemClock } from '../../daemon/runtime/index.ts';
import { DoorServer, type SmtpServerOptions } from '../../daemon/smtp/index.ts';
import { Intake } from '../../daemon/smtp/intake.ts';
import { Client } from '../lib/dialog.ts';
import { testCertificate } from '../lib/mx.ts';
import { Desk, type User } from './desk.ts';

interface Rig { readonly desk: Desk; readonly server: DoorServer<User>; readonly port: number }

async function open(t: { teardown(run: () => Promise<void>): void }, changes: Partial<SmtpServerOptions<User>> = {}): Promise<Rig> {
  const desk = new Desk();
  const server = new DoorServer<User>({
    hostname: 'mx.acme.example', implicitTls: true, ...testCertificate(), connections: 50, connectionsPerAddress: 20, messageBytes: 100_000,
    recipientsPerMessage: 3, idleTimeoutMs: 20_000, dataTimeoutMs: 20_000, clock: systemClock, door: desk, ...changes,
  });
  const clients: Client[] = [];
  opened.set(server, clients);
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', () => resolve()));
  t.teardown(async () => {
    for (const client of clients) client.close();
    await server.drain();
  });
  const address = server.server.address();
  return { desk, server, port: typeof address === 'object' && address !== null ? address.port : 0 };
}

const opened = new WeakMap<DoorServer<User>, Client[]>();
const PLAIN = `AUTH PLAIN ${Buffer.from('\0user\0secret').toString('base64')}`;

async function enter({ port, server }: Rig, how: 'tls' | 'plain' = 'tls'): Promise<Client> {
  const client = await Client.open(port, how);
  opened.get(server)?.push(client);
  await client.reply();
  return client;
}

async function login(rig: Rig): Promise<Client> {
  const client = await enter(rig);
  await client.say('EHLO client.example');
  await client.say(PLAIN);
  return client;
}

async function until(so: () => boolean): Promise<void> {
  for (let i = 0; i < 200 && !so(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function startData(client: Client): Promise<void> {
  for (const line of ['MAIL FROM:<a@acme.example>', 'RCPT TO:<b@x.example>', 'DATA']) await client.say(line);
}

/** A whole transaction; `body` is sent as it is, without a terminator of its own. */
async function send(client: Client, body: string | Buffer, pieces = 1): Promise<string> {
  await startData(client);
  const bytes = Buffer.from(body);
  if (pieces === 1) client.send(bytes);
  else for (let i = 0; i < bytes.length; i++) {
    client.send(bytes.subarray(i, i + 1));
    await new Promise(setImmediate);
  }
  return client.reply();
}

t.test('the version the overrides are written for', async (t) => {
  const { version } = createRequire(import.meta.url)('smtp-server/package.json') as { version: string };
  t.equal(version, '3.21.6');
});

t.test('greeting without the fixed delay, and EHLO over TLS and in clear', async (t) => {
  const rig = await open(t);
  const started = performance.now();
  const client = await Client.open(rig.port, 'tls');
  opened.get(rig.server)?.push(client);
  t.equal(await client.reply(), '220 mx.acme.example ESMTP');
  t.comment(`greeted ${Math.round(performance.now() - started)} ms after connect`);
  t.equal(await client.say('EHLO x'), ['250-mx.acme.example', '250-PIPELINING', '250-8BITMIME', '250-SMTPUTF8', '250-ENHANCEDSTATUSCODES', '250-DSN', '250-AUTH PLAIN LOGIN', '250-REQUIRETLS', '250 SIZE 100000'].join('\n'));
  await client.say(PLAIN);
  t.notMatch(await client.say('EHLO x'), /AUTH/, 'not offered again');
  t.equal(await client.say('HELO x'), '250 mx.acme.example');
  const clear = await enter(await open(t, { implicitTls: false }), 'plain');
  const offered = await clear.say('EHLO x');
  t.match(offered, /STARTTLS/);
  t.notMatch(offered, /AUTH/, 'no password may be sent in clear');
  t.equal(await clear.say(PLAIN), '538 5.7.11 authentication needs TLS, issue STARTTLS first');
  t.equal(await clear.say('MAIL FROM:<a@b.example>'), '530 5.7.0 issue STARTTLS first');
});

t.test('STARTTLS forgets what came before, and drops what was sent with it', async (t) => {
  const rig = await open(t, { implicitTls: false });
  const client = await enter(rig, 'plain');
  await client.say('EHLO x');
  client.send(`STARTTLS\r\nEHLO evil\r\n${PLAIN}\r\nMAIL FROM:<evil@x.example>\r\n`);
  t.equal(await client.reply(), '220 2.0.0 ready to start TLS');
  await client.startTls();
  t.match(await client.say('MAIL FROM:<a@acme.example>'), /^503 5\.5\.1 send EHLO first/, 'the plaintext EHLO is forgotten, the plaintext MAIL never ran');
  t.match(await client.say('EHLO x'), /AUTH PLAIN LOGIN/);
  t.match(await client.say('STARTTLS'), /^503 5\.5\.1/);
  t.match(await client.say(PLAIN), /^235 2\.7\.0/);
  t.equal(rig.desk.senders.length, 0);
});

t.test('TLS 1.2 at least', async (t) => {
  const { port } = await open(t);
  const outcome = await new Promise<string>((resolve) => {
    const socket = connectTls({ port, host: '127.0.0.1', rejectUnauthorized: false, minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' });
    socket.once('secureConnect', () => resolve('connected'));
    socket.once('error', (error: Error) => resolve(error.message));
  });
  t.match(outcome, /protocol version|unsupported protocol|alert/i);
});

t.test('a client that talks before the greeting is sent away', async (t) => {
  const { port } = await open(t, { implicitTls: false });
  const heard = await new Promise<string>((resolve) => {
    let text = '';
    const socket = connectTcp({ port, host: '127.0.0.1' }, () => void socket.write('EHLO spam\r\nMAIL FROM:<x@y.example>\r\n'));
    socket.on('data', (chunk: Buffer) => void (text += chunk.toString()));
    socket.on('close', () => resolve(text));
    setTimeout(() => socket.destroy(), 500).unref();
  });
  // The bytes may come a turn too late to be early; then the commands are answered one by one.
  t.match(heard, /^(554 5\.5\.0 you spoke out of turn\r\n$|220 )/);
});

t.test('enhanced codes are ours', async (t) => {
  const rig = await open(t);
  const client = await login(rig);
  await client.say('MAIL FROM:<a@acme.example>');
  t.equal(await client.say('RCPT TO:<no@x.example>'), '550 5.7.1 no consent on record', 'a policy, not a missing mailbox');
  t.equal(await client.say('RCPT TO:<bug@x.example>'), '451 4.3.0 local error, try again later');
  t.equal(rig.desk.bugs.length, 1);
  t.equal(await client.say('DATA'), '554 5.5.1 no valid recipients');
  t.equal(await client.say('RCPT TO:<b@x.example>'), '250 2.1.5 recipient ok');
  t.equal(await client.say('RSET'), '250 2.0.0 flushed');
  t.equal(await client.say('NOOP'), '250 2.0.0 nothing done');
  t.equal(await client.say('VRFY root'), '252 2.1.5 recipients are judged at RCPT');
  for (const verb of ['WIZ now', 'SHELL', 'KILL', 'HELP', 'XCLIENT ADDR=1.2.3.4', 'EXPN x', 'BDAT 3']) t.equal(await client.say(verb), '500 5.5.2 command not recognised', verb);
  t.equal(await client.say('QUIT'), '221 2.0.0 closing');
  const other = await enter(rig);
  await other.say('EHLO x');
  t.equal(await other.say(`AUTH PLAIN ${Buffer.from('\0broken\0x').toString('base64')}`), '451 4.3.0 local error, try again later');
});

t.test('mistakes end a session, refusals do not', async (t) => {
  const rig = await open(t, { recipientsPerMessage: 1_000 });
  const client = await login(rig);
  for (let i = 0; i < 9; i++) t.match(await client.say('FOO'), /^500 5\.5\.2/);
  t.match(await client.say('MAIL FROM:<x@y.example> FOO=1'), /^555 5\.5\.4/);
  t.equal(await client.reply(), '421 4.7.0 too many errors, closing');
  t.equal(await client.reply(), '');
  const long = await login(rig);
  await long.say('MAIL FROM:<a@acme.example>');
  long.send('RCPT TO:<no@x.example>\r\n'.repeat(100));
  for (let i = 0; i < 100; i++) if (!(await long.reply()).startsWith('550 5.7.1')) t.fail('refused otherwise');
  t.match(await long.say('NOOP'), /^250/, 'a hundred refused recipients later');
  await long.say('RSET');
  rig.desk.onMail = async () => reply(451, '7.1', 'slower');
  long.send(`MAIL FROM:<a@acme.example>\r\n${'RCPT TO:<b@x.example>\r\n'.repeat(20)}DATA\r\n`);
  t.match(await long.reply(), /^451 4\.7\.1/);
  for (let i = 0; i < 21; i++) if (!(await long.reply()).startsWith('503 5.5.1')) t.fail('answered otherwise');
  t.match(await long.say('NOOP'), /^250/, 'pipelined behind a refused MAIL is no mistake');
});

t.test('addresses as written, parameters known or refused', async (t) => {
  const rig = await open(t);
  let client = await login(rig);
  const table: readonly [string, RegExp][] = [
    ['MAIL FROM:<A.b+C@Xn--4CA.ee>', /^250 2\.1\.0/],
    ['MAIL FROM:<>', /^250/],
    ['MAIL FROM: <a@b.example> BODY=8bitmime SIZE=500 RET=hdrs ENVID=a+2Bb AUTH=<>', /^250/],
    ['mail from:<"a b@c"@d.example>', /^250/],
    ['MAIL FROM:<a@b.example> FOO=BAR', /^555 5\.5\.4/],
    ['MAIL FROM:<a@b.example> FOO', /^555 5\.5\.4/],
    ['MAIL FROM:<a@b.example> SIZE=100001', /^552 5\.3\.4/],
    ['MAIL FROM:<a@b.example> SIZE=1e9', /^501 5\.5\.4/],
    ['MAIL FROM:<a@b.example> BODY=BINARYMIME', /^501 5\.5\.4/],
    ['MAIL FROM:<a@b.example> RET=ALL', /^501 5\.5\.4/],
    ['MAIL FROM:<a@b.example> ENVID=a+0Db', /^501 5\.5\.4/],
    ['MAIL FROM:<a@b.example> SIZE=1 SIZE=2', /^501 5\.1\.7/],
    ['MAIL FROM:<a@b.example', /^501 5\.1\.7/],
    ['MAIL FROM:a@b.example', /^501 5\.1\.7/],
    ['MAIL FROM:<a b@c.example>', /^501 5\.1\.7/],
    ['MAIL FROM:<a@b.example>x', /^501 5\.1\.7/],
    ['MAIL FROM:<@relay.example:a@b.example>', /^553 5\.1\.3/],
    ['MAIL FROM:<grün@b.example>', /^553 5\.6\.7/],
    ['MAIL FROM:<grün@b.example> SMTPUTF8', /^250/],
  ];
  for (const [i, [line, expected]] of table.entries()) {
    // Five mistakes a session are few enough.
    if (i % 5 === 4) client = await login(rig);
    t.match(await client.say(line), expected, line);
    await client.say('RSET');
  }
  t.same(rig.desk.senders.slice(0, 4).map(({ from }) => from), ['A.b+C@Xn--4CA.ee', '', 'a@b.example', '"a b@c"@d.example']);
  t.match(rig.desk.senders[2], { body: '8BITMIME', sizeBytes: 500, ret: 'HDRS', envid: 'a+b' });
});

t.test('recipients: as written, DSN parameters, how many', async (t) => {
  const rig = await open(t);
  const client = await login(rig);
  await client.say('MAIL FROM:<a@acme.example> RET=FULL ENVID=QQ+3D1');
  t.match(await client.say('RCPT TO:<"odd > local"@XN--4ca.EE> NOTIFY=success,FAILURE ORCPT=rfc822;Bob+2Bx@x.example'), /^250 2\.1\.5/);
  t.match(await client.say('RCPT TO:<Foo@x.example>'), /^250/);
  t.match(await client.say('RCPT TO:<foo@x.example> NOTIFY=NEVER'), /^250/);
  t.match(await client.say('RCPT TO:<more@x.example>'), /^452 4\.5\.3/);
  t.match(await client.say('RCPT TO:<x@x.example> NOTIFY=NEVER,SUCCESS'), /^501 5\.5\.4/);
  t.match(await client.say('RCPT TO:<x@x.example> ORCPT=foo'), /^501 5\.5\.4/);
  t.match(await client.say('RCPT TO:<>'), /^501 5\.1\.3/);
  t.match(await client.say('RCPT TO:<bücher@x.example>'), /^553 5\.6\.7/);
  t.match(await client.say('RCPT TO:<@a.example,@b.example:x@x.example>'), /^553 5\.1\.3/);
  client.send(Buffer.concat([Buffer.from('RCPT TO:<b'), Buffer.from([0xfc]), Buffer.from('cher@x.example>\r\n')]));
  t.match(await client.reply(), /^501 5\.1\.3/, 'octets that are no UTF-8 would not survive');
  t.same(rig.desk.recipients, [
    { wire: '"odd > local"@XN--4ca.EE', dsn: { notify: ['SUCCESS', 'FAILURE'], orcpt: 'rfc822;Bob+x@x.example' } },
    { wire: 'Foo@x.example' }, { wire: 'foo@x.example', dsn: { notify: ['NEVER'] } },
  ]);
  t.match(rig.desk.senders[0], { ret: 'FULL', envid: 'QQ=1' });
  await client.say('RSET');
  t.match(await client.say('MAIL FROM:<ä@acme.example> SMTPUTF8'), /^250/);
  t.match(await client.say('RCPT TO:<bücher@x.example> ORCPT=utf-8;b\\x{FC}cher\\x{2B}ß@x.example'), /^250/);
  t.same(rig.desk.recipients.at(-1), { wire: 'bücher@x.example', dsn: { notify: [], orcpt: 'utf-8;bücher+ß@x.example' } }, 'RFC 6533 §3');
  for (const orcpt of ['utf-8;a\\x{0A}b', 'utf-8;\\x{D800}', 'utf-8;\\x{110000}', 'rfc822;bücher@x.example']) t.match(await client.say(`RCPT TO:<x@x.example> ORCPT=${orcpt}`), /^501 5\.5\.4/, orcpt);
  await client.say('DATA');
  client.send('x\r\n.\r\n');
  t.match(await client.reply(), /^250/);
  t.same(rig.desk.protocols, ['UTF8SMTPSA']);
});

t.test('order of commands', async (t) => {
  const rig = await open(t);
  const client = await enter(rig);
  t.equal(await client.say('MAIL FROM:<a@b.example>'), '503 5.5.1 send EHLO first');
  await client.say('EHLO x');
  t.equal(await client.say('MAIL FROM:<a@b.example>'), '530 5.7.0 authentication required');
  t.equal(await client.say('RCPT TO:<a@b.example>'), '503 5.5.1 bad sequence of commands');
  t.equal(await client.say('AUTH CRAM-MD5'), '504 5.5.4 authentication mechanism not offered');
  t.equal(await client.say('AUTH PLAIN !!!'), '501 5.5.2 credentials not understood');
  t.equal(await client.say('AUTH LOGIN'), '334 VXNlcm5hbWU6');
  t.equal(await client.say('*'), '501 5.7.0 authentication cancelled');
  t.equal(await client.say('AUTH PLAIN'), '334 ');
  t.equal(await client.say(Buffer.from('\0user\0wrong').toString('base64')), '535 5.7.8 authentication credentials invalid');
  await client.say('AUTH LOGIN');
  t.equal(await client.say(Buffer.from('user').toString('base64')), '334 UGFzc3dvcmQ6');
  t.equal(await client.say(Buffer.from('secret').toString('base64')), '235 2.7.0 authentication succeeded');
  t.match(await client.say(PLAIN), /^503 5\.5\.1/, 'one login a session');
  await client.say('MAIL FROM:<a@b.example>');
  t.match(await client.say('MAIL FROM:<a@b.example>'), /^503/);
  t.match(await client.say('DATA now'), /^501/);
});

t.test('DATA: dots, ends, and what must not pass', async (t) => {
  const rig = await open(t, { messageBytes: 5_000 });
  const good: readonly [string, string][] = [
    ['.\r\n', ''],
    ['a\r\n.\r\n', 'a\r\n'],
    ['..\r\n...\r\n.a\r\n.\r\n', '.\r\n..\r\na\r\n'],
    ['Subject: x\r\n\r\n..\r\n.\r\n', 'Subject: x\r\n\r\n.\r\n'],
    [`${'x'.repeat(998)}\r\n.\r\n`, `${'x'.repeat(998)}\r\n`],
    [`.${'.'.repeat(998)}\r\n.\r\n`, `${'.'.repeat(998)}\r\n`],
  ];
  const bad: readonly [string, RegExp][] = [
    ['a\n.\nb\r\n.\r\n', /^554 5\.6\.0 bare/], ['a\n.\r\nb\r\n.\r\n', /^554 5\.6\.0 bare/], ['a\r.\rb\r\n.\r\n', /^554 5\.6\.0 bare/],
    ['a\r\n.\rb\r\n.\r\n', /^554 5\.6\.0 bare/], ['a\r\n.\nb\r\n.\r\n', /^554 5\.6\.0 bare/], ['a\r\r\n.\r\r\nb\r\n.\r\n', /^554 5\.6\.0 bare/],
    ['a\r\n\0.\r\nb\r\n.\r\n', /^554 5\.6\.0 NUL/], [`${'x'.repeat(999)}\r\n.\r\n`, /^554 5\.6\.0 a line/], [`${'x\r\n'.repeat(2_000)}.\r\n`, /^552 5\.3\.4/],
  ];
  for (const pieces of [1, 2]) {
    const client = await login(rig);
    for (const [sent, got] of good) {
      if (pieces === 2 && sent.length > 100) continue;
      t.match(await send(client, sent, pieces), /^250 2\.0\.0 taken/, JSON.stringify(sent.slice(0, 40)));
      t.equal(rig.desk.messages.at(-1)?.toString(), got);
    }
    const before = rig.desk.messages.length;
    for (const [sent, expected] of bad) {
      if (pieces === 2 && sent.length > 100) continue;
      const smuggled = sent.replace('b\r\n', 'MAIL FROM:<evil@x.example>\r\n');
      t.match(await send(client, smuggled, pieces), expected, JSON.stringify(sent.slice(0, 40)));
      t.match(await client.say('NOOP'), /^250 2\.0\.0 nothing done/, 'one reply and no more');
    }
    t.equal(rig.desk.messages.length, before);
  }
  t.notOk(rig.desk.senders.some(({ from }) => from.startsWith('evil')));
});

t.test('the intake sees the same whatever the pieces', async (t) => {
  const plain = 'one\r\n..two\r\n\r\n...\r\n.x\r\nlast\r\n.\r\nNEXT';
  const want = 'one\r\n.two\r\n\r\n..\r\nx\r\nlast\r\n';
  for (let size = 1; size <= plain.length; size++) {
    const intake = new Intake(1_000);
    let end = -1;
    for (let at = 0; at < plain.length && end < 0; at += size) {
      const taken = intake.feed(Buffer.from(plain.slice(at, at + size)));
      if (taken >= 0) end = at + taken;
    }
    const got = intake.collected();
    if (plain.slice(end) !== 'NEXT' || got.kind !== 'message' || got.raw.toString() !== want) t.fail(`pieces of ${size}`);
  }
  const all = ['\r', '\n', '.', 'a'];
  const strings = (n: number): string[] => (n === 0 ? [''] : strings(n - 1).flatMap((s) => all.map((c) => s + c)));
  let wrong = 0;
  for (const text of strings(7)) {
    // What RFC 5321 says, slowly: lines end with CRLF, the first line that is `.` ends it.
    const whole = `${text}\r\n.\r\n`;
    const at = `\r\n${whole}`.indexOf('\r\n.\r\n') - 2;
    const body = `${whole.slice(0, Math.max(at, 0) + (at < 0 ? 0 : 2))}`;
    const stray = /\r(?!\n)|(?<!\r)\n/.test(body);
    const intake = new Intake(1_000);
    const end = intake.feed(Buffer.from(whole));
    const got = intake.collected();
    const unstuffed = body.replaceAll(/(^|\r\n)\./g, '$1');
    const right = end === body.length + 3 && (stray ? got.kind === 'refused' : got.kind === 'message' && got.raw.toString() === unstuffed);
    if (!right && wrong++ < 3) t.fail(JSON.stringify(whole));
  }
  t.equal(wrong, 0, '16384 strings of CR, LF, dot and a');
});

t.test('two megabytes of dotted lines are not slow', async (t) => {
  const time = (line: string): number => {
    const chunk = Buffer.from(line.repeat(Math.floor(65_536 / line.length)));
    const intake = new Intake(10_000_000);
    const started = performance.now();
    for (let i = 0; i < 32; i++) intake.feed(chunk);
    return performance.now() - started;
  };
  time('..\r\n');
  const [plain, dotted, strays] = [time(`${'x'.repeat(70)}\r\n`), time('..\r\n'), time('\n')];
  t.comment(`plain ${plain.toFixed(1)} ms, dotted ${dotted.toFixed(1)} ms, bare LF ${strays.toFixed(1)} ms`);
  t.ok(dotted < 1_000 && strays < 1_000, 'smtp-server alone needs more than three seconds');
});

t.test('commands: bare LF, bare CR, too long', async (t) => {
  const rig = await open(t);
  for (const line of ['NOOP\nNOOP\r\n', 'NOOP\rNOOP\r\n', `NOOP ${'x'.repeat(13_000)}\r\n`]) {
    const client = await login(rig);
    client.send(line);
    t.match(await client.reply(), /^421 4\.5\.2 a command must be one line/, JSON.stringify(line.slice(0, 20)));
    t.equal(await client.reply(), '');
  }
  const split = await login(rig);
  split.send('NOOP\r');
  await new Promise((resolve) => setTimeout(resolve, 20));
  split.send('\nNO');
  t.match(await split.reply(), /^250/);
  split.send('OP\r\n');
  t.match(await split.reply(), /^250/, 'a CRLF may come in two reads');
});

t.test('pipelining: one write, replies in order, a second message behind the first', async (t) => {
  const rig = await open(t);
  const client = await login(rig);
  client.send('MAIL FROM:<a@acme.example>\r\nRCPT TO:<no@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n');
  t.same([await client.reply(), await client.reply(), await client.reply(), await client.reply()].map((text) => text.slice(0, 3)), ['250', '550', '250', '354']);
  client.send('one\r\n.\r\nMAIL FROM:<a@acme.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n');
  t.same([await client.reply(), await client.reply(), await client.reply(), await client.reply()].map((text) => text.slice(0, 3)), ['250', '250', '250', '354']);
  client.send('two\r\n.\r\nQUIT\r\n');
  t.same([await client.reply(), await client.reply()].map((text) => text.slice(0, 3)), ['250', '221']);
  t.same(rig.desk.messages.map(String), ['one\r\n', 'two\r\n']);
});

t.test('a client that vanishes amid DATA leaves nothing behind', async (t) => {
  const rig = await open(t);
  const client = await login(rig);
  await startData(client);
  client.send('half a mess');
  await new Promise((resolve) => setTimeout(resolve, 20));
  client.close();
  await until(() => rig.desk.closed === 1);
  t.same([rig.desk.closed, rig.desk.resets, rig.desk.messages.length, rig.server.connections.size], [1, 1, 0, 0]);

  // Gone while the door decides about MAIL: reset comes after the answer, or what mail() made would stay.
  let answer: (refused: undefined) => void = () => undefined;
  rig.desk.onMail = () => new Promise((resolve) => { answer = resolve; });
  const hasty = await login(rig);
  hasty.send('MAIL FROM:<a@acme.example>\r\n');
  await until(() => rig.desk.senders.length === 2);
  hasty.close();
  await until(() => rig.desk.closed === 2);
  t.same([rig.desk.closed, rig.desk.resets], [2, 1]);
  answer(undefined);
  await new Promise(setImmediate);
  t.equal(rig.desk.resets, 2);
});

t.test('idle and DATA deadlines', async (t) => {
  const idle = await enter(await open(t, { idleTimeoutMs: 60 }));
  t.equal(await idle.reply(), '421 4.4.2 idle for too long, closing');
  const slow = await login(await open(t, { dataTimeoutMs: 100 }));
  await startData(slow);
  const drip = setInterval(() => slow.send('x'), 20);
  t.equal(await slow.reply(), '421 4.4.2 the message took too long');
  clearInterval(drip);
  const rig = await open(t, { idleTimeoutMs: 60 });
  rig.desk.onData = async () => new Promise((resolve) => void setTimeout(() => resolve(reply(250, '0.0', 'taken')), 150));
  t.match(await send(await login(rig), 'x\r\n.\r\n'), /^250/, 'a client that waits for us is not idle');
});

t.test('a handler that fails is a bug, answered 451', async (t) => {
  const rig = await open(t);
  const client = await login(rig);
  rig.desk.onData = () => Promise.reject(new Error('no room'));
  t.equal(await send(client, 'x\r\n.\r\n'), '451 4.3.0 local error, try again later');
  rig.desk.onData = async () => reply(250, '0.0', 'taken');
  t.match(await send(client, 'x\r\n.\r\n'), /^250/, 'and the session goes on');
  t.equal(rig.desk.bugs.length, 1);
});

t.test('handshakes under way are bounded', async (t) => {
  const rig = await open(t, { connectionsPerAddress: 3 });
  const sockets = Array.from({ length: 6 }, () => connectTcp({ port: rig.port, host: '127.0.0.1' }));
  const closed = await Promise.all(sockets.map((socket) => new Promise<boolean>((resolve) => {
    socket.once('close', () => resolve(true));
    socket.on('error', () => undefined);
    setTimeout(() => resolve(false), 300).unref();
  })));
  t.equal(closed.filter(Boolean).length, 3, 'the fourth and later are closed unheard');
  for (const socket of sockets) socket.destroy();
});

t.test('drain: transactions finish, then 421', async (t) => {
  const rig = await open(t);
  const [idle, busy] = [await login(rig), await login(rig)];
  await busy.say('MAIL FROM:<a@acme.example>');
  await busy.say('RCPT TO:<b@x.example>');
  const half = connectTcp({ port: rig.port, host: '127.0.0.1' });
  half.on('error', () => undefined);
  await new Promise((resolve) => setTimeout(resolve, 20));
  const drained = rig.server.drain();
  t.equal(await idle.reply(), '421 4.3.2 shutting down, try again later');
  idle.close();
  await busy.say('DATA');
  busy.send('x\r\n.\r\nMAIL FROM:<a@acme.example>\r\n');
  t.match(await busy.reply(), /^250/);
  t.match(await busy.reply(), /^421 4\.3\.2/);
  busy.close();
  await drained;
  t.equal(rig.desk.messages.length, 1);
  await t.rejects(Client.open(rig.port, 'tls'), /ECONNREFUSED/);

  const other = await open(t);
  const refused = await login(other);
  other.desk.onMail = () => new Promise((resolve) => void setTimeout(() => resolve(REPLIES.badSender), 50));
  refused.send('MAIL FROM:<a@acme.example>\r\n');
  await new Promise((resolve) => setTimeout(resolve, 20));
  const gone = other.server.drain();
  t.same([await refused.reply(), (await refused.reply()).slice(0, 3)], ['501 5.1.7 not a sender address', '421'], 'a refused transaction is none');
  refused.close();
  await gone;
});

t.test('a new certificate for new sessions; one that cannot be used changes nothing', async (t) => {
  const rig = await open(t);
  const before = await login(rig);
  t.throws(() => rig.server.setCertificate({ cert: Buffer.from('no'), key: Buffer.from('no') }));
  t.match(await (await login(rig)).say('NOOP'), /^250/, 'handshakes go on with the old one');
  rig.server.setCertificate(testCertificate());
  t.match(await (await login(rig)).say('NOOP'), /^250/);
  t.match(await before.say('NOOP'), /^250/);
});
