// What an operator asks about the way to a domain: which limits hold and who said each of them, and what
// holds its mail now, since when and until when. Both look the domain's MX up as the daemon does; without
// a daemon nothing is held, and that is said. They change nothing.
import { resolveRoute, type HostsRoute, type RouteResult } from '../deliver/index.ts';
import { openResolver } from '../dns/index.ts';
import { isMailError, parseAddress } from '../mail/index.ts';
import type { Action, LaneView } from '../schedule/index.ts';
import { explainLimits, formatDuration, formatRate, sharedLimits, type LaneLimits, type Rate, type Settings, type TotalLimits } from '../settings/index.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { required, wrong, type Params } from './params.ts';

/** One value in force, as it would be written, and the layer that said it. */
export interface ShownLimit {
  readonly key: string;
  readonly value: string;
  readonly from: string;
}

/** One lane to a domain. */
export interface ShownLane {
  readonly egress: string;
  readonly lane: string;
  readonly limits: readonly ShownLimit[];
}

export interface ShownShaping {
  readonly domain: string;
  readonly site: string;
  readonly provider: string;
  readonly hosts: readonly string[];
  /** What TLS with each host must be, and why. */
  readonly tls: readonly { readonly host: string; readonly must: string }[];
  readonly lanes: readonly ShownLane[];
}

/** What holds a domain's mail at one lane, or before it gets to one. `until` 0: until something under way has ended. */
export interface Hold {
  readonly lane: string;
  readonly what: string;
  readonly since: number;
  readonly until: number;
}

export interface ShownHolds {
  readonly domain: string;
  readonly site: string;
  readonly lanes: readonly LaneView[];
  readonly holds: readonly Hold[];
  /** What receivers' replies have brought about on these lanes: it lowers their limits. */
  readonly automation: readonly Action[];
  /** Recipients of the domain who wait, counted up to a bound. */
  readonly waiting: number;
  readonly next_at: number;
  readonly last_reply: string;
}

// So many rows are looked at for the queue of one domain: enough to tell a few from very many.
const ROWS = 1_000;

export function shapingOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    'shaping.show': (params) => showShaping(desk, params),
    'shaping.why': (params) => showHolds(desk, params),
  };
}

async function routeOf(desk: Desk, params: Params): Promise<{ readonly domain: string; readonly route: RouteResult }> {
  const domain = domainOf(required(params, 'domain'));
  return { domain, route: await (desk.route === undefined ? routeOnce(desk.settings(), domain, desk) : desk.route(domain)) };
}

/** In A-labels, as queues and routes call it. */
function domainOf(text: string): string {
  try {
    return parseAddress(`postmaster@${text}`).domain;
  } catch (error) {
    if (isMailError(error)) throw wrong(`${JSON.stringify(text)} is not a domain`, error);
    throw error;
  }
}

async function routeOnce({ server, shaping }: Settings, domain: string, { clock }: Desk): Promise<RouteResult> {
  const resolver = openResolver(server.resolver, clock);
  try {
    return (await resolveRoute(domain, { resolver, shaping, sandbox: server.sandbox, hostname: server.hostname })).route;
  } finally {
    resolver.close();
  }
}

function hostsOf(domain: string, route: RouteResult): HostsRoute {
  if (route.kind === 'hosts') return route;
  throw wrong(`there is no way to ${domain} now: ${route.reason}`);
}

const sourcesOf = ({ shaping }: Settings): readonly string[] => (shaping.egress.length === 0 ? ['default'] : shaping.egress.map(({ id }) => id));

/** The site a domain's mail goes to. */
export async function routeSite(desk: Desk, params: Params): Promise<string> {
  const { domain, route } = await routeOf(desk, params);
  return hostsOf(domain, route).site;
}

async function showShaping(desk: Desk, params: Params): Promise<ShownShaping> {
  const { domain, route } = await routeOf(desk, params);
  const { site, provider, hosts } = hostsOf(domain, route);
  const settings = desk.settings();
  return {
    domain, site, provider, hosts: hosts.map(({ name, preference }) => `${preference} ${name}`), tls: hosts.map((host) => ({ host: host.name, must: tlsOf(host, route) })),
    lanes: sourcesOf(settings).map((egress) => ({ egress, lane: `${egress}/${site}`, limits: limitsOf(settings, egress, provider, route) })),
  };
}

/** In the order of weight that `deliver/need.ts` gives them; what the operator says is a limit of the lane. */
function tlsOf({ tlsa, tlsaBase, sts }: HostsRoute['hosts'][number], route: RouteResult): string {
  const policy = route.kind === 'hosts' ? route.policy : undefined;
  if (tlsa !== undefined && tlsa.length > 0) return `DANE, ${tlsa.length} usable ${tlsa.length === 1 ? 'record' : 'records'}${tlsaBase === undefined ? '' : ` at ${tlsaBase}`}`;
  const encrypted = tlsa === undefined ? '' : 'encrypted (DANE, no usable record)';
  const proven = sts === true && policy !== undefined ? `MTA-STS enforce for ${policy.mx.join(', ')}` : '';
  const words = [encrypted, proven].filter((one) => one !== '').join(', ');
  return words === '' ? `as the lane says${policy === undefined ? '' : ` (MTA-STS ${policy.mode})`}` : words;
}

function limitsOf({ shaping }: Settings, egress: string, provider: string, route: RouteResult): ShownLimit[] {
  const { limits, from } = explainLimits(shaping, { egress, provider });
  const values = Object.entries(WRITTEN).map(([name, [key, write]]) => ({ key, value: write(limits), from: from[name as keyof LaneLimits] }));
  // A route says for itself what TLS it wants.
  const own = route.kind === 'hosts' && route.viaRoute ? values.map((one) => (one.key === 'tls' ? { ...one, value: route.tls, from: 'route' } : one)) : values;
  return [
    ...own,
    ...sharedLimits(shaping, { egress, provider }).flatMap((one) => totals(one, `total of ${one.key}`)),
    ...[...shaping.tenants].flatMap(([tenant, one]) => totals(one, `total of tenant ${tenant}`)),
  ];
}

const orUnset = (value: number | undefined): string => (value === undefined ? 'unset' : String(value));

const WRITTEN: Readonly<Record<keyof LaneLimits, readonly [key: string, write: (limits: LaneLimits) => string]>> = {
  connections: ['connections', ({ connections }) => String(connections)],
  connectionRate: ['connection_rate', ({ connectionRate }) => rate(connectionRate)],
  messageRate: ['message_rate', ({ messageRate }) => rate(messageRate)],
  deliveriesPerConnection: ['deliveries_per_connection', ({ deliveriesPerConnection }) => orUnset(deliveriesPerConnection)],
  tls: ['tls', ({ tls }) => tls],
  idleMs: ['idle', ({ idleMs }) => formatDuration(idleMs)],
  tenantConnections: ['tenant_connections', ({ tenantConnections }) => orUnset(tenantConnections)],
  tenantMessageRate: ['tenant_message_rate', ({ tenantMessageRate }) => rate(tenantMessageRate)],
};

/** Evenly spaced is the rule here, so that a burst of one goes without saying. */
function rate(value: Rate | undefined): string {
  return formatRate(value).replace(/ burst 1$/, '');
}

function totals(one: TotalLimits, from: string): ShownLimit[] {
  return [
    ...(one.connections === undefined ? [] : [{ key: 'connections', value: String(one.connections), from }]),
    ...(one.connectionRate === undefined ? [] : [{ key: 'connection_rate', value: rate(one.connectionRate), from }]),
    ...(one.messageRate === undefined ? [] : [{ key: 'message_rate', value: rate(one.messageRate), from }]),
  ];
}

async function showHolds(desk: Desk, params: Params): Promise<ShownHolds> {
  const { domain, route } = await routeOf(desk, params);
  const now = desk.clock.now();
  const rows = await desk.spool.list({ domain, limit: ROWS });
  const times = rows.map(({ recipient }) => recipient.nextAt).filter((at) => at > 0);
  const queue = { waiting: rows.length, next_at: times.length === 0 ? 0 : Math.min(...times), last_reply: rows.find(({ recipient }) => recipient.lastReply !== '')?.recipient.lastReply ?? '' };
  const resting = rows.length > 0 && queue.next_at > now ? [{ lane: '', what: 'every recipient of the domain waits for the next try', since: 0, until: queue.next_at }] : [];
  if (route.kind !== 'hosts') return { domain, site: '', lanes: [], automation: [], holds: [{ lane: '', what: `no way there: ${route.reason}`, since: 0, until: 0 }, ...resting], ...queue };
  const lanes = desk.lanes().filter(({ lane }) => lane.slice(lane.indexOf('/') + 1) === route.site);
  const automation = (desk.automation?.list() ?? []).filter(({ lane }) => lane.slice(lane.indexOf('/') + 1) === route.site);
  return { domain, site: route.site, lanes, automation, holds: [...lanes.flatMap((lane) => holdsOf(desk, lane, now)), ...resting], ...queue };
}

/** What holds on a lane now, what keeps attempts from being begun first. */
export function holdsOf(desk: Desk, { lane, held, pausedUntil, pausedFor }: LaneView, now: number): Hold[] {
  const { connecting, sending } = desk.waits?.(lane) ?? { connecting: 0, sending: 0 };
  const holds = held !== undefined && (held.until === 0 || held.until > now);
  return [
    ...(holds ? [{ lane, what: held.by, since: held.since, until: held.until }] : []),
    ...(!holds && pausedUntil > now ? [{ lane, what: pausedFor, since: 0, until: pausedUntil }] : []),
    ...(connecting > now ? [{ lane, what: 'attempts wait for leave to connect (connection_rate)', since: 0, until: connecting }] : []),
    ...(sending > now ? [{ lane, what: 'attempts wait for leave to send (message_rate)', since: 0, until: sending }] : []),
  ];
}

/** `shaping show` for people. */
export function shapingText({ domain, site, provider, hosts, tls, lanes }: ShownShaping, table: (rows: readonly Record<string, unknown>[]) => string): string {
  return [
    `${domain} goes to ${provider === '' ? 'a site no provider matches' : `provider ${provider}`}: ${site}`, `MX  ${hosts.join(', ')}`, ...tls.map(({ host, must }) => `TLS ${host}: ${must}`),
    ...lanes.map(({ lane, limits }) => `\nlane ${lane}\n${table(limits.map((one) => ({ ...one })))}`),
  ].join('\n');
}

const time = (at: number): string => new Date(at).toISOString().slice(0, 19).replace('T', ' ');

/** `shaping why` for people. */
export function holdsText({ domain, site, holds, automation, lanes, waiting, next_at: nextAt, last_reply: lastReply }: ShownHolds): string {
  const held = holds.map(({ lane, what, since, until }) =>
    `${lane === '' ? 'queue' : lane}: ${what}${since === 0 ? '' : `, since ${time(since)}`}${until === 0 ? '' : `, until ${time(until)}`}`);
  return [
    `${domain} -> ${site === '' ? 'nowhere' : site}`,
    ...(held.length > 0 ? held : ['nothing holds it']),
    ...automation.map(({ lane, rule, action, rate: slowed, share, since, until }) => `${lane}: ${action}${slowed === undefined ? '' : ` to ${rate(slowed)}`}${share === undefined ? '' : `, at ${Math.round(share * 100)} % of its limits`} by rule ${rule}, since ${time(since)}, until ${time(until)} (postern automation lift --domain ${domain})`),
    ...lanes.map(({ lane, active, connections, queues }) => `${lane}: ${active} of ${connections} connections at work, ${queues} ${queues === 1 ? 'queue' : 'queues'} with mail for now`),
    waiting === 0 ? 'no recipient of the domain waits' : `${waiting >= ROWS ? `${ROWS} or more` : waiting} ${waiting === 1 ? 'recipient waits' : 'recipients wait'}${nextAt === 0 ? '' : `, the first due ${time(nextAt)}`}${lastReply === '' ? '' : `; last said: ${lastReply}`}`,
  ].join('\n');
}
