// The whole path beside Postfix with OpenDKIM: AUTH over TLS, consent, links, pixel, two signatures, durable
//
// Three rounds of each, in turn, with the same generator, the same sink and 20 sessions, at 4 KiB and at
// about 50 KiB. The rate is messages over the time from the first connection until the sink has them
// all. Before anything is timed one message of each goes to a sink that keeps it: both must really be
// signed, and ours must really be rewritten, or the bench stops.
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newId } from '../daemon/runtime/index.ts';
import { consentAll, drive, ready, startCounter, type Counter } from './load/drive.ts';
import type { Load } from './load/generator.ts';
import { newsletter } from './load/newsletter.ts';
import { cpuOfPid, missingPrograms, startPostfix, until, type Peer } from './load/postfix.ts';
import { makeSandbox, type Sandbox } from './sandbox.ts';
import { startSink } from './sink.ts';

const json = process.argv.includes('--json');
const quick = process.argv.includes('--quick');
const ROUNDS = quick ? 1 : 3;
const SESSIONS = 20;
const SIZES = [{ name: '4k', bytes: 4_096, messages: quick ? 1_000 : 8_000 }, { name: '50k', bytes: 50_000, messages: quick ? 500 : 5_000 }] as const;
const PORTS = { submissions: 21465, submission: 21587, pages: 21080, metrics: 21464, sink: 21526 };
const PEER_PORT = 21025;
const RECIPIENTS = 2_000;

interface Run {
  readonly rate: number;
  readonly cpuMs: number;
  readonly rssMiB: number;
}

const missing = missingPrograms();
if (missing.length > 0) {
  console.error(`bench main needs ${missing.join(', ')}; scripts/peers install brings them`);
  process.exit(1);
}
const dir = mkdtempSync(join(tmpdir(), 'postern-bench-'));
const children = new Set<ChildProcess>();
const say = (text: string): void => {
  if (!json) console.log(text);
};
try {
  const sandbox = await makeSandbox(dir, PORTS);
  const recipients = Array.from({ length: RECIPIENTS }, (_, i) => `reader${i}@d${i % 200}.example`);
  await consentAll(sandbox, recipients);
  const results = new Map<string, Run[]>();
  await verify(sandbox, recipients);
  for (let round = 1; round <= ROUNDS; round++) {
    for (const size of SIZES) {
      const load = { messages: size.messages, sessions: SESSIONS, from: 'news@demo.example', recipients, message: newsletter(size.bytes) };
      for (const [who, run] of [['postern', () => runPostern(sandbox, load)], ['postfix', () => runPostfix(sandbox, load)]] as const) {
        const made = await run();
        const key = `${who} ${size.name}`;
        results.set(key, [...(results.get(key) ?? []), made]);
        say(`round ${round}  ${key.padEnd(12)}  ${made.rate.toFixed(0).padStart(5)} msg/s  ${made.cpuMs.toFixed(2)} ms CPU/msg  ${made.rssMiB.toFixed(0)} MiB`);
      }
    }
  }
  report(results);
} finally {
  for (const child of children) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
}

function report(results: ReadonlyMap<string, readonly Run[]>): void {
  const median = (key: string, of: keyof Run): number => {
    const values = (results.get(key) ?? []).map((run) => run[of]).sort((a, b) => a - b);
    return values[Math.floor(values.length / 2)] ?? 0;
  };
  const round = (value: number): number => Math.round(value * 100) / 100;
  const figures = {
    ratio_4k: round(median('postern 4k', 'rate') / median('postfix 4k', 'rate')),
    ratio_50k: round(median('postern 50k', 'rate') / median('postfix 50k', 'rate')),
    cpu_ms_4k: round(median('postern 4k', 'cpuMs')), cpu_ms_50k: round(median('postern 50k', 'cpuMs')),
    peer_cpu_ms_4k: round(median('postfix 4k', 'cpuMs')), peer_cpu_ms_50k: round(median('postfix 50k', 'cpuMs')),
    rate_4k: Math.round(median('postern 4k', 'rate')), rate_50k: Math.round(median('postern 50k', 'rate')),
    peer_rate_4k: Math.round(median('postfix 4k', 'rate')), peer_rate_50k: Math.round(median('postfix 50k', 'rate')),
    rss_mib: Math.round(Math.max(...[...results].filter(([key]) => key.startsWith('postern')).flatMap(([, runs]) => runs.map((run) => run.rssMiB)))),
  };
  const ran = `${ROUNDS} rounds in turn, ${SESSIONS} sessions, ${SIZES.map((size) => `${size.messages} x ${size.name}`).join(' and ')}, medians`;
  const targets = { ratio_4k: 3, ratio_50k: 2.3, rss_mib: 350 };
  if (json) console.log(JSON.stringify({ name: 'main', ran, figures, targets }));
  else console.table(figures);
}

function startDaemon(sandbox: Sandbox): ChildProcess & { readonly pid: number } {
  const child = spawn(join(import.meta.dirname, 'postern'), ['serve', '--config', sandbox.root], { stdio: ['ignore', 'ignore', 'inherit'] });
  if (child.pid === undefined) throw new Error('the daemon did not start');
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child as ChildProcess & { readonly pid: number };
}

async function stopped(child: ChildProcess): Promise<void> {
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  await gone;
}

function login({ username, secret }: Sandbox): NonNullable<Load['login']> {
  return { username, secret };
}

function startPeer(sandbox: Sandbox, name: string): Promise<Peer> {
  return startPostfix(join(dir, name), {
    port: PEER_PORT, sinkPort: PORTS.sink, domain: 'demo.example', keyFile: join(sandbox.root, 'dkim/demo-rsa.pem'), concurrency: SESSIONS,
  });
}

/** One message through each into a sink that keeps it. */
async function verify(sandbox: Sandbox, recipients: readonly string[]): Promise<void> {
  const got: Buffer[] = [];
  const sink = await startSink({ port: PORTS.sink, onMessage: (message) => void got.push(message.raw) });
  const load = { messages: 1, sessions: 1, from: 'news@demo.example', recipients, message: newsletter(50_000) };
  const daemon = startDaemon(sandbox);
  await ready(PORTS.metrics);
  await drive({ ...load, port: PORTS.submissions, login: login(sandbox) });
  await until(() => got.length === 1, 'the sink did not get our message');
  await stopped(daemon);
  const peer = await startPeer(sandbox, 'verify');
  await drive({ ...load, port: peer.port });
  await until(() => got.length === 2, 'the sink did not get the peer\'s message');
  await peer.stop();
  await sink.close();
  const [ours = '', theirs = ''] = got.map((raw) => raw.toString('latin1'));
  const signatures = (text: string): number => text.match(/^DKIM-Signature:/gim)?.length ?? 0;
  const links = ours.match(/\/c\/[\w-]+/g)?.length ?? 0;
  if (signatures(ours) !== 2 || signatures(theirs) !== 1 || links < 10 || !/\/o\//.test(ours)) {
    throw new Error(`not a fair run: ${signatures(ours)} and ${signatures(theirs)} signatures, ${links} links rewritten`);
  }
  say(`checked at the sink: ours has 2 signatures and ${links} rewritten links, the peer's has 1 signature`);
}

async function runPostern(sandbox: Sandbox, load: Omit<Load, 'port'>): Promise<Run> {
  const sink = await startCounter(PORTS.sink);
  const daemon = startDaemon(sandbox);
  try {
    await ready(PORTS.metrics);
    // The first messages compile the code; they are not timed.
    await drive({ ...load, messages: 500, port: PORTS.submissions, login: login(sandbox) });
    await sink.reached(500);
    const cpu = cpuOfPid(daemon.pid);
    const seconds = await timed(load, sink, 500, { ...load, port: PORTS.submissions, login: login(sandbox) });
    const status = readFileSync(`/proc/${daemon.pid}/status`, 'latin1');
    return { rate: load.messages / seconds, cpuMs: (cpuOfPid(daemon.pid) - cpu) * 1000 / load.messages, rssMiB: Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024 };
  } finally {
    await stopped(daemon);
    sink.stop();
  }
}

async function runPostfix(sandbox: Sandbox, load: Omit<Load, 'port'>): Promise<Run> {
  const sink = await startCounter(PORTS.sink);
  const peer = await startPeer(sandbox, `peer${newId(Date.now())}`);
  try {
    await drive({ ...load, messages: 500, port: peer.port });
    await sink.reached(500);
    const cpu = peer.cpuSeconds();
    const seconds = await timed(load, sink, 500, { ...load, port: peer.port });
    return { rate: load.messages / seconds, cpuMs: (peer.cpuSeconds() - cpu) * 1000 / load.messages, rssMiB: 0 };
  } finally {
    await peer.stop();
    sink.stop();
  }
}

async function timed({ messages }: { readonly messages: number }, sink: Counter, before: number, load: Load): Promise<number> {
  const started = performance.now();
  await drive(load);
  await sink.reached(before + messages);
  return (performance.now() - started) / 1000;
}
