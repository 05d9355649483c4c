// Mail to the simulator's mix of providers with the shipped limits and rules: deferrals beside an oracle's
//
// The receivers keep their own limits, say no as the real ones do and greylist; the relay has the shipped
// shaping.yaml, whose figures are not theirs. The oracle knows every limit: it is deferred by greylisting
// alone, once for each stranger, and it needs as long as the slowest receiver takes for its share, by messages or by connections. So that
// the bench ends, waits are short: the first retry after 3 s, rules act for 5 s, lanes come back in seconds.
// In the figures `deferrals` are the refusals the receivers counted; greylisting is part of them.
//   npm run bench -- mix [--json] [--messages 5000] [--domains 100] [--seed 1]       the whole: --messages 100000
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { startBeforeSimulator } from './load/before-simulator.ts';
import { cast, mix, type ProviderModel } from './simulator/simulator.ts';

const { values } = parseArgs({ options: {
  json: { type: 'boolean', default: false }, messages: { type: 'string', default: '5000' }, domains: { type: 'string', default: '100' }, seed: { type: 'string', default: '1' },
} });
const messages = Number(values.messages);
const domains = Number(values.domains);
if (!Number.isSafeInteger(messages) || messages < 100 || !Number.isSafeInteger(domains) || domains < 1) {
  console.error('--messages takes a number from 100, --domains one from 1');
  process.exit(2);
}
// Nothing more arrives for so long: the rest never will.
const STALLED_MS = 60_000;

const shaping = readFileSync(join(import.meta.dirname, '../config/shaping.yaml'), 'utf8')
  .replace(/^(?:routes|egress): \[\]$/gm, '').replace(/^retry:\n(?: .*\n)+/m, 'retry: { first: 3s, max: 10s }\n').replace(/\bfor: \d+[mh]/g, 'for: 5s').replace(/^recovery:.*$/m, 'recovery: { add: 10%, every: 1s, hold: 1h }');

/** Nobody sends faster than a receiver takes messages and connections, and nobody is taken before its greylist lets go. */
function leastMs({ messageRate, connectionRate, messagesPerConnection, greylistMs }: ProviderModel, count: number): number {
  if (count === 0) return 0;
  const sending = messageRate === undefined ? 0 : (count * messageRate.perMs) / messageRate.count;
  const connecting = connectionRate === undefined ? 0 : (count / messagesPerConnection) * (connectionRate.perMs / connectionRate.count);
  return Math.max(sending, connecting) + greylistMs;
}

const providers = cast({ domains, hosters: Math.min(20, domains) });
const lots = mix(providers, Number(values.seed));
const drawn = Array.from({ length: messages }, () => lots.next().value ?? { address: '', provider: '' });
const stage = await startBeforeSimulator(providers, shaping);
try {
  const { simulator } = stage;
  const started = performance.now();
  const submitting = stage.submit(drawn.map(({ address }) => address), 16);
  let last = { accepted: 0, at: started };
  while (simulator.accepted < messages && performance.now() - last.at < STALLED_MS) {
    await sleep(100);
    if (simulator.accepted !== last.accepted) last = { accepted: simulator.accepted, at: performance.now() };
  }
  const seconds = (performance.now() - started) / 1_000;
  await submitting;
  const to = (id: string): number => drawn.filter(({ provider }) => provider === id).length;
  const rows = simulator.peaks().filter(({ transactions }) => transactions > 0).map(({ site, accepted, refused, connections_at_once: atOnce, messages_in_a_second: second }) => {
    const model = providers.find(({ id }) => id === site);
    const oracle = model === undefined || model.greylistMs === 0 ? 0 : to(site);
    return {
      site, messages: to(site), accepted, deferrals: Object.values(refused).reduce((sum, count) => sum + count, 0), oracle,
      seconds: Math.round(((simulator.record(site).mailTimes.at(-1) ?? started) - started) / 100) / 10, at_once: `${atOnce}/${model?.connections ?? 0}`, in_a_second: `${second}/${model?.messageRate?.count ?? 0}`, refused: Object.entries(refused).map(([why, count]) => `${why} ${count}`).join(', '),
    };
  });
  const sum = (of: (row: (typeof rows)[number]) => number): number => rows.reduce((all, row) => all + of(row), 0);
  const oracleSeconds = Math.max(...providers.map((model) => leastMs(model, to(model.id)) / 1_000));
  const figures = {
    messages, accepted: simulator.accepted, deferrals: sum((row) => row.deferrals), oracle_deferrals: sum((row) => row.oracle),
    excess_per_1000: Math.round(((sum((row) => row.deferrals) - sum((row) => row.oracle)) / messages) * 10_000) / 10, seconds: Math.round(seconds * 10) / 10, oracle_seconds: Math.round(oracleSeconds * 10) / 10,
  };
  if (values.json) console.log(JSON.stringify({ name: 'mix', ran: `${messages} messages to ${providers.length} receivers, seed ${values.seed}`, figures, targets: {}, sites: rows }));
  else {
    console.table(rows);
    console.table(figures);
  }
  if (simulator.accepted < messages) process.exitCode = 1;
} finally {
  await stage.stop();
}
