// A queue of a million rows beside an empty one: the rate of the whole path, how soon a 250 comes, the restart
//
// Two sandboxes alike but for what waits: in one a million recipients over 10,000 domains, deferred for some
// hours, as after a provider's bad day; in the other nothing. The same mail goes through both in turn, three
// rounds, as fast as it is taken; then 200 messages a second for the time from the final dot to the 250.
// restart_s: from the start of the process to the first readiness, with the rows there. rss_mib is the most
// the process holds for itself (anonymous), beside the page cache; rss_start_mib when it is ready. Rows lie
// under --dir and go at the end.
//   npm run bench -- depth [--json] [--rows 1000000] [--rounds 3] [--dir /var/tmp]
import { spawn, type ChildProcess } from 'node:child_process';
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { Composed } from '../daemon/mail/index.ts';
import { newId, openKeyring, openLog, systemClock } from '../daemon/runtime/index.ts';
import { openSpool } from '../daemon/spool/index.ts';
import { consentAll, drive, ready, startCounter } from './load/drive.ts';
import { newsletter } from './load/newsletter.ts';
import { cpuOfPid } from './load/postfix.ts';
import { makeSandbox, type Ports, type Sandbox } from './sandbox.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, rows: { type: 'string', default: '1000000' }, rounds: { type: 'string', default: '3' }, dir: { type: 'string', default: '/var/tmp' } } });
const ROWS = Number(values.rows);
const ROUNDS = Number(values.rounds);
const DOMAINS = 10_000;
const PER_MESSAGE = 100;
const MESSAGES = 5_000;
const STEADY = { messages: 2_000, rate: 200 };
const HOURS_MS = 6 * 3_600_000;
const PORTS: Record<'full' | 'empty', Ports> = {
  full: { submissions: 21465, submission: 21587, pages: 21080, metrics: 21464, sink: 21526 },
  empty: { submissions: 22465, submission: 22587, pages: 22080, metrics: 22464, sink: 22526 },
};

const say = (text: string): void => {
  if (!values.json) console.log(text);
};
const dir = mkdtempSync(join(values.dir, 'postern-bench-depth-'));
const children = new Set<ChildProcess>();
const recipients = Array.from({ length: 2_000 }, (_, i) => `reader${i}@d${i % 200}.example`);

/** So many recipients, deferred: the clock they were stored by goes ahead of ours. */
async function fill(sandbox: Sandbox): Promise<void> {
  const keyring = openKeyring(join(sandbox.dataDir, 'keys'), createSecretKey(Buffer.from(readFileSync(join(sandbox.root, 'master.key'), 'latin1').trim(), 'hex')));
  const later = { ...systemClock, now: () => Date.now() + HOURS_MS };
  const spool = await openSpool({ dir: join(sandbox.dataDir, 'spool'), keyring, clock: later, log: openLog('warn'), reserveBytes: 1e9 });
  const raw = Buffer.from(newsletter(4_096));
  const messages = Math.ceil(ROWS / PER_MESSAGE);
  const began = performance.now();
  let made = 0;
  let stored = 0;
  const lane = async (): Promise<void> => {
    while (made < messages) {
      const first = made++ * PER_MESSAGE;
      const people = Array.from({ length: PER_MESSAGE }, (_, i) => {
        const domain = `d${(first + i) % DOMAINS}.example`;
        return { wire: `somebody${first + i}@${domain}`, domain, evidence: '1', hashes: { consent: randomBytes(16), suppression: randomBytes(16), family: randomBytes(16) } };
      });
      const message = {
        id: newId(Date.now()), origin: { tenant: 'demo', stream: 'newsletter', credential: 'demo-app', kind: 'relay' }, envelope: { mailFrom: 'news@demo.example', smtpUtf8: false, body: '8BITMIME' }, raw, receivedAt: Date.now(), protocol: 'ESMTPSA',
        recipients: people, plan: { version: 1, domain: 'demo.example', bodyStart: 10, removed: [], added: 'Received: by bench\r\n', parts: [], subscribed: false, untouched: [] },
      };
      await spool.store(message as unknown as Composed, { expiresAt: Date.now() + 20 * HOURS_MS });
      if (++stored % Math.ceil(messages / 10) === 0) say(`filling: ${stored * PER_MESSAGE} of ${ROWS} rows, ${Math.round((stored * PER_MESSAGE * 1_000) / (performance.now() - began))}/s`);
    }
  };
  await Promise.all(Array.from({ length: 32 }, lane));
  say(`waiting: ${JSON.stringify(spool.counts())}`);
  await spool.close();
}

interface Run {
  readonly rate: number;
  readonly cpuMs: number;
  readonly p99Ms: number;
  readonly startS: number;
  /** When it is ready, and the most while it works. */
  readonly rssStartMiB: number;
  readonly rssMiB: number;
}

const rssOf = (pid: number): number => Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) / 1_024;

/** Starts the daemon, sends the load and measures; the daemon is stopped again. */
async function run(sandbox: Sandbox, ports: Ports): Promise<Run> {
  const sink = await startCounter(ports.sink);
  const began = performance.now();
  const daemon = spawn(join(import.meta.dirname, 'postern'), ['serve', '--config', sandbox.root], { stdio: ['ignore', 'ignore', 'inherit'] });
  children.add(daemon);
  let rssMiB = 0;
  const sampling = setInterval(() => (rssMiB = Math.max(rssMiB, rssOf(daemon.pid ?? 0))), 500);
  try {
    await ready(ports.metrics);
    const startS = (performance.now() - began) / 1_000;
    const rssStartMiB = rssOf(daemon.pid ?? 0);
    const load = { port: ports.submissions, login: sandbox, sessions: 20, from: 'news@demo.example', recipients, message: newsletter(4_096) };
    await drive({ ...load, messages: 500 }); // what compiles is not timed
    await sink.reached(500);
    const cpu = cpuOfPid(daemon.pid ?? 0);
    const from = performance.now();
    await drive({ ...load, messages: MESSAGES });
    await sink.reached(500 + MESSAGES);
    const seconds = (performance.now() - from) / 1_000;
    const cpuMs = ((cpuOfPid(daemon.pid ?? 0) - cpu) * 1_000) / MESSAGES;
    const { p99Ms } = await drive({ ...load, ...STEADY });
    return { rate: MESSAGES / seconds, cpuMs, p99Ms, startS, rssStartMiB, rssMiB: Math.max(rssMiB, rssOf(daemon.pid ?? 0)) };
  } finally {
    clearInterval(sampling);
    const gone = new Promise((resolve) => daemon.once('exit', resolve));
    daemon.kill('SIGTERM');
    await gone;
    children.delete(daemon);
    sink.stop();
  }
}

try {
  const sandboxes = { full: await makeSandbox(join(dir, 'full'), PORTS.full), empty: await makeSandbox(join(dir, 'empty'), PORTS.empty) };
  for (const sandbox of Object.values(sandboxes)) await consentAll(sandbox, recipients);
  await fill(sandboxes.full);
  const runs: Record<'full' | 'empty', Run[]> = { full: [], empty: [] };
  for (let round = 1; round <= ROUNDS; round++) {
    for (const name of ['full', 'empty'] as const) {
      const made = await run(sandboxes[name], PORTS[name]);
      runs[name].push(made);
      say(`round ${round}  ${name.padEnd(5)}  ${made.rate.toFixed(0).padStart(5)} msg/s  ${made.cpuMs.toFixed(2)} ms CPU/msg  250 within ${made.p99Ms} ms (p99)  ready in ${made.startS.toFixed(1)} s  ${made.rssStartMiB.toFixed(0)} MiB at start, ${made.rssMiB.toFixed(0)} MiB at most`);
    }
  }
  const median = (name: 'full' | 'empty', of: keyof Run): number => runs[name].map((one) => one[of]).sort((a, b) => a - b)[Math.floor(ROUNDS / 2)] ?? 0;
  const round = (value: number): number => Math.round(value * 100) / 100;
  const figures = {
    ratio_vs_empty: round(median('full', 'rate') / median('empty', 'rate')), cpu_ratio: round(median('full', 'cpuMs') / median('empty', 'cpuMs')), rate: Math.round(median('full', 'rate')), rate_empty: Math.round(median('empty', 'rate')),
    accept_p99_ms: median('full', 'p99Ms'), accept_p99_ms_empty: median('empty', 'p99Ms'), restart_s: round(median('full', 'startS')), restart_s_empty: round(median('empty', 'startS')),
    rss_start_mib: Math.round(median('full', 'rssStartMiB')), rss_start_mib_empty: Math.round(median('empty', 'rssStartMiB')), rss_mib: Math.round(Math.max(...runs.full.map(({ rssMiB }) => rssMiB))), rss_mib_empty: Math.round(Math.max(...runs.empty.map(({ rssMiB }) => rssMiB))),
  };
  const ran = `${ROWS} rows over ${DOMAINS} domains, ${ROUNDS} rounds in turn of ${MESSAGES} messages of 4 KiB in 20 sessions, then ${STEADY.messages} at ${STEADY.rate}/s`;
  const targets = { ratio_vs_empty: 0.9, accept_p99_ms: 50, restart_s: 5, rss_mib: 500 };
  if (values.json) console.log(JSON.stringify({ name: 'depth', ran, figures, targets }));
  else console.table(figures);
} finally {
  for (const child of children) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
}
