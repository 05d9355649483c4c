// The files of a tree: reading them with an overlay (a change that is checked before it is written),
// resolving what keys name, and looking at the modes of private keys. Remembers which folders were
// looked into, so that the watcher can watch them, and hashes what was read.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, relative, resolve } from 'node:path';

const SHIPPED = join(import.meta.dirname, '../../config');

/** One reading of a tree. */
export class TreeFiles {
  readonly root: string;
  readonly folders = new Set<string>();
  /** Credentials that could not be looked at, because this is not the service. */
  readonly unseen = new Set<string>();
  readonly #overlay: ReadonlyMap<string, Buffer>;
  readonly #credentialsDir: string;
  readonly #hash = createHash('sha256');

  constructor(root: string, credentialsDir: string, overlay: ReadonlyMap<string, Buffer>) {
    this.root = resolve(root);
    this.#credentialsDir = credentialsDir;
    this.#overlay = overlay;
    this.folders.add(this.root);
  }

  /** Octets of a file inside the tree, or why it cannot be read. */
  read(file: string): Buffer | string {
    this.folders.add(dirname(join(this.root, file)));
    try {
      const bytes = this.#overlay.get(file) ?? readFileSync(join(this.root, file));
      this.#hash.update(`${file}\0${bytes.length}\0`).update(bytes);
      return bytes;
    } catch (error) {
      return why(error);
    }
  }

  /** Octets of a file of the configuration this package ships, for a tree that has none, or why they cannot be read. */
  shipped(file: string): Buffer | string {
    try {
      const bytes = readFileSync(join(SHIPPED, file));
      this.#hash.update(`shipped ${file}\0${bytes.length}\0`).update(bytes);
      return bytes;
    } catch (error) {
      return why(error);
    }
  }

  /** File names in a folder of the tree, sorted; empty where it does not exist. */
  list(folder: string): string[] {
    this.folders.add(join(this.root, folder));
    try {
      const planned = [...this.#overlay.keys()].filter((file) => dirname(file) === folder).map((file) => basename(file));
      return [...new Set([...readdirSync(join(this.root, folder)), ...planned])].sort();
    } catch {
      return []; // a missing folder is a tree without tenants, which the caller reports
    }
  }

  /** Absolute name of what a key says: `credential:NAME`, an absolute name, or one relative to the root. */
  resolve(name: string): string {
    if (name.startsWith('credential:')) return join(this.#credentialsDir, name.slice('credential:'.length));
    return resolve(this.root, name);
  }

  /** True for a name that stays inside the tree. */
  inside(name: string): boolean {
    const path = relative(this.root, resolve(this.root, name));
    return !isAbsolute(name) && path !== '' && path !== '..' && !path.startsWith('../');
  }

  /** Why a key file cannot be used: '' when it can. Only looked at, never read. */
  faultOfKeyFile(name: string, isPrivate: boolean): string {
    if (name.startsWith('credential:')) {
      if (!/^credential:[A-Za-z0-9._-]{1,255}$/.test(name) || /^credential:\.+$/.test(name)) return 'expected the name of a credential after credential:';
      // Outside the service its credentials cannot be seen: that says nothing against the tree.
      if (!existsSync(this.#credentialsDir)) {
        this.unseen.add(name);
        return '';
      }
    }
    const path = this.resolve(name);
    if (this.inside(name)) this.folders.add(dirname(path));
    try {
      const stat = statSync(path);
      if (!stat.isFile()) return 'not a file';
      const open = stat.mode & 0o007;
      return isPrivate && open !== 0 ? `others may read it (mode ${(stat.mode & 0o777).toString(8)}); chmod 0600` : '';
    } catch (error) {
      return why(error);
    }
  }

  /** SHA-256 over everything read so far, hex. */
  hash(): string {
    return this.#hash.copy().digest('hex');
  }
}

function why(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (code === 'ENOENT') return 'no such file';
  if (code === 'EACCES') return 'permission denied';
  if (code === 'EISDIR' || code === 'ENOTDIR') return 'not a file';
  return String(code ?? error);
}
