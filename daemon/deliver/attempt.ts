// One attempt for one recipient: choose a host, get a session, run one transaction, say what it came to.
// Callers may rely on: attempt() settles with an Outcome whatever the network does; a host is left for the
// next only while it is certain that the message was not taken; after the final dot an unknown end is
// `deferred` (at least once, never silently lost). Under `opportunistic` a failed TLS handshake is followed
// by the same host in clear, and remembered; under `required` nothing is ever said in clear.
// A message that asks for it (REQUIRETLS) goes to hosts that prove themselves and promise the same, and one
// that says `TLS-Required: No` is not held up by what they promise. RFC 5321 §5.1, RFC 7435, RFC 8689.
import { isIPv4 } from 'node:net';
import type { Outcome, Phase, Reply, Signed } from '../mail/index.ts';
import { isPublicAddress, type Resolver } from '../dns/index.ts';
import type { Clock, Kept, Log, Metrics } from '../runtime/index.ts';
import { laneLimits, sharedLimits, type LaneLimits, type LaneParts, type Settings, type SharedLimit } from '../settings/index.ts';
import { connectSession, type Connected, type OutboundSession, type SendResult, type SessionTimeouts } from '../smtp/index.ts';
import { classify, type BounceClass } from './classify.ts';
import { tlsaFault } from './dane.ts';
import { MtaSts, type StsState } from './mta-sts.ts';
import type { StsUnread, TlsSeen } from './tls-results.ts';
import { TlsMemory, type TlsMemoryState } from './tls-memory.ts';
import { letterOf, type LetterToGo } from './letter.ts';
import { needOf, wantedTls, type Need } from './need.ts';
import { SessionPool } from './pool.ts';
import { Turnstile } from './turn.ts';
import { orderHosts, RouteCache, type HostsRoute, type RouteResult, type TargetHost } from './route.ts';

export interface Deliverer {
  /** Where a domain's mail goes now; remembered as DNS allows. */
  siteOf(domain: string): Promise<RouteResult>;
  /** `egress`: an id of shaping.yaml. Throws only on bugs. */
  attempt(signed: Signed, route: HostsRoute, lane: { readonly egress: string }): Promise<Outcome>;
  /** Until when an attempt of a lane waits for leave to connect or to send, ms since the epoch; 0: none does. */
  readonly waits?: (lane: string) => { readonly connecting: number; readonly sending: number };
  /** Attempts that wait for leave to connect or to send settle as deferred, now; what is under way goes on. */
  readonly giveUpWaiting?: () => void;
  /** Says goodbye on idle sessions. */
  closeIdle(): Promise<void>;
  /** Ends every session; running attempts settle as deferred. */
  close(): void;
}

export interface DelivererParts {
  readonly settings: () => Settings;
  readonly resolver: Resolver;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly timeouts?: Partial<SessionTimeouts>;
  /** Where MTA-STS policies outlive a restart. */
  readonly policies?: Kept<StsState>;
  /** Where it outlives a restart which hosts spoke TLS. */
  readonly spokeTls?: Kept<TlsMemoryState>;
  /** Hears of each connection's TLS, for reports; never rejects. */
  readonly tlsSeen?: (seen: TlsSeen | StsUnread) => Promise<void>;
  /** What holds for a lane now; left out: what shaping.yaml says. */
  readonly limits?: (lane: string, parts: LaneParts) => LaneLimits;
}

// RFC 5321 §5.1 SHOULD try at least two; five dead hosts in a row are a dead site for now.
const TARGETS = 5;
// Of one host, as long as there are others: large sites list eight addresses a host, and all of them go down with it.
const TARGETS_OF_HOST = 2;
// No new host is begun after this: the lane's slot is worth more than a site's sixth chance.
const BEGIN_WITHIN_MS = 300_000;
// A broken certificate set-up is repaired within hours; in between, no handshake is wasted on it.
const BROKEN_TLS_MS = 3 * 3_600_000;
const BROKEN_TLS_HOSTS = 10_000;

const STOPPING = { fault: 'closed', reason: 'postern is stopping' } as const;

interface Target {
  readonly host: TargetHost;
  readonly address: string;
  /** One of the other family, where the host has both and we may use both. */
  readonly other: string | undefined;
}

interface Lane {
  readonly id: string;
  /** For metrics. */
  readonly label: string;
  readonly limits: LaneLimits;
  /** What holds at this moment: the lane's own limits first, then those it shares. */
  readonly caps: () => readonly (Partial<SharedLimit> & { readonly key: string })[];
  readonly tls: LaneLimits['tls'];
  readonly helo: string;
  readonly localAddress: string | undefined;
  readonly viaRoute: boolean;
  readonly policy: HostsRoute['policy'];
}

/** What one target came to; `next` means that the following host may be tried. */
interface Tried {
  readonly outcome: Outcome;
  readonly next: boolean;
}

/** Opens the delivery room; nothing is connected before the first attempt. */
export function openDeliverer(parts: DelivererParts): Deliverer {
  const routes = new RouteCache(parts.clock);
  const pool = new SessionPool(parts.clock, (label, change) => parts.metrics.connections.inc({ lane: label }, change));
  const sts = new MtaSts({ resolver: parts.resolver, clock: parts.clock, log: parts.log, allowed: isPublicAddress, failed: (failed) => void parts.tlsSeen?.(failed), ...(parts.policies !== undefined && { kept: parts.policies }) });
  const stop = new AbortController();
  const leave = new AbortController();
  const sender = new Sender(parts, pool, stop.signal, AbortSignal.any([stop.signal, leave.signal]));
  return {
    siteOf(domain) {
      const { hash, shaping, server } = parts.settings();
      return routes.get(domain, hash, () => ({ resolver: parts.resolver, shaping, sandbox: server.sandbox, hostname: server.hostname, ...(server.sandbox ? {} : { sts }) }));
    },
    attempt: (signed, route, lane) => sender.attempt(signed, route, lane.egress),
    waits: (lane) => sender.waits(lane),
    giveUpWaiting: () => leave.abort(),
    closeIdle: () => pool.closeIdle(),
    close() {
      stop.abort();
      sts.close();
      pool.closeAll();
      sender.close();
    },
  };
}

class Sender {
  readonly #parts: DelivererParts;
  readonly #pool: SessionPool;
  readonly #signal: AbortSignal;
  /** Nobody waits for leave any more. */
  readonly #leave: AbortSignal;
  readonly #connecting: Turnstile;
  readonly #sending: Turnstile;
  readonly #memory: TlsMemory;
  /** Address and port -> until when TLS is not tried. */
  readonly #brokenTls = new Map<string, number>();

  constructor(parts: DelivererParts, pool: SessionPool, signal: AbortSignal, leave: AbortSignal) {
    this.#leave = leave;
    this.#parts = parts;
    this.#pool = pool;
    this.#signal = signal;
    this.#connecting = new Turnstile(parts.clock);
    this.#sending = new Turnstile(parts.clock);
    this.#memory = new TlsMemory(parts.clock, parts.spokeTls);
  }

  async attempt(signed: Signed, route: HostsRoute, egressId: string): Promise<Outcome> {
    const { shaping, server, hash } = this.#parts.settings();
    const egress = shaping.egress.find((e) => e.id === egressId);
    const startedAt = this.#parts.clock.now();
    const id = `${egressId}/${route.site}`;
    const whose = { egress: egressId, provider: route.provider };
    const limitsNow = (): LaneLimits => this.#parts.limits?.(id, whose) ?? laneLimits(this.#parts.settings().shaping, whose);
    const limits = limitsNow();
    const lane: Lane = {
      id,
      label: `${egressId}/${route.label}`,
      limits,
      caps: () => [{ key: id, ...rated(limitsNow()) }, ...sharedLimits(this.#parts.settings().shaping, whose)],
      tls: route.viaRoute ? route.tls : limits.tls,
      viaRoute: route.viaRoute,
      policy: route.policy,
      helo: egress?.helo ?? server.hostname,
      localAddress: egress === undefined || isAnyAddress(egress.address) ? undefined : egress.address,
    };
    const targets = targetsOf(route, lane.localAddress);
    const outcome = targets.length === 0
      ? deferral('connect', '', 'routing', 'no host of the site has an address of our address family')
      : await this.#first(targets, lane, letterOf(signed), hash);
    const endedAt = this.#parts.clock.now();
    this.#parts.metrics.attemptSeconds.observe({ result: outcome.kind }, (endedAt - startedAt) / 1_000);
    const delays = outcome.delaysMs ?? { queue: 0, connect: endedAt - startedAt, tls: 0, send: 0 };
    return { ...outcome, delaysMs: { ...delays, queue: Math.max(0, startedAt - signed.message.receivedAt) } };
  }

  close(): void {
    this.#memory.close();
  }

  waits(lane: string): { readonly connecting: number; readonly sending: number } {
    return { connecting: this.#connecting.waitsUntil(lane), sending: this.#sending.waitsUntil(lane) };
  }

  async #first(targets: readonly Target[], lane: Lane, letter: LetterToGo, hash: string): Promise<Outcome> {
    const deadline = this.#parts.clock.now() + BEGIN_WITHIN_MS;
    let last: Outcome | undefined;
    for (const target of this.#warmFirst(targets, lane, letter, hash)) {
      if (last !== undefined && (this.#parts.clock.now() > deadline || this.#leave.aborted)) break;
      const tried = await this.#target(target, lane, letter, hash);
      if (!tried.next) return tried.outcome;
      // A host that can never do it says nothing of one that could not be asked.
      last = last?.kind === 'deferred' && tried.outcome.kind === 'failed' ? last : tried.outcome;
      this.#parts.log.debug({ lane: lane.id, host: target.host.name, phase: last.phase, reason: last.reason }, 'host left for the next');
    }
    return last ?? deferral('connect', '', 'connection', 'no host could be tried');
  }

  /** Among hosts as good as the first, one with an idle session comes first: a connection costs the lane more than a lot drawn. */
  #warmFirst(targets: readonly Target[], lane: Lane, letter: LetterToGo, hash: string): readonly Target[] {
    const best = targets[0]?.host.preference;
    const at = targets.findIndex((target) => target.host.preference === best && this.#pool.has(lane.id, keyOf(target, lane, needOf(target.host, letter), hash)));
    const warm = targets[at];
    return at <= 0 || warm === undefined ? targets : [warm, ...targets.filter((target) => target !== warm)];
  }

  async #target(target: Target, lane: Lane, letter: LetterToGo, hash: string): Promise<Tried> {
    const need = needOf(target.host, letter);
    if (need === undefined) return unproven(target.host.name);
    const key = keyOf(target, lane, need, hash);
    for (;;) {
      const kept = this.#pool.take(lane.id, key, lane.limits.connections);
      if (kept === undefined) break;
      const result = await this.#send(kept, key, lane, letter);
      // The peer had left, or had had enough of this connection: before anything was decided, so begin anew.
      if (!isStale(result) && !kept.full) return this.#judge(result, target, need, kept, true);
    }
    const connected = await this.#connect(target, lane, need, letter);
    if (connected.kind !== 'session') return this.#unconnected(connected, target);
    const { session } = connected;
    return this.#judge(await this.#send(session, key, lane, letter), target, need, session, false);
  }

  async #send(session: OutboundSession, key: string, lane: Lane, letter: LetterToGo): Promise<SendResult & { readonly sendMs: number }> {
    const startedAt = this.#parts.clock.now();
    try {
      await this.#sending.pass(() => lane.caps().map(({ key: whose, messageRate }) => ({ key: whose, rate: messageRate })), this.#leave);
      if (this.#leave.aborted) {
        session.close();
        return { kind: 'broken', phase: 'mail', afterDot: false, ...STOPPING, sendMs: 0 };
      }
      const result = await session.send(letter);
      return { ...result, sendMs: this.#parts.clock.now() - startedAt };
    } finally {
      this.#pool.give(lane.id, key, session, lane.limits);
    }
  }

  async #connect(target: Target, lane: Lane, need: Need, letter: LetterToGo): Promise<Connected> {
    const where = `${waysTo(target)} ${target.host.port}`;
    const known = this.#brokenTls.get(where);
    const wanted = wantedTls(lane.tls, need);
    const { by, tlsa, servername, names } = need;
    const remembered = wanted === 'opportunistic' && known !== undefined && known > this.#parts.clock.now();
    const connect = async (mode: LaneLimits['tls']): Promise<Connected> => {
      const place = await this.#pool.place(lane.caps().flatMap(({ key, connections }) => (connections === undefined ? [] : [{ key, connections }])), this.#leave);
      await this.#connecting.pass(() => lane.caps().map(({ key, connectionRate }) => ({ key, rate: connectionRate })), this.#leave);
      if (this.#leave.aborted) {
        place.free();
        return { kind: 'broken', phase: 'connect', ...STOPPING };
      }
      const made = await connectSession({
        host: target.address,
        ...(target.other !== undefined && { other: target.other }),
        port: target.host.port,
        helo: lane.helo,
        tls: { mode, servername, ...((by === 'MTA-STS' || by === 'PKIX') && { rejectUnauthorized: true }), ...(by === 'DANE' && { fault: (chain: readonly Buffer[]) => tlsaFault(tlsa, chain, names, this.#parts.clock.now()) }) },
        clock: this.#parts.clock,
        signal: this.#signal,
        ...(lane.localAddress === undefined ? {} : { localAddress: lane.localAddress }),
        ...(this.#parts.timeouts === undefined ? {} : { timeouts: this.#parts.timeouts }),
      }).catch((error: unknown) => {
        place.free();
        throw error;
      });
      if (made.kind === 'session') this.#pool.add(place, lane.label, made.session);
      else place.free();
      return made;
    };
    const connected = await connect(remembered ? 'off' : wanted);
    // A report is no session to report of, or two relays would tell each other for ever.
    if (!lane.viaRoute && wanted !== 'off' && !remembered && !letter.tlsOptional) void this.#parts.tlsSeen?.({ domain: letter.domain, policy: lane.policy, host: target.host, address: target.address, by, connected });
    // Also a host that had to speak TLS is remembered: when its policy is over, who strips STARTTLS gains nothing at once.
    const encrypted = connected.kind === 'session' && connected.session.tls !== '';
    const stripped = encrypted || (wanted === 'opportunistic' && !remembered && !letter.tlsOptional) ? this.#memory.fault(where, connected) : '';
    if (stripped !== '') {
      if (connected.kind === 'session') connected.session.close();
      return { kind: 'broken', phase: 'tls', fault: 'tls', reason: stripped };
    }
    if (connected.kind !== 'broken' || connected.phase !== 'tls' || wanted !== 'opportunistic' || this.#signal.aborted) return connected;
    // RFC 7435 §3: what cannot be encrypted is still mailed, where no policy forbids it.
    if (this.#brokenTls.size >= BROKEN_TLS_HOSTS) this.#brokenTls.clear();
    this.#brokenTls.set(where, this.#parts.clock.now() + BROKEN_TLS_MS);
    this.#parts.log.info({ lane: lane.id, host: target.host.name, reason: connected.reason }, 'TLS failed, going on in clear');
    return connect('off');
  }

  #unconnected(connected: Exclude<Connected, { kind: 'session' }>, target: Target): Tried {
    if (connected.kind === 'refused') {
      const { class: found } = classify(this.#parts.settings().bounces, connected.phase, connected.reply);
      return { next: true, outcome: { ...deferral(connected.phase, target.host.name, found, said(connected.phase, connected.reply)), reply: connected.reply } };
    }
    return { next: true, outcome: deferral(connected.phase, target.host.name, faultClass(connected.fault), connected.reason) };
  }

  #judge(result: SendResult & { readonly sendMs: number }, target: Target, { by }: Need, session: OutboundSession, reused: boolean): Tried {
    const host = target.host.name;
    const delaysMs = { queue: 0, connect: reused ? 0 : session.connectMs, tls: reused ? 0 : session.tlsMs, send: result.sendMs };
    const detail = { host, tls: session.tls === '' || by === '' ? session.tls : `${session.tls} ${by}`, delaysMs };
    if (result.kind === 'unsendable') {
      return { next: result.status === '5.7.30', outcome: { kind: 'failed', phase: 'mail', class: 'unsupported', status: result.status, reason: `${result.status} ${result.reason}`, deadAddress: false, ...detail } };
    }
    if (result.kind === 'broken') {
      const reason = result.afterDot ? `${result.reason} after the message was sent: whether it was taken is unknown` : result.reason;
      const found = result.afterDot ? 'connection' : faultClass(result.fault);
      return { next: !result.afterDot, outcome: { ...deferral(result.phase, host, found, reason), ...detail } };
    }
    const { phase, reply } = result;
    const { kind, class: found, deadAddress } = classify(this.#parts.settings().bounces, phase, reply);
    const common = { phase, reply, class: found, reason: said(phase, reply), ...detail };
    return { next: false, outcome: kind === 'failed' ? { kind, deadAddress, ...common } : { kind, ...common } };
  }
}

const rated = ({ connections, connectionRate, messageRate }: LaneLimits): Omit<SharedLimit, 'key'> => ({
  connections, ...(connectionRate !== undefined && { connectionRate }), ...(messageRate !== undefined && { messageRate }),
});

function unproven(host: string): Tried {
  const reason = 'nothing vouches for the host (DANE, MTA-STS or DNSSEC), which the message asks for (REQUIRETLS)';
  return { next: true, outcome: { kind: 'failed', phase: 'tls', host, class: 'unsupported', status: '5.7.30', reason: `5.7.30 ${reason}`, deadAddress: false } };
}

/** What a session can be used for: one made under another need or promise is not used again. A reload may change HELO, limits or TLS as well. */
function keyOf(target: Target, lane: Lane, need: Need | undefined, hash: string): string {
  if (need === undefined) return '';
  const { host } = target;
  const records = need.tlsa.map(({ usage, selector, matchingType, certificate }) => `${usage}${selector}${matchingType}${certificate.toString('hex')}`);
  return [waysTo(target), host.port, host.name, need.by, wantedTls(lane.tls, need), need.servername, ...need.names, ...records, lane.helo, lane.localAddress, hash].join(' ');
}

/** True when a kept session turned out to be over before this message was considered. */
function isStale(result: SendResult): boolean {
  if (result.kind === 'unsendable' || result.phase !== 'mail') return false;
  // A receiver that says 4.7 means us and not the session: coming back at once would be the wrong answer.
  return result.kind === 'broken' ? result.fault === 'closed' : result.kind === 'reply' && result.reply.code === 421 && !result.reply.enhanced.startsWith('4.7.');
}

function targetsOf(route: HostsRoute, localAddress: string | undefined): readonly Target[] {
  const each = (route.viaRoute ? route.hosts : orderHosts(route.hosts)).map((host) => {
    const usable = host.addresses.filter((address) => localAddress === undefined || isIPv4(address) === isIPv4(localAddress));
    const [four, six] = [usable.filter((address) => isIPv4(address)), usable.filter((address) => !isIPv4(address))];
    const more = six.slice(four.length).map((address): Target => ({ host, address, other: undefined }));
    return [...four.map((address, i): Target => ({ host, address, other: six[i] })), ...more];
  });
  return [...each.flatMap((of) => of.slice(0, TARGETS_OF_HOST)), ...each.flatMap((of) => of.slice(TARGETS_OF_HOST))].slice(0, TARGETS);
}

const waysTo = ({ address, other }: Target): string => (other === undefined ? address : `${address}+${other}`);

function said(phase: Phase, reply: Reply): string {
  const verb = { greet: 'the greeting', tls: 'STARTTLS', mail: 'MAIL', rcpt: 'RCPT', data: 'DATA', final: 'the message' }[phase as string] ?? phase;
  return `the receiver answered ${verb} with ${reply.code}${reply.enhanced === '' ? '' : ` ${reply.enhanced}`}`;
}

function faultClass(fault: 'timeout' | 'closed' | 'protocol' | 'tls'): BounceClass {
  return fault === 'closed' ? 'connection' : fault;
}

function deferral(phase: Phase, host: string, found: BounceClass, reason: string): Outcome & { kind: 'deferred' } {
  return { kind: 'deferred', phase, host, class: found, reason };
}

function isAnyAddress(address: string): boolean {
  return address === '' || address === '0.0.0.0' || address === '::';
}
