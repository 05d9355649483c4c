// Finds the links of a decoded HTML or plain text and the place for the pixel. Offsets are into the
// text given (one character per octet), of the attribute's value without its quotes. Callers may rely
// on: only http and https links that lead away from our own pages are found; links the author
// exempted, unsubscribe and preference links, fragments and unfilled placeholders are not; what stands
// in scripts, styles, comments and unfinished tags is not, except Outlook's conditional comments,
// whose links people click. WHATWG HTML, tokenization.
import { decodeHTMLAttribute } from 'entities';
import { QuoteType, Tokenizer, type TokenizerCallbacks } from 'htmlparser2';

/** A link's value in the text. `value` is as it stands there. */
export interface FoundLink {
  readonly start: number;
  readonly end: number;
  readonly value: string;
  readonly quote: '"' | "'" | '';
}

export interface FoundHtml {
  readonly links: readonly FoundLink[];
  /** Where a pixel may be put: before the last </body>, else the last </html>, else the end. */
  readonly pixelAt: number;
}

/** Marks an exempted link: ours, and those of the services people move from. */
const EXEMPT: Readonly<Record<string, string | undefined>> = Object.freeze({ 'data-no-track': undefined, clicktracking: 'off', 'ses:no-track': undefined });

/** The links and the pixel's place in an HTML text. */
export function findInHtml(html: string): FoundHtml {
  const links: FoundLink[] = [];
  let body = -1;
  let root = -1;
  scan(html, 0, true, links, (name, start) => {
    if (name === 'body') body = html.lastIndexOf('</', start);
    else if (name === 'html') root = html.lastIndexOf('</', start);
  });
  const end = body === -1 ? root : body;
  return { links, pixelAt: end === -1 ? html.length : end };
}

/** Tag and attributes as they come; a link counts only once its tag has ended. */
class Scan implements TokenizerCallbacks {
  readonly #html: string;
  readonly #base: number;
  readonly #comments: boolean;
  readonly #links: FoundLink[];
  readonly #closed: (name: string, start: number) => void;
  #linking = false;
  #attribute = '';
  #valueStart = -1;
  #valueEnd = -1;
  #href: FoundLink | undefined;
  #seenHref = false;
  #exempt = false;

  constructor(html: string, base: number, comments: boolean, links: FoundLink[], closed: (name: string, start: number) => void) {
    this.#html = html;
    this.#base = base;
    this.#comments = comments;
    this.#links = links;
    this.#closed = closed;
  }

  onopentagname(start: number, end: number): void {
    // VML shapes are what Outlook makes buttons of.
    this.#linking = /^(?:a|area|v:[a-z]+)$/i.test(this.#html.slice(start, end));
    this.#href = undefined;
    this.#seenHref = false;
    this.#exempt = false;
  }

  onattribname(start: number, end: number): void {
    if (!this.#linking) return;
    this.#attribute = this.#html.slice(start, end).toLowerCase();
    this.#valueStart = -1;
  }

  onattribdata(start: number, end: number): void {
    if (this.#valueStart === -1) this.#valueStart = start;
    this.#valueEnd = end;
  }

  onattribend(quote: QuoteType): void {
    if (!this.#linking) return;
    const start = this.#valueStart;
    const value = start === -1 ? '' : this.#html.slice(start, this.#valueEnd);
    if (Object.hasOwn(EXEMPT, this.#attribute)) {
      const needed = EXEMPT[this.#attribute];
      if (needed === undefined || value.trim().toLowerCase() === needed) this.#exempt = true;
    } else if (this.#attribute === 'href' && !this.#seenHref) {
      // Of an attribute given twice readers take the first.
      this.#seenHref = true;
      const mark = quote === QuoteType.Double ? '"' : quote === QuoteType.Single ? "'" : '';
      if (value !== '') this.#href = { start: this.#base + start, end: this.#base + this.#valueEnd, value, quote: mark };
    }
  }

  onopentagend(): void {
    if (this.#href !== undefined && !this.#exempt) this.#links.push(this.#href);
    this.#href = undefined;
    this.#linking = false;
  }

  onselfclosingtag(): void {
    this.onopentagend();
  }

  onclosetag(start: number, end: number): void {
    this.#closed(this.#html.slice(start, end).toLowerCase(), start);
  }

  oncomment(start: number, end: number, endOffset: number): void {
    if (!this.#comments) return;
    const text = this.#html.slice(start, end - endOffset);
    const open = /^\[if [^\]]{1,200}\]>/i.exec(text);
    if (open !== null) scan(text.slice(open[0].length), start + open[0].length, false, this.#links, () => undefined);
  }

  onattribentity(): void {}
  oncdata(): void {}
  ondeclaration(): void {}
  onend(): void {}
  onprocessinginstruction(): void {}
  ontext(): void {}
  ontextentity(): void {}
}

function scan(html: string, base: number, comments: boolean, links: FoundLink[], closed: (name: string, start: number) => void): void {
  const tokenizer = new Tokenizer({ decodeEntities: false, xmlMode: false }, new Scan(html, base, comments, links, closed));
  tokenizer.write(html);
  tokenizer.end();
}

const URL_IN_TEXT = /\bhttps?:\/\/[^\s<>"'`(){}[\]\\]+/gi;

const SENTENCE = '.,;:!?*_~';

/** The links of a plain text: up to white space, a bracket or a quote, without the sentence's punctuation. */
export function findInText(text: string): readonly FoundLink[] {
  return [...text.matchAll(URL_IN_TEXT)].map((found) => {
    let length = found[0].length;
    while (SENTENCE.includes(found[0][length - 1] ?? ' ')) length--;
    return { start: found.index, end: found.index + length, value: found[0].slice(0, length), quote: '' };
  });
}

// What template languages leave behind when nobody filled it in.
const PLACEHOLDER = /\{\{|\}\}|\{%|\*\||\|\*|\[\[|<%|\$\{|%%|%[a-z_]{3,}%/i;
// An objection must not depend on our redirect, and is nobody's click to count.
const OBJECTION = /unsub|opt-?out|preference/i;

// A link of ours has at most 2,000 characters with its token, so a longer value could not be replaced;
// references may make it twice as long in the text.
const MAX_VALUE_CHARS = 4_000;

/**
 * Where a link leads, or undefined when it is not one that may be rewritten. `octets` is the value as
 * it stands in the text; `html` decodes character references; `utf8` says how octets above 127 are read.
 */
export function targetOf(octets: string, html: boolean, utf8: boolean, ownHost: string): string | undefined {
  if (octets.length > MAX_VALUE_CHARS) return undefined;
  if (!/^[\t\n\f\r ]*https?:/i.test(octets) && !octets.includes('&')) return undefined;
  const ascii = !/[\u0080-\u00ff]/.test(octets);
  if (!ascii && !utf8) return undefined;
  const text = ascii ? octets : Buffer.from(octets, 'latin1').toString('utf8');
  if (text.includes('\uFFFD')) return undefined;
  const target = (html ? decodeHTMLAttribute(text) : text).replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, '');
  // White space and control characters inside would not survive a Location field unchanged.
  if (!/^https?:\/\/[^\s\0-\x20\x7f]+$/i.test(target)) return undefined;
  if (PLACEHOLDER.test(target) || OBJECTION.test(target)) return undefined;
  const url = URL.parse(target);
  return url === null || url.host === '' || url.host === ownHost ? undefined : target;
}
