// Counts per key in windows of fixed length: requests of a token, wrong tokens of an address. At the
// edge of two windows up to twice the limit passes within one window's length. Keys are bounded: past
// `remembered` the oldest is forgotten.

/** How a key stands. */
export interface Count {
  readonly used: number;
  /** Until its window ends. */
  readonly resetMs: number;
}

export class Counters {
  readonly #windowMs: number;
  readonly #remembered: number;
  readonly #counts = new Map<string, { used: number; readonly since: number }>();

  constructor(windowMs: number, remembered: number) {
    this.#windowMs = windowMs;
    this.#remembered = remembered;
  }

  look(key: string, now: number): Count {
    const entry = this.#counts.get(key);
    if (entry === undefined || now - entry.since >= this.#windowMs) return { used: 0, resetMs: this.#windowMs };
    return { used: entry.used, resetMs: entry.since + this.#windowMs - now };
  }

  add(key: string, now: number, units = 1): Count {
    const { used, resetMs } = this.look(key, now);
    // Set anew, so that a key's place in the map is that of its last use.
    this.#counts.delete(key);
    this.#counts.set(key, { used: used + units, since: now + resetMs - this.#windowMs });
    if (this.#counts.size > this.#remembered) for (const oldest of this.#counts.keys()) {
      this.#counts.delete(oldest);
      break;
    }
    return { used: used + units, resetMs };
  }
}
