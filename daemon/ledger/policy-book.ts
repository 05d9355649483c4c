// The policy versions each tenant ever had, as the ledger remembers them: name, hash, and whether the
// published page was seen. Callers may rely on: a version's hash never changes here; what is remembered
// in memory is what is on disk. Few rows, read once for a tenant.
import type { Instant } from '../mail/index.ts';
import type { Policy } from '../settings/index.ts';
import type { LedgerStore } from '../store/index.ts';
import { notePayload } from './payload.ts';
import { HASH_AT, TABLE, namedKey, rowKey, tenantOctets } from './row-keys.ts';
import type { Turn } from './stored-ledger.ts';
import { refusalOf } from './transfer.ts';

/** Why a policy version cannot be taken. */
export interface PolicyConflict {
  readonly version: string;
  /** One sentence that says what to do. */
  readonly reason: string;
}

interface Known {
  readonly hash: string;
  published: boolean;
}

const NO_HASHES: ReadonlySet<string> = new Set();

export class PolicyBook {
  // By the tenant's octets in hex: that is what a row's key tells.
  readonly #tenants = new Map<string, Map<string, Known>>();
  readonly #unpublished = new Map<string, ReadonlySet<string>>();
  /** Tenants that were deleted, or are on their way in or out: no version of theirs can be taken. */
  readonly #marks = new Map<string, Buffer>();

  /** Reads what is on record of all tenants. @throws MailError E_STORE */
  async load(store: LedgerStore): Promise<void> {
    this.#tenants.clear();
    this.#unpublished.clear();
    for await (const { key, value } of store.scan(Buffer.of(TABLE.policy))) {
      const tenant = key.toString('hex', 1, HASH_AT);
      const known = this.#tenants.get(tenant) ?? new Map<string, Known>();
      this.#tenants.set(tenant, known.set(key.toString('utf8', HASH_AT), { published: value[0] === 1, hash: value.toString('hex', 1) }));
    }
    for await (const { key, value } of store.scan(Buffer.of(TABLE.transfer))) this.#marks.set(key.toString('hex', 1, HASH_AT), value);
    for (const tenant of this.#tenants.keys()) this.#refresh(tenant);
  }

  /** The same for one tenant, whose rows a transfer changed. */
  async read(store: LedgerStore, tenant: string): Promise<void> {
    const name = nameOf(tenant);
    const known = new Map<string, Known>();
    for await (const { key, value } of store.scan(rowKey(TABLE.policy, tenant))) known.set(key.toString('utf8', HASH_AT), { published: value[0] === 1, hash: value.toString('hex', 1) });
    const [mark] = await store.getMany([rowKey(TABLE.transfer, tenant)]);
    if (known.size === 0) this.#tenants.delete(name);
    else this.#tenants.set(name, known);
    if (mark === undefined) this.#marks.delete(name);
    else this.#marks.set(name, mark);
    this.#refresh(name);
  }

  /** What of these contradicts what is on record. A tenant's first versions may have been in force before. */
  conflicts(tenant: string, policies: readonly Policy[], now: Instant): readonly PolicyConflict[] {
    const mark = this.#marks.get(nameOf(tenant));
    if (mark !== undefined) return policies.slice(0, 1).map(({ version }) => ({ version, reason: refusalOf(tenant, mark).message }));
    const known = this.#tenants.get(nameOf(tenant));
    if (known === undefined) return [];
    return policies.flatMap(({ version, hash, effectiveAt }): PolicyConflict[] => {
      const before = known.get(version);
      if (before === undefined) {
        return effectiveAt > now ? [] : [{ version, reason: `a new version must be announced before it takes effect: choose a time for effective that is still to come (it was ${new Date(effectiveAt).toISOString()})` }];
      }
      return before.hash === hash ? [] : [{ version, reason: `this version was published as ${before.hash}; its text and permissions are now ${hash}: leave it as it was and write a new version` }];
    });
  }

  fresh(tenant: string, policies: readonly Policy[]): readonly Policy[] {
    return policies.filter(({ version }) => this.#tenants.get(nameOf(tenant))?.has(version) !== true);
  }

  write(turn: Turn, tenant: string, policy: Policy, now: Instant): void {
    turn.put(namedKey(TABLE.policy, tenant, policy.version), Buffer.concat([Buffer.of(0), Buffer.from(policy.hash, 'hex')]));
    turn.log.append(notePayload('policy', 'reload', now, {
      version: policy.version, hash: policy.hash, effective: new Date(policy.effectiveAt).toISOString(), purposes: policy.purposes, tracking: policy.tracking,
    }));
  }

  markPublished(turn: Turn, tenant: string, hash: string, by: string, now: Instant): void {
    for (const [version, known] of this.#tenants.get(nameOf(tenant)) ?? []) {
      if (known.hash !== hash || known.published) continue;
      turn.put(namedKey(TABLE.policy, tenant, version), Buffer.concat([Buffer.of(1), Buffer.from(hash, 'hex')]));
      turn.log.append(notePayload('policy-published', by, now, { version, hash }));
    }
  }

  remember(tenant: string, policies: readonly Policy[]): void {
    const name = nameOf(tenant);
    const known = this.#tenants.get(name) ?? new Map<string, Known>();
    for (const { version, hash } of policies) known.set(version, { hash, published: false });
    this.#tenants.set(name, known);
    this.#refresh(name);
  }

  published(tenant: string, hash: string): void {
    for (const known of this.#tenants.get(nameOf(tenant))?.values() ?? []) if (known.hash === hash) known.published = true;
    this.#refresh(nameOf(tenant));
  }

  unpublished(tenant: string): ReadonlySet<string> {
    return this.#unpublished.get(nameOf(tenant)) ?? NO_HASHES;
  }

  #refresh(name: string): void {
    this.#unpublished.set(name, new Set([...this.#tenants.get(name)?.values() ?? []].filter(({ published }) => !published).map(({ hash }) => hash)));
  }
}

const names = new Map<string, string>();

/** Asked for every decision: the text is made once. */
function nameOf(tenant: string): string {
  let name = names.get(tenant);
  if (name === undefined) {
    name = tenantOctets(tenant).toString('hex');
    names.set(tenant, name);
  }
  return name;
}
