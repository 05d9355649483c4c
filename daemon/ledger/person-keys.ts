// The secrets that make people forgettable: for each consent record one of 16 octets for what is known
// now (`person`) and one for how it came about (`evidence`), in flat files <keys>/people/<tenant>.person
// and .evidence, slot after slot. Callers may rely on: a slot is on disk before its number is given out,
// is never given out twice, and destroy() has overwritten it with zeros on disk when it resolves; a slot
// of zeros, or one the file does not have, reads as undefined. The person secrets are kept in memory,
// 16 octets each, because every decision needs one; evidence is read from the file.
import { closeSync, fstatSync, mkdirSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import { fdatasync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MailError } from '../mail/index.ts';
import { randomOctets } from '../runtime/index.ts';
import { SECRET_OCTETS } from './veil.ts';

const syncData = promisify(fdatasync);
// Secrets are held in blocks of 1 MiB, so that a growing tenant never has its memory copied.
const BLOCK_SLOTS = 65_536;

export type KeyClass = 'person' | 'evidence';

export interface NewSlot {
  readonly slot: number;
  readonly person: Buffer;
  readonly evidence: Buffer;
}

export interface PersonKeys {
  /** New slots with fresh secrets, durable when it resolves. */
  allocate(tenant: string, count: number): Promise<readonly NewSlot[]>;
  /** Takes secrets over from an export, as new slots; zeros stay zeros. */
  adopt(tenant: string, secrets: readonly { readonly person: Buffer; readonly evidence: Buffer }[]): Promise<readonly NewSlot[]>;
  person(tenant: string, slot: number): Buffer | undefined;
  evidence(tenant: string, slot: number): Buffer | undefined;
  destroy(tenant: string, slots: readonly number[], classes: readonly KeyClass[]): Promise<void>;
  /** How many slots there are, destroyed ones included. */
  slots(tenant: string): number;
  /** Destroys all slots of a tenant and removes its files. */
  destroyAll(tenant: string): Promise<void>;
  close(): void;
}

/** Opens the files in `dir`, made 0700 where missing. @throws MailError E_KEY_UNREADABLE */
export function openPersonKeys(dir: string): PersonKeys {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return new FilePersonKeys(dir);
}

interface Files {
  readonly person: number;
  readonly evidence: number;
  slots: number;
  readonly blocks: Buffer[];
}

const NOTHING = Buffer.alloc(SECRET_OCTETS);

class FilePersonKeys implements PersonKeys {
  readonly #dir: string;
  readonly #tenants = new Map<string, Files>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  allocate(tenant: string, count: number): Promise<readonly NewSlot[]> {
    return this.adopt(tenant, Array.from({ length: count }, () => ({ person: randomOctets(SECRET_OCTETS), evidence: randomOctets(SECRET_OCTETS) })));
  }

  async adopt(tenant: string, secrets: readonly { readonly person: Buffer; readonly evidence: Buffer }[]): Promise<readonly NewSlot[]> {
    if (secrets.length === 0) return [];
    const files = this.#open(tenant);
    // The numbers are taken at once, so that two callers never share a slot; what a failure leaves is a gap.
    const first = files.slots;
    files.slots += secrets.length;
    try {
      for (const name of ['person', 'evidence'] as const) {
        writeSync(files[name], Buffer.concat(secrets.map((secret) => secret[name])), 0, undefined, first * SECRET_OCTETS);
      }
      await Promise.all([syncData(files.person), syncData(files.evidence)]);
    } catch (cause) {
      throw new MailError('E_STORE', `the people's keys of ${tenant} cannot be written: ${String(cause)}`, { cause });
    }
    return secrets.map((secret, i) => {
      this.#remember(files, first + i, secret.person);
      return { slot: first + i, ...secret };
    });
  }

  person(tenant: string, slot: number): Buffer | undefined {
    const files = this.#tenants.get(tenant) ?? this.#open(tenant);
    const at = (slot % BLOCK_SLOTS) * SECRET_OCTETS;
    const secret = files.blocks[Math.floor(slot / BLOCK_SLOTS)]?.subarray(at, at + SECRET_OCTETS);
    return secret === undefined || secret.equals(NOTHING) ? undefined : secret;
  }

  evidence(tenant: string, slot: number): Buffer | undefined {
    const secret = Buffer.alloc(SECRET_OCTETS);
    readSync(this.#open(tenant).evidence, secret, 0, SECRET_OCTETS, slot * SECRET_OCTETS);
    return secret.equals(NOTHING) ? undefined : secret;
  }

  async destroy(tenant: string, slots: readonly number[], classes: readonly KeyClass[]): Promise<void> {
    const files = this.#open(tenant);
    for (const name of classes) {
      for (const slot of slots) if (slot < files.slots) writeSync(files[name], NOTHING, 0, SECRET_OCTETS, slot * SECRET_OCTETS);
      await syncData(files[name]);
    }
    if (classes.includes('person')) for (const slot of slots) this.#remember(files, slot, NOTHING);
  }

  slots(tenant: string): number {
    return this.#open(tenant).slots;
  }

  async destroyAll(tenant: string): Promise<void> {
    const files = this.#open(tenant);
    for (const name of ['person', 'evidence'] as const) {
      for (let slot = 0; slot < files.slots; slot += BLOCK_SLOTS) {
        writeSync(files[name], Buffer.alloc(Math.min(BLOCK_SLOTS, files.slots - slot) * SECRET_OCTETS), 0, undefined, slot * SECRET_OCTETS);
      }
      await syncData(files[name]);
      closeSync(files[name]);
      unlinkSync(this.#file(tenant, name));
    }
    this.#tenants.delete(tenant);
  }

  close(): void {
    for (const { person, evidence } of this.#tenants.values()) {
      closeSync(person);
      closeSync(evidence);
    }
    this.#tenants.clear();
  }

  #file(tenant: string, name: KeyClass): string {
    return join(this.#dir, `${tenant}.${name}`);
  }

  #remember(files: Files, slot: number, secret: Buffer): void {
    const n = Math.floor(slot / BLOCK_SLOTS);
    for (let i = files.blocks.length; i <= n; i++) files.blocks.push(Buffer.alloc(BLOCK_SLOTS * SECRET_OCTETS));
    files.blocks[n]?.set(secret, (slot % BLOCK_SLOTS) * SECRET_OCTETS);
  }

  #open(tenant: string): Files {
    const known = this.#tenants.get(tenant);
    if (known !== undefined) return known;
    try {
      const open = (name: KeyClass): number => openSync(this.#file(tenant, name), 'a+', 0o600);
      // Not append mode for writing: slots are overwritten in place. `a+` only makes the file where it is missing.
      for (const name of ['person', 'evidence'] as const) closeSync(open(name));
      const files: Files = { person: openSync(this.#file(tenant, 'person'), 'r+'), evidence: openSync(this.#file(tenant, 'evidence'), 'r+'), slots: 0, blocks: [] };
      // The longer of the two: a crash between two writes leaves one behind, and no slot is given out twice.
      files.slots = Math.max(...[files.person, files.evidence].map((fd) => Math.ceil(fstatSync(fd).size / SECRET_OCTETS)));
      for (let slot = 0; slot < files.slots; slot += BLOCK_SLOTS) {
        const block = Buffer.alloc(BLOCK_SLOTS * SECRET_OCTETS);
        readSync(files.person, block, 0, block.length, slot * SECRET_OCTETS);
        files.blocks.push(block);
      }
      this.#tenants.set(tenant, files);
      return files;
    } catch (cause) {
      throw new MailError('E_KEY_UNREADABLE', `the people's keys of ${tenant}: ${String(cause)}`, { cause });
    }
  }
}
