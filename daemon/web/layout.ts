// The frame around every page: the tenant's name or logo, the page, who sends and where to ask, and the same
// page in other languages. Callers may rely on: nothing on it comes from anywhere else, its policy forbids
// scripts and everything but its own style and logo, and no answer is kept by a cache.
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Tenant } from '../settings/index.ts';
import { Html, html } from './html.ts';
import { styleOf } from './look.ts';
import { LANGUAGES, isLanguage, languageOf, say, type Blanks, type Language, type TextKey } from './texts.ts';

/** Who a page is from and in which language. */
export interface Desk {
  readonly language: Language;
  /** undefined: nobody's, such as a link that does not work. */
  readonly tenant: Tenant | undefined;
  /** The sender's name, or a word for it. */
  readonly name: string;
  /** A text of the page's language; the sender's name is filled in. */
  readonly say: (key: TextKey, blanks?: Blanks) => string;
}

export interface Sheet {
  readonly title: string;
  readonly body: Html;
  /** The address the language links lead to, without a query; '' is the page itself. */
  readonly at?: string;
  /** The step of the page they stay at. */
  readonly step?: string;
  /** Another answer in other words, for whoever follows it. */
  readonly feed?: string;
}

/** The desk a request is answered at. */
export function deskOf(request: IncomingMessage, tenant: Tenant | undefined): Desk {
  const asked = new URLSearchParams((request.url ?? '').split('?', 2)[1]).get('lang') ?? undefined;
  const language = languageOf(asked, request.headers['accept-language']);
  const name = tenant?.contact.name ?? say(language, 'the_sender');
  return { language, tenant, name, say: (key, blanks) => say(language, key, { sender: name, ...blanks }) };
}

/** The page as text; the same desk and sheet always make the same octets. */
export function render({ language, tenant, say: words }: Desk, { title, body, at = '', step, feed }: Sheet): string {
  const { contact, brand, policies } = tenant ?? {};
  const style = styleOf(brand?.color);
  const stay = step === undefined ? '' : `step=${step}&`;
  const languages = Object.keys(LANGUAGES).filter(isLanguage).map((tag) => html`<li>${tag === language
    ? html`<b lang="${tag}" aria-current="true">${LANGUAGES[tag].name}</b>` : html`<a href="${at}?${stay}lang=${tag}" lang="${tag}" hreflang="${tag}">${LANGUAGES[tag].name}</a>`}</li>`);
  return html`<!doctype html>
<html lang="${language}" dir="${LANGUAGES[language].dir}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>${title}</title>
${feed === undefined ? '' : html`<link rel="alternate" type="application/atom+xml" href="${feed}">
`}${Html.join(Object.assign([`<style>${style}</style>`], { raw: [] }), [])}
</head>
<body>
<div class="wrap">
${contact === undefined ? '' : html`<header>${brand?.logo === undefined ? contact.name
    : html`<img src="/brand/${brand.logo.hash}" alt="${contact.name}" width="${brand.logo.width}" height="${brand.logo.height}">`}</header>
`}<main>
<h1>${title}</h1>
${body}
</main>
<footer>
${contact === undefined ? '' : html`<p>${contact.name}${contact.postal === '' ? '' : html`<br>${contact.postal}`}</p>
<p>${words('contact')}: <a href="mailto:${contact.email}">${contact.email}</a>${(policies ?? []).length === 0 ? '' : html`<br><a href="/policy/">${words('policy')}</a>`}</p>
`}<nav aria-label="${words('language')}"><ul>${languages}</ul></nav>
</footer>
</div>
</body>
</html>
`.toString();
}

/** Answers with a page. */
export function show(request: IncomingMessage, response: ServerResponse, status: number, desk: Desk, sheet: Sheet): void {
  const text = render(desk, sheet);
  response.writeHead(status, {
    'Content-Type': 'text/html; charset=utf-8', 'Content-Language': desk.language,
    'Content-Security-Policy': `default-src 'none'; style-src 'sha256-${createHash('sha256').update(styleOf(desk.tenant?.brand?.color)).digest('base64')}'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'`,
    'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff', Vary: 'Accept, Accept-Language',
    'Content-Length': Buffer.byteLength(text),
  });
  response.end(request.method === 'HEAD' ? undefined : text);
}

/** The same answer for every token that is not good here, whatever is wrong with it. */
export function showBroken(request: IncomingMessage, response: ServerResponse): void {
  const desk = deskOf(request, undefined);
  show(request, response, 404, desk, { title: desk.say('broken_title'), body: html`<p role="alert">${desk.say('broken')}</p>` });
}

/** The store did not answer: nothing was changed. */
export function showTrouble(request: IncomingMessage, response: ServerResponse, desk: Desk): void {
  response.setHeader('Retry-After', 60);
  show(request, response, 503, desk, { title: desk.say('trouble_title'), body: html`<p role="alert">${desk.say('trouble')}</p>` });
}

/** A purpose as people read it: `order-news` is Order news. */
export function nameOfPurpose(purpose: string): string {
  const words = purpose.replaceAll('-', ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}
