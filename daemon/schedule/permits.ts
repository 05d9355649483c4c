// What must allow an attempt before it is begun: the lane, what it shares with other lanes, and the tenant,
// on the lane and in all. Each is a gate with a number of attempts at work and a pace. Callers may rely on:
// an attempt is counted at all its gates or at none; a permit is given back once; the gates' numbers are
// those of the moment, so that a changed limit holds from the next attempt on. The deliverer keeps the
// rates once more where mail really leaves; here they keep attempts from waiting with a message in hand.
import { Pace } from '../mail/index.ts';
import type { LaneLimits, Rate, SharedLimit, TotalLimits } from '../settings/index.ts';

/** What a gate lets through now; undefined: anything. */
export interface GateLimits {
  readonly key: string;
  readonly connections: number | undefined;
  readonly messageRate: Rate | undefined;
}

/** Why nothing goes now. `until` 0: until an attempt under way has ended. */
export interface Held {
  readonly by: string;
  readonly until: number;
}

/** To be given back when the attempt has ended. */
export interface Permit {
  readonly keys: readonly string[];
}

interface Gate {
  active: number;
  pace: Pace | undefined;
  rate: Rate | undefined;
  /** Lanes that found it full. */
  readonly waiting: Set<string>;
}

// Gates that nobody uses are forgotten when there are so many.
const GATES = 10_000;

/** One for all lanes. */
export class Permits {
  readonly #gates = new Map<string, Gate>();
  readonly #onRoom: (lane: string) => void;

  /** `onRoom` hears of a lane that was held for want of a connection elsewhere when there is room again. */
  constructor(onRoom: (lane: string) => void) {
    this.#onRoom = onRoom;
  }

  /** What holds at one of these gates; undefined: nothing. */
  holds(lane: string, gates: readonly GateLimits[], now: number): Held | undefined {
    for (const { key, connections, messageRate } of gates) {
      const gate = this.#gates.get(key);
      if (gate === undefined) continue;
      if (connections !== undefined && gate.active >= connections) {
        if (key !== lane) gate.waiting.add(lane);
        return { by: key === lane ? `all ${connections} connections of the lane are at work` : `all ${connections} connections of ${key} are at work`, until: 0 };
      }
      const waitMs = messageRate === undefined ? 0 : this.#pace(gate, messageRate)?.wait(now) ?? 0;
      if (waitMs > 0 && messageRate !== undefined) return { by: `the message rate of ${key === lane ? 'the lane' : key}`, until: now + waitMs };
    }
    return undefined;
  }

  /** Counts one attempt at all these gates. */
  take(gates: readonly GateLimits[], now: number): Permit {
    if (this.#gates.size > GATES) this.#sweep(now);
    for (const { key, messageRate } of gates) {
      const gate = this.#gates.get(key) ?? { active: 0, pace: undefined, rate: undefined, waiting: new Set() };
      this.#gates.set(key, gate);
      gate.active++;
      if (messageRate !== undefined) this.#pace(gate, messageRate)?.take(now);
    }
    return { keys: gates.map(({ key }) => key) };
  }

  give(permit: Permit): void {
    for (const key of permit.keys) {
      const gate = this.#gates.get(key);
      if (gate === undefined) continue;
      gate.active--;
      const waiting = [...gate.waiting];
      gate.waiting.clear();
      for (const lane of waiting) this.#onRoom(lane);
    }
  }

  /** The state of a lane's rate weighs nothing any more. */
  idle(key: string, now: number): boolean {
    const gate = this.#gates.get(key);
    return gate === undefined || (gate.active === 0 && (gate.pace?.idle(now) ?? true));
  }

  #pace(gate: Gate, rate: Rate): Pace | undefined {
    if (gate.rate?.count !== rate.count || gate.rate.perMs !== rate.perMs || gate.rate.burst !== rate.burst) {
      gate.rate = rate;
      gate.pace = new Pace(rate, gate.pace);
    }
    return gate.pace;
  }

  #sweep(now: number): void {
    for (const [key, gate] of this.#gates) if (gate.waiting.size === 0 && this.idle(key, now)) this.#gates.delete(key);
  }
}

/** The gates of a lane for everybody. */
export function laneGates(lane: string, limits: LaneLimits, shared: readonly SharedLimit[]): readonly GateLimits[] {
  return [{ key: lane, connections: limits.connections, messageRate: limits.messageRate }, ...shared.map((one) => ({ key: one.key, connections: one.connections, messageRate: one.messageRate }))];
}

/** The gates of one tenant on a lane. */
export function tenantGates(lane: string, tenant: string, limits: LaneLimits, total: TotalLimits | undefined): readonly GateLimits[] {
  return [
    ...(limits.tenantConnections === undefined && limits.tenantMessageRate === undefined ? []
      : [{ key: `tenant ${tenant} on ${lane}`, connections: limits.tenantConnections, messageRate: limits.tenantMessageRate }]),
    ...(total === undefined ? [] : [{ key: `tenant ${tenant}`, connections: total.connections, messageRate: total.messageRate }]),
  ];
}
