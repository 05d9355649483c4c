// Where the tags of an HTML text stand, as the WHATWG tokenizer would see them, without making a tree: the
// text between tags and the values in quotes are jumped over, not read. Callers may rely on: it is linear
// in the text whatever the text is; a tag that does not end is not told; what stands in comments, scripts,
// styles, titles and the like is not told either; noscript is read like any element, for mail is read without
// scripts. Two things a browser knows better are left out, and both only hide a tag: the states of a script
// inside a commented script, and that titles and styles of SVG hold elements. WHATWG HTML §13.2.5.

/** An attribute's value, without its quotes; empty where there is none. */
export interface Attribute {
  /** Lower case. */
  readonly name: string;
  readonly start: number;
  readonly end: number;
  readonly quote: '"' | "'" | '';
}

export interface Visitor {
  /** The element's attributes that open() is to be told of; undefined: none, and open() is not called. Names are lower case. */
  wants(element: string): ReadonlySet<string> | undefined;
  /** A start tag has ended. Attributes are in order, doubles included. */
  open(element: string, attributes: readonly Attribute[]): void;
  /** An end tag has ended; `start` is where it begins. */
  close(element: string, start: number): void;
  /** The text of a comment. */
  comment(start: number, end: number): void;
}

/** Elements whose content is text up to their own end tag. */
const RAW: ReadonlySet<string> = new Set(['script', 'style', 'title', 'textarea', 'xmp', 'iframe', 'noembed', 'noframes']);

const [TAB, LF, FF, CR, SPACE, BANG, SLASH, EQUALS, GREATER, QUESTION] = [9, 10, 12, 13, 32, 33, 47, 61, 62, 63] as const;
const isSpace = (code: number): boolean => code === SPACE || code === LF || code === CR || code === TAB || code === FF;
const isLetter = (code: number): boolean => (code >= 97 && code <= 122) || (code >= 65 && code <= 90);
const NO_ATTRIBUTES: readonly Attribute[] = Object.freeze([]);

/** Tells the visitor of the tags and comments between `from` and `to`. */
export function scanHtml(html: string, visitor: Visitor, from = 0, to = html.length): void {
  new Scanner(from === 0 && to === html.length ? html : html.slice(from, to), visitor, from).run();
}

class Scanner {
  readonly #html: string;
  readonly #visitor: Visitor;
  readonly #base: number;
  /** Next places of the two ends a comment may have, so that one that is far away is looked for once. */
  #dashes = -1;
  #dashesBang = -1;

  constructor(html: string, visitor: Visitor, base: number) {
    this.#html = html;
    this.#visitor = visitor;
    this.#base = base;
  }

  run(): void {
    const html = this.#html;
    for (let at = html.indexOf('<'); at !== -1; at = html.indexOf('<', at)) {
      const code = html.charCodeAt(at + 1);
      if (isLetter(code)) at = this.#startTag(at);
      else if (code === SLASH) at = this.#endTag(at);
      else if (code === BANG || code === QUESTION) at = this.#comment(at);
      else at++;
      if (at === -1) return;
    }
  }

  /** @returns past it, or -1 when it does not end; for an element with raw text past that too */
  #startTag(at: number): number {
    const nameEnd = this.#nameEnd(at + 1);
    const element = this.#html.slice(at + 1, nameEnd).toLowerCase();
    const wanted = this.#visitor.wants(element);
    const found: Attribute[] | undefined = wanted === undefined ? undefined : [];
    const end = this.#attributes(nameEnd, wanted, found);
    if (end === -1) return -1;
    if (found !== undefined) this.#visitor.open(element, found.length === 0 ? NO_ATTRIBUTES : found);
    if (element === 'plaintext') return -1;
    return RAW.has(element) ? this.#rawEnd(element, end) : end;
  }

  #endTag(at: number): number {
    const code = this.#html.charCodeAt(at + 2);
    if (code === GREATER) return at + 3;
    if (!isLetter(code)) return this.#past('>', at);
    const nameEnd = this.#nameEnd(at + 2);
    const end = this.#attributes(nameEnd, undefined, undefined);
    if (end !== -1) this.#visitor.close(this.#html.slice(at + 2, nameEnd).toLowerCase(), this.#base + at);
    return end;
  }

  #nameEnd(from: number): number {
    const html = this.#html;
    let at = from;
    for (let code = html.charCodeAt(at); at < html.length && code !== GREATER && code !== SLASH && !isSpace(code); code = html.charCodeAt(at)) at++;
    return at;
  }

  /** Reads attributes from behind a tag's name. @returns past the tag's end, or -1 */
  #attributes(from: number, wanted: ReadonlySet<string> | undefined, found: Attribute[] | undefined): number {
    const html = this.#html;
    for (let at = from; at < html.length;) {
      const code = html.charCodeAt(at);
      if (code === GREATER) return at + 1;
      if (isSpace(code) || code === SLASH) {
        at++;
        continue;
      }
      const nameStart = at++;
      // An equals sign in the first place belongs to the name.
      for (let next = html.charCodeAt(at); at < html.length && next !== EQUALS && next !== GREATER && next !== SLASH && !isSpace(next); next = html.charCodeAt(at)) at++;
      const nameEnd = at;
      while (isSpace(html.charCodeAt(at))) at++;
      const value = html.charCodeAt(at) === EQUALS ? this.#value(at + 1) : NO_VALUE;
      if (value === undefined) return -1;
      if (value !== NO_VALUE) at = value.next;
      if (wanted === undefined || found === undefined) continue;
      const name = html.slice(nameStart, nameEnd).toLowerCase();
      if (wanted.has(name)) found.push({ name, start: this.#base + value.start, end: this.#base + value.end, quote: value.quote });
    }
    return -1;
  }

  /** The value behind an equals sign; undefined when its quote is not closed. */
  #value(from: number): Value | undefined {
    const html = this.#html;
    let start = from;
    while (isSpace(html.charCodeAt(start))) start++;
    const quote = html[start];
    if (quote === '"' || quote === "'") {
      const end = html.indexOf(quote, start + 1);
      return end === -1 ? undefined : { start: start + 1, end, next: end + 1, quote };
    }
    let end = start;
    for (let code = html.charCodeAt(end); end < html.length && code !== GREATER && !isSpace(code); code = html.charCodeAt(end)) end++;
    return { start, end, next: end, quote: '' };
  }

  /** `<!-- -->`, or anything else up to the next bracket. */
  #comment(at: number): number {
    const html = this.#html;
    if (!html.startsWith('<!--', at)) return this.#past('>', at);
    // `<!-->` and `<!--->` are complete.
    if (this.#dashes < at + 2) this.#dashes = orFar(html.indexOf('-->', at + 2));
    if (this.#dashesBang < at + 4) this.#dashesBang = orFar(html.indexOf('--!>', at + 4));
    const end = Math.min(this.#dashes, this.#dashesBang);
    if (end === FAR) return -1;
    if (end > at + 4) this.#visitor.comment(this.#base + at + 4, this.#base + end);
    return end + (end === this.#dashes ? 3 : 4);
  }

  #past(mark: string, from: number): number {
    const end = this.#html.indexOf(mark, from);
    return end === -1 ? -1 : end + 1;
  }

  /** Where the end tag of an element with raw text begins. */
  #rawEnd(element: string, from: number): number {
    const html = this.#html;
    for (let at = html.indexOf('</', from); at !== -1; at = html.indexOf('</', at + 2)) {
      const end = at + 2 + element.length;
      const code = html.charCodeAt(end);
      if ((code === GREATER || code === SLASH || isSpace(code)) && html.slice(at + 2, end).toLowerCase() === element) return at;
    }
    return -1;
  }
}

interface Value {
  readonly start: number;
  readonly end: number;
  /** Where reading goes on. */
  readonly next: number;
  readonly quote: '"' | "'" | '';
}

const NO_VALUE: Value = Object.freeze({ start: 0, end: 0, next: 0, quote: '' });
const FAR = Number.POSITIVE_INFINITY;
const orFar = (at: number): number => (at === -1 ? FAR : at);
