// A real Postfix takes what the relay delivers, and a real OpenDKIM checks the RSA signature there. The
// letters are counted in the mailbox. Both live in a folder of their own and are stopped at the end.
import t from 'tap';
import { execFile, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createTransport } from 'nodemailer';
import { publicRecord } from '../../daemon/sign/index.ts';
import { missingPrograms, until } from '../../scripts/load/postfix.ts';
import { eventually, freePorts, makeGrounds } from '../lib/daemon.ts';

const run = promisify(execFile);
const MESSAGES = 1_000;
const missing = process.getuid?.() === 0 ? missingPrograms() : ['root, which Postfix needs to start'];
const skip = missing.length === 0 ? false : `SKIPPED: no ${missing.join(', ')}; scripts/peers install brings the programs`;
if (skip !== false) t.comment(skip);
t.setTimeout(120_000);

t.test(`${MESSAGES} letters arrive in a mailbox, signed`, { skip }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-postfix-'));
  chmodSync(dir, 0o755);
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const { submissions: port } = await freePorts();
  const grounds = await makeGrounds(port);
  t.teardown(() => grounds.remove());
  for (const folder of ['etc', 'queue', 'data', 'mail', 'milter']) mkdirSync(join(dir, folder), { mode: 0o755 });
  const socket = join(dir, 'milter', 'sock');
  const rsa = publicRecord(readFileSync(join(grounds.root, 'dkim/demo-rsa.pem')));
  writeFileSync(join(dir, 'milter', 'dns'), `demo-rsa._domainkey.demo.example ${rsa}\n`);
  writeFileSync(join(dir, 'milter', 'conf'), [`Socket local:${socket}`, 'Mode v', 'UMask 000', 'Background no', 'AlwaysAddARHeader yes', 'AuthservID mx.example',
    'InternalHosts 192.0.2.1', `TestDNSData file:${join(dir, 'milter', 'dns')}`, ''].join('\n'));
  const milter = spawn('/usr/sbin/opendkim', ['-f', '-x', join(dir, 'milter', 'conf')], { stdio: 'ignore' });
  t.teardown(() => milter.kill());
  await until(() => existsSync(socket), 'opendkim did not open its socket');
  const uid = (await run('id', ['-u', 'postfix'])).stdout.trim();
  writeFileSync(join(dir, 'etc', 'main.cf'), ['compatibility_level = 3.6', `queue_directory = ${join(dir, 'queue')}`, `data_directory = ${join(dir, 'data')}`,
    'command_directory = /usr/sbin', 'daemon_directory = /usr/lib/postfix/sbin', 'mail_owner = postfix', 'setgid_group = postdrop', 'myhostname = mx.example', 'mydestination =',
    'inet_interfaces = 127.0.0.1', 'inet_protocols = ipv4', 'mynetworks = 192.0.2.1', 'smtpd_relay_restrictions = reject_unauth_destination', 'alias_maps =', 'alias_database =',
    'virtual_mailbox_domains = example.com', 'virtual_mailbox_maps = static:box/', `virtual_mailbox_base = ${join(dir, 'mail')}`, `virtual_uid_maps = static:${uid}`, `virtual_gid_maps = static:${uid}`, 'virtual_minimum_uid = 1',
    `smtpd_milters = unix:${socket}`, 'milter_default_action = tempfail', `maillog_file = ${join(dir, 'log')}`, 'maillog_file_prefixes = /tmp, /var', 'smtpd_client_connection_count_limit = 0', ''].join('\n'));
  const services = ['pickup unix n - n 60 1 pickup', 'cleanup unix n - n - 0 cleanup', 'qmgr unix n - n 300 1 qmgr', 'rewrite unix - - n - - trivial-rewrite', 'bounce unix - - n - 0 bounce',
    'defer unix - - n - 0 bounce', 'trace unix - - n - 0 bounce', 'proxymap unix - - n - - proxymap', 'error unix - - n - - error', 'retry unix - - n - - error', 'virtual unix - n n - - virtual',
    'anvil unix - - n - 1 anvil', 'showq unix n - n - - showq', 'flush unix n - n 1000? 0 flush', 'tlsmgr unix - - n 1000? 1 tlsmgr', 'postlog unix-dgram n - n - 1 postlogd'];
  writeFileSync(join(dir, 'etc', 'master.cf'), [`127.0.0.1:${port} inet n - n - - smtpd`, ...services, ''].join('\n'));
  await run('chown', ['-R', 'postfix', join(dir, 'data'), join(dir, 'mail')]);
  await run('/usr/sbin/postfix', ['-c', join(dir, 'etc'), 'start']);
  t.teardown(async () => { await run('/usr/sbin/postfix', ['-c', join(dir, 'etc'), 'abort']); });

  await grounds.consent({ 'reader@example.com': 'individual' });
  const daemon = await grounds.serve();
  t.teardown(() => daemon.stop());
  const transport = createTransport({ pool: true, maxConnections: 4, maxMessages: 1_000, host: '127.0.0.1', port: grounds.ports.submissions, secure: true, auth: { user: 'demo-app', pass: grounds.secret }, tls: { rejectUnauthorized: false } });
  await Promise.all(Array.from({ length: MESSAGES }, (_, i) => transport.sendMail({ from: 'news@demo.example', to: 'reader@example.com', subject: `Letter ${i}`, html: `<p>Nr. ${i} für dich: <a href="https://demo.example/${i}">hier</a></p>` })));
  transport.close();
  const box = join(dir, 'mail', 'box', 'new');
  const count = (): number => (existsSync(box) ? readdirSync(box).length : 0);
  await eventually(() => count() >= MESSAGES, 60_000);
  t.equal(count(), MESSAGES, 'all in the mailbox, each once');
  const letters = count() === 0 ? [] : readdirSync(box).map((file) => readFileSync(join(box, file), 'utf8'));
  const passed = letters.filter((letter) => /^Authentication-Results: mx\.example;[^]*?dkim=pass[^]*?header\.d=demo\.example/m.test(letter));
  if (passed.length < MESSAGES) t.comment(letters[0]?.slice(0, 1_500) ?? readFileSync(join(dir, 'log'), 'utf8').slice(-1_500));
  t.equal(passed.length, MESSAGES, 'OpenDKIM passes each signature');
  t.equal(new Set(letters.map((letter) => /^Subject: Letter (\d+)/m.exec(letter)?.[1])).size, MESSAGES);
});
