// Answers kept for the client that asks again because the first answer never reached it
// (draft-ietf-httpapi-idempotency-key-header). Callers may rely on: within 24 hours one key is carried out
// once, and a key with another request is refused; what failed on our side is not kept and may be tried
// again. Kept in memory: a restart forgets, and then the same said twice is two leaves of the log, which
// decide what one does; an old yes told again never undoes a later no. One tenant's keys never push out
// another's.
import type { Clock } from '../../runtime/index.ts';

/** An answer as it goes out. */
export interface Answer {
  readonly status: number;
  readonly type: string;
  readonly text: string;
}

// A client that has not come back within a day does not come back.
const KEEP_MS = 86_400_000;
// Per tenant. A retry comes within minutes; at the request limit ten thousand keys are a quarter of an hour.
const KEYS = 10_000;
// Per tenant: an answer to a thousand items is about 60 kB, to one a hundred octets.
const OCTETS = 8 * 1_048_576;

interface Kept {
  readonly fingerprint: string;
  readonly at: number;
  /** undefined: under way. */
  answer?: Answer;
}

export class Replays {
  readonly #clock: Clock;
  readonly #tenants = new Map<string, { readonly kept: Map<string, Kept>; octets: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Carries `make` out, or answers what it answered before. `fingerprint` is of the whole request. */
  async once(tenant: string, key: string, fingerprint: string, make: () => Promise<Answer>): Promise<Answer | 'key-busy' | 'key-reused'> {
    const own = this.#of(tenant);
    this.#forget(own);
    const before = own.kept.get(key);
    if (before !== undefined && before.fingerprint !== fingerprint) return 'key-reused';
    if (before !== undefined) return before.answer ?? 'key-busy';
    const entry: Kept = { fingerprint, at: this.#clock.now() };
    own.kept.set(key, entry);
    try {
      entry.answer = await make();
      own.octets += entry.answer.text.length;
      return entry.answer;
    } catch (error) {
      own.kept.delete(key);
      throw error;
    }
  }

  #of(tenant: string): { readonly kept: Map<string, Kept>; octets: number } {
    let own = this.#tenants.get(tenant);
    if (own === undefined) {
      own = { kept: new Map(), octets: 0 };
      this.#tenants.set(tenant, own);
    }
    return own;
  }

  /** The map is in order of time: what is too old or too much stands first. */
  #forget(own: { readonly kept: Map<string, Kept>; octets: number }): void {
    const oldest = this.#clock.now() - KEEP_MS;
    for (const [key, { at, answer }] of own.kept) {
      if (at > oldest && own.kept.size < KEYS && own.octets < OCTETS) return;
      if (answer === undefined) continue; // under way: it holds its key until it is answered
      own.octets -= answer.text.length;
      own.kept.delete(key);
    }
  }
}
