// When a deferred recipient is tried again: doubling from `firstMs` to `maxMs` with jitter, so that a
// burst that was deferred together does not come back together. Pure.
// RFC 5321 §4.5.4.1 asks for 30 minutes "at least" in general and allows less for the first retries.

/** A quarter either way: enough to spread a burst, too little to surprise an operator. */
const JITTER = 0.25;

/**
 * How long to wait after `attempts` attempts (>= 1), ms. `askedMs` is what the receiver asked for; it
 * is honoured up to `maxMs`. `random` is in [0, 1).
 */
export function backoffMs(attempts: number, retry: { readonly firstMs: number; readonly maxMs: number }, random: number, askedMs = 0): number {
  const doubled = retry.firstMs * 2 ** Math.min(attempts - 1, 30);
  const jittered = Math.min(doubled, retry.maxMs) * (1 - JITTER + 2 * JITTER * random);
  return Math.round(Math.max(jittered, Math.min(askedMs, retry.maxMs)));
}
