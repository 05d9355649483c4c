// What the ledger needs of a database, and its LMDB form in <dir>/ledger: two databases that change
// together, `state` (what holds now) and `log` (what was ever said). Callers may rely on: commit()
// resolves only when every write is on disk, all of a commit is there or nothing of it, and a read
// begun after it resolved sees it. A store that cannot answer throws MailError E_STORE; it never
// pretends that a record is absent.
import { join } from 'node:path';
import type { Database, RootDatabase, Transaction } from 'lmdb';
import { MailError } from '../mail/index.ts';
import { openLmdb } from './lmdb.ts';

export type StorePart = 'state' | 'log';

export interface StoreWrite {
  readonly part: StorePart;
  readonly key: Buffer;
  /** undefined removes the record. */
  readonly value: Buffer | undefined;
}

export interface StoreEntry {
  readonly key: Buffer;
  readonly value: Buffer;
}

/** All calls throw (or reject with) MailError E_STORE when the store does not answer. */
export interface LedgerStore {
  /** The values of these keys, in their order, of one moment. */
  getMany(keys: readonly Buffer[], part?: StorePart): Promise<readonly (Buffer | undefined)[]>;
  /** Every record whose key begins with `prefix`, in key order, from `start` on where given; what changes meanwhile may or may not show. */
  scan(prefix: Buffer, part?: StorePart, start?: Buffer): AsyncIterable<StoreEntry>;
  /** What stands now, for as long as it is held: an export must not mix two moments. Pages freed meanwhile are not used again, so it is closed soon. */
  snapshot(): StoreSnapshot;
  /**
   * Reads `keys` of the state, asks `decide` what to write, and writes it, atomically and durably.
   * `decide` must be pure and quick, may be asked again, and nothing is written when it throws.
   */
  commit(keys: readonly Buffer[], decide: (values: readonly (Buffer | undefined)[]) => readonly StoreWrite[]): Promise<void>;
  /** Octets the records of a part take on disk, its tree's pages included. */
  size(part: StorePart): { readonly records: number; readonly bytes: number };
  close(): Promise<void>;
}

export interface StoreSnapshot {
  /** Every record of that moment whose key begins with `prefix`, in key order. @throws MailError E_STORE */
  scan(prefix: Buffer, part?: StorePart): AsyncIterable<StoreEntry>;
  close(): void;
}

/** Opens (or makes) the ledger's environment in `<dir>/ledger`. @throws MailError E_STORE */
export function openLedgerStore(dir: string): LedgerStore {
  return new LmdbLedgerStore(openLmdb(join(dir, 'ledger'), { databases: 2 }));
}

// A scan holds no read transaction between its pages: a reader that sleeps keeps every freed page alive.
const SCAN_PAGE = 500;

class LmdbLedgerStore implements LedgerStore {
  readonly #root: RootDatabase<Buffer, Buffer>;
  readonly #parts: Readonly<Record<StorePart, Database<Buffer, Buffer>>>;
  #closed = false;

  constructor(root: RootDatabase<Buffer, Buffer>) {
    this.#root = root;
    const part = (name: StorePart): Database<Buffer, Buffer> => root.openDB<Buffer, Buffer>({ name, encoding: 'binary', keyEncoding: 'binary' });
    this.#parts = { state: part('state'), log: part('log') };
  }

  // Not an async function: with few keys the promise machinery would cost as much as the reads.
  getMany(keys: readonly Buffer[], part: StorePart = 'state'): Promise<readonly (Buffer | undefined)[]> {
    try {
      this.#mustBeOpen();
      const db = this.#parts[part];
      const values: (Buffer | undefined)[] = [];
      for (const key of keys) values.push(copy(db.getBinaryFast(key)));
      return Promise.resolve(values);
    } catch (cause) {
      return Promise.reject(storeError('read', cause));
    }
  }

  scan(prefix: Buffer, part: StorePart = 'state', from: Buffer = prefix): AsyncGenerator<StoreEntry> {
    return this.#pages(prefix, part, from);
  }

  snapshot(): StoreSnapshot {
    let held: Transaction | undefined;
    try {
      this.#mustBeOpen();
      held = this.#root.useReadTransaction();
    } catch (cause) {
      throw storeError('read', cause);
    }
    const transaction = held;
    return {
      scan: (prefix, part = 'state') => this.#pages(prefix, part, prefix, transaction),
      close() {
        held?.done();
        held = undefined;
      },
    };
  }

  async *#pages(prefix: Buffer, part: StorePart, from: Buffer, transaction?: Transaction): AsyncGenerator<StoreEntry> {
    let start = from;
    for (;;) {
      const page = this.#page(start, prefix, part, transaction);
      yield* page;
      const last = page.at(-1);
      if (page.length < SCAN_PAGE || last === undefined) return;
      start = Buffer.concat([last.key, Buffer.of(0)]); // the smallest key after it
      await new Promise<void>((done) => {
        setImmediate(done); // a tenant of a million records must not hold up the mail
      });
    }
  }

  #page(start: Buffer, prefix: Buffer, part: StorePart, transaction?: Transaction): StoreEntry[] {
    try {
      this.#mustBeOpen();
      const page: StoreEntry[] = [];
      for (const { key, value } of this.#parts[part].getRange({ start, limit: SCAN_PAGE, ...(transaction !== undefined && { transaction }) })) {
        // Copies: the octets LMDB hands out are valid only until the next read.
        const copied = Buffer.from(key);
        if (!copied.subarray(0, prefix.length).equals(prefix)) break;
        page.push({ key: copied, value: Buffer.from(value) });
      }
      return page;
    } catch (cause) {
      throw storeError('read', cause);
    }
  }

  async commit(keys: readonly Buffer[], decide: (values: readonly (Buffer | undefined)[]) => readonly StoreWrite[]): Promise<void> {
    try {
      this.#mustBeOpen();
      const { state } = this.#parts;
      // Synchronous inside: LMDB does not roll back when a callback throws, so all is decided before the first write.
      await this.#root.transaction(() => {
        const writes = decide(keys.map((key) => copy(state.getBinaryFast(key))));
        // In key order a batch touches each page once.
        for (const { part, key, value } of [...writes].sort((a, b) => a.key.compare(b.key))) {
          // The promises are the transaction's own: they settle with the one that is awaited.
          if (value === undefined) void this.#parts[part].remove(key);
          else void this.#parts[part].put(key, value);
        }
      });
      await this.#root.flushed;
    } catch (cause) {
      throw storeError('write', cause);
    }
  }

  size(part: StorePart): { readonly records: number; readonly bytes: number } {
    const stats = this.#parts[part].getStats() as Readonly<Record<string, number>>;
    const pages = (stats['treeBranchPageCount'] ?? 0) + (stats['treeLeafPageCount'] ?? 0) + (stats['overflowPages'] ?? 0);
    return { records: stats['entryCount'] ?? 0, bytes: pages * (stats['pageSize'] ?? 4096) };
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#root.close();
  }

  #mustBeOpen(): void {
    if (this.#closed) throw new Error('the ledger is closed');
  }
}

/** The fast read hands out one shared buffer, longer than its `length` says and overwritten by the next read. */
function copy(octets: Buffer | undefined): Buffer | undefined {
  if (octets === undefined) return undefined;
  const { length } = octets;
  const copied = Buffer.allocUnsafe(length);
  octets.copy(copied, 0, 0, length);
  return copied;
}

function storeError(what: 'read' | 'write', cause: unknown): MailError {
  if (cause instanceof MailError) return cause;
  // The errno comes by a promise of its own, which nobody else would handle.
  if (cause instanceof Error && 'commitError' in cause && cause.commitError instanceof Promise) cause.commitError.catch(() => undefined);
  return new MailError('E_STORE', `ledger ${what}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
}
