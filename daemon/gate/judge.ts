// The decision: may this sender, this message, this recipient? Pure functions of their arguments, asked
// at MAIL, RCPT, the end of DATA and again at every attempt. Callers may rely on: the default is no; a
// fact that could not be read is "cannot tell", which becomes a 451 and never a yes; expiry is judged at
// `now`; and `explain` runs the same code, only keeping notes.
//
// Suppressions hold for every stream, transactional ones included, within their scope. Hard bounces,
// complaints, erasures and manual ones are recorded with scope all and so stop everything; unsubscribes
// and objections are against a purpose, so a person who left the newsletter still gets the receipt.
// What counts is the scope on record, not the cause: an objection with scope all stops everything too.
import { CLICK_MODES, NO_TRACKING, OPEN_MODES, addressKeys, isMailError, parseAddress, type Address, type Envelope, type Instant, type MessageFacts, type Origin, type Plan, type Tracking } from '../mail/index.ts';
import type { Credential, Policy, Profile, Stream, Tenant } from '../settings/index.ts';
import type { ConsentRecord, ConsentState, Facts, Suppression, Suspension } from '../ledger/index.ts';
import { judgeContent, judgePermission, profileOf, trackingCap, type Profiles } from './profile.ts';
import type { RuleId } from './rules.ts';
import { Notes, type No, type Verdict } from './verdict.ts';

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
  /** Where the recipient's profile is found, and the lower-case domain it is found by; without them none is asked. */
  readonly profiles?: Profiles;
  readonly domain?: string;
  readonly explain?: boolean;
}

export interface MessageQuestion {
  readonly tenant: Tenant;
  readonly stream: Stream;
  readonly credential: Credential;
  readonly envelope: Envelope;
  readonly header: MessageFacts;
  /** Those of the admitted recipients; without them none is asked. */
  readonly profiles?: readonly Profile[];
  /** What a reader is shown; only called when a profile asks for it. */
  readonly text?: () => string;
  readonly explain?: boolean;
}

export interface TextQuestion {
  readonly tenant: Tenant;
  readonly stream: Stream;
  readonly plan: Pick<Plan, 'parts' | 'unknown' | 'unfilled'>;
  /** Every recipient allows individual opens. */
  readonly individual: boolean;
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
export function judgeRecipient({ tenant, stream, now, facts, profiles, domain, explain }: RecipientQuestion): Verdict {
  const notes = new Notes(explain, tenant.shadow);
  const ground = groundOf(notes, { tenant, stream, now, facts });
  if ('answer' in ground) return ground;
  const { current, consent } = ground;
  const profile = profiles === undefined ? undefined : profileOf(profiles, tenant, domain ?? '', consent);
  return judgeConsent(notes, { tenant, stream, now, current, profile }, consent);
}

interface Standing {
  readonly current: Policy;
  /** What the person said of this purpose. */
  readonly consent: ConsentRecord | undefined;
}

/** What must hold before what a person said is looked at: an account and a policy in force, and no word against the mail. */
function groundOf(notes: Notes, { tenant, stream, now, facts }: Pick<RecipientQuestion, 'tenant' | 'stream' | 'now' | 'facts'>): Standing | Verdict {
  if (facts === undefined) return notes.cannotTell('ledger-unavailable');
  notes.pass('ledger-unavailable');
  if (facts.suspension !== undefined) return notes.no('tenant-suspended', '', facts.suspension.id);
  notes.pass('tenant-suspended');
  const current = policyInForce(tenant, now, facts.unpublished);
  if (current === undefined) return notes.cannotTell('policy-not-in-force');
  notes.pass('policy-not-in-force', '', '', current.hash);
  const { purpose } = stream;
  // Every stream has a declared purpose, also one that needs no consent (GDPR Art. 5(1)(b)).
  if (!current.purposes.includes(purpose)) return notes.no('purpose-not-in-policy', purpose, '', current.hash);
  notes.pass('purpose-not-in-policy', purpose, '', current.hash);
  const against = facts.suppressions.find((suppression) => holds(suppression, stream, now));
  if (against !== undefined) return notes.no(`suppressed-${against.cause}`, '', against.id);
  return { current, consent: facts.consent?.purpose === purpose ? facts.consent : undefined };
}

// Marketing on another legal basis (soft opt-in) ends with the person's no like any other, and is not for
// people whose data was collected under a policy that did not speak of it.
const ENDS_MARKETING: ReadonlySet<RuleId> = new Set<RuleId>(['consent-withdrawn', 'consent-refused', 'purpose-not-in-policy']);

interface Ground {
  readonly tenant: Tenant;
  readonly stream: Stream;
  readonly now: Instant;
  readonly current: Policy;
  readonly profile: Profile | undefined;
}

/** Nothing stands against the person; is there something for them? */
function judgeConsent(notes: Notes, { tenant, stream, now, current, profile }: Ground, consent: ConsentRecord | undefined): Verdict {
  const { purpose } = stream;
  const collected = consent === undefined ? undefined : tenant.policies.find((policy) => policy.hash === consent.policyHash);
  const fault = consentFault(consent, collected, purpose, now);
  if (fault !== undefined && (stream.consentRequired || (stream.class === 'marketing' && ENDS_MARKETING.has(fault)))) return notes.no(fault, purpose, consent?.id, collected?.hash);
  const active = fault === undefined ? consent : undefined;
  if (active !== undefined) notes.pass('consent-missing', purpose, active.id, active.policyHash);

  const unsubscribable = stream.class === 'marketing' || stream.consentRequired;
  if (profile !== undefined && unsubscribable) {
    const refused = judgePermission(notes, profile, active?.legalBasis ?? stream.legalBasis, active, now);
    if (refused !== undefined) return refused;
  }
  const rule = stream.consentRequired ? 'ok-consent' : 'ok-no-consent-needed';
  const about = stream.consentRequired ? purpose : stream.id;
  // Who has no active consent on record has not agreed to be tracked.
  if (active === undefined || collected === undefined) {
    return notes.yes(rule, { evidence: '', policy: current.hash, tracking: NO_TRACKING, unsubscribable }, about, profile?.id);
  }
  const allowed = least(least(collected.tracking, current.tracking), active.tracking);
  const tracking = profile === undefined ? allowed : least(allowed, trackingCap(profile, active));
  return notes.yes(rule, { evidence: active.id, policy: collected.hash, tracking, unsubscribable }, about, profile?.id);
}

/** May a message with this header be sent on this stream? */
export function judgeMessage({ tenant, stream, credential, envelope, header, profiles, text, explain }: MessageQuestion): Verdict {
  const notes = new Notes(explain, tenant.shadow);
  const refused = judgeAuthor(notes, tenant, credential, header)
    // RFC 5322 §3.6: at most one each; a missing one is added on the way (RFC 6409 §8).
    ?? notes.ask(header.dates <= 1 && header.messageIds <= 1, 'message-duplicate-field')
    // Marketing mail gets fields of our own in the place of these; on other streams the application's stay.
    ?? notes.ask(stream.class === 'marketing' || !header.oneClickBroken, 'message-unsubscribe')
    ?? (stream.class === 'marketing' ? judgeShown(notes, tenant, envelope, header) : undefined)
    ?? (stream.class === 'marketing' && profiles !== undefined ? judgeContent(notes, profiles, tenant.contact, header, text ?? nothingShown) : undefined);
  return refused ?? notes.yes('ok-message', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false });
}

/** May a message with this in its text be sent on this stream to these people? Asked once it has been read. */
export function judgeText({ tenant, stream, plan, individual, explain }: TextQuestion): Verdict {
  const notes = new Notes(explain, tenant.shadow);
  const refused = notes.ask(plan.unknown === undefined, 'message-placeholder', plan.unknown)
    ?? notes.ask(plan.unfilled === undefined, 'message-placeholder-unfilled', plan.unfilled)
    ?? notes.ask(stream.thirdPartyTrackers !== 'refuse' || individual || !plan.parts.some(({ edits }) => edits.some(({ kind }) => kind === 'tracker')), 'message-third-party-tracker');
  return refused ?? notes.yes('ok-message', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false });
}

const nothingShown = (): string => '';

/** Who the reader is told it comes from. */
function judgeAuthor(notes: Notes, tenant: Tenant, credential: Credential, header: MessageFacts): No | undefined {
  const from = header.from[0];
  const address = from === undefined ? undefined : readAddress(from);
  return notes.ask(!header.fromMalformed, 'message-from-malformed')
    // RFC 5322 §3.6, §3.6.2. More than one author needs a Sender field and divides DMARC; both are refused.
    ?? notes.ask(header.fromFields === 1 && header.from.length === 1, 'message-from-count')
    ?? notes.ask(address !== undefined && mayUseAddress(credential, address), 'message-from-not-allowed')
    ?? notes.ask(address !== undefined && tenant.domains.some((domain) => domain.name === address.domain), 'message-from-domain')
    // RFC 6409 §8.1: Sender is shown too, and must not name somebody else.
    ?? notes.ask(header.sender === undefined || mayUse(credential, header.sender), 'message-sender-not-allowed');
}

/** One recipient's address is not another's to read. */
function judgeShown(notes: Notes, tenant: Tenant, { recipients }: Envelope, { toAndCc, shown }: MessageFacts): No | undefined {
  const [address] = shown;
  const [only] = recipients;
  return notes.ask(toAndCc <= 1, 'message-visible-recipients', String(toAndCc))
    // Nobody at all (`undisclosed-recipients:;`), a list of the sender's own, or the one person it goes to. An
    // envelope without recipients is a message judged by itself (explain).
    ?? notes.ask(toAndCc !== 1 || only === undefined
      || (address !== undefined && (isOwn(tenant, address) || (recipients.length === 1 && isSame(address, only.wire)))), 'message-to-mismatch');
}

function isOwn(tenant: Tenant, text: string): boolean {
  const domain = readAddress(text)?.domain;
  return domain !== undefined && tenant.domains.some(({ name }) => domain === name || domain.endsWith(`.${name}`));
}

function isSame(a: string, b: string): boolean {
  if (a === b) return true;
  const [one, other] = [readAddress(a), readAddress(b)];
  return one !== undefined && other !== undefined && addressKeys(one).consent === addressKeys(other).consent;
}

/** judgeRecipient again, at the moment of the attempt; Postern's own notices always pass, untracked. */
export function judgeAttempt({ origin, tenant, stream, ...question }: AttemptQuestion): Verdict {
  if (origin.kind === 'notice') {
    return new Notes(question.explain).yes('notice', { evidence: '', policy: '', tracking: NO_TRACKING, unsubscribable: false });
  }
  if (tenant === undefined || stream === undefined) return new Notes(question.explain).cannotTell('stream-unknown');
  return origin.kind === 'invitation' ? judgeInvitation({ tenant, stream, ...question }) : judgeRecipient({ tenant, stream, ...question });
}

/** May this person be asked to confirm? Only what they, or somebody in their name, has asked for and nothing stands against. */
export function judgeInvitation({ tenant, stream, now, facts, explain }: RecipientQuestion): Verdict {
  const notes = new Notes(explain);
  const ground = groundOf(notes, { tenant, stream, now, facts });
  if ('answer' in ground) return ground;
  const { consent } = ground;
  if (consent?.state !== 'pending' || (consent.expiresAt !== undefined && consent.expiresAt <= now)) return notes.no('invitation-not-pending', stream.purpose, consent?.id);
  return notes.yes('invitation', { evidence: consent.id, policy: consent.policyHash, tracking: NO_TRACKING, unsubscribable: false }, stream.purpose);
}

/** The policy of the latest `effectiveAt` that is not after `now`, among those whose page has been seen. */
export function policyInForce(tenant: Tenant, now: Instant, unpublished?: ReadonlySet<string>): Policy | undefined {
  return tenant.policies.findLast((policy) => policy.effectiveAt <= now && unpublished?.has(policy.hash) !== true);
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

const TRACKINGS = OPEN_MODES.map((opens) => CLICK_MODES.map((clicks): Tracking => Object.freeze({ opens, clicks })));

/** Each mode includes less than the next, so that the intersection is the smaller. */
function least(a: Tracking, b: Tracking): Tracking {
  const opens = Math.min(OPEN_MODES.indexOf(a.opens), OPEN_MODES.indexOf(b.opens));
  const clicks = Math.min(CLICK_MODES.indexOf(a.clicks), CLICK_MODES.indexOf(b.clicks));
  return TRACKINGS[opens]?.[clicks] ?? NO_TRACKING;
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
