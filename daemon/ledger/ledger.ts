// The ledger: what this house has been told about people, by tenant. Callers may rely on: every change
// passes through #record and is durable and visible to the next facts() when its promise resolves; a
// tenant's id is part of every key and its own HMAC key is in every hash, so that no call finds another
// tenant's record; addresses are never stored. When the store does not answer every call rejects with
// E_STORE: the ledger never reports an absence it has not seen.
//
// Keys: table (1) · tenant (8, of SHA-256) · hash (16) · purpose.
import { createHash, createHmac } from 'node:crypto';
import { CANON_VERSION, MailError, addressKeys, type Address, type AddressHashes, type Instant, type Tracking } from '../mail/index.ts';
import { newId, type Clock, type Keyring } from '../runtime/index.ts';
import type { LedgerStore, StoreChange } from '../store/index.ts';
import {
  decodeConsent, decodeSuppressions, decodeSuspension, encodeConsent, encodeSuppressions, encodeSuspension,
  type ConsentRecord, type Evidence, type Suppression, type SuppressionCause, type SuppressionScope, type Suspension,
} from './records.ts';

/** Everything the gate may know of one recipient, as it stands at one moment. Expiry is not judged here. */
export interface Facts {
  readonly consent?: ConsentRecord;
  /** Of scope all, of this purpose or of this stream, expired ones included. */
  readonly suppressions: readonly Suppression[];
  readonly suspension?: Suspension;
  /** Hashes of this tenant's policy versions whose page has not been seen yet: they are not in force. */
  readonly unpublished?: ReadonlySet<string>;
}

/** A consent as it is given to the ledger. */
export interface ConsentEntry {
  readonly hashes: AddressHashes;
  readonly purpose: string;
  /** A record ends through withdraw(), and by its expiry. */
  readonly state: 'pending' | 'given' | 'refused';
  readonly legalBasis: string;
  readonly policyHash: string;
  readonly method: string;
  readonly evidence: Evidence;
  readonly expiresAt?: Instant;
  readonly tracking: Tracking;
  readonly by: string;
}

/**
 * `kept`: what is on record says more and was left alone. An older yes never undoes a later no, and a
 * form that somebody else fills in (pending) never takes a confirmed consent away.
 */
export interface ConsentResult {
  readonly kind: 'recorded' | 'kept';
  readonly record: ConsentRecord;
}

export interface SuppressionEntry {
  readonly hashes: AddressHashes;
  readonly scope: SuppressionScope;
  readonly cause: SuppressionCause;
  readonly until?: Instant;
  readonly by: string;
}

export interface ListedSuppression extends Suppression {
  /** Hex of the keyed hash; the address is not known here. */
  readonly hash: string;
  readonly width: 'address' | 'family';
}

/** All promises reject with MailError E_STORE when the store fails. */
export interface Ledger {
  hashes(tenant: string, address: Address): AddressHashes;
  facts(tenant: string, purpose: string, stream: string, hashes: AddressHashes): Promise<Facts>;

  /** Records a consent, a refusal or a request that still has to be confirmed. */
  give(tenant: string, entry: ConsentEntry): Promise<ConsentResult>;
  /** The same for many, in one durable transaction: all of them or none. */
  giveAll(tenant: string, entries: readonly ConsentEntry[]): Promise<readonly ConsentResult[]>;
  /** Withdraws this purpose or all (`*`). @returns how many records changed */
  withdraw(tenant: string, purpose: string, hashes: AddressHashes, by: string): Promise<number>;
  /** Every consent record of this person, by purpose. */
  show(tenant: string, hashes: AddressHashes): Promise<readonly ConsentRecord[]>;

  suppress(tenant: string, entry: SuppressionEntry): Promise<Suppression>;
  suppressAll(tenant: string, entries: readonly SuppressionEntry[]): Promise<readonly Suppression[]>;
  /** Lifts what matches, for this person in either width. @returns how many were lifted */
  lift(tenant: string, hashes: AddressHashes, by: string, only?: { readonly scope?: SuppressionScope; readonly cause?: SuppressionCause }): Promise<number>;
  list(tenant: string): AsyncIterable<ListedSuppression>;

  suspend(tenant: string, cause: string, by: string): Promise<Suspension>;
  /** @returns false when the tenant was not suspended */
  resume(tenant: string, by: string): Promise<boolean>;
  suspension(tenant: string): Promise<Suspension | undefined>;
}

export interface LedgerParts {
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly clock: Clock;
}

export function openLedger(parts: LedgerParts): Ledger {
  return new StoredLedger(parts);
}

const TABLE = { consent: 1, suppressed: 2, suppressedFamily: 3, suspension: 4 } as const;
const TENANT_OCTETS = 8;
const HASH_OCTETS = 16;
const NONE: readonly Suppression[] = Object.freeze([]);

// What one mailbox did or said about itself stays with it; what a person demands holds for the
// spellings the provider delivers to the same person (design §4).
const WIDTH: Readonly<Record<SuppressionCause, 'address' | 'family'>> = {
  'hard-bounce': 'address',
  unsubscribe: 'address',
  complaint: 'family',
  objection: 'family',
  erasure: 'family',
  manual: 'family',
};

/** One change of one record, on its way through #record. */
interface Change extends StoreChange {
  readonly kind: 'consent' | 'withdrawal' | 'suppression' | 'lift' | 'suspension';
  readonly by: string;
}

class StoredLedger implements Ledger {
  readonly #store: LedgerStore;
  readonly #keyring: Keyring;
  readonly #clock: Clock;
  readonly #tenants = new Map<string, Buffer>();

  constructor({ store, keyring, clock }: LedgerParts) {
    this.#store = store;
    this.#keyring = keyring;
    this.#clock = clock;
  }

  hashes(tenant: string, address: Address): AddressHashes {
    const key = this.#keyring.tenant(tenant).address;
    const keys = addressKeys(address);
    // The label keeps the three apart: equal texts of different width must not share a hash.
    const hash = (width: string, text: string): Buffer =>
      createHmac('sha256', key).update(`address/${CANON_VERSION}/${width}\0${text}`).digest().subarray(0, HASH_OCTETS);
    return { consent: hash('consent', keys.consent), suppression: hash('suppression', keys.suppression), family: hash('family', keys.family) };
  }

  async facts(tenant: string, purpose: string, stream: string, hashes: AddressHashes): Promise<Facts> {
    const [consent, own, family, suspension] = await this.#store.getMany([
      this.#consentKey(tenant, hashes, purpose),
      this.#key(TABLE.suppressed, tenant, hashes.suppression),
      this.#key(TABLE.suppressedFamily, tenant, hashes.family),
      this.#key(TABLE.suspension, tenant),
    ]);
    const found: { consent?: ConsentRecord; suppressions: readonly Suppression[]; suspension?: Suspension } = { suppressions: NONE };
    if (consent !== undefined) found.consent = decodeConsent(consent);
    if (own !== undefined || family !== undefined) {
      found.suppressions = [...(own === undefined ? NONE : decodeSuppressions(own)), ...(family === undefined ? NONE : decodeSuppressions(family))]
        .filter(({ scope }) => scope === 'all' || scope === `purpose:${purpose}` || scope === `stream:${stream}`);
    }
    if (suspension !== undefined) found.suspension = decodeSuspension(suspension);
    return found;
  }

  async give(tenant: string, entry: ConsentEntry): Promise<ConsentResult> {
    const [result] = await this.giveAll(tenant, [entry]);
    if (result === undefined) throw new Error('one entry, no result');
    return result;
  }

  async giveAll(tenant: string, entries: readonly ConsentEntry[]): Promise<readonly ConsentResult[]> {
    const results: ConsentResult[] = [];
    await this.#record(entries.map((entry) => {
      const fresh = this.#consentOf(entry);
      const octets = encodeConsent(fresh); // here, so that a field too long is refused before anything is written
      return {
        kind: 'consent',
        by: entry.by,
        key: this.#consentKey(tenant, entry.hashes, entry.purpose),
        to: (before) => {
          const record = before === undefined ? undefined : decodeConsent(before);
          const keep = record !== undefined && mustKeep(record, fresh);
          results.push(keep ? { kind: 'kept', record } : { kind: 'recorded', record: fresh });
          return keep ? before : octets;
        },
      };
    }));
    return results;
  }

  #consentOf(entry: ConsentEntry): ConsentRecord {
    const now = this.#clock.now();
    const { hashes: _, by, ...told } = entry;
    return { ...told, id: newId(now), givenAt: entry.evidence.time, changedAt: now, changedBy: by };
  }

  async withdraw(tenant: string, purpose: string, hashes: AddressHashes, by: string): Promise<number> {
    const purposes = purpose === '*' ? (await this.show(tenant, hashes)).map((record) => record.purpose) : [purpose];
    const now = this.#clock.now();
    let changed = 0;
    await this.#record(purposes.map((name) => ({
      kind: 'withdrawal',
      by,
      key: this.#consentKey(tenant, hashes, name),
      to: (before) => {
        if (before === undefined) return before;
        const record = decodeConsent(before);
        // A refusal already says no, and the first withdrawal's time is the one that counts.
        if (record.state === 'withdrawn' || record.state === 'refused') return before;
        changed++;
        return encodeConsent({ ...record, state: 'withdrawn', changedAt: now, changedBy: by });
      },
    })));
    return changed;
  }

  async show(tenant: string, hashes: AddressHashes): Promise<readonly ConsentRecord[]> {
    const records: ConsentRecord[] = [];
    for await (const { value } of this.#store.scan(this.#key(TABLE.consent, tenant, hashes.consent))) records.push(decodeConsent(value));
    return records;
  }

  async suppress(tenant: string, entry: SuppressionEntry): Promise<Suppression> {
    const [made] = await this.suppressAll(tenant, [entry]);
    if (made === undefined) throw new Error('one entry, no result');
    return made;
  }

  async suppressAll(tenant: string, entries: readonly SuppressionEntry[]): Promise<readonly Suppression[]> {
    const now = this.#clock.now();
    const results: Suppression[] = [];
    await this.#record(entries.map((entry) => {
      const { hashes, ...told } = entry;
      const fresh: Suppression = { ...told, id: newId(now), since: now };
      encodeSuppressions([fresh]); // refused here when a field is too long, before anything is written
      return {
        kind: 'suppression',
        by: entry.by,
        key: WIDTH[entry.cause] === 'address' ? this.#key(TABLE.suppressed, tenant, hashes.suppression) : this.#key(TABLE.suppressedFamily, tenant, hashes.family),
        to: (before) => {
          const list = before === undefined ? [] : decodeSuppressions(before);
          const same = list.find((s) => s.scope === fresh.scope && s.cause === fresh.cause);
          const kept = same === undefined ? fresh : longer(same, fresh);
          results.push(kept);
          return kept === same ? before : encodeSuppressions([...list.filter((s) => s !== same), kept]);
        },
      };
    }));
    return results;
  }

  async lift(tenant: string, hashes: AddressHashes, by: string, only: { readonly scope?: SuppressionScope; readonly cause?: SuppressionCause } = {}): Promise<number> {
    let lifted = 0;
    const keys = [this.#key(TABLE.suppressed, tenant, hashes.suppression), this.#key(TABLE.suppressedFamily, tenant, hashes.family)];
    await this.#record(keys.map((key) => ({
      kind: 'lift',
      by,
      key,
      to: (before) => {
        if (before === undefined) return before;
        const list = decodeSuppressions(before);
        const rest = list.filter((s) => (only.scope !== undefined && s.scope !== only.scope) || (only.cause !== undefined && s.cause !== only.cause));
        lifted += list.length - rest.length;
        if (rest.length === list.length) return before;
        return rest.length === 0 ? undefined : encodeSuppressions(rest);
      },
    })));
    return lifted;
  }

  async *list(tenant: string): AsyncGenerator<ListedSuppression> {
    for (const [table, width] of [[TABLE.suppressed, 'address'], [TABLE.suppressedFamily, 'family']] as const) {
      for await (const { key, value } of this.#store.scan(this.#key(table, tenant))) {
        const hash = key.toString('hex', 1 + TENANT_OCTETS);
        for (const suppression of decodeSuppressions(value)) yield { ...suppression, hash, width };
      }
    }
  }

  async suspend(tenant: string, cause: string, by: string): Promise<Suspension> {
    const now = this.#clock.now();
    const fresh: Suspension = { id: newId(now), cause, since: now, by };
    const octets = encodeSuspension(fresh);
    let result = fresh;
    await this.#record([{
      kind: 'suspension',
      by,
      key: this.#key(TABLE.suspension, tenant),
      to: (before) => {
        if (before === undefined) return octets;
        result = decodeSuspension(before); // already suspended: the first cause and time stay
        return before;
      },
    }]);
    return result;
  }

  async resume(tenant: string, by: string): Promise<boolean> {
    let was = false;
    await this.#record([{
      kind: 'suspension',
      by,
      key: this.#key(TABLE.suspension, tenant),
      to: (before) => {
        was = before !== undefined;
        return undefined;
      },
    }]);
    return was;
  }

  async suspension(tenant: string): Promise<Suspension | undefined> {
    const [octets] = await this.#store.getMany([this.#key(TABLE.suspension, tenant)]);
    return octets === undefined ? undefined : decodeSuspension(octets);
  }

  /** The one place every change passes. It is durable and visible when the promise resolves. */
  async #record(changes: readonly Change[]): Promise<void> {
    if (changes.length > 0) await this.#store.commit(changes);
  }

  #consentKey(tenant: string, hashes: AddressHashes, purpose: string): Buffer {
    return this.#key(TABLE.consent, tenant, hashes.consent, purpose);
  }

  #key(table: number, tenant: string, hash?: Buffer, purpose = ''): Buffer {
    // A hash of another length would make one person's key the beginning of another's.
    if (hash !== undefined && hash.length !== HASH_OCTETS) throw new RangeError(`an address hash of ${hash.length} octets`);
    const start = 1 + TENANT_OCTETS + (hash === undefined ? 0 : HASH_OCTETS);
    const key = Buffer.allocUnsafe(start + Buffer.byteLength(purpose));
    key[0] = table;
    key.set(this.#tenantOctets(tenant), 1);
    if (hash !== undefined) key.set(hash, 1 + TENANT_OCTETS);
    if (purpose !== '') key.write(purpose, start);
    return key;
  }

  // 64 bits of a hash, so that no table of numbers has to be kept and agreed on between processes.
  #tenantOctets(tenant: string): Buffer {
    const known = this.#tenants.get(tenant);
    if (known !== undefined) return known;
    if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(tenant)) throw new MailError('E_CONTROL', `${JSON.stringify(tenant)} is not a tenant id`);
    const octets = createHash('sha256').update(tenant).digest().subarray(0, TENANT_OCTETS);
    this.#tenants.set(tenant, octets);
    return octets;
  }
}

function mustKeep(record: ConsentRecord, fresh: ConsentRecord): boolean {
  // A no stands against every yes that is not later than it.
  if ((record.state === 'withdrawn' || record.state === 'refused') && fresh.state !== 'refused') return fresh.evidence.time <= record.changedAt;
  if (record.state === 'given' && fresh.state === 'pending' && (record.expiresAt === undefined || record.expiresAt > fresh.changedAt)) return true;
  // Importing last year's list again must not bring back last year's choices, nor what was withdrawn
  // before somebody asked anew (pending stands where the withdrawal stood).
  return fresh.evidence.time < record.evidence.time;
}

/** Of two suppressions of one scope and cause, the one that ends later; the first beginning stays. */
function longer(known: Suppression, fresh: Suppression): Suppression {
  if (known.until === undefined || (fresh.until !== undefined && fresh.until <= known.until)) return known;
  return { ...fresh, id: known.id, since: known.since };
}
