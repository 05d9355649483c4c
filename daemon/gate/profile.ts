// What the law of the recipient's place asks, as data (profiles.yaml): whose rules hold for a person,
// what they have against a permission and how far it may be tracked, and what they ask of the message.
// Callers may rely on: where nothing is known of a person, or what is known names no profile, the
// strictest holds; a profile only ever takes away, it allows nobody what policy and choice do not.
import { LEGAL_BASES, comparableText, showing, type BasisFact, type Instant, type LegalBasis, type MessageFacts, type Tracking } from '../mail/index.ts';
import type { FooterElement, Profile, Settings, Tenant } from '../settings/index.ts';
import type { ConsentRecord } from '../ledger/index.ts';
import type { No, Notes } from './verdict.ts';

/** The part of the settings that knows the profiles. */
export type Profiles = Pick<Settings, 'profiles' | 'strictest'>;

// One table for each snapshot, gone with it.
const TLDS = new WeakMap<ReadonlyMap<string, Profile>, ReadonlyMap<string, Profile>>();

/** The profile that holds for a recipient at this (lower-case) domain: by record, by domain, by tenant, else the strictest. */
export function profileOf({ profiles, strictest }: Profiles, tenant: Pick<Tenant, 'jurisdiction'>, domain: string, consent: Pick<ConsentRecord, 'jurisdiction'> | undefined): Profile {
  const told = consent?.jurisdiction ?? '';
  if (told !== '') return profiles.get(told) ?? strictest;
  const near = byTld(profiles).get(domain.slice(domain.lastIndexOf('.') + 1));
  if (near !== undefined) return near;
  return tenant.jurisdiction === undefined ? strictest : profiles.get(tenant.jurisdiction) ?? strictest;
}

function byTld(profiles: ReadonlyMap<string, Profile>): ReadonlyMap<string, Profile> {
  let table = TLDS.get(profiles);
  if (table === undefined) {
    table = new Map([...profiles.values()].flatMap((profile) => profile.tlds.map((tld): [string, Profile] => [tld, profile])));
    TLDS.set(profiles, table);
  }
  return table;
}

/** The profiles of these ids, as verdicts name them; an id that a reload has taken away is the strictest. */
export function profilesNamed({ profiles, strictest }: Profiles, ids: Iterable<string>): readonly Profile[] {
  return [...new Set([...ids].map((id) => profiles.get(id) ?? strictest))];
}

/** The most this profile lets be tracked. */
export function trackingCap(profile: Profile, consent: ConsentRecord): Tracking {
  return hasFact(consent, 'tracking-consent-apart') ? profile.trackingApart : profile.tracking;
}

/** Asks the profile about a permission: `basis` is the record's, or the stream's where `consent` is undefined. */
export function judgePermission(notes: Notes, profile: Profile, basis: string, consent: ConsentRecord | undefined, now: Instant): No | undefined {
  const evidence = consent?.id ?? '';
  const policy = consent?.policyHash ?? '';
  const known = LEGAL_BASES.find((one) => one === basis);
  const refused = notes.ask(known !== undefined && profile.bases.includes(known), 'profile-basis', known ?? 'an unknown legal basis', evidence, policy);
  if (refused !== undefined || known === undefined) return refused;
  for (const fact of profile.basisFacts[known] ?? NO_FACTS) {
    const missing = notes.ask(consent !== undefined && hasFact(consent, fact), `profile-${fact}`, profile.id, evidence, policy);
    if (missing !== undefined) return missing;
  }
  return judgeAge(notes, profile, known, consent, now);
}

const NO_FACTS: readonly BasisFact[] = Object.freeze([]);

function judgeAge(notes: Notes, profile: Profile, basis: LegalBasis, consent: ConsentRecord | undefined, now: Instant): No | undefined {
  const lastsMs = profile.basisExpiresMs[basis];
  if (lastsMs === undefined) return undefined;
  // Without a record nobody can say when it began, and the burden of proof is the sender's.
  if (consent === undefined) return notes.against('profile-undated', profile.id);
  notes.pass('profile-undated', profile.id, consent.id, consent.policyHash);
  return notes.ask(consent.givenAt + lastsMs > now, 'profile-expired', profile.id, consent.id, consent.policyHash);
}

function hasFact({ facts }: ConsentRecord, fact: BasisFact): boolean {
  return facts?.includes(fact) === true;
}

const CONTACT_KEY: Readonly<Record<FooterElement, string>> = { sender: 'contact.name', postal: 'contact.postal', contact: 'contact.email or contact.url' };
const FOOTER = Object.keys(CONTACT_KEY) as readonly FooterElement[];

/** Asks the profiles of all admitted recipients about a marketing message; `text` is only called when one asks for a footer. */
export function judgeContent(notes: Notes, profiles: readonly Profile[], contact: Tenant['contact'], header: MessageFacts, text: () => string): No | undefined {
  for (const name of new Set(profiles.flatMap((profile) => profile.headers))) {
    const missing = notes.ask(header.names.has(name.toLowerCase()), 'profile-header', name);
    if (missing !== undefined) return missing;
  }
  let shows: ((wanted: string) => boolean) | undefined;
  for (const element of FOOTER) {
    const asking = profiles.find((profile) => profile.footer.includes(element));
    if (asking === undefined) continue;
    const wanted = wantedText(contact, element);
    const refused = wanted.length === 0
      ? notes.against('profile-footer-unset', `${CONTACT_KEY[element]} is not configured, and profile ${asking.id}`)
      : notes.ask(wanted.some((part) => (shows ??= showing(text()))(part)), `profile-footer-${element}`, asking.id);
    if (refused !== undefined) return refused;
  }
  return undefined;
}

/** Any of these will do; none when nothing is configured. */
function wantedText({ name, postal, email, url }: Tenant['contact'], element: FooterElement): readonly string[] {
  // A URL is shown as people write it, without its scheme.
  const texts = { sender: [name], postal: [postal], contact: [email, url.replace(/^https?:\/\//i, '').replace(/\/$/, '')] }[element];
  return texts.map(comparableText).filter((part) => part !== '');
}
