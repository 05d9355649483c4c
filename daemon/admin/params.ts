// Reading what an operator's request says. Everything comes from outside: what is missing or wrong is
// MailError E_CONTROL with a sentence that says what would be right.
import { policyInForce } from '../gate/index.ts';
import type { Ledger } from '../ledger/index.ts';
import { MailError, parseAddress, type Address, type AddressHashes } from '../mail/index.ts';
import { isId } from '../runtime/index.ts';
import type { Policy, Settings, Stream, Tenant } from '../settings/index.ts';

export type Params = Readonly<Record<string, unknown>>;

/** What parameters are looked up in. */
export interface Known {
  readonly settings: () => Pick<Settings, 'tenants'>;
  readonly ledger: Pick<Ledger, 'hashes' | 'unpublished'>;
}

/** Rows a listing returns unless asked otherwise: a screenful or two. */
const LIST_DEFAULT = 100;
const LIST_MAX = 10_000;

export function wrong(message: string, cause?: unknown): MailError {
  return new MailError('E_CONTROL', message, { cause });
}

/** '' where it is not there. */
export function text(params: Params, name: string): string {
  const value = params[name];
  return typeof value === 'string' ? value : '';
}

export function required(params: Params, name: string): string {
  const value = text(params, name);
  if (value === '') throw wrong(`${name} is missing`);
  return value;
}

export function oneOf<T extends string>(params: Params, name: string, allowed: readonly T[], otherwise: T): T {
  const value = text(params, name);
  if (value === '') return otherwise;
  const found = allowed.find((known) => known === value);
  if (found === undefined) throw wrong(`${name}: expected one of ${allowed.join(', ')}; got ${JSON.stringify(value)}`);
  return found;
}

export function tenantOf({ settings }: Pick<Known, 'settings'>, params: Params): Tenant {
  const id = required(params, 'tenant');
  const tenant = settings().tenants.get(id);
  if (tenant === undefined) throw wrong(`no tenant ${JSON.stringify(id)}; there are: ${[...settings().tenants.keys()].join(', ')}`);
  return tenant;
}

export function streamOf(tenant: Tenant, params: Params): Stream {
  const id = required(params, 'stream');
  const stream = tenant.streams.get(id);
  if (stream === undefined) throw wrong(`tenant ${tenant.id} has no stream ${JSON.stringify(id)}; it has: ${[...tenant.streams.keys()].join(', ')}`);
  return stream;
}

export function purposeOf(tenant: Tenant, params: Params): string {
  const purpose = required(params, 'purpose');
  const known = new Set(tenant.policies.flatMap((policy) => policy.purposes));
  if (!known.has(purpose)) throw wrong(`purpose ${JSON.stringify(purpose)} is in no policy of ${tenant.id}; there are: ${[...known].join(', ')}`);
  return purpose;
}

/** The version that is named. */
export function versionOf(tenant: Tenant, version: string): Policy {
  const policy = tenant.policies.find((known) => known.version === version);
  if (policy === undefined) throw wrong(`tenant ${tenant.id} has no policy version ${JSON.stringify(version)}; it has: ${tenant.policies.map((known) => known.version).join(', ')}`);
  return policy;
}

/** The version that is named, else that in force: announced, begun, and its page seen. */
export function policyOf(known: Known, tenant: Tenant, params: Params, now: number): Policy {
  const version = text(params, 'policy');
  if (version !== '') return versionOf(tenant, version);
  const policy = policyInForce(tenant, now, known.ledger.unpublished(tenant.id));
  if (policy === undefined) throw wrong(`no policy of ${tenant.id} is in force; name one: ${tenant.policies.map((known) => known.version).join(', ')}`);
  return policy;
}

export function addressOf(params: Params): Address {
  return parseAddress(required(params, 'rcpt'));
}

export function person(known: Known, params: Params): { readonly tenant: Tenant; readonly address: Address; readonly hashes: AddressHashes } {
  const tenant = tenantOf(known, params);
  const address = addressOf(params);
  return { tenant, address, hashes: known.ledger.hashes(tenant.id, address) };
}

export function messageId(params: Params): string {
  const id = required(params, 'id');
  if (!isId(id)) throw wrong(`${JSON.stringify(id)} is not a message id`);
  return id;
}

export function limitOf(params: Params): number {
  const limit = params['limit'];
  return typeof limit === 'number' && limit > 0 ? Math.min(limit, LIST_MAX) : LIST_DEFAULT;
}
