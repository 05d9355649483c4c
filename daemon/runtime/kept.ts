// A small state that outlives a restart: one JSON file, sealed under the house's own key and bound to its name,
// written whole beside its old self and renamed over it. It is a convenience and no record: what cannot be
// read is told and left behind, what cannot be written is told, and the process goes on with what it has in memory.
import type { KeyObject } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { seal, unseal } from './keys.ts';
import type { Log } from './log.ts';

/** A state and the way to keep its next. */
export interface Kept<State> {
  /** What was kept last; undefined: nothing, or nothing that can be read. */
  readonly state: State | undefined;
  keep(state: State): void;
}

/** Opens the file, which only its owner may read. */
export function openKept<State>(file: string, key: KeyObject, log: Log): Kept<State> {
  return {
    state: read<State>(file, key, log),
    keep(state) {
      try {
        // Synced before it takes the old one's place, or a power cut could leave neither.
        writeFileSync(`${file}.new`, seal(key, Buffer.from(JSON.stringify(state)), basename(file)), { mode: 0o600, flush: true });
        renameSync(`${file}.new`, file);
      } catch (error) {
        log.error({ file, error: String(error) }, 'a state could not be kept; it is lost with a restart');
      }
    },
  };
}

function read<State>(file: string, key: KeyObject, log: Log): State | undefined {
  try {
    const clear = unseal(key, readFileSync(file), basename(file));
    if (clear === undefined) throw new Error('it does not match its seal');
    return JSON.parse(clear.toString()) as State;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    log.warn({ file, error: String(error) }, 'a kept state cannot be read and is begun anew');
    return undefined;
  }
}
