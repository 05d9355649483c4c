// Lists of consents and suppressions that a tenant brings along, of any length. Callers may rely on: rows
// are durable window by window and never half, a bad row is reported and the others are taken, the same
// file may be imported again without harm, nothing that a person has withdrawn since comes back
// (precedence.ts), and mail goes on meanwhile. A window's rows are written in the order of
// their keys: rows that stand together on disk are written together, which is four times as fast in a
// store of a million as the order of the file. An import that is given a mark can be gone on with.
import { BASIS_FACTS, CLICK_MODES, LEGAL_BASES, MailError, OPEN_MODES, parseAddress, type AddressHashes, type BasisFact } from '../mail/index.ts';
import type { Policy, Tenant } from '../settings/index.ts';
import type { ConsentEntry, ImportMark, ImportProgress, Ledger, SuppressionEntry } from './ledger.ts';
import { SUPPRESSION_CAUSES, parseScope } from './records.ts';
import { RowReader, type Row, type RowError, type RowFormat, type RowStart } from './rows.ts';

export interface ImportOptions {
  readonly format: RowFormat;
  /** Now, ms: a consent of tomorrow is a mistake. */
  readonly now: number;
  readonly by: string;
  /** Profile ids a consent may name as its jurisdiction; without them any word of letters. */
  readonly jurisdictions?: readonly string[];
  /** Every row is checked and none written. */
  readonly dryRun?: boolean;
  /** What names the file among the tenant's imports, 64 hex digits; without it nothing is written of how far it came. */
  readonly file?: string;
  /** Goes on behind what was imported before. */
  readonly from?: { readonly progress: ImportProgress; readonly header: Buffer };
  /** How many rows are written in one go; fewer take less memory and are written more slowly. */
  readonly windowRows?: number;
  readonly onError?: (error: RowError) => void;
  /** Called after each durable window. */
  readonly onProgress?: (done: ImportResult) => void;
}

export interface ImportResult {
  readonly rows: number;
  readonly recorded: number;
  /** Rows that agreed with, or were older than, what is on record. */
  readonly kept: number;
  readonly errors: number;
}

// One durable transaction each; it holds the thread for about 10 ms on a busy machine, which mail in flight does not notice.
const BATCH_ROWS = 500;
// Read at a time, with a turn of the event loop in between: about 4 ms.
const SLICE_ROWS = 500;
// The longer the window the more rows share a page on disk; this one takes about 40 MB.
const WINDOW_ROWS = 65_536;
// Clocks of two machines differ; a day covers time zones written without one.
const AHEAD_MS = 86_400_000;

const CONSENT_COLUMNS = [
  'email', 'purpose', 'source', 'time', 'policy', 'opens', 'clicks', 'state', 'method', 'legal_basis', 'expires', 'form_hash', 'ip_pseudonym', 'requested', 'confirmed', 'facts', 'jurisdiction',
] as const;
const SUPPRESSION_COLUMNS = ['email', 'scope', 'cause', 'until'] as const;

interface Kind<Entry> {
  readonly columns: readonly string[];
  readonly required: readonly string[];
  /** Reads a row's entry. @throws MailError E_ADDRESS or E_CONTROL saying what is wrong with it */
  readonly read: (row: Row) => Entry;
  /** What rows stand in the order of. */
  readonly hash: (entry: Entry) => Buffer;
  /** @returns how many were new */
  readonly write: (entries: readonly Entry[], mark: ImportMark | undefined) => Promise<number>;
}

/** One import: pieces of a file go in with take(), and are on disk after flush(). */
export interface ImportRun {
  /** True when enough has been read that it should be written before more is. */
  readonly full: boolean;
  readonly result: ImportResult;
  /**
   * Reads the next piece, which may end anywhere.
   * @throws MailError E_CONTROL for an unusable header
   */
  take(piece: Buffer, last?: boolean): Promise<void>;
  /** Writes what was read. @throws MailError E_STORE when the store fails; what was written before stays */
  flush(last?: boolean): Promise<void>;
}

/**
 * Columns email, purpose, source, time and policy (version or hash), and optionally opens, clicks, state,
 * method, legal_basis, expires, form_hash, ip_pseudonym, requested, confirmed, facts (several: separated by
 * `;` or spaces) and jurisdiction. Missing tracking columns mean none.
 */
export function openConsentImport(ledger: Ledger, tenant: Tenant, options: ImportOptions): ImportRun {
  const policies = new Map(tenant.policies.flatMap((policy) => [[policy.version, policy], [policy.hash, policy]] as const));
  return new Run<ConsentEntry>({
    columns: CONSENT_COLUMNS,
    required: ['email', 'purpose', 'source', 'time', 'policy'],
    read: (row) => consentEntry((email) => ledger.hashes(tenant.id, parseAddress(email)), policies, row, options),
    hash: ({ hashes }) => hashes.consent,
    async write(entries, mark) {
      const results = await ledger.giveAll(tenant.id, entries, mark);
      return results.filter(({ kind }) => kind === 'recorded').length;
    },
  }, options);
}

/** Columns email and cause, and optionally scope (default `all`) and until. */
export function openSuppressionImport(ledger: Ledger, tenant: Tenant, options: ImportOptions): ImportRun {
  return new Run<SuppressionEntry>({
    columns: SUPPRESSION_COLUMNS,
    required: ['email', 'cause'],
    read: (row) => suppressionEntry((email) => ledger.hashes(tenant.id, parseAddress(email)), row, options),
    hash: ({ hashes }) => hashes.family,
    async write(entries, mark) {
      const made = await ledger.suppressAll(tenant.id, entries, mark);
      return made.filter(({ since }) => since >= options.now).length;
    },
  }, options);
}

/** Imports a whole stream of consents. @throws MailError E_CONTROL for an unusable header, E_STORE when the store fails */
export async function importConsents(ledger: Ledger, tenant: Tenant, source: AsyncIterable<Uint8Array | string>, options: ImportOptions): Promise<ImportResult> {
  return wholeStream(openConsentImport(ledger, tenant, options), source);
}

/** Imports a whole stream of suppressions. @throws MailError E_CONTROL for an unusable header, E_STORE when the store fails */
export async function importSuppressions(ledger: Ledger, tenant: Tenant, source: AsyncIterable<Uint8Array | string>, options: ImportOptions): Promise<ImportResult> {
  return wholeStream(openSuppressionImport(ledger, tenant, options), source);
}

async function wholeStream(run: ImportRun, source: AsyncIterable<Uint8Array | string>): Promise<ImportResult> {
  for await (const piece of source) {
    if (run.full) await run.flush();
    await run.take(typeof piece === 'string' ? Buffer.from(piece) : Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength));
  }
  await run.take(Buffer.alloc(0), true);
  await run.flush(true);
  return run.result;
}

class Run<Entry> implements ImportRun {
  readonly #kind: Kind<Entry>;
  readonly #options: ImportOptions;
  readonly #rows: RowReader;
  #result: ImportResult;
  #window: Entry[] = [];

  constructor(kind: Kind<Entry>, options: ImportOptions) {
    this.#kind = kind;
    this.#options = options;
    const { from } = options;
    const start: RowStart | undefined = from === undefined ? undefined : { octets: from.progress.octets, line: from.progress.line, header: from.header };
    this.#rows = new RowReader({ format: options.format, known: kind.columns, required: kind.required }, start);
    const { rows = 0, recorded = 0, kept = 0, refused = 0 } = from?.progress ?? {};
    this.#result = { rows, recorded, kept, errors: refused };
  }

  get full(): boolean {
    return this.#window.length >= (this.#options.windowRows ?? WINDOW_ROWS);
  }

  get result(): ImportResult {
    return this.#result;
  }

  async take(piece: Buffer, last = false): Promise<void> {
    this.#rows.push(piece);
    let { rows, errors } = this.#result;
    for (let n = 1; ; n++) {
      const row = this.#rows.next(last);
      if (row === undefined) break;
      rows++;
      const entry = 'reason' in row ? row : readOrExplain(row, this.#kind.read);
      if ('reason' in entry) {
        errors++;
        this.#options.onError?.({ line: entry.line, reason: entry.reason });
      } else {
        this.#window.push(entry.value);
      }
      if (n % SLICE_ROWS === 0) await turn();
    }
    this.#result = { ...this.#result, rows, errors };
  }

  async flush(last = false): Promise<void> {
    const window = this.#window;
    this.#window = [];
    if (this.#options.dryRun !== true) await this.#write(inKeyOrder(window, this.#kind.hash), last);
    this.#options.onProgress?.(this.#result);
  }

  async #write(sorted: readonly Entry[], last: boolean): Promise<void> {
    const { file } = this.#options;
    // The transaction of the last rows tells how far all of them have come; without rows it has only that to say.
    const batches = Math.max(Math.ceil(sorted.length / BATCH_ROWS), file === undefined ? 0 : 1);
    for (let n = 1; n <= batches; n++) {
      const batch = sorted.slice((n - 1) * BATCH_ROWS, n * BATCH_ROWS);
      const mark: ImportMark | undefined = file === undefined || n < batches ? undefined : { file, progress: (recorded) => (last ? undefined : this.#progress(batch.length, recorded)) };
      this.#count(batch.length, await this.#kind.write(batch, mark));
      await turn();
    }
  }

  #count(written: number, recorded: number): void {
    this.#result = { ...this.#result, recorded: this.#result.recorded + recorded, kept: this.#result.kept + written - recorded };
  }

  #progress(written: number, recorded: number): ImportProgress {
    const { rows, errors, ...before } = this.#result;
    return { octets: this.#rows.octets, line: this.#rows.line, rows, refused: errors, recorded: before.recorded + recorded, kept: before.kept + written - recorded };
  }
}

/** Mail has its turn. */
function turn(): Promise<void> {
  return new Promise((done) => {
    setImmediate(done);
  });
}

/** By the first four octets of the hash, rows of one person in the order of the file: numbers sort in a few milliseconds, objects do not. */
function inKeyOrder<Entry>(entries: readonly Entry[], hash: (entry: Entry) => Buffer): Entry[] {
  // A piece of a file may overfill a window; 2^20 leaves the sum exact as a number.
  const places = 2 ** 20;
  if (entries.length > places) return [...inKeyOrder(entries.slice(0, places), hash), ...inKeyOrder(entries.slice(places), hash)];
  const order = new Float64Array(entries.length);
  let filled = 0;
  for (const entry of entries) order[filled] = hash(entry).readUInt32BE(0) * places + filled++;
  order.sort();
  const sorted: Entry[] = [];
  for (const one of order) {
    const entry = entries[one % places];
    if (entry !== undefined) sorted.push(entry);
  }
  return sorted;
}

function readOrExplain<Entry>(row: Row, read: (row: Row) => Entry): { readonly value: Entry } | RowError {
  try {
    return { value: read(row) };
  } catch (error) {
    // What is wrong with the row; anything else (a missing key, a bug) stops the import.
    if (error instanceof MailError && (error.code === 'E_ADDRESS' || error.code === 'E_CONTROL')) return { line: row.line, reason: error.message };
    throw error;
  }
}

function bad(reason: string): never {
  throw new MailError('E_CONTROL', reason);
}

type Hashes = (email: string) => AddressHashes;

function consentEntry(hashes: Hashes, policies: ReadonlyMap<string, Policy>, { fields }: Row, options: ImportOptions): ConsentEntry {
  const [email = '', purpose = '', source = '', time = '', version = '', opens = '', clicks = '', state = '', method = '', basis = '', expires = '', formHash = '', ip = '', requested = '', confirmed = '', facts = '', place = ''] = fields;
  const policy = policies.get(version) ?? bad('policy is not a version or hash of a policy of this tenant');
  if (!policy.purposes.includes(purpose)) bad('purpose is not one that this policy version allows');
  if (source === '') bad('source is empty: a consent without evidence is none');
  const past = (name: string, value: string): number => {
    const at = instant(name, value);
    return at > options.now + AHEAD_MS ? bad(`${name} is in the future`) : at;
  };
  if (confirmed !== '' && requested === '') bad('confirmed without requested');
  if (place !== '' && options.jurisdictions === undefined && !/^[a-z]{2,}$/.test(place)) bad('jurisdiction is not a profile id such as de');
  if (place !== '' && options.jurisdictions?.includes(place) === false) bad(`jurisdiction is not one of ${options.jurisdictions.join(', ')}`);
  return {
    hashes: hashes(email),
    purpose,
    state: one('state', state || 'given', STATES),
    legalBasis: one('legal_basis', basis || 'gdpr_6_1_a', LEGAL_BASES),
    policyHash: policy.hash,
    method: text('method', method || 'import'),
    evidence: {
      source: text('source', source),
      time: past('time', time),
      ...(formHash !== '' && { formHash: sha256('form_hash', formHash) }),
      ...(ip !== '' && { ipPseudonym: text('ip_pseudonym', ip) }),
      ...(requested !== '' && { doubleOptIn: { requestedAt: past('requested', requested), ...(confirmed !== '' && { confirmedAt: past('confirmed', confirmed) }) } }),
    },
    ...(expires !== '' && { expiresAt: instant('expires', expires) }),
    tracking: { opens: one('opens', opens || 'none', OPEN_MODES), clicks: one('clicks', clicks || 'none', CLICK_MODES) },
    ...(facts !== '' && { facts: factsOf(facts) }),
    ...(place !== '' && { jurisdiction: text('jurisdiction', place) }),
    by: options.by,
  };
}

const STATES = ['given', 'pending', 'refused'] as const;

function factsOf(list: string): readonly BasisFact[] {
  return [...new Set(list.split(/[;\s]+/).filter((name) => name !== '').map((name) => one('facts', name, BASIS_FACTS)))];
}

function suppressionEntry(hashes: Hashes, { fields }: Row, options: ImportOptions): SuppressionEntry {
  const [email = '', place = '', cause = '', until = ''] = fields;
  return {
    hashes: hashes(email),
    scope: parseScope(text('scope', place || 'all')) ?? bad('scope is not all, purpose:<name> or stream:<name>'),
    cause: one('cause', cause, SUPPRESSION_CAUSES),
    ...(until !== '' && { until: instant('until', until) }),
    by: options.by,
  };
}

function text(name: string, value: string): string {
  // 255 octets is what a record has room for.
  if (value.length > 85 && Buffer.byteLength(value) > 255) bad(`${name} is longer than 255 octets`);
  return value;
}

function sha256(name: string, value: string): string {
  return /^[0-9a-f]{64}$/.test(value) ? value : bad(`${name} is not 64 hex digits`);
}

function one<T extends string>(name: string, value: string, list: readonly T[]): T {
  for (const known of list) if (known === value) return known;
  return bad(`${name} is not one of ${list.join(', ')}`);
}

/** ISO 8601 with a date at least, or milliseconds since the epoch. */
function instant(name: string, value: string): number {
  const at = /^\d{11,14}$/.test(value) ? Number(value) : /^\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-]\d\d:\d\d)?)?$/.test(value) ? Date.parse(value) : Number.NaN;
  // Date.parse takes the 31st of February for the 3rd of March.
  const day = /^\d{4}-\d\d-(?:29|30|31)/.exec(value)?.[0];
  const exists = day === undefined || (!Number.isNaN(at) && new Date(`${day}T00:00:00Z`).toISOString().startsWith(day));
  // Six octets hold every time from 1970 on.
  return exists && at >= 0 && at < 2 ** 48 ? at : bad(`${name} is not a time like 2026-01-31T12:00:00Z`);
}
