// How exactly limits are kept, as the receivers count: windows over a limit, and the share of each lane that is used
//
// A relay with more mail than it may send, before the provider simulator, whose receivers refuse nothing:
// what keeps the limits is the sender alone. Each lane has a message rate (by the second or the minute), a
// connection rate or a number of connections of its own. Every stretch of a limit's window that begins with
// a message is looked at; one with more than the limit is over it, and so is a connection too many at once.
// The share used is what came in the measured time, once everything has been submitted, over what the limit
// allows in it: every lane has work all that time. The worst is the figure. Run by root, the measuring
// process goes before others, so that it is not itself late to what it measures. Where it was late all the
// same (it looks at the clock every 2 ms) a window over by less than that proves nothing: those are counted
// apart, as `unclear`.
//   npm run bench -- throttle [--json] [--seconds 70]
import { setPriority } from 'node:os';
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { startBeforeSimulator } from './load/before-simulator.ts';
import { PROVIDERS, type Cap } from './simulator/simulator.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, seconds: { type: 'string', default: '70' } } });
const seconds = Number(values.seconds);
if (!(seconds >= 5 && seconds <= 600)) {
  console.error('--seconds takes how long each lane is measured, 5 to 600');
  process.exit(2);
}

interface Lane {
  readonly provider: string;
  readonly domain: string;
  readonly connections: number;
  /** What the lane is limited by. */
  readonly of: 'messages' | 'connections';
  readonly cap: Cap;
  readonly yaml: string;
}

const lane = (provider: string, domain: string, of: Lane['of'], count: number, unit: 's' | 'min', connections: number, more = ''): Lane => ({
  provider, domain, of, connections, cap: { count, perMs: unit === 's' ? 1_000 : 60_000 },
  yaml: `connections: ${connections}, ${of === 'messages' ? 'message_rate' : 'connection_rate'}: ${count}/${unit}${more}`,
});
const LANES: readonly Lane[] = [
  lane('google', 'gmail.com', 'messages', 50, 's', 5, ', deliveries_per_connection: 50, tls: required'),
  lane('outlook', 'outlook.com', 'messages', 1_200, 'min', 5),
  lane('yahoo', 'yahoo.com', 'messages', 25, 's', 10, ', deliveries_per_connection: 20'),
  lane('apple', 'icloud.com', 'connections', 300, 'min', 4, ', deliveries_per_connection: 1'),
  lane('orange', 'orange.fr', 'messages', 300, 'min', 2),
  lane('gmx', 'gmx.net', 'connections', 4, 's', 4, ', deliveries_per_connection: 2'),
];
const match: Readonly<Record<string, string>> = { google: '.google.com', outlook: '.olc.protection.outlook.com', yahoo: '.yahoodns.net', apple: '.icloud.com', orange: '.orange.fr', gmx: '.gmx.net' };

const perSecond = ({ of, cap, provider }: Lane): number => (cap.count * 1_000) / cap.perMs * (of === 'connections' && provider === 'gmx' ? 2 : 1);
const shaping = `defaults: { message_rate: unset, connection_rate: unset }
providers:
${LANES.map(({ provider, yaml }) => `  - { id: ${provider}, match: [${match[provider]}], ${yaml} }`).join('\n')}
retry: { first: 5m, max: 4h }`;

const LOOK_MS = 2;

// Half as much again as can go, so that no lane runs dry while it is measured, nor while the rest is submitted.
function recipients(): string[] {
  const all: string[] = [];
  for (let i = 0; i < seconds + 5; i++) for (const one of LANES) for (let n = 0; n < Math.ceil(perSecond(one) * 1.5); n++) all.push(`r${all.length}@${one.domain}`);
  return all;
}

const generous = PROVIDERS.map((model) => ({ ...model, connections: 10_000, connectionRate: undefined, messageRate: undefined, messagesPerConnection: 10_000, greylistMs: 0 }));
try {
  setPriority(-15);
} catch {
  // Not root: then its own lateness is part of the figures.
}
/** When this process looked at the clock late, and by how much. */
const late: { readonly at: number; readonly ms: number }[] = [];
let looked = performance.now();
const looking = setInterval(() => {
  const now = performance.now();
  if (now - looked > 2 * LOOK_MS) late.push({ at: now, ms: now - looked });
  looked = now;
}, LOOK_MS);

/** Windows over a limit; `unclear` those whose first message may have been seen late by as much as makes them so. */
function windowsOver(times: readonly number[], { count, perMs }: Cap): { readonly over: number; readonly unclear: number } {
  let over = 0;
  let unclear = 0;
  for (let last = count; last < times.length; last++) {
    const first = times[last - count] ?? 0;
    const missing = perMs - ((times[last] ?? 0) - first);
    if (missing <= 0) continue;
    // What came while we were away is read in the moments after.
    if (late.some(({ at, ms }) => ms >= missing && first >= at - ms && first <= at + 5 * LOOK_MS)) unclear++;
    else over++;
  }
  return { over, unclear };
}

const stage = await startBeforeSimulator(generous, shaping);
try {
  const { simulator } = stage;
  await stage.submit(recipients());
  const from = performance.now() + 1_000;
  const timesOf = (one: Lane): readonly number[] => (one.of === 'messages' ? simulator.record(one.provider).mailTimes : simulator.record(one.provider).connectTimes);
  await sleep(seconds * 1_000 + 1_500);
  const rows = LANES.map((one) => {
    const times = timesOf(one);
    const within = times.filter((at) => at >= from && at < from + seconds * 1_000);
    const { over, unclear } = windowsOver(times, one.cap);
    const atOnce = simulator.record(one.provider).mostOpen;
    return {
      lane: one.provider, limit: one.yaml.replace(/, (deliveries|tls).*/, ''), seen: within.length,
      over_limit_windows: over + Math.max(0, atOnce - one.connections), unclear, at_once: atOnce,
      utilisation: Math.floor((within.length / ((one.cap.count * seconds * 1_000) / one.cap.perMs)) * 1_000) / 1_000,
    };
  });
  const figures = { over_limit_windows: rows.reduce((sum, row) => sum + row.over_limit_windows, 0), worst_utilisation: Math.min(...rows.map((row) => row.utilisation)), unclear_windows: rows.reduce((sum, row) => sum + row.unclear, 0) };
  const targets = { over_limit_windows: 0, worst_utilisation: 0.98 };
  if (values.json) console.log(JSON.stringify({ name: 'throttle', ran: `${LANES.length} lanes, ${seconds} s each, measured at the receivers`, figures, targets, lanes: rows }));
  else {
    console.table(rows);
    console.table(figures);
  }
  if (figures.over_limit_windows > 0 || figures.worst_utilisation < targets.worst_utilisation) process.exitCode = 1;
} finally {
  clearInterval(looking);
  await stage.stop();
}
