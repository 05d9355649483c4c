// The settings in force. A change on disk is read whole, checked whole, and then one frozen reference
// is swapped; a broken tree changes nothing and is reported. Keys of postern.yaml need a restart: a
// change of one is named in a warning and the old values stay in the new snapshot. Folders are watched
// rather than files, because a watched file goes deaf once it has been replaced by rename.
import { existsSync, realpathSync, watch, type FSWatcher } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { MailError } from '../mail/index.ts';
import type { Clock, Log } from '../runtime/index.ts';
import { changedKeys } from './describe.ts';
import { loadSettings, withServerOf, writtenValues, type Loaded, type LoadOptions } from './load.ts';
import { formatProblem, type Problem } from './problem.ts';
import type { Settings } from './settings.ts';

// An editor writes in several steps and a package manager many files; a fifth of a second covers one burst.
const SETTLE_MS = 200;

/** What a reload came to. `needRestart` names changed keys that were not applied. */
export type Reloaded =
  | { readonly ok: true; readonly hash: string; readonly changed: boolean; readonly needRestart: readonly string[]; readonly warnings: readonly Problem[] }
  | { readonly ok: false; readonly problems: readonly Problem[] };

export interface OpenOptions {
  readonly clock: Clock;
  readonly log: Log;
  /** Called after every successful reload, also one that changed no text: key files may be new. */
  readonly onReload?: (settings: Settings, result: Reloaded & { readonly ok: true }) => void;
  /** Faults that only show beside what is on record elsewhere; asked for each tree that has none of its own. */
  readonly check?: (settings: Settings) => readonly Problem[];
  /** Called when the tree on disk is broken; the old settings are still in force. */
  readonly onFailed?: (problems: readonly Problem[]) => void;
  readonly load?: LoadOptions;
}

/** The settings in force and the way to renew them. */
export interface LiveSettings {
  /** The snapshot of this moment; ask anew for each message. */
  current(): Settings;
  /** Reads the tree again (SIGHUP). A broken tree is a value, not an error. */
  reload(): Promise<Reloaded>;
  /** Reloads by itself from now on, 200 ms after the last change on disk. */
  watch(): void;
  close(): void;
}

/** Opens the tree at `root`. @throws MailError E_CONFIG with every problem in its message */
export function openSettings(root: string, options: OpenOptions): LiveSettings {
  const first = loadSettings(root, options.load);
  if (!first.ok) {
    throw new MailError('E_CONFIG', `${first.problems.length} problem${first.problems.length === 1 ? '' : 's'} in ${resolve(root)}:\n${first.problems.map(formatProblem).join('\n')}`);
  }
  for (const warning of first.warnings) options.log.warn({}, formatProblem(warning));
  return new LiveTree(root, options, first);
}

class LiveTree implements LiveSettings {
  readonly #root: string;
  readonly #options: OpenOptions;
  #current: Settings;
  /** The last reading, good or bad: what is seen again is not reported again. */
  #seen: string;
  #folders: readonly string[];
  readonly #watchers = new Map<string, FSWatcher>();
  #cancel: (() => void) | undefined;
  #watching = false;

  constructor(root: string, options: OpenOptions, first: Loaded & { readonly ok: true }) {
    this.#root = resolve(root);
    this.#options = options;
    this.#current = first.settings;
    this.#seen = fingerprint(first);
    this.#folders = first.folders;
  }

  current(): Settings {
    return this.#current;
  }

  reload(): Promise<Reloaded> {
    return Promise.resolve(this.#apply(loadSettings(this.#root, this.#options.load)));
  }

  watch(): void {
    this.#watching = true;
    this.#arm();
    // What changed between opening and watching is picked up as well.
    this.#changed();
  }

  close(): void {
    this.#watching = false;
    this.#cancel?.();
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
  }

  #apply(loaded: Loaded): Reloaded {
    const { log, onReload, onFailed } = this.#options;
    this.#seen = fingerprint(loaded);
    this.#folders = loaded.folders;
    const problems = loaded.ok ? this.#options.check?.(loaded.settings) ?? [] : loaded.problems;
    if (!loaded.ok || problems.length > 0) {
      log.error({ problems: problems.map(formatProblem) }, 'the new configuration is broken; the old one stays in force');
      onFailed?.(problems);
      return { ok: false, problems };
    }
    const old = this.#current;
    const same = isDeepStrictEqual(loaded.settings.server, old.server);
    const needRestart = same ? [] : changedKeys('postern.yaml', writtenValues(old).get('postern.yaml'), writtenValues(loaded.settings).get('postern.yaml'));
    if (needRestart.length > 0) log.warn({ keys: needRestart }, 'these keys of postern.yaml take effect at the next restart');
    for (const warning of loaded.warnings) log.warn({}, formatProblem(warning));
    const settings = withServerOf(loaded.settings, old);
    this.#current = settings;
    const result = { ok: true, hash: settings.hash, changed: settings.hash !== old.hash, needRestart, warnings: loaded.warnings } as const;
    onReload?.(settings, result);
    return result;
  }

  #changed(): void {
    if (!this.#watching) return;
    this.#cancel?.();
    this.#cancel = this.#options.clock.after(SETTLE_MS, () => this.#settled());
  }

  #settled(): void {
    const loaded = loadSettings(this.#root, this.#options.load);
    if (fingerprint(loaded) !== this.#seen) this.#apply(loaded);
    // A folder may be another one now (a swapped link): watch that, and look once more, because what
    // happened in it before the watch began went unseen.
    if (this.#arm()) this.#changed();
  }

  /** Watches every folder that counts, under its real name; true when one was not watched before. */
  #arm(): boolean {
    const wanted = new Set<string>();
    for (const folder of this.#folders) if (existsSync(folder)) wanted.add(realpathSync(folder));
    let fresh = false;
    for (const [folder, watcher] of this.#watchers) {
      if (wanted.has(folder) || folder === dirname(this.#root)) continue;
      watcher.close();
      this.#watchers.delete(folder);
    }
    for (const folder of wanted) fresh = this.#watchFolder(folder, () => true) || fresh;
    // The tree itself may be a link that is swapped; of its parent only that name concerns us.
    this.#watchFolder(dirname(this.#root), (name) => name === null || name === basename(this.#root));
    return fresh;
  }

  #watchFolder(folder: string, concerns: (name: string | null) => boolean): boolean {
    if (this.#watchers.has(folder)) return false;
    try {
      const watcher = watch(folder, { persistent: false }, (_, name) => {
        if (concerns(name)) this.#changed();
      });
      watcher.on('error', () => {
        // The folder is gone; forget it, so that it is watched again when it is back.
        watcher.close();
        this.#watchers.delete(folder);
      });
      this.#watchers.set(folder, watcher);
      return true;
    } catch (error) {
      this.#options.log.warn({ folder, error: String(error) }, 'a folder cannot be watched; changes in it need a reload by hand');
      return false;
    }
  }
}

const fingerprint = (loaded: Loaded): string => `${loaded.hash}\n${loaded.ok ? '' : loaded.problems.map(formatProblem).join('\n')}`;
