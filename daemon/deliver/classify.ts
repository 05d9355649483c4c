// What a receiver's reply means: delivered, wait or give up, which class, and whether the mailbox is dead.
// A pure table, read from the enhanced status first, then the text, then the code. Callers may rely on: a
// 5.7.x reply never marks an address as dead, nor does anything that DNS or a policy may be wrong about;
// what is unknown is never worse than its code says. RFC 3463, RFC 5248, RFC 7505.
import type { Phase, Reply } from '../mail/index.ts';

/** Closed list: metric labels and bounce rules come from it. */
export const BOUNCE_CLASSES = [
  'none', 'bad-mailbox', 'inactive-mailbox', 'bad-domain', 'quota', 'too-large', 'too-many', 'content', 'spam', 'policy', 'reputation', 'rate',
  'greylisted', 'auth', 'tls', 'dns', 'routing', 'unsupported', 'protocol', 'connection', 'timeout', 'sandbox', 'other',
] as const;
export type BounceClass = (typeof BOUNCE_CLASSES)[number];

export interface Classified {
  readonly kind: 'delivered' | 'deferred' | 'failed';
  readonly class: BounceClass;
  readonly deadAddress: boolean;
}

interface Row {
  /** Without the class digit: `1.1` is 4.1.1 and 5.1.1. */
  readonly detail?: RegExp;
  readonly text?: RegExp;
  readonly codes?: readonly number[];
  readonly class: BounceClass;
  /** A 5yz with this meaning says that the mailbox does not exist. */
  readonly dead?: true;
  /** Deferred even with a 5yz: it concerns this moment, not this address. */
  readonly waits?: true;
}

// First match wins. A text counts only where it can be read in one way.
const ROWS: readonly Row[] = [
  // Too many recipients is about the transaction; receivers say it with 552 and 550 as well (RFC 5321 §4.5.3.1.10).
  { detail: /^5\.3$/, class: 'too-many', waits: true },
  { text: /too many recipients/i, class: 'too-many', waits: true },
  // A full mailbox is emptied again.
  { detail: /^2\.2$/, class: 'quota', waits: true },
  { detail: /^3\.4$/, class: 'too-large' },
  { detail: /^2\.3$/, class: 'too-large' },
  { text: /gr[ae]y-?list/i, class: 'greylisted' },
  { detail: /^7\.(2[0-24-7])$/, class: 'auth' },
  { detail: /^7\.28$/, class: 'rate' },
  { detail: /^7\.10$/, class: 'tls' },
  { detail: /^7\./, text: /spamhaus|blocklist|black ?list|\bdnsbl\b|\brbl\b|reputation/i, class: 'reputation' },
  { detail: /^7\./, text: /\b(rate limit|unusual rate|too many (?:messages|connections))/i, class: 'rate' },
  { detail: /^7\./, text: /\bspam|unsolicited/i, class: 'spam' },
  { detail: /^7\./, text: /\b(dmarc|dkim|spf)\b/i, class: 'auth' },
  { detail: /^7\./, class: 'policy' },
  // 1.2 is not dead: it is DNS seen through the receiver's eyes, and may be their fault or passing.
  { detail: /^1\.[136]$/, class: 'bad-mailbox', dead: true },
  { detail: /^1\.10$/, class: 'bad-domain', dead: true },
  { detail: /^1\.2$/, class: 'bad-domain' },
  { detail: /^1\.[78]$/, class: 'policy' },
  // 2.1 is a mailbox switched off, and people return from leave.
  { detail: /^2\.1$/, class: 'inactive-mailbox' },
  { detail: /^6\.7$/, class: 'unsupported' },
  { detail: /^6\.|^2\.4$/, class: 'content' },
  { detail: /^4\.[1-7]$/, class: 'routing' },
  { detail: /^3\.2$/, class: 'rate' },
  { detail: /^5\./, class: 'protocol' },
  // Without a telling status: what the text says beyond doubt.
  { detail: /^$|^[0-9]\.0$/, text: /(?:mailbox|quota|storage).{0,30}(?:full|exceeded)|over ?quota/i, class: 'quota', waits: true },
  { detail: /^$|^[0-9]\.0$/, text: /spamhaus|blocklist|black ?list|\bdnsbl\b|\brbl\b/i, class: 'reputation' },
  { detail: /^$|^[0-9]\.0$/, text: /\bspam\b|unsolicited/i, class: 'spam' },
  { detail: /^$|^[0-9]\.0$/, text: /(?:rate limit|too many (?:messages|connections)|try again later)/i, class: 'rate' },
  { detail: /^$|^[0-9]\.0$/, text: /(?:no such|unknown|invalid) (?:user|mailbox|recipient)|(?:user|mailbox|recipient) (?:unknown|not found)|does not exist/i, codes: [550, 551, 553], class: 'bad-mailbox', dead: true },
  { codes: [552], class: 'quota', waits: true },
  { codes: [450, 452], class: 'rate' },
  { codes: [421], class: 'connection' },
  { codes: [500, 501, 502, 503, 504, 555], class: 'protocol' },
];

/** What this reply in this phase means for the recipient. Pure. */
export function classify(phase: Phase, reply: Reply): Classified {
  if (reply.code < 300) return { kind: phase === 'final' ? 'delivered' : 'deferred', class: phase === 'final' ? 'none' : 'protocol', deadAddress: false };
  const detail = reply.enhanced.slice(2);
  const text = reply.lines.join(' ');
  const row = ROWS.find((r) => (r.detail === undefined || r.detail.test(detail))
    && (r.text === undefined || r.text.test(text))
    && (r.codes === undefined || r.codes.includes(reply.code)));
  const found = row?.class ?? 'other';
  // Refused before a recipient was named: the address is not at fault, and the host may think better of us
  // tomorrow. It expires if it does not.
  const early = phase === 'connect' || phase === 'tls' || phase === 'greet';
  if (early || reply.code < 500 || row?.waits === true) return { kind: 'deferred', class: found, deadAddress: false };
  // Only an answer about the recipient may condemn one: at MAIL a 5.1.x means the sender.
  return { kind: 'failed', class: found, deadAddress: row?.dead === true && (phase === 'rcpt' || phase === 'final') };
}
