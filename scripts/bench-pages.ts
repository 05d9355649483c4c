// Clicks and opens a second, recorded durably, beside nginx with a static redirect; how soon an unsubscribe holds
//
// The daemon runs as a process of its own with people who allow everything, or one date. Two kinds of
// run, in turn with nginx's: as many hits as 64 kept connections get answered, for the rate; and a steady
// 2,000 a second, for the time an answer takes. A rate is hits by the seconds of processor time the daemon
// took, all its threads together: what it would do with a core of its own. A second and a half after the
// last hit the daemon is killed, and every hit must be in its journal. Then mail is sent at 1,000 messages
// a second, ten readers among its recipients unsubscribe one after the other, and the receiver's clock tells
// when it last heard of each.
//   npm run bench -- pages [--json] [--hits 30000]
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { openStores } from '../daemon/main.ts';
import { parseAddress, type Tracking } from '../daemon/mail/index.ts';
import { newId, openLog } from '../daemon/runtime/index.ts';
import { sealToken } from '../daemon/compose/index.ts';
import { freePorts, pause, spawnDaemon } from '../test/lib/daemon.ts';
import { startMx, type Mx } from '../test/lib/mx.ts';
import type { Load } from './load/generator.ts';
import type { HitLoad, HitResult } from './load/hits.ts';
import { newsletter } from './load/newsletter.ts';
import { cpuOfPid } from './load/postfix.ts';
import { makeSandbox, type Ports } from './sandbox.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, hits: { type: 'string', default: '30000' } } });
const HITS = Number(values.hits);
const CONNECTIONS = 64;
const WARM_UP = 10_000;
const STEADY = 2_000;
const STEADY_ROUNDS = 3;
const STEADY_CONNECTIONS = 16;
const READERS = 1_000;
const LEAVERS = 10;
const MESSAGES_PER_SECOND = 1_000;
const MAIL_SECONDS = 5;
const TARGET = 'https://demo.example/story/7?issue=11&from=newsletter';
// A newsletter has some fifteen links; all answers are of one length.
const targetOf = (i: number): string => `https://demo.example/story/${String.fromCharCode(97 + (i % 15))}?issue=11&from=newsletter`;
const NGINX = '/usr/sbin/nginx';

interface Run {
  readonly perCpuSecond: number;
  readonly perSecond: number;
  /** At the steady rate. */
  readonly p99Ms: number;
  /** With everything asked for at once. */
  readonly fullP99Ms: number;
}

interface Tokens {
  readonly clicks: readonly string[];
  readonly opens: readonly string[];
  readonly dates: readonly string[];
  readonly unsubscribes: readonly { readonly address: string; readonly path: string }[];
}

const dir = mkdtempSync(join(tmpdir(), 'postern-bench-pages-'));
const say = (text: string): void => {
  if (!values.json) console.log(text);
};
const children = new Set<ChildProcess>();
let mx: Mx | undefined;
try {
  // Told from RCPT on: a connection made for somebody is one that names them.
  const heard = new Map<string, number>();
  mx = await startMx({ answers: { rcpt: (_n, line) => void heard.set(/<([^>]*)>/.exec(line)?.[1] ?? '', Date.now()) } });
  const ports: Ports = { ...(await freePorts()), sink: mx.port };
  const sandbox = await makeSandbox(dir, ports);
  // One signature a copy: 1,000 messages a second of two would be a bench of RSA.
  const tenant = join(sandbox.root, 'tenants/demo.yaml');
  writeFileSync(tenant, readFileSync(tenant, 'utf8').replace(/^.*selector: demo-rsa.*\n/m, ''));
  const tokens = await prepare(sandbox.root);
  const peer = await startNginx();
  const daemon = await spawnDaemon(sandbox.root);
  const pid = daemonPid(daemon.child);
  const runs: Record<string, Run> = {};
  try {
    const ask = (port: number, paths: readonly string[], status: number): Omit<HitLoad, 'hits'> => ({ port, host: `127.0.0.1:${port}`, paths, connections: CONNECTIONS, status });
    // What compiles is not timed.
    await drive({ ...ask(ports.pages, tokens.clicks, 302), hits: WARM_UP });
    await drive({ ...ask(ports.pages, tokens.opens, 200), hits: WARM_UP });
    await pause(500);
    for (const [name, load, of] of [
      ['nginx', ask(peer.port, ['/c/token'], 302), peer.pid], ['click', ask(ports.pages, tokens.clicks, 302), pid],
      ['open', ask(ports.pages, tokens.opens, 200), pid], ['last_open', ask(ports.pages, tokens.dates, 200), pid],
    ] as const) {
      runs[name] = await measure(load, of);
      say(`${name.padEnd(10)} ${runs[name].perCpuSecond.toFixed(0).padStart(7)} hits by second of processor, ${runs[name].perSecond.toFixed(0).padStart(6)} by the clock, p99 ${runs[name].p99Ms} ms at ${STEADY}/s`);
    }
    await pause(1_500);
  } finally {
    peer.stop();
    process.kill(pid, 'SIGKILL');
    await daemon.kill('SIGKILL');
  }
  const recorded = journalled(join(sandbox.dataDir, 'events'));
  const sent = { clicked: WARM_UP + HITS + STEADY * STEADY_ROUNDS, opened: WARM_UP + HITS + STEADY * STEADY_ROUNDS };
  say(`after a kill: ${recorded.clicked} of ${sent.clicked} clicks and ${recorded.opened} of ${sent.opened} opens are on disk`);
  const effects = await leave(sandbox, ports, tokens, heard);
  const round = (value: number): number => Math.round(value * 100) / 100;
  const { nginx, click, open, last_open: date } = runs as Record<'nginx' | 'click' | 'open' | 'last_open', Run>;
  const figures = {
    click_per_second: Math.round(click.perCpuSecond), open_per_second: Math.round(open.perCpuSecond), last_open_per_second: Math.round(date.perCpuSecond),
    nginx_per_second: Math.round(nginx.perCpuSecond), click_vs_nginx: round(click.perCpuSecond / nginx.perCpuSecond),
    click_by_the_clock: Math.round(click.perSecond), open_by_the_clock: Math.round(open.perSecond), nginx_by_the_clock: Math.round(nginx.perSecond),
    p99_ms: Math.max(click.p99Ms, open.p99Ms), nginx_p99_ms: nginx.p99Ms, full_p99_ms: Math.max(click.fullP99Ms, open.fullP99Ms), nginx_full_p99_ms: nginx.fullP99Ms,
    recorded_share: round((recorded.clicked + recorded.opened) / (sent.clicked + sent.opened)),
    unsubscribe_effect_ms: Math.max(...effects.map(({ effectMs }) => effectMs)), unsubscribed: effects.length, messages_per_second: Math.round(effects[0]?.rate ?? 0),
  };
  const targets = { click_per_second: 8_000, open_per_second: 8_000, p99_ms: 10, recorded_share: 1, unsubscribe_effect_ms: 1_000 };
  const ran = `${HITS} hits of each kind on ${CONNECTIONS} connections, ${STEADY_ROUNDS} rounds of ${STEADY} at ${STEADY}/s on ${STEADY_CONNECTIONS}, killed and counted; ${LEAVERS} readers leave at ${MESSAGES_PER_SECOND} messages/s`;
  if (values.json) console.log(JSON.stringify({ name: 'pages', ran, figures, targets }));
  else console.table(figures);
  if (recorded.clicked !== sent.clicked || recorded.opened !== sent.opened) process.exitCode = 1;
} finally {
  for (const child of children) child.kill('SIGKILL');
  await mx?.close();
  rmSync(dir, { recursive: true, force: true });
}

/** The rate with everything asked for at once, and the time of an answer at a steady rate. */
async function measure(load: Omit<HitLoad, 'hits'>, pid: number): Promise<Run> {
  const before = cpuOfPid(pid);
  const fast = await drive({ ...load, hits: HITS });
  await pause(700); // what is recorded after the answer is charged too
  const cpu = cpuOfPid(pid) - before;
  // One second each; the median, for on a shared machine one round in three has a neighbour in it.
  const steady: number[] = [];
  for (let round = 0; round < STEADY_ROUNDS; round++) steady.push((await drive({ ...load, connections: STEADY_CONNECTIONS, hits: STEADY, rate: STEADY })).p99Ms);
  return { perCpuSecond: fast.hits / cpu, perSecond: fast.hits / fast.seconds, p99Ms: steady.sort((a, b) => a - b)[Math.floor(STEADY_ROUNDS / 2)] ?? 0, fullP99Ms: fast.p99Ms };
}

/** Consents, and the tokens their mail would have carried. */
async function prepare(root: string): Promise<Tokens> {
  const stores = await openStores(root, openLog('silent'));
  const keys = stores.keyring.tenant('demo');
  const policyHash = stores.live.current().tenants.get('demo')?.policies[0]?.hash ?? '';
  const give = async (name: string, count: number, tracking: Tracking): Promise<string[]> => {
    const people = Array.from({ length: count }, (_, i) => `${name}${i}@d${i % 50}.example`);
    await stores.ledger.giveAll('demo', people.map((address) => ({
      hashes: stores.ledger.hashes('demo', parseAddress(address)), purpose: 'newsletter', state: 'given' as const, legalBasis: 'gdpr_6_1_a', policyHash,
      method: 'form', evidence: { source: 'bench', time: Date.now() }, tracking, by: 'bench',
    })));
    return people;
  };
  const message = newId(Date.now());
  const claim = (address: string, recipient: number): Omit<Parameters<typeof sealToken>[1], 'kind'> =>
    ({ message, recipient, stream: 'newsletter', purpose: 'newsletter', hashes: stores.ledger.hashes('demo', parseAddress(address)) });
  const all = await give('reader', READERS, { opens: 'individual', clicks: 'individual' });
  const dated = await give('dated', READERS, { opens: 'lastOpenDate', clicks: 'none' });
  const leavers = await give('leaver', LEAVERS, { opens: 'none', clicks: 'none' });
  const tokens: Tokens = {
    clicks: all.map((address, i) => `/c/${sealToken(keys, { ...claim(address, i), kind: 'click', target: targetOf(i) })}`),
    opens: all.map((address, i) => `/o/${sealToken(keys, { ...claim(address, i), kind: 'open', mode: 'individual' })}.gif`),
    dates: dated.map((address, i) => `/o/${sealToken(keys, { ...claim(address, i), kind: 'open', mode: 'lastOpenDate' })}.gif`),
    unsubscribes: leavers.map((address, i) => ({ address, path: `/u/${sealToken(keys, { ...claim(address, i), kind: 'unsubscribe' })}` })),
  };
  await stores.close();
  return tokens;
}

/** Mail for everybody at a steady rate; ten leave. From each one's POST to the last RCPT that named them. */
async function leave(sandbox: Awaited<ReturnType<typeof makeSandbox>>, ports: Ports, { unsubscribes }: Tokens, heard: ReadonlyMap<string, number>): Promise<{ effectMs: number; rate: number }[]> {
  const daemon = await spawnDaemon(sandbox.root);
  const asked = new Map<string, number>();
  const messages = MESSAGES_PER_SECOND * MAIL_SECONDS;
  try {
    // Every fifth message is for one of the leavers: each is mailed twenty times a second until they leave.
    const recipients = Array.from({ length: 500 }, (_, i) => (i % 5 === 0 ? unsubscribes[(i / 5) % LEAVERS]?.address ?? '' : `reader${i}@d${i % 50}.example`));
    const load: Load = { port: ports.submissions, messages, sessions: 100, rate: MESSAGES_PER_SECOND, login: sandbox, from: 'news@demo.example', recipients, message: newsletter(2_048) };
    const sending = child('generator.ts', load) as Promise<{ readonly seconds: number; readonly sent: number; readonly refused: number }>;
    await pause(2_500);
    for (const { address, path } of unsubscribes) {
      asked.set(address, Date.now());
      const answer = await fetch(`http://127.0.0.1:${ports.pages}${path}`, { method: 'POST', body: new URLSearchParams({ 'List-Unsubscribe': 'One-Click' }) });
      if (!answer.ok) throw new Error(`an unsubscribe was answered ${answer.status}`);
      await pause(150);
    }
    const { seconds, sent, refused } = await sending;
    await pause(2_000);
    if (sent + refused !== messages || refused === 0) throw new Error(`${sent} of ${messages} were taken, ${refused} refused`);
    const effects = [...asked].map(([address, at]) => {
      const last = heard.get(address);
      if (last === undefined) throw new Error(`nothing ever went to ${address}: the run shows nothing`);
      return { effectMs: Math.max(0, last - at), rate: messages / seconds };
    });
    say(`unsubscribed: ${effects.map(({ effectMs }) => effectMs).join(', ')} ms from the POST to the last mention, at ${(messages / seconds).toFixed(0)} messages/s`);
    return effects;
  } finally {
    await daemon.kill('SIGTERM');
  }
}

/** Lines of the journal, as a kill left them. */
function journalled(events: string): { clicked: number; opened: number } {
  const count = { clicked: 0, opened: 0 };
  for (const name of readdirSync(events).filter((file) => file.endsWith('.jsonl'))) {
    const text = readFileSync(join(events, name), 'utf8');
    count.clicked += text.split('"event":"clicked"').length - 1;
    count.opened += text.split('"event":"opened"').length - 1;
  }
  return count;
}

/** The process that listens: the launcher replaces itself, or stays as its parent. */
function daemonPid({ pid = 0 }: ChildProcess): number {
  const busiest = [pid, ...readdirSync('/proc').map(Number).filter((other) => other > 0 && existsSync(`/proc/${other}/stat`) && parentOf(other) === pid)];
  return busiest.sort((a, b) => cpuOfPid(b) - cpuOfPid(a))[0] ?? pid;
}

function parentOf(pid: number): number {
  return Number(/\) \S (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1'))?.[1] ?? 0);
}

/** nginx with one worker that answers every path with the same redirect. */
async function startNginx(): Promise<{ readonly port: number; readonly pid: number; stop(): void }> {
  if (!existsSync(NGINX)) throw new Error('bench pages needs nginx; scripts/peers install brings it (nginx-light)');
  const { submissions: port } = await freePorts();
  const home = join(dir, 'nginx');
  mkdirSync(home);
  chmodSync(dir, 0o755);
  writeFileSync(join(home, 'nginx.conf'), `daemon off; master_process off; worker_processes 1; pid ${home}/pid; error_log ${home}/error.log crit;
events { worker_connections 1024; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path ${home}/a; proxy_temp_path ${home}/b; fastcgi_temp_path ${home}/c; uwsgi_temp_path ${home}/d; scgi_temp_path ${home}/e;
  server { listen 127.0.0.1:${port}; location / { return 302 ${TARGET}; } } }
`);
  const nginx = spawn(NGINX, ['-p', home, '-c', join(home, 'nginx.conf')], { stdio: 'ignore' });
  children.add(nginx);
  for (let i = 0; i < 100; i++) {
    if (await fetch(`http://127.0.0.1:${port}/`, { redirect: 'manual' }).then((answer) => answer.status === 302, () => false)) break;
    await pause(50);
  }
  return { port, pid: nginx.pid ?? 0, stop: () => void nginx.kill() };
}

function drive(load: HitLoad): Promise<HitResult> {
  return child('hits.ts', load) as Promise<HitResult>;
}

/** Runs a load in a process of its own. */
function child(script: string, load: object): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const made = execFile(process.execPath, ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, 'load', script)], (error, out, heard) => {
      if (error === null) resolve(JSON.parse(out));
      else reject(new Error(`${script}: ${heard}`, { cause: error }));
    });
    made.stdin?.end(JSON.stringify(load));
  });
}
