// Plans the edits of one text part: decode, find, map each place back to the octets it came from, and
// check every single edit against those octets before it enters the plan. Callers may rely on: an
// edit in the plan replaces exactly one link value; a part that cannot be read with certainty is left
// as it is and says why. Decoding is RFC 2045 §6.7 (quoted-printable) and §6.8 (base64).
import { decodeQp, type ContentEncoding, type MimeLeaf, type PlannedEdit, type PlannedPart } from '../mail/index.ts';
import { clearText, decodeBase64 } from './base64.ts';
import { findInHtml, findInText, findPlaceholders, targetOf, type LeftAlone } from './links.ts';

/** Why a part was left as it is; a closed list, for it is a metric's label. */
export type Untouched = 'charset' | 'quoted-printable' | 'base64' | 'nul' | 'pgp' | 'too-large' | 'too-many-links';

export interface PartWishes {
  /** Put the pixel's place into the plan. */
  readonly pixel: boolean;
  /** Rewrite its links. */
  readonly links: boolean;
  /** How many links the message may still have. */
  readonly linksLeft: number;
  readonly left: LeftAlone;
}

/** A newsletter has fifty links, placeholders included; a message with thousands is no letter, and each costs a seal per copy. */
export const MAX_LINKS = 1_000;
// Mail programs cut a text off at a tenth of a megabyte; past this, reading it would hold up everybody's mail.
const MAX_TEXT_OCTETS = 4 * 1024 * 1024;

/** The part's decoded octets as characters, and the way back to the message. */
interface Decoded {
  readonly text: string;
  /** Octets of the message that hold [start, end) of the text. */
  readonly place: (start: number, end: number) => Pick<PlannedEdit, 'start' | 'end' | 'keep'>;
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
  const html = leaf.type !== 'text/plain';
  const found = html ? findInHtml(text) : { links: wishes.links ? findInText(text) : [], pixelAt: -1 };
  const placeholders = findPlaceholders(text);
  if (found.links.length + placeholders.length > wishes.linksLeft) return 'too-many-links';
  // What stands in the address of somebody's counter leaves with it.
  const emptied = found.links.filter(({ kind }) => kind === 'tracker');
  const places = placeholders.filter(({ start, end }) => !emptied.some((one) => one.start <= start && end <= one.end));
  const edits: PlannedEdit[] = [];
  for (const link of found.links) {
    const target = link.kind === 'tracker' ? '' : wishes.links ? targetOf(link.value, html, isUtf8(leaf.charset), wishes.left) : undefined;
    const edit = target === undefined ? undefined : proven(raw, leaf, link.value, { kind: link.kind, ...decoded.place(link.start, link.end), target });
    if (edit !== undefined) edits.push(edit);
  }
  for (const { name, start, end } of places) {
    const edit = proven(raw, leaf, text.slice(start, end), { kind: 'placeholder', ...decoded.place(start, end), target: name });
    if (edit !== undefined) edits.push(edit);
  }
  if (html && wishes.pixel) edits.push({ kind: 'pixel', ...decoded.place(found.pixelAt, found.pixelAt), target: '' });
  // Links of a conditional comment come after those around it where comments are read late.
  edits.sort((a, b) => a.start - b.start || (a.keep?.[0] ?? 0) - (b.keep?.[0] ?? 0) || a.end - b.end);
  return { range: leaf.range, encoding: leaf.encoding, charset: leaf.charset, edits };
}

/** The edit, if what it will take out is what was found, read from the message anew. */
function proven(raw: Buffer, leaf: MimeLeaf, value: string, edit: PlannedEdit): PlannedEdit | undefined {
  return edit.start >= leaf.range.start && edit.end <= leaf.range.end && takenOut(raw, leaf.encoding, edit) === value ? edit : undefined;
}

function takenOut(raw: Buffer, encoding: ContentEncoding, edit: PlannedEdit): string | undefined {
  if (encoding === 'quoted-printable') return decodeQp(raw, edit.start, edit.end)?.text;
  if (encoding === 'identity') return raw.toString('latin1', edit.start, edit.end);
  const clear = clearText(raw, edit);
  return clear.slice(edit.keep?.[0] ?? 0, clear.length - (edit.keep?.[1] ?? 0));
}

function decode(raw: Buffer, { encoding, range: { start, end } }: MimeLeaf): Decoded | Untouched {
  if (encoding === 'identity') return { text: raw.toString('latin1', start, end), place: (from, to) => ({ start: start + from, end: start + to }) };
  if (encoding === 'quoted-printable') {
    const read = decodeQp(raw, start, end);
    if (read === undefined) return 'quoted-printable';
    return { text: read.text, place: (from, to) => ({ start: read.startOf(from), end: from === to ? read.startOf(to) : read.endOf(to) }) };
  }
  const read = decodeBase64(raw, start, end);
  return read === undefined ? 'base64' : { text: read.octets.toString('latin1'), place: (from, to) => read.place(from, to) };
}

/** Charsets in which each octet below 128 is that ASCII character, wherever it stands. */
function isAsciiSuperset(charset: string): boolean {
  return /^(?:us-ascii|ascii|utf-?8|latin1|iso-8859-\d{1,2}(?:-[ie])?|(?:windows-|cp)125\d|koi8-[ru]|euc-(?:jp|kr)|gb2312|macintosh)$/.test(charset);
}

function isUtf8(charset: string): boolean {
  return charset === 'utf-8' || charset === 'utf8';
}
