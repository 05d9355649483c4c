// What one lane may do, merged from the layers that say something about it. Order, the later over the
// earlier, key by key: the built-in defaults, `defaults`, the egress source, the provider, the provider
// from that source. `unset` drops what was inherited. Totals are not merged: each is a limit of its own
// that several lanes share, and all of them hold together with the lane's. Pure; a merge is made once for
// each snapshot, so that the same lane gets the same object until a reload.
import { buildAutomation } from './automation.ts';
import { deepFreeze } from './build.ts';
import type { ShapingInput } from './schema.ts';
import type { LaneLimits, LimitLayer, PooledSource, Rate, Shaping, TotalLimits } from './settings.ts';

/** What a lane is made of. `provider` is '' where none matches. */
export interface LaneParts {
  readonly egress: string;
  readonly provider: string;
}

/** A limit that this lane shares with others; `key` names whose. */
export interface SharedLimit extends TotalLimits {
  readonly key: string;
}

/** Every value of a lane and the layer it came from. */
export interface ExplainedLimits {
  readonly limits: LaneLimits;
  readonly from: Readonly<Record<keyof LaneLimits, string>>;
}

const merged = new WeakMap<Shaping, Map<string, ExplainedLimits & { readonly shared: readonly SharedLimit[] }>>();

/** The limits of a lane. */
export const laneLimits = (shaping: Shaping, parts: LaneParts): LaneLimits => merge(shaping, parts).limits;

/** The limits this lane shares with others, those without a number left out. */
export const sharedLimits = (shaping: Shaping, parts: LaneParts): readonly SharedLimit[] => merge(shaping, parts).shared;

/** The limits of a lane, and for each the layer that said it. */
export const explainLimits = (shaping: Shaping, parts: LaneParts): ExplainedLimits => merge(shaping, parts);

function merge(shaping: Shaping, { egress, provider }: LaneParts): ExplainedLimits & { readonly shared: readonly SharedLimit[] } {
  const known = merged.get(shaping) ?? new Map<string, ExplainedLimits & { readonly shared: readonly SharedLimit[] }>();
  merged.set(shaping, known);
  const key = `${egress}/${provider}`;
  const before = known.get(key);
  if (before !== undefined) return before;
  const source = shaping.egress.find((one) => one.id === egress);
  const owner = shaping.providers.find((one) => one.id === provider);
  const layers: readonly (readonly [string, LimitLayer | undefined])[] = [
    [`egress ${egress}`, source?.says], [`provider ${provider}`, owner?.says], [`provider ${provider}, egress ${egress}`, owner?.egress.get(egress)],
  ];
  let limits = shaping.defaults;
  const from = Object.fromEntries(Object.keys(limits).map((name) => [name, 'defaults'])) as Record<keyof LaneLimits, string>;
  for (const [name, says] of layers) {
    if (says === undefined) continue;
    limits = { ...limits, ...says };
    for (const said of Object.keys(says) as (keyof LaneLimits)[]) from[said] = name;
  }
  const shared = [
    ...(owner === undefined ? [] : [{ key: `provider ${owner.id}`, ...owner.total }]),
    ...(source === undefined ? [] : [{ key: `egress ${source.id}`, ...source.total }]),
  ].filter((one) => Object.keys(one).length > 1);
  const made = deepFreeze({ limits, from, shared });
  known.set(key, made);
  return made;
}

/** By which sources a tenant's stream is mailed to a provider; without a stream, all by which any of its streams is. */
export function sourcesOf(shaping: Shaping, provider: string, tenant: string, stream?: string): readonly PooledSource[] {
  const known = chosen.get(shaping) ?? new Map<string, readonly PooledSource[]>();
  chosen.set(shaping, known);
  const key = `${provider}/${tenant}/${stream ?? ''}`;
  const before = known.get(key);
  if (before !== undefined) return before;
  if (known.size >= CHOSEN) known.clear();
  const found = choose(shaping, provider, tenant, stream);
  known.set(key, found);
  return found;
}

const chosen = new WeakMap<Shaping, Map<string, readonly PooledSource[]>>();
// Providers times tenants times streams of a large house.
const CHOSEN = 50_000;
// What mail leaves by where no source is declared: the system chooses the address.
const SYSTEM: readonly PooledSource[] = Object.freeze([Object.freeze({ id: 'default', weight: 1 })]);

function choose({ egress, pools, use }: Shaping, provider: string, tenant: string, stream: string | undefined): readonly PooledSource[] {
  if (egress.length === 0) return SYSTEM;
  const otherwise = pools.get('default') ?? egress.map(({ id }) => ({ id, weight: 1 }));
  const fitting = use.filter((one) => (one.tenant ?? tenant) === tenant && (one.provider ?? provider) === provider && (stream === undefined || (one.stream ?? stream) === stream));
  if (stream !== undefined) return pools.get(fitting[0]?.pool ?? '') ?? otherwise;
  // Rules are read down to the first that fits every stream.
  const end = fitting.findIndex((one) => one.stream === undefined);
  const all = [...(end === -1 ? fitting : fitting.slice(0, end + 1)).map(({ pool }) => pools.get(pool) ?? []), ...(end === -1 ? [otherwise] : [])].flat();
  return all.filter(({ id }, i) => all.findIndex((one) => one.id === id) === i);
}

type LayerInput = Partial<ShapingInput['defaults']>;
const KEYS = {
  connections: 'connections', connection_rate: 'connectionRate', message_rate: 'messageRate', deliveries_per_connection: 'deliveriesPerConnection',
  tls: 'tls', idle: 'idleMs', tenant_connections: 'tenantConnections', tenant_message_rate: 'tenantMessageRate',
} as const satisfies Record<keyof ShapingInput['defaults'], keyof LaneLimits>;

/** `unset` is undefined too, so it is the key that tells whether something was said. */
function layerOf(input: LayerInput): LimitLayer {
  return Object.fromEntries(Object.entries(KEYS).flatMap(([written, name]) => (written in input ? [[name, input[written as keyof LayerInput]]] : [])));
}

function totalOf(input: { readonly connections?: number | undefined; readonly connection_rate?: Rate | undefined; readonly message_rate?: Rate | undefined }): TotalLimits {
  return {
    ...(input.connections !== undefined && { connections: input.connections }),
    ...(input.connection_rate !== undefined && { connectionRate: input.connection_rate }),
    ...(input.message_rate !== undefined && { messageRate: input.message_rate }),
  };
}

/** shaping.yaml as the rooms read it. */
export function buildShaping(input: ShapingInput): Shaping {
  return deepFreeze({
    defaults: layerOf(input.defaults) as LaneLimits,
    providers: input.providers.map((one) => ({
      id: one.id, match: one.match, sites: one.sites, says: layerOf(one), total: totalOf(one.total),
      egress: new Map(one.egress.map((source) => [source.id, layerOf(source)])),
    })),
    routes: input.routes.map((one) => ({ domain: one.domain, via: one.via, tls: one.tls, ...(one.loopback_mx !== undefined && { loopbackMx: one.loopback_mx }) })),
    retry: { firstMs: input.retry.first, maxMs: input.retry.max },
    egress: input.egress.map((one) => ({
      id: one.id, address: one.address, helo: one.helo, says: layerOf(one), total: totalOf(one.total),
      ...(one.warmup !== undefined && { warmup: { since: one.warmup.since, perDay: one.warmup.per_day } }),
    })),
    pools: new Map(input.pools.map((one) => [one.id, one.sources])),
    use: input.use.map((one) => ({ pool: one.pool, ...(one.tenant !== undefined && { tenant: one.tenant }), ...(one.stream !== undefined && { stream: one.stream }), ...(one.provider !== undefined && { provider: one.provider }) })),
    automation: buildAutomation(input.automation),
    recovery: { add: input.recovery.add, everyMs: input.recovery.every, holdMs: input.recovery.hold },
    tenants: new Map(input.tenants.map((one) => [one.id, totalOf(one.total)])),
  });
}
