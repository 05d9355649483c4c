// Reads an address list (From, Sender, To, Cc) strictly: what a compliance decision rests on must mean
// one thing to every reader. Comments, quoted strings, folded space, groups, address literals and UTF-8
// are understood; obsolete routes, white space inside an address, empty list places and an @ in an
// unquoted display name are not, for two readers of such a field may see two authors. A list that is
// not understood is undefined as a whole. RFC 5322 §3.4, RFC 6532 §3.2, RFC 6854 (groups in From).

/** The bare addresses of the list, as written and in order; undefined when it is not a strict list. */
export function parseMailboxes(text: string): readonly string[] | undefined {
  if (text.length > MAX_LIST_CHARS) return undefined;
  const scanner = new Scanner(text);
  const found: string[] = [];
  const good = list(scanner, found, false) && scanner.done();
  return good ? found : undefined;
}

// Thousands of addresses; beyond it a pattern's backtracking would cost more than the answer is worth.
const MAX_LIST_CHARS = 256 * 1024;
// A comment inside a comment is legal, a thousand of them are an attack.
const MAX_COMMENT_DEPTH = 10;
// RFC 5322 §3.2.3 atext, and RFC 6532 §3.2 anything beyond ASCII.
const ATEXT = /[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00A0-\u{10FFFF}-]+/uy;
const DOT_ATOM = /[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00A0-\u{10FFFF}-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00A0-\u{10FFFF}-]+)*/uy;
const QUOTED = /"(?:[\t\x20\x21\x23-\x5B\x5D-\x7E\u00A0-\u{10FFFF}]|\\[\t\x20-\x7E])*"/uy;
const LITERAL = /\[[\x21-\x5A\x5E-\x7E]+\]/y;
const DOT = /\./y;

/** A place in the text. */
class Scanner {
  readonly #text: string;
  at = 0;
  constructor(text: string) {
    this.#text = text;
  }

  /** What the sticky pattern matches here, and steps past it. */
  take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  takeChar(char: string): boolean {
    if (this.#text[this.at] !== char) return false;
    this.at++;
    return true;
  }

  peek(): string {
    return this.#text[this.at] ?? '';
  }

  done(): boolean {
    return this.at === this.#text.length;
  }

  /** Steps past white space and comments; false when a comment does not end. RFC 5322 §3.2.2 */
  space(): boolean {
    let depth = 0;
    for (; this.at < this.#text.length; this.at++) {
      const char = this.#text[this.at];
      if (char === '(') {
        if (++depth > MAX_COMMENT_DEPTH) return false;
      } else if (depth > 0 && char === ')') {
        depth--;
      } else if (depth > 0 && char === '\\') {
        this.at++;
      } else if (depth === 0 && char !== ' ' && char !== '\t') {
        return true;
      }
    }
    return depth === 0;
  }
}

/** address *("," address), or inside a group mailbox *("," mailbox). */
function list(s: Scanner, found: string[], inGroup: boolean): boolean {
  for (;;) {
    if (!s.space() || !entry(s, found, inGroup) || !s.space()) return false;
    if (!s.takeChar(',')) return true;
  }
}

/** One mailbox or, outside a group, one group. */
function entry(s: Scanner, found: string[], inGroup: boolean): boolean {
  const start = s.at;
  const bare = addrSpec(s);
  if (bare !== undefined && s.space() && (s.done() || s.peek() === ',' || s.peek() === ';')) return found.push(bare) > 0;
  s.at = start;
  const named = phrase(s);
  if (s.takeChar('<')) {
    if (!s.space()) return false;
    const address = addrSpec(s);
    if (address === undefined || !s.space() || !s.takeChar('>')) return false;
    return found.push(address) > 0;
  }
  return named && !inGroup && s.takeChar(':') && group(s, found);
}

function group(s: Scanner, found: string[]): boolean {
  if (!s.space()) return false;
  if (s.takeChar(';')) return true;
  return list(s, found, true) && s.takeChar(';');
}

/** A display name: words, and the bare dots of `John Q. Public` (RFC 5322 §4.1). */
function phrase(s: Scanner): boolean {
  let words = 0;
  while (s.space() && (s.take(QUOTED) ?? s.take(ATEXT) ?? (words > 0 ? s.take(DOT) : undefined)) !== undefined) words++;
  return words > 0;
}

/** RFC 5322 §3.4.1, without the obsolete forms. */
function addrSpec(s: Scanner): string | undefined {
  const local = s.take(DOT_ATOM) ?? s.take(QUOTED);
  if (local === undefined || !s.takeChar('@')) return undefined;
  const domain = s.take(DOT_ATOM) ?? s.take(LITERAL);
  return domain === undefined ? undefined : `${local}@${domain}`;
}
