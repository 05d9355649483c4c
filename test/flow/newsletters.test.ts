// Real newsletters through the whole relay, submitted by clients people use: what arrives is what was
// submitted, but for the planned edits. The edits are undone without the relay's own code: links by
// following them, the pixel and added fields by their look. Both signatures hold.
import t from 'tap';
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { get } from 'node:http';
import { join, resolve } from 'node:path';
import { dkimVerify } from 'mailauth/lib/dkim/verify.js';
import MailComposer from 'nodemailer/lib/mail-composer/index.js';
import { publicRecord } from '../../daemon/sign/index.ts';
import { CHECKOUT, eventually, serveDaemon } from '../lib/daemon.ts';

const LETTERS = resolve(CHECKOUT, '../shared/corpus/newsletters');
const TRACKED = 'tracked@example.com';
const PLAIN = 'plain@example.com';
const ENCODINGS = ['quoted-printable', 'base64', '8bit'] as const;
type TestOf = Pick<typeof t, 'equal' | 'same' | 'ok' | 'match' | 'fail'>;
const skip = existsSync(LETTERS) ? false : `SKIPPED: no newsletters in ${LETTERS}`;
if (skip !== false) t.comment(skip);
t.setTimeout(60_000);

const { mx, grounds } = await serveDaemon(t, { [TRACKED]: 'individual', [PLAIN]: 'none' });

t.test('nodemailer: each newsletter in each encoding', { skip }, async (t) => {
  for (const name of readdirSync(LETTERS).filter((file) => file.endsWith('.html'))) {
    const html = readFileSync(join(LETTERS, name), 'utf8');
    for (const encoding of ENCODINGS) await roundTrip(t, `${name} ${encoding}`, await build(html, encoding), submitByNodemailer);
  }
});

const has = (program: string): boolean => {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false; // not installed, or not able to run: the test says so
  }
};

const python = `
import smtplib, ssl, sys
port, secret, sender, to = sys.argv[1:5]
with smtplib.SMTP('127.0.0.1', int(port)) as client:
    client.starttls(context=ssl._create_unverified_context())
    client.login('demo-app', secret)
    client.sendmail(sender, [to], sys.stdin.buffer.read())
`;
for (const [client, submit] of [
  ['swaks', (raw: Buffer, to: string) => pipe('swaks', ['--server', '127.0.0.1', '--port', String(grounds.ports.submission), '--tls', '--auth-user', 'demo-app', '--auth-password', grounds.secret, '--from', 'news@demo.example', '--to', to, '--data', '-', '--silent', '2', '--no-data-fixup'], `${raw.toString('latin1').replaceAll(/^\./gm, '..')}.\r\n`)],
  ['python3', (raw: Buffer, to: string) => pipe('python3', ['-c', python, String(grounds.ports.submission), grounds.secret, 'news@demo.example', to], raw)],
] as const) {
  t.test(client, { skip: skip === false && !has(client) ? `SKIPPED: ${client} is not installed` : skip }, async (t) => {
    const name = readdirSync(LETTERS).find((file) => file.endsWith('.html')) ?? '';
    await roundTrip(t, `${client} ${name}`, await build(readFileSync(join(LETTERS, name), 'utf8'), 'quoted-printable'), submit);
  });
}

function pipe(program: string, args: string[], input: Buffer | string): Promise<void> {
  return new Promise((done, fail) => {
    const child = execFile(program, args, (error, stdout, stderr) => (error === null ? done() : fail(new Error(`${program}: ${stdout}${stderr}`))));
    child.stdin?.end(typeof input === 'string' ? Buffer.from(input, 'latin1') : input);
  });
}

async function submitByNodemailer(raw: Buffer, to: string): Promise<void> {
  const { id, reply } = await grounds.send({ envelope: { from: 'news@demo.example', to }, raw });
  if (id === '') throw new Error(reply);
}

async function build(html: string, encoding: (typeof ENCODINGS)[number]): Promise<Buffer> {
  // 8bit goes with an attachment that must pass as it is; nodemailer never sends 8bit by itself.
  if (encoding === '8bit') {
    const attachment = Buffer.from([0, 255, 10, 13, 46]).toString('base64');
    return Buffer.from([
      'From: News <news@demo.example>', 'To: readers@demo.example', 'Subject: The newsletter', 'Date: Mon, 02 Nov 2026 08:00:00 +0000', 'Message-ID: <8bit@demo.example>',
      'MIME-Version: 1.0', 'Content-Type: multipart/mixed; boundary="=_8"', '', '--=_8', 'Content-Type: text/html; charset=utf-8', 'Content-Transfer-Encoding: 8bit', '',
      lines(html).replaceAll(/\r\n|\r|\n/g, '\r\n'), '--=_8', 'Content-Type: application/octet-stream', 'Content-Disposition: attachment; filename=a.bin', 'Content-Transfer-Encoding: base64', '',
      attachment, '--=_8--', '',
    ].join('\r\n'));
  }
  const mail = new MailComposer({
    from: 'News <news@demo.example>', to: 'readers@demo.example', subject: 'The newsletter', text: 'The text: https://demo.example/text', html, textEncoding: encoding,
  } as never);
  return Buffer.from((await mail.compile().build()).toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n').replace(/(?:\r\n)*$/, '\r\n'), 'latin1');
}

/** Folded where HTML has a space, for no line may pass 998 octets. */
const lines = (html: string): string => html.replaceAll(/[^\r\n]{900,}/g, (line) => line.replaceAll(/(.{1,700}) /gu, '$1\n'));

async function roundTrip(t: TestOf, label: string, raw: Buffer, submit: (raw: Buffer, to: string) => Promise<void>): Promise<void> {
  mx.messages.length = 0;
  for (const to of [TRACKED, PLAIN]) await submit(raw, to);
  if (!await eventually(() => mx.messages.length === 2)) return void t.fail(`${label}: ${mx.messages.length} of 2 arrived`);
  for (const { to, body } of mx.messages) {
    const tracked = to.includes(TRACKED);
    const records = await verdicts(body);
    t.same(records, ['pass', 'pass'], `${label}: both signatures`);
    const copy = split(body);
    const sent = split(raw);
    t.equal(withoutAdded(copy.header), withoutAdded(sent.header), `${label}: the submitted fields`);
    if (!tracked) t.ok(copy.body === sent.body, `${label}: the untracked copy octet for octet`);
    else same(t, await undone(copy.body), entities(plainText(sent.body)), `${label}: the tracked copy, edits undone`);
    if (tracked) t.match(plainText(copy.body), /\/o\//, `${label}: a pixel`);
  }
}

const split = (raw: Buffer): { header: string; body: string } => {
  const at = raw.indexOf('\r\n\r\n');
  return { header: raw.toString('latin1', 0, at + 2), body: raw.toString('latin1', at + 4) };
};

const ADDED = /^(?:DKIM-Signature|Received|List-Unsubscribe|List-Unsubscribe-Post|List-Help|List-Id|Feedback-ID):.*\r\n(?:[ \t].*\r\n)*/gim;
const withoutAdded = (header: string): string => header.replaceAll(ADDED, '');

/** Transfer encodings taken off: what stands in the parts, line folding aside. */
function plainText(body: string): string {
  return body.replaceAll(/(Content-Transfer-Encoding: (base64|quoted-printable)\r\n(?:[^\r\n]+\r\n)*\r\n)([^]*?)(?=\r\n-{2,4}_NmP)/gi, (_all, head: string, kind: string, text: string) =>
    head + (kind.toLowerCase() === 'base64' ? Buffer.from(text, 'base64').toString('latin1')
      : text.replaceAll('=\r\n', '').replaceAll(/=([0-9A-F]{2})/gi, (_octet, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))));
}

/** The copy with links followed to where they lead, and without the pixel. */
async function undone(body: string): Promise<string> {
  const host = `http://127.0.0.1:${grounds.ports.pages}`;
  let text = plainText(body).replaceAll(new RegExp(`<img[^>]*${host.replaceAll('.', '\\.')}/o/[^>]*>`, 'g'), '');
  for (const url of new Set(text.match(new RegExp(`${host}/c/[\\w.~/-]+`, 'g')) ?? [])) {
    const location = await follow(url);
    text = text.replaceAll(url, () => location);
  }
  return entities(text);
}

/** What the browser sees in a link; both sides are compared so. */
const entities = (text: string): string => text.replaceAll('&amp;', '&');

/** Long texts: shows where they part. */
function same(t: TestOf, got: string, expected: string, label: string): void {
  let at = 0;
  while (at < got.length && got[at] === expected[at]) at++;
  t.equal(got === expected ? '' : got.slice(at - 60, at + 100), got === expected ? '' : expected.slice(at - 60, at + 100), label);
}

const follow = (url: string): Promise<string> => new Promise((done, fail) => {
  get(url, (answer) => {
    answer.resume();
    done(answer.headers.location ?? `${answer.statusCode}`);
  }).on('error', fail);
});

async function verdicts(message: Buffer): Promise<string[]> {
  const { results } = await dkimVerify(message, {
    resolver: async (name: string) => {
      const file = join(grounds.root, 'dkim', `${name.split('.')[0]}.pem`);
      return [publicRecord(readFileSync(file)).match(/.{1,255}/g) ?? []];
    },
  });
  return (results as { status: { result: string } }[]).map(({ status }) => status.result);
}
