// Open sessions, by lane. Callers may rely on: a session is lent to one attempt at a time; an idle one is
// closed after the lane's idle time, after its share of deliveries, when the peer goes away, or when the
// lane needs the room; the count of open connections per lane is exact. RFC 5321 §4.1.1.10.
import type { Clock } from '../runtime/index.ts';
import type { OutboundSession } from '../smtp/index.ts';

interface Idle {
  readonly key: string;
  readonly session: OutboundSession;
  readonly stopTimer: () => void;
}

interface LaneSessions {
  open: number;
  idle: Idle[];
}

export class SessionPool {
  readonly #clock: Clock;
  readonly #onCount: (label: string, change: 1 | -1) => void;
  readonly #lanes = new Map<string, LaneSessions>();
  readonly #sessions = new Map<OutboundSession, { readonly label: string }>();

  /** `onCount` hears of each connection that opens (1) or ends (-1), with the label it was added under. */
  constructor(clock: Clock, onCount: (label: string, change: 1 | -1) => void) {
    this.#clock = clock;
    this.#onCount = onCount;
  }

  /** An idle session to this target (`key`), the one used last, or undefined. */
  take(lane: string, key: string): OutboundSession | undefined {
    const known = this.#lanes.get(lane);
    if (known === undefined) return undefined;
    const at = known.idle.findLastIndex((idle) => idle.key === key && idle.session.usable);
    if (at === -1) return undefined;
    const [idle] = known.idle.splice(at, 1);
    idle?.stopTimer();
    return idle?.session;
  }

  /** Closes the longest idle sessions until one more connection stays within `most`. */
  makeRoom(lane: string, most: number): void {
    const known = this.#lanes.get(lane);
    if (known === undefined) return;
    while (known.open >= most) {
      const oldest = known.idle.shift();
      if (oldest === undefined) return;
      oldest.stopTimer();
      // Counted as closed from here; nothing depends on the goodbye, and quit() never rejects.
      void oldest.session.quit();
      this.#forget(lane, oldest.session);
    }
  }

  /** Counts a new session until it is gone. */
  add(lane: string, label: string, session: OutboundSession): void {
    const known = this.#lanes.get(lane) ?? { open: 0, idle: [] };
    this.#lanes.set(lane, known);
    known.open++;
    this.#sessions.set(session, { label });
    this.#onCount(label, 1);
    session.onClosed(() => this.#forget(lane, session));
  }

  /** Takes a lent session back, or ends it when it has had its share. */
  give(lane: string, key: string, session: OutboundSession, limits: { readonly deliveriesPerConnection: number; readonly idleMs: number }): void {
    const known = this.#lanes.get(lane);
    if (!session.usable || known === undefined) {
      session.close();
      return;
    }
    if (session.deliveries >= limits.deliveriesPerConnection || limits.idleMs <= 0) {
      // Nothing depends on the goodbye, and quit() never rejects.
      void session.quit();
      return;
    }
    const stopTimer = this.#clock.after(limits.idleMs, () => {
      known.idle = known.idle.filter((idle) => idle.session !== session);
      // As above.
      void session.quit();
    });
    known.idle.push({ key, session, stopTimer });
  }

  /** Open connections of a lane, lent ones included. */
  open(lane: string): number {
    return this.#lanes.get(lane)?.open ?? 0;
  }

  /** Says goodbye on every idle session. */
  async closeIdle(): Promise<void> {
    const idle = [...this.#lanes.values()].flatMap((lane) => lane.idle.splice(0));
    await Promise.all(idle.map(({ session, stopTimer }) => {
      stopTimer();
      return session.quit();
    }));
  }

  /** Ends everything at once; running sends settle as broken. */
  closeAll(): void {
    for (const session of this.#sessions.keys()) session.close();
  }

  #forget(lane: string, session: OutboundSession): void {
    const counted = this.#sessions.get(session);
    if (counted === undefined) return;
    this.#sessions.delete(session);
    this.#onCount(counted.label, -1);
    const known = this.#lanes.get(lane);
    if (known === undefined) return;
    known.open--;
    for (const idle of known.idle) if (idle.session === session) idle.stopTimer();
    known.idle = known.idle.filter((idle) => idle.session !== session);
    if (known.open === 0) this.#lanes.delete(lane);
  }
}
