// The rates at which connections may be opened and messages sent, kept where they happen: an attempt waits
// here at the last moment, so that what the receiver sees is what the rates say, however long the way there
// took. It holds its place in the lane meanwhile, so that no more of them can pile up than the lane has
// connections. One rate may be shared by several lanes. Exact (Pace), and gone when it has been quiet.
import { Pace } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { Rate } from '../settings/index.ts';

// Rates remembered: as many lanes as can be busy at once on one machine.
const PACES = 10_000;
// A rate may change while one waits for it, by a rule, its end, each step of a lane's way back, or a reload: so often it is asked for.
const LOOK_AGAIN_MS = 1_000;

/** A rate and whose it is. */
export interface Paced {
  readonly key: string;
  readonly rate: Rate | undefined;
}

/** One for all connections, one for all messages. */
export class Turnstile {
  readonly #clock: Clock;
  /** Attempts that wait, by the first key they named, and until when the last of them does. */
  readonly #waiting = new Map<string, { count: number; until: number }>();
  readonly #paces = new Map<string, { readonly rate: Rate; readonly pace: Pace }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves when all the rates of the moment allow one more, which is then counted; at once without a rate or when `signal` is aborted. */
  async pass(ratesNow: () => readonly Paced[], signal: AbortSignal): Promise<void> {
    for (;;) {
      const now = this.#clock.now();
      const rates = ratesNow();
      const paces = rates.flatMap(({ key, rate }) => (rate === undefined ? [] : [this.#of(key, rate, now)]));
      const waitMs = Math.max(0, ...paces.map((pace) => pace.wait(now)));
      if (waitMs === 0 || signal.aborted) {
        for (const pace of paces) pace.take(now);
        return;
      }
      const [{ key } = { key: '' }] = rates;
      this.#count(key, 1, now + waitMs);
      await new Promise<void>((resolve) => {
        const done = (): void => {
          cancel();
          signal.removeEventListener('abort', done);
          resolve();
        };
        const cancel = this.#clock.after(Math.min(waitMs, LOOK_AGAIN_MS), done);
        signal.addEventListener('abort', done);
      });
      this.#count(key, -1, 0);
    }
  }

  /** Until when, as things are, an attempt waits whose rates begin with this key; 0: none does. */
  waitsUntil(key: string): number {
    return this.#waiting.get(key)?.until ?? 0;
  }

  #count(key: string, change: 1 | -1, until: number): void {
    const known = this.#waiting.get(key) ?? { count: 0, until: 0 };
    known.count += change;
    if (change === 1) known.until = until;
    if (known.count === 0) this.#waiting.delete(key);
    else this.#waiting.set(key, known);
  }

  #of(key: string, rate: Rate, now: number): Pace {
    const known = this.#paces.get(key);
    if (known !== undefined && known.rate.count === rate.count && known.rate.perMs === rate.perMs && known.rate.burst === rate.burst) return known.pace;
    if (this.#paces.size >= PACES) for (const [id, { pace }] of this.#paces) if (pace.idle(now)) this.#paces.delete(id);
    const pace = new Pace(rate, known?.pace);
    this.#paces.set(key, { rate, pace });
    return pace;
  }
}
