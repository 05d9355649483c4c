// What the spool does for itself in the background: rewrites sparse segments, so that the disk holds at
// most a few times what is live, and forgets the names of queues nobody waits in. A record is moved by
// appending a synced copy and then pointing its row at it; the old file goes when its last row has left
// it. A crash in between leaves a copy without a row: dead octets, reclaimed like any others.
import type { Clock, Log } from '../runtime/index.ts';
import type { Committer } from './draft.ts';
import type { QueueIndex } from './queues.ts';
import { RECORD_HEAD, parseRecordHead, type Segments } from './segments.ts';

const LOOK_EVERY_MS = 1_000;
const SWEEP_EVERY_MS = 3_600_000;
const SWEEP_ROWS = 1_000;
// Read at once: some hundred records of usual size, and never more memory than one large message.
const CHUNK_OCTETS = 4 * 1024 * 1024;

export class Tender {
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #segments: Segments;
  readonly #committer: Committer;
  readonly #queues: QueueIndex;
  readonly #unreadable = new Set<number>();
  #stopped = false;
  #running: Promise<void> | undefined;
  #cancel: () => void = () => undefined;
  #wake: () => void = () => undefined;
  #sweptAt = -Infinity;

  constructor(parts: { readonly clock: Clock; readonly log: Log; readonly segments: Segments; readonly committer: Committer; readonly queues: QueueIndex }) {
    this.#clock = parts.clock;
    this.#log = parts.log;
    this.#segments = parts.segments;
    this.#committer = parts.committer;
    this.#queues = parts.queues;
  }

  start(): void {
    this.#running = this.#loop();
  }

  /** Ends the rounds; resolves when the one under way has stopped. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake();
    await this.#running;
  }

  async #loop(): Promise<void> {
    while (!this.#stopped) {
      try {
        await this.#sweep();
        const sparse = this.#segments.sparsest(this.#unreadable);
        if (sparse !== undefined) {
          await this.#rewrite(sparse.number, sparse.size);
          continue;
        }
      } catch (error) {
        // A full disk must not stop the daemon; deliveries free segments without our help.
        this.#log.warn({ err: String(error) }, 'spool upkeep failed; it goes on in the next round');
      }
      await this.#rest(LOOK_EVERY_MS);
    }
  }

  async #rest(ms: number): Promise<void> {
    if (this.#stopped) return;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      this.#cancel = this.#clock.after(ms, resolve);
    });
    this.#cancel();
  }

  async #sweep(): Promise<void> {
    if (this.#clock.now() - this.#sweptAt < SWEEP_EVERY_MS) return;
    this.#sweptAt = this.#clock.now();
    for (let from: Buffer | undefined = Buffer.alloc(0); from !== undefined && !this.#stopped;) {
      const { empty, next } = this.#queues.emptyFrom(from, SWEEP_ROWS);
      if (empty.length > 0) {
        await this.#committer.change(false, (draft) => {
          for (const queue of empty) if (this.#queues.isEmpty(queue)) draft.forgetQueue(queue);
        });
      }
      from = next;
      await this.#rest(1);
    }
  }

  /** Moves every live record out of a segment, half of the time at most: as long as it worked, it rests. */
  async #rewrite(number: number, size: number): Promise<void> {
    let offset = 0;
    let moved = 0;
    while (offset < size && !this.#stopped) {
      const began = performance.now();
      const chunk = await this.#segments.read(number, offset, Math.min(CHUNK_OCTETS, size - offset));
      const walked = await this.#moveAll(number, offset, chunk);
      moved += walked.moved;
      if (walked.next === offset) break;
      offset = walked.next;
      if (this.#segments.liveOf(number) === 0) break;
      await this.#rest(performance.now() - began);
    }
    if (this.#stopped) return;
    if (this.#segments.liveOf(number) > 0) {
      this.#unreadable.add(number);
      this.#log.error({ segment: number, offset }, 'a sparse segment cannot be read to its end; it stays as it is');
    } else {
      this.#log.debug({ segment: number, octets: size, moved }, 'sparse segment rewritten');
    }
  }

  /** Moves the live records that begin in this chunk; `next` is the first record head not looked at. */
  async #moveAll(number: number, start: number, chunk: Buffer): Promise<{ readonly next: number; readonly moved: number }> {
    const moves: Promise<boolean>[] = [];
    let at = 0;
    for (;;) {
      const head = parseRecordHead(chunk.subarray(at, at + RECORD_HEAD));
      if (head === undefined) break;
      const length = RECORD_HEAD + head.metaLength + head.bodyLength;
      const offset = start + at;
      if (this.#queues.liesAt(head.id, number, offset)) {
        const whole = at + length <= chunk.length;
        // One message larger than a chunk is read on its own; what follows it waits for the next chunk.
        if (!whole && at > 0) break;
        const record = whole ? chunk.subarray(at, at + length) : await this.#segments.read(number, offset, length);
        if (record.length < length) break;
        moves.push(this.#move(head.id, number, offset, record));
      }
      at += length;
    }
    const done = await Promise.all(moves);
    return { next: start + at, moved: done.filter(Boolean).length };
  }

  async #move(id: string, number: number, offset: number, record: Buffer): Promise<boolean> {
    const place = await this.#segments.append([record]);
    try {
      return await this.#committer.change(true, (draft) => {
        const row = draft.message(id);
        if (row === undefined || row.segment !== number || row.offset !== offset) return false;
        draft.putMessage(id, { ...row, ...place });
        return true;
      });
    } finally {
      this.#segments.settled(place);
    }
  }
}
