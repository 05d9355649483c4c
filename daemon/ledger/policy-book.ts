// The policy versions each tenant ever had, as the ledger remembers them: name, hash, and whether the
// published page was seen. Callers may rely on: a version's hash never changes here; what is remembered
// in memory is what is on disk. Few rows, read once for a tenant.
import type { Instant } from '../mail/index.ts';
import type { Policy } from '../settings/index.ts';
import type { LedgerStore } from '../store/index.ts';
import { notePayload } from './payload.ts';
import { TABLE, namedKey, rowKey, HASH_AT } from './row-keys.ts';
import type { Turn } from './stored-ledger.ts';

/** A policy version that says something else than it did when it was first loaded. */
export interface PolicyConflict {
  readonly version: string;
  readonly known: string;
  readonly found: string;
}

interface Known {
  readonly hash: string;
  published: boolean;
}

const NO_HASHES: ReadonlySet<string> = new Set();

export class PolicyBook {
  readonly #tenants = new Map<string, Map<string, Known>>();
  readonly #unpublished = new Map<string, ReadonlySet<string>>();

  /** What of these is new, and what contradicts what is known. @throws MailError E_STORE */
  async compare(store: LedgerStore, tenant: string, policies: readonly Policy[]): Promise<{ readonly conflicts: readonly PolicyConflict[]; readonly fresh: readonly Policy[] }> {
    const known = this.#tenants.get(tenant) ?? await this.#read(store, tenant);
    return {
      conflicts: policies.flatMap(({ version, hash }) => {
        const before = known.get(version);
        return before === undefined || before.hash === hash ? [] : [{ version, known: before.hash, found: hash }];
      }),
      fresh: policies.filter(({ version }) => !known.has(version)),
    };
  }

  async #read(store: LedgerStore, tenant: string): Promise<Map<string, Known>> {
    const known = new Map<string, Known>();
    for await (const { key, value } of store.scan(rowKey(TABLE.policy, tenant))) {
      known.set(key.toString('utf8', HASH_AT), { published: value[0] === 1, hash: value.toString('hex', 1) });
    }
    this.#tenants.set(tenant, known);
    this.#refresh(tenant);
    return known;
  }

  write(turn: Turn, tenant: string, policy: Policy, now: Instant): void {
    turn.put(namedKey(TABLE.policy, tenant, policy.version), Buffer.concat([Buffer.of(0), Buffer.from(policy.hash, 'hex')]));
    turn.log.append(notePayload('policy', 'reload', now, {
      version: policy.version, hash: policy.hash, effective: new Date(policy.effectiveAt).toISOString(), purposes: policy.purposes, tracking: policy.tracking,
    }));
  }

  markPublished(turn: Turn, tenant: string, hash: string, by: string, now: Instant): void {
    for (const [version, known] of this.#tenants.get(tenant) ?? []) {
      if (known.hash !== hash || known.published) continue;
      turn.put(namedKey(TABLE.policy, tenant, version), Buffer.concat([Buffer.of(1), Buffer.from(hash, 'hex')]));
      turn.log.append(notePayload('policy-published', by, now, { version, hash }));
    }
  }

  remember(tenant: string, policies: readonly Policy[], published: boolean): void {
    const known = this.#tenants.get(tenant) ?? new Map<string, Known>();
    for (const { version, hash } of policies) known.set(version, { hash, published });
    this.#tenants.set(tenant, known);
    this.#refresh(tenant);
  }

  published(tenant: string, hash: string): void {
    for (const known of this.#tenants.get(tenant)?.values() ?? []) if (known.hash === hash) known.published = true;
    this.#refresh(tenant);
  }

  unpublished(tenant: string): ReadonlySet<string> {
    return this.#unpublished.get(tenant) ?? NO_HASHES;
  }

  forget(tenant: string): void {
    this.#tenants.delete(tenant);
    this.#unpublished.delete(tenant);
  }

  #refresh(tenant: string): void {
    this.#unpublished.set(tenant, new Set([...this.#tenants.get(tenant)?.values() ?? []].filter(({ published }) => !published).map(({ hash }) => hash)));
  }
}
