// What the ledger needs of a database, and its LMDB form in <dir>/ledger. Callers may rely on: commit()
// resolves only when every change is on disk, all of a commit is there or nothing of it, and a read
// begun after it resolved sees it. A store that cannot answer throws MailError E_STORE; it never
// pretends that a record is absent.
import { join } from 'node:path';
import type { RootDatabase } from 'lmdb';
import { MailError } from '../mail/index.ts';
import { openLmdb } from './lmdb.ts';

/** One record's change, decided from what stands there at that moment. `to` must be pure and quick. */
export interface StoreChange {
  readonly key: Buffer;
  /** The value after; undefined removes the record, the same Buffer leaves it alone. */
  readonly to: (before: Buffer | undefined) => Buffer | undefined;
}

export interface StoreEntry {
  readonly key: Buffer;
  readonly value: Buffer;
}

/** All calls throw (or reject with) MailError E_STORE when the store does not answer. */
export interface LedgerStore {
  /** The values of these keys, in their order, of one moment. */
  getMany(keys: readonly Buffer[]): Promise<readonly (Buffer | undefined)[]>;
  /** Every record whose key begins with `prefix`, in key order; what changes meanwhile may or may not show. */
  scan(prefix: Buffer): AsyncIterable<StoreEntry>;
  /** Applies the changes in order, atomically and durably; a later one sees an earlier one's result. */
  commit(changes: readonly StoreChange[]): Promise<void>;
  close(): Promise<void>;
}

/** Opens (or makes) the ledger's environment in `<dir>/ledger`. @throws MailError E_STORE */
export function openLedgerStore(dir: string): LedgerStore {
  return new LmdbLedgerStore(openLmdb(join(dir, 'ledger')));
}

// A scan holds no read transaction between its pages: a reader that sleeps keeps every freed page alive.
const SCAN_PAGE = 500;

class LmdbLedgerStore implements LedgerStore {
  readonly #db: RootDatabase<Buffer, Buffer>;
  #closed = false;

  constructor(db: RootDatabase<Buffer, Buffer>) {
    this.#db = db;
  }

  // Not an async function: with four keys the promise machinery would cost as much as the reads.
  getMany(keys: readonly Buffer[]): Promise<readonly (Buffer | undefined)[]> {
    try {
      this.#mustBeOpen();
      const values: (Buffer | undefined)[] = [];
      for (const key of keys) values.push(this.#db.get(key));
      return Promise.resolve(values);
    } catch (cause) {
      return Promise.reject(storeError('read', cause));
    }
  }

  async *scan(prefix: Buffer): AsyncGenerator<StoreEntry> {
    let start = prefix;
    for (;;) {
      const page = this.#page(start, prefix);
      yield* page;
      const last = page.at(-1);
      if (page.length < SCAN_PAGE || last === undefined) return;
      start = Buffer.concat([last.key, Buffer.of(0)]); // the smallest key after it
      await new Promise<void>((done) => {
        setImmediate(done); // a tenant of a million records must not hold up the mail
      });
    }
  }

  #page(start: Buffer, prefix: Buffer): StoreEntry[] {
    try {
      this.#mustBeOpen();
      const page: StoreEntry[] = [];
      for (const { key, value } of this.#db.getRange({ start, limit: SCAN_PAGE })) {
        // Copies: the octets LMDB hands out are valid only until the next read.
        const copy = Buffer.from(key);
        if (!copy.subarray(0, prefix.length).equals(prefix)) break;
        page.push({ key: copy, value: Buffer.from(value) });
      }
      return page;
    } catch (cause) {
      throw storeError('read', cause);
    }
  }

  async commit(changes: readonly StoreChange[]): Promise<void> {
    try {
      this.#mustBeOpen();
      await this.#db.transaction(() => this.#apply(changes));
      await this.#db.flushed;
    } catch (cause) {
      throw storeError('write', cause);
    }
  }

  /**
   * Inside the transaction, and synchronous for that reason. Everything is decided before the first
   * write: LMDB does not roll back when a callback throws.
   */
  #apply(changes: readonly StoreChange[]): void {
    const after = new Map<string, { readonly key: Buffer; readonly before: Buffer | undefined; value: Buffer | undefined }>();
    for (const { key, to } of changes) {
      const name = key.toString('latin1');
      const known = after.get(name);
      if (known !== undefined) {
        known.value = to(known.value);
        continue;
      }
      const before = this.#db.get(key);
      after.set(name, { key, before, value: to(before) });
    }
    // In key order a batch touches each page once.
    const sorted = [...after.values()].sort((a, b) => a.key.compare(b.key));
    for (const { key, before, value } of sorted) {
      if (value === before) continue;
      // The promises are the transaction's own: they settle with the one that commit() awaits.
      if (value === undefined) void this.#db.remove(key);
      else void this.#db.put(key, value);
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#db.close();
  }

  #mustBeOpen(): void {
    if (this.#closed) throw new Error('the ledger is closed');
  }
}

function storeError(what: 'read' | 'write', cause: unknown): MailError {
  if (cause instanceof MailError) return cause;
  // The errno comes by a promise of its own, which nobody else would handle.
  if (cause instanceof Error && 'commitError' in cause && cause.commitError instanceof Promise) cause.commitError.catch(() => undefined);
  return new MailError('E_STORE', `ledger ${what}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
}
