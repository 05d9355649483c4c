// The event journal: what happened to mail, one JSON object a line, in <dir>/<id>.jsonl where the id
// is that of the file's first moment, so that names sort by time. Callers may rely on: record() never
// blocks and never throws; lines are written within 50 ms or 64 KiB and synced about once a second;
// files older than `keepMs` are removed whole. A crash loses at most the last second of events, never
// mail: the spool does not read this. When the disk fails the lines are dropped and counted in
// `lost`, the first failure of a row is logged, and writing is tried again with the next batch.
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, readdirSync, unlinkSync } from 'node:fs';
import { open, readFile, writeFile, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { MessageId } from '../mail/index.ts';
import { idTime, isId, newId, type Clock, type Log } from '../runtime/index.ts';
import type { Event, EventKind } from './event.ts';

// One write a batch: at 20,000 events a second it is the number of writes that costs, not the octets.
const BATCH_MS = 50;
const BATCH_OCTETS = 65_536;
const SYNC_MS = 1_000;
// A file is searched whole and removed whole: an hour, and no more than this, keeps both cheap.
const FILE_MS = 3_600_000;
const FILE_OCTETS = 64 * 1_048_576;
// A disk that hangs must not fill the memory.
const WAITING_OCTETS = 16 * 1_048_576;

const PSEUDONYM = /^[0-9a-f]{12}$/;

/** An event as it stands in the journal; `sealed` is base64, under the tenant's payload key. */
export type JournalledEvent = Event & { readonly sealed?: string };

export interface Journal {
  /** Adds one event. `sealed` is what only the tenant may read, already encrypted. */
  record(event: Event, sealed?: Buffer): void;
  /** Events of one message, oldest first, including those not yet on disk. */
  trace(message: MessageId): AsyncIterable<JournalledEvent>;
  /** Events of one tenant about one person, by their pseudonym (12 hex digits), oldest first. Every file is read. */
  person(tenant: string, pseudonym: string): AsyncIterable<JournalledEvent>;
  /** Calls `listener` with each event from now on; the returned function ends it. */
  follow(listener: (event: Event) => void): () => void;
  /** Resolves when everything recorded so far is written and synced, or counted as lost. */
  flush(): Promise<void>;
  /** What a complete file holds of each tenant, as it was entered in the ledger; undefined when it is gone. */
  digest(segment: string): Promise<SealedSegment | undefined>;
  /** Flushes and closes; record() afterwards drops and counts. */
  close(): Promise<void>;
  /** Events dropped because the disk failed. */
  readonly lost: number;
}

/** A closed file of the journal: for each tenant in it how many lines are its own and the SHA-256 of them, in order, hex. */
export interface SealedSegment {
  readonly segment: string;
  readonly tenants: readonly { readonly tenant: string; readonly lines: number; readonly sha256: string }[];
}

/** Makes an event with a fresh id, at the clock's time. */
export function newEvent(kind: EventKind, clock: Clock, fields: Omit<Event, 'id' | 'at' | 'event'> = {}): Event {
  const at = clock.now();
  return { id: newId(at), at, event: kind, ...fields };
}

/**
 * A remote reply with everything that looks like an address replaced by `<…>`: with or without angle
 * brackets, quoted, internationalised, or with the @ written as %40.
 */
export function maskReply(text: string): string {
  // Each alternative is linear: no part can match what its neighbour matches. 2,000 characters are
  // more than the four lines a real refusal has, and bound the work on a hostile one.
  return text.slice(0, 2_000).replace(/<?(?:"[^"\r\n]{0,128}"|[^\s<>()[\]",;:@]{1,256})(?:@|%40)(?:\[[^\]\s]{1,64}\]|[^\s<>()[\]",;:@]{1,256})>?/giu, '<…>');
}

export interface JournalOptions {
  readonly dir: string;
  readonly clock: Clock;
  readonly keepMs: number;
  readonly log: Log;
  /** Told of each file that is complete, also of those a crash left; told again when it failed. */
  readonly onSealed?: (sealed: SealedSegment) => Promise<void>;
}

/** Opens the journal in `dir` (made 0700 where missing) and removes what is older than `keepMs`. */
export function openJournal(options: JournalOptions): Journal {
  mkdirSync(options.dir, { recursive: true, mode: 0o700 });
  return new FileJournal(options);
}

class FileJournal implements Journal {
  readonly #dir: string;
  readonly #clock: Clock;
  readonly #keepMs: number;
  readonly #log: Log;
  readonly #followers = new Set<(event: Event) => void>();
  #waiting: string[] = [];
  #waitingOctets = 0;
  #cancelTimer: (() => void) | undefined;
  #cancelSync: (() => void) | undefined;
  #writing: Promise<void> = Promise.resolve();
  #file: { readonly handle: FileHandle; readonly startedAt: number; octets: number; syncedAt: number; dirty: boolean } | undefined;
  #failing = false;
  #closed = false;
  #lost = 0;
  readonly #onSealed: JournalOptions['onSealed'];
  /** The name of the file that is being written, '' between two. */
  #current = '';
  #sealing: Promise<void> = Promise.resolve();

  constructor({ dir, clock, keepMs, log, onSealed }: JournalOptions) {
    this.#dir = dir;
    this.#clock = clock;
    this.#keepMs = keepMs;
    this.#log = log;
    this.#onSealed = onSealed;
    this.#removeOld();
    this.#sealSoon();
  }

  get lost(): number {
    return this.#lost;
  }

  record(event: Event, sealed?: Buffer): void {
    if (this.#closed || this.#waitingOctets > WAITING_OCTETS) {
      this.#lost++;
      return;
    }
    const line = `${JSON.stringify(sealed === undefined ? event : { ...event, sealed: sealed.toString('base64') })}\n`;
    this.#waiting.push(line);
    this.#waitingOctets += line.length;
    for (const listener of this.#followers) this.#tell(listener, event);
    if (this.#waitingOctets >= BATCH_OCTETS) this.#writeSoon();
    else this.#cancelTimer ??= this.#clock.after(BATCH_MS, () => this.#writeSoon());
  }

  follow(listener: (event: Event) => void): () => void {
    this.#followers.add(listener);
    return () => this.#followers.delete(listener);
  }

  async *trace(message: MessageId): AsyncGenerator<JournalledEvent> {
    if (!isId(message)) return;
    await this.flush();
    const needle = Buffer.from(`"message_id":"${message}"`);
    // An event of the message is never older than the message; a file holds an hour from its own time
    // on, and a clock set back a little must not hide anything.
    const from = idTime(message) - 2 * FILE_MS;
    for (const name of this.#files().filter((name) => idTime(name) >= from)) {
      for (const line of await linesWith(join(this.#dir, name), needle)) {
        const event = parseLine(line);
        if (event?.message_id === message) yield event;
      }
    }
  }

  async *person(tenant: string, pseudonym: string): AsyncGenerator<JournalledEvent> {
    if (!PSEUDONYM.test(pseudonym)) return;
    await this.flush();
    const needle = Buffer.from(`"person":"${pseudonym}"`);
    for (const name of this.#files()) {
      for (const line of await linesWith(join(this.#dir, name), needle)) {
        const event = parseLine(line);
        if (event?.person === pseudonym && event.tenant === tenant) yield event;
      }
    }
  }

  async digest(segment: string): Promise<SealedSegment | undefined> {
    const file = join(this.#dir, `${segment}.jsonl`);
    return isId(segment) && existsSync(file) ? digest(file, segment) : undefined;
  }

  async flush(): Promise<void> {
    this.#writeSoon(true);
    await this.#writing;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.flush();
    await this.#closeFile();
    await this.#sealing;
  }

  /** Queues one write of all that waits. Writes follow one another; the chain never rejects. */
  #writeSoon(sync = false): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#writing = this.#writing.then(() => this.#writeBatch(sync));
  }

  async #writeBatch(sync: boolean): Promise<void> {
    const lines = this.#waiting;
    this.#waiting = [];
    this.#waitingOctets = 0;
    try {
      if (lines.length > 0) await this.#write(Buffer.from(lines.join('')));
      await this.#sync(sync);
      this.#failing = false;
    } catch (error) {
      this.#lost += lines.length;
      if (!this.#failing) this.#log.error({ error: String(error), events: lines.length }, 'the event journal cannot be written; events are being lost');
      this.#failing = true;
      await this.#closeFile(); // the next batch starts a new file, whatever became of this one
    }
  }

  async #write(octets: Buffer): Promise<void> {
    const now = this.#clock.now();
    if (this.#file !== undefined && (Math.floor(now / FILE_MS) !== Math.floor(this.#file.startedAt / FILE_MS) || this.#file.octets > FILE_OCTETS)) {
      await this.#closeFile();
      this.#removeOld();
    }
    if (this.#file === undefined) {
      this.#current = `${newId(now)}.jsonl`;
      this.#file = { handle: await open(join(this.#dir, this.#current), 'ax', 0o600), startedAt: now, octets: 0, syncedAt: now, dirty: false };
    }
    const file = this.#file;
    file.dirty = true;
    file.octets += octets.length;
    await file.handle.appendFile(octets);
  }

  async #sync(force: boolean): Promise<void> {
    const file = this.#file;
    if (file === undefined || !file.dirty) return;
    const now = this.#clock.now();
    if (force || now - file.syncedAt >= SYNC_MS) {
      await file.handle.datasync();
      file.syncedAt = now;
      file.dirty = false;
      this.#cancelSync?.();
      this.#cancelSync = undefined;
    } else {
      this.#cancelSync ??= this.#clock.after(SYNC_MS, () => this.#writeSoon(true));
    }
  }

  async #closeFile(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    this.#current = '';
    if (file === undefined) return;
    try {
      await file.handle.datasync();
      await file.handle.close();
      this.#sealSoon();
    } catch (error) {
      this.#log.error({ error: String(error) }, 'an event file could not be closed');
    }
  }

  /** Tells of every file that is complete and was not told of: `sealed` holds the name of the last one that was. */
  #sealSoon(): void {
    if (this.#onSealed !== undefined) this.#sealing = this.#seal(this.#sealing, this.#onSealed);
  }

  async #seal(before: Promise<void>, tell: (sealed: SealedSegment) => Promise<void>): Promise<void> {
    await before;
    const mark = join(this.#dir, 'sealed');
    try {
      const last = existsSync(mark) ? (await readFile(mark, 'utf8')).trim() : '';
      for (const name of this.#files().filter((name) => name > last && name !== this.#current)) {
        await tell(await digest(join(this.#dir, name), name.slice(0, -6)));
        await writeFile(mark, `${name}\n`, { mode: 0o600 });
      }
    } catch (error) {
      this.#log.warn({ error: String(error) }, 'a file of the event journal could not be entered in the ledger; it is tried again');
    }
  }

  #tell(listener: (event: Event) => void, event: Event): void {
    try {
      listener(event);
    } catch (error) {
      // A follower is somebody's terminal; its trouble is not the mail's.
      this.#followers.delete(listener);
      this.#log.warn({ error: String(error) }, 'a follower of events failed and was dropped');
    }
  }

  #files(): string[] {
    return readdirSync(this.#dir).filter((name) => name.endsWith('.jsonl') && isId(name.slice(0, -6))).sort();
  }

  #removeOld(): void {
    try {
      const before = this.#clock.now() - this.#keepMs - FILE_MS; // the last line of a file is up to an hour younger than its name
      for (const name of this.#files()) {
        if (idTime(name) < before) unlinkSync(join(this.#dir, name));
      }
    } catch (error) {
      this.#log.warn({ error: String(error) }, 'old event files could not be removed');
    }
  }
}

/** What a file holds of each tenant. A piece at a time: the mail goes on meanwhile. */
async function digest(file: string, segment: string): Promise<SealedSegment> {
  const tenants = new Map<string, { lines: number; readonly hash: ReturnType<typeof createHash> }>();
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Number.POSITIVE_INFINITY })) {
    const tenant = parseLine(line)?.tenant;
    if (tenant === undefined) continue;
    const known = tenants.get(tenant) ?? { lines: 0, hash: createHash('sha256') };
    known.lines++;
    known.hash.update(`${line}\n`);
    tenants.set(tenant, known);
  }
  return { segment, tenants: [...tenants].map(([tenant, { lines, hash }]) => ({ tenant, lines, sha256: hash.digest('hex') })) };
}

/** The whole lines of a file that contain the needle. */
async function linesWith(file: string, needle: Buffer): Promise<string[]> {
  let octets: Buffer;
  try {
    octets = await readFile(file);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return []; // removed for its age meanwhile
    throw error;
  }
  const lines: string[] = [];
  for (let at = octets.indexOf(needle); at >= 0; at = octets.indexOf(needle, at)) {
    const start = octets.lastIndexOf(0x0a, at) + 1;
    const end = octets.indexOf(0x0a, at);
    if (end < 0) break; // torn by a crash
    lines.push(octets.toString('utf8', start, end));
    at = end;
  }
  return lines;
}

function parseLine(line: string): JournalledEvent | undefined {
  try {
    return JSON.parse(line) as JournalledEvent;
  } catch {
    return undefined; // a crash tore this line and a later start appended nothing to it: not an event
  }
}
