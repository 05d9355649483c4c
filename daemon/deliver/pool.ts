// Open sessions, by lane. Callers may rely on: a session is lent to one attempt at a time; an idle one is
// closed after the lane's idle time, after its share of deliveries, when the peer goes away, or when room
// is needed; no limit on open connections is ever exceeded, whether a lane's own or one that lanes share,
// and a connection counts from before it is opened until it is gone. RFC 5321 §4.1.1.10.
import type { Clock } from '../runtime/index.ts';
import type { OutboundSession } from '../smtp/index.ts';

/** A limit on open connections and whose it is: a lane's id, or what several lanes share. */
export interface ConnectionCap {
  readonly key: string;
  readonly connections: number;
}

/** A place for one connection, taken before it is opened. */
export interface Place {
  readonly keys: readonly string[];
  /** Nothing came of it. */
  free(): void;
}

interface Idle {
  readonly lane: string;
  readonly key: string;
  readonly session: OutboundSession;
  readonly stopTimer: () => void;
}

interface Counted {
  open: number;
  /** Attempts that wait for a place here. */
  readonly waiting: Set<() => void>;
}

export class SessionPool {
  readonly #clock: Clock;
  readonly #onCount: (label: string, change: 1 | -1) => void;
  readonly #counts = new Map<string, Counted>();
  /** By lane, the one used last at the end. */
  readonly #idle = new Map<string, Idle[]>();
  readonly #sessions = new Map<OutboundSession, { readonly label: string; readonly keys: readonly string[] }>();

  /** `onCount` hears of each connection that opens (1) or ends (-1), with the label it was added under. */
  constructor(clock: Clock, onCount: (label: string, change: 1 | -1) => void) {
    this.#clock = clock;
    this.#onCount = onCount;
  }

  /** An idle session to this target (`key`), the one used last, or undefined. Idle ones beyond `most` of the lane are ended first. */
  take(lane: string, key: string, most = Number.POSITIVE_INFINITY): OutboundSession | undefined {
    for (let surplus = this.open(lane) - most; surplus > 0; surplus--) if (!this.#endOldest(lane)) break;
    const idle = this.#idle.get(lane) ?? [];
    const at = idle.findLastIndex((one) => one.key === key && one.session.usable);
    if (at === -1) return undefined;
    const [found] = idle.splice(at, 1);
    found?.stopTimer();
    return found?.session;
  }

  /** Whether take() would find one. */
  has(lane: string, key: string): boolean {
    return this.#idle.get(lane)?.some((one) => one.key === key && one.session.usable) === true;
  }

  /** Waits until one more connection stays within every cap, ending idle ones where that helps; then it is counted. */
  async place(caps: readonly ConnectionCap[], signal: AbortSignal): Promise<Place> {
    for (;;) {
      const full = caps.find(({ key, connections }) => this.open(key) >= connections);
      if (full === undefined || signal.aborted) break;
      this.#endIdleOf(full.key);
      await this.#change(full.key, signal);
    }
    const keys = caps.map(({ key }) => key);
    for (const key of keys) this.#of(key).open++;
    let taken = true;
    return { keys, free: () => {
      if (taken) this.#uncount(keys);
      taken = false;
    } };
  }

  /** Counts a new session, on the place taken for it, until it is gone. */
  add(place: Place, label: string, session: OutboundSession): void {
    this.#sessions.set(session, { label, keys: place.keys });
    this.#onCount(label, 1);
    session.onClosed(() => this.#forget(session));
  }

  /** Takes a lent session back, or ends it when it has had its share. */
  give(lane: string, key: string, session: OutboundSession, limits: { readonly deliveriesPerConnection: number | undefined; readonly idleMs: number; readonly connections: number }): void {
    if (!session.usable || !this.#sessions.has(session)) {
      session.close();
      return;
    }
    if (session.full || session.deliveries >= (limits.deliveriesPerConnection ?? Number.POSITIVE_INFINITY) || limits.idleMs <= 0 || this.open(lane) > limits.connections) {
      // Nothing depends on the goodbye, and quit() never rejects.
      void session.quit();
      return;
    }
    const idle = this.#idle.get(lane) ?? [];
    this.#idle.set(lane, idle);
    const stopTimer = this.#clock.after(limits.idleMs, () => {
      this.#drop(lane, session);
      // As above.
      void session.quit();
    });
    idle.push({ lane, key, session, stopTimer });
    // Somebody may want its place more than it does.
    for (const counted of this.#sessions.get(session)?.keys ?? []) this.#wake(counted);
  }

  /** Open connections of a lane or of what lanes share, lent ones and places included. */
  open(key: string): number {
    return this.#counts.get(key)?.open ?? 0;
  }

  /** Says goodbye on every idle session. */
  async closeIdle(): Promise<void> {
    const idle = [...this.#idle.values()].flat();
    this.#idle.clear();
    await Promise.all(idle.map(({ session, stopTimer }) => {
      stopTimer();
      return session.quit();
    }));
  }

  /** Ends everything at once; running sends settle as broken. */
  closeAll(): void {
    for (const session of this.#sessions.keys()) session.close();
  }

  /** Ends the longest idle session counted under a key, whichever lane's it is. */
  #endIdleOf(key: string): void {
    if (this.#endOldest(key)) return;
    for (const lane of this.#idle.keys()) {
      const idle = this.#idle.get(lane) ?? [];
      if (idle.some(({ session }) => this.#sessions.get(session)?.keys.includes(key) === true) && this.#endOldest(lane)) return;
    }
  }

  #endOldest(lane: string): boolean {
    const oldest = this.#idle.get(lane)?.shift();
    if (oldest === undefined) return false;
    oldest.stopTimer();
    // It counts until it is gone; quit() never rejects.
    void oldest.session.quit();
    return true;
  }

  #change(key: string, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const { waiting } = this.#of(key);
      const done = (): void => {
        waiting.delete(done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      waiting.add(done);
      signal.addEventListener('abort', done);
    });
  }

  #wake(key: string): void {
    const next = this.#counts.get(key)?.waiting.values().next();
    if (next?.done === false) next.value();
  }

  #of(key: string): Counted {
    const known = this.#counts.get(key) ?? { open: 0, waiting: new Set() };
    this.#counts.set(key, known);
    return known;
  }

  #uncount(keys: readonly string[]): void {
    for (const key of keys) {
      const counted = this.#of(key);
      counted.open--;
      this.#wake(key);
      if (counted.open === 0 && counted.waiting.size === 0) this.#counts.delete(key);
    }
  }

  #forget(session: OutboundSession): void {
    const counted = this.#sessions.get(session);
    if (counted === undefined) return;
    this.#sessions.delete(session);
    this.#onCount(counted.label, -1);
    const [lane = ''] = counted.keys;
    this.#drop(lane, session);
    this.#uncount(counted.keys);
  }

  #drop(lane: string, session: OutboundSession): void {
    const idle = this.#idle.get(lane);
    const at = idle?.findIndex((one) => one.session === session) ?? -1;
    if (at === -1) return;
    idle?.splice(at, 1)[0]?.stopTimer();
    if (idle?.length === 0) this.#idle.delete(lane);
  }
}
