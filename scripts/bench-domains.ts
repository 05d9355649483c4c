// A message each to twenty thousand domains at once, beside as many to twenty
//
// The receivers are the simulator's, four hundred of them, who bear whatever comes; the domains are theirs in
// equal shares, each with its own MX record to be looked up. Two runs with a fresh relay each: all messages to
// domains of their own, and the same number to twenty domains. What differs is what a domain costs: a look-up,
// a queue, a lane found, a connection with nothing more to carry. rss_mib is the most the process held.
//   npm run bench -- domains [--json] [--domains 20000]
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { startBeforeSimulator } from './load/before-simulator.ts';
import { cpuOfPid } from './load/postfix.ts';
import { hoster, type ProviderModel } from './simulator/simulator.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, domains: { type: 'string', default: '20000' } } });
const DOMAINS = Number(values.domains);
const HOSTERS = Math.min(400, DOMAINS);
const FEW = 20;
const SHAPING = 'defaults: { connections: 20, deliveries_per_connection: 1000, message_rate: unset, connection_rate: unset }';
// Nothing more arrives for so long: the rest never will.
const STALLED_MS = 30_000;

interface Run {
  readonly seconds: number;
  readonly cpuMs: number;
  readonly rssMiB: number;
  readonly accepted: number;
}

function receivers(domains: number): readonly ProviderModel[] {
  const hosters = Math.min(HOSTERS, domains);
  return Array.from({ length: hosters }, (_, n) => ({
    ...hoster(n, Array.from({ length: Math.ceil((domains - n) / hosters) }, (_domain, i) => `d${n + i * hosters}.example`), 1),
    connections: 1_000, connectionRate: undefined, messageRate: undefined, messagesPerConnection: 1_000_000, greylistMs: 0,
  }));
}

async function run(domains: number): Promise<Run> {
  const stage = await startBeforeSimulator(receivers(domains), SHAPING);
  try {
    const { simulator, pid } = stage;
    const cpu = cpuOfPid(pid);
    const started = performance.now();
    const submitting = stage.submit(Array.from({ length: DOMAINS }, (_, i) => `reader@d${i % domains}.example`), 16);
    let last = { accepted: 0, at: started };
    while (simulator.accepted < DOMAINS && performance.now() - last.at < STALLED_MS) {
      await sleep(50);
      if (simulator.accepted !== last.accepted) last = { accepted: simulator.accepted, at: performance.now() };
    }
    const seconds = (performance.now() - started) / 1_000;
    await submitting;
    const rssMiB = Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) / 1_024;
    return { seconds, cpuMs: ((cpuOfPid(pid) - cpu) * 1_000) / DOMAINS, rssMiB, accepted: simulator.accepted };
  } finally {
    await stage.stop();
  }
}

const [many, few] = [await run(DOMAINS), await run(FEW)];
const round = (value: number): number => Math.round(value * 100) / 100;
const figures = {
  accepted: many.accepted, seconds: round(many.seconds), per_second: Math.round(DOMAINS / many.seconds), per_second_few: Math.round(DOMAINS / few.seconds), ratio_vs_few: round(few.seconds / many.seconds),
  cpu_ms: round(many.cpuMs), cpu_ms_few: round(few.cpuMs), rss_mib: Math.round(many.rssMiB), rss_mib_few: Math.round(few.rssMiB),
};
const ran = `${DOMAINS} messages to ${DOMAINS} domains on ${HOSTERS} receivers, then to ${FEW}`;
if (values.json) console.log(JSON.stringify({ name: 'domains', ran, figures, targets: { accepted: DOMAINS } }));
else console.table(figures);
if (many.accepted < DOMAINS || few.accepted < DOMAINS) process.exitCode = 1;
