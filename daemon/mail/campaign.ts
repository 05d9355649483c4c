// What an application calls the mailing that a message belongs to: a header field it sends anyway, which is
// read here and passed on as it came. The name serves the operator's hand on the queue and nothing else, so
// that one that cannot be used (twice there, too long, not printable) is no name, and no reason to refuse.
import { fieldValues, type HeaderIndex } from './headers.ts';

/** Looked for in this order; the first that can be used counts. */
const FIELDS = ['x-campaign-id', 'x-campaign', 'feedback-id'] as const;
// Longer than any id of a mailing that is meant to be typed. No control, format or unassigned characters: it is printed.
const NAME = /^[^\p{C}\p{Zl}\p{Zp}]{1,128}$/u;

/** The campaign of a message; `field` is asked in place of the usual ones. Never throws. */
export function campaignOf(raw: Buffer, header: HeaderIndex, field?: string): string | undefined {
  for (const name of field === undefined ? FIELDS : [field.toLowerCase()]) {
    const [value, second] = fieldValues(raw, header, name);
    // Gmail's Feedback-ID is campaign:customer:kind:sender.
    const campaign = name === 'feedback-id' ? value?.split(':', 1)[0]?.trim() : value;
    if (campaign !== undefined && second === undefined && NAME.test(campaign)) return campaign;
  }
  return undefined;
}
