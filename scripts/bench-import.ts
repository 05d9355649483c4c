// Consents and suppressions a second from a file to the disk, and leaves a second when a log is verified
//
// A CSV file of consents is imported in three parts into one real ledger, each on top of the ones before,
// so that the last stands in a store of that many records; then three files of suppressions; then the log
// is verified three times. Medians. `longest_ms` is how long the event loop stood still while it imported:
// mail in flight waits that long at most. Everything is removed again.
//   npm run bench -- import [--json] [--rows 1000000] [--dir /var/tmp]
import { createSecretKey } from 'node:crypto';
import { closeSync, createReadStream, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { importConsents, importSuppressions, openLedger, type Ledger } from '../daemon/ledger/index.ts';
import { openKeyring, systemClock } from '../daemon/runtime/index.ts';
import type { Tenant } from '../daemon/settings/index.ts';
import { openLedgerStore } from '../daemon/store/index.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, rows: { type: 'string', default: '1000000' }, dir: { type: 'string', default: tmpdir() } } });
const rows = Number(values.rows);
if (!Number.isSafeInteger(rows) || rows < 3_000) {
  console.error('--rows takes how many consents are imported, at least 3000');
  process.exit(2);
}
const ROUNDS = 3;
const TARGETS = { consents_per_second: 50_000, verified_per_second: 200_000 };
// A machine too slow for all rounds does fewer, and says so: 90 s is what the whole may take.
const IMPORT_UNTIL_MS = 45_000;
const VERIFY_UNTIL_MS = 60_000;
// What the CLI sends at a time.
const CHUNK_OCTETS = 262_144;
const POLICY = 'ab'.repeat(32);

const started = performance.now();
const median = (list: readonly number[]): number => Math.round([...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? 0);
const elapsed = (): number => performance.now() - started;
const say = (text: string): void => {
  if (!values.json) console.log(text);
};
const tenant = {
  id: 'acme',
  policies: [{ version: '2025-01', hash: POLICY, text: '', effectiveAt: 0, purposes: ['news'], tracking: { opens: 'individual', clicks: 'individual' } }],
} as unknown as Tenant;

/** People as in a real list: names spread, domains few. */
const person = (i: number): string => `first.last${i}@${['gmail.com', 'example.com', 'post.example.org', 'mail.example'][i % 4] ?? ''}`;

function write(file: string, header: string, from: number, to: number, row: (i: number) => string): string {
  const fd = openSync(file, 'w');
  let text = `${header}\n`;
  for (let i = from; i < to; i++) {
    text += row(i);
    if (text.length > CHUNK_OCTETS) {
      writeSync(fd, text);
      text = '';
    }
  }
  writeSync(fd, text);
  closeSync(fd);
  return file;
}

async function timed(what: string, count: number, act: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  const cpu = process.cpuUsage();
  await act();
  const seconds = (performance.now() - startedAt) / 1_000;
  const { user, system } = process.cpuUsage(cpu);
  say(`${what}: ${count} in ${seconds.toFixed(1)} s, ${Math.round(count / seconds)}/s; ${((user + system) / count).toFixed(1)} us of CPU each`);
  return count / seconds;
}

async function measure(ledger: Ledger, dir: string): Promise<Record<string, number>> {
  const part = Math.ceil(rows / ROUNDS);
  const blocked = Math.ceil(part / 5);
  const options = { format: 'csv', now: Date.now(), by: 'import' } as const;
  const consents: number[] = [];
  const suppressions: number[] = [];
  const verified: number[] = [];
  const delay = monitorEventLoopDelay({ resolution: 1 });
  for (let round = 0; round < ROUNDS && (round === 0 || elapsed() < IMPORT_UNTIL_MS); round++) {
    const file = write(join(dir, 'consents.csv'), 'email,purpose,source,time,policy,opens,clicks', round * part, (round + 1) * part,
      (i) => `${person(i)},news,sign-up form,2025-12-${10 + (i % 20)}T10:00:00Z,2025-01,aggregate,individual\n`);
    delay.enable();
    consents.push(await timed(`round ${round + 1}, consents`, part, async () => {
      const done = await importConsents(ledger, tenant, createReadStream(file, { highWaterMark: CHUNK_OCTETS }), options);
      if (done.recorded !== part) throw new Error(`${done.recorded} of ${part} were recorded`);
    }));
    delay.disable();
  }
  for (let round = 0; round < ROUNDS; round++) {
    const file = write(join(dir, 'suppressions.csv'), 'email,cause', round * blocked, (round + 1) * blocked, (i) => `${person(i * 7)},hard-bounce\n`);
    suppressions.push(await timed(`round ${round + 1}, suppressions`, blocked, async () => {
      const done = await importSuppressions(ledger, tenant, createReadStream(file, { highWaterMark: CHUNK_OCTETS }), options);
      if (done.recorded !== blocked) throw new Error(`${done.recorded} of ${blocked} were recorded`);
    }));
  }
  const leaves = part * consents.length + blocked * ROUNDS;
  for (let round = 0; round < ROUNDS && (round === 0 || elapsed() < VERIFY_UNTIL_MS); round++) {
    verified.push(await timed(`round ${round + 1}, leaves verified`, leaves, async () => {
      const found = await ledger.log.verify(tenant.id);
      if (!found.ok || found.opened !== leaves) throw new Error(`${found.opened} of ${leaves} leaves were opened: ${found.reason}`);
    }));
  }
  if (consents.length < ROUNDS || verified.length < ROUNDS) say(`cut short: ${consents.length} rounds of consents, ${verified.length} of verifying`);
  return {
    consents_per_second: median(consents), suppressions_per_second: median(suppressions), verified_per_second: median(verified),
    longest_ms: Math.round(delay.max / 1e6), p99_ms: Math.round(delay.percentile(99) / 1e6), rows: part * consents.length, seconds: Math.round((performance.now() - started) / 1_000),
  };
}

const dir = mkdtempSync(join(values.dir, 'postern-bench-import-'));
const store = openLedgerStore(dir);
const ledger = openLedger({ store, clock: systemClock, keyring: openKeyring(join(dir, 'keys'), createSecretKey(Buffer.alloc(32, 7))) });
try {
  const figures = await measure(ledger, dir);
  if (values.json) console.log(JSON.stringify({ name: 'import', ran: new Date().toISOString(), figures, targets: TARGETS }));
  else for (const [name, value] of Object.entries(figures)) console.log(`  ${name.padEnd(24)} ${value}`);
} finally {
  await ledger.close();
  await store.close();
  rmSync(dir, { recursive: true });
}
