// Finds, in a decoded HTML or plain text, the links, the pictures by which others count opens, our
// placeholders and the place for the pixel. Offsets are into the text given (one character per octet), of
// the attribute's value without its quotes. Callers may rely on: only what leads a reader somewhere is
// found as a link, once for each attribute a reader takes; links the author exempted, unsubscribe and
// preference links, fragments and unfilled placeholders are none; what stands in scripts, styles, comments
// and unfinished tags is not found, except Outlook's conditional comments, whose links people click.
// WHATWG HTML, tokenization; SVG 1.1 §17.1 (xlink:href).
import { decodeHTMLAttribute } from 'entities';
import { QuoteType, Tokenizer, type TokenizerCallbacks } from 'htmlparser2';

/** An attribute's value in the text, or a URL in plain text. `value` is as it stands there. */
export interface FoundLink {
  /** `form`: where a form's fields are sent; `tracker`: a picture that tells somebody else of an open. */
  readonly kind: 'link' | 'form' | 'tracker';
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

/** Attributes that lead a reader somewhere, by element. */
const LEADS: ReadonlyMap<string, ReadonlySet<string>> = new Map([
  ['a', new Set(['href', 'xlink:href'])], ['area', new Set(['href'])], ['form', new Set(['action'])], ['button', new Set(['formaction'])], ['input', new Set(['formaction'])],
]);
// VML shapes are what Outlook makes buttons of.
const SHAPE_LEADS: ReadonlySet<string> = new Set(['href']);
/** What a picture is judged by. */
const PICTURES: ReadonlySet<string> = new Set(['img', 'amp-pixel', 'bgsound']);
const PICTURE_ATTRIBUTES: ReadonlySet<string> = new Set(['src', 'width', 'height', 'style']);

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
  #tag = '';
  #wanted: ReadonlySet<string> | undefined;
  #attribute = '';
  #valueStart = -1;
  #valueEnd = -1;
  #exempt = false;
  /** Of an attribute given twice readers take the first. */
  readonly #found = new Map<string, FoundLink>();

  constructor(html: string, base: number, comments: boolean, links: FoundLink[], closed: (name: string, start: number) => void) {
    this.#html = html;
    this.#base = base;
    this.#comments = comments;
    this.#links = links;
    this.#closed = closed;
  }

  onopentagname(start: number, end: number): void {
    this.#tag = this.#html.slice(start, end).toLowerCase();
    this.#wanted = LEADS.get(this.#tag) ?? (PICTURES.has(this.#tag) ? PICTURE_ATTRIBUTES : /^v:[a-z]+$/.test(this.#tag) ? SHAPE_LEADS : undefined);
    if (this.#wanted === undefined) return;
    this.#found.clear();
    this.#exempt = false;
  }

  onattribname(start: number, end: number): void {
    if (this.#wanted === undefined) return;
    this.#attribute = this.#html.slice(start, end).toLowerCase();
    this.#valueStart = -1;
  }

  onattribdata(start: number, end: number): void {
    if (this.#valueStart === -1) this.#valueStart = start;
    this.#valueEnd = end;
  }

  onattribend(quote: QuoteType): void {
    if (this.#wanted === undefined) return;
    const start = this.#valueStart === -1 ? 0 : this.#valueStart;
    const end = this.#valueStart === -1 ? 0 : this.#valueEnd;
    const value = this.#html.slice(start, end);
    if (Object.hasOwn(EXEMPT, this.#attribute)) {
      const needed = EXEMPT[this.#attribute];
      if (needed === undefined || value.trim().toLowerCase() === needed) this.#exempt = true;
    } else if (this.#wanted.has(this.#attribute) && !this.#found.has(this.#attribute)) {
      const mark = quote === QuoteType.Double ? '"' : quote === QuoteType.Single ? "'" : '';
      this.#found.set(this.#attribute, { kind: this.#attribute.endsWith('action') ? 'form' : 'link', start: this.#base + start, end: this.#base + end, value, quote: mark });
    }
  }

  onopentagend(): void {
    if (this.#wanted === undefined) return;
    if (this.#wanted === PICTURE_ATTRIBUTES) {
      const src = this.#found.get('src');
      if (src !== undefined && countsOpens(this.#tag, src.value, (name) => this.#found.get(name)?.value)) this.#links.push({ ...src, kind: 'tracker' });
    } else if (!this.#exempt) {
      for (const link of this.#found.values()) if (link.value !== '') this.#links.push(link);
    }
    this.#wanted = undefined;
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

// Nobody sees a picture of two pixels or less: its only use is to be asked for.
const TINY = /^\s*[012](?:\.\d{1,4})?\s*(?:px)?\s*$/i;
const TINY_WIDTH = /(?:^|[;\s])(?:max-)?width\s*:\s*[012](?:\.\d{1,4})?\s*(?:px\b|[;!]|$)/i;
const TINY_HEIGHT = /(?:^|[;\s])(?:max-)?height\s*:\s*[012](?:\.\d{1,4})?\s*(?:px\b|[;!]|$)/i;
// Who counts opens or visits for others, with pictures of any size; by host, and path where the host serves other pictures too.
const COUNTERS = new RegExp(`^(?:https?:)?//(?:[^/?#]{1,200}\\.)?(?:${[
  '2o7\\.net', 'bat\\.bing\\.com', 'doubleclick\\.net', 'emltrk\\.com', 'facebook\\.com/tr', 'google-analytics\\.com', 'list-manage\\.com/track/open', 'mailfoogae\\.appspot\\.com',
  'mailtrack\\.io', 'mandrillapp\\.com/track/open', 'mixpanel\\.com/track', 'omtrdc\\.net', 'quantserve\\.com', 'scorecardresearch\\.com', 'sendgrid\\.net/wf/open', 'track\\.hubspot\\.com', 't\\.yesware\\.com',
].join('|')})(?=[/?#.]|$)`, 'i');
// A style is some lines; what is longer is not looked through for every picture.
const MAX_STYLE_CHARS = 2_000;

/** Is a remote picture there to be counted rather than seen? */
function countsOpens(tag: string, src: string, valueOf: (name: string) => string | undefined): boolean {
  const url = src.trim();
  if (!/^(?:https?:)?\/\//i.test(url)) return false;
  if (tag !== 'img' || COUNTERS.test(url)) return true;
  const style = (valueOf('style') ?? '').slice(0, MAX_STYLE_CHARS);
  const [width, height] = [valueOf('width'), valueOf('height')];
  // What the style says holds over the attribute.
  const isNarrow = /width\s*:/i.test(style) ? TINY_WIDTH.test(style) : width !== undefined && TINY.test(width);
  return isNarrow && (/height\s*:/i.test(style) ? TINY_HEIGHT.test(style) : height !== undefined && TINY.test(height));
}

/** What an author may write where a link of this recipient's goes: `{{postern.unsubscribe}}`. */
export const PLACEHOLDERS = ['unsubscribe', 'preferences', 'stop_tracking'] as const;
export type Placeholder = (typeof PLACEHOLDERS)[number];

export interface FoundPlaceholder {
  /** As written; one of PLACEHOLDERS, or a mistake. */
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** All places of the form `{{postern.NAME}}`. Two dashes behind one make it a mistake: what stands behind may come to begin a line, and so be taken for a boundary. */
export function findPlaceholders(text: string): readonly FoundPlaceholder[] {
  if (!text.includes('postern.')) return [];
  return [...text.matchAll(/\{\{[ \t]{0,8}postern\.([\w.-]{0,64})[ \t]{0,8}\}\}(--)?/g)].map((found) => ({ name: `${found[1] ?? ''}${found[2] ?? ''}`, start: found.index, end: found.index + found[0].length }));
}

const URL_IN_TEXT = /\bhttps?:\/\/[^\s<>"'`(){}[\]\\]+/gi;

const SENTENCE = '.,;:!?*_~';

/** The links of a plain text: up to white space, a bracket or a quote, without the sentence's punctuation. */
export function findInText(text: string): readonly FoundLink[] {
  return [...text.matchAll(URL_IN_TEXT)].map((found) => {
    let length = found[0].length;
    while (SENTENCE.includes(found[0][length - 1] ?? ' ')) length--;
    return { kind: 'link', start: found.index, end: found.index + length, value: found[0].slice(0, length), quote: '' };
  });
}

// What template languages leave behind when nobody filled it in.
const PLACEHOLDER = /\{\{|\}\}|\{%|\*\||\|\*|\[\[|<%|\$\{|%%|%[a-z_]{3,}%/i;
// An objection must not depend on our redirect, and is nobody's click to count.
const OBJECTION = /unsub|opt-?out|preference/i;

// A link of ours has at most 2,000 characters with its token, so a longer value could not be replaced;
// references may make it twice as long in the text.
const MAX_VALUE_CHARS = 4_000;

/** Links that lead there stay as they are. */
export interface LeftAlone {
  /** Host (and port) of our own pages: links there are ours already. */
  readonly ownHost: string;
  /** Domains the tenant excludes, lower case, each with its subdomains. */
  readonly domains: readonly string[];
  /** The URLs of the message's own List-Unsubscribe field. */
  readonly objections: ReadonlySet<string>;
}

/**
 * Where a link leads, or undefined when it is not one that may be rewritten. `octets` is the value as
 * it stands in the text; `html` decodes character references; `utf8` says how octets above 127 are read.
 */
export function targetOf(octets: string, html: boolean, utf8: boolean, left: LeftAlone): string | undefined {
  if (octets.length > MAX_VALUE_CHARS) return undefined;
  if (!/^[\t\n\f\r ]*https?:/i.test(octets) && !octets.includes('&')) return undefined;
  const ascii = !/[\u0080-\u00ff]/.test(octets);
  if (!ascii && !utf8) return undefined;
  const text = ascii ? octets : Buffer.from(octets, 'latin1').toString('utf8');
  if (text.includes('\uFFFD')) return undefined;
  const target = (html ? decodeHTMLAttribute(text) : text).replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, '');
  // White space and control characters inside would not survive a Location field unchanged.
  if (!/^https?:\/\/[^\s\0-\x20\x7f]+$/i.test(target)) return undefined;
  if (PLACEHOLDER.test(target) || OBJECTION.test(target) || left.objections.has(target)) return undefined;
  const url = URL.parse(target);
  if (url === null || url.host === '' || url.host === left.ownHost) return undefined;
  return left.domains.some((domain) => url.hostname === domain || url.hostname.endsWith(`.${domain}`)) ? undefined : target;
}
