// What a leaf of the log says, as canonical JSON: members in the order written here, none that is absent,
// so that the same fact always has the same text. Names follow ISO/IEC TS 27560 where it has one; times
// are ISO 8601. A payload names nobody: `pii_principal_id` is the tenant's keyed hash of the address.
import type { AddressHashes, Instant } from '../mail/index.ts';
import type { ConsentEntry } from './ledger.ts';
import type { ConsentRecord, Evidence, Suppression } from './records.ts';

const iso = (at: Instant): string => new Date(at).toISOString();

let lastAt = 0;
let lastText = iso(lastAt);

/** The same for the time of recording, which a whole batch has in common. */
function isoNow(at: Instant): string {
  if (at === lastAt) return lastText;
  lastText = iso(at);
  lastAt = at;
  return lastText;
}

/** A consent given, asked for or refused, or its withdrawal; `supersedes` is the leaf that spoke of it before. */
export function consentPayload(event: 'consent' | 'withdrawal', entry: Pick<ConsentEntry, 'by'> & Partial<Pick<ConsentEntry, 'method' | 'evidence'>>, record: ConsentRecord, hashes: AddressHashes, supersedes: number | undefined): string {
  const { evidence, method } = entry;
  return JSON.stringify({
    event,
    recorded_at: isoNow(record.changedAt),
    by: entry.by,
    pii_principal_id: hashes.consent.toString('hex'),
    purpose: record.purpose,
    event_state: record.state,
    event_time: iso(event === 'withdrawal' ? record.changedAt : record.givenAt),
    lawful_basis: record.legalBasis,
    privacy_notice: record.policyHash,
    collection_method: method,
    source: evidence?.source,
    form_hash: evidence?.formHash,
    ip_pseudonym: evidence?.ipPseudonym,
    double_opt_in: evidence?.doubleOptIn === undefined ? undefined : {
      requested_at: iso(evidence.doubleOptIn.requestedAt),
      confirmed_at: evidence.doubleOptIn.confirmedAt === undefined ? undefined : iso(evidence.doubleOptIn.confirmedAt),
    },
    facts: record.facts,
    jurisdiction: record.jurisdiction,
    tracking: record.tracking,
    valid_until: record.expiresAt === undefined ? undefined : iso(record.expiresAt),
    supersedes,
  });
}

/** The members of a consent payload that the ledger itself reads back. */
export interface ConsentTold {
  readonly by: string;
  readonly method: string;
  readonly evidence: Evidence;
  readonly supersedes?: number;
}

/** undefined where there is no payload, or one that is not about a consent. */
export function readConsentPayload(payload: string | undefined): ConsentTold | undefined {
  if (payload === undefined) return undefined;
  const told = JSON.parse(payload) as Readonly<Record<string, unknown>>;
  if (told['event'] !== 'consent' && told['event'] !== 'withdrawal') return undefined;
  const text = (name: string): string => (typeof told[name] === 'string' ? told[name] : '');
  const optIn = told['double_opt_in'] as { readonly requested_at: string; readonly confirmed_at?: string } | undefined;
  return {
    by: text('by'),
    method: text('collection_method'),
    evidence: {
      source: text('source'),
      time: Date.parse(text('event_time')),
      ...(text('form_hash') !== '' && { formHash: text('form_hash') }),
      ...(text('ip_pseudonym') !== '' && { ipPseudonym: text('ip_pseudonym') }),
      ...(optIn !== undefined && { doubleOptIn: {
        requestedAt: Date.parse(optIn.requested_at), ...(optIn.confirmed_at !== undefined && { confirmedAt: Date.parse(optIn.confirmed_at) }),
      } }),
    },
    ...(typeof told['supersedes'] === 'number' && { supersedes: told['supersedes'] }),
  };
}

/** A suppression, or the lifting of one. */
export function suppressionPayload(event: 'suppression' | 'lift', suppression: Suppression, hash: Buffer, by: string, at: Instant): string {
  return JSON.stringify({
    event, recorded_at: isoNow(at), by, pii_principal_id: hash.toString('hex'), cause: suppression.cause, scope: suppression.scope, since: iso(suppression.since),
    until: suppression.until === undefined ? undefined : iso(suppression.until),
  });
}

/** Anything that is about no person. */
export function notePayload(event: string, by: string, at: Instant, fields: Readonly<Record<string, unknown>>): string {
  return JSON.stringify({ event, recorded_at: isoNow(at), by, ...fields });
}
