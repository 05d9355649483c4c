// Placeholders in parts that are left as they are: they would reach a reader as they were written, so their
// message is refused. Read as leniently as a mail program might, for it is not edited; what is encrypted
// nobody can read, and what ought to be a file is not looked into. Linear in the part's size.
import type { ContentEncoding, Plan, Range } from '../mail/index.ts';
import { findPlaceholders } from './links.ts';

/** Why nothing is filled in there, for the author; by the reasons of Untouched, Closed and of the index. */
const WORDS: Readonly<Record<string, string>> = {
  charset: 'its charset is not one that can be edited; UTF-8 is',
  'quoted-printable': 'its quoted-printable is broken',
  base64: 'its base64 is broken',
  nul: 'it holds a NUL',
  pgp: 'it is signed or encrypted with PGP',
  'too-large': 'it is larger than 4 MiB',
  'too-many-links': 'it has more than 1000 links',
  signed: 'it is signed',
  'ambiguous-header': 'its header can be read in two ways',
  'unknown-encoding': 'its transfer encoding is unknown',
  'no-boundary': 'its boundary is missing or too long',
  'too-many-parts': 'the message has too many parts',
  'too-deep': 'the message has parts within too many parts',
  type: 'texts of its type are not edited',
};

/** Does a placeholder stand in these octets? */
export function holdsPlaceholder(raw: Buffer, { start, end }: Range, encoding: ContentEncoding = 'identity'): boolean {
  const written = raw.toString('latin1', start, end);
  const clear = encoding === 'base64' ? Buffer.from(written, 'base64').toString('latin1') : written;
  // Quoted-printable also where it stands inside a signed part; NULs are what UTF-16 has between ASCII characters.
  return findPlaceholders(clear.replaceAll('=\r\n', '').replaceAll(/=7b/gi, '{').replaceAll(/=7d/gi, '}').replaceAll('\0', '')).length > 0;
}

/** The first of them as the plan names it: `2: it is signed`. */
export function unfilledIn([first]: readonly { readonly part: number; readonly why: string }[]): Pick<Plan, 'unfilled'> {
  return first === undefined ? {} : { unfilled: `${first.part + 1}: ${WORDS[first.why] ?? first.why}` };
}
