// HTML made safe by construction: html`...` escapes every value put into it, unless the value is itself
// made by html. Callers may rely on there being no other way to get text into a page. The one layout
// needs no script, works in light and dark, and its policy forbids everything but its own style.
import { createHash } from 'node:crypto';

/** Text that is already HTML; made only by html. */
export class Html {
  readonly #text: string;
  private constructor(text: string) {
    this.#text = text;
  }

  static join(literals: TemplateStringsArray, values: readonly (string | number | Html)[]): Html {
    let text = literals[0] ?? '';
    values.forEach((value, i) => {
      text += (value instanceof Html ? value.#text : escape(String(value))) + (literals[i + 1] ?? '');
    });
    return new Html(text);
  }

  toString(): string {
    return this.#text;
  }
}

const ESCAPES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (c) => ESCAPES[c] ?? '');
}

/** The template tag. */
export function html(literals: TemplateStringsArray, ...values: readonly (string | number | Html)[]): Html {
  return Html.join(literals, values);
}

const STYLE = `:root{color-scheme:light dark}
body{font:1.125rem/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}
h1{font-size:1.5rem}
button{font:inherit;padding:.6rem 1.2rem;border:2px solid currentColor;border-radius:.4rem;background:transparent;color:inherit;cursor:pointer}
button:focus-visible,a:focus-visible{outline:3px solid;outline-offset:3px}
footer{margin-top:3rem;font-size:.9rem}`;

/** Content-Security-Policy of every page. */
export const PAGE_POLICY = `default-src 'none'; style-src 'sha256-${createHash('sha256').update(STYLE).digest('base64')}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'`;

const STYLE_HTML = Html.join(Object.assign([`<style>${STYLE}</style>`], { raw: [] }), []);

/** A whole page. `footer` names who sent the mail. */
export function page(title: string, body: Html, footer: Html = html``): string {
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>${title}</title>
${STYLE_HTML}
</head>
<body>
<main>
<h1>${title}</h1>
${body}
</main>
<footer>${footer}</footer>
</body>
</html>
`.toString();
}
