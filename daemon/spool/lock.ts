// One process at a time in a spool. The lock is a file that names its owner: process id, the moment
// that process started and the boot it belongs to, so that a lock left by kill -9, by a power cut or by
// a container whose first process is always number 1 is known to be stale and is taken over. It appears
// whole (link of a finished draft) or not at all. A second opener gets E_STORE_LOCKED.
import { linkSync, readFileSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MailError } from '../mail/index.ts';
import { newId } from '../runtime/index.ts';

/**
 * Takes the lock of this directory; the returned function gives it back.
 * @throws MailError E_STORE_LOCKED while another living process, or another spool of this one, holds it
 */
export function takeLock(dir: string): () => void {
  const file = join(dir, 'lock');
  const mine = `${process.pid} ${startOf(process.pid) ?? 'unknown'}`;
  const draft = `${file}.${newId(Date.now())}`;
  writeFileSync(draft, mine, { mode: 0o600, flag: 'wx' });
  try {
    // Twice: a stale lock is moved away once, and then whoever links first has it.
    for (let attempt = 0; attempt < 2; attempt++) {
      if (linked(draft, file)) return () => unlinkSync(file);
      removeStale(file, `${draft}.stale`);
    }
    throw new MailError('E_STORE_LOCKED', `${dir} was taken by another process at this moment`);
  } finally {
    unlinkSync(draft);
  }
}

function linked(draft: string, file: string): boolean {
  try {
    linkSync(draft, file);
    return true;
  } catch (error) {
    if (isCode(error, 'EEXIST')) return false;
    throw error;
  }
}

function removeStale(file: string, aside: string): void {
  const owner = ownerOf(file);
  if (owner === undefined) return;
  refuseIfAlive(owner, file);
  try {
    renameSync(file, aside);
  } catch (error) {
    if (isCode(error, 'ENOENT')) return;
    throw error;
  }
  // Between reading and renaming another process may have replaced the stale lock by its own: give it back.
  const moved = ownerOf(aside) ?? '';
  if (moved !== owner) linked(aside, file);
  unlinkSync(aside);
  refuseIfAlive(moved, file);
}

function refuseIfAlive(owner: string, file: string): void {
  const [pid = '', ...started] = owner.split(' ');
  if (pid !== '' && startOf(Number(pid)) === started.join(' ')) throw new MailError('E_STORE_LOCKED', `process ${pid} holds ${file}`);
}

function ownerOf(file: string): string | undefined {
  try {
    return readFileSync(file, 'latin1');
  } catch (error) {
    if (isCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

/** Start time in clock ticks and boot id of a living process; undefined when there is none. */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The command name stands in parentheses and may hold spaces; the start time is the 20th field after it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // A zombie holds nothing any more.
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return `${fields[19] ?? ''} ${readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()}`;
  } catch (error) {
    if (isCode(error, 'ENOENT') || isCode(error, 'ESRCH')) return undefined;
    throw error;
  }
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
