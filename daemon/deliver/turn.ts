// The rate at which a lane may open connections. Attempts that need a new one wait here for their turn;
// they hold their place in the lane meanwhile, so that no more of them can pile up than the lane has
// connections. Kept per lane, exact (GCRA), gone again when the lane has been quiet.
import { Gcra } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { Rate } from '../settings/index.ts';

// Lanes remembered: as many as can be busy at once on one machine.
const LANES = 10_000;

/** One for all lanes. */
export class ConnectionTurns {
  readonly #clock: Clock;
  readonly #lanes = new Map<string, { readonly rate: Rate; readonly gcra: Gcra }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves when the lane may open a connection; at once without a rate or when `signal` is aborted. */
  async wait(lane: string, rate: Rate | undefined, signal: AbortSignal): Promise<void> {
    if (rate === undefined) return;
    const gcra = this.#of(lane, rate);
    for (let ms = gcra.take(this.#clock.now()); ms > 0 && !signal.aborted; ms = gcra.take(this.#clock.now())) {
      await new Promise<void>((resolve) => {
        const cancel = this.#clock.after(ms, resolve);
        signal.addEventListener('abort', () => {
          cancel();
          resolve();
        }, { once: true });
      });
    }
  }

  #of(lane: string, rate: Rate): Gcra {
    const known = this.#lanes.get(lane);
    if (known !== undefined && known.rate.count === rate.count && known.rate.perMs === rate.perMs && known.rate.burst === rate.burst) return known.gcra;
    const now = this.#clock.now();
    if (this.#lanes.size >= LANES) for (const [id, { gcra }] of this.#lanes) if (gcra.idle(now)) this.#lanes.delete(id);
    const gcra = new Gcra(rate);
    this.#lanes.set(lane, { rate, gcra });
    return gcra;
  }
}
