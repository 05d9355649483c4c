// Ids that sort by time and reveal nothing else: 48 bits of milliseconds and 80 random bits, written
// as 26 characters of Crockford base32. Two ids of one millisecond are unordered on purpose: a counter
// would tell one tenant how much another sends (isolation test I-3).
import { randomFillSync } from 'node:crypto';

const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
// One call for many ids: a randomBytes call each cost a tenth of a whole send.
const pool = Buffer.allocUnsafe(8_192);
let used = pool.length;

/** Fresh random octets from a pool; a view that is never handed out twice, valid until it is copied by the caller. */
export function randomOctets(length: number): Buffer {
  if (used + length > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  used += length;
  return Buffer.from(pool.subarray(used - length, used));
}

/** A new id for the given time (ms since the epoch). */
export function newId(now: number): string {
  let text = '';
  let time = now;
  for (let i = 0; i < 10; i++) {
    text = (ALPHABET[time % 32] ?? '') + text;
    time = Math.floor(time / 32);
  }
  const random = randomOctets(16);
  for (let i = 0; i < 16; i++) text += ALPHABET[(random[i] ?? 0) & 31] ?? '';
  return text;
}

/** True for the 26 characters that newId makes. */
export function isId(text: string): boolean {
  return /^[0-7][0-9A-HJKMNP-TV-Z]{25}$/.test(text);
}

/** The time an id was made, ms since the epoch. */
export function idTime(id: string): number {
  let time = 0;
  for (const c of id.slice(0, 10)) time = time * 32 + ALPHABET.indexOf(c);
  return time;
}
