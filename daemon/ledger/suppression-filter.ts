// Which hashes a tenant has certainly not suppressed, in memory: a Bloom filter of two octets for each
// suppressed hash, so that nine decisions in ten need no look-up beside millions of rows. Callers may
// rely on: a hash that is suppressed is never called absent; until a tenant's filter is built, and for
// one hash in four hundred after that, the answer is "may be", and the store is asked. It is right only
// while this process alone writes the store. What is lifted stays in until the next start.
import type { LedgerStore } from '../store/index.ts';
import { HASH_AT, REST_AT, TABLE, rowKey } from './row-keys.ts';

// 16 bits and four probes: one wrong "may be" in 400.
const BITS_EACH = 16;
const PROBES = 4;
// 8 KiB: a tenant with few suppressions costs no more than that.
const LEAST = 4_096;

interface Bits {
  readonly words: Uint32Array;
  readonly mask: number;
}

interface Filter {
  bits: Bits;
  count: number;
  ready: boolean;
  /** The larger one that is being filled, where this one has become too small. */
  next: Bits | undefined;
}

export class SuppressionFilter {
  readonly #store: LedgerStore;
  /** Resolves when every change that has begun is through. */
  readonly #settled: () => Promise<unknown>;
  readonly #tenants = new Map<string, Filter>();

  constructor(store: LedgerStore, settled: () => Promise<unknown>) {
    this.#store = store;
    this.#settled = settled;
  }

  /** false: no suppression stands under this hash. */
  mayHave(tenant: string, hash: Buffer): boolean {
    const filter = this.#tenants.get(tenant);
    if (filter === undefined) {
      this.#build(tenant, { bits: bitsFor(LEAST), count: 0, ready: false, next: undefined });
      return true;
    }
    return !filter.ready || has(filter.bits, hash);
  }

  /** To be called inside the transaction that writes the row. */
  add(tenant: string, hash: Buffer): void {
    const filter = this.#tenants.get(tenant);
    if (filter === undefined) return;
    set(filter.bits, hash);
    if (filter.next !== undefined) set(filter.next, hash);
    filter.count++;
    if (filter.ready && filter.next === undefined && filter.count * BITS_EACH > filter.bits.mask + 1) this.#build(tenant, filter);
  }

  /** To be called when rows were written past add(). */
  forget(tenant: string): void {
    this.#tenants.delete(tenant);
  }

  #build(tenant: string, filter: Filter): void {
    this.#tenants.set(tenant, filter);
    // A store that fails now leaves the filter unready, and the next decision asks the store itself.
    this.#fill(tenant, filter).catch(() => this.forget(tenant));
  }

  async #fill(tenant: string, filter: Filter): Promise<void> {
    let bits = filter.ready ? bitsFor(filter.count * 2) : filter.bits;
    filter.next = bits;
    for (;;) {
      // What began before we listened is on disk now; what begins from here on comes through add().
      await this.#settled();
      let count = 0;
      for await (const { key } of this.#store.scan(rowKey(TABLE.suppressed, tenant))) {
        set(bits, key.subarray(HASH_AT, REST_AT));
        count++;
      }
      filter.count = count;
      if (count * BITS_EACH <= bits.mask + 1) break;
      bits = bitsFor(count * 2);
      filter.next = bits;
    }
    filter.bits = bits;
    filter.next = undefined;
    filter.ready = true;
  }
}

/** Room for so many: a power of two of bits. */
function bitsFor(count: number): Bits {
  const bits = 2 ** Math.ceil(Math.log2(Math.max(count, LEAST) * BITS_EACH));
  return { words: new Uint32Array(bits / 32), mask: bits - 1 };
}

// The hash is an HMAC's: each of its words is as good as a hash function of its own.
function probe(hash: Buffer, i: number, mask: number): number {
  const at = i * 4;
  return (((hash[at] ?? 0) | ((hash[at + 1] ?? 0) << 8) | ((hash[at + 2] ?? 0) << 16) | ((hash[at + 3] ?? 0) << 24)) >>> 0) & mask;
}

function has({ words, mask }: Bits, hash: Buffer): boolean {
  for (let i = 0; i < PROBES; i++) {
    const bit = probe(hash, i, mask) >>> 0;
    if (((words[bit >>> 5] ?? 0) & (1 << (bit & 31))) === 0) return false;
  }
  return true;
}

function set({ words, mask }: Bits, hash: Buffer): void {
  for (let i = 0; i < PROBES; i++) {
    const bit = probe(hash, i, mask) >>> 0;
    words[bit >>> 5] = (words[bit >>> 5] ?? 0) | (1 << (bit & 31));
  }
}
