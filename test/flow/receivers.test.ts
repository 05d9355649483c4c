// A thousand letters each to a real Exim and a real OpenSMTPD (Postfix, with OpenDKIM, has a file of its own):
// counted in the receivers' own logs and in their mailboxes, each once and whole. They live in a folder of
// their own, know one domain and are stopped at the end.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTransport } from 'nodemailer';
import t from 'tap';
import { eventually, freePorts, makeGrounds, pause } from '../lib/daemon.ts';

const MESSAGES = 1_000;
const FOLDER = '/opt/postern-peers/usr/sbin';
t.setTimeout(120_000);

interface Receiver {
  readonly name: string;
  readonly program: string;
  /** The account its mailbox belongs to. */
  readonly user: string;
  /** Writes what it reads. @returns its arguments, and those of setpriv where it is not started by root */
  configure(dir: string, port: number): { readonly args: readonly string[]; readonly as?: readonly string[]; readonly log: string };
  /** What its log says of a delivery, and of none. */
  readonly delivered: RegExp;
  readonly trouble: RegExp;
}

const RECEIVERS: readonly Receiver[] = [
  {
    name: 'Exim', program: 'exim4', user: 'Debian-exim', delivered: / => reader <reader@example\.com> R=box T=box$/gm, trouble: / (?:\*\*|==|Frozen|rejected) /,
    configure(dir, port) {
      writeFileSync(join(dir, 'conf'), `primary_hostname = mx.example
spool_directory = ${dir}/spool
log_file_path = ${dir}/log/%s
pid_file_path = ${dir}/log/pid
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = ${port}
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
deliver_drop_privilege
acl_smtp_rcpt = accept
acl_smtp_data = accept
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
begin routers
box:
  driver = accept
  domains = example.com
  transport = box
begin transports
box:
  driver = appendfile
  maildir_format
  directory = ${dir}/mail/box
  create_directory
`);
      return { args: ['-C', join(dir, 'conf'), '-bdf', '-q1m'], as: ['--reuid', this.user, '--regid', this.user, '--clear-groups'], log: 'log/main' };
    },
  },
  {
    name: 'OpenSMTPD', program: 'smtpd', user: 'nobody', delivered: / mda delivery .* rcpt=<reader@example\.com> .*result=Ok stat=Delivered$/gm, 
    // It takes a hundred messages a session and tells so at the next MAIL.
    trouble: /result=(?:TempFail|PermFail)|failed-command (?!.*Too many messages sent)/,
    configure(dir, port) {
      writeFileSync(join(dir, 'conf'), `listen on 127.0.0.1 port ${port} hostname mx.example
table people { "@" = "nobody" }
smtp max-message-size 1M
action "box" maildir "${dir}/mail/box" virtual <people>
match from any for domain "example.com" action "box"
`);
      return { args: ['-d', '-f', join(dir, 'conf')], log: 'out' };
    },
  },
];

const openTo = (port: number): Promise<boolean> => new Promise((done) => {
  const socket = connect({ port, host: '127.0.0.1' }, () => done(socket.destroy() === socket)).on('error', () => done(false));
});

for (const receiver of RECEIVERS) {
  const program = join(FOLDER, receiver.program);
  const skip = process.getuid?.() !== 0 ? `SKIPPED: ${receiver.name} is started by root` : existsSync(program) ? false : `SKIPPED: no ${program}; scripts/peers install brings it`;
  if (skip !== false) t.comment(skip);
  t.test(`${MESSAGES} letters to ${receiver.name}`, { skip }, async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'postern-mta-'));
    chmodSync(dir, 0o755);
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    for (const folder of ['spool', 'log', 'mail']) mkdirSync(join(dir, folder));
    const { submissions: port } = await freePorts();
    const { args, as, log } = receiver.configure(dir, port);
    spawnSync('chown', ['-R', receiver.user, ...['spool', 'log', 'mail'].map((folder) => join(dir, folder))]);
    const child = spawn('sh', ['-c', `exec ${as === undefined ? '' : `setpriv ${as.join(' ')} `}${program} ${args.join(' ')} >${join(dir, 'out')} 2>&1`], { stdio: 'ignore' });
    t.teardown(() => stop(child));
    for (let i = 0; i < 200 && !(await openTo(port)); i++) await pause(50);

    const grounds = await makeGrounds(port);
    t.teardown(() => grounds.remove());
    await grounds.consent({ 'reader@example.com': 'individual' });
    const daemon = await grounds.serve();
    t.teardown(() => daemon.stop());
    const transport = createTransport({ pool: true, maxConnections: 4, maxMessages: 10_000, host: '127.0.0.1', port: grounds.ports.submissions, secure: true, auth: { user: 'demo-app', pass: grounds.secret }, tls: { rejectUnauthorized: false } });
    await Promise.all(Array.from({ length: MESSAGES }, (_, i) => transport.sendMail({ from: 'news@demo.example', to: 'reader@example.com', subject: `Letter ${i}`, text: `.${i}\n..\n.`, html: `<p>Nr. ${i}: <a href="https://demo.example/${i}">hier</a></p>` })));
    transport.close();
    const box = join(dir, 'mail/box/new');
    const count = (): number => (existsSync(box) ? readdirSync(box).length : 0);
    await eventually(() => count() >= MESSAGES, 60_000);
    const said = readFileSync(join(dir, log), 'utf8');
    if (count() < MESSAGES) t.comment(said.slice(-1_500));
    t.equal(count(), MESSAGES, 'all in the mailbox, each once');
    t.ok(await eventually(() => (readFileSync(join(dir, log), 'utf8').match(receiver.delivered) ?? []).length === MESSAGES), 'and in its log');
    t.notMatch(said, receiver.trouble);
    const letters = count() === 0 ? [] : readdirSync(box).map((file) => readFileSync(join(box, file), 'latin1').replaceAll('\r\n', '\n'));
    t.equal(new Set(letters.map((letter) => /^Subject: Letter (\d+)$/m.exec(letter)?.[1])).size, MESSAGES);
    t.equal(letters.filter((letter) => /^DKIM-Signature: /m.test(letter) && /\n\.\d+\n\.\.\n\.\n/.test(letter) && /\/c\/[\w-]/.test(letter)).length, MESSAGES, 'signed, whole, with lines of dots, and rewritten');
  });
}

async function stop(child: ChildProcess): Promise<void> {
  const gone = new Promise((done) => child.once('exit', done));
  child.kill();
  await gone;
}
