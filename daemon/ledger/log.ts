// The tenant's log: an RFC 6962 Merkle tree over everything the ledger was told, so that nobody, we not
// excepted, can change what was said without it showing. Callers may rely on: a leaf is appended in the
// very transaction that changes the state; a leaf is a salted commitment, SHA-256(salt || payload), and
// the payload lies beside it under a veil, so that destroying a person's secret leaves a log that still
// verifies and says nothing of them; a checkpoint (C2SP tlog-checkpoint, Ed25519) follows within a second
// and is kept apart as well, so that a log that was cut back is noticed.
import { hash, type KeyObject } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MailError } from '../mail/index.ts';
import type { Clock, Keyring } from '../runtime/index.ts';
import type { LedgerStore, StoreWrite } from '../store/index.ts';
import { ed25519FromSeed, readCheckpoint, signCheckpoint, verifierKey, type Checkpoint } from './checkpoint.ts';
import { CompactRange, inclusionProof, leafHash, subtreeReader } from './merkle.ts';
import type { PersonKeys } from './person-keys.ts';
import { TABLE, entryKey, entryPrefix, rowKey, subtreeKey, tenantOctets } from './row-keys.ts';
import { SECRET_OCTETS, keyStream, veil } from './veil.ts';

/** One leaf with what it says; without `payload` where its key was destroyed. */
export interface LogEntry {
  readonly leaf: number;
  readonly commitment: Buffer;
  /** The secret's slot, where the entry is about a person. */
  readonly slot?: number;
  readonly payload?: string;
  /** 16 octets. */
  readonly salt?: Buffer;
}

/** A leaf with its proof, to be checked offline by `scripts/verify-receipt`. Binary members are base64. */
export interface Receipt {
  readonly format: 'postern-receipt/1';
  readonly leaf: number;
  readonly payload: string;
  readonly salt: string;
  readonly size: number;
  readonly proof: readonly string[];
  readonly checkpoint: string;
  readonly verifier_key: string;
}

export interface Verified {
  readonly ok: boolean;
  /** Leaves looked at. */
  readonly leaves: number;
  /** Of them, those whose payload could be opened and matched its commitment. */
  readonly opened: number;
  /** Those whose key was destroyed. */
  readonly erased: number;
  /** The first leaf that is wrong, where it is one leaf. */
  readonly firstBad?: number;
  readonly reason: string;
}

// version (1) · class (1) · slot (5) · commitment (32), then the veiled payload.
const HEAD_OCTETS = 39;
const COMMITMENT_AT = 7;
const VERSION = 1;
// Classes: 0 about no person, 1 about one, and a row whose payload was removed with its tenant.
const EMPTIED = 2;
export const SALT_OCTETS = 16;
/** Entries that are about no person, and suppressions, which outlive erasure: under the tenant's key alone. */
const NO_PERSON = Buffer.alloc(SECRET_OCTETS, 0xff);

/** A row of the log; the same whenever it is made of the same. `key` is the tenant's evidence key. */
export function encodeEntry(key: Buffer, leaf: number, payload: string, person?: { readonly slot: number; readonly evidence: Buffer }): Buffer {
  const octets = Buffer.byteLength(payload);
  const stream = keyStream(key, person?.evidence ?? NO_PERSON, leaf, SALT_OCTETS + octets);
  const salted = Buffer.allocUnsafe(SALT_OCTETS + octets);
  salted.write(stream, 0, SALT_OCTETS, 'binary');
  salted.write(payload, SALT_OCTETS);
  const value = Buffer.allocUnsafe(HEAD_OCTETS + octets);
  value[0] = VERSION;
  value[1] = person === undefined ? 0 : 1;
  value.writeUIntBE(person?.slot ?? 0, 2, 5);
  value.write(hash('sha256', salted, 'binary'), COMMITMENT_AT, 'binary');
  value.set(veil(salted.subarray(SALT_OCTETS), stream, SALT_OCTETS), HEAD_OCTETS);
  return value;
}

/** A row whose payload can no longer be opened, as it stood. */
export function encodeVeiled(slot: number, commitment: Buffer, veiled: Buffer): Buffer {
  const head = Buffer.alloc(COMMITMENT_AT);
  head[0] = VERSION;
  head[1] = 1;
  head.writeUIntBE(slot, 2, 5);
  return Buffer.concat([head, commitment, veiled]);
}

/** 32 octets of a row of the log. */
export function commitmentOf(row: Buffer): Buffer {
  return row.subarray(COMMITMENT_AT, HEAD_OCTETS);
}

/** What is left of a row when its tenant is deleted: the commitment alone. */
export function emptied(row: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.of(VERSION, EMPTIED), Buffer.alloc(5), commitmentOf(row)]);
  if (rest.length !== HEAD_OCTETS) throw new MailError('E_STORE', 'a row of a log is cut short');
  return rest;
}

/** What our checkpoints of a tenant's log are called. */
export function originOf(hostname: string, tenant: string): string {
  return `${hostname}/ledger/${tenantOctets(tenant).toString('hex')}`;
}

/** Appends to one tenant's log inside one transaction. */
export class LogWriter {
  readonly #tenant: string;
  readonly #key: Buffer;
  readonly #range: CompactRange;
  readonly #writes: StoreWrite[] = [];

  /** `head` is the row of TABLE.head, `key` the tenant's evidence key. */
  constructor(tenant: string, key: Buffer, head: Buffer | undefined) {
    this.#tenant = tenant;
    this.#key = key;
    this.#range = CompactRange.decode(head);
  }

  /** The number the next leaf gets. */
  get next(): number {
    return this.#range.size;
  }

  /** Appends one entry; about a person, it is veiled under that person's evidence secret. @returns its leaf number */
  append(payload: string, person?: { readonly slot: number; readonly evidence: Buffer }): number {
    const leaf = this.next;
    const value = encodeEntry(this.#key, leaf, payload, person);
    this.#writes.push({ part: 'log', key: entryKey(this.#tenant, leaf), value });
    this.#range.append(leafHash(commitmentOf(value)), (level, index, subtree) => {
      this.#writes.push({ part: 'log', key: subtreeKey(this.#tenant, level, index), value: subtree });
    });
    return leaf;
  }

  /** What the transaction must write; nothing when nothing was appended. */
  writes(): readonly StoreWrite[] {
    if (this.#writes.length === 0) return [];
    return [...this.#writes, { part: 'state', key: rowKey(TABLE.head, this.#tenant), value: this.#range.encode() }];
  }
}

export interface LogParts {
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly people: PersonKeys;
  readonly clock: Clock;
  /** What the checkpoints' origin begins with: our host name. */
  readonly hostname: string;
}

// How soon after a change its checkpoint is signed: one signature covers all changes of a second.
const CHECKPOINT_MS = 1_000;

/** Reading, proving and signing; appending is LogWriter's. All reject with MailError E_STORE when the store fails. */
export class TenantLogs {
  readonly #parts: LogParts;
  readonly #signers = new Map<string, { readonly origin: string; readonly privateKey: KeyObject; readonly publicKey: KeyObject }>();
  readonly #changed = new Set<string>();
  #cancel: (() => void) | undefined;

  constructor(parts: LogParts) {
    this.#parts = parts;
    mkdirSync(join(parts.keyring.dir, 'checkpoints'), { recursive: true, mode: 0o700 });
  }

  /** To be called after a commit that appended: a checkpoint follows soon. */
  changed(tenant: string): void {
    this.#changed.add(tenant);
    this.#cancel ??= this.#parts.clock.after(CHECKPOINT_MS, () => {
      this.#cancel = undefined;
      // A store that fails now is asked again after the next change and at close; the log itself is whole.
      this.signChanged().catch(() => undefined);
    });
  }

  /** Signs checkpoints of all logs that changed since theirs. */
  async signChanged(): Promise<void> {
    for (const tenant of this.#changed) {
      this.#changed.delete(tenant);
      await this.checkpoint(tenant);
    }
  }

  async close(): Promise<void> {
    this.#cancel?.();
    await this.signChanged();
  }

  /** The signed checkpoint of the log as it stands, kept in the store and apart. */
  async checkpoint(tenant: string): Promise<{ readonly text: string; readonly size: number }> {
    const { origin, privateKey } = this.#signer(tenant);
    const range = CompactRange.decode(await this.#row(TABLE.head, tenant));
    const text = signCheckpoint({ origin, size: range.size, root: range.root() }, privateKey);
    const kept = await this.keptCheckpoint(tenant);
    // What lies apart only grows: a shorter log is told by verify() and not papered over here.
    if (kept === undefined || kept.size <= range.size) {
      const file = this.#apart(tenant);
      writeFileSync(`${file}.new`, text, { mode: 0o600 });
      renameSync(`${file}.new`, file);
    }
    return { text, size: range.size };
  }

  /** The last checkpoint that lies apart from the data. @throws MailError E_KEY_UNREADABLE */
  async keptCheckpoint(tenant: string): Promise<Checkpoint | undefined> {
    let text: string;
    try {
      text = readFileSync(this.#apart(tenant), 'utf8');
    } catch (cause) {
      if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return undefined;
      throw new MailError('E_KEY_UNREADABLE', `${this.#apart(tenant)}: ${String(cause)}`, { cause });
    }
    const { publicKey } = this.#signer(tenant);
    // The host may have been renamed since: the tenant's own part of the origin is what must agree.
    const origin = text.slice(0, text.indexOf('\n'));
    const found = origin.endsWith(tenantOctets(tenant).toString('hex')) ? readCheckpoint(text, publicKey, origin) : undefined;
    if (found === undefined) throw new MailError('E_KEY_UNREADABLE', `${this.#apart(tenant)} is not a checkpoint of this log: it is damaged, or another log's`);
    return found;
  }

  /** The tenant's keys are others now, or gone. */
  forget(tenant: string): void {
    this.#signers.delete(tenant);
    this.#changed.delete(tenant);
  }

  /** The C2SP verifier key a tenant publishes so that anybody can check its receipts. */
  verifierKey(tenant: string): string {
    const { origin, publicKey } = this.#signer(tenant);
    return verifierKey(origin, publicKey);
  }

  async entry(tenant: string, leaf: number): Promise<LogEntry | undefined> {
    const [value] = await this.#parts.store.getMany([entryKey(tenant, leaf)], 'log');
    return value === undefined ? undefined : this.open(tenant, leaf, value);
  }

  /** undefined where there is no such leaf, or its key was destroyed. */
  async receipt(tenant: string, leaf: number): Promise<Receipt | undefined> {
    const range = CompactRange.decode(await this.#row(TABLE.head, tenant));
    const entry = leaf < range.size ? await this.entry(tenant, leaf) : undefined;
    if (entry?.payload === undefined || entry.salt === undefined) return undefined;
    const { origin, privateKey, publicKey } = this.#signer(tenant);
    // The proof is drawn from memory, for its reader is a plain function: the leaves around, and the stored subtrees.
    const needed = await this.#proofParts(tenant, leaf, range.size);
    const proof = inclusionProof(leaf, range.size, subtreeReader((from, to) => needed.leaves(from, to), (level, index) => needed.subtrees.get(`${level}/${index}`)));
    return {
      format: 'postern-receipt/1', leaf, payload: entry.payload, salt: entry.salt.toString('base64'), size: range.size,
      proof: proof.map((one) => one.toString('base64')),
      checkpoint: signCheckpoint({ origin, size: range.size, root: range.root() }, privateKey),
      verifier_key: verifierKey(origin, publicKey),
    };
  }

  async #proofParts(tenant: string, leaf: number, size: number): Promise<{ readonly subtrees: ReadonlyMap<string, Buffer>; leaves(from: number, to: number): readonly Buffer[] }> {
    const subtrees = new Map<string, Buffer>();
    // A proof needs siblings inside the 256-way node around the leaf on each level, and those at the right edge.
    for (let level = 8; 2 ** level <= size; level += 8) {
      const count = Math.floor(size / 2 ** level);
      for (const around of new Set([Math.floor(leaf / 2 ** (level + 8)), Math.floor(count / 256)])) {
        const numbers = Array.from({ length: 256 }, (_, i) => around * 256 + i).filter((index) => index < count);
        const values = await this.#parts.store.getMany(numbers.map((index) => subtreeKey(tenant, level, index)), 'log');
        for (const [i, value] of values.entries()) if (value !== undefined) subtrees.set(`${level}/${numbers[i] ?? 0}`, value);
      }
    }
    const hashes = new Map<number, Buffer>();
    for (const around of new Set([Math.floor(leaf / 256), Math.floor(size / 256)])) {
      const numbers = Array.from({ length: 256 }, (_, i) => around * 256 + i).filter((index) => index < size);
      const values = await this.#parts.store.getMany(numbers.map((index) => entryKey(tenant, index)), 'log');
      for (const [i, value] of values.entries()) if (value !== undefined) hashes.set(numbers[i] ?? 0, leafHash(value.subarray(COMMITMENT_AT, HEAD_OCTETS)));
    }
    return {
      subtrees,
      leaves: (from, to) => Array.from({ length: to - from }, (_, i) => hashes.get(from + i) ?? missing(tenant, from + i)),
    };
  }

  /** Walks the whole log: numbering, commitments, tree, and both checkpoints. What is appended meanwhile is left for the next time. */
  async verify(tenant: string, onProgress?: (leaves: number, of: number) => void, onEntry?: (entry: LogEntry) => void): Promise<Verified> {
    // Before the head: a checkpoint signed in between must not look like a log that was cut back.
    const kept = await this.keptCheckpoint(tenant);
    const head = CompactRange.decode(await this.#row(TABLE.head, tenant));
    const range = CompactRange.decode(undefined);
    let opened = 0;
    let erased = 0;
    const bad = (firstBad: number | undefined, reason: string): Verified => ({ ok: false, leaves: range.size, opened, erased, reason, ...(firstBad !== undefined && { firstBad }) });
    if (kept !== undefined && kept.size > head.size) return bad(head.size, `the log ends at ${head.size} leaves, but a checkpoint of ${kept.size} was signed: it was cut back, or an old backup was restored`);
    const subtrees: { readonly level: number; readonly index: number; readonly hash: Buffer }[] = [];
    let rootAtKept = kept?.size === 0 ? range.root() : undefined;
    for await (const { key, value } of this.#parts.store.scan(entryPrefix(tenant), 'log')) {
      const leaf = key.readUIntBE(key.length - 6, 6);
      if (leaf >= head.size && CompactRange.decode(await this.#row(TABLE.head, tenant)).size > leaf) break;
      if (leaf !== range.size) return bad(range.size, `leaf ${range.size} is missing`);
      if (leaf >= head.size) return bad(leaf, `leaf ${leaf} stands behind the end of the log`);
      const entry = this.open(tenant, leaf, value);
      if (entry === undefined) return bad(leaf, `leaf ${leaf} is damaged`);
      if (entry.payload === undefined) erased++;
      else opened++;
      onEntry?.(entry);
      range.append(leafHash(entry.commitment), (level, index, subtree) => subtrees.push({ level, index, hash: subtree }));
      for (const { level, index, hash: computed } of subtrees.splice(0)) {
        const [stored] = await this.#parts.store.getMany([subtreeKey(tenant, level, index)], 'log');
        if (stored?.equals(computed) !== true) return bad(undefined, `one of the leaves ${index * 2 ** level} to ${(index + 1) * 2 ** level - 1} was changed, or the stored hash of them`);
      }
      if (range.size === kept?.size) rootAtKept = range.root();
      if (range.size % 10_000 === 0) onProgress?.(range.size, head.size);
    }
    if (range.size !== head.size) return bad(range.size, `the log ends at ${range.size} leaves, its head says ${head.size}`);
    if (!range.root().equals(head.root())) return bad(undefined, `a leaf from ${range.size - (range.size % 256)} on was changed, or the head: the roots differ`);
    if (kept !== undefined && rootAtKept?.equals(kept.root) !== true) return bad(undefined, `the first ${kept.size} leaves are not those the kept checkpoint signed`);
    return { ok: true, leaves: range.size, opened, erased, reason: kept === undefined ? 'no checkpoint was signed yet' : `agrees with the checkpoint of ${kept.size} leaves` };
  }

  /** Opens a row as it stands in the store; undefined: it is damaged. */
  open(tenant: string, leaf: number, value: Buffer): LogEntry | undefined {
    if (value[0] !== VERSION || value.length < HEAD_OCTETS) return undefined;
    const commitment = commitmentOf(value);
    if (value[1] === EMPTIED) return value.length === HEAD_OCTETS ? { leaf, commitment } : undefined;
    const slot = value[1] === 1 ? value.readUIntBE(2, 5) : undefined;
    // A slot that never was is no destroyed one.
    if (slot !== undefined && slot >= this.#parts.people.slots(tenant)) return undefined;
    const secret = slot === undefined ? NO_PERSON : this.#parts.people.evidence(tenant, slot);
    if (secret === undefined) return { leaf, commitment, ...(slot !== undefined && { slot }) };
    const stream = keyStream(this.#parts.keyring.tenant(tenant).evidence, secret, leaf, SALT_OCTETS + value.length - HEAD_OCTETS);
    const salted = Buffer.allocUnsafe(SALT_OCTETS + value.length - HEAD_OCTETS);
    salted.write(stream, 0, SALT_OCTETS, 'binary');
    salted.set(value.subarray(HEAD_OCTETS), SALT_OCTETS);
    veil(salted.subarray(SALT_OCTETS), stream, SALT_OCTETS);
    if (hash('sha256', salted, 'binary') !== commitment.toString('binary')) return undefined;
    return { leaf, commitment, payload: salted.toString('utf8', SALT_OCTETS), salt: salted.subarray(0, SALT_OCTETS), ...(slot !== undefined && { slot }) };
  }

  #signer(tenant: string): { readonly origin: string; readonly privateKey: KeyObject; readonly publicKey: KeyObject } {
    const known = this.#signers.get(tenant);
    if (known !== undefined) return known;
    const made = { origin: originOf(this.#parts.hostname, tenant), ...ed25519FromSeed(this.#parts.keyring.tenant(tenant).log) };
    this.#signers.set(tenant, made);
    return made;
  }

  #apart(tenant: string): string {
    return join(this.#parts.keyring.dir, 'checkpoints', tenant);
  }

  async #row(table: number, tenant: string): Promise<Buffer | undefined> {
    const [value] = await this.#parts.store.getMany([rowKey(table, tenant)]);
    return value;
  }
}

function missing(tenant: string, leaf: number): never {
  throw new MailError('E_STORE', `leaf ${leaf} of the log of ${tenant} is missing`);
}
