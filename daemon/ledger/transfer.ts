// Whole tenants: taken out, brought in, ended. Callers may rely on: an export is of one moment and holds
// nothing of another tenant; an import is all there and right, or nothing of it is used; what a delete
// has passed cannot be read again by anybody. While a tenant is on its way in or out a mark stands in the
// store: every change to that tenant is refused then, and it is suspended. A crash leaves the mark, and
// the same call made again clears up: an import begins anew, a delete goes on. Errors are MailError
// E_CONTROL with what to do, E_STORE when the store fails or is damaged.
/*
 * The open form of an export, "postern-tenant/1": NDJSON, UTF-8, one object a line, in the order below;
 * `line` says what it is. Times are milliseconds since 1970 (UTC), hashes and keys hex, other octets base64.
 *
 *   tenant       once    format, tenant, at, hostname, policies: [{version, hash, text, effective, purposes, tracking}]
 *   keys         once    address, payload, token, verp, people, evidence, log (32 octets each), tokenId (4). Whoever has
 *                        these reads everything: address = HMAC-SHA-256 key of all hashes, log = Ed25519 seed
 *   policy       many    version, hash, published: what the ledger has seen of each version
 *   suspension   0 or 1  id, cause, since, by
 *   slots        many    first, person, evidence: the secrets of up to 4,096 consecutive slots, 16 octets each;
 *                        zeros: destroyed. Apart from the consents, for kept evidence outlives its record
 *   consent      many    hash, slot, leaf (that wrote it last), record: {id, purpose, state, legalBasis, policyHash, givenAt,
 *                        changedAt, expiresAt?, tracking: {opens, clicks}, facts?, jurisdiction?}
 *   last-open    many    hash, purpose, octets: version 1, slot (5), nonce (6), days since 1970 (3) XOR SHAKE256(SHA-256("last-open" ||
 *                        0 || people key) || secret of the slot || nonce)
 *   opens        many    stream, message ('': all that are not counted apart), day (since 1970), people, proxies, machines
 *   suppressed   many    hash, suppressions: [{id, scope, cause, since, until?, by}]
 *   retained     many    slots, until: evidence that outlives the erasure of its person until then
 *   entry        many    leaf, slot? (absent: about no person), commitment, and payload (text) where it can be opened, else
 *                        veiled. Salt = the first 16 octets, veil = the rest of SHAKE256(evidence key || secret of the slot,
 *                        or 16 octets 0xff || leaf in 6 octets); commitment = SHA-256(salt || payload)
 *   end          once    consents, suppressions (addresses), leaves, root, checkpoint (signed), sha256 of all lines before,
 *                        line ends included
 *
 * An import keeps the numbers of slots and leaves, so entries and receipts stay as they are. What another host
 * changes is the origin of checkpoints made from then on, and with it the name in the verifier key; its key octets stay.
 */
import { createHash, type Hash } from 'node:crypto';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { MailError } from '../mail/index.ts';
import type { Clock, Keyring } from '../runtime/index.ts';
import type { Policy } from '../settings/index.ts';
import type { LedgerStore, StoreSnapshot, StoreWrite } from '../store/index.ts';
import { ed25519FromSeed, signCheckpoint } from './checkpoint.ts';
import { emptied, originOf, type TenantLogs } from './log.ts';
import { CompactRange } from './merkle.ts';
import { notePayload } from './payload.ts';
import type { PersonKeys } from './person-keys.ts';
import { decodeConsent, decodeSuppressions, decodeSuspension, encodeSuspension, slotOf } from './records.ts';
import { HASH_AT, REST_AT, TABLE, entryPrefix, logPrefix, rowKey } from './row-keys.ts';
import type { Turn } from './stored-ledger.ts';
import { importTenant, type Imported } from './transfer-in.ts';
import { listCounts, slotOfDate } from './tracking.ts';
import { SECRET_OCTETS } from './veil.ts';

export const TRANSFER_FORMAT = 'postern-tenant/1';

/** What the two ways of a transfer work with. */
export interface TransferParts {
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly people: PersonKeys;
  readonly clock: Clock;
  readonly hostname: string;
  readonly log: TenantLogs;
  readonly change: (tenant: string, keys: readonly Buffer[], decide: (turn: Turn) => void) => Promise<void>;
  /** Drops what is remembered of the tenant in memory; what must be remembered is read again. */
  readonly forget: (tenant: string) => Promise<void>;
}

export interface Deleted {
  /** Commitments that stay; 0 where nobody was ever recorded. */
  readonly leaves: number;
  /** The last checkpoint, which they can be held against with the verifier key; '' where nothing stays. */
  readonly checkpoint: string;
  readonly verifierKey: string;
}

export interface TenantTransfers {
  /** The lines of an export, of the moment the first is asked for. Pages the store frees meanwhile are not used again. */
  export(tenant: string, policies: readonly Policy[]): AsyncGenerator<string>;
  /** Brings in what export() told, under this master key. Refuses a tenant of whom anything is here. */
  import(lines: AsyncIterable<string>, onProgress?: (lines: number) => void): Promise<Imported>;
  /**
   * Ends a suspended tenant: keys and rows are destroyed, its log's commitments and last checkpoint stay,
   * and its name is not used again, unless nobody was ever recorded under it. Goes on with what a crash left.
   */
  delete(tenant: string, by: string): Promise<Deleted>;
}

/** What stands in TABLE.transfer while a tenant is on its way, and for ever when it was deleted. */
export interface Mark {
  readonly state: 'importing' | 'deleting' | 'deleted';
  readonly at: number;
  readonly by: string;
  /** False: nobody was ever recorded, and nothing stays. */
  readonly keep?: boolean;
  readonly checkpoint?: string;
  readonly verifierKey?: string;
}

export function openTransfers(parts: TransferParts): TenantTransfers {
  const busy = new Set<string>();
  const alone = async <T>(tenant: string, work: () => Promise<T>): Promise<T> => {
    if (busy.has(tenant)) throw new MailError('E_CONTROL', `tenant ${tenant} is being imported or deleted at this moment`);
    busy.add(tenant);
    try {
      return await work();
    } finally {
      busy.delete(tenant);
    }
  };
  return {
    export: (tenant, policies) => exportTenant(parts, tenant, policies),
    import: (lines, onProgress) => importTenant(parts, alone, lines, onProgress),
    delete: (tenant, by) => alone(tenant, () => deleteTenant(parts, tenant, by)),
  };
}

/** Why a tenant with this mark cannot be changed. */
export function refusalOf(tenant: string, mark: Buffer): MailError {
  const { state, at } = readMark(mark);
  if (state === 'importing') return new MailError('E_CONTROL', `the import of tenant ${tenant} is not finished; import it again, or delete it`);
  if (state === 'deleting') return new MailError('E_CONTROL', `the deletion of tenant ${tenant} is not finished; delete it again`);
  return new MailError('E_CONTROL', `tenant ${tenant} was deleted on ${new Date(at).toISOString().slice(0, 10)}, and a name is not used twice; take its file out of the configuration, or give it another id`);
}

export function readMark(octets: Buffer): Mark {
  return JSON.parse(octets.toString('utf8')) as Mark;
}

export async function markOf({ store }: Pick<TransferParts, 'store'>, tenant: string): Promise<Mark | undefined> {
  const [octets] = await store.getMany([rowKey(TABLE.transfer, tenant)]);
  return octets === undefined ? undefined : readMark(octets);
}

// ---- out ---------------------------------------------------------------------------------------

// 170 KiB a line: short enough for a reader that takes whole lines, long enough that a million people are 250.
const SLOTS_A_LINE = 4_096;

async function* exportTenant(parts: TransferParts, tenant: string, policies: readonly Policy[]): AsyncGenerator<string> {
  const snapshot = parts.store.snapshot();
  const digest = createHash('sha256');
  const told = { consents: 0, suppressions: 0, leaves: 0 };
  try {
    const head = await one(snapshot, rowKey(TABLE.head, tenant));
    const mark = await one(snapshot, rowKey(TABLE.transfer, tenant));
    // Asked first: a name nobody has would be given keys by the look at them.
    if (mark !== undefined) throw refusalOf(tenant, mark);
    if (head === undefined) throw new MailError('E_CONTROL', `nothing is recorded of a tenant ${tenant}`);
    if (await one(snapshot, rowKey(TABLE.erasing, tenant)) !== undefined) throw new MailError('E_CONTROL', `a person is being erased from ${tenant} at this moment; ask again`);
    yield* written(digest, [
      { line: 'tenant', format: TRANSFER_FORMAT, tenant, at: parts.clock.now(), hostname: parts.hostname,
        policies: policies.map(({ version, hash, text, effectiveAt, purposes, tracking }) => ({ version, hash, text, effective: effectiveAt, purposes, tracking })) },
      { line: 'keys', ...parts.keyring.reveal(tenant) },
    ]);
    yield* written(digest, stateLines(parts, tenant, snapshot, told));
    const range = CompactRange.decode(head);
    yield* written(digest, entryLines(parts, tenant, snapshot, range.size, told));
    const origin = originOf(parts.hostname, tenant);
    const checkpoint = signCheckpoint({ origin, size: range.size, root: range.root() }, ed25519FromSeed(parts.keyring.tenant(tenant).log).privateKey);
    yield `${JSON.stringify({ line: 'end', ...told, root: range.root().toString('base64'), checkpoint, sha256: digest.digest('hex') })}\n`;
  } finally {
    snapshot.close();
  }
}

async function* written(digest: Hash, lines: Iterable<object> | AsyncIterable<object>): AsyncGenerator<string> {
  for await (const line of lines) {
    const text = `${JSON.stringify(line)}\n`;
    digest.update(text);
    yield text;
  }
}

async function one(snapshot: StoreSnapshot, prefix: Buffer): Promise<Buffer | undefined> {
  for await (const { value } of snapshot.scan(prefix)) return value;
  return undefined;
}

async function* stateLines({ people, keyring }: TransferParts, tenant: string, snapshot: StoreSnapshot, told: { consents: number; suppressions: number }): AsyncGenerator<object> {
  for await (const { key, value } of snapshot.scan(rowKey(TABLE.policy, tenant))) {
    yield { line: 'policy', version: key.toString('utf8', HASH_AT), hash: value.toString('hex', 1), published: value[0] === 1 };
  }
  const suspension = await one(snapshot, rowKey(TABLE.suspension, tenant));
  if (suspension !== undefined) yield { line: 'suspension', ...decodeSuspension(suspension) };
  const slots = people.slots(tenant);
  for (let first = 0; first < slots; first += SLOTS_A_LINE) {
    const numbers = Array.from({ length: Math.min(SLOTS_A_LINE, slots - first) }, (_, i) => first + i);
    const octets = (secret: (slot: number) => Buffer | undefined): string => Buffer.concat(numbers.map((slot) => secret(slot) ?? Buffer.alloc(SECRET_OCTETS))).toString('base64');
    yield { line: 'slots', first, person: octets((slot) => people.person(tenant, slot)), evidence: octets((slot) => people.evidence(tenant, slot)) };
  }
  for await (const { key, value } of snapshot.scan(rowKey(TABLE.consent, tenant))) {
    const secret = people.person(tenant, slotOf(value));
    if (secret === undefined) continue; // erased since this moment began
    const row = decodeConsent(value, key.toString('utf8', REST_AT), keyring.tenant(tenant).people, secret);
    told.consents++;
    yield { line: 'consent', hash: key.toString('hex', HASH_AT, REST_AT), ...row };
  }
  yield* trackingLines(people, tenant, snapshot);
  for await (const { key, value } of snapshot.scan(rowKey(TABLE.suppressed, tenant))) {
    told.suppressions++;
    yield { line: 'suppressed', hash: key.toString('hex', HASH_AT), suppressions: decodeSuppressions(value) };
  }
  for await (const { value } of snapshot.scan(rowKey(TABLE.retained, tenant))) {
    const { slots: kept, until } = JSON.parse(value.toString('utf8')) as { readonly slots: readonly number[]; readonly until: number };
    yield { line: 'retained', slots: kept, until };
  }
}

/** A date stays under its veil: whoever takes a tenant out need not read when people opened their mail. */
async function* trackingLines(people: PersonKeys, tenant: string, snapshot: StoreSnapshot): AsyncGenerator<object> {
  for await (const { key, value } of snapshot.scan(rowKey(TABLE.lastOpen, tenant))) {
    if (people.person(tenant, slotOfDate(value)) === undefined) continue;
    yield { line: 'last-open', hash: key.toString('hex', HASH_AT, REST_AT), purpose: key.toString('utf8', REST_AT), octets: value.toString('base64') };
  }
  for await (const { opens, ...count } of listCounts(snapshot, tenant)) yield { line: 'opens', ...count, ...opens };
}

async function* entryLines({ log }: TransferParts, tenant: string, snapshot: StoreSnapshot, size: number, told: { leaves: number }): AsyncGenerator<object> {
  for await (const { key, value } of snapshot.scan(entryPrefix(tenant), 'log')) {
    const leaf = key.readUIntBE(key.length - 6, 6);
    const entry = log.open(tenant, leaf, value);
    if (leaf !== told.leaves || entry === undefined) throw new MailError('E_STORE', `leaf ${told.leaves} of the log of ${tenant} is missing or damaged; \`verify\` tells more`);
    told.leaves++;
    yield {
      line: 'entry', leaf, ...(entry.slot !== undefined && { slot: entry.slot }), commitment: entry.commitment.toString('base64'),
      ...(entry.payload === undefined ? { veiled: value.toString('base64', value.length - veiledOctets(value)) } : { payload: entry.payload }),
    };
  }
  if (told.leaves !== size) throw new MailError('E_STORE', `the log of ${tenant} ends at ${told.leaves} leaves, its head says ${size}`);
}

const veiledOctets = (row: Buffer): number => row.length - emptied(row).length;

// ---- ended -------------------------------------------------------------------------------------

async function deleteTenant(parts: TransferParts, tenant: string, by: string): Promise<Deleted> {
  const mark = await markOf(parts, tenant);
  if (mark?.state === 'importing' || mark?.keep === false) return wipe(parts, tenant);
  if (mark?.state === 'deleting') return empty(parts, tenant, mark);
  const { store, clock, log, change } = parts;
  const suspensionKey = rowKey(TABLE.suspension, tenant);
  const [head, suspension] = await store.getMany([rowKey(TABLE.head, tenant), suspensionKey]);
  if (mark !== undefined) throw refusalOf(tenant, Buffer.from(JSON.stringify(mark)));
  if (head === undefined) throw new MailError('E_CONTROL', `nothing is recorded of a tenant ${tenant}`);
  if (suspension === undefined) throw new MailError('E_CONTROL', `tenant ${tenant} is not suspended; suspend it first, so that nothing is taken for it any more`);
  await change(tenant, [], (turn) => void turn.log.append(notePayload('deleted', by, clock.now(), {})));
  const keep = await namesAnybody(parts, tenant);
  const { text } = await log.checkpoint(tenant);
  const made: Mark = { state: 'deleting', at: clock.now(), by, keep, checkpoint: text, verifierKey: log.verifierKey(tenant) };
  // What other work of the ledger would go on with goes at once: that work would meet the mark.
  const going: Buffer[] = [];
  for (const table of [TABLE.erasing, TABLE.retained]) for await (const { key } of store.scan(rowKey(table, tenant))) going.push(key);
  await store.commit([], () => [writeMark(tenant, made), ...going.map((key): StoreWrite => ({ part: 'state', key, value: undefined }))]);
  return keep ? empty(parts, tenant, made) : wipe(parts, tenant);
}

/** Whether the log ever spoke of a person, or of something that cannot be opened any more. */
async function namesAnybody({ store, log, people }: TransferParts, tenant: string): Promise<boolean> {
  if (people.slots(tenant) > 0) return true;
  for await (const { key, value } of store.scan(entryPrefix(tenant), 'log')) {
    const payload = log.open(tenant, key.readUIntBE(key.length - 6, 6), value)?.payload;
    if (payload === undefined || 'pii_principal_id' in (JSON.parse(payload) as object)) return true;
  }
  return false;
}

/** From here on nothing opens; then the rows go, and of the log the payloads. Every step may be repeated. */
async function empty(parts: TransferParts, tenant: string, mark: Mark): Promise<Deleted> {
  const { store } = parts;
  await destroyKeys(parts, tenant);
  for (const table of [TABLE.consent, TABLE.lastOpen, TABLE.opens, TABLE.suppressed, TABLE.policy, TABLE.progress]) await removeAll(parts, rowKey(table, tenant), 'state');
  let leaves = 0;
  for await (const batch of batches(store, entryPrefix(tenant), 'log')) {
    leaves += batch.length;
    await store.commit([], () => batch.map(({ key, value }): StoreWrite => ({ part: 'log', key, value: emptied(value) })));
  }
  // The suspension stays as well: whoever asks about the name is told no.
  await store.commit([], () => [writeMark(tenant, { ...mark, state: 'deleted' })]);
  await parts.forget(tenant);
  return { leaves, checkpoint: mark.checkpoint ?? '', verifierKey: mark.verifierKey ?? '' };
}

/** Takes away all there is of a tenant that never came to be. The mark goes last. */
export async function wipe(parts: TransferParts, tenant: string): Promise<Deleted> {
  await destroyKeys(parts, tenant);
  for (const table of [TABLE.consent, TABLE.lastOpen, TABLE.opens, TABLE.suppressed, TABLE.policy, TABLE.erasing, TABLE.retained, TABLE.progress]) await removeAll(parts, rowKey(table, tenant), 'state');
  await removeAll(parts, logPrefix(tenant), 'log');
  rmSync(join(parts.keyring.dir, 'checkpoints', tenant), { force: true });
  await parts.store.commit([], () => [TABLE.head, TABLE.suspension, TABLE.transfer].map((table): StoreWrite => ({ part: 'state', key: rowKey(table, tenant), value: undefined })));
  await parts.forget(tenant);
  return { leaves: 0, checkpoint: '', verifierKey: '' };
}

async function destroyKeys({ people, keyring, forget }: TransferParts, tenant: string): Promise<void> {
  await forget(tenant);
  await people.destroyAll(tenant);
  // After a crash they may be gone already.
  if (hasKeys(keyring, tenant)) keyring.destroy(tenant);
  await forget(tenant);
}

export function hasKeys(keyring: Keyring, tenant: string): boolean {
  return existsSync(join(keyring.dir, `${tenant}.json`));
}

// Rows a transaction takes: a few milliseconds, so that other tenants' mail does not wait.
export const BATCH_ROWS = 1_000;

async function removeAll({ store }: TransferParts, prefix: Buffer, part: 'state' | 'log'): Promise<void> {
  for await (const batch of batches(store, prefix, part)) await store.commit([], () => batch.map(({ key }): StoreWrite => ({ part, key, value: undefined })));
}

async function* batches(store: LedgerStore, prefix: Buffer, part: 'state' | 'log'): AsyncGenerator<readonly { readonly key: Buffer; readonly value: Buffer }[]> {
  let batch: { readonly key: Buffer; readonly value: Buffer }[] = [];
  for await (const row of store.scan(prefix, part)) {
    if (batch.push(row) < BATCH_ROWS) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

export function writeMark(tenant: string, mark: Mark): StoreWrite {
  return { part: 'state', key: rowKey(TABLE.transfer, tenant), value: Buffer.from(JSON.stringify(mark)) };
}

/** What stands in the way of mail while an import is not finished. */
export function standIn(now: number, by: string): StoreWrite['value'] {
  return encodeSuspension({ id: 'import', cause: 'its import is not finished', since: now, by });
}
