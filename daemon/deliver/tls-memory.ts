// Remembers which hosts spoke TLS lately: who did last week and does not now is more likely cut off on the way than
// changed its mind. Callers may rely on: such a host is given a day to come back before mail goes in clear, so that
// a certificate forgotten over a weekend loses nobody's mail; what was never encrypted is not held up. It outlives a
// restart, a crash but for its last minutes. RFC 7435 §4.3.
import type { Connected } from '../smtp/index.ts';
import type { Clock, Kept } from '../runtime/index.ts';

const REMEMBERED_MS = 7 * 86_400_000;
const HELD_MS = 86_400_000;
// A hundred octets each.
const HOSTS = 50_000;
// To the hour is exact enough for a week, and a busy host is not noted with each connection.
const NOTED_MS = 3_600_000;
// A few megabytes at the most, written whole.
const WRITE_MS = 600_000;

/** Hosts by where they are, the longest unseen first. */
export type TlsMemoryState = readonly (readonly [where: string, seen: Seen])[];

interface Seen {
  readonly at: number;
  /** Since when it has not; 0: it does. */
  readonly missedSince: number;
}

export class TlsMemory {
  readonly #clock: Clock;
  readonly #kept: Kept<TlsMemoryState> | undefined;
  readonly #seen = new Map<string, Seen>();
  /** Something has changed and is not written yet. */
  #stopTimer: (() => void) | undefined;

  /** `kept`: where it outlives a restart; without it it does not. */
  constructor(clock: Clock, kept?: Kept<TlsMemoryState>) {
    this.#clock = clock;
    this.#kept = kept;
    for (const [where, seen] of kept?.state ?? []) this.#seen.set(where, seen);
  }

  /** Writes down what has changed. */
  close(): void {
    this.#stopTimer?.();
    if (this.#stopTimer !== undefined) this.#write();
  }

  /** '' when this connection to `where` may be used or, broken, be tried in clear; else why not yet. */
  fault(where: string, connected: Connected): string {
    const now = this.#clock.now();
    const seen = this.#seen.get(where);
    if (connected.kind === 'session' && connected.session.tls !== '') {
      if (seen === undefined || seen.missedSince !== 0 || now - seen.at >= NOTED_MS) this.#put(where, { at: now, missedSince: 0 });
      return '';
    }
    const lost = connected.kind === 'session' || (connected.kind === 'broken' && connected.phase === 'tls');
    if (!lost || seen === undefined || now - seen.at > REMEMBERED_MS) return '';
    const missedSince = seen.missedSince === 0 ? now : seen.missedSince;
    if (now - missedSince >= HELD_MS) {
      this.#seen.delete(where);
      this.#changed();
      return '';
    }
    if (seen.missedSince === 0) this.#put(where, { ...seen, missedSince });
    return `the host spoke TLS lately and does not now${connected.kind === 'broken' ? `: ${connected.reason}` : ''}`;
  }

  #put(where: string, seen: Seen): void {
    this.#seen.delete(where);
    this.#seen.set(where, seen);
    const [oldest] = this.#seen.keys();
    if (this.#seen.size > HOSTS && oldest !== undefined) this.#seen.delete(oldest);
    this.#changed();
  }

  #changed(): void {
    if (this.#kept !== undefined) this.#stopTimer ??= this.#clock.after(WRITE_MS, () => this.#write());
  }

  #write(): void {
    this.#stopTimer = undefined;
    this.#kept?.keep([...this.#seen]);
  }
}
