// Remembers which hosts spoke TLS lately: who did last week and does not now is more likely cut off on the way than
// changed its mind. Callers may rely on: such a host is given a day to come back before mail goes in clear, so that
// a certificate forgotten over a weekend loses nobody's mail; what was never encrypted is not held up. In memory:
// a restart forgets. RFC 7435 §4.3.
import type { Connected } from '../smtp/index.ts';
import type { Clock } from '../runtime/index.ts';

const REMEMBERED_MS = 7 * 86_400_000;
const HELD_MS = 86_400_000;
// A hundred octets each.
const HOSTS = 50_000;

interface Seen {
  readonly at: number;
  /** Since when it has not; 0: it does. */
  readonly missedSince: number;
}

export class TlsMemory {
  readonly #clock: Clock;
  readonly #seen = new Map<string, Seen>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** '' when this connection to `where` may be used or, broken, be tried in clear; else why not yet. */
  fault(where: string, connected: Connected): string {
    const now = this.#clock.now();
    if (connected.kind === 'session' && connected.session.tls !== '') {
      this.#put(where, { at: now, missedSince: 0 });
      return '';
    }
    const lost = connected.kind === 'session' || (connected.kind === 'broken' && connected.phase === 'tls');
    const seen = this.#seen.get(where);
    if (!lost || seen === undefined || now - seen.at > REMEMBERED_MS) return '';
    const missedSince = seen.missedSince === 0 ? now : seen.missedSince;
    if (now - missedSince >= HELD_MS) {
      this.#seen.delete(where);
      return '';
    }
    this.#put(where, { ...seen, missedSince });
    return `the host spoke TLS lately and does not now${connected.kind === 'broken' ? `: ${connected.reason}` : ''}`;
  }

  #put(where: string, seen: Seen): void {
    this.#seen.delete(where);
    this.#seen.set(where, seen);
    const [oldest] = this.#seen.keys();
    if (this.#seen.size > HOSTS && oldest !== undefined) this.#seen.delete(oldest);
  }
}
