// A private Postfix with OpenDKIM behind a milter on a unix socket (on TCP it stalls in small writes and
// makes no fair baseline): RSA-2048, relaxed/simple, everything relayed to one sink. It lives in a folder
// of its own, listens on loopback only and is stopped by stop().
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A running peer. */
export interface Peer {
  readonly port: number;
  /** CPU seconds of all its processes so far. */
  cpuSeconds(): number;
  stop(): Promise<void>;
}

/** What must be installed; empty when the peer can run. */
export function missingPrograms(): readonly string[] {
  return ['/usr/sbin/postfix', '/usr/sbin/smtp-sink', '/usr/sbin/opendkim'].filter((file) => !existsSync(file));
}

/** Starts Postfix and OpenDKIM in `dir`, signing as `domain` with the RSA key in `keyFile`. */
export async function startPostfix(dir: string, options: { readonly port: number; readonly sinkPort: number; readonly domain: string; readonly keyFile: string; readonly concurrency: number }): Promise<Peer> {
  process.umask(0o022); // Postfix checks the modes of what it is given
  for (const folder of ['etc', 'queue', 'data', 'milter']) mkdirSync(join(dir, folder), { recursive: true });
  // Postfix's own users must get in.
  for (const folder of [dirname(dir), dir]) chmodSync(folder, 0o755);
  const socket = join(dir, 'milter', 'opendkim.sock');
  const key = join(dir, 'milter', 'rsa.pem');
  writeFileSync(key, readFileSync(options.keyFile), { mode: 0o600 });
  writeFileSync(join(dir, 'milter', 'opendkim.conf'), [
    `Domain ${options.domain}`, 'Selector bench', `KeyFile ${key}`, `Socket local:${socket}`, 'Canonicalization relaxed/simple', 'Mode s',
    'UMask 000', 'Background no', 'InternalHosts 127.0.0.0/8', 'SignatureAlgorithm rsa-sha256', 'RequireSafeKeys no', '',
  ].join('\n'));
  const milter = spawn('/usr/sbin/opendkim', ['-f', '-x', join(dir, 'milter', 'opendkim.conf')], { stdio: 'ignore' });
  await until(() => existsSync(socket), 'opendkim did not open its socket');
  writeFileSync(join(dir, 'etc', 'main.cf'), mainCf(dir, socket, options));
  writeFileSync(join(dir, 'etc', 'master.cf'), masterCf(options.port));
  await run('chown', ['-R', 'postfix', join(dir, 'data')]);
  await run('/usr/sbin/postfix', ['-c', join(dir, 'etc'), 'start']).catch((error: unknown) => {
    milter.kill();
    const log = join(dir, 'log');
    throw new Error(`postfix did not start: ${existsSync(log) ? readFileSync(log, 'latin1') : String(error)}`);
  });
  const pidFile = join(dir, 'queue', 'pid', 'master.pid');
  await until(() => existsSync(pidFile), 'postfix did not start');
  const master = Number(readFileSync(pidFile, 'latin1').trim());
  return {
    port: options.port,
    cpuSeconds: () => cpuOfTree(master) + cpuOf(milter),
    async stop() {
      await run('/usr/sbin/postfix', ['-c', join(dir, 'etc'), 'abort']);
      milter.kill();
    },
  };
}

function mainCf(dir: string, socket: string, { sinkPort, concurrency }: { readonly sinkPort: number; readonly concurrency: number }): string {
  return [
    'compatibility_level = 3.6', `queue_directory = ${join(dir, 'queue')}`, `data_directory = ${join(dir, 'data')}`,
    'command_directory = /usr/sbin', 'daemon_directory = /usr/lib/postfix/sbin', 'mail_owner = postfix', 'setgid_group = postdrop',
    'myhostname = peer.example', 'mydestination =', 'inet_interfaces = 127.0.0.1', 'inet_protocols = ipv4', 'mynetworks = 127.0.0.0/8',
    `relayhost = [127.0.0.1]:${sinkPort}`, 'smtp_tls_security_level = none', 'smtpd_tls_security_level = none',
    `smtpd_milters = unix:${socket}`, 'milter_default_action = tempfail', `maillog_file = ${join(dir, 'log')}`, 'maillog_file_prefixes = /tmp, /var', 'alias_maps =', 'alias_database =',
    // Fair to it: as many connections as the generator has sessions, kept open, no per-client limits.
    `default_destination_concurrency_limit = ${concurrency}`, `initial_destination_concurrency = ${concurrency}`,
    'smtp_destination_recipient_limit = 1', 'smtp_connection_cache_on_demand = yes', 'smtp_connection_cache_destinations = [127.0.0.1]',
    'default_process_limit = 100', 'smtpd_client_connection_count_limit = 0', 'smtpd_client_message_rate_limit = 0', 'smtpd_error_sleep_time = 0',
    'in_flow_delay = 0', 'message_size_limit = 52428800', '',
  ].join('\n');
}

function masterCf(port: number): string {
  return [
    `127.0.0.1:${port} inet n - n - - smtpd`, 'pickup unix n - n 60 1 pickup', 'cleanup unix n - n - 0 cleanup', 'qmgr unix n - n 300 1 qmgr',
    'tlsmgr unix - - n 1000? 1 tlsmgr', 'rewrite unix - - n - - trivial-rewrite', 'bounce unix - - n - 0 bounce', 'defer unix - - n - 0 bounce',
    'trace unix - - n - 0 bounce', 'verify unix - - n - 1 verify', 'flush unix n - n 1000? 0 flush', 'proxymap unix - - n - - proxymap',
    'proxywrite unix - - n - 1 proxymap', 'smtp unix - - n - - smtp', 'relay unix - - n - - smtp', 'showq unix n - n - - showq',
    'error unix - - n - - error', 'retry unix - - n - - error', 'discard unix - - n - - discard', 'local unix - n n - - local',
    'virtual unix - n n - - virtual', 'lmtp unix - - n - - lmtp', 'anvil unix - - n - 1 anvil', 'scache unix - - n - 1 scache',
    'postlog unix-dgram n - n - 1 postlogd', '',
  ].join('\n');
}

const TICKS = 100; // CLK_TCK on every Linux this runs on

function stat(pid: number): readonly string[] {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch {
    return []; // gone between two looks; its time is in its parent's children's time
  }
}

/** CPU seconds of one process with its reaped children. */
export function cpuOfPid(pid: number): number {
  const fields = stat(pid);
  return [11, 12, 13, 14].reduce((sum, i) => sum + Number(fields[i] ?? 0), 0) / TICKS;
}

const cpuOf = (child: ChildProcess): number => (child.pid === undefined ? 0 : cpuOfPid(child.pid));

function cpuOfTree(master: number): number {
  const children = readdirSync('/proc').map(Number).filter((pid) => pid > 0 && Number(stat(pid)[1]) === master);
  return cpuOfPid(master) + children.reduce((sum, pid) => sum + cpuOfPid(pid), 0);
}

/** Waits for something that takes a moment; at most ten seconds. */
export async function until(done: () => boolean, otherwise: string): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if (done()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(otherwise);
}
