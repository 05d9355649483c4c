// Reads Content-Type, Content-Disposition and Content-Transfer-Encoding values: a token, then
// parameters. Comments are dropped, quoted strings understood. A value that two readers could take in
// two ways (a parameter given twice, rest that is no parameter) is undefined, and the part it
// describes is then left alone. Parameters live in a Map, so that no name is special. RFC 2045 §5.1,
// RFC 2183 §2; RFC 2231 continuations stay under their starred names and are not joined.

export interface HeaderToken {
  /** Lower case, `text/html`, `attachment`, `base64`. */
  readonly token: string;
  /** By lower-case name; values as written, unquoted. */
  readonly params: ReadonlyMap<string, string>;
}

const TOKEN = /[^\s()<>@,;:\\"[\]?=/]+(?:\/[^\s()<>@,;:\\"[\]?=/]+)?/y;
const PARAM = /\s*;\s*(?:([^\s()<>@,;:\\"/[\]?=]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))\s*)?/y;
// Longer values are no longer a description of anything; it also bounds the patterns' work.
const MAX_VALUE_CHARS = 8_192;

/** Reads `token; name=value; ...`; undefined when the value is not exactly that. */
export function parseHeaderToken(value: string): HeaderToken | undefined {
  if (value.length > MAX_VALUE_CHARS) return undefined;
  const text = withoutComments(value).trim();
  TOKEN.lastIndex = 0;
  const token = TOKEN.exec(text)?.[0];
  if (token === undefined) return undefined;
  const params = new Map<string, string>();
  let at = token.length;
  while (at < text.length) {
    PARAM.lastIndex = at;
    const found = PARAM.exec(text);
    if (found === null) return undefined;
    at = PARAM.lastIndex;
    const name = found[1]?.toLowerCase();
    if (name === undefined) continue; // a stray semicolon, common at the end
    if (params.has(name)) return undefined;
    params.set(name, found[2]?.replaceAll(/\\(.)/gs, '$1') ?? found[3] ?? '');
  }
  return { token: token.toLowerCase(), params };
}

function withoutComments(value: string): string {
  if (!value.includes('(')) return value;
  let out = '';
  let depth = 0;
  let quoted = false;
  for (let i = 0; i < value.length; i++) {
    const char = value[i] ?? '';
    if (char === '\\') {
      if (depth === 0) out += char + (value[i + 1] ?? '');
      i++;
    } else if (depth === 0 && char === '"') {
      quoted = !quoted;
      out += char;
    } else if (!quoted && char === '(') {
      depth++;
    } else if (depth > 0) {
      if (char === ')') depth--;
    } else {
      out += char;
    }
  }
  return out;
}
