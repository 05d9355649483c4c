// What a receiver's reply means for a delivery: delivered, wait or give up, which class, and whether the
// mailbox is dead. The words are read by bounces.yaml (mail/bounces.ts); what stands here no file can change:
// a 5.7.x never marks an address as dead, nor does anything said before RCPT; who refuses us before a
// recipient was named is asked again; what is unknown is never worse than its code says. RFC 3463, RFC 5248.
import type { BounceRules, Phase, Reply } from '../mail/index.ts';

/** An id of bounces.yaml. */
export type BounceClass = string;

export interface Classified {
  readonly kind: 'delivered' | 'deferred' | 'failed';
  readonly class: BounceClass;
  readonly deadAddress: boolean;
}

/** What this reply in this phase means for the recipient. Pure. */
export function classify(rules: BounceRules, phase: Phase, { code, enhanced, lines }: Reply): Classified {
  if (code < 300) return { kind: phase === 'final' ? 'delivered' : 'deferred', class: phase === 'final' ? 'none' : 'protocol', deadAddress: false };
  const { id, dead, waits } = rules.classOf({ phase, code, status: enhanced, text: lines.join(' ') });
  // Refused before a recipient was named: the address is not at fault, and the host may think better of us
  // tomorrow. It expires if it does not.
  const early = phase === 'connect' || phase === 'tls' || phase === 'greet';
  if (early || code < 500 || waits) return { kind: 'deferred', class: id, deadAddress: false };
  // Only an answer about the recipient may condemn one: at MAIL a 5.1.x means the sender.
  return { kind: 'failed', class: id, deadAddress: dead && !enhanced.slice(2).startsWith('7.') && (phase === 'rcpt' || phase === 'final') };
}
