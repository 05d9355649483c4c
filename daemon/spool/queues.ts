// Reading the rows: which queues there are, who is due in them, what an operator asks to see. Nothing
// here is kept in memory but a bounded number of queue names: queues are found by seeking from one queue
// id to the next in the due index. Every read is of committed rows; none waits for the disk on purpose.
import type { Instant, MessageId } from '../mail/index.ts';
import type { Keyring } from '../runtime/index.ts';
import { unseal } from '../runtime/index.ts';
import type { LaterIndex } from './later.ts';
import {
  HELD_AT, QUEUE_OCTETS, asBuffer, dueFrom, dueKeyOf, hashesOf, messageKey, nextQueue, parseMessageRow, parseRecipientRow, queueOf, readDueKey, readRecipientKey,
  recipientKey, splitQueueRow, type MessageRow, type QueueId, type RecipientRow, type Tables,
} from './rows.ts';
import { Recent } from './recent.ts';

/** A (tenant, domain) with somebody waiting, and when its first recipient is due. */
export interface QueueHead {
  readonly queue: QueueId;
  readonly tenant: string;
  readonly domain: string;
  readonly nextAt: Instant;
}

/** What an operator's command is about; nothing given means everything. */
export interface Filter {
  readonly id?: MessageId;
  readonly tenant?: string;
  readonly domain?: string;
  /** One of the person's keyed hashes, 16 octets: all that is sent to them in any of its widths. */
  readonly person?: Buffer;
}

/** One recipient found by scan(); `cursor` continues after it. */
export interface Found {
  readonly id: MessageId;
  readonly index: number;
  readonly cursor: Buffer;
}

const NAMES_KEPT = 20_000;

export class QueueIndex {
  readonly #tables: Tables;
  readonly #later: LaterIndex;
  readonly #keyring: Keyring;
  readonly #names = new Recent<{ readonly tenant: string; readonly domain: string }>(NAMES_KEPT);

  constructor(tables: Tables, later: LaterIndex, keyring: Keyring) {
    this.#tables = tables;
    this.#later = later;
    this.#keyring = keyring;
  }

  message(id: MessageId): MessageRow | undefined {
    if (id.length !== 26) return undefined;
    const octets = this.#tables.messages.get(messageKey(id));
    return octets === undefined ? undefined : parseMessageRow(asBuffer(octets));
  }

  recipient(id: MessageId, index: number): RecipientRow | undefined {
    const octets = this.#tables.recipients.get(recipientKey(id, index));
    return octets === undefined ? undefined : parseRecipientRow(asBuffer(octets));
  }

  /** Is this record the one the message's row points to? */
  liesAt(id: MessageId, segment: number, offset: number): boolean {
    const row = this.message(id);
    return row !== undefined && row.segment === segment && row.offset === offset;
  }

  /** Every queue that has somebody who is not held. */
  *heads(): Generator<QueueHead> {
    for (const { queue, at } of this.#seek()) {
      if (at === HELD_AT) continue;
      const head = this.head(queue, at);
      if (head !== undefined) yield head;
    }
  }

  /** undefined when the queue's name is not known. */
  head(queue: Buffer, nextAt: Instant): QueueHead | undefined {
    const name = this.#name(queue);
    return name === undefined ? undefined : { queue: queue.toString('hex'), tenant: name.tenant, domain: name.domain, nextAt };
  }

  /** The due entries of a queue up to `until`, the earliest first. */
  *dueIn(queue: QueueId, until: Instant): Generator<Found> {
    const id = Buffer.from(queue, 'hex');
    yield* this.#entries(id, dueFrom(id, 0), dueFrom(id, Math.min(until + 1, HELD_AT)));
  }

  /** When the first recipient of a queue who is not held is due; undefined when there is none. */
  nextAt(queue: QueueId): Instant | undefined {
    for (const { cursor } of this.dueIn(queue, HELD_AT)) return readDueKey(cursor).at;
    return undefined;
  }

  /** False as long as anything may still point to the queue. */
  isEmpty(queue: Buffer): boolean {
    return !this.#later.hasQueue(queue) && this.#first(queue)?.equals(queue) !== true;
  }

  /** Among the next `limit` queue rows from this key on, those nobody waits in; `next` is undefined at the end. */
  emptyFrom(from: Buffer, limit: number): { readonly empty: readonly Buffer[]; readonly next: Buffer | undefined } {
    const keys = [...this.#tables.queues.getKeys({ start: from, limit })].map(asBuffer);
    const last = keys.at(-1);
    return { empty: keys.filter((key) => this.isEmpty(key)), next: keys.length < limit || last === undefined ? undefined : nextQueue(last) };
  }

  /** Every recipient the filter means, held ones too, in the order of the index, from just after `after` on. */
  *scan(filter: Filter, after?: Buffer): Generator<Found> {
    const found = filter.id === undefined ? this.#scanQueues(filter, after) : this.#scanMessage(filter.id, filter, after);
    if (filter.person === undefined) yield* found;
    else for (const one of found) if (this.isTo(one, filter.person)) yield one;
  }

  *#scanQueues(filter: Filter, after?: Buffer): Generator<Found> {
    for (const queue of this.#matching(filter, after)) {
      const start = after !== undefined && after.subarray(0, QUEUE_OCTETS).equals(queue) ? Buffer.concat([after, Buffer.of(0)]) : dueFrom(queue, 0);
      yield* this.#entries(queue, start, nextQueue(queue));
    }
  }

  /** Whether one of the recipient's hashes is this one. */
  isTo({ id, index }: Found, person: Buffer): boolean {
    const row = this.recipient(id, index);
    return row !== undefined && hashesOf(row).some((hash) => hash.equals(person));
  }

  *#scanMessage(id: MessageId, filter: Filter, after?: Buffer): Generator<Found> {
    const message = this.message(id);
    if (message === undefined || (filter.tenant !== undefined && filter.tenant !== message.tenant)) return;
    const start = after === undefined ? recipientKey(id, 0) : Buffer.concat([after, Buffer.of(0)]);
    for (const octets of this.#tables.recipients.getKeys({ start, end: recipientKey(id, 0xffffffff) })) {
      const cursor = asBuffer(octets);
      const { index } = readRecipientKey(cursor);
      if (filter.domain !== undefined) {
        const row = this.recipient(id, index);
        if (row === undefined || this.#name(row.queue)?.domain !== filter.domain) continue;
      }
      yield { id, index, cursor };
    }
  }

  *#matching(filter: Filter, after?: Buffer): Generator<Buffer> {
    if (filter.tenant !== undefined && filter.domain !== undefined) {
      yield queueOf(this.#keyring.tenant(filter.tenant).address, filter.domain);
      return;
    }
    for (const { queue } of this.#seek(after?.subarray(0, QUEUE_OCTETS))) {
      if (filter.tenant === undefined && filter.domain === undefined) {
        yield queue;
        continue;
      }
      const name = this.#name(queue);
      if (name === undefined) continue;
      if ((filter.tenant ?? name.tenant) === name.tenant && (filter.domain ?? name.domain) === name.domain) yield queue;
    }
  }

  /** Each queue from this one on that has an entry, in order, with the time of the first. */
  *#seek(from: Buffer = Buffer.alloc(QUEUE_OCTETS)): Generator<{ readonly queue: Buffer; readonly at: Instant }> {
    const waiting = this.#later.queues().map((queue) => Buffer.from(queue, 'latin1')).filter((queue) => Buffer.compare(queue, from) >= 0).toReversed();
    for (let next: Buffer | undefined = from; next !== undefined;) {
      const written = this.#first(next);
      const queue = least(written, waiting.at(-1));
      if (queue === undefined) return;
      if (waiting.at(-1)?.equals(queue) === true) waiting.pop();
      for (const { cursor } of this.#entries(queue, dueFrom(queue, 0), nextQueue(queue))) {
        yield { queue, at: readDueKey(cursor).at };
        break;
      }
      next = nextQueue(queue);
    }
  }

  /** The entries of one queue in this range, those in LMDB and those that wait, each with a row that agrees. */
  *#entries(queue: Buffer, start: Buffer, end: Buffer | undefined): Generator<Found> {
    const waiting = this.#later.waitingIn(queue).map((key) => Buffer.from(key, 'latin1'))
      .filter((key) => Buffer.compare(key, start) >= 0 && (end === undefined || Buffer.compare(key, end) < 0)).toReversed();
    const before = function* (key: Buffer | undefined): Generator<Buffer> {
      for (let next = waiting.at(-1); next !== undefined; next = waiting.at(-1)) {
        const order = key === undefined ? -1 : Buffer.compare(next, key);
        if (order > 0) return;
        waiting.pop();
        if (order < 0) yield next;
      }
    };
    for (const octets of this.#tables.due.getKeys({ start, ...(end === undefined ? {} : { end }) })) {
      const key = asBuffer(octets);
      for (const earlier of before(key)) yield* this.#agreeing(earlier);
      yield* this.#agreeing(key);
    }
    for (const key of before(undefined)) yield* this.#agreeing(key);
  }

  *#agreeing(cursor: Buffer): Generator<Found> {
    const { id, index } = readDueKey(cursor);
    const row = this.recipient(id, index);
    if (row !== undefined && dueKeyOf(id, index, row).equals(cursor)) yield { id, index, cursor };
    else this.#later.isStale(cursor);
  }

  /** The queue of the first entry in LMDB from here on. */
  #first(from: Buffer): Buffer | undefined {
    for (const octets of this.#tables.due.getKeys({ start: from, limit: 1 })) return readDueKey(asBuffer(octets)).queue;
    return undefined;
  }

  #name(queue: Buffer): { readonly tenant: string; readonly domain: string } | undefined {
    const id = queue.toString('hex');
    const known = this.#names.get(id);
    if (known !== undefined) return known;
    const octets = this.#tables.queues.get(queue);
    if (octets === undefined) return undefined;
    const { tenant, sealed } = splitQueueRow(asBuffer(octets));
    const domain = unseal(this.#keyring.tenant(tenant).payload, sealed, queue);
    if (domain === undefined) return undefined;
    const name = { tenant, domain: domain.toString() };
    this.#names.set(id, name, 1);
    return name;
  }
}

function least(a: Buffer | undefined, b: Buffer | undefined): Buffer | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return Buffer.compare(a, b) <= 0 ? a : b;
}
