// One DKIM-Signature field as text: which fields it covers, how it is folded, and the octets that the
// key signs. Every name in COVERED is listed once more than it occurs, so that no further field of that
// name can be put into a signed message without breaking the signature. There is no l= tag: what follows
// a signed length could be anything. RFC 6376 §3.5, §3.7, §5.4, §8.2, §8.15.
import { fieldsOf, relaxedField, type Field } from './canonical.ts';

/** Fields that are signed and cannot be added to; the two List-Unsubscribe fields must be among them (RFC 8058 §4). */
export const COVERED = [
  'from', 'to', 'cc', 'subject', 'date', 'message-id', 'reply-to', 'sender', 'in-reply-to', 'references',
  'mime-version', 'content-type', 'content-transfer-encoding',
  'list-unsubscribe', 'list-unsubscribe-post', 'list-id', 'list-help', 'feedback-id',
] as const;

const COVERED_SET: ReadonlySet<string> = new Set(COVERED);

// RFC 5322 §2.1.1: a line should have no more than 78 characters.
const COLUMNS = 78;
// Base64 of a signature: one space of folding and 72 characters, a multiple of four, stay below COLUMNS.
const BASE64_COLUMNS = 72;

/** What every signature of one message shares. */
export interface Covered {
  /** The h= tag, folded, without a semicolon. */
  readonly tag: string;
  /** The covered fields in relaxed form, each with CRLF. */
  readonly text: string;
}

/** Chooses and canonicalises the fields to sign. @returns undefined when there is no From field to sign. */
export function coverHeader(header: string): Covered | undefined {
  const found = new Map<string, Field[]>();
  for (const field of fieldsOf(header)) {
    if (!COVERED_SET.has(field.name)) continue;
    const same = found.get(field.name);
    if (same === undefined) found.set(field.name, [field]);
    else same.push(field);
  }
  // RFC 6376 §5.4: From MUST be signed.
  if (!found.has('from')) return undefined;
  let tag = ' h=';
  let column = tag.length;
  let text = '';
  const list = (name: string): void => {
    const separator = tag === ' h=' ? '' : ':';
    if (column + separator.length + name.length + 2 > COLUMNS) {
      tag += `${separator}\r\n `;
      column = 1;
    } else {
      tag += separator;
      column += separator.length;
    }
    tag += name;
    column += name.length;
  };
  for (const name of COVERED) {
    const fields = found.get(name) ?? [];
    // RFC 6376 §5.4.2: repeated fields are signed from the last to the first.
    for (let i = fields.length - 1; i >= 0; i--) {
      const field = fields[i];
      if (field === undefined) continue;
      list(name);
      text += `${relaxedField(field)}\r\n`;
    }
    list(name);
  }
  return { tag, text };
}

export interface SignatureTags {
  readonly algorithm: 'rsa-sha256' | 'ed25519-sha256';
  readonly canonicalization: 'relaxed/simple' | 'relaxed/relaxed';
  readonly domain: string;
  readonly selector: string;
  /** Seconds since the epoch. */
  readonly signedAt: number;
  readonly expiresAt: number;
  readonly bodyHash: string;
}

/** The signature field up to and including `b=`, folded. Every fold is one space, which relaxed form keeps as it is. */
export function unsignedField(tags: SignatureTags, covered: Covered): string {
  const lines = [
    `DKIM-Signature: v=1; a=${tags.algorithm}; c=${tags.canonicalization};`,
    ` t=${tags.signedAt}; x=${tags.expiresAt};`,
    ` d=${tags.domain};`,
    ` s=${tags.selector};`,
    `${covered.tag};`,
    ` bh=${tags.bodyHash};`,
    ' b=',
  ];
  return lines.join('\r\n');
}

/** The octets that are hashed and signed: the covered fields, then the signature field itself without its value. */
export function signedOctets(unsigned: string, covered: Covered): Buffer {
  // RFC 6376 §3.7: the field goes in last, in relaxed form, without a CRLF at its end.
  const own = `dkim-signature:${unsigned.slice(unsigned.indexOf(':') + 2).replaceAll('\r\n', '')}`;
  return Buffer.from(covered.text + own, 'latin1');
}

/** The finished field with its CRLF. */
export function signedField(unsigned: string, signature: Buffer): string {
  const value = signature.toString('base64');
  let field = unsigned + value.slice(0, BASE64_COLUMNS);
  for (let i = BASE64_COLUMNS; i < value.length; i += BASE64_COLUMNS) field += `\r\n ${value.slice(i, i + BASE64_COLUMNS)}`;
  return `${field}\r\n`;
}
