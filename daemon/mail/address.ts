// Mailbox addresses: what may be relayed to, and the keys under which consent and suppression find a
// person. Callers may rely on: what parseAddress returns is a strict mailbox with a real-looking domain,
// its `wire` is the text that was given, and addressKeys is monotone: two addresses that share a consent
// key share the suppression key, and two that share that share the family key. So consent is narrow (a
// look-alike borrows none) and suppression is wide (another spelling escapes none). What is doubtful is
// refused, never repaired. Pure.
// RFC 5321 §4.1.2, RFC 6531 §3.3, RFC 5890 §2.3.2.1, UTS #46 (non-transitional).
import { MailError } from './errors.ts';

/** Part of every stored hash: raised when a key below changes for any address, and never reused. */
export const CANON_VERSION = 1;

/** One mailbox. */
export interface Address {
  /** As it was written; this is what the MX is told. */
  readonly wire: string;
  /** The local part without quotes and quoted pairs, case kept. */
  readonly local: string;
  /** A-labels, lower case, no trailing dot. */
  readonly domain: string;
  /** False: `wire` can only be sent to a host that offers SMTPUTF8. */
  readonly ascii: boolean;
}

/** The texts that are hashed to find records of this person. */
export interface AddressKeys {
  readonly consent: string;
  readonly suppression: string;
  readonly family: string;
}

// RFC 5321 §4.5.3.1.1
const LOCAL_OCTETS = 64;
// RFC 5321 §4.5.3.1.3: a path of 256 octets, of which the angle brackets take two.
const ADDRESS_OCTETS = 254;
// RFC 1035 §2.3.4: 255 octets on the wire are 253 characters of text.
const DOMAIN_CHARACTERS = 253;

const PLAIN = /^[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*$/;
// RFC 6531 §3.3: atext grows by everything outside ASCII; what of it is refused stands in UNWANTED.
const ATOMS = /^[\w!#$%&'*+/=?^`{|}~\-\u0080-\u{10FFFF}]+(?:\.[\w!#$%&'*+/=?^`{|}~\-\u0080-\u{10FFFF}]+)*$/u;
const LDH = /^[a-z0-9.-]+$/i;
const ASCII = /^[\x00-\x7f]*$/;
// Invisible, direction-changing, unassigned, private and broken characters, and spaces outside ASCII:
// each can make two different addresses look the same to the person who checks them.
const UNWANTED = /[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
// Letters, marks and digits, and the five punctuation marks that IDNA allows by context (RFC 5892 A).
const U_LABELS = /^[a-z0-9.\-\p{L}\p{M}\p{N}\u00B7\u0375\u05F3\u05F4\u30FB]+$/iu;

function refuse(reason: string): never {
  throw new MailError('E_ADDRESS', reason);
}

/** Reads one mailbox, without angle brackets. @throws MailError E_ADDRESS with the reason in plain words */
export function parseAddress(text: string): Address {
  // First, so that nothing below is asked to look at a megabyte.
  if (text.length > ADDRESS_OCTETS) refuse(`the address is longer than ${ADDRESS_OCTETS} octets`);
  if (text === '') refuse('the address is empty');
  const ascii = ASCII.test(text);
  if (UNWANTED.test(text)) refuse('the address has a control, invisible or unassigned character');
  if (!ascii) {
    if (Buffer.byteLength(text) > ADDRESS_OCTETS) refuse(`the address is longer than ${ADDRESS_OCTETS} octets`);
    // RFC 6532 §3.1
    if (text !== text.normalize('NFC')) refuse('the address is not in Unicode normalisation form C');
  }
  const at = text.lastIndexOf('@');
  if (at < 0) refuse('the address has no @');
  const written = text.slice(0, at);
  if (written === '') refuse('nothing stands before the @');
  if ((ascii ? written.length : Buffer.byteLength(written)) > LOCAL_OCTETS) refuse(`the part before the @ is longer than ${LOCAL_OCTETS} octets`);
  const local = written.startsWith('"') ? unquote(written) : written;
  if (local === written && !(ascii ? PLAIN : ATOMS).test(written)) refuse('the part before the @ is not a dot-separated name');
  const domain = parseDomain(text.slice(at + 1));
  if (Buffer.byteLength(local) + 1 + domain.length > ADDRESS_OCTETS) refuse(`the address is longer than ${ADDRESS_OCTETS} octets`);
  return { wire: text, local, domain, ascii };
}

// RFC 5321 §4.1.2: `"a\b"` is the same mailbox as `"ab"` and as `ab`.
function unquote(written: string): string {
  if (!/^"(?:[^"\\]|\\[\x20-\x7e])+"$/u.test(written)) refuse('the quoted part before the @ is empty or badly quoted');
  return written.slice(1, -1).replace(/\\(.)/g, '$1');
}

/**
 * A domain as lower-case A-labels; U-labels are converted, one trailing dot is dropped.
 * @throws MailError E_ADDRESS
 */
export function parseDomain(text: string): string {
  const known = DOMAINS.get(text);
  if (known !== undefined) return known;
  const domain = readDomain(text);
  // A list of a million people has a few thousand domains; most of them are Gmail.
  if (DOMAINS.size >= DOMAINS_KEPT) DOMAINS.clear();
  DOMAINS.set(text, domain);
  return domain;
}

const DOMAINS = new Map<string, string>();
const DOMAINS_KEPT = 1_000;

function readDomain(text: string): string {
  if (text.startsWith('[')) refuse('mail to an address literal is not relayed');
  const given = text.endsWith('.') ? text.slice(0, -1) : text;
  const domain = LDH.test(given) && !/xn--/i.test(given) ? given.toLowerCase() : toALabels(given);
  if (domain.length > DOMAIN_CHARACTERS) refuse(`the domain is longer than ${DOMAIN_CHARACTERS} characters`);
  const labels = domain.split('.');
  // RFC 5321 §2.3.5
  if (labels.length < 2) refuse('the domain is not fully qualified');
  for (const label of labels) {
    if (label.length > 63) refuse('a label of the domain is longer than 63 characters');
    // RFC 1123 §2.1
    if (!/^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$/.test(label)) refuse('the domain is not a host name');
  }
  // Resolvers read 127.1 and 0x7f.1 as IPv4 addresses; no top-level domain begins with a digit (RFC 3696 §2).
  if (/^\d/.test(labels.at(-1) ?? '')) refuse('the domain is a number, not a name');
  return domain;
}

function toALabels(given: string): string {
  // Before the URL parser sees it: that one would decode %41, read 0x7f.1 and map look-alikes.
  if (!U_LABELS.test(given) || given !== given.normalize('NFKC')) refuse('the domain is not a host name');
  if (/(?:^|\.)\d[^.]*$/.test(given)) refuse('the domain is a number, not a name');
  let host: string;
  try {
    host = new URL(`http://${given}/`).hostname;
  } catch {
    return refuse('the domain is not an internationalised host name'); // the parser says no more than that
  }
  return host;
}

/** Provider rules behind the family key. Data, so that adding one is one line and a test row. */
interface ProviderRule {
  readonly domains: readonly string[];
  /** The domain all of them are one with; without it each stays itself. */
  readonly as?: string;
  /** What stands after this character is a tag. */
  readonly tag?: '+' | '-';
  readonly dotsIgnored?: boolean;
}

// Consumer domains only: what a Workspace or other hosted domain does with dots and tags is its owner's
// choice. Yahoo names have no hyphen, so one can only be a disposable address's.
const PROVIDERS: readonly ProviderRule[] = [
  { domains: ['gmail.com', 'googlemail.com'], as: 'gmail.com', tag: '+', dotsIgnored: true },
  { domains: ['outlook.com', 'hotmail.com', 'live.com', 'msn.com'], tag: '+' },
  { domains: ['icloud.com', 'me.com', 'mac.com'], as: 'icloud.com', tag: '+' },
  { domains: ['proton.me', 'protonmail.com', 'pm.me'], as: 'proton.me', tag: '+' },
  { domains: ['fastmail.com', 'fastmail.fm'], tag: '+' },
  { domains: ['yahoo.com', 'ymail.com', 'rocketmail.com'], tag: '-' },
];
const PROVIDER_OF = new Map(PROVIDERS.flatMap((rule) => rule.domains.map((domain) => [domain, rule] as const)));

/** The keys of one address; each is made from the one before it, which is what makes them monotone. */
export function addressKeys(address: Address): AddressKeys {
  // Of ASCII letters there is one lower case: the two texts are one, which nearly all addresses are.
  const narrow = address.ascii ? address.local.toLowerCase() : address.local.replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
  const consent = `${narrow}@${address.domain}`;
  const wide = address.ascii ? narrow : foldCase(narrow);
  const suppression = address.ascii ? consent : `${wide}@${address.domain}`;
  const rule = PROVIDER_OF.get(address.domain);
  const family = rule === undefined ? suppression : `${familyLocal(wide, rule)}@${rule.as ?? address.domain}`;
  return { consent, suppression, family };
}

function familyLocal(local: string, rule: ProviderRule): string {
  // From 1: a name that begins with the separator is no tag of an empty name.
  const cut = rule.tag === undefined ? -1 : local.indexOf(rule.tag, 1);
  const name = cut < 0 ? local : local.slice(0, cut);
  if (rule.dotsIgnored !== true) return name;
  const bare = name.replaceAll('.', '');
  return bare === '' ? name : bare;
}

// One step does not reach the end: U+1E9E lower-cases to ß, whose upper case is SS. Four are enough for
// every code point (tested); the bound is there so that no text can hold us.
const FOLD_STEPS = 8;

/**
 * A text in which nothing is left of case or compatibility: at least as wide as NFKC with Unicode's full
 * case folding (it also joins dotless i with i). Idempotent.
 */
export function foldCase(text: string): string {
  if (ASCII.test(text)) return text.toLowerCase();
  let folded = text;
  for (let i = 0; i < FOLD_STEPS; i++) {
    // toLowerCase writes a final sigma where it sees the end of a word; folding knows only σ.
    const next = folded.normalize('NFKC').toUpperCase().toLowerCase().replaceAll('ς', 'σ').normalize('NFKC');
    if (next === folded) break;
    folded = next;
  }
  return folded;
}
