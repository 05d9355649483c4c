// How the spool ages: compares the rate of a spool in which 100 messages wait with that of one that has
// been churned for 20 s over 100,000. Both are measured alike: 16 sessions store while 16 deliveries
// settle messages taken at random, bodies of the same sizes, the envelope read and unsealed before each
// settle, real files, seals and syncs. What differs is what age means: pages that lie apart, envelopes
// that are no longer in memory, segments to rewrite. Random order is the worst case; a queue's own order
// is kinder. Read the ratio, not the rates. Everything it wrote is removed again.
//   scripts/node scripts/bench-spool.ts [--json] [--waiting 100000] [--seconds 20] [--dir /var/tmp]
import { createSecretKey, randomBytes, randomInt } from 'node:crypto';
import { mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import type { Composed } from '../daemon/mail/index.ts';
import { newId, openKeyring, openLog, systemClock } from '../daemon/runtime/index.ts';
import { openSpool, type Spool } from '../daemon/spool/index.ts';

// So many sessions store and so many deliveries settle at the same time.
const IN_FLIGHT = 16;
// What "empty" means: enough to take one from at random. SLACK lets neither side wait for the other at every step.
const LEAST_WAITING = 100;
const SLACK = 100;
// Fresh and aged are measured for as long as each other: disks stutter for seconds.
const WINDOW_MS = 10_000;
const DOMAINS = 10_000;
const FILL_IN_FLIGHT = 64;
// 4 to 60 KiB, mean 20 KiB: 100,000 of them are 2 GB, and stay so under churn within four times that.
const BODY_KIB = [4, 4, 8, 12, 20, 32, 60] as const;
const ROOM_WANTED_BYTES = 8e9;

function message(source: Buffer): Composed {
  const size = (BODY_KIB[randomInt(BODY_KIB.length)] ?? 4) * 1024;
  const start = randomInt(source.length - size);
  const domain = `d${randomInt(DOMAINS)}.example`;
  const made = {
    id: newId(Date.now()),
    origin: { tenant: 'bench', stream: 'news', credential: 'app', kind: 'relay' },
    envelope: { mailFrom: 'news@sender.example', smtpUtf8: false, body: '8BITMIME' },
    raw: source.subarray(start, start + size),
    receivedAt: Date.now(),
    protocol: 'ESMTPSA',
    recipients: [{ wire: `someone@${domain}`, domain, evidence: '', hashes: { consent: randomBytes(16), suppression: randomBytes(16), family: randomBytes(16) } }],
    plan: { version: 1, bodyStart: 10, removed: [], added: 'Received: by bench\r\n', parts: [], subscribed: false, untouched: [] },
  };
  // The rooms that make the brand are not what is measured here.
  return made as unknown as Composed;
}

async function store(spool: Spool, source: Buffer): Promise<string> {
  const made = message(source);
  await spool.store(made, { expiresAt: Date.now() + 86_400_000 });
  return made.id;
}

async function finish(spool: Spool, id: string): Promise<void> {
  const shown = spool.show(id);
  const recipient = shown?.recipients[0];
  if (shown === undefined || recipient === undefined) throw new Error(`${id} is not in the spool`);
  await spool.settle({ id, index: 0, message: shown.meta, recipient }, { kind: 'done' });
}

async function lanes(count: number, run: () => Promise<boolean>): Promise<void> {
  const lane = async (): Promise<void> => {
    while (await run());
  };
  await Promise.all(Array.from({ length: count }, lane));
}

interface Rate {
  readonly perSecond: number;
  readonly cpuMs: number;
}

/** Some store and others settle what waits, taken at random, so that as many wait at the end as at the beginning. */
async function churn(spool: Spool, waiting: string[], source: Buffer, ms: number): Promise<Rate> {
  const target = Math.max(waiting.length, LEAST_WAITING);
  const began = performance.now();
  const cpu = process.cpuUsage();
  const ended = (): boolean => performance.now() - began >= ms;
  let settled = 0;
  const storing = lanes(IN_FLIGHT, async () => {
    if (waiting.length < target + SLACK) waiting.push(await store(spool, source));
    else await sleep(1);
    return !ended();
  });
  const settling = lanes(IN_FLIGHT, async () => {
    if (waiting.length <= target) {
      await sleep(1);
      return !ended();
    }
    const at = randomInt(waiting.length);
    const id = waiting[at] ?? '';
    waiting[at] = waiting.at(-1) ?? '';
    waiting.pop();
    await finish(spool, id);
    settled++;
    return !ended();
  });
  await Promise.all([storing, settling]);
  const used = process.cpuUsage(cpu);
  return { perSecond: Math.round((settled * 1000) / (performance.now() - began)), cpuMs: Number(((used.user + used.system) / 1000 / settled).toFixed(3)) };
}

const gigabytes = (octets: number): string => `${(octets / 1e9).toFixed(2)} GB`;

/** Runs the ageing test; prints as it goes, and with `json` one line of figures at the end. */
export async function runSpoolBench(options: { readonly json: boolean; readonly waiting?: number; readonly seconds?: number; readonly dir?: string }): Promise<void> {
  const { json, waiting: target = 100_000, seconds = 20 } = options;
  const dir = mkdtempSync(join(options.dir ?? tmpdir(), 'postern-bench-spool-'));
  const { bavail, bsize } = statfsSync(dir);
  if (bavail * bsize < ROOM_WANTED_BYTES) console.log(`only ${gigabytes(bavail * bsize)} free in ${dir}; ${gigabytes(ROOM_WANTED_BYTES)} are wanted`);
  const spool = await openSpool({
    dir: join(dir, 'spool'),
    keyring: openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32))),
    clock: systemClock,
    log: openLog('warn'),
    reserveBytes: 1e9,
  });
  try {
    const source = randomBytes(4 * 1024 * 1024);
    const waiting: string[] = [];
    await churn(spool, waiting, source, 3_000); // the compiler's time is not the disk's
    const fresh = await churn(spool, waiting, source, WINDOW_MS);
    console.log(`fresh: ${fresh.perSecond} messages/s, ${fresh.cpuMs} ms CPU each`);
    await lanes(FILL_IN_FLIGHT, async () => {
      waiting.push(await store(spool, source));
      return waiting.length < target;
    });
    console.log(`waiting: ${JSON.stringify(spool.counts())}`);
    let aged = fresh;
    const windows = Math.max(2, Math.ceil((seconds * 1000) / WINDOW_MS));
    for (let i = 1; i <= windows; i++) {
      aged = await churn(spool, waiting, source, WINDOW_MS);
      const { segmentBytes, liveBytes } = spool.counts();
      console.log(`after ${(i * WINDOW_MS) / 1000} s of churn: ${aged.perSecond} messages/s, ${aged.cpuMs} ms CPU each; ${gigabytes(segmentBytes)} on disk, ${gigabytes(liveBytes)} live`);
    }
    if (json) {
      console.log(JSON.stringify({
        name: 'spool',
        ran: new Date().toISOString(),
        figures: { aged_vs_fresh: Number((aged.perSecond / fresh.perSecond).toFixed(2)), fresh_per_s: fresh.perSecond, aged_per_s: aged.perSecond },
        targets: { aged_vs_fresh: 0.7 },
      }));
    }
  } finally {
    await spool.close();
    rmSync(dir, { recursive: true });
  }
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, waiting: { type: 'string' }, seconds: { type: 'string' }, dir: { type: 'string' } } });
  await runSpoolBench({
    json: values.json,
    ...(values.waiting === undefined ? {} : { waiting: Number(values.waiting) }),
    ...(values.seconds === undefined ? {} : { seconds: Number(values.seconds) }),
    ...(values.dir === undefined ? {} : { dir: values.dir }),
  });
}
