// What went through in the last seconds, by lane and in all: for a person who looks on. Metrics count for
// ever; this forgets, so that it says what is happening now. Whole seconds only, so that a rate does not
// jump with the moment it is asked at.
import type { Clock } from '../runtime/index.ts';

/** `accepted` has no lane. */
export const FLOWS = ['accepted', 'delivered', 'deferred', 'failed'] as const;
export type FlowKind = (typeof FLOWS)[number];
/** A second, each. */
export type FlowRates = Readonly<Record<FlowKind, number>>;

/** Long enough to be steady, short enough to be now. */
const SECONDS = 10;
// Lanes nobody used lately are forgotten when there are so many.
const LANES = 10_000;

interface Second extends Record<FlowKind, number> {
  readonly at: number;
}

const nothing = (): Record<FlowKind, number> => ({ accepted: 0, delivered: 0, deferred: 0, failed: 0 });

/** One a process. */
export class Flow {
  readonly #clock: Clock;
  readonly #lanes = new Map<string, Second[]>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Counts one on a lane; '' for what has none. */
  note(lane: string, kind: FlowKind): void {
    const at = Math.floor(this.#clock.now() / 1_000);
    const seconds = this.#lanes.get(lane) ?? [];
    if (seconds.at(-1)?.at !== at) {
      while ((seconds[0]?.at ?? at) < at - SECONDS) seconds.shift();
      seconds.push({ at, ...nothing() });
    }
    const second = seconds.at(-1);
    if (second !== undefined) second[kind]++;
    if (!this.#lanes.has(lane)) {
      if (this.#lanes.size >= LANES) for (const [known, past] of this.#lanes) if ((past.at(-1)?.at ?? 0) < at - SECONDS) this.#lanes.delete(known);
      this.#lanes.set(lane, seconds);
    }
  }

  /** Of one lane; without one, of all together. */
  rates(lane?: string): FlowRates {
    const now = Math.floor(this.#clock.now() / 1_000);
    const sum = nothing();
    for (const seconds of lane === undefined ? this.#lanes.values() : [this.#lanes.get(lane) ?? []]) {
      for (const second of seconds) if (second.at < now && second.at >= now - SECONDS) for (const kind of FLOWS) sum[kind] += second[kind] / SECONDS;
    }
    return sum;
  }
}
