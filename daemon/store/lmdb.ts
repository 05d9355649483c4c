// LMDB environments, opened the one way that is safe for mail. Callers may rely on: overlapping sync is
// off (the classic commit: data, sync, meta page, sync), freed memory is cleared before it reaches the
// disk, and keys and values are plain octets. Two traps are left to the caller: never await inside a
// transaction callback (other writes would slip into it and resolve before they are on disk), and await
// both the write and `flushed`, for only the second promises durability. A file that was cut short is
// E_STORE here, before the first read: LMDB maps it, and a look behind its end would kill the process.
import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, mkdirSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { open, type RootDatabase } from 'lmdb';
import { MailError } from '../mail/index.ts';

export interface LmdbOptions {
  /** Named databases inside the environment; 0 for the root alone. */
  readonly databases?: number;
}

/**
 * Opens the environment in the folder `path`, made 0700 where missing.
 * @throws MailError E_STORE when the folder or the file cannot be used
 */
export function openLmdb(path: string, options: LmdbOptions = {}): RootDatabase<Buffer, Buffer> {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    mustBeWhole(path);
    return open<Buffer, Buffer>(path, {
      noSubdir: false,
      encoding: 'binary',
      keyEncoding: 'binary',
      overlappingSync: false,
      noMemInit: false,
      maxDbs: options.databases ?? 0,
    });
  } catch (cause) {
    throw new MailError('E_STORE', `${path}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

// The two meta pages of LMDB's file: magic, size of a page, last page in use, transaction.
const MAGIC = 0xbeefc0de;
const META = { magic: 24, pageSize: 48, lastPage: 144, transaction: 152, octets: 160 } as const;

/** @throws Error when the file is shorter than what stands in it */
function mustBeWhole(path: string): void {
  let fd: number;
  try {
    fd = openSync(join(path, 'data.mdb'), 'r');
  } catch (cause) {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return; // a new store
    throw cause;
  }
  try {
    const { size } = fstatSync(fd);
    const page = Buffer.alloc(META.octets);
    // LMDB would take an empty file for a new store, and all that stood in it for absent.
    if (readSync(fd, page, 0, META.octets, 0) < META.octets) throw new Error('data.mdb is cut off in its first page: restore it, or, where nothing was ever stored, remove it');
    if (page.readUInt32LE(META.magic) !== MAGIC) return; // LMDB's own words for it are good
    const pageSize = page.readUInt32LE(META.pageSize);
    const second = Buffer.alloc(META.octets);
    readSync(fd, second, 0, META.octets, pageSize);
    const newest = second.readBigUInt64LE(META.transaction) > page.readBigUInt64LE(META.transaction) ? second : page;
    const needed = (Number(newest.readBigUInt64LE(META.lastPage)) + 1) * pageSize;
    // A page that was free again before it was written may be the last: then nothing lies behind the end.
    if (size < needed && !readsToItsEnd(path)) throw new Error(`data.mdb has ${size} octets of ${needed}: it was cut off; restore it from a backup`);
  } finally {
    closeSync(fd);
  }
}

/** Reads every record in a process of its own, which a missing page kills in our place. */
function readsToItsEnd(path: string): boolean {
  const script = `
    import { open } from ${JSON.stringify(import.meta.resolve('lmdb'))};
    const form = { encoding: 'binary', keyEncoding: 'binary' };
    const root = open(process.argv[1], { ...form, noSubdir: false, readOnly: true, maxDbs: 16 });
    // All names first: a cursor does not outlive what opens behind it.
    for (const name of [...root.getKeys()]) for (const { value } of root.openDB({ ...form, name: Buffer.from(name).toString() }).getRange()) value.length;
    console.log('whole');`;
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script, path], { encoding: 'utf8' });
  return stdout.includes('whole');
}

/**
 * True for the rejections that a failed commit (disk full, I/O error) raises beside the one its writer
 * catches. The process must not die of them: whoever wrote has been told, and the data is unharmed.
 */
export function isLmdbCommitError(error: unknown): boolean {
  if (!(error instanceof Error) || error.name !== 'Error') return false;
  if ('commitError' in error) return true;
  // LMDB's own errors carry the errno as a number where Node's carry its name; the text says which they are.
  return 'code' in error && typeof error.code === 'number' && (error.code < 0 || /Attempting to write page|MDB_|[Nn]o space|[Ii]nput\/output|[Qq]uota|too large/.test(error.message));
}
