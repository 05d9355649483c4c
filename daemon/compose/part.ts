// Plans the edits of one text part: decode, find, map each place back to the octets it came from, and
// check every single edit against those octets before it enters the plan. Callers may rely on: an
// edit in the plan replaces exactly one link value; a part that cannot be read with certainty is left
// as it is and says why. Decoding is RFC 2045 §6.7 (quoted-printable) and §6.8 (base64).
import { decodeQp, type ContentEncoding, type MimeLeaf, type PlannedEdit, type PlannedPart } from '../mail/index.ts';
import { findInHtml, findInText, targetOf, type FoundLink } from './links.ts';

/** Why a part was left as it is; a closed list, for it is a metric's label. */
export type Untouched = 'charset' | 'quoted-printable' | 'base64' | 'nul' | 'pgp' | 'too-large' | 'too-many-links';

export interface PartWishes {
  /** Put the pixel's place into the plan. */
  readonly pixel: boolean;
  /** How many links the message may still have. */
  readonly linksLeft: number;
  /** Host (and port) of our own pages: links there are ours already. */
  readonly ownHost: string;
}

/** A newsletter has fifty links; a message with thousands is no letter, and each costs a seal per copy. */
export const MAX_LINKS = 1_000;
// Mail programs cut a text off at a tenth of a megabyte; past this, reading it would hold up everybody's mail.
const MAX_TEXT_OCTETS = 4 * 1024 * 1024;

/** The part's decoded octets as characters, and the way back to the message. */
interface Decoded {
  readonly text: string;
  readonly startOf: (at: number) => number;
  readonly endOf: (at: number) => number;
}

/** The plan for one leaf, or why there is none. */
export function planPart(raw: Buffer, leaf: MimeLeaf, wishes: PartWishes): PlannedPart | Untouched {
  if (!isAsciiSuperset(leaf.charset)) return 'charset';
  if (leaf.range.end - leaf.range.start > MAX_TEXT_OCTETS) return 'too-large';
  const decoded = decode(raw, leaf);
  if (typeof decoded === 'string') return decoded;
  const { text } = decoded;
  // UTF-16 under another label, or no text at all
  if (text.includes('\0')) return 'nul';
  if (/^-----BEGIN PGP /m.test(text)) return 'pgp';
  const html = leaf.type === 'text/html';
  const found = html ? findInHtml(text) : { links: findInText(text), pixelAt: -1 };
  if (found.links.length > wishes.linksLeft) return 'too-many-links';
  const edits: PlannedEdit[] = [];
  for (const link of found.links) {
    const edit = linkEdit(raw, leaf, decoded, link, html, wishes.ownHost);
    if (edit !== undefined) edits.push(edit);
  }
  if (html && wishes.pixel) {
    const at = decoded.startOf(found.pixelAt);
    edits.push({ kind: 'pixel', start: at, end: at, target: '', quote: '' });
  }
  // Links of a conditional comment come after those around it where comments are read late.
  edits.sort((a, b) => a.start - b.start);
  return { range: leaf.range, encoding: leaf.encoding, charset: leaf.charset, edits };
}

function linkEdit(raw: Buffer, leaf: MimeLeaf, decoded: Decoded, link: FoundLink, html: boolean, ownHost: string): PlannedEdit | undefined {
  const target = targetOf(link.value, html, isUtf8(leaf.charset), ownHost);
  if (target === undefined) return undefined;
  const edit: PlannedEdit = { kind: 'link', start: decoded.startOf(link.start), end: decoded.endOf(link.end), target, quote: link.quote };
  // The proof: what will be taken out is what was found, read from the message anew.
  if (leaf.encoding === 'base64') return decoded.text.slice(edit.start, edit.end) === link.value ? edit : undefined;
  const taken = leaf.encoding === 'identity' ? raw.toString('latin1', edit.start, edit.end) : decodeQp(raw, edit.start, edit.end)?.text;
  return taken === link.value && edit.start >= leaf.range.start && edit.end <= leaf.range.end ? edit : undefined;
}

function decode(raw: Buffer, leaf: MimeLeaf): Decoded | Untouched {
  const { start, end } = leaf.range;
  const readers: Record<ContentEncoding, () => Decoded | Untouched> = {
    identity: () => ({ text: raw.toString('latin1', start, end), startOf: (at) => start + at, endOf: (at) => start + at }),
    'quoted-printable': () => decodeQp(raw, start, end) ?? 'quoted-printable',
    base64: () => {
      const octets = decodeBase64(raw, start, end);
      return octets === undefined ? 'base64' : { text: octets.toString('latin1'), startOf: (at) => at, endOf: (at) => at };
    },
  };
  return readers[leaf.encoding]();
}

/** Decodes raw[start, end); undefined unless it is canonical base64 in lines. */
function decodeBase64(raw: Buffer, start: number, end: number): Buffer | undefined {
  const compact = raw.toString('latin1', start, end).replaceAll(/[\r\n\t ]/g, '');
  const octets = Buffer.from(compact, 'base64');
  // Node skips what it does not know; encoding again shows whether something was skipped.
  return octets.toString('base64') === compact ? octets : undefined;
}

/** Charsets in which each octet below 128 is that ASCII character, wherever it stands. */
function isAsciiSuperset(charset: string): boolean {
  return /^(?:us-ascii|ascii|utf-?8|latin1|iso-8859-\d{1,2}(?:-[ie])?|(?:windows-|cp)125\d|koi8-[ru]|euc-(?:jp|kr)|gb2312|macintosh)$/.test(charset);
}

function isUtf8(charset: string): boolean {
  return charset === 'utf-8' || charset === 'utf8';
}
