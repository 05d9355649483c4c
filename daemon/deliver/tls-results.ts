// What became of TLS with each receiver, a day at a time, for the reports that receivers ask for. Only domains that
// publish `_smtp._tls` are counted: hosts, addresses and numbers of sessions, all tenants together, nothing of who
// mailed whom. Callers may rely on: counting never holds up mail nor throws; what is counted outlives a restart,
// but for the last minute; every table has an end. RFC 8460.
import type { Resolver } from '../dns/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { Connected } from '../smtp/index.ts';
import type { Need } from './need.ts';
import { isInPolicy } from './mta-sts.ts';
import type { HostsRoute, TargetHost } from './route.ts';

/** RFC 8460 §4.3, as far as a connection shows it. */
export type TlsResult = 'starttls-not-supported' | 'certificate-host-mismatch' | 'certificate-expired' | 'certificate-not-trusted' | 'tlsa-invalid' | 'validation-failure'
  | 'sts-policy-fetch-error' | 'sts-policy-invalid' | 'sts-webpki-invalid';

/** RFC 8460 §4.2: what a session was held against. */
export interface TlsPolicy {
  readonly type: 'tlsa' | 'sts' | 'no-policy-found';
  readonly string: readonly string[];
  /** MTA-STS only: the host patterns. */
  readonly mx: readonly string[];
}

export interface TlsFailure {
  readonly result: TlsResult;
  /** Both '' where it came to no connection. */
  readonly host: string;
  readonly address: string;
  readonly reason: string;
  count: number;
}

export interface TlsCount {
  readonly policy: TlsPolicy;
  successes: number;
  readonly failures: TlsFailure[];
}

/** One UTC day of one domain. */
export interface TlsDay {
  /** `2026-11-23` */
  readonly day: string;
  readonly domain: string;
  /** Where its owner wants it: `mailto:` and `https:` URIs (RFC 8460 §3). */
  rua: readonly string[];
  readonly counts: TlsCount[];
}

/** One connection, as far as TLS is concerned. */
export interface TlsSeen {
  readonly domain: string;
  readonly policy: HostsRoute['policy'];
  readonly host: TargetHost;
  readonly address: string;
  readonly by: Need['by'];
  readonly connected: Connected;
}

/** An MTA-STS policy that was announced and could not be had. */
export interface StsUnread {
  readonly domain: string;
  readonly unread: 'sts-policy-fetch-error' | 'sts-policy-invalid' | 'sts-webpki-invalid';
}

// Days times domains; a domain beyond it is not reported to, which harms nobody.
const DOMAINS = 20_000;
// A domain whose record was not there is asked about again the next day.
const SILENT = 100_000;
// Different failures of one policy in a day; more of them teach nothing more.
const FAILURES = 100;

export class TlsResults {
  readonly #resolver: Pick<Resolver, 'txt'>;
  readonly #clock: Clock;
  readonly #days: Map<string, TlsDay>;
  /** Domains without a record, of the day. */
  #silent = { day: '', domains: new Set<string>() };
  changed = false;

  constructor({ resolver, clock, state = [] }: { readonly resolver: Pick<Resolver, 'txt'>; readonly clock: Clock; readonly state?: readonly TlsDay[] }) {
    this.#resolver = resolver;
    this.#clock = clock;
    this.#days = new Map(state.map((day) => [keyOf(day), day]));
  }

  /** Counts a connection, when its domain wants to hear of it. */
  async seen(of: TlsSeen | StsUnread): Promise<void> {
    const result = resultOf(of);
    if (result === undefined) return;
    const day = dayOf(this.#clock.now());
    if (this.#silent.day !== day) this.#silent = { day, domains: new Set() };
    if (this.#silent.domains.has(of.domain)) return;
    const known = this.#days.get(keyOf({ day, domain: of.domain })) ?? await this.#begin(day, of.domain);
    if (known !== undefined) this.#count(known, of, result);
  }

  /** The days that have ended. */
  ended(): readonly TlsDay[] {
    const today = dayOf(this.#clock.now());
    return [...this.#days.values()].filter(({ day }) => day < today);
  }

  /** It has been told. */
  forget(day: TlsDay): void {
    this.changed = this.#days.delete(keyOf(day)) || this.changed;
  }

  state(): readonly TlsDay[] {
    this.changed = false;
    return [...this.#days.values()];
  }

  async #begin(day: string, domain: string): Promise<TlsDay | undefined> {
    const rua = ruaIn(await this.#resolver.txt(`_smtp._tls.${domain}`));
    if (rua.length === 0) {
      if (this.#silent.domains.size < SILENT) this.#silent.domains.add(domain);
      return undefined;
    }
    const key = keyOf({ day, domain });
    const known = this.#days.get(key);
    if (known !== undefined || this.#days.size >= DOMAINS) return known;
    const begun: TlsDay = { day, domain, rua, counts: [] };
    this.#days.set(key, begun);
    return begun;
  }

  #count(day: TlsDay, of: TlsSeen | StsUnread, { result, reason }: Exclude<ReturnType<typeof resultOf>, undefined>): void {
    this.changed = true;
    const policy = policyOf(of);
    const same = JSON.stringify(policy);
    let count = day.counts.find((one) => JSON.stringify(one.policy) === same);
    if (count === undefined) {
      count = { policy, successes: 0, failures: [] };
      day.counts.push(count);
    }
    if (result === '') {
      count.successes++;
      return;
    }
    const [host, address] = 'unread' in of ? ['', ''] : [of.host.name, of.address];
    const failure = count.failures.find((one) => one.result === result && one.host === host && one.address === address);
    if (failure !== undefined) failure.count++;
    else if (count.failures.length < FAILURES) count.failures.push({ result, host, address, reason, count: 1 });
  }
}

const keyOf = ({ day, domain }: Pick<TlsDay, 'day' | 'domain'>): string => `${day} ${domain}`;
const dayOf = (at: number): string => new Date(at).toISOString().slice(0, 10);

/** '' for success; undefined when it came to no word about TLS. */
function resultOf(of: TlsSeen | StsUnread): { readonly result: TlsResult | ''; readonly reason: string } | undefined {
  if ('unread' in of) return { result: of.unread, reason: '' };
  const { connected, by, host, policy } = of;
  if (connected.kind === 'session') {
    const { tls, distrust } = connected.session;
    if (tls === '') return { result: 'starttls-not-supported', reason: '' };
    if (!isTesting(of) || policy === undefined) return { result: '', reason: '' };
    // RFC 8461 §5: under `testing` mail goes, and what `enforce` would have stopped is told.
    if (!isInPolicy(policy, host.name)) return { result: 'validation-failure', reason: 'the host is not in the policy' };
    return distrust === '' ? { result: '', reason: '' } : { result: faultIn(distrust, by), reason: distrust };
  }
  if (connected.phase !== 'tls') return undefined;
  if (connected.kind === 'refused') return { result: 'starttls-not-supported', reason: String(connected.reply.code) };
  return { result: faultIn(connected.reason, by), reason: connected.reason };
}

const isTesting = ({ host, policy }: TlsSeen): boolean => host.tlsa === undefined && policy?.mode === 'testing';

function faultIn(reason: string, by: Need['by']): TlsResult {
  // Node's and OpenSSL's names of what is wrong with a certificate stand in the reason.
  if (/offers no STARTTLS/.test(reason)) return 'starttls-not-supported';
  if (/ALTNAME_INVALID|HOSTNAME_MISMATCH/.test(reason)) return 'certificate-host-mismatch';
  if (/EXPIRED/.test(reason)) return 'certificate-expired';
  if (/SELF_SIGNED|UNABLE_TO|CERT_UNTRUSTED|CERT_REVOKED|CERT_REJECTED|INVALID_CA|CERT_SIGNATURE_FAILURE|CERT_CHAIN_TOO_LONG/.test(reason)) return 'certificate-not-trusted';
  return by === 'DANE' && /TLSA/.test(reason) ? 'tlsa-invalid' : 'validation-failure';
}

function policyOf(of: TlsSeen | StsUnread): TlsPolicy {
  if ('unread' in of) return { type: 'sts', string: [], mx: [] };
  const { host, policy } = of;
  if (host.tlsa !== undefined) {
    return { type: 'tlsa', string: host.tlsa.map(({ usage, selector, matchingType, certificate }) => `${usage} ${selector} ${matchingType} ${certificate.toString('hex')}`), mx: [] };
  }
  if ((host.sts === true || isTesting(of)) && policy !== undefined) {
    return { type: 'sts', string: ['version: STSv1', `mode: ${policy.mode}`, ...policy.mx.map((mx) => `mx: ${mx}`), `max_age: ${policy.maxAgeMs / 1_000}`], mx: policy.mx };
  }
  return { type: 'no-policy-found', string: [], mx: [] };
}

/** RFC 8460 §3: exactly one record counts. */
function ruaIn(answer: Awaited<ReturnType<Resolver['txt']>>): readonly string[] {
  if (answer.kind !== 'found') return [];
  const records = answer.records.filter((record) => /^v=TLSRPTv1[ \t]*;/.test(record));
  const [, rua = ''] = records.length === 1 ? /;[ \t]*rua[ \t]*=[ \t]*([^;]+)/.exec(records[0] ?? '') ?? [] : [];
  return rua.split(',').map((uri) => uri.trim()).filter((uri) => /^(?:mailto:[^\s@<>"]+@[^\s@<>"?]+$|https:\/\/\S+$)/i.test(uri));
}
