// The gate's two stamps: the only places where a message becomes Admitted and a due recipient Cleared.
// Both take what proves it, so that neither can be had without a verdict.
import type { Admitted, AdmittedRecipient, Cleared, Due, Submitted } from '../mail/index.ts';
import type { Yes } from './verdict.ts';

/** Every one of `recipients` got a yes at RCPT, and the message one at the end of DATA. */
export function admit(submitted: Submitted, recipients: readonly AdmittedRecipient[]): Admitted {
  const { recipients: _, ...envelope } = submitted.envelope;
  return { ...submitted, envelope, recipients } as unknown as Admitted;
}

/** This recipient got a yes just now. */
export function clear(due: Due, verdict: Yes): Cleared {
  const { evidence, policy, tracking, unsubscribable } = verdict;
  return { ...due, evidence, policy, tracking, unsubscribable } as unknown as Cleared;
}
