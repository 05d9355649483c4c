// Where mail for a domain goes: static routes first, then MX, then the domain's own address. Callers may
// rely on: only a route leads to a private or loopback address; in a sandbox only routes lead anywhere; a
// host list is never empty; a DNS failure is `deferred`, never `failed`. Equal preferences are in random
// order, drawn anew by orderHosts. RFC 5321 §5, RFC 7505.
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import { isPublicAddress, type Answer, type Resolver, type TlsaRecord } from '../dns/index.ts';
import type { Clock } from '../runtime/index.ts';
import { laneLimits, type LaneLimits, type Route, type Shaping } from '../settings/index.ts';
import type { BounceClass } from './classify.ts';
import { usableTlsa } from './dane.ts';
import { isInPolicy, type MtaSts, type StsPolicy } from './mta-sts.ts';

export interface TargetHost {
  readonly name: string;
  readonly addresses: readonly string[];
  readonly port: number;
  readonly preference: number;
  /** DANE (RFC 7672): TLS or nothing, authenticated by these records; an empty list asks for TLS alone. */
  readonly tlsa?: readonly TlsaRecord[];
  /** Where the TLSA records stand, when that is not `name` but where its aliases lead: the name asked for in the handshake. */
  readonly tlsaBase?: string;
  /** MTA-STS (RFC 8461): TLS or nothing, with a certificate that public authorities vouch for. */
  readonly sts?: true;
  /** Its name is the operator's word, or DNSSEC's: a certificate for it proves something. */
  readonly vouched?: true;
}

export interface HostsRoute {
  readonly kind: 'hosts';
  /** Provider id, `route:<via>`, or the sorted MX set joined by commas: what a lane is named for. */
  readonly site: string;
  /** Whose limits hold; '' where no provider matches. */
  readonly provider: string;
  /** The site as a metric label, from a closed set: `other` where the site is not an operator's word. */
  readonly label: string;
  readonly hosts: readonly TargetHost[];
  readonly tls: LaneLimits['tls'];
  readonly viaRoute: boolean;
  /** The domain's MTA-STS policy, whatever its mode. */
  readonly policy?: StsPolicy;
}

export type RouteResult =
  | HostsRoute
  | { readonly kind: 'failed'; readonly class: BounceClass; readonly status: string; readonly reason: string; readonly deadAddress: boolean }
  | { readonly kind: 'deferred'; readonly class: BounceClass; readonly reason: string };

export interface RouteContext {
  readonly resolver: Resolver;
  readonly shaping: Shaping;
  readonly sandbox: boolean;
  /** Our own name: an MX list is cut where we stand in it. */
  readonly hostname: string;
  /** Where policies of domains come from; without it none holds. */
  readonly sts?: Pick<MtaSts, 'policyFor'>;
}

// RFC 5321 §5.1 asks for at least two; nobody needs more than this to be reached, and each costs two look-ups.
const HOSTS = 10;

/** Where this A-label domain's mail goes now, and the milliseconds that may be remembered. */
export async function resolveRoute(domain: string, context: RouteContext): Promise<{ readonly route: RouteResult; readonly ttlMs: number }> {
  const fixed = context.shaping.routes.find((route) => matchesDomain(route.domain, domain));
  if (fixed !== undefined && fixed.loopbackMx === undefined) return viaRoute(fixed, context.resolver);
  if (context.sandbox && fixed === undefined) return { route: failed('sandbox', '5.4.4', 'this is a sandbox and no route of it leads to this domain'), ttlMs: FAILED_MS };
  if (domain.startsWith('[')) return { route: failed('routing', '5.1.2', 'address literals are not mailed'), ttlMs: FAILED_MS };
  const on: Reach = fixed?.loopbackMx !== undefined && context.sandbox ? { port: fixed.loopbackMx, allowed: (address) => address.startsWith('127.') } : PUBLIC;
  const [mx, policy] = await Promise.all([context.resolver.mx(domain), context.sts?.policyFor(domain)]);
  if (mx.kind === 'failed') return { route: deferred('dns', `the MX look-up failed: ${mx.reason}`), ttlMs: DEFERRED_MS };
  // RFC 5321 §5.1: without MX the domain itself is its MX.
  const onTo: Reach = { ...on, ...(policy !== undefined && { policy }) };
  if (mx.kind === 'none') return viaMx([{ exchange: domain, preference: 0 }], FAILED_MS, true, context, { ...onTo, secure: mx.authentic === true });
  // RFC 7505 §3
  if (mx.records.some((r) => isNull(r.exchange))) {
    if (mx.records.length === 1) return { route: { ...failed('bad-domain', '5.1.10', 'the domain takes no mail (null MX)'), deadAddress: true }, ttlMs: mx.ttlSeconds * 1_000 };
    return viaMx(mx.records.filter((r) => !isNull(r.exchange)), mx.ttlSeconds * 1_000, false, context, { ...onTo, secure: mx.authentic });
  }
  return viaMx(mx.records, mx.ttlSeconds * 1_000, false, context, { ...onTo, secure: mx.authentic });
}

// A wrong failure is corrected within minutes, a resolver's bad moment within half of one.
const FAILED_MS = 300_000;
const DEFERRED_MS = 30_000;

/** Which addresses an MX may have, and the port mail is taken on there. */
interface Reach {
  readonly port: number;
  readonly allowed: (address: string) => boolean;
  /** The MX records, or that there are none, are vouched for by DNSSEC: only then may TLSA records of the hosts speak (RFC 7672 §2.2). */
  readonly secure?: boolean;
  readonly policy?: StsPolicy;
}

const PUBLIC: Reach = { port: 25, allowed: isPublicAddress };

interface Exchange {
  readonly exchange: string;
  readonly preference: number;
}

async function viaMx(records: readonly Exchange[], ttlMs: number, implicit: boolean, context: RouteContext, on: Reach): Promise<{ readonly route: RouteResult; readonly ttlMs: number }> {
  const all = records.map((r) => ({ name: canonical(r.exchange), preference: r.preference }));
  // RFC 5321 §5.1 MUST: only hosts preferred to ourselves, lest mail runs in a circle.
  const own = all.find((h) => h.name === canonical(context.hostname));
  const usable = own === undefined ? all : all.filter((h) => h.preference < own.preference);
  if (usable.length === 0) return { route: failed('routing', '5.4.6', 'the best MX of the domain is this host'), ttlMs };
  const enforced = on.policy?.mode === 'enforce' ? on.policy : undefined;
  // RFC 8461 §5.1: under a policy other hosts get nothing, whatever DNS says.
  const named = enforced === undefined ? usable : usable.filter(({ name }) => isInPolicy(enforced, name));
  if (named.length === 0) return { route: deferred('tls', 'no MX host is in the MTA-STS policy of the domain (RFC 8461)'), ttlMs: DEFERRED_MS };
  const wanted = orderHosts(named).slice(0, HOSTS);
  const answers = await Promise.all(wanted.map((h) => (isIP(h.name) === 0 ? context.resolver.addresses(h.name) : Promise.resolve({ kind: 'none' as const }))));
  const hosts: TargetHost[] = [];
  const promises = await Promise.all(wanted.map((host, i) => tlsaOf(host.name, answers[i], context.resolver, on)));
  let failedLookup = false;
  let unpromised = false;
  let hidden = false;
  for (const [i, host] of wanted.entries()) {
    const answer = answers[i];
    if (answer?.kind === 'failed') failedLookup = true;
    if (answer?.kind !== 'found') continue;
    const addresses = answer.records.filter(on.allowed);
    if (addresses.length < answer.records.length) hidden = true;
    const tlsa = promises[i];
    // RFC 7672 §2.2: whether a promise is there cannot be told, so the host is not used.
    if (tlsa === 'failed') unpromised = true;
    else if (addresses.length > 0) hosts.push({ ...host, addresses, port: on.port, ...tlsa, ...(enforced !== undefined && { sts: true as const }), ...(on.secure === true && { vouched: true as const }) });
    ttlMs = Math.min(ttlMs, answer.ttlSeconds * 1_000);
  }
  if (hosts.length > 0) {
    const site = siteName(context.shaping, usable.map((h) => h.name));
    return { route: { kind: 'hosts', ...site, hosts, tls: laneLimits(context.shaping, { egress: '', provider: site.provider }).tls, viaRoute: false, ...(on.policy !== undefined && { policy: on.policy }) }, ttlMs };
  }
  if (unpromised) return { route: deferred('tls', 'the TLSA look-up of every MX host failed (RFC 7672)'), ttlMs: DEFERRED_MS };
  if (failedLookup) return { route: deferred('dns', 'the address look-up of every MX host failed'), ttlMs: DEFERRED_MS };
  if (hidden) return { route: failed('routing', '5.4.4', 'every MX host of the domain has a private address'), ttlMs: FAILED_MS };
  // A domain that is nowhere is not proof of a dead mailbox: a resolver gone wrong says the same of all domains.
  if (implicit) return { route: failed('bad-domain', '5.1.2', 'the domain has neither MX nor address'), ttlMs: FAILED_MS };
  return { route: deferred('dns', 'no MX host of the domain has an address'), ttlMs: FAILED_MS };
}

/** What a host promises of its certificate, and under which name; undefined: nothing, or nothing that anybody vouches for. */
async function tlsaOf(host: string, addresses: Answer<string> | { readonly kind: 'none' } | undefined, resolver: Resolver, on: Reach): Promise<Pick<TargetHost, 'tlsa' | 'tlsaBase'> | 'failed' | undefined> {
  // RFC 7672 §2.2.2: without a secure address there is no look-up.
  if (on.secure !== true || addresses?.kind !== 'found' || !addresses.authentic) return undefined;
  // §2.2.3: where the aliases lead first, then the name itself.
  for (const base of addresses.canonical === undefined ? [host] : [addresses.canonical, host]) {
    const found = await resolver.tlsa(`_${on.port}._tcp.${base}`);
    if (found.kind === 'failed') return 'failed';
    if (found.kind === 'found' && found.authentic) return { tlsa: usableTlsa(found.records), ...(base !== host && { tlsaBase: base }) };
  }
  return undefined;
}

async function viaRoute(route: Route, resolver: Resolver): Promise<{ readonly route: RouteResult; readonly ttlMs: number }> {
  const hosts: TargetHost[] = [];
  for (const [preference, { host, port }] of route.via.entries()) {
    if (isIP(host) !== 0) hosts.push({ name: host, addresses: [host], port, preference, vouched: true });
    // No resolver need know this name, and all it may mean is fixed (RFC 6761 §6.3).
    else if (host === 'localhost') hosts.push({ name: host, addresses: ['127.0.0.1'], port, preference, vouched: true });
    else {
      const answer = await resolver.addresses(host);
      if (answer.kind === 'found') hosts.push({ name: host, addresses: answer.records, port, preference, vouched: true });
    }
  }
  if (hosts.length === 0) return { route: deferred('dns', 'no host of the configured route has an address'), ttlMs: DEFERRED_MS };
  const site = `route:${route.via.map(({ host, port }) => `${host}:${port}`).join(',')}`;
  return { route: { kind: 'hosts', site, provider: '', label: site, hosts, tls: route.tls, viaRoute: true }, ttlMs: FAILED_MS };
}

/** By preference, equals in random order (RFC 5321 §5.1 MUST). */
export function orderHosts<Host extends { readonly preference: number }>(hosts: readonly Host[]): readonly Host[] {
  if (hosts.length === 1) return hosts;
  return hosts
    .map((host) => ({ host, lot: Math.random() }))
    .sort((a, b) => a.host.preference - b.host.preference || a.lot - b.lot)
    .map(({ host }) => host);
}

// Ten hosts of usual length.
const MAX_SITE_CHARS = 512;

function siteName(shaping: Shaping, names: readonly string[]): { readonly site: string; readonly provider: string; readonly label: string } {
  const provider = shaping.providers.find((p) => names.every((name) => p.match.some((m) => (m.startsWith('.') ? name.endsWith(m) : name === m))));
  const all = [...new Set(names)].sort().join(',');
  // A stranger's zone may list thousands: a lane's name stays a name.
  const own = all.length <= MAX_SITE_CHARS ? all : `${all.slice(0, all.indexOf(','))},+${createHash('sha256').update(all).digest('hex').slice(0, 20)}`;
  if (provider === undefined) return { site: own, provider: '', label: 'other' };
  return { site: provider.sites === 'apart' ? `${provider.id}:${own}` : provider.id, provider: provider.id, label: provider.id };
}

function matchesDomain(pattern: string, domain: string): boolean {
  return pattern === '*' || pattern === domain || (pattern.startsWith('*.') && domain.endsWith(pattern.slice(1)));
}

function isNull(exchange: string): boolean {
  return exchange === '' || exchange === '.';
}

function canonical(name: string): string {
  return name.toLowerCase().replace(/\.$/, '');
}

function failed(of: BounceClass, status: string, reason: string): RouteResult & { kind: 'failed' } {
  return { kind: 'failed', class: of, status, reason, deadAddress: false };
}

function deferred(of: BounceClass, reason: string): RouteResult {
  return { kind: 'deferred', class: of, reason };
}

// Below a minute a cache is no use, above an hour it would outlive a receiver's move.
const TTL_MS = { least: 60_000, most: 3_600_000 };
// 300 bytes each: a bulk sender's usual domains, and no more than a few megabytes.
const CACHED = 20_000;

/** Remembers routes for as long as DNS says, between one minute and one hour; many askers cost one look-up. */
export class RouteCache {
  readonly #clock: Clock;
  readonly #known = new Map<string, { readonly route: Promise<RouteResult>; until: number }>();
  #settingsHash = '';

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** `settingsHash`: a reload forgets everything, for routes and providers may have changed. */
  get(domain: string, settingsHash: string, context: () => RouteContext): Promise<RouteResult> {
    if (settingsHash !== this.#settingsHash) {
      this.#known.clear();
      this.#settingsHash = settingsHash;
    }
    const known = this.#known.get(domain);
    if (known !== undefined && known.until > this.#clock.now()) return known.route;
    this.#known.delete(domain);
    if (this.#known.size >= CACHED) {
      const oldest = this.#known.keys().next();
      if (oldest.done !== true) this.#known.delete(oldest.value);
    }
    const asked = resolveRoute(domain, context());
    const entry = {
      until: Number.POSITIVE_INFINITY,
      route: asked.then(({ route, ttlMs }) => {
        const least = route.kind === 'deferred' ? DEFERRED_MS : TTL_MS.least;
        entry.until = this.#clock.now() + Math.min(Math.max(ttlMs, least), TTL_MS.most);
        return route;
      }),
    };
    this.#known.set(domain, entry);
    entry.route.catch(() => {
      // The asker sees the exception; here it only must not be remembered.
      if (this.#known.get(domain) === entry) this.#known.delete(domain);
    });
    return entry.route;
  }
}
