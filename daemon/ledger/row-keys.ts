// How the ledger's rows are named. Callers may rely on: the tenant stands in every key right behind the
// table, so that no call finds another tenant's row, and no person's key is the beginning of another's.
// State: table (1) · tenant (8, of SHA-256) · hash (16) · purpose. Log: tenant (8) · kind (1) · number.
import { createHash } from 'node:crypto';
import { MailError, type AddressHashes } from '../mail/index.ts';
import { HASH_OCTETS } from './address-hash.ts';

/** Tables of the state; a number is never used again. */
export const TABLE = { consent: 1, suppressed: 2, suspension: 3, head: 4, policy: 5, erasing: 6, retained: 7, progress: 8, transfer: 9, lastOpen: 10, opens: 11 } as const;

const TENANT_OCTETS = 8;
/** Where a person's hash stands in a key of the state. */
export const HASH_AT = 1 + TENANT_OCTETS;
/** Where the rest begins behind a person's hash. */
export const REST_AT = HASH_AT + HASH_OCTETS;

const tenants = new Map<string, Buffer>();

/** 64 bits of a hash, so that no table of numbers has to be kept and agreed on between processes. @throws MailError E_CONTROL */
export function tenantOctets(tenant: string): Buffer {
  const known = tenants.get(tenant);
  if (known !== undefined) return known;
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(tenant)) throw new MailError('E_CONTROL', `${JSON.stringify(tenant)} is not a tenant id`);
  const octets = createHash('sha256').update(tenant).digest().subarray(0, TENANT_OCTETS);
  tenants.set(tenant, octets);
  return octets;
}

/** The key of a row, or with less given the prefix of several. */
export function rowKey(table: number, tenant: string, hash?: Buffer, rest = ''): Buffer {
  // A hash of another length would make one person's key the beginning of another's.
  if (hash !== undefined && hash.length !== HASH_OCTETS) throw new RangeError(`an address hash of ${hash.length} octets`);
  const start = hash === undefined ? HASH_AT : REST_AT;
  const key = Buffer.allocUnsafe(start + (rest === '' ? 0 : Buffer.byteLength(rest)));
  key[0] = table;
  // Loops: for so few octets twice as quick as set(), and every decision makes two or three keys.
  const owner = tenantOctets(tenant);
  for (let i = 0; i < TENANT_OCTETS; i++) key[1 + i] = owner[i] ?? 0;
  if (hash !== undefined) for (let i = 0; i < HASH_OCTETS; i++) key[HASH_AT + i] = hash[i] ?? 0;
  if (rest !== '') key.write(rest, start);
  return key;
}

export function consentKey(tenant: string, hashes: AddressHashes, purpose = ''): Buffer {
  return rowKey(TABLE.consent, tenant, hashes.consent, purpose);
}

/** Rows that are numbered or named rather than a person's. */
export function namedKey(table: number, tenant: string, name: string): Buffer {
  return Buffer.concat([rowKey(table, tenant), Buffer.from(name)]);
}

/** Every row of the tenant's log. */
export function logPrefix(tenant: string): Buffer {
  return tenantOctets(tenant);
}

const ENTRY = 0;
const SUBTREE = 1;

/** The key of a leaf in the log. */
export function entryKey(tenant: string, leaf: number): Buffer {
  const key = Buffer.allocUnsafe(TENANT_OCTETS + 7);
  key.set(tenantOctets(tenant), 0);
  key[TENANT_OCTETS] = ENTRY;
  key.writeUIntBE(leaf, TENANT_OCTETS + 1, 6);
  return key;
}

export function entryPrefix(tenant: string): Buffer {
  return entryKey(tenant, 0).subarray(0, TENANT_OCTETS + 1);
}

/** The key of the hash of a complete subtree of 2^level leaves. */
export function subtreeKey(tenant: string, level: number, index: number): Buffer {
  const key = Buffer.allocUnsafe(TENANT_OCTETS + 8);
  key.set(tenantOctets(tenant), 0);
  key[TENANT_OCTETS] = SUBTREE;
  key[TENANT_OCTETS + 1] = level;
  key.writeUIntBE(index, TENANT_OCTETS + 2, 6);
  return key;
}
