// The bodies: sealed records appended to files of at most 64 MiB. A record is found by segment number
// and offset, never searched for, except when a sparse segment is rewritten. Callers may rely on:
// append() resolves when the octets are synced, one sync for all who wait; a failed append leaves the
// file as long as it was; a segment is unlinked only when no row and no pending append needs it. An
// existing file is never appended to after a start: what a crash tore stays at the end of a file that
// nobody reads there.
//   record: 'PMR1', id 26, sealed meta length 4, sealed body length 4, sealed meta, sealed body
import { closeSync, fdatasync, fsyncSync, ftruncateSync, mkdirSync, openSync, read, readSync, readdirSync, statSync, unlinkSync, writev } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { MessageId } from '../mail/index.ts';
import { MailError } from '../mail/index.ts';
import type { Log } from '../runtime/index.ts';
import { storeError } from './faults.ts';

const MAGIC = 0x504d5231;
const ID_AT = 4;
const LENGTHS_AT = ID_AT + 26;
export const RECORD_HEAD = LENGTHS_AT + 8;

/** Small enough to be rewritten in a second, large enough that ten million messages are a few thousand files. */
export const SEGMENT_OCTETS = 64 * 1024 * 1024;
// One sync for at most this much: keeps the first of a large burst from waiting for the last.
const GROUP_OCTETS = 16 * 1024 * 1024;
const SPACE_CHECK_MS = 1_000;
// Files kept open for reading; a lane reads neighbours, so few segments are hot at a time.
const OPEN_FILES = 64;
// Below this share of live octets a segment is rewritten: each octet is then moved at most every third time.
const SPARSE = 0.25;

const writevAsync = promisify(writev);
const readAsync = promisify(read);
const syncAsync = promisify(fdatasync);

/** Where a record lies. */
export interface Place {
  readonly segment: number;
  readonly offset: number;
}

export interface RecordHead {
  readonly id: MessageId;
  readonly metaLength: number;
  readonly bodyLength: number;
}

export function formatRecordHead(id: MessageId, metaLength: number, bodyLength: number): Buffer {
  const head = Buffer.allocUnsafe(RECORD_HEAD);
  head.writeUInt32BE(MAGIC, 0);
  head.write(id, ID_AT, 'latin1');
  head.writeUInt32BE(metaLength, LENGTHS_AT);
  head.writeUInt32BE(bodyLength, LENGTHS_AT + 4);
  return head;
}

/** undefined where no record begins. */
export function parseRecordHead(octets: Buffer): RecordHead | undefined {
  if (octets.length < RECORD_HEAD || octets.readUInt32BE(0) !== MAGIC) return undefined;
  return { id: octets.toString('latin1', ID_AT, LENGTHS_AT), metaLength: octets.readUInt32BE(LENGTHS_AT), bodyLength: octets.readUInt32BE(LENGTHS_AT + 4) };
}

interface Segment {
  readonly number: number;
  size: number;
  live: number;
  /** Records appended whose rows are not committed yet. */
  pending: number;
  fd: number | undefined;
  /** Reads and writes under way: the file is not closed while there are any. */
  users: number;
}

interface Append {
  readonly pieces: readonly Buffer[];
  readonly length: number;
  readonly resolve: (place: Place) => void;
  readonly reject: (error: unknown) => void;
}

export class Segments {
  readonly #dir: string;
  readonly #log: Log;
  readonly #reserveBytes: number;
  readonly #all = new Map<number, Segment>();
  #active: Segment | undefined;
  #last = 0;
  #waiting: Append[] = [];
  #running: Promise<void> | undefined;
  #writing = false;
  #spaceCheckedAt = -Infinity;
  #freeBytes = Infinity;

  /** Opens what is there: unlinks every file in which `live` counts nothing. */
  constructor(dir: string, options: { readonly live: ReadonlyMap<number, number>; readonly reserveBytes: number; readonly log: Log }) {
    this.#dir = dir;
    this.#log = options.log;
    this.#reserveBytes = options.reserveBytes;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    this.#recover(options.live);
  }

  #recover(live: ReadonlyMap<number, number>): void {
    let [unlinked, missing, short] = [0, 0, 0];
    for (const name of readdirSync(this.#dir)) {
      const number = Number(/^(\d{8})\.seg$/.exec(name)?.[1]);
      if (Number.isNaN(number)) continue;
      this.#last = Math.max(this.#last, number);
      if ((live.get(number) ?? 0) > 0) {
        this.#all.set(number, { number, size: statSync(join(this.#dir, name)).size, live: live.get(number) ?? 0, pending: 0, fd: undefined, users: 0 });
      } else {
        unlinkSync(join(this.#dir, name));
        unlinked++;
      }
    }
    for (const [number, octets] of live) {
      this.#last = Math.max(this.#last, number);
      const segment = this.#all.get(number);
      if (segment === undefined) missing++;
      else if (segment.size < octets) short++;
    }
    this.#log.info({ segments: this.#all.size, unlinked, missing, short }, 'spool segments opened');
    // Never by a crash of ours: somebody removed or cut files. Their messages will be held when they come due.
    if (missing + short > 0) this.#log.error({ missing, short }, 'spool segments are missing or shorter than their rows say');
  }

  /**
   * Appends one record, synced when it resolves; the caller then commits its row and calls settled().
   * @throws MailError E_SPOOL_FULL, E_STORE
   */
  append(pieces: readonly Buffer[]): Promise<Place> {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ pieces, length, resolve, reject });
      this.#running ??= this.#run();
    });
  }

  /** The rows of an appended record are committed, or will never be. */
  settled(place: Place): void {
    const segment = this.#all.get(place.segment);
    if (segment === undefined) return;
    segment.pending--;
    this.#dropIfEmpty(segment);
  }

  /**
   * The row of an appended record will never be committed; in place of settled(). Its octets are cut off
   * again where nothing has been appended behind them; elsewhere they are dead, and count as such.
   */
  abandoned(place: Place, length: number): void {
    const segment = this.#all.get(place.segment);
    if (segment !== undefined && segment === this.#active && !this.#writing && segment.fd !== undefined && place.offset + length === segment.size) {
      try {
        ftruncateSync(segment.fd, place.offset);
        segment.size = place.offset;
      } catch (error) {
        this.#log.warn({ segment: segment.number, err: String(error) }, 'the body of a refused message stays until its segment is sparse');
      }
    }
    this.settled(place);
  }

  liveOf(number: number): number {
    return this.#all.get(number)?.live ?? 0;
  }

  /** What the last commit says; an empty segment is unlinked at once. */
  setLive(number: number, live: number): void {
    const segment = this.#all.get(number);
    if (segment === undefined) return;
    segment.live = live;
    this.#dropIfEmpty(segment);
  }

  /** Octets of a record. Fewer come back where the file ends; @throws MailError E_SPOOL_CORRUPT when there is no such file. */
  async read(number: number, offset: number, length: number): Promise<Buffer> {
    const segment = this.#all.get(number);
    if (segment === undefined) throw new MailError('E_SPOOL_CORRUPT', `segment ${number} is missing`);
    const fd = this.#fdOf(segment);
    segment.users++;
    try {
      const { bytesRead, buffer } = await readAsync(fd, Buffer.allocUnsafe(length), 0, length, offset);
      return buffer.subarray(0, bytesRead);
    } catch (cause) {
      throw storeError(cause);
    } finally {
      segment.users--;
      this.#closeIfGone(segment);
    }
  }

  /** The same at once, for the few octets of a meta part. */
  readNow(number: number, offset: number, length: number): Buffer {
    const segment = this.#all.get(number);
    if (segment === undefined) throw new MailError('E_SPOOL_CORRUPT', `segment ${number} is missing`);
    const octets = Buffer.allocUnsafe(length);
    return octets.subarray(0, readSync(this.#fdOf(segment), octets, 0, length, offset));
  }

  /** The segment with the smallest share of live octets, if that is small enough to be worth rewriting. */
  sparsest(except: ReadonlySet<number>): { readonly number: number; readonly size: number } | undefined {
    let best: Segment | undefined;
    for (const s of this.#all.values()) {
      if (s === this.#active || s.pending > 0 || except.has(s.number) || s.live >= s.size * SPARSE) continue;
      if (best === undefined || s.live / s.size < best.live / best.size) best = s;
    }
    return best;
  }

  totals(): { readonly segmentBytes: number; readonly liveBytes: number } {
    let [segmentBytes, liveBytes] = [0, 0];
    for (const s of this.#all.values()) {
      segmentBytes += s.size;
      liveBytes += s.live;
    }
    return { segmentBytes, liveBytes };
  }

  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  /** Closes all files; call it when nothing reads or appends. */
  close(): void {
    for (const s of this.#all.values()) if (s.fd !== undefined) closeSync(s.fd);
    this.#all.clear();
  }

  async #run(): Promise<void> {
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
    while (this.#waiting.length > 0) {
      const group = this.#takeGroup();
      try {
        await this.#checkSpace();
        await this.#write(group);
      } catch (cause) {
        const error = storeError(cause);
        for (const a of group) a.reject(error);
      }
    }
    this.#running = undefined;
  }

  #takeGroup(): readonly Append[] {
    let octets = 0;
    let count = 0;
    for (const a of this.#waiting) {
      if (count > 0 && octets + a.length > GROUP_OCTETS) break;
      octets += a.length;
      count++;
    }
    return this.#waiting.splice(0, count);
  }

  async #checkSpace(): Promise<void> {
    const now = performance.now();
    if (now - this.#spaceCheckedAt > SPACE_CHECK_MS) {
      const { bavail, bsize } = await statfs(this.#dir);
      this.#freeBytes = bavail * bsize;
      this.#spaceCheckedAt = now;
    }
    if (this.#freeBytes < this.#reserveBytes) throw new MailError('E_SPOOL_FULL', `${this.#freeBytes} octets free, ${this.#reserveBytes} are kept in reserve`);
  }

  async #write(group: readonly Append[]): Promise<void> {
    const length = group.reduce((sum, a) => sum + a.length, 0);
    const segment = this.#room(length);
    segment.users++;
    this.#writing = true;
    try {
      const fd = this.#fdOf(segment);
      await writeAll(fd, group.flatMap((a) => a.pieces), segment.size);
      await syncAsync(fd);
    } catch (error) {
      this.#retire(segment);
      throw error;
    } finally {
      this.#writing = false;
      segment.users--;
      this.#closeIfGone(segment);
    }
    for (const a of group) {
      const place = { segment: segment.number, offset: segment.size };
      segment.size += a.length;
      segment.pending++;
      a.resolve(place);
    }
  }

  /** The segment the next group goes to: the active one, or a new one when it is full. */
  #room(length: number): Segment {
    const active = this.#active;
    if (active !== undefined && (active.size === 0 || active.size + length <= SEGMENT_OCTETS)) return active;
    const number = this.#last + 1;
    const fd = openSync(this.#file(number), 'wx+', 0o600);
    this.#last = number;
    const segment: Segment = { number, size: 0, live: 0, pending: 0, fd, users: 0 };
    this.#all.set(number, segment);
    this.#active = segment;
    if (active !== undefined) this.#dropIfEmpty(active);
    // Without this the file itself, not only its tail, could be gone after a power cut.
    this.#syncDir();
    return segment;
  }

  /** After a failed write or sync nothing is known of the tail: cut it off and never write there again. */
  #retire(segment: Segment): void {
    if (this.#active === segment) this.#active = undefined;
    try {
      if (segment.fd !== undefined) ftruncateSync(segment.fd, segment.size);
    } catch (error) {
      this.#log.warn({ segment: segment.number, err: String(error) }, 'the tail of a failed append stays until its segment is empty');
    }
    this.#dropIfEmpty(segment);
  }

  #dropIfEmpty(segment: Segment): void {
    if (segment === this.#active || segment.live > 0 || segment.pending > 0 || !this.#all.delete(segment.number)) return;
    try {
      unlinkSync(this.#file(segment.number));
    } catch (error) {
      this.#log.warn({ segment: segment.number, err: String(error) }, 'an empty segment could not be removed; the next start will');
    }
    this.#closeIfGone(segment);
  }

  #closeIfGone(segment: Segment): void {
    if (segment.users > 0 || segment.fd === undefined || this.#all.get(segment.number) === segment) return;
    closeSync(segment.fd);
    segment.fd = undefined;
  }

  #fdOf(segment: Segment): number {
    if (segment.fd !== undefined) return segment.fd;
    const open = [...this.#all.values()].filter((s) => s.fd !== undefined && s.users === 0 && s !== this.#active);
    for (const s of open.slice(0, Math.max(0, open.length - OPEN_FILES))) {
      if (s.fd !== undefined) closeSync(s.fd);
      s.fd = undefined;
    }
    segment.fd = openSync(this.#file(segment.number), 'r');
    return segment.fd;
  }

  #file(number: number): string {
    return join(this.#dir, `${String(number).padStart(8, '0')}.seg`);
  }

  #syncDir(): void {
    const fd = openSync(this.#dir, 'r');
    try {
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  }
}

/** A full disk writes part first and says why only the next time: go on until it does. */
async function writeAll(fd: number, pieces: readonly Buffer[], position: number): Promise<void> {
  const { bytesWritten } = await writevAsync(fd, pieces, position);
  let written = bytesWritten;
  const total = pieces.reduce((sum, piece) => sum + piece.length, 0);
  if (written === total) return;
  const whole = Buffer.concat(pieces);
  while (written < total) written += (await writevAsync(fd, [whole.subarray(written)], position + written)).bytesWritten;
}
