// What the ledger is asked and what it answers: everything this house has been told about people, by
// tenant. Callers may rely on: every change leaves a leaf in the tenant's log in the same transaction, and
// is durable and visible to the next facts() when its promise resolves; no call finds another tenant's
// record; addresses are never stored; an absence is never reported that was not seen. stored-ledger.ts
// is what answers.
import type { Address, AddressHashes, BasisFact, Instant, Tracking } from '../mail/index.ts';
import type { Policy } from '../settings/index.ts';
import type { LogEntry, TenantLogs } from './log.ts';
import type { PolicyConflict } from './policy-book.ts';
import type { ConsentRecord, ConsentStatement, Evidence, Suppression, SuppressionCause, SuppressionScope, Suspension } from './records.ts';
import type { TrackingRows } from './tracking.ts';
import type { TenantTransfers } from './transfer.ts';

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
  readonly facts?: readonly BasisFact[];
  /** Profile id, where it is known. */
  readonly jurisdiction?: string;
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

/** How far the import of one file has come: everything before `octets` is on record. */
export interface ImportProgress {
  readonly octets: number;
  /** Of the row that comes next; 1 is the first of the file. */
  readonly line: number;
  readonly rows: number;
  readonly recorded: number;
  readonly kept: number;
  readonly refused: number;
}

/** What is written about an import in the transaction of its rows. */
export interface ImportMark {
  /** What names the file among the tenant's imports: 64 hex digits. */
  readonly file: string;
  /** Told how many of the rows changed something; undefined: the import is done. */
  readonly progress: (recorded: number) => ImportProgress | undefined;
}

/** All promises reject with MailError E_STORE when the store fails. */
export interface Ledger {
  hashes(tenant: string, address: Address): AddressHashes;
  facts(tenant: string, purpose: string, stream: string, hashes: AddressHashes): Promise<Facts>;

  /** Records a consent, a refusal or a request that still has to be confirmed. */
  give(tenant: string, entry: ConsentEntry): Promise<ConsentResult>;
  /** The same for many, in one durable transaction: all of them or none. */
  giveAll(tenant: string, entries: readonly ConsentEntry[], mark?: ImportMark): Promise<readonly ConsentResult[]>;
  /** Withdraws this purpose or all (`*`). @returns how many records changed */
  withdraw(tenant: string, purpose: string, hashes: AddressHashes, by: string): Promise<number>;
  /** Every consent record of this person, by purpose, with how it came about. */
  show(tenant: string, hashes: AddressHashes): Promise<readonly ConsentStatement[]>;
  /** Everything the log says of this person, newest first: what an access request is owed (GDPR Art. 15). */
  history(tenant: string, hashes: AddressHashes): Promise<readonly LogEntry[]>;
  /**
   * Forgets a person: their secrets are destroyed, their rows go, an `erasure` suppression stays. With
   * `keepEvidenceMs` the evidence can be opened that much longer, by its leaf number alone.
   * May be repeated; what a crash left unfinished is finished when the ledger opens.
   * @returns how many consent records went
   */
  erase(tenant: string, hashes: AddressHashes, by: string, keepEvidenceMs?: number): Promise<number>;

  suppress(tenant: string, entry: SuppressionEntry): Promise<Suppression>;
  suppressAll(tenant: string, entries: readonly SuppressionEntry[], mark?: ImportMark): Promise<readonly Suppression[]>;
  /** Where an import of this file stopped; undefined when none did. */
  importProgress(tenant: string, file: string): Promise<ImportProgress | undefined>;
  /** Lifts what matches, for this person in either width. @returns how many were lifted */
  lift(tenant: string, hashes: AddressHashes, by: string, only?: { readonly scope?: SuppressionScope; readonly cause?: SuppressionCause }): Promise<number>;
  /** In order of hash, from the first that begins with `from` (hex) or comes after; nothing before it is read. */
  list(tenant: string, from?: string): AsyncIterable<ListedSuppression>;

  suspend(tenant: string, cause: string, by: string): Promise<Suspension>;
  /** @returns false when the tenant was not suspended */
  resume(tenant: string, by: string): Promise<boolean>;
  suspension(tenant: string): Promise<Suspension | undefined>;

  /** What of these versions cannot be taken: a version never changes under its name, and a new one is announced before it holds. */
  policyConflicts(tenant: string, policies: readonly Policy[]): readonly PolicyConflict[];
  /** Makes the tenant's policy versions known; those without a conflict. */
  register(tenant: string, policies: readonly Policy[]): Promise<void>;
  /** Records that the version's page was seen with this very text; only then can it come into force. */
  published(tenant: string, hash: string, by: string): Promise<void>;
  /** Hashes of the registered versions whose page has not been seen. */
  unpublished(tenant: string): ReadonlySet<string>;
  /** Appends a fact that is about no person: an operator's act, a sealed piece of the journal. @returns its leaf */
  note(tenant: string, event: string, by: string, fields: Readonly<Record<string, unknown>>): Promise<number>;
  /** Finishes the erasures a crash left and reads what is known of policies; to be called once after opening. */
  recover(): Promise<void>;
  /** Destroys kept evidence whose time is over. @returns how many */
  sweep(): Promise<number>;
  /** The log: proofs, checkpoints, verification. */
  readonly log: TenantLogs;
  /** What opens leave behind that are not recorded person by person. */
  readonly tracking: TrackingRows;
  /** Whole tenants: taken out, brought in, ended. */
  readonly transfers: TenantTransfers;
  /** Signs what is not signed yet. The store is closed by whoever opened it. */
  close(): Promise<void>;
}
