// The kinds of value a key can have, as zod types with the sentence an operator reads when one does not
// fit, and the two ways to declare a key. What is said about a key (sentence, unit, default, reason,
// reload class) is said once, here in `.meta()`: the parser, the JSON Schemas, config/README.md and
// `postern config show` are all made from it.
import { isIP } from 'node:net';
import { z } from 'zod';
import type { Listen } from './settings.ts';
import { DURATION_PATTERN, RATE_PATTERN, SIZE_PATTERN, parseDuration, parseRate, parseSize } from './units.ts';

/** What a key's declaration says beside its type. */
export interface About {
  /** One sentence for the operator. */
  readonly says: string;
  /** Why the default is what it is. */
  readonly reason?: string;
}

/** When a change of the key takes effect. */
export type ReloadClass = 'restart' | 'live';

interface Declare {
  /** A key that must be given. */
  needed<T extends z.ZodType>(type: T, about: About): T;
  /** A key with a default, written as the operator would write it. */
  preset<T extends z.ZodType>(type: T, value: z.input<T>, about: About): z.ZodPrefault<T>;
  /** A key that may be left out, where leaving it out has a meaning of its own. */
  choice<T extends z.ZodType>(type: T, about: About): z.ZodOptional<T>;
}

/** The declarers of one reload class. */
export function declare(reload: ReloadClass): Declare {
  const meta = (about: About): Record<string, unknown> => ({
    description: about.says,
    'x-reload': reload,
    ...(about.reason === undefined ? {} : { 'x-reason': about.reason }),
  });
  return {
    needed: (type, about) => type.meta(meta(about)),
    preset: (type, value, about) => type.prefault(value as never).meta(meta(about)),
    choice: (type, about) => type.optional().meta(meta(about)),
  };
}

// RFC 1035 §2.3.4: 63 octets a label, 253 characters a name as text. No trailing dot, lower case.
const LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
const NAME = `(?=.{1,253}$)(?:${LABEL}\\.)+${LABEL}`;
const ID = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** True for a tenant, stream or provider id. */
export const isOperatorId = (text: string): boolean => ID.test(text);

const text = (pattern: RegExp, expected: string): z.ZodString => z.string(`expected ${expected}`).regex(pattern, `expected ${expected}`);

export const id = text(ID, 'an id of lower-case letters, digits and hyphens');
export const version = text(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'a version such as 2026-01, in quotes where it would read as a number');
export const hostname = text(new RegExp(`^${NAME}$`), 'a host name in lower case, without a trailing dot');
export const username = text(/^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$/, 'a user name of letters, digits and . _ @ + -');
// Enough to catch a slip; the address parser in mail/ judges what is mailed.
export const email = text(new RegExp(`^[^\\s<>@"]{1,64}@${NAME}$`), 'an address such as privacy@acme.example');
export const url = text(/^(?:|https?:\/\/[^\s/]+(?:\/\S*)?)$/, 'a URL such as https://acme.example/privacy');
export const line = text(/^[^\p{Cc}]{0,500}$/u, 'one line of text');
export const words = text(/^[^\p{Cc}]{1,500}$/u, 'one line of text');
export const selector = text(/^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/, 'a DKIM selector such as s2026a');
export const file = text(/^[^\p{Cc}]{1,1000}$/u, 'a file name');
export const secret = text(/^sha256:[0-9a-f]{64}$/, 'sha256: and 64 hex digits (make one with `postern credential create`)');
export const tokenSecret = text(/^sha256:[0-9a-f]{64}$/, 'sha256: and 64 hex digits (make one with `postern token create`)');
// RFC 5322 §2.2: printable ASCII without a colon; what is in use is letters, digits and hyphens.
export const fieldName = text(/^[A-Za-z][A-Za-z0-9-]{0,75}$/, 'the name of a header field, such as Reply-To');
export const tld = text(new RegExp(`^${LABEL}$`), 'a top-level domain in lower case without a dot, such as fr');
/** Base of recipients' links: scheme and host, perhaps a port, no path. */
export const origin = text(new RegExp(`^https?://(?:${NAME}|localhost|\\d{1,3}(?:\\.\\d{1,3}){3})(?::\\d{1,5})?$`.replaceAll('{1,253}$', '{1,260}$')),
  'a URL without a path, such as https://news.acme.example');
export const sender = text(new RegExp(`^(?:[^\\s<>@"]{1,64}@)?${NAME}$`), 'a domain or an address');
export const address = z.string().refine((value) => isIP(value) !== 0, 'expected an IP address');
export const routeDomain = text(new RegExp(`^(?:\\*|(?:\\*\\.)?${NAME})$`), 'a domain, *.domain or *');

// A suffix that ends in a dot never matches anything, and one without its leading dot would match
// notgoogle.com: both are said by name.
export const hostMatch = z.string().superRefine((value, ctx) => {
  if (value.endsWith('.')) ctx.addIssue({ code: 'custom', message: 'a trailing dot never matches: leave it out' });
  else if (!new RegExp(`^\\.?${NAME}$`).test(value)) ctx.addIssue({ code: 'custom', message: 'expected a suffix such as .google.com or a whole host name' });
});

export const color = text(/^#[0-9a-fA-F]{6}$/, 'a colour such as #1a5fb4');

export const yes = z.boolean();
/** A whole number in [least, most]. */
export const count = (least: number, most: number) => z.int().min(least).max(most);
export const duration = text(DURATION_PATTERN, 'a duration with its unit (ms, s, m, h, d), such as 3d').transform((value) => parseDuration(value) ?? 0);
export const someTime = duration.refine((ms) => ms > 0, 'expected more than no time');
export const size = text(SIZE_PATTERN, 'a size with its unit (B, KiB, MiB, GiB, TiB), such as 25MiB').transform((value) => parseSize(value) ?? 0);
export const rate = text(RATE_PATTERN, 'a rate with its unit (s, min, h, d), such as 600/min, or unset').transform((value) => parseRate(value));
/** A rate towards receivers: evenly spaced unless a burst is written. */
export const laneRate = text(RATE_PATTERN, 'a rate with its unit (s, min, h, d), such as 600/min, or unset')
  .transform((value) => parseRate(value.includes(' burst ') ? value : `${value} burst 1`));
/** A rate that is one. */
export const someRate = text(/^[1-9]\d{0,8}\/(?:s|min|h|d)$/, 'a rate with its unit (s, min, h, d), such as 10/min')
  .transform((value) => parseRate(`${value} burst 1`) ?? { count: 1, perMs: 1_000, burst: 1 });
/** `30%` as 0.3. */
export const percent = text(/^(?:100|[1-9]?\d)%$/, 'a share such as 30%').transform((value) => Number(value.slice(0, -1)) / 100);
/** A whole number in [least, most], or `unset` for no limit. */
export const countOrUnset = (least: number, most: number) =>
  z.union([z.literal('unset'), z.int().min(least).max(most)], `expected a whole number from ${least} to ${most}, or unset`).transform((value) => (value === 'unset' ? undefined : value));
export const day = text(/^\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d)?Z)?$/, 'a day such as 2026-01-15 (UTC)').transform((value, ctx) => {
  const at = Date.parse(value);
  // Date.parse rolls 31 February over into March; what is written is what is meant.
  if (Number.isFinite(at) && new Date(at).toISOString().startsWith(value.slice(0, 10))) return at;
  ctx.addIssue({ code: 'custom', message: 'expected a day that exists' });
  return z.NEVER;
});

const TARGET = `(?:\\[[0-9a-f:.]+\\]|\\d{1,3}(?:\\.\\d{1,3}){3}|localhost|${NAME.replace('{1,253}$', '{1,260}$')})`;

/** `host:port`, an IPv6 address in brackets. */
export const listen = text(new RegExp(`^${TARGET}:\\d{1,5}$`), 'host:port, such as 127.0.0.1:2525 or [::]:465').transform((value, ctx): Listen => {
  const cut = value.lastIndexOf(':');
  const host = value.slice(0, cut).replace(/^\[|\]$/g, '');
  const port = Number(value.slice(cut + 1));
  const numeric = value.startsWith('[') || /^[\d.]+$/.test(host);
  if (port <= 65_535 && (!numeric || isIP(host) !== 0)) return Object.freeze({ host, port });
  ctx.addIssue({ code: 'custom', message: port > 65_535 ? 'expected a port up to 65535' : 'expected an IP address before the port' });
  return z.NEVER;
});
