// Answers kept for as long as their TTL says, the least recently used given up first. Bounded in number
// and, by leaving out unusually large answers, in octets. Denials are kept as long as the SOA allows,
// failures a few seconds.
import type { Clock } from '../runtime/index.ts';
import type { Answer, Read } from './answer.ts';

interface Kept {
  readonly answer: Answer<unknown>;
  readonly untilMs: number;
}

// Half a kilobyte each as a rule: 25 MB when full, which is the mail of a large sender's day.
const ENTRIES = 50_000;
// Ordinary answers are far smaller; what is larger is fetched anew, so that a hostile zone cannot fill memory.
const KEPT_OCTETS = 4_096;
// A TTL of 0 would mean a query for every single recipient; five seconds is one burst's worth.
const MIN_SECONDS = 5;
// Longer TTLs are mostly mistakes, and a day's wait is the longest an operator can be told to expect.
const MAX_SECONDS = 86_400;
// RFC 2308 §5: one to three hours is a sensible limit for denials.
const MAX_NEGATIVE_SECONDS = 3_600;
// RFC 9520 §3.2: failures MUST be kept for at least 1 second and at most 5 minutes.
const FAILED_SECONDS = 5;

export class AnswerCache {
  readonly #kept = new Map<string, Kept>();
  readonly #clock: Clock;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** What is kept under `key`, its TTL counted down; undefined when there is nothing or its time is over. */
  get(key: string): Answer<unknown> | undefined {
    const kept = this.#kept.get(key);
    if (kept === undefined) return undefined;
    this.#kept.delete(key);
    const leftMs = kept.untilMs - this.#clock.now();
    if (leftMs <= 0) return undefined;
    // Put back at the end: a Map keeps the order of insertion, so its first key is the least recently used.
    this.#kept.set(key, kept);
    return kept.answer.kind === 'found' ? { ...kept.answer, ttlSeconds: Math.ceil(leftMs / 1_000) } : kept.answer;
  }

  /** Keeps an answer that took `sizeBytes` on the wire for as long as it may be kept, and returns it with that TTL. */
  keep(key: string, read: Read, sizeBytes: number): Answer<unknown> {
    const seconds = secondsFor(read);
    const answer = read.answer.kind === 'found' ? { ...read.answer, ttlSeconds: seconds ?? 0 } : read.answer;
    if (seconds === undefined || sizeBytes > KEPT_OCTETS) return answer;
    this.#kept.delete(key);
    this.#kept.set(key, { answer, untilMs: this.#clock.now() + seconds * 1_000 });
    if (this.#kept.size > ENTRIES) {
      const oldest = this.#kept.keys().next();
      if (oldest.done !== true) this.#kept.delete(oldest.value);
    }
    return answer;
  }
}

function secondsFor({ answer, cacheSeconds }: Read): number | undefined {
  if (answer.kind === 'failed') return FAILED_SECONDS;
  if (cacheSeconds === undefined) return undefined;
  return Math.max(MIN_SECONDS, Math.min(cacheSeconds, answer.kind === 'none' ? MAX_NEGATIVE_SECONDS : MAX_SECONDS));
}
