// The durable queue: bodies sealed in append-only segments, rows in LMDB. Callers may rely on: what
// store() resolved for survives kill -9 and power loss; a settled recipient does not come back; nobody
// else opens the same directory; no file holds an address, domain, subject or body in clear. When it
// cannot, store() rejects (E_SPOOL_FULL, E_STORE) and nothing of the message is kept; a body or row that
// does not match its seal is held for inspection, never sent and never dropped.
//
// | state | atomic step that leads to the next | what a crash here leaves | who cleans up |
// |---|---|---|---|
// | waiting to be stored, in memory | append and sync of the group | a torn tail, or whole records without rows | nobody saw a 250; the file is unlinked at start if it has no live row, else the dead octets go when it is rewritten |
// | body synced | commit of message, recipient, queue and live rows | records without rows | as above |
// | due index changed | a slice of the changes with each later commit | entries without a row, rows without an entry | readers pass over the first; the start finds the second (later.ts) |
// | stored, waiting | settle: one commit | nothing: the recipient is due again, so at most one duplicate | the next attempt |
// | last recipient settled | unlink of a segment that became empty | a file no segment row names | start unlinks it |
// | segment sparse | copy and sync, then commit of the new place | a copy without a row; the old place still counts | dead octets, as above |
// | segment rewritten | unlink | a file no segment row names | start unlinks it |
// | new segment made | sync of the directory, before anything in it is acknowledged | an empty file, or none | start unlinks it |
// | queue empty | hourly sweep, one commit | a sealed domain name too long in the table | the next sweep |
// | lock held | removal at close | a lock whose process is gone | the next opener takes it over |
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Composed, Instant, MessageId, MessageMeta, Priority, QueuedRecipient, Stored } from '../mail/index.ts';
import { MailError } from '../mail/index.ts';
import { seal, sealPieces, sealedLength, unseal, type Clock, type Keyring, type Log } from '../runtime/index.ts';
import { Committer, Draft } from './draft.ts';
import { LaterIndex } from './later.ts';
import { commitCause, storeError, surviveFailedCommits } from './faults.ts';
import { takeLock } from './lock.ts';
import { QueueIndex, type Filter, type Found, type QueueHead } from './queues.ts';
import { Recent } from './recent.ts';
import {
  campaignHash, formatQueueRow, openRecipient, openTables, packHashes, queueOf, recipientKey, sealRecipient, sizeOf, asBuffer,
  type MessageRow, type QueueId, type RecipientRow, type Tables,
} from './rows.ts';
import { RECORD_HEAD, Segments, formatRecordHead } from './segments.ts';
import { Tender } from './tend.ts';
import { alterEach, pages, take, type Alter, type Counted } from './walk.ts';

/** A recipient whose time has come, before the schedule room has taken it as Due. */
export interface Waiting {
  readonly id: MessageId;
  readonly index: number;
  readonly message: MessageMeta;
  readonly recipient: QueuedRecipient;
}

export interface StoreOptions {
  readonly expiresAt: Instant;
  /** Left out: normal. */
  readonly priority?: Priority;
  readonly campaign?: string;
}

/** Names recipients that are passed over. */
type Skip = (id: MessageId, index: number) => boolean;

export type Settlement =
  | { readonly kind: 'done' }
  | { readonly kind: 'later'; readonly nextAt: Instant; readonly lastReply: string };

/** One line of list(); give `cursor` as `after` to go on behind it. */
export interface Listed {
  readonly id: MessageId;
  readonly index: number;
  readonly tenant: string;
  readonly priority: Priority;
  readonly campaign?: string;
  readonly recipient: QueuedRecipient;
  readonly cursor: string;
}

export interface SpoolCounts {
  readonly messages: number;
  readonly recipients: number;
  readonly segmentBytes: number;
  readonly liveBytes: number;
}

// Bodies a fresh message does not have to be read back for; a burst that outruns delivery by more is read from disk.
const BODIES_KEPT_BYTES = 64 * 1024 * 1024;
const METAS_KEPT = 4_096;

/**
 * Opens the spool in `dir`, recovering what a crash left. `reserveBytes` stay free on the disk.
 * @throws MailError E_STORE_LOCKED, E_STORE
 */
export async function openSpool(options: {
  readonly dir: string;
  readonly keyring: Keyring;
  readonly clock: Clock;
  readonly log: Log;
  readonly reserveBytes: number;
}): Promise<Spool> {
  mkdirSync(options.dir, { recursive: true, mode: 0o700 });
  const unlock = takeLock(options.dir);
  try {
    return new Spool(options, unlock);
  } catch (error) {
    unlock();
    throw storeError(error);
  }
}

export class Spool {
  readonly #keyring: Keyring;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #unlock: () => void;
  readonly #tables: Tables;
  readonly #segments: Segments;
  readonly #committer: Committer;
  readonly #index: QueueIndex;
  readonly #later: LaterIndex;
  readonly #tender: Tender;
  readonly #forgive = surviveFailedCommits();
  readonly #bodies = new Recent<Buffer>(BODIES_KEPT_BYTES);
  readonly #metas = new Recent<MessageMeta>(METAS_KEPT);
  readonly #listeners: ((queue: QueueHead) => void)[] = [];
  readonly #underWay = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;

  /** Use openSpool(). */
  constructor(options: Parameters<typeof openSpool>[0], unlock: () => void) {
    const { dir, keyring, clock, log, reserveBytes } = options;
    this.#keyring = keyring;
    this.#clock = clock;
    this.#log = log;
    this.#unlock = unlock;
    this.#tables = openTables(join(dir, 'rows'));
    this.#segments = new Segments(join(dir, 'segments'), { live: liveBySegment(this.#tables), reserveBytes, log });
    this.#later = new LaterIndex(this.#tables);
    this.#index = new QueueIndex(this.#tables, this.#later, keyring);
    this.#committer = new Committer((lean) => new Draft(this.#tables, this.#segments, this.#later, lean), {
      failed: async (error) => storeError(await commitCause(error)),
      committed: (draft) => {
        for (const id of draft.finished) this.#forget(id);
      },
    });
    this.#tender = new Tender({ clock, log, segments: this.#segments, committer: this.#committer, queues: this.#index });
    this.#tender.start();
    log.info({ ...this.counts() }, 'spool opened');
  }

  /**
   * Resolves when body and rows are durable: only then may a 250 be said.
   * @throws MailError E_SPOOL_FULL, E_STORE; nothing of the message is kept then
   */
  store(message: Composed, options: StoreOptions): Promise<Stored> {
    return this.#track(() => this.#store(message, options));
  }

  async #store(message: Composed, { expiresAt, priority = 'normal', campaign }: StoreOptions): Promise<Stored> {
    const { id, origin, envelope, plan, raw, receivedAt } = message;
    const storedAt = this.#clock.now();
    const keys = this.#keyring.tenant(origin.tenant);
    const meta: MessageMeta = { origin, envelope, plan, sizeBytes: raw.length, receivedAt, ...(campaign !== undefined && { campaign }) };
    const tag = campaign === undefined ? undefined : campaignHash(keys.address, campaign);
    const sealedMeta = seal(keys.payload, Buffer.from(JSON.stringify(meta)), `${id}/meta`);
    const sealedBody = sealPieces(keys.payload, raw, id);
    const bodyLength = sealedLength(raw.length);
    const queues = new Map<string, { readonly id: Buffer; readonly domain: string }>();
    const rows = message.recipients.map((recipient, index): RecipientRow => {
      const queue = queues.get(recipient.domain) ?? { id: queueOf(keys.address, recipient.domain, priority), domain: recipient.domain };
      queues.set(recipient.domain, queue);
      const sealed = sealRecipient(keys.payload, recipientKey(id, index), recipient, '');
      return { attempts: 0, nextAt: storedAt, expiresAt, held: false, queue: queue.id, hashes: packHashes(recipient), sealed };
    });
    if (rows.length === 0) throw new RangeError('a message without recipients');

    const record = [formatRecordHead(id, sealedMeta.length, bodyLength), sealedMeta, ...sealedBody];
    const place = await this.#segments.append(record);
    try {
      await this.#committer.change(true, (draft) => {
        if (draft.message(id) !== undefined) throw new RangeError(`message ${id} is stored already`);
        draft.putMessage(id, { ...place, metaLength: sealedMeta.length, bodyLength, waiting: rows.length, tenant: origin.tenant, ...(tag !== undefined && { campaign: tag }) });
        for (const [index, row] of rows.entries()) draft.putRecipient(id, index, row, undefined);
        for (const { id: queue, domain } of queues.values()) draft.useQueue(queue, () => formatQueueRow(keys.payload, queue, { tenant: origin.tenant, domain, priority }));
      });
    } catch (error) {
      this.#segments.abandoned(place, record.reduce((sum, piece) => sum + piece.length, 0));
      throw error;
    }
    this.#segments.settled(place);
    this.#bodies.set(id, raw, raw.length);
    this.#metas.set(id, meta, 1);
    for (const queue of queues.values()) this.#say({ queue: queue.id.toString('hex'), tenant: origin.tenant, domain: queue.domain, priority, nextAt: storedAt });
    return Object.freeze({ id, storedAt }) as Stored;
  }

  /**
   * The submitted octets.
   * @throws MailError E_SPOOL_CORRUPT when they do not match their seal, E_STORE
   */
  async body(id: MessageId, meta?: MessageMeta): Promise<Buffer> {
    const recent = this.#bodies.get(id);
    if (recent !== undefined) return recent;
    let row = this.#row(id);
    let sealed = await this.#track(() => this.#readBody(row));
    const moved = this.#row(id);
    // A rewrite may have moved it between reading the row and reading the file.
    if (sealed === undefined && (moved.segment !== row.segment || moved.offset !== row.offset)) {
      row = moved;
      sealed = await this.#track(() => this.#readBody(row));
    }
    const clear = sealed === undefined ? undefined : unseal(this.#keyring.tenant(row.tenant).payload, sealed, id);
    if (clear === undefined || (meta !== undefined && meta.sizeBytes !== clear.length)) {
      throw new MailError('E_SPOOL_CORRUPT', `the body of ${id} does not match its seal (segment ${row.segment}, offset ${row.offset})`);
    }
    this.#bodies.set(id, clear, clear.length);
    return clear;
  }

  async #readBody(row: MessageRow): Promise<Buffer | undefined> {
    try {
      const octets = await this.#segments.read(row.segment, row.offset + RECORD_HEAD + row.metaLength, row.bodyLength);
      return octets.length < row.bodyLength ? undefined : octets;
    } catch (error) {
      if (error instanceof MailError && error.code === 'E_SPOOL_CORRUPT') return undefined;
      throw error;
    }
  }

  /** Every (tenant, domain, priority) in which somebody waits who is not held, with its earliest due time. */
  queues(): Iterable<QueueHead> {
    return this.#index.heads();
  }

  /** Up to `limit` recipients of a queue due at `until`, the earliest first; those `skip` names are passed over. */
  due(queue: QueueId, until: Instant, limit: number, skip?: Skip): Waiting[] {
    return this.#opened(this.#index.dueIn(queue, until), limit, skip);
  }

  /** The same of all queues, of recipients whose time was over at `until`; with the queue of each. */
  ended(until: Instant, limit: number, skip?: Skip): (Waiting & { readonly queue: QueueId })[] {
    return this.#opened(this.#index.endedBy(until), limit, skip).map((row) => ({ ...row, queue: this.#index.recipient(row.id, row.index)?.queue.toString('hex') ?? '' }));
  }

  /** Whether a recipient that due() gave is still to be attempted: not held, settled or dropped since. */
  stillDue({ id, index }: Waiting, now: Instant): boolean {
    const row = this.#index.recipient(id, index);
    return row !== undefined && !row.held && row.nextAt <= now;
  }

  /** Recipients of a queue due at `until`, counted to `most`. */
  countDue(queue: QueueId, until: Instant, most: number): number {
    return take(this.#index.dueIn(queue, until), most).length;
  }

  /** When the first recipient of a queue who is not held is due; undefined when nobody waits there. */
  nextAt(queue: QueueId): Instant | undefined {
    return this.#index.nextAt(queue);
  }

  /** Records what an attempt came to, durably. A recipient dropped meanwhile stays dropped. */
  settle(due: Waiting, change: Settlement): Promise<void> {
    return this.#track(() => this.#settle(due, change));
  }

  async #settle({ id, index, message, recipient }: Waiting, change: Settlement): Promise<void> {
    if (change.kind === 'done') {
      await this.#committer.change(false, (draft) => draft.removeRecipient(id, index));
      return;
    }
    const key = this.#keyring.tenant(message.origin.tenant).payload;
    const sealed = sealRecipient(key, recipientKey(id, index), recipient, change.lastReply);
    await this.#committer.change(false, (draft) => {
      const row = draft.recipient(id, index);
      if (row !== undefined) draft.putRecipient(id, index, { ...row, attempts: row.attempts + 1, nextAt: change.nextAt, sealed }, row);
    });
  }

  /** Called whenever a queue may have become due sooner: after each store, release and retry. */
  onReady(listener: (queue: QueueHead) => void): void {
    this.#listeners.push(listener);
  }

  /** Keeps recipients from being attempted. Resolves with how many were changed. */
  hold(filter: Filter, counted?: Counted): Promise<number> {
    return this.#each(filter, (row) => (row.held ? undefined : { ...row, held: true }), counted);
  }

  /** Lets held recipients go at the time they had. Resolves with how many were changed. */
  release(filter: Filter, counted?: Counted): Promise<number> {
    return this.#each(filter, (row) => (row.held ? { ...row, held: false } : undefined), counted);
  }

  /** Makes recipients due now who would wait; held ones stay held. Resolves with how many were changed. */
  retry(filter: Filter, counted?: Counted): Promise<number> {
    const now = this.#clock.now();
    return this.#each(filter, (row) => (row.held || row.nextAt <= now ? undefined : { ...row, nextAt: now }), counted);
  }

  /** Removes recipients for good. Resolves with how many were removed. */
  drop(filter: Filter, counted?: Counted): Promise<number> {
    return this.#each(filter, () => 'remove', counted);
  }

  /** What a filter calls a tenant's campaign. */
  campaign(tenant: string, name: string): Buffer {
    return campaignHash(this.#keyring.tenant(tenant).address, name);
  }

  /** Recipients who wait, held ones too; at most `limit`, from just behind `after`. @throws MailError E_SPOOL_CORRUPT */
  list(query: Omit<Filter, 'id'> & { readonly limit: number; readonly after?: string }): Promise<Listed[]> {
    return this.#track(() => this.#list(query));
  }

  async #list({ limit, after, ...filter }: Parameters<Spool['list']>[0]): Promise<Listed[]> {
    const lines: Listed[] = [];
    if (limit <= 0) return lines;
    for await (const page of pages(this.#index, filter, after === undefined ? undefined : Buffer.from(after, 'hex'))) {
      for (const { id, index, cursor } of page) {
        const [message, row] = [this.#index.message(id), this.#index.recipient(id, index)];
        if (message === undefined || row === undefined) continue;
        lines.push({
          id, index, tenant: message.tenant, priority: this.#index.name(row.queue)?.priority ?? 'normal', recipient: this.#unseal(message.tenant, id, index, row), cursor: cursor.toString('hex'),
          ...(message.campaign !== undefined && { campaign: this.#meta(id, message).campaign ?? '' }),
        });
        if (lines.length >= limit) return lines;
      }
    }
    return lines;
  }

  /** A message and those of its recipients who still wait. @throws MailError E_SPOOL_CORRUPT */
  show(id: MessageId): { readonly meta: MessageMeta; readonly recipients: readonly (QueuedRecipient & { readonly index: number })[] } | undefined {
    const message = this.#index.message(id);
    if (message === undefined) return undefined;
    const recipients: (QueuedRecipient & { readonly index: number })[] = [];
    for (const { index } of this.#index.scan({ id })) {
      const row = this.#index.recipient(id, index);
      if (row !== undefined) recipients.push({ ...this.#unseal(message.tenant, id, index, row), index });
    }
    return { meta: this.#meta(id, message), recipients };
  }

  tenantOf(id: MessageId): string | undefined {
    return this.#index.message(id)?.tenant;
  }

  counts(): SpoolCounts {
    const { recipients } = this.#later;
    // One table holds the rows of both.
    return { messages: sizeOf(this.#tables.messages) - recipients, recipients, ...this.#segments.totals() };
  }

  /** Waits for what is pending, then closes. Further calls of it wait for the same end. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#tender.stop();
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    await this.#segments.idle();
    await this.#committer.idle();
    await this.#tables.root.close();
    this.#segments.close();
    this.#forgive();
    this.#unlock();
  }

  /** Work that close() waits for; once it is closing no new work begins. */
  async #track<T>(begin: () => Promise<T>): Promise<T> {
    if (this.#closing !== undefined) throw new MailError('E_STORE', 'the spool is closing');
    const work = begin();
    this.#underWay.add(work);
    try {
      return await work;
    } finally {
      this.#underWay.delete(work);
    }
  }

  #say(head: QueueHead): void {
    for (const listener of this.#listeners) listener(head);
  }

  #forget(id: MessageId): void {
    this.#bodies.delete(id);
    this.#metas.delete(id);
  }

  #row(id: MessageId): MessageRow {
    const row = this.#index.message(id);
    if (row === undefined) throw new MailError('E_SPOOL_CORRUPT', `message ${id} is not in the spool`);
    return row;
  }

  /** The message meta, unsealed once for all recipients. */
  #meta(id: MessageId, row: MessageRow): MessageMeta {
    const recent = this.#metas.get(id);
    if (recent !== undefined) return recent;
    const sealed = this.#segments.readNow(row.segment, row.offset + RECORD_HEAD, row.metaLength);
    const clear = sealed.length < sealedLength(0) ? undefined : unseal(this.#keyring.tenant(row.tenant).payload, sealed, `${id}/meta`);
    if (clear === undefined) throw new MailError('E_SPOOL_CORRUPT', `the envelope of ${id} does not match its seal (segment ${row.segment}, offset ${row.offset})`);
    const meta = JSON.parse(clear.toString()) as MessageMeta;
    this.#metas.set(id, meta, 1);
    return meta;
  }

  #unseal(tenant: string, id: MessageId, index: number, row: RecipientRow): QueuedRecipient {
    return openRecipient(this.#keyring.tenant(tenant).payload, recipientKey(id, index), row);
  }

  #opened(found: Iterable<Found>, limit: number, skip?: Skip): Waiting[] {
    const rows: Waiting[] = [];
    if (limit <= 0) return rows;
    for (const { id, index } of found) {
      if (skip?.(id, index) === true) continue;
      const waiting = this.#open(id, index);
      if (waiting === undefined) continue;
      rows.push(waiting);
      if (rows.length >= limit) break;
    }
    return rows;
  }

  /** One due recipient; undefined, and held for inspection, when it cannot be read. */
  #open(id: MessageId, index: number): Waiting | undefined {
    try {
      const [message, row] = [this.#row(id), this.#index.recipient(id, index)];
      if (row === undefined) return undefined;
      return { id, index, message: this.#meta(id, message), recipient: this.#unseal(message.tenant, id, index, row) };
    } catch (error) {
      this.#log.error({ message_id: id, recipient: index, err: String(error) }, 'a queued message cannot be read and is held');
      // Nobody waits for this: due() is asked again anyway and would hold it again.
      this.hold({ id }).catch((cause: unknown) => this.#log.error({ message_id: id, err: String(cause) }, 'it could not be held either'));
      return undefined;
    }
  }

  #each(filter: Filter, alter: Alter, counted: Counted = () => undefined): Promise<number> {
    return this.#track(() => alterEach(this.#index, this.#committer, filter, alter, { counted, ready: (head) => this.#say(head) }));
  }
}

function liveBySegment(tables: Tables): Map<number, number> {
  const live = new Map<number, number>();
  for (const { key, value } of tables.segments.getRange()) if (key.length === 4) live.set(asBuffer(key).readUInt32BE(), asBuffer(value).readUIntBE(0, 6));
  // The live octets are written with the rows they count, so the two can only disagree when there are no rows at all.
  if (sizeOf(tables.messages) === 0) live.clear();
  return live;
}
