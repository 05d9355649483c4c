// One LMDB transaction in the making. Changes are drawn up here against the committed rows plus what
// earlier changes of the same transaction did, synchronously, on the main thread; commit() then hands
// them all to lmdb's writer thread as one batch, so that the event loop never waits for a disk. One
// draft at a time is committed, so what a draft reads cannot change under it. A failed commit changes
// nothing: neither rows nor the live octets counted in memory.
import type { MessageId } from '../mail/index.ts';
import type { LaterIndex } from './later.ts';
import {
  asBuffer, dueKeysOf, formatMessageRow, formatRecipientRow, messageKey, parseMessageRow, parseRecipientRow, recipientKey,
  type MessageRow, type RecipientRow, type Table, type Tables,
} from './rows.ts';
import { RECORD_HEAD } from './segments.ts';

interface Written {
  readonly key: Buffer;
  readonly value: Buffer | undefined;
}

const EMPTY = Buffer.alloc(0);
const NO_SLICE = { changes: [], taken: 0 } as const;

class Overlay {
  readonly #table: Table;
  readonly #written = new Map<string, Written>();
  constructor(table: Table) {
    this.#table = table;
  }

  get(key: Buffer): Buffer | undefined {
    const written = this.#written.get(key.toString('latin1'));
    if (written !== undefined) return written.value;
    const found = this.#table.get(key);
    return found === undefined ? undefined : asBuffer(found);
  }

  set(key: Buffer, value: Buffer | undefined): void {
    this.#written.set(key.toString('latin1'), { key, value });
  }

  /** Inside the batch callback only; lmdb's own promises of these writes are all that of the batch. */
  write(): void {
    for (const { key, value } of this.#written.values()) {
      void (value === undefined ? this.#table.remove(key) : this.#table.put(key, value));
    }
  }
}

/** Live octets of each segment, as the last commit left them. */
export interface LiveOctets {
  liveOf(segment: number): number;
  setLive(segment: number, live: number): void;
}

export class Draft {
  readonly #tables: Tables;
  readonly #live: LiveOctets;
  readonly #messages: Overlay;
  readonly #recipients: Overlay;
  readonly #later: LaterIndex;
  readonly #lean: boolean;
  /** What becomes of entries of the due index: true stands for a new one. */
  readonly #due = new Map<string, boolean>();
  readonly #queues: Overlay;
  readonly #queuesUsed = new Set<string>();
  readonly #change = new Map<number, number>();
  /** Messages whose last recipient this draft removes. */
  readonly finished: MessageId[] = [];
  #added = 0;

  /** `lean`: takes no older changes of the due index along, for a disk that may have no room for them. */
  constructor(tables: Tables, live: LiveOctets, later: LaterIndex, lean: boolean) {
    this.#tables = tables;
    this.#live = live;
    this.#later = later;
    this.#lean = lean;
    this.#messages = new Overlay(tables.messages);
    this.#recipients = new Overlay(tables.recipients);
    this.#queues = new Overlay(tables.queues);
  }

  message(id: MessageId): MessageRow | undefined {
    const octets = this.#messages.get(messageKey(id));
    return octets === undefined ? undefined : parseMessageRow(octets);
  }

  /** Writes a message row and moves the live octets from the place it had to the one it has. */
  putMessage(id: MessageId, row: MessageRow): void {
    const before = this.message(id);
    if (before !== undefined) this.#count(before, -1);
    this.#count(row, 1);
    this.#messages.set(messageKey(id), formatMessageRow(row));
  }

  recipient(id: MessageId, index: number): RecipientRow | undefined {
    const octets = this.#recipients.get(recipientKey(id, index));
    return octets === undefined ? undefined : parseRecipientRow(octets);
  }

  /** Writes a recipient row and its entries in the due index. */
  putRecipient(id: MessageId, index: number, row: RecipientRow, before = this.recipient(id, index)): void {
    if (before === undefined) this.#added++;
    else this.#entries(dueKeysOf(id, index, before), false);
    this.#entries(dueKeysOf(id, index, row), true);
    this.#recipients.set(recipientKey(id, index), formatRecipientRow(row));
  }

  /** Removes a recipient; with the last one the message goes and its body is free. False when there was none. */
  removeRecipient(id: MessageId, index: number): boolean {
    const before = this.recipient(id, index);
    const message = this.message(id);
    if (before === undefined || message === undefined) return false;
    this.#added--;
    this.#entries(dueKeysOf(id, index, before), false);
    this.#recipients.set(recipientKey(id, index), undefined);
    if (message.waiting > 1) {
      this.#messages.set(messageKey(id), formatMessageRow({ ...message, waiting: message.waiting - 1 }));
    } else {
      this.#messages.set(messageKey(id), undefined);
      this.#count(message, -1);
      this.finished.push(id);
    }
    return true;
  }

  /** Makes sure that the queue's name is stored. */
  useQueue(queue: Buffer, row: () => Buffer): void {
    this.#queuesUsed.add(queue.toString('latin1'));
    if (this.#queues.get(queue) === undefined) this.#queues.set(queue, row());
  }

  /** Forgets the name of a queue that the caller found empty, unless this draft puts somebody into it. */
  forgetQueue(queue: Buffer): void {
    if (!this.#queuesUsed.has(queue.toString('latin1'))) this.#queues.set(queue, undefined);
  }

  /** Resolves when every row is on disk. */
  async commit(): Promise<void> {
    const live = [...this.#change].map(([segment, change]) => [segment, this.#live.liveOf(segment) + change] as const);
    const slice = this.#lean ? NO_SLICE : this.#later.slice(this.#due.size);
    const mark = this.#later.mark(slice, this.#added);
    const direct = [...this.#due].flatMap(([key, put]) => (put && !this.#later.mayWait(key) ? [key] : []));
    for (const key of direct) this.#due.delete(key);
    await this.#tables.root.batch(() => {
      for (const overlay of [this.#messages, this.#recipients, this.#queues]) overlay.write();
      for (const { key, gone } of slice.changes) this.#writeEntry(key, gone);
      for (const key of direct) this.#writeEntry(key, false);
      for (const [segment, octets] of live) this.#writeLive(segment, octets);
      if (mark !== undefined) void this.#tables.segments.put(mark.key, mark.octets); // its promise is the batch's
    });
    // The library's promise of a write says "visible"; `flushed` is the one that says "on disk".
    await this.#tables.root.flushed;
    for (const [segment, octets] of live) this.#live.setLive(segment, octets);
    this.#later.committed({ slice, direct, waiting: this.#due, mark });
  }

  /** Its promise is the batch's. */
  #writeEntry(key: string, gone: boolean): void {
    const octets = Buffer.from(key, 'latin1');
    void (gone ? this.#tables.due.remove(octets) : this.#tables.due.put(octets, EMPTY));
  }

  /** Two opposite changes of one entry leave it as it was. */
  #entries(keys: readonly Buffer[], put: boolean): void {
    for (const octets of keys) {
      const key = octets.toString('latin1');
      if (this.#due.get(key) === !put) this.#due.delete(key);
      else this.#due.set(key, put);
    }
  }

  #writeLive(segment: number, octets: number): void {
    const key = Buffer.allocUnsafe(4);
    key.writeUInt32BE(segment);
    if (octets <= 0) {
      void this.#tables.segments.remove(key); // its promise is the batch's
      return;
    }
    const value = Buffer.allocUnsafe(6);
    value.writeUIntBE(octets, 0, 6);
    void this.#tables.segments.put(key, value); // its promise is the batch's
  }

  #count(row: MessageRow, sign: 1 | -1): void {
    const octets = RECORD_HEAD + row.metaLength + row.bodyLength;
    this.#change.set(row.segment, (this.#change.get(row.segment) ?? 0) + sign * octets);
  }
}

interface Job {
  readonly change: (draft: Draft) => unknown;
  readonly grows: boolean;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

// Bounds how long the event loop draws up one transaction: about 5 µs a row.
const GROUP_CHANGES = 1_000;

/** Group commit: whatever was asked for while one draft was being written goes into the next. */
export class Committer {
  readonly #fresh: (lean: boolean) => Draft;
  readonly #failed: (error: unknown) => Promise<Error>;
  readonly #committed: (draft: Draft) => void;
  #waiting: Job[] = [];
  #running: Promise<void> | undefined;

  constructor(fresh: (lean: boolean) => Draft, on: { readonly failed: (error: unknown) => Promise<Error>; readonly committed: (draft: Draft) => void }) {
    this.#fresh = fresh;
    this.#failed = on.failed;
    this.#committed = on.committed;
  }

  /** Applies a change and resolves with its value once it is durable. `grows`: it needs new room on the disk. */
  change<T>(grows: boolean, change: (draft: Draft) => T): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#waiting.push({ change, grows, resolve: (value) => resolve(value as T), reject });
      this.#running ??= this.#run();
    });
  }

  /** Resolves when nothing waits. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  async #run(): Promise<void> {
    // Let everything that this turn of the event loop has to say join the first group.
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
    while (this.#waiting.length > 0) {
      const group = this.#waiting.splice(0, GROUP_CHANGES);
      const failure = await this.#write(group);
      if (failure === undefined) continue;
      // On a full disk a removal may still fit where new rows do not: one more try without any.
      const shrinking = group.filter((job) => !job.grows);
      for (const job of group) if (job.grows) job.reject(failure);
      if (shrinking.length === 0) continue;
      const again = await this.#write(shrinking, true);
      if (again !== undefined) for (const job of shrinking) job.reject(again);
    }
    this.#running = undefined;
  }

  async #write(group: readonly Job[], lean = false): Promise<Error | undefined> {
    try {
      const draft = this.#fresh(lean);
      const values = group.map((job) => job.change(draft));
      await draft.commit();
      this.#committed(draft);
      for (const [i, job] of group.entries()) job.resolve(values[i]);
      return undefined;
    } catch (error) {
      return this.#failed(error);
    }
  }
}
