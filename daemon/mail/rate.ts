// The generic cell rate algorithm: so many units in a period, with a burst, kept as one number. Exact
// over every window: in any `perMs` at most `count` + `burst` - 1 units are taken, and with a burst of 1
// they are evenly spaced. Pure; the caller brings the time. ITU-T I.371 Annex A.

/** One limit's state. Times are ms since the epoch and must not go backwards by more than a reload. */
export class Gcra {
  readonly #intervalMs: number;
  readonly #toleranceMs: number;
  /** When the next unit is due if everybody is on time. */
  #dueAt = 0;

  constructor(rate: { readonly count: number; readonly perMs: number; readonly burst: number }) {
    this.#intervalMs = rate.perMs / rate.count;
    this.#toleranceMs = this.#intervalMs * (Math.max(1, rate.burst) - 1);
  }

  /** Takes `units` now. @returns 0 when taken, else the ms to wait; nothing is taken then */
  take(now: number, units = 1): number {
    const due = Math.max(this.#dueAt, now);
    const earliest = due + this.#intervalMs * (units - 1) - this.#toleranceMs;
    if (earliest > now) return Math.ceil(earliest - now);
    this.#dueAt = due + this.#intervalMs * units;
    return 0;
  }

  /** Nothing of the past weighs any more: the state may be dropped. */
  idle(now: number): boolean {
    return this.#dueAt <= now;
  }
}
