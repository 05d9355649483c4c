// What one lane may do, merged from the layers that say something about it. Order, the later over the
// earlier, key by key: the built-in defaults, `defaults`, the egress source, the provider, the provider
// from that source. `unset` drops what was inherited. Totals are not merged: each is a limit of its own
// that several lanes share, and all of them hold together with the lane's. Pure; a merge is made once for
// each snapshot, so that the same lane gets the same object until a reload.
import { buildAutomation } from './automation.ts';
import { deepFreeze } from './build.ts';
import type { ShapingInput } from './schema.ts';
import type { LaneLimits, LimitLayer, Rate, Shaping, TotalLimits } from './settings.ts';

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
    egress: input.egress.map((one) => ({ id: one.id, address: one.address, helo: one.helo, says: layerOf(one), total: totalOf(one.total) })),
    automation: buildAutomation(input.automation),
    recovery: { add: input.recovery.add, everyMs: input.recovery.every },
    tenants: new Map(input.tenants.map((one) => [one.id, totalOf(one.total)])),
  });
}
