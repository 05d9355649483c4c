// The shapes that several routes take or give, as zod: what is checked and what the OpenAPI document says
// are the same object. Names are snake_case; times are ISO 8601 with an offset; unknown members are refused.
import { z } from 'zod';
import { BASIS_FACTS, CLICK_MODES, LEGAL_BASES, OPEN_MODES, isMailError, parseAddress, type Address, type Instant } from '../../mail/index.ts';
import { CONSENT_STATES, SUPPRESSION_CAUSES, parseScope, type Suppression } from '../../ledger/index.ts';

/** Items of one request: some 60 ms of work, in slices. */
export const ITEMS = 1_000;

// 254 characters is the longest address there is (RFC 5321 §4.5.3.1.3).
export const addressText = z.string().min(1).max(254).meta({ description: 'A mailbox, without angle brackets.' });

/** An address, read. */
export const person = z.strictObject({ address: addressText.transform(readAddress) });

function readAddress(text: string, context: z.RefinementCtx): Address {
  try {
    return parseAddress(text);
  } catch (error) {
    if (!isMailError(error, 'E_ADDRESS')) throw error;
    context.addIssue({ code: 'custom', message: error.message });
    return z.NEVER;
  }
}

/** A time in a request, as ms since the epoch; from 1970 on, as six octets hold it. */
export const time = z.iso.datetime({ offset: true }).transform((text, context): Instant => {
  const at = Date.parse(text);
  if (at >= 0) return at;
  context.addIssue({ code: 'custom', message: 'times before 1970 are not taken' });
  return z.NEVER;
});

export const iso = (at: Instant): string => new Date(at).toISOString();
/** A time in an answer. */
export const at = z.iso.datetime();

// What a record has room for: 255 octets, of which a character may need three.
export const text = z.string().min(1).max(255).refine((value) => Buffer.byteLength(value) <= 255, 'longer than 255 octets');
export const hash = z.string().regex(/^[0-9a-f]{64}$/).meta({ description: 'SHA-256, hex.' });
export const scope = text.transform((value, context) => {
  const read = parseScope(value);
  if (read !== undefined) return read;
  context.addIssue({ code: 'custom', message: 'expected all, purpose:NAME or stream:NAME' });
  return z.NEVER;
}).meta({ description: '`all`, `purpose:NAME` or `stream:NAME`.' });

export const tracking = z.strictObject({ opens: z.enum(OPEN_MODES).default('none'), clicks: z.enum(CLICK_MODES).default('none') });
export const legalBasis = z.enum(LEGAL_BASES);
export const basisFacts = z.array(z.enum(BASIS_FACTS)).max(BASIS_FACTS.length);
export const consentState = z.enum(CONSENT_STATES);
export const cause = z.enum(SUPPRESSION_CAUSES);
/** The leaf of the tenant's log. */
export const evidenceId = z.string().meta({ description: 'Evidence id: the leaf of the log, for /v1/receipts/{leaf}.' });

export const shownSuppression = z.strictObject({ id: z.string(), scope: z.string(), cause, since: at, until: at.optional(), by: z.string() });

export function showSuppression({ id, scope: about, cause: why, since, until, by }: Suppression): z.input<typeof shownSuppression> {
  return { id, scope: about, cause: why, since: iso(since), ...(until !== undefined && { until: iso(until) }), by };
}
