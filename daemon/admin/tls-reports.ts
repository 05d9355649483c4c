// Tells receivers who ask for it how TLS went with their hosts, the day after (RFC 8460). Callers may rely on:
// without `tls_reports` nothing is counted, kept or sent; what is kept is sealed; a report goes out as mail of the
// operator's own tenant through the queue, or by HTTPS to a public address, once for each day and domain, and
// what cannot be sent today is given up after two days.
import { request } from 'node:https';
import { isIP, type LookupFunction } from 'node:net';
import { join } from 'node:path';
import { compose } from '../compose/index.ts';
import { TlsResults, type TlsDay, type StsUnread, type TlsSeen } from '../deliver/index.ts';
import { isPublicAddress, type Resolver } from '../dns/index.ts';
import { tlsReport, tlsReportMail, type TlsReportFacts } from '../events/index.ts';
import { admit } from '../gate/index.ts';
import type { Ledger } from '../ledger/index.ts';
import { parseAddress } from '../mail/index.ts';
import { newId, openKept, type Clock, type Keyring, type Log } from '../runtime/index.ts';
import type { Settings, Tenant } from '../settings/index.ts';
import type { Spool } from '../spool/index.ts';
import { makeNotice, receivedField } from '../submission/index.ts';

export interface TlsReportsOptions {
  readonly settings: () => Settings;
  readonly keyring: Keyring;
  readonly ledger: Pick<Ledger, 'hashes'>;
  readonly spool: Pick<Spool, 'store'>;
  readonly resolver: Pick<Resolver, 'txt' | 'addresses'>;
  readonly clock: Clock;
  readonly log: Log;
  /** For tests: where an https report may go, and who vouches for it. */
  readonly https?: { readonly allowed: (address: string) => boolean; readonly port: number; readonly ca: Buffer };
}

export interface TlsReports {
  /** What the deliverer tells of each connection. */
  readonly seen: (seen: TlsSeen | StsUnread) => Promise<void>;
  /** Sends what is due now. */
  look(): Promise<void>;
  close(): Promise<void>;
}

const LOOK_MS = 600_000;
const KEEP_MS = 60_000;
const DAY_MS = 86_400_000;
// RFC 8460 §4.1 asks for a delay of some hours after midnight, not the same for everybody.
const SPREAD_MS = 4 * 3_600_000;
const SENT_WITHIN_MS = 15_000;
const RETRY_MS = DAY_MS;

/** Opens it; counting begins with the next connection. */
export function openTlsReports(options: TlsReportsOptions): TlsReports {
  const wanted = options.settings().server.tlsReports;
  if (wanted === undefined) return { seen: async () => undefined, look: async () => undefined, close: async () => undefined };
  const { clock, log, resolver, keyring } = options;
  const kept = openKept<readonly TlsDay[]>(join(options.settings().server.dataDir, 'tls-results'), keyring.house, log);
  const results = new TlsResults({ resolver, clock, ...(kept.state !== undefined && { state: kept.state }) });
  const keep = (): void => {
    if (results.changed) kept.keep(results.state());
  };
  const spread = Math.random() * SPREAD_MS;
  const look = async (all = false): Promise<void> => {
    for (const day of results.ended()) {
      const age = clock.now() - Date.parse(day.day) - DAY_MS;
      if (!all && age < spread) continue;
      if (await tell(options, wanted, day) || age > 2 * DAY_MS) results.forget(day);
    }
    keep();
  };
  let looking: Promise<void> = Promise.resolve();
  const timers = [setInterval(keep, KEEP_MS), setInterval(() => (looking = looking.then(() => look())), LOOK_MS)];
  return {
    seen: (seen) => results.seen(seen),
    look: () => look(true),
    async close() {
      for (const timer of timers) clearInterval(timer);
      await looking;
      keep();
    },
  };
}

type Wanted = NonNullable<Settings['server']['tlsReports']>;

/** True when everybody who asked has it, or it is on its way to them. */
async function tell(options: TlsReportsOptions, { tenant: id, organization, contact }: Wanted, due: TlsDay): Promise<boolean> {
  const { day, domain, rua, counts } = due;
  const tenant = options.settings().tenants.get(id);
  if (tenant === undefined) return false;
  const facts: TlsReportFacts = { organization, contact, id: newId(options.clock.now()).toLowerCase(), day, domain, policies: counts };
  const report = tlsReport(facts);
  const left: string[] = [];
  for (const uri of rua) {
    try {
      if (uri.toLowerCase().startsWith('mailto:')) await mail(options, tenant, decodeURIComponent(uri.slice('mailto:'.length)), facts, report);
      else await post(options, uri, report);
    } catch (error) {
      options.log.info({ day, reason: error instanceof Error ? error.message : String(error) }, 'a TLS report could not be sent');
      left.push(uri);
    }
  }
  due.rua = left;
  return left.length === 0;
}

async function mail({ settings, ledger, spool, clock }: TlsReportsOptions, tenant: Tenant, to: string, facts: TlsReportFacts, report: Buffer): Promise<void> {
  const address = parseAddress(to);
  const [domain] = tenant.domains;
  const stream = [...tenant.streams.values()].find((one) => one.class === 'transactional') ?? tenant.streams.values().next().value;
  if (domain === undefined || stream === undefined) throw new Error(`tenant ${tenant.id} has no domain or no stream`);
  const { hostname } = settings().server;
  const at = clock.now();
  const raw = await tlsReportMail(report, facts, { from: `tls-reports@${domain.name}`, to, submitter: hostname, at });
  const submitted = makeNotice({ id: newId(at), tenant: tenant.id, stream: stream.id, to, raw, at });
  const recipient = { wire: to, domain: address.domain, hashes: ledger.hashes(tenant.id, address), evidence: '' };
  await spool.store(compose(admit(submitted, [recipient]), { hostname, stream, domain, receivedFields: receivedField(submitted, hostname) }), { expiresAt: at + RETRY_MS, priority: 'low' });
}

/** RFC 8460 §5.2. */
async function post({ resolver, https }: TlsReportsOptions, uri: string, report: Buffer): Promise<void> {
  const url = new URL(uri);
  const found = await resolver.addresses(url.hostname);
  const address = found.kind === 'found' ? found.records.find(https?.allowed ?? isPublicAddress) : undefined;
  if (address === undefined) throw new Error('the report host has no public address');
  const lookup: LookupFunction = (_name, options, done) => (options.all === true ? done(null, [{ address, family: isIP(address) }]) : done(null, address, isIP(address)));
  await new Promise<void>((resolve, reject) => {
    const call = request(url, {
      method: 'POST', servername: url.hostname, lookup, agent: false, signal: AbortSignal.timeout(SENT_WITHIN_MS), ...(https !== undefined && { port: https.port, ca: https.ca }),
      headers: { 'Content-Type': 'application/tlsrpt+gzip', 'Content-Length': report.length },
    }, (answer) => {
      answer.resume();
      const { statusCode = 0 } = answer;
      if (statusCode >= 200 && statusCode < 300) resolve();
      else reject(new Error(`the report host answered ${statusCode}`));
    });
    call.on('error', reject);
    call.end(report);
  });
}
