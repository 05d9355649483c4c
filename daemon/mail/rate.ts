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
    const waitMs = this.wait(now, units);
    if (waitMs === 0) this.#dueAt = Math.max(this.#dueAt, now) + this.#intervalMs * units;
    return waitMs;
  }

  /** What take() would answer; nothing is taken. */
  wait(now: number, units = 1): number {
    const earliest = Math.max(this.#dueAt, now) + this.#intervalMs * (units - 1) - this.#toleranceMs;
    return earliest > now ? Math.ceil(earliest - now) : 0;
  }

  /** Nothing of the past weighs any more: the state may be dropped. */
  idle(now: number): boolean {
    return this.#dueAt <= now;
  }
}

// A receiver counts when messages arrive, not when they were sent: a little more than the window lies between
// the first and the one too many, so that what the way adds does not make it one too many there. A hundredth,
// and what a busy process is late by: together less than two hundredths of a second's window are given up.
const SLACK = 1.01;
const SLACK_MS = 7;
// So much of it a late timer may use, or every window would begin as late as the one before and then some.
const LATE_MS = 4;
// What a late timer or a pause of the process cost may be caught up; more would look like a burst.
const CATCH_UP_MS = 50;
// Times kept for one rate: 8 KiB. Higher counts are kept in parts of their window.
const TIMES = 1_000;

/**
 * A rate towards a receiver, kept strictly: in no stretch of `perMs` more than `count`, whatever the burst. Units are spaced
 * evenly; a burst may come at once, and what was missed is made up as far as the window allows. Pure, like Gcra.
 */
export class Pace {
  readonly #windowMs: number;
  readonly #count: number;
  readonly #intervalMs: number;
  readonly #burstMs: number;
  readonly #catchUpMs: number;
  /** When the next is due if everybody is on time. */
  #dueAt = 0;
  /** The last `count` times, a ring. */
  readonly #times: number[] = [];
  #next = 0;
  #last = 0;

  /** `before`: the pace whose place this one takes; what it counted counts on. */
  constructor(rate: { readonly count: number; readonly perMs: number; readonly burst: number }, before?: Pace) {
    const parts = Math.ceil(rate.count / TIMES);
    this.#count = Math.floor(rate.count / parts);
    this.#windowMs = (rate.perMs / parts) * SLACK + SLACK_MS;
    this.#intervalMs = this.#windowMs / this.#count;
    this.#burstMs = this.#intervalMs * (Math.max(1, rate.burst) - 1);
    this.#catchUpMs = Math.min(CATCH_UP_MS, rate.perMs / 20);
    if (before === undefined) return;
    const known = [...before.#times.slice(before.#next), ...before.#times.slice(0, before.#next)].slice(-this.#count);
    this.#times.push(...known);
    this.#next = known.length % this.#count;
    this.#last = before.#last;
    this.#dueAt = before.#last + this.#intervalMs;
  }

  /** Ms until one more fits; 0: now. */
  wait(now: number): number {
    return Math.max(0, Math.ceil(this.#earliest() - now));
  }

  /** Counts one now. */
  take(now: number): void {
    this.#times[this.#next] = Math.min(now, Math.max(this.#earliest(), now - LATE_MS));
    // A little late is late by a timer, and made up; much later is a rest, and a rest is not saved up.
    this.#dueAt = (now - this.#dueAt > this.#catchUpMs ? now : this.#dueAt) + this.#intervalMs;
    this.#next = (this.#next + 1) % this.#count;
    this.#last = now;
  }

  /** When one more fits. */
  #earliest(): number {
    const oldest = this.#times.length < this.#count ? undefined : this.#times[this.#next];
    return Math.max(oldest === undefined ? 0 : oldest + this.#windowMs, this.#dueAt - this.#burstMs);
  }

  /** Nothing of the past weighs any more: the state may be dropped. */
  idle(now: number): boolean {
    return this.#last + this.#windowMs <= now && this.#dueAt <= now;
  }
}
