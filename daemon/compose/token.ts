// The tokens in recipients' links and in reverse-paths. A link token says everything its hit needs
// (message, recipient, keyed hashes, target) sealed under the tenant's token key: unreadable,
// unforgeable, without a table that grows, and no address is in it. Callers may rely on: a token of
// one tenant, a changed, cut or non-canonical one opens to undefined and nothing else happens. The
// token for aggregate opens names no recipient and is the same for all copies of a message. A
// reverse-path token is authenticated, not secret: it holds no more than an id and a number.
// AES-256-GCM (NIST SP 800-38D), HMAC-SHA-256 (RFC 2104), base64url and base32 (RFC 4648 §5, §6).
import { createCipheriv, createDecipheriv, createHmac, timingSafeEqual } from 'node:crypto';
import type { AddressHashes, MessageId, OpenMode } from '../mail/index.ts';
import { isId, randomOctets, type Keyring, type TenantKeys } from '../runtime/index.ts';

/** What a link of ours carries. */
export interface Claim {
  readonly kind: (typeof KINDS)[number];
  readonly message: MessageId;
  /** Which recipient of the message; NOBODY in a token for aggregate opens. */
  readonly recipient: number;
  readonly stream: string;
  readonly purpose: string;
  /** All zero in a token for aggregate opens. */
  readonly hashes: AddressHashes;
  /** Where a click leads, or a form's fields go; only in these two. */
  readonly target?: string;
  /** What was allowed for opens when the message was rendered; only in an open. */
  readonly mode?: OpenMode;
}

/** The recipient of a token that is the same for everybody. */
export const NOBODY = -1;

/** The message in a token for aggregate opens of a message that one person got: its id would be theirs. */
export const NO_MESSAGE: MessageId = '0'.repeat(26);

const VERSION = 1;
const HEAD_OCTETS = 5; // version, 4 of key id
const IV_OCTETS = 12;
const TAG_OCTETS = 16;
const HASH_OCTETS = 16;
const ID_OCTETS = 16;
const NOBODY_INDEX = 0xffffffff;
// No target ends in white space: what stands there is nobody's.
const FILL = ' ';
// Its place is how a kind is written: new ones go last.
const KINDS = ['click', 'open', 'unsubscribe', 'preferences', 'confirm', 'form'] as const;
const MODES: readonly OpenMode[] = ['none', 'aggregate', 'lastOpenDate', 'individual'];
// Longer than any token that fits a link of 2,000 characters.
const MAX_TOKEN_CHARS = 4_096;

/** Seals tokens for one recipient: the part of the claim they share is laid out once. */
export interface Sealer {
  /** `fill`: so many octets more, for a token of a certain length; they are not part of the target. */
  click(target: string, fill?: number): string;
  /** Where a form's fields go. */
  form(target: string, fill?: number): string;
  open(mode: OpenMode): string;
  unsubscribe(fill?: number): string;
  preferences(fill?: number): string;
  confirm(): string;
}

/** A sealer for the recipient that `who` names. @throws RangeError for an id or a name that cannot stand in a token */
export function openSealer(keys: TenantKeys, who: Pick<Claim, 'message' | 'recipient' | 'stream' | 'purpose' | 'hashes'>): Sealer {
  const shared = layOut(who);
  return {
    click: (target, fill = 0) => sealParts(keys, shared, 0, target + FILL.repeat(fill), false),
    open: (mode) => sealParts(keys, shared, 1, String.fromCharCode(MODES.indexOf(mode)), mode === 'aggregate'),
    unsubscribe: (fill = 0) => sealParts(keys, shared, 2, FILL.repeat(fill), false),
    preferences: (fill = 0) => sealParts(keys, shared, 3, FILL.repeat(fill), false),
    confirm: () => sealParts(keys, shared, 4, '', false),
    form: (target, fill = 0) => sealParts(keys, shared, 5, target + FILL.repeat(fill), false),
  };
}

/** One token. @throws RangeError for an id or a name that cannot stand in a token */
export function sealToken(keys: TenantKeys, claim: Claim): string {
  const sealer = openSealer(keys, claim);
  if (claim.kind === 'click' || claim.kind === 'form') return sealer[claim.kind](claim.target ?? '');
  return claim.kind === 'open' ? sealer.open(claim.mode ?? 'none') : sealer[claim.kind]();
}

/** Characters of a token with a target of this many octets, so that a link's length is known beforehand. */
export function tokenChars(who: Pick<Claim, 'stream' | 'purpose'>, targetOctets: number): number {
  const names = Buffer.byteLength(who.stream) + Buffer.byteLength(who.purpose) + 2;
  const octets = HEAD_OCTETS + IV_OCTETS + 1 + ID_OCTETS + 4 + 3 * HASH_OCTETS + names + targetOctets + TAG_OCTETS;
  return Math.ceil((octets * 4) / 3);
}

function layOut(who: Pick<Claim, 'message' | 'recipient' | 'stream' | 'purpose' | 'hashes'>): Buffer {
  const stream = Buffer.from(who.stream);
  const purpose = Buffer.from(who.purpose);
  if (stream.length > 255 || purpose.length > 255) throw new RangeError('stream and purpose names have at most 255 octets');
  const index = Buffer.alloc(4);
  index.writeUInt32BE(who.recipient === NOBODY ? NOBODY_INDEX : who.recipient);
  const { consent, suppression, family } = who.hashes;
  if (consent.length + suppression.length + family.length !== 3 * HASH_OCTETS) throw new RangeError('hashes have 16 octets each');
  return Buffer.concat([idOctets(who.message), index, consent, suppression, family, Buffer.of(stream.length), stream, Buffer.of(purpose.length), purpose]);
}

function sealParts(keys: TenantKeys, shared: Buffer, kind: number, rest: string, same: boolean): string {
  const clear = Buffer.allocUnsafe(1 + shared.length + Buffer.byteLength(rest));
  clear[0] = kind;
  shared.copy(clear, 1);
  clear.write(rest, 1 + shared.length);
  // One clear text, one IV: a token that must be the same in each copy takes its IV from what it says.
  const iv = same ? createHmac('sha256', keys.verp).update('token-iv').update(clear).digest().subarray(0, IV_OCTETS) : randomOctets(IV_OCTETS);
  const out = Buffer.allocUnsafe(HEAD_OCTETS + IV_OCTETS + clear.length + TAG_OCTETS);
  out[0] = VERSION;
  keys.token.id.copy(out, 1);
  iv.copy(out, HEAD_OCTETS);
  const cipher = createCipheriv('aes-256-gcm', keys.token.key, iv);
  cipher.setAAD(out.subarray(0, HEAD_OCTETS));
  cipher.update(clear).copy(out, HEAD_OCTETS + IV_OCTETS);
  cipher.final();
  cipher.getAuthTag().copy(out, out.length - TAG_OCTETS);
  return out.toString('base64url');
}

/** The claim of a token and the tenant whose key opened it; undefined for anything that is not one of ours. */
export function openToken(keyring: Keyring, text: string): { readonly tenant: string; readonly claim: Claim } | undefined {
  if (text.length > MAX_TOKEN_CHARS || !/^[A-Za-z0-9_-]+$/.test(text)) return undefined;
  const sealed = Buffer.from(text, 'base64url');
  if (sealed.length < HEAD_OCTETS + IV_OCTETS + TAG_OCTETS || sealed[0] !== VERSION) return undefined;
  if (!isCanonical(text)) return undefined;
  const tenant = keyring.tenantOfToken(sealed.subarray(1, HEAD_OCTETS));
  if (tenant === undefined) return undefined;
  const clear = decipher(keyring.tenant(tenant), sealed);
  const claim = clear === undefined ? undefined : readClaim(clear);
  return claim === undefined ? undefined : { tenant, claim };
}

const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

/** One token, one text: no sextet that is no octet, and unused bits at the end are zero. */
function isCanonical(text: string): boolean {
  const over = text.length % 4;
  return over !== 1 && (over === 0 || (BASE64URL.indexOf(text[text.length - 1] ?? '') & (over === 2 ? 15 : 3)) === 0);
}

function decipher(keys: TenantKeys, sealed: Buffer): Buffer | undefined {
  const body = HEAD_OCTETS + IV_OCTETS;
  const sealedBy = keys.tokens.find(({ id }) => id.equals(sealed.subarray(1, HEAD_OCTETS)));
  if (sealedBy === undefined) return undefined;
  const opened = createDecipheriv('aes-256-gcm', sealedBy.key, sealed.subarray(HEAD_OCTETS, body), { authTagLength: TAG_OCTETS });
  opened.setAAD(sealed.subarray(0, HEAD_OCTETS));
  opened.setAuthTag(sealed.subarray(sealed.length - TAG_OCTETS));
  const clear = opened.update(sealed.subarray(body, sealed.length - TAG_OCTETS));
  try {
    opened.final();
  } catch {
    return undefined; // the tag does not match: forged, damaged, or another key's
  }
  return clear;
}

function readClaim(clear: Buffer): Claim | undefined {
  const kind = KINDS[clear[0] ?? 255];
  const hashesAt = 1 + ID_OCTETS + 4;
  const streamAt = hashesAt + 3 * HASH_OCTETS;
  const purposeAt = streamAt + 1 + (clear[streamAt] ?? 0);
  const restAt = purposeAt + 1 + (clear[purposeAt] ?? 0);
  if (kind === undefined || restAt > clear.length) return undefined;
  const index = clear.readUInt32BE(1 + ID_OCTETS);
  // Views: the clear text was made for this claim and lives as long.
  const hash = (n: number): Buffer => clear.subarray(hashesAt + n * HASH_OCTETS, hashesAt + (n + 1) * HASH_OCTETS);
  const mode = MODES[clear[restAt] ?? 255];
  return {
    kind,
    message: idText(clear.subarray(1, 1 + ID_OCTETS)),
    recipient: index === NOBODY_INDEX ? NOBODY : index,
    stream: clear.toString('utf8', streamAt + 1, purposeAt),
    purpose: clear.toString('utf8', purposeAt + 1, restAt),
    hashes: { consent: hash(0), suppression: hash(1), family: hash(2) },
    ...(kind === 'click' || kind === 'form' ? { target: clear.toString('utf8', restAt).trimEnd() } : {}),
    ...(kind === 'open' && mode !== undefined ? { mode } : {}),
  };
}

// Crockford's digits as ids use them, and RFC 4648 §6 in lower case for local parts.
const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567';

/** The 128 bits of a message id. */
function idOctets(id: MessageId): Buffer {
  if (!isId(id)) throw new RangeError('not a message id');
  let value = 0n;
  for (const char of id) value = value * 32n + BigInt(CROCKFORD.indexOf(char));
  const out = Buffer.allocUnsafe(ID_OCTETS);
  out.writeBigUInt64BE(value >> 64n, 0);
  out.writeBigUInt64BE(value & 0xffffffffffffffffn, 8);
  return out;
}

function idText(octets: Buffer): MessageId {
  // 128 bits in 26 digits: the first has three. No bigints, for every hit and every bounce comes here.
  let text = '';
  let held = 0;
  let bits = 2;
  for (const octet of octets) {
    held = ((held << 8) | octet) & 0x1fff;
    for (bits += 8; bits >= 5; bits -= 5) text += CROCKFORD[(held >>> (bits - 5)) & 31] ?? '';
  }
  return text;
}

// A bounce's address and an unsubscription's: alike in form, and the tag of one is not the other's.
const PREFIXES = { bounce: 'b-', unsubscribe: 'u-' } as const;
type MailTokenKind = keyof typeof PREFIXES;
const RETURN_TAG_OCTETS = 10; // 80 bits: a forger may try as often as mail can be sent, not faster
const RETURN_CLEAR_OCTETS = 4 + ID_OCTETS + 4;
const RETURN_CHARS = Math.ceil(((RETURN_CLEAR_OCTETS + RETURN_TAG_OCTETS) * 8) / 5);

/** A message and one of its recipients, as an address of ours names them. */
export interface MailToken {
  readonly tenant: string;
  readonly message: MessageId;
  readonly recipient: number;
}

/** The local part of the reverse-path of one recipient's copy: 57 octets, lower case, read in any case. */
export const sealReturnPath = (keys: TenantKeys, tenant: string, id: MessageId, index: number): string => sealLocal('bounce', keys, tenant, id, index);

/** Whose message and which recipient a reverse-path names; undefined when we did not make it. */
export const openReturnPath = (keyring: Keyring, local: string): MailToken | undefined => openLocal('bounce', keyring, local);

/** The local part to which this recipient may write to unsubscribe; of the same form as a reverse-path. */
export const sealMailto = (keys: TenantKeys, tenant: string, id: MessageId, index: number): string => sealLocal('unsubscribe', keys, tenant, id, index);

/** Whose message and which recipient an unsubscribe address names; undefined when we did not make it. */
export const openMailto = (keyring: Keyring, local: string): MailToken | undefined => openLocal('unsubscribe', keyring, local);

function sealLocal(kind: MailTokenKind, keys: TenantKeys, tenant: string, id: MessageId, index: number): string {
  const clear = Buffer.allocUnsafe(RETURN_CLEAR_OCTETS);
  keys.token.id.copy(clear, 0);
  idOctets(id).copy(clear, 4);
  clear.writeUInt32BE(index, 4 + ID_OCTETS);
  return PREFIXES[kind] + toBase32(Buffer.concat([clear, mailTag(kind, keys, tenant, clear)]));
}

function openLocal(kind: MailTokenKind, keyring: Keyring, local: string): MailToken | undefined {
  const lower = local.toLowerCase();
  const prefix = PREFIXES[kind];
  if (!lower.startsWith(prefix) || lower.length !== prefix.length + RETURN_CHARS) return undefined;
  const octets = fromBase32(lower.slice(prefix.length));
  if (octets === undefined) return undefined;
  const clear = octets.subarray(0, RETURN_CLEAR_OCTETS);
  const tenant = keyring.tenantOfToken(clear.subarray(0, 4));
  if (tenant === undefined) return undefined;
  if (!timingSafeEqual(octets.subarray(RETURN_CLEAR_OCTETS), mailTag(kind, keyring.tenant(tenant), tenant, clear))) return undefined;
  return { tenant, message: idText(clear.subarray(4, 4 + ID_OCTETS)), recipient: clear.readUInt32BE(4 + ID_OCTETS) };
}

function mailTag(kind: MailTokenKind, keys: TenantKeys, tenant: string, clear: Buffer): Buffer {
  const label = kind === 'bounce' ? 'return-path' : 'mailto';
  return createHmac('sha256', keys.verp).update(`${label}\0${tenant}\0`).update(clear).digest().subarray(0, RETURN_TAG_OCTETS);
}

function toBase32(octets: Buffer): string {
  let out = '';
  let bits = 0;
  let held = 0;
  for (const octet of octets) {
    held = ((held << 8) | octet) & 0xfff;
    for (bits += 8; bits >= 5; bits -= 5) out += BASE32[(held >>> (bits - 5)) & 31] ?? '';
  }
  return bits > 0 ? out + (BASE32[(held << (5 - bits)) & 31] ?? '') : out;
}

function fromBase32(text: string): Buffer | undefined {
  const out: number[] = [];
  let bits = 0;
  let held = 0;
  for (const char of text) {
    const value = BASE32.indexOf(char);
    if (value === -1) return undefined;
    held = ((held << 5) | value) & 0xfff;
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      out.push((held >>> bits) & 255);
    }
  }
  // The bits left over are zero, or the text is not one of ours.
  return (held & ((1 << bits) - 1)) === 0 ? Buffer.from(out) : undefined;
}
