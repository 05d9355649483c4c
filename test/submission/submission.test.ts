// The door as a tenant's application meets it: logins, rates, transactions, certificates, and the clients
// people really use.
import { execFile, spawnSync } from 'node:child_process';
import { createServer } from 'node:net';
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTransport } from 'nodemailer';
import t from 'tap';
import { isId } from '../../daemon/runtime/index.ts';
import { makeNotice, receivedField } from '../../daemon/submission/index.ts';
import { Logins, secretMatches } from '../../daemon/submission/logins.ts';
import { Client } from '../lib/dialog.ts';
import { SECRET, credential, openRoom, type Room } from './room.ts';

const plain = (username: string, secret: string): string => `AUTH PLAIN ${Buffer.from(`\0${username}\0${secret}`).toString('base64')}`;

/** A session that has said EHLO; closed with the room. */
async function session(room: Room): Promise<Client> {
  const client = await Client.open(room.tls, 'tls');
  clients.push(client);
  if ((await client.reply()).startsWith('220')) await client.say('EHLO app.acme.example');
  return client;
}
const clients: Client[] = [];

function use(t: { teardown(run: () => Promise<void>): void }, room: Room): Room {
  t.teardown(async () => {
    for (const client of clients.splice(0)) client.close();
    await room.close();
  });
  return room;
}

async function send(client: Client, body = 'Subject: x\r\n\r\nhello\r\n'): Promise<string> {
  client.send('MAIL FROM:<news@acme.example>\r\nRCPT TO:<bob@else.example>\r\nDATA\r\n');
  for (let i = 0; i < 3; i++) {
    const answer = await client.reply();
    if (!/^[23]/.test(answer)) return answer;
  }
  client.send(`${body}.\r\n`);
  return client.reply();
}

t.test('a message: what the hooks see, and nothing of the client in Received', async (t) => {
  const room = use(t, await openRoom());
  const client = await session(room);
  t.match(await client.say(plain('acme-news', SECRET)), /^235/);
  t.match(await client.say('MAIL FROM:<News@ACME.example> BODY=8BITMIME RET=HDRS ENVID=abc'), /^250/);
  t.match(await client.say('RCPT TO:<no@else.example>'), /^550 5\.7\.1/);
  t.match(await client.say('RCPT TO:<Bob@Else.example> NOTIFY=FAILURE'), /^250/);
  await client.say('DATA');
  client.send('Subject: x\r\n\r\n..\r\n.\r\n');
  const said = await client.reply();
  const [submitted] = room.hooks.submitted;
  if (submitted === undefined) throw new Error('nothing was submitted');
  t.equal(said, `250 2.0.0 queued as ${submitted.id}`);
  t.ok(isId(submitted.id));
  t.equal(room.hooks.contexts[0]?.id, submitted.id);
  t.match(submitted, {
    origin: { tenant: 'acme', stream: 'news', credential: 'acme-news', kind: 'relay' }, protocol: 'ESMTPSA',
    envelope: { mailFrom: 'News@ACME.example', smtpUtf8: false, body: '8BITMIME', ret: 'HDRS', envid: 'abc', recipients: [{ wire: 'Bob@Else.example', dsn: { notify: ['FAILURE'] } }] },
  });
  t.equal(submitted.raw.toString(), 'Subject: x\r\n\r\n.\r\n');
  t.equal(room.hooks.resets, 1);
  const field = receivedField(submitted, 'mx.acme.example');
  t.match(field, /^Received: by mx\.acme\.example with ESMTPSA id [0-9A-Z]{26};\r\n\t\w{3}, \d\d \w{3} \d{4} [\d:]{8} \+0000\r\n$/);
  for (const secret of ['127.0.0.1', 'app.acme.example', 'acme-news', 'Else', 'Bob']) t.notOk(field.includes(secret), secret);
  await send(client);
  t.not(room.hooks.submitted[1]?.id, submitted.id, 'a new id for each transaction');
  const notice = makeNotice({ id: submitted.id, tenant: 'acme', stream: 'news', to: 'ops@acme.example', raw: Buffer.from('x'), at: 0 });
  t.equal(receivedField(notice, 'h.example'), `Received: by h.example id ${submitted.id};\r\n\tThu, 01 Jan 1970 00:00:00 +0000\r\n`);
});

t.test('T26: unknown and wrong are the same words after the same wait and the same work; later each time, then unheard', async (t) => {
  const room = use(t, await openRoom({ authFailures: 3 }));
  const client = await session(room);
  const wrong = await client.say(plain('acme-news', 'guess'));
  t.equal(wrong, '535 5.7.8 authentication credentials invalid');
  t.equal(await client.say(plain('nobody', 'guess')), wrong);
  t.equal(await client.say(plain('nobody', SECRET)), wrong, 'the right secret of another account');
  t.same(room.delays, [500, 1_000, 2_000], 'whichever of them it was');
  t.match(await client.say(plain('acme-news', SECRET)), /^454 4\.7\.0/, 'three failures from this address');
  room.advance(600_001);
  t.match(await client.say(plain('acme-news', SECRET)), /^235/, 'ten minutes later');
  t.equal((await room.metrics.authFailures.get()).values[0]?.value, 3);
});

t.test('logins: the arithmetic', async (t) => {
  let now = 0;
  const logins = new Logins({ now: () => now, after: () => () => undefined });
  t.same(Array.from({ length: 7 }, () => logins.failed('192.0.2.1', 'victim')), [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
  t.ok(logins.blocked('192.0.2.1', 'someone', 5), 'the address');
  t.ok(logins.blocked('192.0.2.2', 'victim', 5), 'the account, from anywhere');
  t.equal(logins.failed('198.51.100.77', 'x'.repeat(9_000)), 500);
  t.equal(logins.failed('198.51.100.78', 'x'.repeat(9_000)), 500, 'an endless name is not remembered');
  logins.succeeded('192.0.2.3', 'friend');
  for (let i = 0; i < 9; i++) logins.failed(`198.51.100.${i}`, 'friend');
  t.ok(logins.blocked('192.0.2.9', 'friend', 5));
  t.notOk(logins.blocked('192.0.2.3', 'friend', 5), 'guesses from elsewhere do not shut out its owner');
  now = 600_000;
  t.notOk(logins.blocked('192.0.2.1', 'victim', 5));
  for (let i = 0; i < 60_000; i++) logins.failed(`10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, 'x');
  t.ok(secretMatches(credential(), SECRET));
  t.notOk(secretMatches(credential(), `${SECRET}x`));
  t.notOk(secretMatches(undefined, ''));
});

t.test('a suspended tenant, a credential taken away, an expelled session', async (t) => {
  const room = use(t, await openRoom());
  const [client, other] = [await session(room), await session(room)];
  await client.say(plain('acme-news', SECRET));
  await other.say(plain('other', SECRET));
  room.hooks.suspendedTenants.add('acme');
  t.match(await (await session(room)).say(plain('acme-news', SECRET)), /^535 5\.7\.8/);
  room.submission.expel('acme');
  t.equal(await client.reply(), '421 4.7.0 access suspended');
  t.match(await other.say('NOOP'), /^250/, 'the other tenant notices nothing');
  room.change([credential({ username: 'other', tenant: 'other', secretHash: Buffer.alloc(32) })]);
  t.equal(await other.say('MAIL FROM:<x@acme.example>'), '421 4.7.0 access suspended', 'a changed secret ends what the old one opened');
});

t.test('rates, per credential and across sessions', async (t) => {
  const room = use(t, await openRoom({}, [credential({ rate: { count: 60, perMs: 60_000, burst: 3 } })]));
  const [one, two] = [await session(room), await session(room)];
  await one.say(plain('acme-news', SECRET));
  await two.say(plain('acme-news', SECRET));
  for (const client of [one, two, one]) t.match(await send(client), /^250/);
  t.equal(await two.say('MAIL FROM:<news@acme.example>'), '451 4.7.1 this credential may send again in 1 s');
  room.advance(1_000);
  t.match(await two.say('MAIL FROM:<news@acme.example>'), /^250/);
});

t.test('connections, all told and from one address', async (t) => {
  const room = use(t, await openRoom({ connections: 3, connectionsPerAddress: 2 }));
  const first = await session(room);
  await session(room);
  const third = await Client.open(room.tls, 'tls');
  clients.push(third);
  t.equal(await third.reply(), '421 4.7.0 too many sessions from your address, try again later');
  t.equal((await room.metrics.sessions.get()).values[0]?.value, 2);
  await first.say('QUIT');
  first.close();
  await new Promise((resolve) => setTimeout(resolve, 30));
  t.match(await (await session(room)).say('NOOP'), /^250/, 'a place is free again');
});

t.test('a port that is taken names its setting', async (t) => {
  const squatter = createServer().listen(0, '127.0.0.1');
  await new Promise<void>((resolve) => void squatter.once('listening', resolve));
  t.teardown(() => void squatter.close());
  const address = squatter.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  await t.rejects(openRoom({}, [], { submission: [{ host: '127.0.0.1', port }] }), { code: 'E_IN_USE', message: `port ${port} on 127.0.0.1 is taken; change listeners.submission in postern.yaml` });
  const both = use(t, await openRoom({}, [credential()], { submissions: [{ host: '127.0.0.1', port: 0 }, { host: '127.0.0.2', port: 0 }], submission: [] }));
  t.equal(both.submission.ports.submissions.length, 2);
  t.same(both.submission.ports.submission, []);
});

t.test('certificates: renewed on the fly, a broken pair changes nothing', async (t) => {
  const room = use(t, await openRoom());
  let stamp = 2_000_000_000;
  const write = (cert: string | Buffer): void => {
    writeFileSync(room.certificateFile, cert);
    utimesSync(room.certificateFile, stamp, stamp);
    stamp += 10;
  };
  write('not a certificate');
  room.advance(30_000);
  t.ok(room.logged.some((line) => line.startsWith('the certificate cannot be used')));
  t.match(await (await session(room)).say('NOOP'), /^250/);
  const { testCertificate } = await import('../lib/mx.ts');
  write(testCertificate().cert);
  room.advance(30_000);
  t.ok(room.logged.some((line) => line.startsWith('certificate read again')));
  t.match(await (await session(room)).say('NOOP'), /^250/);
  await t.rejects(openRoom({}, [], { submissions: [], submission: [] }).then(async (empty) => {
    writeFileSync(empty.keyFile, 'nonsense');
    empty.submission.renewCertificate();
    t.ok(empty.logged.some((line) => line.includes('cannot be used')));
    await empty.close();
    throw new Error('done');
  }), /done/);
});

const run = (command: string, args: readonly string[], input = ''): Promise<{ code: number; text: string }> => new Promise((resolve) => {
  const child = execFile(command, [...args], { timeout: 15_000 }, (error, out, err) => resolve({ code: error === null ? 0 : 1, text: `${out}${err}` }));
  child.stdin?.end(input);
});

/** Why a client's test is skipped, or false when the program is here. */
function needs(program: string): string | false {
  return spawnSync(program, ['--version']).error === undefined ? false : `needs ${program}`;
}

t.test('clients: nodemailer, swaks, msmtp, curl, Python', async (t) => {
  const room = use(t, await openRoom());
  const auth = { user: 'acme-news', pass: SECRET };
  const letter = { from: 'News <news@acme.example>', to: 'bob@else.example', subject: 'Grüße', text: '.\n..\nhello' };
  for (const [port, secure] of [[room.tls, true], [room.starttls, false]] as const) {
    const transport = createTransport({ host: '127.0.0.1', port, secure, requireTLS: true, auth, tls: { rejectUnauthorized: false }, pool: true, maxConnections: 1 });
    for (let i = 0; i < 3; i++) t.match((await transport.sendMail(letter) as { response: string }).response, /^250 2\.0\.0 queued as/);
    await t.rejects(transport.sendMail({ ...letter, to: 'no@else.example' }), /550 5\.7\.1 no consent on record/);
    transport.close();
  }
  t.match(room.hooks.submitted.at(-1)?.raw.toString(), /\r\n\.\r\n\.\.\r\nhello/);
  const before = (): number => room.hooks.submitted.length;
  const noTls = spawnSync('perl', ['-MNet::SSLeay', '-e', '1']).status !== 0;
  await t.test('swaks', { skip: needs('swaks') || (noTls && 'needs libnet-ssleay-perl') }, async (t) => {
    let count = before();
    const swaks = ['--server', '127.0.0.1', '--from', 'news@acme.example', '--to', 'bob@else.example', '--auth-user', 'acme-news', '--auth-password', SECRET];
    for (const [more, mechanism] of [[['--port', `${room.tls}`, '--tls-on-connect'], 'PLAIN'], [['--port', `${room.starttls}`, '--tls'], 'LOGIN']] as const) {
      const { code, text } = await run('/usr/bin/swaks', [...swaks, ...more, '--auth', mechanism]);
      t.equal(code, 0, `swaks ${mechanism}: ${text.slice(-300)}`);
      count += 1;
    }
    t.equal(before(), count);
  });
  await t.test('msmtp', { skip: needs('msmtp') }, async (t) => {
    const count = before();
    const dir = mkdtempSync(join(tmpdir(), 'postern-msmtp-'));
    t.teardown(() => rmSync(dir, { recursive: true }));
    writeFileSync(join(dir, 'rc'), `account default\nhost 127.0.0.1\nport ${room.starttls}\ntls on\ntls_starttls on\ntls_certcheck off\nauth plain\nuser acme-news\npassword ${SECRET}\nfrom news@acme.example\n`, { mode: 0o600 });
    const { code, text } = await run('/usr/bin/msmtp', ['-C', join(dir, 'rc'), '--dsn-notify=failure', 'bob@else.example'], 'Subject: x\n\n.\nhello\n');
    t.equal(code, 0, `msmtp ${text}`);
    t.equal(before() - count, 1);
    t.match(room.hooks.submitted.at(-1)?.envelope.recipients, [{ dsn: { notify: ['FAILURE'] } }]);
  });
  await t.test('curl', { skip: needs('curl') }, async (t) => {
    const count = before();
    const curl = await run('curl', ['-sS', '-k', '--ssl-reqd', '--url', `smtp://127.0.0.1:${room.starttls}`, '--user', `acme-news:${SECRET}`, '--mail-from', 'news@acme.example', '--mail-rcpt', 'bob@else.example', '-T', '-'], 'Subject: z\r\n\r\n.hi\r\n');
    t.equal(curl.code, 0, `curl ${curl.text}`);
    t.equal(before() - count, 1);
    t.match(room.hooks.submitted.at(-1)?.raw.toString(), /\r\n\.hi\r\n$/);
  });
  await t.test('smtplib', { skip: needs('python3') }, async (t) => {
    const count = before();
    const python = await run('python3', ['-c', `
import smtplib, ssl
c = ssl._create_unverified_context()
s = smtplib.SMTP('127.0.0.1', ${room.starttls}); s.starttls(context=c); s.login('acme-news', '${SECRET}')
print(s.sendmail('news@acme.example', ['bob@else.example', 'no@else.example'], 'Subject: x\\r\\n\\r\\n.hi\\r\\n')); s.quit()
with smtplib.SMTP_SSL('127.0.0.1', ${room.tls}, context=c) as s:
  s.login('acme-news', '${SECRET}'); s.sendmail('', ['bob@else.example'], 'Subject: y\\r\\n\\r\\nhi\\r\\n')
`]);
    t.equal(python.code, 0, python.text);
    t.match(python.text, /no@else\.example.*550/);
    t.equal(before() - count, 2);
  });
});
