// The ledger over a LedgerStore. Every change passes #change: it reads the rows it is about, decides from
// them inside the transaction, and appends to the tenant's log there. A tenant's id is part of every key
// and its own HMAC key is in every hash. What a person's row and evidence say lies under secrets of its
// own (person-keys.ts): destroyed, they are gone from every copy of the data there ever was. When the
// store does not answer every call rejects with E_STORE.
import { join } from 'node:path';
import { CANON_VERSION, addressKeys, type Address, type AddressHashes, type BasisFact, type Instant } from '../mail/index.ts';
import { newId, type Clock, type Keyring, type TenantKeys } from '../runtime/index.ts';
import type { Policy } from '../settings/index.ts';
import type { LedgerStore, StoreWrite } from '../store/index.ts';
import { AddressHash } from './address-hash.ts';
import { Erasures } from './erasure.ts';
import type { ConsentEntry, ConsentResult, Facts, ImportMark, ImportProgress, Ledger, ListedSuppression, SuppressionEntry } from './ledger.ts';
import { LogWriter, TenantLogs, type LogEntry } from './log.ts';
import { consentPayload, notePayload, readConsentPayload, suppressionPayload } from './payload.ts';
import { openPersonKeys, type NewSlot, type PersonKeys } from './person-keys.ts';
import { longer, mustKeep } from './precedence.ts';
import { PolicyBook, type PolicyConflict } from './policy-book.ts';
import {
  decodeConsent, decodeSuppressions, decodeSuspension, encodeConsent, encodeSuppressions, encodeSuspension, slotOf,
  type ConsentRecord, type ConsentRow, type ConsentStatement, type Suppression, type SuppressionCause, type SuppressionScope, type Suspension,
} from './records.ts';
import { SuppressionFilter } from './suppression-filter.ts';
import { HASH_AT, REST_AT, TABLE, consentKey, namedKey, rowKey } from './row-keys.ts';
import { lastOpenKeyOf, mayKeepLastOpen, openTracking, type TrackingRows } from './tracking.ts';
import { openTransfers, refusalOf, type TenantTransfers } from './transfer.ts';

export interface LedgerParts {
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly clock: Clock;
  /** Our host name, for the origin of checkpoints. */
  readonly hostname?: string;
}

/** Opens the ledger; recover() should follow. @throws MailError E_KEY_UNREADABLE */
export function openLedger(parts: LedgerParts): Ledger {
  return new StoredLedger(parts, openPersonKeys(join(parts.keyring.dir, 'people')));
}

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
  restriction: 'family',
  pause: 'address',
};

/** What a transaction works with: the rows as they stand by now, and the log to append to. */
export interface Turn {
  readonly log: LogWriter;
  get(key: Buffer): Buffer | undefined;
  put(key: Buffer, value: Buffer | undefined): void;
}

class StoredLedger implements Ledger {
  readonly #store: LedgerStore;
  readonly #keyring: Keyring;
  readonly #clock: Clock;
  readonly #people: PersonKeys;
  readonly #hashers = new Map<string, AddressHash>();
  readonly #suspended = new Map<string, Suspension | 'none'>();
  readonly #policies = new PolicyBook();
  readonly #erasures: Erasures;
  readonly #filter: SuppressionFilter;
  /** Changes under way. */
  readonly #running = new Set<Promise<void>>();
  readonly log: TenantLogs;
  readonly tracking: TrackingRows;
  readonly transfers: TenantTransfers;

  constructor({ store, keyring, clock, hostname = 'localhost' }: LedgerParts, people: PersonKeys) {
    this.#store = store;
    this.#keyring = keyring;
    this.#clock = clock;
    this.#people = people;
    this.#filter = new SuppressionFilter(store, () => Promise.allSettled(this.#running));
    this.log = new TenantLogs({ store, keyring, people, clock, hostname });
    const change = this.#change.bind(this);
    this.#erasures = new Erasures({ store, people, clock, change });
    this.tracking = openTracking({ store, keyring, people, change });
    this.transfers = openTransfers({ store, keyring, people, clock, hostname, log: this.log, change, forget: (tenant) => this.#forget(tenant) });
  }

  hashes(tenant: string, address: Address): AddressHashes {
    let hasher = this.#hashers.get(tenant);
    if (hasher === undefined) {
      hasher = new AddressHash(this.#keyring.tenant(tenant).address, `address/${CANON_VERSION}`);
      this.#hashers.set(tenant, hasher);
    }
    const keys = addressKeys(address);
    // Most addresses have one text for all three; its digest has a half for each use.
    const narrow = hasher.of(keys.consent);
    const { suppression } = keys.suppression === keys.consent ? narrow : hasher.of(keys.suppression);
    return {
      consent: narrow.consent,
      suppression,
      family: keys.family === keys.suppression ? suppression : hasher.of(keys.family).suppression,
    };
  }

  async facts(tenant: string, purpose: string, stream: string, hashes: AddressHashes): Promise<Facts> {
    const wide = hashes.family !== hashes.suppression && !hashes.family.equals(hashes.suppression);
    // One row for a whole tenant is not read for each of its recipients; suspend() and resume() keep it true.
    let suspension = this.#suspended.get(tenant);
    if (suspension === undefined) {
      suspension = (await this.suspension(tenant)) ?? 'none';
      this.#suspended.set(tenant, suspension);
    }
    const keys = [consentKey(tenant, hashes, purpose)];
    const isOwn = this.#filter.mayHave(tenant, hashes.suppression);
    if (isOwn) keys.push(rowKey(TABLE.suppressed, tenant, hashes.suppression));
    if (wide && this.#filter.mayHave(tenant, hashes.family)) keys.push(rowKey(TABLE.suppressed, tenant, hashes.family));
    const values = await this.#store.getMany(keys);
    const [consent] = values;
    const [own, family] = isOwn ? [values[1], values[2]] : [undefined, values[1]];
    const found: { consent?: ConsentRecord; suppressions: readonly Suppression[]; suspension?: Suspension; unpublished?: ReadonlySet<string> } = { suppressions: NONE };
    const unpublished = this.unpublished(tenant);
    if (unpublished.size > 0) found.unpublished = unpublished;
    const row = consent === undefined ? undefined : this.#row(tenant, purpose, consent);
    if (row !== undefined) found.consent = row.record;
    if (own !== undefined || family !== undefined) {
      found.suppressions = [...(own === undefined ? NONE : decodeSuppressions(own)), ...(family === undefined ? NONE : ofFamily(decodeSuppressions(family)))]
        .filter(({ scope }) => scope === 'all' || scope === `purpose:${purpose}` || scope === `stream:${stream}`);
    }
    if (suspension !== 'none') found.suspension = suspension;
    return found;
  }

  /** undefined where the person's secret was destroyed: the row says nothing any more. */
  #row(tenant: string, purpose: string, octets: Buffer): ConsentRow | undefined {
    const secret = this.#people.person(tenant, slotOf(octets));
    return secret === undefined ? undefined : decodeConsent(octets, purpose, this.#keyring.tenant(tenant).people, secret);
  }

  async give(tenant: string, entry: ConsentEntry): Promise<ConsentResult> {
    const [result] = await this.giveAll(tenant, [entry]);
    if (result === undefined) throw new Error('one entry, no result');
    return result;
  }

  async giveAll(tenant: string, entries: readonly ConsentEntry[], mark?: ImportMark): Promise<readonly ConsentResult[]> {
    if (entries.length === 0 && mark === undefined) return [];
    const keys = entries.map(({ hashes, purpose }) => consentKey(tenant, hashes, purpose));
    const suppressed = entries.map(({ hashes }) => rowKey(TABLE.suppressed, tenant, hashes.suppression));
    const now = this.#clock.now();
    const veils = this.#keyring.tenant(tenant);
    // Before the transaction: a secret must be on disk before a row relies on it. Which rows are new only the
    // transaction knows; what it does not need goes back.
    const slots = await this.#people.allocate(tenant, entries.length);
    let results: ConsentResult[] = [];
    let used = 0;
    const slot = (): NewSlot => slots[used++] ?? fail();
    await this.#change(tenant, [...keys, ...suppressed], (turn) => {
      used = 0;
      results = entries.map((entry, i) => this.#giveOne(tenant, turn, entry, { key: keys[i] ?? Buffer.of(), suppressed: suppressed[i] ?? Buffer.of(), slot, now, veils }));
      if (mark !== undefined) putMark(turn, tenant, mark, results.filter(({ kind }) => kind === 'recorded').length);
    });
    this.#people.giveBack(tenant, slots.slice(used));
    return results;
  }

  #giveOne(tenant: string, turn: Turn, entry: ConsentEntry, { key, suppressed, slot, now, veils }: {
    readonly key: Buffer; readonly suppressed: Buffer; readonly slot: () => NewSlot; readonly now: Instant; readonly veils: TenantKeys;
  }): ConsentResult {
    const octets = turn.get(key);
    const before = octets === undefined ? undefined : this.#row(tenant, entry.purpose, octets);
    const record = recordOf(entry, String(turn.log.next), now);
    if (before !== undefined && mustKeep(before.record, record)) return { kind: 'kept', record: before.record };
    const secrets = before === undefined ? slot() : this.#secrets(tenant, before.slot);
    // Only while the person is being erased.
    if (secrets === undefined) return { kind: 'kept', record };
    const leaf = turn.log.append(consentPayload('consent', entry, record, entry.hashes, before?.leaf), secrets);
    turn.put(key, encodeConsent({ record, slot: secrets.slot, leaf }, veils.people, secrets.person));
    if (before !== undefined && !mayKeepLastOpen(record)) turn.put(lastOpenKeyOf(key), undefined);
    // The same yes told again is no answer to the unsubscribe that came after it, whatever the clock said then.
    const toldAgain = before?.record.state === 'given' && record.givenAt <= before.record.givenAt;
    if (entry.state === 'given' && !toldAgain) this.#liftOlder(turn, suppressed, entry, record.givenAt);
    return { kind: 'recorded', record };
  }

  /** A person who said yes after unsubscribing is subscribed again; nothing else gives way to a yes. */
  #liftOlder(turn: Turn, key: Buffer, entry: ConsentEntry, givenAt: Instant): void {
    const octets = turn.get(key);
    if (octets === undefined) return;
    const list = decodeSuppressions(octets);
    const lifted = list.filter(({ cause, scope, since }) => cause === 'unsubscribe' && scope === `purpose:${entry.purpose}` && since < givenAt);
    if (lifted.length === 0) return;
    const rest = list.filter((one) => !lifted.includes(one));
    turn.put(key, rest.length === 0 ? undefined : encodeSuppressions(rest));
    for (const one of lifted) turn.log.append(suppressionPayload('lift', one, entry.hashes.suppression, entry.by, this.#clock.now()));
  }

  #secrets(tenant: string, slot: number): NewSlot | undefined {
    const person = this.#people.person(tenant, slot);
    const evidence = this.#people.evidence(tenant, slot);
    return person === undefined || evidence === undefined ? undefined : { slot, person, evidence };
  }

  async withdraw(tenant: string, purpose: string, hashes: AddressHashes, by: string): Promise<number> {
    const keys = purpose === '*' ? await this.#personKeys(tenant, hashes) : [consentKey(tenant, hashes, purpose)];
    const now = this.#clock.now();
    const veils = this.#keyring.tenant(tenant);
    let changed = 0;
    await this.#change(tenant, keys, (turn) => {
      changed = 0;
      for (const key of keys) {
        const octets = turn.get(key);
        const before = octets === undefined ? undefined : this.#row(tenant, key.toString('utf8', REST_AT), octets);
        // A refusal already says no, and the first withdrawal's time is the one that counts.
        if (before === undefined || before.record.state === 'withdrawn' || before.record.state === 'refused') continue;
        const secrets = this.#secrets(tenant, before.slot);
        if (secrets === undefined) continue;
        // Never earlier than what it takes back, however the clock was set: a no must stand against that yes told again.
        const record: ConsentRecord = { ...before.record, state: 'withdrawn', changedAt: Math.max(now, before.record.givenAt) };
        const leaf = turn.log.append(consentPayload('withdrawal', { by }, record, hashes, before.leaf), secrets);
        turn.put(key, encodeConsent({ record, slot: secrets.slot, leaf }, veils.people, secrets.person));
        turn.put(lastOpenKeyOf(key), undefined);
        changed++;
      }
    });
    return changed;
  }

  async #personKeys(tenant: string, hashes: AddressHashes): Promise<Buffer[]> {
    const keys: Buffer[] = [];
    for await (const { key } of this.#store.scan(consentKey(tenant, hashes))) keys.push(key);
    return keys;
  }

  async show(tenant: string, hashes: AddressHashes): Promise<readonly ConsentStatement[]> {
    const statements: ConsentStatement[] = [];
    for await (const { key, value } of this.#store.scan(consentKey(tenant, hashes))) {
      const row = this.#row(tenant, key.toString('utf8', REST_AT), value);
      if (row === undefined) continue;
      const given = readConsentPayload((await this.log.entry(tenant, Number(row.record.id)))?.payload);
      const last = row.leaf === Number(row.record.id) ? given : readConsentPayload((await this.log.entry(tenant, row.leaf))?.payload);
      statements.push({ ...row.record, method: given?.method ?? '', evidence: given?.evidence ?? { source: '', time: row.record.givenAt }, changedBy: last?.by ?? '' });
    }
    return statements;
  }

  async history(tenant: string, hashes: AddressHashes): Promise<readonly LogEntry[]> {
    const entries: LogEntry[] = [];
    for await (const { key, value } of this.#store.scan(consentKey(tenant, hashes))) {
      const row = this.#row(tenant, key.toString('utf8', REST_AT), value);
      // Each entry names the one before it; a leaf that cannot be opened ends the walk.
      for (let leaf = row?.leaf; leaf !== undefined;) {
        const entry = await this.log.entry(tenant, leaf);
        if (entry !== undefined) entries.push(entry);
        leaf = readConsentPayload(entry?.payload)?.supersedes;
      }
    }
    return entries.sort((a, b) => b.leaf - a.leaf);
  }

  async suppress(tenant: string, entry: SuppressionEntry): Promise<Suppression> {
    const [made] = await this.suppressAll(tenant, [entry]);
    if (made === undefined) throw new Error('one entry, no result');
    return made;
  }

  async suppressAll(tenant: string, entries: readonly SuppressionEntry[], mark?: ImportMark): Promise<readonly Suppression[]> {
    if (entries.length === 0 && mark === undefined) return [];
    const now = this.#clock.now();
    const hashOf = ({ cause, hashes }: SuppressionEntry): Buffer => (WIDTH[cause] === 'address' ? hashes.suppression : hashes.family);
    const fresh = entries.map(({ scope, cause, until, by }): Suppression => ({ id: newId(now), scope, cause, since: now, ...(until !== undefined && { until }), by }));
    encodeSuppressions(fresh); // refused here when a field is too long, before anything is written
    const keys = entries.map((entry) => rowKey(TABLE.suppressed, tenant, hashOf(entry)));
    let results: Suppression[] = [];
    await this.#change(tenant, keys, (turn) => {
      results = entries.map((entry, i) => suppressOne(turn, keys[i] ?? Buffer.of(), hashOf(entry), fresh[i] ?? fail()));
      if (mark !== undefined) putMark(turn, tenant, mark, results.filter(({ id }, i) => id === fresh[i]?.id).length);
    });
    return results;
  }

  async importProgress(tenant: string, file: string): Promise<ImportProgress | undefined> {
    const [octets] = await this.#store.getMany([namedKey(TABLE.progress, tenant, file)]);
    return octets === undefined ? undefined : JSON.parse(octets.toString('utf8')) as ImportProgress;
  }

  async lift(tenant: string, hashes: AddressHashes, by: string, only: { readonly scope?: SuppressionScope; readonly cause?: SuppressionCause } = {}): Promise<number> {
    const places = [{ hash: hashes.suppression, own: true }, ...(hashes.family.equals(hashes.suppression) ? [] : [{ hash: hashes.family, own: false }])];
    const keys = places.map(({ hash }) => rowKey(TABLE.suppressed, tenant, hash));
    let count = 0;
    await this.#change(tenant, keys, (turn) => {
      count = 0;
      for (const [i, { hash, own }] of places.entries()) {
        const key = keys[i] ?? Buffer.of();
        const octets = turn.get(key);
        if (octets === undefined) continue;
        const list = decodeSuppressions(octets);
        const lifted = (own ? list : ofFamily(list)).filter(({ scope, cause }) => (only.scope === undefined || scope === only.scope) && (only.cause === undefined || cause === only.cause));
        const rest = list.filter((one) => !lifted.includes(one));
        if (lifted.length > 0) turn.put(key, rest.length === 0 ? undefined : encodeSuppressions(rest));
        for (const one of lifted) turn.log.append(suppressionPayload('lift', one, hash, by, this.#clock.now()));
        count += lifted.length;
      }
    });
    return count;
  }

  async *list(tenant: string, from = ''): AsyncGenerator<ListedSuppression> {
    const prefix = rowKey(TABLE.suppressed, tenant);
    for await (const { key, value } of this.#store.scan(prefix, 'state', Buffer.concat([prefix, Buffer.from(from, 'hex')]))) {
      const hash = key.toString('hex', HASH_AT);
      for (const suppression of decodeSuppressions(value)) yield { ...suppression, hash, width: WIDTH[suppression.cause] };
    }
  }

  async suspend(tenant: string, cause: string, by: string): Promise<Suspension> {
    const now = this.#clock.now();
    const fresh: Suspension = { id: newId(now), cause, since: now, by };
    const octets = encodeSuspension(fresh);
    const key = rowKey(TABLE.suspension, tenant);
    let result = fresh;
    await this.#change(tenant, [key], (turn) => {
      const before = turn.get(key);
      // Already suspended: the first cause and time stay.
      result = before === undefined ? fresh : decodeSuspension(before);
      if (before !== undefined) return;
      turn.put(key, octets);
      turn.log.append(notePayload('suspended', by, now, { cause }));
    });
    this.#suspended.set(tenant, result);
    return result;
  }

  async resume(tenant: string, by: string): Promise<boolean> {
    const key = rowKey(TABLE.suspension, tenant);
    let was = false;
    await this.#change(tenant, [key], (turn) => {
      was = turn.get(key) !== undefined;
      if (!was) return;
      turn.put(key, undefined);
      turn.log.append(notePayload('resumed', by, this.#clock.now(), {}));
    });
    this.#suspended.set(tenant, 'none');
    return was;
  }

  async suspension(tenant: string): Promise<Suspension | undefined> {
    const [octets] = await this.#store.getMany([rowKey(TABLE.suspension, tenant)]);
    return octets === undefined ? undefined : decodeSuspension(octets);
  }

  policyConflicts(tenant: string, policies: readonly Policy[]): readonly PolicyConflict[] {
    return this.#policies.conflicts(tenant, policies, this.#clock.now());
  }

  async register(tenant: string, policies: readonly Policy[]): Promise<void> {
    const fresh = this.#policies.fresh(tenant, policies);
    if (fresh.length === 0) return;
    const now = this.#clock.now();
    await this.#change(tenant, [], (turn) => {
      for (const policy of fresh) this.#policies.write(turn, tenant, policy, now);
    });
    this.#policies.remember(tenant, fresh);
  }

  async published(tenant: string, hash: string, by: string): Promise<void> {
    const now = this.#clock.now();
    await this.#change(tenant, [], (turn) => this.#policies.markPublished(turn, tenant, hash, by, now));
    this.#policies.published(tenant, hash);
  }

  unpublished(tenant: string): ReadonlySet<string> {
    return this.#policies.unpublished(tenant);
  }

  async note(tenant: string, event: string, by: string, fields: Readonly<Record<string, unknown>>): Promise<number> {
    let leaf = 0;
    await this.#change(tenant, [], (turn) => {
      leaf = turn.log.append(notePayload(event, by, this.#clock.now(), fields));
    });
    return leaf;
  }

  async erase(tenant: string, hashes: AddressHashes, by: string, keepEvidenceMs = 0): Promise<number> {
    return this.#erasures.erase(tenant, hashes, by, keepEvidenceMs);
  }

  sweep(): Promise<number> {
    return this.#erasures.sweep();
  }

  async recover(): Promise<void> {
    await this.#policies.load(this.#store);
    await this.#erasures.finish();
  }

  async close(): Promise<void> {
    await this.log.close();
    this.#people.close();
  }

  /** Nothing of the tenant may be remembered when its keys or rows become others. */
  async #forget(tenant: string): Promise<void> {
    this.#hashers.delete(tenant);
    this.#filter.forget(tenant);
    this.log.forget(tenant);
    await this.#policies.read(this.#store, tenant);
  }

  /** The one place every change passes. It is durable and visible when the promise resolves. */
  async #change(tenant: string, keys: readonly Buffer[], decide: (turn: Turn) => void): Promise<void> {
    let appended = false;
    const running = this.#store.commit([rowKey(TABLE.head, tenant), rowKey(TABLE.transfer, tenant), ...keys], ([head, transfer, ...values]) => {
      if (transfer !== undefined) throw refusalOf(tenant, transfer);
      const rows = new Map<string, Buffer | undefined>(keys.map((key, i) => [key.toString('binary'), values[i]]));
      const writes = new Map<string, StoreWrite>();
      const log = new LogWriter(tenant, this.#keyring.tenant(tenant).evidence, head);
      decide({
        log,
        get: (key) => rows.get(key.toString('binary')),
        put: (key, value) => {
          const name = key.toString('binary');
          rows.set(name, value);
          writes.set(name, { part: 'state', key, value });
          if (key[0] === TABLE.suppressed && value !== undefined) this.#filter.add(tenant, key.subarray(HASH_AT, REST_AT));
        },
      });
      const appends = log.writes();
      appended = appends.length > 0;
      return [...writes.values(), ...appends];
    });
    this.#running.add(running);
    await running.finally(() => this.#running.delete(running));
    if (appended) this.log.changed(tenant);
  }
}

function fail(): never {
  throw new Error('as many results as entries');
}

/** Of the suppressions on a family's hash, those that hold for every spelling of it. */
function ofFamily(list: readonly Suppression[]): readonly Suppression[] {
  return list.filter(({ cause }) => WIDTH[cause] === 'family');
}

/** How far an import has come changes with what it has written. */
function putMark(turn: Turn, tenant: string, { file, progress }: ImportMark, recorded: number): void {
  const at = progress(recorded);
  turn.put(namedKey(TABLE.progress, tenant, file), at === undefined ? undefined : Buffer.from(JSON.stringify(at)));
}

function suppressOne(turn: Turn, key: Buffer, hash: Buffer, fresh: Suppression): Suppression {
  const octets = turn.get(key);
  const list = octets === undefined ? [] : decodeSuppressions(octets);
  const same = list.find((one) => one.scope === fresh.scope && one.cause === fresh.cause);
  const kept = same === undefined ? fresh : longer(same, fresh);
  if (kept !== same) {
    turn.put(key, encodeSuppressions([...list.filter((one) => one !== same), kept]));
    turn.log.append(suppressionPayload('suppression', kept, hash, kept.by, fresh.since));
  }
  return kept;
}

function recordOf(entry: ConsentEntry, id: string, now: Instant): ConsentRecord {
  const { purpose, state, legalBasis, policyHash, evidence, expiresAt, tracking, jurisdiction } = entry;
  // The time of a confirmation is the fact itself.
  const confirmed = evidence.doubleOptIn?.confirmedAt !== undefined && entry.facts?.includes('double-opt-in') !== true;
  const facts: readonly BasisFact[] = [...entry.facts ?? [], ...(confirmed ? ['double-opt-in' as const] : [])];
  return {
    id, purpose, state, legalBasis, policyHash, givenAt: evidence.time, changedAt: now, tracking,
    ...(expiresAt !== undefined && { expiresAt }), ...(facts.length > 0 && { facts }), ...(jurisdiction !== undefined && jurisdiction !== '' && { jurisdiction }),
  };
}
