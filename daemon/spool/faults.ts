// What a failing disk looks like from here: turns errors of files and of LMDB into E_SPOOL_FULL or
// E_STORE, and keeps a failed LMDB commit from ending the process. lmdb rejects one promise of its own
// for each failed commit that no caller can reach; Node would exit for it.
import { MailError, isMailError } from '../mail/index.ts';

const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);
const FULL_TEXT = /no space left|disk quota|file too large|map_?full/i;
// lmdb tells the cause on a second promise, which is settled with the same callback or not at all.
const CAUSE_WAIT_MS = 200;

/** The error as one of the house: E_SPOOL_FULL when the disk is full, else E_STORE. */
export function storeError(cause: unknown): MailError {
  if (isMailError(cause)) return cause;
  const text = cause instanceof Error ? cause.message : String(cause);
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
  return new MailError(FULL.has(code) || FULL_TEXT.test(text) ? 'E_SPOOL_FULL' : 'E_STORE', `spool: ${text}`, { cause });
}

/** Why a commit failed: the native error behind lmdb's "Commit failed". */
export async function commitCause(error: unknown): Promise<unknown> {
  if (!(error instanceof Error && 'commitError' in error && error.commitError instanceof Promise)) return error;
  const told = causeOf(error, error.commitError);
  const silence = new Promise<unknown>((resolve) => {
    setTimeout(resolve, CAUSE_WAIT_MS, error).unref();
  });
  return Promise.race([told, silence]);
}

async function causeOf(error: Error, commit: Promise<unknown>): Promise<unknown> {
  try {
    await commit;
    return error;
  } catch (cause) {
    return cause;
  }
}

/** True for the rejections that lmdb raises beside the one its caller sees. */
export function isFailedCommit(reason: unknown): boolean {
  if (!(reason instanceof Error)) return false;
  return 'commitError' in reason || reason.message.startsWith('Commit failed') || ('code' in reason && typeof reason.code === 'number' && FULL_TEXT.test(reason.message))
    || (/node_modules\/lmdb\/|lmdbError/.test(reason.stack ?? '') && /error|failed|space|large/i.test(reason.message));
}

let watchers = 0;

function judgeRejection(reason: unknown): void {
  if (isFailedCommit(reason)) return; // the caller of the commit has been told
  // Ours is the only listener: Node's own rule (exit on an unhandled rejection) must still hold.
  if (process.listenerCount('unhandledRejection') === 1) throw reason;
}

/** Keeps failed commits from ending the process while at least one caller has not called the returned function. */
export function surviveFailedCommits(): () => void {
  if (watchers++ === 0) process.on('unhandledRejection', judgeRejection);
  let done = false;
  return () => {
    if (done) return;
    done = true;
    if (--watchers === 0) process.off('unhandledRejection', judgeRejection);
  };
}
