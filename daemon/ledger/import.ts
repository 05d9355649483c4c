// Lists of consents and suppressions that a tenant brings along. Callers may rely on: rows are durable
// batch by batch, a bad row is reported and the others are taken, the same file may be imported again
// without harm, and nothing that a person has withdrawn since comes back (ledger.ts, mustKeep).
import { CLICK_MODES, MailError, OPEN_MODES, parseAddress } from '../mail/index.ts';
import type { Tenant } from '../settings/index.ts';
import type { ConsentEntry, Ledger, SuppressionEntry } from './ledger.ts';
import { SUPPRESSION_CAUSES, parseScope } from './records.ts';
import { readRows, type Row, type RowError, type RowFormat } from './rows.ts';

export interface ImportOptions {
  readonly format: RowFormat;
  /** Now, ms: a consent of tomorrow is a mistake. */
  readonly now: number;
  readonly by: string;
  readonly onError?: (error: RowError) => void;
  /** Called after each durable batch. */
  readonly onProgress?: (done: ImportResult) => void;
}

export interface ImportResult {
  readonly rows: number;
  readonly recorded: number;
  /** Rows that agreed with, or were older than, what is on record. */
  readonly kept: number;
  readonly errors: number;
}

// One durable transaction each. It holds the thread for about 5 ms, which mail in flight does not notice.
const BATCH_ROWS = 500;
// Clocks of two machines differ; a day covers time zones written without one.
const AHEAD_MS = 86_400_000;

const CONSENT_COLUMNS = ['email', 'purpose', 'source', 'time', 'policy', 'opens', 'clicks', 'state', 'method', 'legal_basis', 'expires', 'form_hash', 'ip_pseudonym', 'requested', 'confirmed'] as const;
const SUPPRESSION_COLUMNS = ['email', 'scope', 'cause', 'until'] as const;

/**
 * Imports consents: columns email, purpose, source, time and policy (version or hash), and optionally
 * opens, clicks, state, method, legal_basis, expires, form_hash, ip_pseudonym, requested, confirmed.
 * Missing tracking columns mean none.
 * @throws MailError E_CONTROL for an unusable header, E_STORE when the store fails (whole batches before it stay)
 */
export async function importConsents(ledger: Ledger, tenant: Tenant, source: AsyncIterable<Uint8Array | string>, options: ImportOptions): Promise<ImportResult> {
  const rows = readRows(source, options.format, CONSENT_COLUMNS, ['email', 'purpose', 'source', 'time', 'policy']);
  return importRows(rows, options, (row) => consentEntry(ledger, tenant, row, options), async (entries) => {
    const results = await ledger.giveAll(tenant.id, entries);
    return results.filter((result) => result.kind === 'recorded').length;
  });
}

/**
 * Imports suppressions: columns email and cause, and optionally scope (default `all`) and until.
 * @throws MailError E_CONTROL for an unusable header, E_STORE when the store fails (whole batches before it stay)
 */
export async function importSuppressions(ledger: Ledger, tenant: Tenant, source: AsyncIterable<Uint8Array | string>, options: ImportOptions): Promise<ImportResult> {
  const rows = readRows(source, options.format, SUPPRESSION_COLUMNS, ['email', 'cause']);
  return importRows(rows, options, (row) => suppressionEntry(ledger, tenant, row, options), async (entries) => (await ledger.suppressAll(tenant.id, entries)).length);
}

async function importRows<Entry>(
  rows: AsyncIterable<Row | RowError>, options: ImportOptions, read: (row: Row) => Entry, write: (entries: readonly Entry[]) => Promise<number>,
): Promise<ImportResult> {
  let result: ImportResult = { rows: 0, recorded: 0, kept: 0, errors: 0 };
  let batch: Entry[] = [];
  const finishBatch = async (): Promise<void> => {
    const recorded = batch.length === 0 ? 0 : await write(batch);
    result = { ...result, recorded: result.recorded + recorded, kept: result.kept + batch.length - recorded };
    batch = [];
    options.onProgress?.(result);
  };
  for await (const row of rows) {
    const entry = 'reason' in row ? row : readOrExplain(row, read);
    result = { ...result, rows: result.rows + 1 };
    if ('reason' in entry) {
      result = { ...result, errors: result.errors + 1 };
      options.onError?.({ line: entry.line, reason: entry.reason });
      continue;
    }
    batch.push(entry.value);
    if (batch.length >= BATCH_ROWS) await finishBatch();
  }
  if (batch.length > 0 || result.rows === 0) await finishBatch();
  return result;
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

function consentEntry(ledger: Ledger, tenant: Tenant, { fields }: Row, options: ImportOptions): ConsentEntry {
  const field = (name: (typeof CONSENT_COLUMNS)[number]): string => fields.get(name) ?? '';
  const policy = tenant.policies.find((known) => known.version === field('policy') || known.hash === field('policy'));
  if (policy === undefined) bad('policy is not a version or hash of a policy of this tenant');
  const purpose = field('purpose');
  if (!policy.purposes.includes(purpose)) bad('purpose is not one that this policy version allows');
  const source = text('source', field('source'));
  if (source === '') bad('source is empty: a consent without evidence is none');
  const time = instant('time', field('time'));
  if (time > options.now + AHEAD_MS) bad('time is in the future');
  const state = one('state', field('state') || 'given', ['given', 'pending', 'refused'] as const);
  const requested = field('requested') === '' ? undefined : instant('requested', field('requested'));
  const confirmed = field('confirmed') === '' ? undefined : instant('confirmed', field('confirmed'));
  if (confirmed !== undefined && requested === undefined) bad('confirmed without requested');
  return {
    hashes: ledger.hashes(tenant.id, parseAddress(field('email'))),
    purpose,
    state,
    legalBasis: text('legal_basis', field('legal_basis') || 'gdpr_6_1_a'),
    policyHash: policy.hash,
    method: text('method', field('method') || 'import'),
    evidence: {
      source,
      time,
      ...(field('form_hash') === '' ? {} : { formHash: sha256('form_hash', field('form_hash')) }),
      ...(field('ip_pseudonym') === '' ? {} : { ipPseudonym: text('ip_pseudonym', field('ip_pseudonym')) }),
      ...(requested === undefined ? {} : { doubleOptIn: { requestedAt: requested, ...(confirmed === undefined ? {} : { confirmedAt: confirmed }) } }),
    },
    ...(field('expires') === '' ? {} : { expiresAt: instant('expires', field('expires')) }),
    tracking: { opens: one('opens', field('opens') || 'none', OPEN_MODES), clicks: one('clicks', field('clicks') || 'none', CLICK_MODES) },
    by: options.by,
  };
}

function suppressionEntry(ledger: Ledger, tenant: Tenant, { fields }: Row, options: ImportOptions): SuppressionEntry {
  const scope = parseScope(fields.get('scope') || 'all');
  if (scope === undefined) bad('scope is not all, purpose:<name> or stream:<name>');
  const until = fields.get('until') ?? '';
  return {
    hashes: ledger.hashes(tenant.id, parseAddress(fields.get('email') ?? '')),
    scope,
    cause: one('cause', fields.get('cause') ?? '', SUPPRESSION_CAUSES),
    ...(until === '' ? {} : { until: instant('until', until) }),
    by: options.by,
  };
}

function text(name: string, value: string): string {
  // 255 octets is what a record has room for.
  if (Buffer.byteLength(value) > 255) bad(`${name} is longer than 255 octets`);
  return value;
}

function sha256(name: string, value: string): string {
  return /^[0-9a-f]{64}$/.test(value) ? value : bad(`${name} is not 64 hex digits`);
}

function one<T extends string>(name: string, value: string, list: readonly T[]): T {
  return list.find((known) => known === value) ?? bad(`${name} is not one of ${list.join(', ')}`);
}

/** ISO 8601 with a date at least, or milliseconds since the epoch. */
function instant(name: string, value: string): number {
  const at = /^\d{11,14}$/.test(value) ? Number(value) : /^\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-]\d\d:\d\d)?)?$/.test(value) ? Date.parse(value) : Number.NaN;
  // Six octets hold every time from 1970 on.
  return at >= 0 && at < 2 ** 48 ? at : bad(`${name} is not a time like 2026-01-31T12:00:00Z`);
}
