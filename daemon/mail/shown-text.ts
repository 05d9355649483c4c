// The text a reader sees of a message, for rules that ask what it shows: the HTML texts of the displayed
// body where there are any, else the plain ones, decoded, without tags, white space as it comes. Callers may
// rely on: it never throws, its time is linear in the message, and what it cannot read with certainty
// (an unknown charset, broken quoted-printable, a signed or encrypted part, what lies past a megabyte) counts
// as not shown. Style sheets are not evaluated: a text they hide counts as shown. It reads HTML for its
// words only and is no sanitizer. RFC 2045 §6, WHATWG HTML (tokenization).
import { decodeHTML } from 'entities';
import { foldCase } from './address.ts';
import { indexHeader, type HeaderIndex } from './headers.ts';
import { indexMime, type MimeLeaf } from './mime.ts';
import { decodeQp } from './qp.ts';

// Of all parts together. Mail programs cut a text off at a tenth of a megabyte; past ten times that it is
// no letter, and reading it would hold up everybody's mail.
const MAX_TEXT_OCTETS = 1024 * 1024;

/** What a reader sees of the message, each tag a space. */
export function shownText(raw: Buffer, header: HeaderIndex = indexHeader(raw)): string {
  const { leaves, verdict } = indexMime(raw, header);
  if (verdict !== 'ok') return '';
  const open = leaves.filter(({ closed }) => closed === '');
  // Of a letter in two forms the reader sees the rich one.
  const shown = open.some(({ type }) => type === 'text/html') ? 'text/html' : 'text/plain';
  const seen: string[] = [];
  let left = MAX_TEXT_OCTETS;
  for (const leaf of open) {
    if (leaf.type !== shown) continue;
    left -= leaf.range.end - leaf.range.start;
    if (left < 0) break;
    const text = decode(raw, leaf);
    seen.push(shown === 'text/html' ? wordsOf(text) : text);
  }
  return seen.join(' ');
}

// Soft hyphens and characters without width: fillers of previews and places where a line may break.
const INVISIBLE = /[\u00AD\u200B-\u200F\u2060\uFEFF]|\u034F/g;

/** Case, white space and commas say nothing: an address stands on one line here and on four there. */
export function comparableText(text: string): string {
  return foldCase(text.replaceAll(INVISIBLE, '')).replaceAll(/[\s,]+/g, '');
}

// Footers stand at the end.
const TAIL_CHARACTERS = 2_000;

/** Asks the words of shownText for comparable texts; their end is looked at first, and all of them once. */
export function showing(words: string): (wanted: string) => boolean {
  const tail = comparableText(words.slice(-TAIL_CHARACTERS));
  let whole = words.length <= TAIL_CHARACTERS ? tail : undefined;
  return (wanted) => tail.includes(wanted) || (whole ??= comparableText(words)).includes(wanted);
}

function decode(raw: Buffer, { range, encoding, charset }: MimeLeaf): string {
  const { start, end } = range;
  const octets = octetsOf(raw, start, end, encoding);
  if (octets === undefined) return '';
  try {
    return new TextDecoder(charset).decode(octets);
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) return ''; // a charset nobody knows
    throw error;
  }
}

function octetsOf(raw: Buffer, start: number, end: number, encoding: MimeLeaf['encoding']): Buffer | undefined {
  switch (encoding) {
    case 'identity': return raw.subarray(start, end);
    case 'base64': return Buffer.from(raw.toString('latin1', start, end), 'base64');
    case 'quoted-printable': {
      const text = decodeQp(raw, start, end)?.text;
      return text === undefined ? undefined : Buffer.from(text, 'latin1');
    }
    default: return encoding satisfies never;
  }
}

/** The words between the tags; each tag is a gap. */
function wordsOf(html: string): string {
  let words = '';
  let at = 0;
  while (at < html.length) {
    const tag = html.indexOf('<', at);
    if (tag === -1) return decodeHTML(words + html.slice(at));
    words += html.slice(at, tag);
    at = afterMarkup(html, tag);
    // A lone `<` is a character like any other.
    words += at === tag + 1 ? '<' : ' ';
  }
  return decodeHTML(words);
}

/** Past the tag, comment or unseen element that begins at `tag`; one further where none does. */
function afterMarkup(html: string, tag: number): number {
  if (html.startsWith('<!--', tag)) return past(html, '-->', tag + 4);
  const next = html.charCodeAt(tag + 1);
  if (next === 33 || next === 63) return past(html, '>', tag + 2); // <!doctype, <?xml
  const first = next === 47 ? html.charCodeAt(tag + 2) : next;
  if (!((first | 32) >= 97 && (first | 32) <= 122)) return tag + 1;
  const end = tagEnd(html, tag + 1);
  UNSEEN.lastIndex = tag + 1;
  const unseen = UNSEEN.exec(html)?.[0].toLowerCase();
  if (unseen === undefined) return end;
  const close = CLOSE[unseen];
  if (close === undefined) return end;
  close.lastIndex = end;
  return close.test(html) ? tagEnd(html, close.lastIndex) : html.length;
}

const UNSEEN = /(?:style|script|title|template|textarea)(?![\w:-])/iy;
const CLOSE: Readonly<Record<string, RegExp>> = { style: /<\/style/gi, script: /<\/script/gi, title: /<\/title/gi, template: /<\/template/gi, textarea: /<\/textarea/gi };

function past(html: string, mark: string, from: number): number {
  const found = html.indexOf(mark, from);
  return found === -1 ? html.length : found + mark.length;
}

/** Past the `>` that ends a tag; one inside a quoted attribute value does not. */
function tagEnd(html: string, from: number): number {
  let before = 0;
  for (let at = from; at < html.length; at++) {
    const char = html.charCodeAt(at);
    if (char === 62) return at + 1;
    // A quote opens a value only behind an equals sign; elsewhere it is part of a name.
    if (before === 61 && (char === 34 || char === 39)) {
      const close = html.indexOf(char === 34 ? '"' : "'", at + 1);
      if (close === -1) return html.length;
      at = close;
      before = 0;
    } else if (char > 32) {
      before = char;
    }
  }
  return html.length;
}
