// The secrets that make people forgettable: for each consent record one of 16 octets for what is known
// now (`person`) and one for how it came about (`evidence`), in flat files <keys>/people/<tenant>.person
// and .evidence, slot after slot. Callers may rely on: a slot is on disk before its number is given out,
// is never given out twice, and destroy() has overwritten it with zeros on disk when it resolves; a slot
// of zeros, or one the file does not have, reads as undefined. Secrets are not kept in memory: a decision
// reads its one from the page cache (under 1 us), so that ten million people cost no memory of ours;
// evidence is read a block at a time, because a log is read in the order it was written in. Slots that an
// import made ready and did not need when the process ended stay empty for ever: 32 octets each.
import { closeSync, fstatSync, mkdirSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import { fdatasync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MailError } from '../mail/index.ts';
import { randomOctets } from '../runtime/index.ts';
import { SECRET_OCTETS } from './veil.ts';

const syncData = promisify(fdatasync);
// Zeros are written over a whole tenant in blocks of 64 KiB.
const BLOCK_SLOTS = 4_096;
// 8 KiB: reading them costs no more than reading 16 octets.
const EVIDENCE_SLOTS = 512;
// Who asks for this many asks again soon; eight times as many are made ready with one sync.
const MANY_SLOTS = 500;
const READY_SLOTS = 8_192;

export type KeyClass = 'person' | 'evidence';

export interface NewSlot {
  readonly slot: number;
  readonly person: Buffer;
  readonly evidence: Buffer;
}

export interface PersonKeys {
  /** New slots with fresh secrets, durable when it resolves. */
  allocate(tenant: string, count: number): Promise<readonly NewSlot[]>;
  /** Takes back slots of allocate() on which no row relies. */
  giveBack(tenant: string, slots: readonly NewSlot[]): void;
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
  /** On disk, and given to nobody; the next one is the last. */
  ready: NewSlot[];
  /** The evidence secrets read last; empty when they may have changed. */
  readonly evidenceRead: { first: number; octets: Buffer };
}

const EMPTY = Buffer.alloc(0);
const NOTHING = Buffer.alloc(SECRET_OCTETS);

class FilePersonKeys implements PersonKeys {
  readonly #dir: string;
  readonly #tenants = new Map<string, Files>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  async allocate(tenant: string, count: number): Promise<readonly NewSlot[]> {
    const files = this.#open(tenant);
    const taken = files.ready.splice(Math.max(0, files.ready.length - count)).toReversed();
    const missing = count - taken.length;
    if (missing === 0) return taken;
    const made = await this.adopt(tenant, Array.from({ length: count < MANY_SLOTS ? missing : Math.max(missing, READY_SLOTS) }, freshSecrets));
    // Others may have refilled it while these were written.
    files.ready = [...files.ready, ...made.slice(missing).toReversed()];
    return [...taken, ...made.slice(0, missing)];
  }

  giveBack(tenant: string, slots: readonly NewSlot[]): void {
    const files = this.#tenants.get(tenant);
    // Of a tenant that was deleted meanwhile, and perhaps made anew, nothing comes back.
    if (files !== undefined) files.ready = [...files.ready, ...slots.filter(({ slot, person }) => this.person(tenant, slot)?.equals(person)).toReversed()];
  }

  async adopt(tenant: string, secrets: readonly { readonly person: Buffer; readonly evidence: Buffer }[]): Promise<readonly NewSlot[]> {
    if (secrets.length === 0) return [];
    const files = this.#open(tenant);
    files.evidenceRead.octets = EMPTY;
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
    return secrets.map((secret, i) => ({ slot: first + i, ...secret }));
  }

  person(tenant: string, slot: number): Buffer | undefined {
    const files = this.#tenants.get(tenant) ?? this.#open(tenant);
    const secret = Buffer.allocUnsafe(SECRET_OCTETS);
    const read = readSync(files.person, secret, 0, SECRET_OCTETS, slot * SECRET_OCTETS);
    // What was there when the file was opened is lost now, and not destroyed: nobody can tell what it said.
    if (read < SECRET_OCTETS && slot < files.slots) throw new MailError('E_KEY_UNREADABLE', `keys/people/${tenant}.person was cut off: restore it from its latest copy`);
    // What a torn write left of a slot is no secret.
    return read < SECRET_OCTETS || secret.equals(NOTHING) ? undefined : secret;
  }

  evidence(tenant: string, slot: number): Buffer | undefined {
    const files = this.#tenants.get(tenant) ?? this.#open(tenant);
    const read = files.evidenceRead;
    const at = (slot % EVIDENCE_SLOTS) * SECRET_OCTETS;
    if (read.first !== slot - (slot % EVIDENCE_SLOTS) || at >= read.octets.length) {
      const octets = Buffer.allocUnsafe(EVIDENCE_SLOTS * SECRET_OCTETS);
      read.first = slot - (slot % EVIDENCE_SLOTS);
      read.octets = octets.subarray(0, readSync(files.evidence, octets, 0, octets.length, read.first * SECRET_OCTETS));
    }
    // A copy: the block is read over.
    const secret = Buffer.from(read.octets.subarray(at, at + SECRET_OCTETS));
    return secret.length < SECRET_OCTETS || secret.equals(NOTHING) ? undefined : secret;
  }

  async destroy(tenant: string, slots: readonly number[], classes: readonly KeyClass[]): Promise<void> {
    const files = this.#open(tenant);
    files.evidenceRead.octets = EMPTY;
    for (const name of classes) {
      for (const slot of slots) if (slot < files.slots) writeSync(files[name], NOTHING, 0, SECRET_OCTETS, slot * SECRET_OCTETS);
      await syncData(files[name]);
    }
    files.evidenceRead.octets = EMPTY;
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

  #open(tenant: string): Files {
    const known = this.#tenants.get(tenant);
    if (known !== undefined) return known;
    try {
      const open = (name: KeyClass): number => openSync(this.#file(tenant, name), 'a+', 0o600);
      // Not append mode for writing: slots are overwritten in place. `a+` only makes the file where it is missing.
      for (const name of ['person', 'evidence'] as const) closeSync(open(name));
      const files: Files = { person: openSync(this.#file(tenant, 'person'), 'r+'), evidence: openSync(this.#file(tenant, 'evidence'), 'r+'), slots: 0, ready: [], evidenceRead: { first: 0, octets: EMPTY } };
      // The longer of the two: a crash between two writes leaves one behind, and no slot is given out twice.
      files.slots = Math.max(...[files.person, files.evidence].map((fd) => Math.ceil(fstatSync(fd).size / SECRET_OCTETS)));
      this.#tenants.set(tenant, files);
      return files;
    } catch (cause) {
      throw new MailError('E_KEY_UNREADABLE', `the people's keys of ${tenant}: ${String(cause)}`, { cause });
    }
  }
}

function freshSecrets(): { readonly person: Buffer; readonly evidence: Buffer } {
  return { person: randomOctets(SECRET_OCTETS), evidence: randomOctets(SECRET_OCTETS) };
}
