// LMDB environments, opened the one way that is safe for mail. Callers may rely on: overlapping sync is
// off (the classic commit: data, sync, meta page, sync), freed memory is cleared before it reaches the
// disk, and keys and values are plain octets. Two traps are left to the caller: never await inside a
// transaction callback (other writes would slip into it and resolve before they are on disk), and await
// both the write and `flushed`, for only the second promises durability.
import { mkdirSync } from 'node:fs';
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
