// The decision: may this sender, this message, this recipient? Pure functions of their arguments, asked
// at MAIL, RCPT, the end of DATA and again at every attempt. Callers may rely on: the default is no; a
// fact that could not be read is "cannot tell", which becomes a 451 and never a yes; expiry is judged at
// `now`; and `explain` runs the same code, only keeping notes.
//
// Suppressions hold for every stream, transactional ones included, within their scope. Hard bounces,
// complaints, erasures and manual ones are recorded with scope all and so stop everything; unsubscribes
// and objections are against a purpose, so a person who left the newsletter still gets the receipt.
// What counts is the scope on record, not the cause: an objection with scope all stops everything too.
import { CLICK_MODES, NO_TRACKING, OPEN_MODES, addressKeys, isMailError, parseAddress, type Address, type Envelope, type Instant, type MessageFacts, type Origin, type Tracking } from '../mail/index.ts';
import type { Credential, Policy, Stream, Tenant } from '../settings/index.ts';
import type { ConsentRecord, ConsentState, Facts, Suppression, Suspension } from '../ledger/index.ts';
import { ruleSentence, type RuleId } from './rules.ts';

/** One rule as it was asked, for `postern explain`. */
export interface Step {
  readonly rule: RuleId;
  /** `passed`: it had nothing against it. `decided`: it gave the answer. */
  readonly result: 'passed' | 'decided';
  readonly says: string;
}

interface Explained {
  readonly rule: RuleId;
  /** Only when asked for. */
  readonly steps?: readonly Step[];
}

export interface Yes extends Explained {
  readonly answer: 'yes';
  /** The consent record relied on; '' where none was needed. */
  readonly evidence: string;
  /** Hash of the policy it rests on: that of the consent, or else the one in force; '' for a notice. */
  readonly policy: string;
  readonly tracking: Tracking;
  /** The mail must offer a way out. */
  readonly unsubscribable: boolean;
}

export interface No extends Explained {
  readonly answer: 'no';
  readonly reason: string;
}

export interface CannotTell extends Explained {
  readonly answer: 'cannot-tell';
  readonly reason: string;
}

export type Verdict = Yes | No | CannotTell;

export interface SenderQuestion {
  readonly tenant: Tenant;
  readonly credential: Credential;
  /** '' is the null reverse-path. */
  readonly mailFrom: string;
  /** `undefined`: the store did not answer. */
  readonly facts: { readonly suspension?: Suspension } | undefined;
  readonly explain?: boolean;
}

export interface RecipientQuestion {
  readonly tenant: Tenant;
  readonly stream: Stream;
  readonly now: Instant;
  /** `undefined`: the store did not answer. */
  readonly facts: Facts | undefined;
  readonly explain?: boolean;
}

export interface MessageQuestion {
  readonly tenant: Tenant;
  readonly stream: Stream;
  readonly credential: Credential;
  readonly envelope: Envelope;
  readonly header: MessageFacts;
  readonly explain?: boolean;
}

export interface AttemptQuestion extends Omit<RecipientQuestion, 'tenant' | 'stream'> {
  readonly origin: Origin;
  /** `undefined`: a reload has taken it away since; the message waits. */
  readonly tenant: Tenant | undefined;
  readonly stream: Stream | undefined;
}

/** May this credential send, and under this reverse-path? */
export function judgeSender({ tenant, credential, mailFrom, facts, explain }: SenderQuestion): Verdict {
  const notes = new Notes(explain);
  if (facts === undefined) return notes.cannotTell('ledger-unavailable');
  notes.pass('ledger-unavailable');
  if (facts.suspension !== undefined) return notes.no('tenant-suspended');
  notes.pass('tenant-suspended');
  // RFC 5321 §4.5.5: the null reverse-path is for notices that must not be answered; From is judged at DATA.
  if (mailFrom !== '' && !mayUse(credential, mailFrom)) return notes.no('sender-not-allowed');
  notes.pass('sender-not-allowed');
  return notes.yes('ok-sender', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false }, tenant.id);
}

/** May this person be mailed on this stream, now, and how far may they be tracked? */
export function judgeRecipient({ tenant, stream, now, facts, explain }: RecipientQuestion): Verdict {
  const notes = new Notes(explain);
  if (facts === undefined) return notes.cannotTell('ledger-unavailable');
  notes.pass('ledger-unavailable');
  if (facts.suspension !== undefined) return notes.no('tenant-suspended');
  notes.pass('tenant-suspended');
  const current = policyInForce(tenant, now);
  if (current === undefined) return notes.cannotTell('policy-not-in-force');
  notes.pass('policy-not-in-force');
  const purpose = stream.purpose;
  // Every stream has a declared purpose, also one that needs no consent (GDPR Art. 5(1)(b)).
  if (!current.purposes.includes(purpose)) return notes.no('purpose-not-in-policy', purpose);
  notes.pass('purpose-not-in-policy', purpose);
  const against = facts.suppressions.find((suppression) => holds(suppression, stream, now));
  if (against !== undefined) return notes.no(`suppressed-${against.cause}`);

  const consent = facts.consent?.purpose === purpose ? facts.consent : undefined;
  const collected = tenant.policies.find((policy) => policy.hash === consent?.policyHash);
  const fault = consentFault(consent, collected, purpose, now);
  const unsubscribable = stream.class === 'marketing' || stream.consentRequired;
  if (stream.consentRequired || fault === undefined) {
    if (fault !== undefined) return notes.no(fault, purpose);
    // consentFault has looked at both; this tells the compiler.
    if (consent === undefined || collected === undefined) return notes.no('consent-missing', purpose);
    const tracking = leastOf(collected.tracking, current.tracking, consent.tracking);
    const found = { evidence: consent.id, policy: collected.hash, tracking, unsubscribable };
    return stream.consentRequired ? notes.yes('ok-consent', found, purpose) : notes.yes('ok-no-consent-needed', found, stream.id);
  }
  // Marketing on another legal basis (soft opt-in) ends with the person's no like any other marketing.
  if (stream.class === 'marketing' && (fault === 'consent-withdrawn' || fault === 'consent-refused')) return notes.no(fault, purpose);
  return notes.yes('ok-no-consent-needed', { evidence: '', policy: current.hash, tracking: NO_TRACKING, unsubscribable }, stream.id);
}

/** May a message with this header be sent on this stream? */
export function judgeMessage({ tenant, stream, credential, header, explain }: MessageQuestion): Verdict {
  const notes = new Notes(explain);
  if (header.fromMalformed) return notes.no('message-from-malformed');
  notes.pass('message-from-malformed');
  // RFC 5322 §3.6, §3.6.2. More than one author needs a Sender field and divides DMARC; both are refused.
  const from = header.from[0];
  if (header.fromFields !== 1 || header.from.length !== 1 || from === undefined) return notes.no('message-from-count');
  notes.pass('message-from-count');
  const address = readAddress(from);
  if (address === undefined || !mayUseAddress(credential, address)) return notes.no('message-from-not-allowed');
  notes.pass('message-from-not-allowed');
  if (!tenant.domains.some((domain) => domain.name === address.domain)) return notes.no('message-from-domain');
  notes.pass('message-from-domain');
  // RFC 6409 §8.1: Sender is shown too, and must not name somebody else.
  if (header.sender !== undefined && !mayUse(credential, header.sender)) return notes.no('message-sender-not-allowed');
  notes.pass('message-sender-not-allowed');
  // RFC 5322 §3.6: at most one each; a missing one is added on the way (RFC 6409 §8).
  if (header.dates > 1 || header.messageIds > 1) return notes.no('message-duplicate-field');
  notes.pass('message-duplicate-field');
  // One recipient's address is not another's to read.
  if (stream.class === 'marketing' && header.toAndCc > 1) return notes.no('message-visible-recipients', String(header.toAndCc));
  notes.pass('message-visible-recipients', String(header.toAndCc));
  return notes.yes('ok-message', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false });
}

/** judgeRecipient again, at the moment of the attempt; Postern's own notices always pass, untracked. */
export function judgeAttempt({ origin, tenant, stream, now, facts, explain }: AttemptQuestion): Verdict {
  if (origin.kind === 'notice') {
    return new Notes(explain).yes('notice', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false });
  }
  if (tenant === undefined || stream === undefined) return new Notes(explain).cannotTell('stream-unknown');
  return judgeRecipient({ tenant, stream, now, facts, ...(explain === undefined ? {} : { explain }) });
}

/** The policy of the latest `effectiveAt` that is not after `now`. */
export function policyInForce(tenant: Tenant, now: Instant): Policy | undefined {
  return tenant.policies.findLast((policy) => policy.effectiveAt <= now);
}

function holds({ scope, until }: Suppression, stream: Stream, now: Instant): boolean {
  if (until !== undefined && until <= now) return false;
  return scope === 'all' || scope === `purpose:${stream.purpose}` || scope === `stream:${stream.id}`;
}

const STATE_FAULT = {
  pending: 'consent-pending',
  given: undefined,
  withdrawn: 'consent-withdrawn',
  refused: 'consent-refused',
  expired: 'consent-expired',
} as const satisfies Record<ConsentState, RuleId | undefined>;

function consentFault(consent: ConsentRecord | undefined, collected: Policy | undefined, purpose: string, now: Instant): RuleId | undefined {
  if (consent === undefined) return 'consent-missing';
  const fault = STATE_FAULT[consent.state];
  if (fault !== undefined) return fault;
  if (consent.expiresAt !== undefined && consent.expiresAt <= now) return 'consent-expired';
  if (collected === undefined) return 'policy-unknown';
  // What the policy of that day did not allow nobody has agreed to.
  return collected.purposes.includes(purpose) ? undefined : 'purpose-not-in-policy';
}

/** Each mode includes less than the next, so that the intersection is the smallest. */
function leastOf(...all: readonly Tracking[]): Tracking {
  const opens = Math.min(...all.map((tracking) => OPEN_MODES.indexOf(tracking.opens)));
  const clicks = Math.min(...all.map((tracking) => CLICK_MODES.indexOf(tracking.clicks)));
  return { opens: OPEN_MODES[opens] ?? 'none', clicks: CLICK_MODES[clicks] ?? 'none' };
}

function mayUse(credential: Credential, sender: string): boolean {
  const address = readAddress(sender);
  return address !== undefined && mayUseAddress(credential, address);
}

function mayUseAddress(credential: Credential, address: Address): boolean {
  return credential.from.some((allowed) => {
    if (!allowed.includes('@')) return allowed === address.domain;
    const known = readAddress(allowed);
    return known !== undefined && addressKeys(known).consent === addressKeys(address).consent;
  });
}

function readAddress(text: string): Address | undefined {
  try {
    return parseAddress(text);
  } catch (error) {
    if (isMailError(error, 'E_ADDRESS')) return undefined; // what is no address is nobody's
    throw error;
  }
}

/** Makes verdicts, and keeps the steps when they are wanted. */
class Notes {
  readonly #steps: Step[] | undefined;

  constructor(explain: boolean | undefined) {
    this.#steps = explain === true ? [] : undefined;
  }

  pass(rule: RuleId, about = ''): void {
    this.#steps?.push({ rule, result: 'passed', says: ruleSentence(rule, about) });
  }

  yes(rule: RuleId, found: Pick<Yes, 'evidence' | 'policy' | 'tracking' | 'unsubscribable'>, about = ''): Yes {
    return { answer: 'yes', rule, ...found, ...this.#decided(rule, about) };
  }

  no(rule: RuleId, about = ''): No {
    return { answer: 'no', rule, reason: ruleSentence(rule, about), ...this.#decided(rule, about) };
  }

  cannotTell(rule: RuleId): CannotTell {
    return { answer: 'cannot-tell', rule, reason: ruleSentence(rule, ''), ...this.#decided(rule, '') };
  }

  #decided(rule: RuleId, about: string): { steps?: readonly Step[] } {
    if (this.#steps === undefined) return {};
    return { steps: [...this.#steps, { rule, result: 'decided', says: ruleSentence(rule, about) }] };
  }
}
