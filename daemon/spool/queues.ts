// Reading the rows: which queues there are, who is due in them, what an operator asks to see. Nothing
// here is kept in memory but a bounded number of queue names: queues are found by seeking from one queue
// id to the next in the due index. Every read is of committed rows; none waits for the disk on purpose.
import { PRIORITIES, type Instant, type MessageId, type Priority } from '../mail/index.ts';
import type { Keyring } from '../runtime/index.ts';
import { unseal } from '../runtime/index.ts';
import type { LaterIndex } from './later.ts';
import {
  ENDS, HELD_AT, ID_OCTETS, QUEUE_OCTETS, asBuffer, dueFrom, dueKeysOf, hashesOf, messageKey, nextQueue, parseMessageRow, parseRecipientRow, queueOf, readDueKey, readRecipientKey,
  recipientKey, splitQueueRow, type MessageRow, type QueueId, type QueueName, type RecipientRow, type Tables,
} from './rows.ts';
import { Recent } from './recent.ts';

/** A (tenant, domain, priority) with somebody waiting, and when its first recipient is due. */
export interface QueueHead extends QueueName {
  readonly queue: QueueId;
  readonly nextAt: Instant;
}

/** What an operator's command is about; nothing given means everything. */
export interface Filter {
  readonly id?: MessageId;
  readonly tenant?: string;
  readonly domain?: string;
  /** One of the person's keyed hashes, 16 octets: all that is sent to them in any of its widths. */
  readonly person?: Buffer;
  /** A campaign of one tenant (Spool.campaign). */
  readonly campaign?: Buffer;
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
  readonly #names = new Recent<QueueName>(NAMES_KEPT);

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
    const name = this.name(queue);
    return name === undefined ? undefined : { queue: queue.toString('hex'), ...name, nextAt };
  }

  /** The due entries of a queue up to `until`, the earliest first. */
  *dueIn(queue: QueueId, until: Instant): Generator<Found> {
    const id = Buffer.from(queue, 'hex');
    yield* this.#entries(id, dueFrom(id, 0), dueFrom(id, Math.min(until + 1, HELD_AT)));
  }

  /** The entries of those whose time was over at `until`, held ones apart; who waits longest first. */
  *endedBy(until: Instant): Generator<Found> {
    yield* this.#entries(ENDS, dueFrom(ENDS, 0), dueFrom(ENDS, until + 1));
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

  /**
   * Every recipient of the filter's message or queues, held ones too, in the order of the index, from just
   * after `after` on. Which of them it means, where it names a person or a campaign, means() tells.
   */
  scan(filter: Filter, after?: Buffer): Generator<Found> {
    return filter.id === undefined ? this.#scanQueues(filter, after) : this.#scanMessage(filter.id, filter, after);
  }

  /**
   * The filter's recipients among the next `rows` rows of messages and recipients from this key on, in the
   * order of the rows; `next` is undefined at the end. What is in every queue, a campaign or a tenant's mail, is
   * found and changed sooner along the rows, one page of the disk after the other, than along the index.
   */
  rowsFrom(filter: Filter, from: Buffer, rows: number): { readonly found: readonly Found[]; readonly next: Buffer | undefined } {
    const found: Found[] = [];
    let [seen, id, matches, last] = [0, '', false, from];
    for (const { key, value } of this.#tables.messages.getRange({ start: from, limit: rows })) {
      seen++;
      last = asBuffer(key);
      if (last.length === ID_OCTETS) {
        [id, matches] = [last.toString('latin1'), isOf(parseMessageRow(asBuffer(value)), filter)];
        continue;
      }
      const { id: message, index } = readRecipientKey(last);
      // A page may begin amid a message.
      if (message !== id) [id, matches] = [message, isOf(this.message(message), filter)];
      if (matches && (filter.domain === undefined || this.name(parseRecipientRow(asBuffer(value)).queue)?.domain === filter.domain)) found.push({ id, index, cursor: Buffer.from(last) });
    }
    return { found, next: seen < rows ? undefined : Buffer.concat([last, Buffer.of(0)]) };
  }

  /** Whether one that scan() found is to the filter's person and of its campaign. */
  means({ id, index }: Found, { person, campaign }: Filter): boolean {
    if (campaign !== undefined && this.message(id)?.campaign?.equals(campaign) !== true) return false;
    const row = person === undefined ? undefined : this.recipient(id, index);
    return person === undefined || (row !== undefined && hashesOf(row).some((hash) => hash.equals(person)));
  }

  *#scanQueues(filter: Filter, after?: Buffer): Generator<Found> {
    for (const queue of this.#matching(filter, after)) {
      const start = after !== undefined && after.subarray(0, QUEUE_OCTETS).equals(queue) ? Buffer.concat([after, Buffer.of(0)]) : dueFrom(queue, 0);
      yield* this.#entries(queue, start, nextQueue(queue));
    }
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
        if (row === undefined || this.name(row.queue)?.domain !== filter.domain) continue;
      }
      yield { id, index, cursor };
    }
  }

  *#matching(filter: Filter, after?: Buffer): Generator<Buffer> {
    const { tenant, domain } = filter;
    const from = after?.subarray(0, QUEUE_OCTETS);
    if (tenant !== undefined && domain !== undefined) {
      const { address } = this.#keyring.tenant(tenant);
      const queues = PRIORITIES.map((priority: Priority) => queueOf(address, domain, priority)).sort(Buffer.compare);
      yield* queues.filter((queue) => from === undefined || Buffer.compare(queue, from) >= 0);
      return;
    }
    for (const { queue } of this.#seek(from)) {
      if (tenant === undefined && domain === undefined) {
        yield queue;
        continue;
      }
      const name = this.name(queue);
      if (name === undefined) continue;
      if ((tenant ?? name.tenant) === name.tenant && (domain ?? name.domain) === name.domain) yield queue;
    }
  }

  /** Each queue from this one on that has an entry, in order, with the time of the first. */
  *#seek(from: Buffer = Buffer.alloc(QUEUE_OCTETS)): Generator<{ readonly queue: Buffer; readonly at: Instant }> {
    const waiting = this.#later.queues().map((queue) => Buffer.from(queue, 'latin1')).filter((queue) => Buffer.compare(queue, from) >= 0).toReversed();
    for (let next: Buffer | undefined = from; next !== undefined;) {
      const written = this.#first(next);
      const queue = least(written, waiting.at(-1));
      if (queue === undefined || queue.equals(ENDS)) return;
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
    if (row !== undefined && dueKeysOf(id, index, row).some((key) => key.equals(cursor))) yield { id, index, cursor };
    else this.#later.isStale(cursor);
  }

  /** The queue of the first entry in LMDB from here on. */
  #first(from: Buffer): Buffer | undefined {
    for (const octets of this.#tables.due.getKeys({ start: from, limit: 1 })) return readDueKey(asBuffer(octets)).queue;
    return undefined;
  }

  /** What a queue is for; undefined when its row is not there or does not open. */
  name(queue: Buffer): QueueName | undefined {
    const id = queue.toString('hex');
    const known = this.#names.get(id);
    if (known !== undefined) return known;
    const octets = this.#tables.queues.get(queue);
    if (octets === undefined) return undefined;
    const { tenant, sealed } = splitQueueRow(asBuffer(octets));
    const clear = unseal(this.#keyring.tenant(tenant).payload, sealed, queue);
    if (clear === undefined) return undefined;
    const [domain, priority = 'normal'] = clear.toString().split(' ') as [string, Priority?];
    const name = { tenant, domain, priority };
    this.#names.set(id, name, 1);
    return name;
  }
}

/** Of the filter's campaign, and of its tenant where it names one. */
const isOf = (message: MessageRow | undefined, { campaign, tenant }: Filter): boolean =>
  message !== undefined && (campaign === undefined || message.campaign?.equals(campaign) === true) && (tenant === undefined || message.tenant === tenant);

function least(a: Buffer | undefined, b: Buffer | undefined): Buffer | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  return Buffer.compare(a, b) <= 0 ? a : b;
}
