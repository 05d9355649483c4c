// The part of the due index that is not in LMDB yet. Over a deep backlog each change of that index is a
// random page, so changes wait here and go out in key order, some with every commit: neighbours share a
// page, and a message delivered at once never reaches the index. Callers may rely on: nothing is lost by
// a crash. A removal that was not written leaves an entry without a matching row, which readers pass
// over. A new entry may wait only when its message id is not below the floor, and at the next start the
// rows from the floor on are looked through again; the floor on disk rises when all that waited is out.
import type { MessageId } from '../mail/index.ts';
import { QUEUE_OCTETS, asBuffer, dueKeysOf, parseRecipientRow, readDueKey, readRecipientKey, recipientKey, type Tables } from './rows.ts';

// So many changes wait before they go out, two for a recipient: enough that several meet on one page of a
// backlog of 100,000, few enough that a start looks through them in a moment and they weigh a few MiB.
const WAIT_CHANGES = 16_384;
// With each commit at least so many go out, and twice as many as came, so that a round ends before the next.
const SLICE = 64;
const ID_AT = QUEUE_OCTETS + 6;
const MARK_KEY = Buffer.of(0); // one octet: the other keys of the segment table have four

/** 'new' is not in LMDB, 'again' may be, 'gone' is to be removed from it. */
type Change = 'new' | 'again' | 'gone';

/** Keys of the due index as latin1 text, which sorts as their octets do. */
export type DueChanges = ReadonlyMap<string, boolean>;

/** Part of a round. */
export interface Slice {
  readonly changes: readonly { readonly key: string; readonly gone: boolean }[];
  readonly taken: number;
}

export class LaterIndex {
  readonly #tables: Tables;
  readonly #changes = new Map<string, Change>();
  readonly #queues = new Map<string, Set<string>>();
  /** The round going out, the last key first. */
  #round: string[] = [];
  #floor: MessageId = '';
  #newest: MessageId = '';
  /** What LMDB holds of it. */
  #written: { readonly floor: MessageId; readonly recipients: number } = { floor: '', recipients: 0 };

  /** Finds again what a stop or crash left unwritten. */
  constructor(tables: Tables) {
    this.#tables = tables;
    const mark = tables.segments.get(MARK_KEY);
    if (mark !== undefined) {
      const octets = asBuffer(mark);
      this.#written = { recipients: octets.readUIntBE(0, 6), floor: octets.toString('latin1', 6) };
    }
    this.#floor = this.#newest = this.#written.floor;
    for (const { key, value } of tables.recipients.getRange({ start: Buffer.from(this.#floor, 'latin1') })) {
      const octets = asBuffer(key);
      if (octets.length <= 26) continue; // a message row
      const { id, index } = readRecipientKey(octets);
      for (const due of dueKeysOf(id, index, parseRecipientRow(asBuffer(value)))) {
        if (!tables.due.doesExist(due)) this.#put(due.toString('latin1'), 'new');
      }
      if (id > this.#newest) this.#newest = id;
    }
  }

  /** Recipients in the spool, as the last commit left them. */
  get recipients(): number {
    return this.#written.recipients;
  }

  /** May the new entry with this key wait, or must it be in LMDB with its row? */
  mayWait(key: string): boolean {
    return key.slice(ID_AT, ID_AT + 26) >= this.#floor;
  }

  /** The keys of a queue that wait to be added, in order. */
  waitingIn(queue: Buffer): string[] {
    const keys = this.#queues.get(queue.toString('latin1'));
    return keys === undefined ? [] : [...keys].sort();
  }

  /** The queues that have such keys, in order. */
  queues(): string[] {
    return [...this.#queues.keys()].sort();
  }

  hasQueue(queue: Buffer): boolean {
    return this.#queues.has(queue.toString('latin1'));
  }

  /** A reader met an entry in LMDB that no row matches. */
  isStale(key: Buffer): void {
    const text = key.toString('latin1');
    if (!this.#changes.has(text)) this.#changes.set(text, 'gone');
  }

  /** What goes out with a commit that brings `coming` changes. Call it before mayWait(), and committed() after it. */
  slice(coming: number): Slice {
    if (this.#round.length === 0 && this.#changes.size >= WAIT_CHANGES) {
      this.#round = [...this.#changes.keys()].sort().toReversed();
      // From here on only younger messages may wait, so that the end of the round raises the floor.
      this.#floor = this.#newest;
    }
    const some: { key: string; gone: boolean }[] = [];
    const keys = this.#round.slice(-Math.max(SLICE, 2 * coming)).toReversed();
    for (const key of keys) {
      const change = this.#changes.get(key);
      // A removal is believed only while no row says otherwise: an entry too many is passed over, one too few is a message that never goes.
      if (change !== undefined && (change !== 'gone' || !this.#hasRow(key))) some.push({ key, gone: change === 'gone' });
    }
    return { changes: some, taken: keys.length };
  }

  /** The mark for the commit of this slice that brings so many recipients; undefined when it stays as it was. */
  mark(slice: Slice, recipients: number): Mark | undefined {
    const ends = slice.taken > 0 && slice.taken === this.#round.length;
    const floor = ends ? this.#floor : this.#written.floor;
    if (recipients === 0 && floor === this.#written.floor) return undefined;
    const mark = { floor, recipients: this.#written.recipients + recipients };
    const octets = Buffer.alloc(6 + floor.length);
    octets.writeUIntBE(mark.recipients, 0, 6);
    octets.write(floor, 6, 'latin1');
    return { ...mark, key: MARK_KEY, octets };
  }

  /** A commit is on disk: its slice is out, `direct` was written with it, `waiting` waits from now on. */
  committed(done: { readonly slice: Slice; readonly direct: readonly string[]; readonly waiting: DueChanges; readonly mark: Mark | undefined }): void {
    for (const { key } of done.slice.changes) this.#drop(key);
    this.#round.length -= done.slice.taken;
    for (const key of done.direct) this.#drop(key);
    for (const [key, put] of done.waiting) {
      if (put) this.#put(key, this.#changes.has(key) ? 'again' : 'new');
      else if (this.#changes.get(key) === 'new') this.#drop(key);
      else this.#gone(key);
    }
    if (done.mark !== undefined) this.#written = done.mark;
  }

  #hasRow(key: string): boolean {
    const due = Buffer.from(key, 'latin1');
    const { id, index } = readDueKey(due);
    const row = this.#tables.recipients.get(recipientKey(id, index));
    return row !== undefined && dueKeysOf(id, index, parseRecipientRow(asBuffer(row))).some((one) => one.equals(due));
  }

  #put(key: string, change: Change): void {
    const id = key.slice(ID_AT, ID_AT + 26);
    if (id > this.#newest) this.#newest = id;
    const queue = key.slice(0, QUEUE_OCTETS);
    this.#changes.set(key, change);
    const keys = this.#queues.get(queue);
    if (keys === undefined) this.#queues.set(queue, new Set([key]));
    else keys.add(key);
  }

  #gone(key: string): void {
    this.#drop(key);
    this.#changes.set(key, 'gone');
  }

  #drop(key: string): void {
    this.#changes.delete(key);
    const queue = key.slice(0, QUEUE_OCTETS);
    const keys = this.#queues.get(queue);
    if (keys?.delete(key) === true && keys.size === 0) this.#queues.delete(queue);
  }
}

/** The row that says from which message on the rows are looked through at a start, and how many recipients there are. */
export interface Mark {
  readonly floor: MessageId;
  readonly recipients: number;
  readonly key: Buffer;
  readonly octets: Buffer;
}
