// What a decision costs beside millions of records: parse the address, hash it, read the facts, judge.
// Consents and suppressions of many tenants in a real LMDB, written as an import writes them (log and
// all), then decisions about people taken at random, a tenth of them suppressed and a tenth unknown; the
// same on a ledger of 10,000 records, right after it and under the same noise. Cold: the file's pages are
// dropped from the page cache and the ledger is opened anew. One core; everything is removed again.
// The big ledger takes minutes to build: --keep FOLDER leaves it there, and uses it when it is there already.
//   npm run bench -- gate [--json] [--consents 10000000] [--suppressions 1000000] [--tenants 100] [--dir /var/tmp] [--keep FOLDER]
import { execFileSync } from 'node:child_process';
import { createHmac, createSecretKey } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { judgeRecipient } from '../daemon/gate/index.ts';
import { openLedger, type Ledger } from '../daemon/ledger/index.ts';
import { TABLE, consentKey, rowKey } from '../daemon/ledger/row-keys.ts';
import { parseAddress } from '../daemon/mail/index.ts';
import { openKeyring, systemClock } from '../daemon/runtime/index.ts';
import { loadSettings, type Settings, type Stream, type Tenant } from '../daemon/settings/index.ts';
import { openLedgerStore, type LedgerStore } from '../daemon/store/index.ts';
import { makeSandbox } from './sandbox.ts';

const { values } = parseArgs({ options: {
  json: { type: 'boolean', default: false }, consents: { type: 'string', default: '10000000' }, suppressions: { type: 'string', default: '1000000' },
  tenants: { type: 'string', default: '100' }, dir: { type: 'string', default: tmpdir() }, keep: { type: 'string' },
} });
// Each figure is the median of so many rounds of so many decisions.
const ROUNDS = 5;
const DECISIONS = 100_000;
const ASKED = 5_000;
const BATCH = 2_000;
const SMALL = 10_000;
const MASTER = createSecretKey(Buffer.alloc(32, 7));

interface Place {
  readonly dir: string;
  readonly settings: Settings;
  readonly stream: Stream;
  readonly tenants: readonly Tenant[];
  readonly perTenant: number;
  store: LedgerStore;
  ledger: Ledger;
}

const median = (list: readonly number[]): number => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)] ?? 0;
// Names spread like real ones: the hash scatters them anyway.
const person = (i: number): string => `person.${i}@${['example.com', 'mail.example', 'post.example.org'][i % 3] ?? ''}`;

function open(dir: string): Pick<Place, 'store' | 'ledger'> {
  const store = openLedgerStore(dir);
  return { store, ledger: openLedger({ store, clock: systemClock, keyring: openKeyring(join(dir, 'keys'), MASTER) }) };
}

async function build(name: string, settings: Settings, consents: number, suppressions: number, count: number, keep?: string): Promise<Place> {
  const dir = keep ?? mkdtempSync(join(values.dir, `postern-bench-gate-${name}-`));
  const built = existsSync(join(dir, 'ledger'));
  const [first] = settings.tenants.values();
  const [stream] = first?.streams.values() ?? [];
  if (first === undefined || stream === undefined) throw new Error('the sandbox has no tenant with a stream');
  const tenants = Array.from({ length: count }, (_, i): Tenant => ({ ...first, id: `tenant-${i}` }));
  const place: Place = { dir, settings, stream, tenants, perTenant: Math.ceil(consents / count), ...open(dir) };
  if (built) return place;
  const startedAt = performance.now();
  const policyHash = first.policies[0]?.hash ?? '';
  for (const [n, { id }] of tenants.entries()) {
    for (let from = 0; from < place.perTenant; from += BATCH) {
      await place.ledger.giveAll(id, Array.from({ length: Math.min(BATCH, place.perTenant - from) }, (_, i) => ({
        hashes: place.ledger.hashes(id, parseAddress(person(from + i))), purpose: stream.purpose, state: 'given' as const, legalBasis: 'gdpr_6_1_a', policyHash, method: 'import', by: 'import',
        evidence: { source: 'sign-up form', time: 1_767_225_600_000 + i }, tracking: { opens: 'aggregate' as const, clicks: 'individual' as const },
      })));
    }
    const blocked = Math.ceil(suppressions / count);
    for (let from = 0; from < blocked; from += BATCH) {
      await place.ledger.suppressAll(id, Array.from({ length: Math.min(BATCH, blocked - from) }, (_, i) => ({
        hashes: place.ledger.hashes(id, parseAddress(person((from + i) * 10))), scope: 'all' as const, cause: 'hard-bounce' as const, by: 'import',
      })));
    }
    if ((n + 1) % Math.ceil(count / 10) === 0) console.log(`${name}: ${n + 1} of ${count} tenants, ${Math.round(((n + 1) * (place.perTenant + blocked)) / ((performance.now() - startedAt) / 1000))} records/s`);
  }
  return place;
}

/** `timed`: microseconds of each decision, for the percentiles; without, nothing but the decisions runs. */
async function decide(place: Place, decisions: number, timed?: Float64Array): Promise<number> {
  const { tenants, perTenant, stream, settings, ledger } = place;
  let yes = 0;
  let tookMs = 0;
  for (let done = 0; done < decisions; done += ASKED) {
    // Made up beforehand, a few at a time: the questions are not what is measured.
    const asked = Array.from({ length: ASKED }, () => ({
      tenant: tenants[Math.floor(Math.random() * tenants.length)] ?? (tenants[0] as Tenant), text: person(Math.floor(Math.random() * perTenant * 1.1)),
    }));
    const startedAt = performance.now();
    for (const [i, { tenant, text }] of asked.entries()) {
      const at = timed === undefined ? 0 : performance.now();
      const address = parseAddress(text);
      const facts = await ledger.facts(tenant.id, stream.purpose, stream.id, ledger.hashes(tenant.id, address));
      if (judgeRecipient({ tenant, stream, now: Date.now(), facts, profiles: settings, domain: address.domain }).answer === 'yes') yes++;
      if (timed !== undefined) timed[done + i] = (performance.now() - at) * 1000;
    }
    tookMs += performance.now() - startedAt;
  }
  const us = (tookMs * 1000) / decisions;
  // Nine of eleven: a tenth suppressed, and a tenth more asked about than there are.
  if (yes < decisions * 0.7 || yes > decisions * 0.93) throw new Error(`${yes} of ${decisions} were yes: the records are not what they should be`);
  return us;
}

/** The floor: one HMAC of Node's and the two look-ups, with nothing told and nothing judged. */
async function rawLookups(place: Place, count: number): Promise<number> {
  const key = createSecretKey(Buffer.alloc(32, 9));
  let tookMs = 0;
  for (let done = 0; done < count; done += ASKED) {
    const asked = Array.from({ length: ASKED }, () => {
      const tenant = place.tenants[Math.floor(Math.random() * place.tenants.length)]?.id ?? '';
      const text = person(Math.floor(Math.random() * place.perTenant * 1.1));
      const hashes = place.ledger.hashes(tenant, parseAddress(text));
      return { text, keys: [consentKey(tenant, hashes, place.stream.purpose), rowKey(TABLE.suppressed, tenant, hashes.suppression)] };
    });
    const startedAt = performance.now();
    for (const { text, keys } of asked) {
      createHmac('sha256', key).update(text).digest();
      await place.store.getMany(keys);
    }
    tookMs += performance.now() - startedAt;
  }
  return (tookMs * 1000) / count;
}

const percentile = (sorted: Float64Array, p: number): number => Number((sorted[Math.floor(sorted.length * p)] ?? 0).toFixed(1));

/** Into the page cache, whole. */
function warm(dir: string): void {
  for (const name of readdirSync(join(dir, 'ledger'))) execFileSync('dd', [`if=${join(dir, 'ledger', name)}`, 'of=/dev/null', 'bs=1M'], { stdio: 'ignore' });
}

/** Out of the page cache, as after a restart of the machine. */
function chill(dir: string): void {
  for (const name of readdirSync(join(dir, 'ledger'))) execFileSync('dd', [`of=${join(dir, 'ledger', name)}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'], { stdio: 'ignore' });
}

/** Memory of our own: the file's mapped pages are the page cache's. */
const anonymousMib = (): number => Number(/^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0) / 1024;

const root = mkdtempSync(join(tmpdir(), 'postern-bench-gate-settings-'));
const made = await makeSandbox(root, { submissions: 1, submission: 2, pages: 3, metrics: 4, sink: 5 });
const loaded = loadSettings(made.root);
if (!loaded.ok) throw new Error('the sandbox does not load');
const places: Place[] = [];
try {
  const [consents, suppressions, tenants] = [Number(values.consents), Number(values.suppressions), Number(values.tenants)];
  const small = await build('small', loaded.settings, SMALL, SMALL / 10, 1);
  places.push(small);
  const big = await build('big', loaded.settings, consents, suppressions, tenants, values.keep);
  places.push(big);
  warm(big.dir);
  await decide(small, DECISIONS);
  for (let i = 0; i < 10; i++) await decide(big, DECISIONS); // warms what the tree's upper pages and the compiler need
  const rounds = [];
  for (let i = 0; i < ROUNDS; i++) rounds.push({ small: await decide(small, DECISIONS), big: await decide(big, DECISIONS), raw: await rawLookups(big, DECISIONS) });
  const each = new Float64Array(DECISIONS * 2);
  await decide(big, each.length, each);
  each.sort();
  const state = big.store.size('state');
  const log = big.store.size('log');
  // What the questions left is not the ledger's; the collector gives it back in its own time.
  for (let i = 0; i < 5; i++) {
    globalThis.gc?.();
    await sleep(500);
  }
  const rssMib = anonymousMib();
  await big.ledger.close();
  await big.store.close();
  chill(big.dir);
  Object.assign(big, open(big.dir));
  const cold = new Float64Array(5_000);
  const coldUs = await decide(big, cold.length, cold);
  cold.sort();
  const us = median(rounds.map((round) => round.big));
  const figures = {
    decisions_per_second: Math.round(1e6 / us), raw_lookups_per_second: Math.round(1e6 / median(rounds.map((round) => round.raw))), ratio_vs_raw: Number(median(rounds.map((round) => round.raw / round.big)).toFixed(2)),
    p50_us: percentile(each, 0.5), p99_us: percentile(each, 0.99), p999_us: percentile(each, 0.999),
    bytes_per_record: Math.round(state.bytes / state.records), log_bytes_per_leaf: Math.round(log.bytes / log.records),
    ratio_10m_vs_10k: Number(median(rounds.map((round) => round.big / round.small)).toFixed(2)), small_per_second: Math.round(1e6 / median(rounds.map((round) => round.small))),
    rss_mib: Math.round(rssMib), cold_per_second: Math.round(1e6 / coldUs), cold_p50_us: percentile(cold, 0.5), cold_p99_us: percentile(cold, 0.99),
  };
  console.log(`${consents} consents, ${suppressions} suppressions, ${tenants} tenants; ${ROUNDS} rounds of ${DECISIONS} decisions, medians; the small ledger holds ${SMALL}`);
  for (const [name, value] of Object.entries(figures)) console.log(`  ${name.padEnd(22)} ${value}`);
  if (values.json) console.log(JSON.stringify({ name: 'gate', ran: new Date().toISOString(), figures, targets: { decisions_per_second: 100_000, p99_us: 50, bytes_per_record: 300, ratio_10m_vs_10k: 2.5, rss_mib: 400 } }));
} finally {
  for (const place of places) {
    await place.ledger.close();
    await place.store.close();
    if (place.dir !== values.keep) rmSync(place.dir, { recursive: true });
  }
  rmSync(root, { recursive: true });
}
