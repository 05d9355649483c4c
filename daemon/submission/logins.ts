// Slows down who guesses passwords. Failures are counted for ten minutes per client address and per
// account; each one is answered later than the one before, and past the limit nobody is heard at all,
// save an address from which this account has logged in: guessing shuts out no customer.
// The same work is done for an unknown account as for a wrong secret (test T26). RFC 4954 §4, §9.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { Clock } from '../runtime/index.ts';
import type { Credential } from '../settings/index.ts';

const WINDOW_MS = 600_000;
// 0.5 s is nothing to a person with a typo; 8 s makes 450 guesses an hour of a session.
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 8_000;
// Addresses and accounts remembered; an attack from more forgets the oldest.
const REMEMBERED = 50_000;
// A longer name is nobody's worth counting by: AUTH lets a client write 9 kB, 50 000 times.
const NAME_CHARACTERS = 320;

const NOBODY = Buffer.alloc(32);

/** True when the secret is this credential's; takes as long for undefined. */
export function secretMatches(credential: Credential | undefined, secret: string): boolean {
  const hash = createHash('sha256').update(secret).digest();
  return timingSafeEqual(hash, credential?.secretHash ?? NOBODY) && credential !== undefined;
}

/** Failures of the last ten minutes. */
export class Logins {
  readonly #clock: Clock;
  readonly #failures = new Map<string, { count: number; since: number }>();
  /** `address username` of logins that worked. */
  readonly #proven = new Set<string>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** True when this address or account has used up its failures. */
  blocked(address: string, username: string, limit: number): boolean {
    if (this.#count(`a ${address}`) >= limit) return true;
    return this.#count(`u ${username}`) >= limit && !this.#proven.has(`${address} ${username}`);
  }

  /** Notes a failure. @returns the ms to wait before it is answered */
  failed(address: string, username: string): number {
    const count = Math.max(this.#add(`a ${address}`), username.length > NAME_CHARACTERS ? 0 : this.#add(`u ${username}`));
    return Math.min(FIRST_DELAY_MS * 2 ** (count - 1), MAX_DELAY_MS);
  }

  /** A login that worked clears the account, not the address: one good password must not buy guesses. */
  succeeded(address: string, username: string): void {
    this.#failures.delete(`u ${username}`);
    this.#proven.add(`${address} ${username}`);
    forgetOldest(this.#proven);
  }

  #count(key: string): number {
    const entry = this.#failures.get(key);
    if (entry === undefined) return 0;
    if (this.#clock.now() - entry.since < WINDOW_MS) return entry.count;
    this.#failures.delete(key);
    return 0;
  }

  #add(key: string): number {
    const count = this.#count(key) + 1;
    const since = this.#failures.get(key)?.since ?? this.#clock.now();
    this.#failures.set(key, { count, since });
    forgetOldest(this.#failures);
    return count;
  }
}

function forgetOldest(known: Map<string, unknown> | Set<string>): void {
  if (known.size <= REMEMBERED) return;
  const oldest = known.keys().next().value;
  if (oldest !== undefined) known.delete(oldest);
}
