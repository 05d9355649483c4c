// HTML made safe by construction: html`...` escapes every value put into it, unless the value is itself
// made by html, or a list of such. Callers may rely on there being no other way to get text into a page.

/** Text that is already HTML; made only by html. */
export class Html {
  readonly #text: string;
  private constructor(text: string) {
    this.#text = text;
  }

  static join(literals: TemplateStringsArray, values: readonly Value[]): Html {
    let text = literals[0] ?? '';
    values.forEach((value, i) => {
      text += textOf(value) + (literals[i + 1] ?? '');
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

type Value = string | number | Html | readonly Html[];

function textOf(value: Value): string {
  if (value instanceof Html) return value.toString();
  return typeof value === 'object' ? value.join('') : escape(String(value));
}

/** The template tag. */
export function html(literals: TemplateStringsArray, ...values: readonly Value[]): Html {
  return Html.join(literals, values);
}
