// Addresses nobody knows yet begin with little and send more each day: a source has so many messages a day
// for each site until its schedule ends, and what is over goes by other sources or waits for the next day
// (UTC). Counts are kept over a restart by whoever opens this; a crash between two keepings forgets some.
import type { Clock } from '../runtime/index.ts';
import type { EgressSource } from '../settings/index.ts';

const DAY_MS = 86_400_000;

/** Messages of a day, by lane. */
export interface WarmUpState {
  readonly day: number;
  readonly counts: Readonly<Record<string, number>>;
}

/** One a process. */
export class WarmUp {
  readonly #clock: Clock;
  #day = 0;
  readonly #counts = new Map<string, number>();
  /** Something was counted since state() was asked for. */
  changed = false;

  constructor(clock: Clock, state?: WarmUpState) {
    this.#clock = clock;
    if (state === undefined) return;
    this.#day = state.day;
    for (const [lane, count] of Object.entries(state.counts)) this.#counts.set(lane, count);
  }

  /** Messages a lane of this source may send today; undefined: as many as it likes. */
  static allowance(source: EgressSource | undefined, now: number): number | undefined {
    const { warmup } = source ?? {};
    return warmup === undefined ? undefined : warmup.perDay[Math.max(0, Math.floor((now - warmup.since) / DAY_MS))];
  }

  /** Until when a lane of this source has had its share; 0: it has some left. */
  pausedUntil(lane: string, source: EgressSource | undefined): number {
    const now = this.#clock.now();
    const allowed = WarmUp.allowance(source, now);
    return allowed === undefined || this.#today(lane, now) < allowed ? 0 : (Math.floor(now / DAY_MS) + 1) * DAY_MS;
  }

  /** One more goes on the lane. */
  count(lane: string, source: EgressSource | undefined): void {
    const now = this.#clock.now();
    if (WarmUp.allowance(source, now) === undefined) return;
    this.#counts.set(lane, this.#today(lane, now) + 1);
    this.changed = true;
  }

  state(): WarmUpState {
    this.changed = false;
    return { day: this.#day, counts: Object.fromEntries(this.#counts) };
  }

  #today(lane: string, now: number): number {
    const day = Math.floor(now / DAY_MS);
    if (day !== this.#day) {
      this.#day = day;
      this.#counts.clear();
    }
    return this.#counts.get(lane) ?? 0;
  }
}
