// The Merkle tree under a tenant's log: hashes, roots and proofs, and nothing of where they are kept.
// A tree is never held whole: `CompactRange` is its right edge, which is all an append needs, and proofs
// read what they lack through a `SubtreeReader`. Callers may rely on: everything here is synchronous and
// pure; sizes and indexes go to 2^48 - 1; verifying never throws, it says undefined or false. Wherever a
// `leaf` is asked for it is the leaf's hash (`leafHash` of the leaf's data), never the data itself.
// RFC 6962 §2.1, RFC 9162 §2.1.
import { hash } from 'node:crypto';
import { MailError } from '../mail/index.ts';

const HASH_BYTES = 32;
const SIZE_BYTES = 6; // 2^48 leaves: a million a second for nine years, and exact as a number
const LEVELS = SIZE_BYTES * 8;
// Every eighth level is kept: 1/255 more hashes to store, and a proof reads at most 255 for a level kept.
const KEPT_EVERY = 8;

/** Whole numbers that the six octets of a size can hold. */
const LARGEST_SIZE = 2 ** LEVELS - 1;

// Hashed in place, so that an append allocates nothing: 0x01, left, right.
const pair = Buffer.alloc(1 + 2 * HASH_BYTES, 1);
const LEFT = 1;
const RIGHT = 1 + HASH_BYTES;
const single = Buffer.alloc(1 + HASH_BYTES); // 0x00, a leaf's data of the usual 32 octets

// Digests come as latin1 ("binary") strings: on Node 24 three times as fast as a Buffer for each.

/** SHA-256(0x00 || data). */
// RFC 6962 §2.1
export function leafHash(data: Buffer): Buffer {
  if (data.length !== HASH_BYTES) return Buffer.from(hash('sha256', Buffer.concat([single.subarray(0, 1), data]), 'binary'), 'latin1');
  single.set(data, 1);
  return Buffer.from(hash('sha256', single, 'binary'), 'latin1');
}

/** SHA-256(0x01 || left || right), of two hashes of 32 octets. */
// RFC 6962 §2.1
export function nodeHash(left: Buffer, right: Buffer): Buffer {
  pair.set(left, LEFT);
  pair.set(right, RIGHT);
  return Buffer.from(hash('sha256', pair, 'binary'), 'latin1');
}

/** The root of a tree without leaves: SHA-256 of nothing. */
// RFC 6962 §2.1
export const EMPTY_ROOT: Buffer = Buffer.from(hash('sha256', '', 'binary'), 'latin1');

/** The right edge of a tree: its size and the hashes of the complete subtrees it is made of. */
export class CompactRange {
  #size: number;
  /** By level; a level that the size has no bit for holds what was there before and is not read. */
  readonly #edge = Buffer.alloc(LEVELS * HASH_BYTES);

  private constructor(size: number) {
    this.#size = size;
  }

  /** Of what `encode` wrote; undefined is the empty tree. @throws MailError E_STORE when it is anything else. */
  static decode(octets: Buffer | undefined): CompactRange {
    if (octets === undefined) return new CompactRange(0);
    if (octets.length < SIZE_BYTES) throw new MailError('E_STORE', `the edge of a log is ${octets.length} octets, too few for its size`);
    const range = new CompactRange(octets.readUIntBE(0, SIZE_BYTES));
    const levels = range.#levels();
    const expected = SIZE_BYTES + levels.length * HASH_BYTES;
    if (octets.length !== expected) throw new MailError('E_STORE', `the edge of a log of ${range.#size} is ${octets.length} octets, not ${expected}`);
    for (const [i, level] of levels.entries()) octets.copy(range.#edge, level * HASH_BYTES, SIZE_BYTES + i * HASH_BYTES, SIZE_BYTES + (i + 1) * HASH_BYTES);
    return range;
  }

  /** Leaves. */
  get size(): number {
    return this.#size;
  }

  /**
   * Adds a leaf by its hash; `onSubtree` is told every subtree of 256, 65,536 ... leaves that this completes.
   * @throws RangeError when it is not 32 octets, or the tree is full
   */
  append(leaf: Buffer, onSubtree?: (level: number, index: number, hash: Buffer) => void): void {
    if (leaf.length !== HASH_BYTES) throw new RangeError(`a leaf's hash is ${HASH_BYTES} octets, not ${leaf.length}`);
    if (this.#size >= LARGEST_SIZE) throw new RangeError('the tree is full');
    const kept: { readonly level: number; readonly index: number; readonly hash: Buffer }[] = [];
    pair.set(leaf, RIGHT);
    let level = 0;
    let index = this.#size;
    while (index % 2 === 1) {
      this.#edge.copy(pair, LEFT, level * HASH_BYTES, (level + 1) * HASH_BYTES);
      pair.write(hash('sha256', pair, 'binary'), RIGHT, 'latin1');
      level++;
      index = (index - 1) / 2;
      if (level % KEPT_EVERY === 0 && onSubtree !== undefined) kept.push({ level, index, hash: Buffer.from(pair.subarray(RIGHT)) });
    }
    pair.copy(this.#edge, level * HASH_BYTES, RIGHT);
    this.#size++;
    // Only now: a callback may hash, or throw, and the range is whole all the same.
    for (const one of kept) onSubtree?.(one.level, one.index, one.hash);
  }

  /** The root of the tree as it is now. */
  root(): Buffer {
    let root: Buffer | undefined;
    for (const level of this.#levels().toReversed()) {
      const subtree = this.#edge.subarray(level * HASH_BYTES, (level + 1) * HASH_BYTES);
      root = root === undefined ? Buffer.from(subtree) : nodeHash(subtree, root);
    }
    return root ?? Buffer.from(EMPTY_ROOT);
  }

  /** The size in six octets, then the hashes, widest subtree first. */
  encode(): Buffer {
    const levels = this.#levels();
    const octets = Buffer.allocUnsafe(SIZE_BYTES + levels.length * HASH_BYTES);
    octets.writeUIntBE(this.#size, 0, SIZE_BYTES);
    for (const [i, level] of levels.entries()) this.#edge.copy(octets, SIZE_BYTES + i * HASH_BYTES, level * HASH_BYTES, (level + 1) * HASH_BYTES);
    return octets;
  }

  /** The levels of the complete subtrees, widest first: the bits of the size. */
  #levels(): number[] {
    const levels: number[] = [];
    for (let level = 0, rest = this.#size; rest > 0; level++, rest = Math.floor(rest / 2)) if (rest % 2 === 1) levels.unshift(level);
    return levels;
  }
}

/** Answers the hash of the complete subtree of 2^level leaves that starts at leaf index * 2^level. */
export type SubtreeReader = (level: number, index: number) => Buffer;

/** The hashes that lead from leaf `index` to the root of the tree of `size` leaves. @throws RangeError when there is no such leaf */
// RFC 6962 §2.1.1
export function inclusionProof(index: number, size: number, hashes: SubtreeReader): Buffer[] {
  if (!isSize(size) || !isSize(index) || index >= size) throw new RangeError(`no leaf ${index} in a tree of ${size}`);
  const proof: Buffer[] = [];
  let from = 0;
  let to = size;
  while (to - from > 1) {
    const middle = from + splitOf(to - from);
    if (index < middle) {
      proof.push(rootOf(middle, to, hashes));
      to = middle;
    } else {
      proof.push(rootOf(from, middle, hashes));
      from = middle;
    }
  }
  return proof.toReversed();
}

/** The hashes that show the tree of `first` leaves to be the beginning of that of `second`. @throws RangeError unless 0 <= first <= second */
// RFC 6962 §2.1.2
export function consistencyProof(first: number, second: number, hashes: SubtreeReader): Buffer[] {
  if (!isSize(first) || !isSize(second) || first > second) throw new RangeError(`a tree of ${first} is not the beginning of one of ${second}`);
  if (first === 0) return []; // every tree begins with the empty one
  const proof: Buffer[] = [];
  let from = 0;
  let to = second;
  while (first !== to) {
    const middle = from + splitOf(to - from);
    if (first <= middle) {
      proof.push(rootOf(middle, to, hashes));
      to = middle;
    } else {
      proof.push(rootOf(from, middle, hashes));
      from = middle;
    }
  }
  // Starting at leaf 0 it is the first tree itself, whose root the verifier has.
  if (from > 0) proof.push(rootOf(from, to, hashes));
  return proof.toReversed();
}

/** The root that a proof leads to from a leaf's hash; undefined when it is no proof for this place. */
// RFC 9162 §2.1.3.2
export function rootFromInclusion(index: number, size: number, leaf: Buffer, proof: readonly Buffer[]): Buffer | undefined {
  if (!isSize(size) || !isSize(index) || index >= size || ![leaf, ...proof].every(isHash)) return undefined;
  let at = index;
  let last = size - 1;
  let root = leaf;
  for (const step of proof) {
    if (last === 0) return undefined;
    if (at % 2 === 1 || at === last) {
      root = nodeHash(step, root);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      root = nodeHash(root, step);
    }
    [at, last] = [half(at), half(last)];
  }
  return last === 0 ? root : undefined;
}

/** True when the proof shows that the tree with the second root begins with the leaves of that with the first. */
// RFC 9162 §2.1.4.2
export function isConsistent(first: number, second: number, firstRoot: Buffer, secondRoot: Buffer, proof: readonly Buffer[]): boolean {
  if (!isSize(first) || !isSize(second) || first > second || ![firstRoot, secondRoot, ...proof].every(isHash)) return false;
  if (first === 0) return proof.length === 0 && firstRoot.equals(EMPTY_ROOT) && (second > 0 || secondRoot.equals(EMPTY_ROOT));
  if (first === second) return proof.length === 0 && firstRoot.equals(secondRoot);
  let at = first - 1;
  let last = second - 1;
  while (at % 2 === 1) [at, last] = [half(at), half(last)];
  // A first tree that is one complete subtree is its own first step, and not in the proof.
  const [start, ...steps] = at === 0 ? [firstRoot, ...proof] : proof;
  if (start === undefined) return false;
  let older = start;
  let newer = start;
  for (const step of steps) {
    if (last === 0) return false;
    if (at % 2 === 1 || at === last) {
      older = nodeHash(step, older);
      newer = nodeHash(step, newer);
      while (at % 2 === 0 && at !== 0) [at, last] = [half(at), half(last)];
    } else {
      newer = nodeHash(newer, step);
    }
    [at, last] = [half(at), half(last)];
  }
  return last === 0 && older.equals(firstRoot) && newer.equals(secondRoot);
}

/**
 * Answers any complete subtree from the hashes of leaves `from` to before `to` (at most 256 are asked for at once)
 * and the subtrees kept at levels 8, 16, 24 ...; one that is not kept is computed. It remembers what it has read,
 * so it must not outlive the snapshot it reads from. It throws MailError E_STORE when leaves are missing.
 */
export function subtreeReader(leafAt: (from: number, to: number) => readonly Buffer[], stored: (level: number, index: number) => Buffer | undefined): SubtreeReader {
  const known: Map<number, Buffer>[] = Array.from({ length: LEVELS + 1 }, () => new Map<number, Buffer>());
  const remember = (level: number, index: number, value: Buffer): Buffer => {
    known[level]?.set(index, value);
    return value;
  };
  const fromLeaves = (level: number, index: number): Buffer => {
    const count = 2 ** level;
    let row = leafAt(index * count, (index + 1) * count);
    if (row.length !== count) throw new MailError('E_STORE', `the log has ${row.length} of the ${count} leaves from ${index * count}`);
    for (let below = 0; ; below++) {
      const first = index * 2 ** (level - below);
      for (const [i, value] of row.entries()) remember(below, first + i, value);
      const [only, another] = row;
      if (only !== undefined && another === undefined) return only;
      row = paired(row);
    }
  };
  const read = (level: number, index: number): Buffer => {
    const before = known[level]?.get(index);
    if (before !== undefined) return before;
    const kept = level > 0 && level % KEPT_EVERY === 0 ? stored(level, index) : undefined;
    if (kept !== undefined) return remember(level, index, kept);
    if (level <= KEPT_EVERY) return fromLeaves(level, index);
    return remember(level, index, nodeHash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1)));
  };
  return read;
}

function paired(row: readonly Buffer[]): Buffer[] {
  const above: Buffer[] = [];
  let left: Buffer | undefined;
  for (const value of row) {
    if (left === undefined) left = value;
    else {
      above.push(nodeHash(left, value));
      left = undefined;
    }
  }
  return above;
}

/** The root of leaves `from` to before `to`; `from` is where a subtree of at least that width can start. */
function rootOf(from: number, to: number, hashes: SubtreeReader): Buffer {
  const width = to - from;
  const split = splitOf(width);
  if (width === 1) return hashes(0, from);
  if (width === 2 * split) return hashes(levelOf(width), from / width);
  return nodeHash(hashes(levelOf(split), from / split), rootOf(from + split, to, hashes));
}

/** The largest power of two below `width`. */
function splitOf(width: number): number {
  let split = 1;
  while (split * 2 < width) split *= 2;
  return split;
}

function levelOf(power: number): number {
  let level = 0;
  for (let width = 1; width < power; width *= 2) level++;
  return level;
}

function half(value: number): number {
  return Math.floor(value / 2);
}

function isSize(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= LARGEST_SIZE;
}

function isHash(value: Buffer): boolean {
  return value.length === HASH_BYTES;
}
