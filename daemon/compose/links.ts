// Finds, in a decoded HTML or plain text, the links, the pictures by which others count opens, our
// placeholders and the place for the pixel. Offsets are into the text given (one character per octet), of
// the attribute's value without its quotes. Callers may rely on: only what leads a reader somewhere is
// found as a link, once for each attribute a reader takes; links the author exempted, unsubscribe and
// preference links, fragments and unfilled placeholders are none; what stands in scripts, styles, comments
// and unfinished tags is not found, except Outlook's conditional comments, whose links people click.
// SVG 1.1 §17.1 (xlink:href).
import { decodeHTMLAttribute } from 'entities';
import { scanHtml, type Attribute, type Visitor } from './html.ts';

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

/** Pictures, and what they are judged by. */
const PICTURES: ReadonlySet<string> = new Set(['img', 'amp-pixel', 'bgsound']);
const PICTURE_ATTRIBUTES: ReadonlySet<string> = new Set(['src', 'width', 'height', 'style']);
const leading = (...names: readonly string[]): ReadonlySet<string> => new Set([...names, ...Object.keys(EXEMPT)]);
const SHAPE_ATTRIBUTES = leading('href');
/** What is looked at of each element: attributes that lead a reader somewhere, and those that exempt. */
const WANTED: ReadonlyMap<string, ReadonlySet<string>> = new Map([
  ['a', leading('href', 'xlink:href')], ['area', leading('href')], ['form', leading('action')], ['button', leading('formaction')], ['input', leading('formaction')],
  ...[...PICTURES].map((element) => [element, PICTURE_ATTRIBUTES] as const),
]);

/** The links and the pixel's place in an HTML text. */
export function findInHtml(html: string): FoundHtml {
  const finder = new Finder(html);
  scanHtml(html, finder);
  return { links: finder.links, pixelAt: finder.end };
}

/** Gathers links as their tags end; inside a conditional comment too, but not in a comment of that. */
class Finder implements Visitor {
  readonly links: FoundLink[];
  readonly #html: string;
  readonly #comments: boolean;
  #body = -1;
  #root = -1;

  constructor(html: string, links: FoundLink[] = [], comments = true) {
    this.#html = html;
    this.links = links;
    this.#comments = comments;
  }

  /** Where the text ends for its reader. */
  get end(): number {
    const end = this.#body === -1 ? this.#root : this.#body;
    return end === -1 ? this.#html.length : end;
  }

  wants(element: string): ReadonlySet<string> | undefined {
    // VML shapes are what Outlook makes buttons of.
    return WANTED.get(element) ?? (element.startsWith('v:') ? SHAPE_ATTRIBUTES : undefined);
  }

  open(element: string, attributes: readonly Attribute[]): void {
    if (PICTURES.has(element)) return this.#picture(element, attributes);
    const taken = new Set<string>();
    const found: FoundLink[] = [];
    for (const attribute of attributes) {
      const { name, start, end, quote } = attribute;
      const value = this.#html.slice(start, end);
      if (Object.hasOwn(EXEMPT, name)) {
        const needed = EXEMPT[name];
        if (needed === undefined || value.trim().toLowerCase() === needed) return;
      } else if (!taken.has(name)) {
        // Of an attribute given twice readers take the first.
        taken.add(name);
        if (value !== '') found.push({ kind: name.endsWith('action') ? 'form' : 'link', start, end, value, quote });
      }
    }
    this.links.push(...found);
  }

  #picture(element: string, attributes: readonly Attribute[]): void {
    const valueOf = (wanted: string): string | undefined => {
      const found = attributes.find(({ name }) => name === wanted);
      return found === undefined ? undefined : this.#html.slice(found.start, found.end);
    };
    const src = attributes.find(({ name }) => name === 'src');
    const value = valueOf('src');
    if (src === undefined || value === undefined || !countsOpens(element, value, valueOf)) return;
    this.links.push({ kind: 'tracker', start: src.start, end: src.end, value, quote: src.quote });
  }

  close(element: string, start: number): void {
    if (element === 'body') this.#body = start;
    else if (element === 'html') this.#root = start;
  }

  comment(start: number, end: number): void {
    if (!this.#comments) return;
    const open = /^\[if [^\]]{1,200}\]>/i.exec(this.#html.slice(start, Math.min(end, start + 210)));
    if (open !== null) scanHtml(this.#html, new Finder(this.#html, this.links, false), start + open[0].length, end);
  }
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
