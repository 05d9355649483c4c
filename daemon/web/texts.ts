// The languages of the pages and how one is chosen: by ?lang, else by Accept-Language, else English. Nothing
// is remembered anywhere. Callers may rely on: say() fills every placeholder it is given and never makes
// HTML; every language has every text (the type asks for it). RFC 9110 §12.5.4, BCP 47.
import { de } from './texts/de.ts';
import { en } from './texts/en.ts';
import { fr } from './texts/fr.ts';
import { hi } from './texts/hi.ts';
import { it } from './texts/it.ts';

export type TextKey = keyof typeof en;
export type Texts = Readonly<Record<TextKey, string>>;

/** Each language by its tag: its own name, its direction, its texts. */
export const LANGUAGES = {
  en: { name: 'English', dir: 'ltr', texts: en },
  fr: { name: 'Français', dir: 'ltr', texts: fr },
  de: { name: 'Deutsch', dir: 'ltr', texts: de },
  it: { name: 'Italiano', dir: 'ltr', texts: it },
  hi: { name: 'हिन्दी', dir: 'ltr', texts: hi },
} as const satisfies Record<string, { readonly name: string; readonly dir: 'ltr' | 'rtl'; readonly texts: Texts }>;

export type Language = keyof typeof LANGUAGES;

export const isLanguage = (tag: string): tag is Language => Object.hasOwn(LANGUAGES, tag);

/** The language of a page: `asked` is ?lang, `accepted` the Accept-Language field. */
export function languageOf(asked: string | undefined, accepted: string | undefined): Language {
  if (asked !== undefined && isLanguage(asked)) return asked;
  const wanted = (accepted ?? '').slice(0, 1_000).split(',').map((range) => {
    const [, tag = '', q = '1'] = /^\s*([A-Za-z*]{1,8})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q=([\d.]{1,5}))?\s*$/.exec(range) ?? [];
    return { tag: tag.toLowerCase(), q: Number(q) };
  }).filter(({ tag, q }) => isLanguage(tag) && q > 0);
  // The sort is stable: of equals the first one named.
  const [best] = wanted.sort((a, b) => b.q - a.q);
  return best !== undefined && isLanguage(best.tag) ? best.tag : 'en';
}

export interface Blanks {
  readonly sender?: string;
  readonly purpose?: string;
  readonly date?: string;
  readonly version?: string;
}

/** One text with its blanks filled; plain text, not HTML. */
export function say(language: Language, key: TextKey, blanks: Blanks = {}): string {
  return LANGUAGES[language].texts[key].replace(/\{(sender|purpose|date|version)\}/g, (whole, name: keyof Blanks) => blanks[name] ?? whole);
}

/** A day in the words of the language; UTC. */
export function dayIn(language: Language, at: number): string {
  return new Intl.DateTimeFormat(language === 'en' ? 'en-GB' : language, { dateStyle: 'long', timeZone: 'UTC' }).format(at);
}
