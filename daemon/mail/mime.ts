// Where the parts of a message lie: a byte index made with Buffer.indexOf, without touching the lines
// between boundaries. Callers may rely on: leaves come in order, ranges never overlap and lie inside
// the message, nothing throws whatever the bytes are, and everything that must not be edited says why
// in `closed`: signed and encrypted parts, attachments, messages inside messages, parts whose
// description can be read in two ways. Too many or too deep parts are a verdict, not an exception: such
// a message passes as it is. RFC 2045, RFC 2046 §5.1, RFC 1847, RFC 2183.
import { fieldValue, indexHeader, type HeaderIndex } from './headers.ts';
import { parseHeaderToken, type HeaderToken } from './content-type.ts';
import type { Range } from './stages.ts';

export type ContentEncoding = 'identity' | 'quoted-printable' | 'base64';

/** Why a part is not to be edited; '' when it may be. */
export type Closed = '' | 'signed' | 'encrypted' | 'attachment' | 'not-text' | 'ambiguous-header' | 'unknown-encoding' | 'no-boundary';

/** A part without parts of its own, or one that is not looked into. */
export interface MimeLeaf {
  readonly headerStart: number;
  /** The body's octets; the CRLF before a boundary belongs to the boundary. */
  readonly range: Range;
  /** Lower case; `text/plain` where none is given. */
  readonly type: string;
  readonly params: ReadonlyMap<string, string>;
  /** Lower case, `us-ascii` where none is given. */
  readonly charset: string;
  readonly encoding: ContentEncoding;
  /** 0 for a message that is not multipart. */
  readonly depth: number;
  readonly closed: Closed;
}

export interface MimeIndex {
  readonly leaves: readonly MimeLeaf[];
  /** Anything but `ok`: the index stops there and nothing in the message may be edited. */
  readonly verdict: 'ok' | 'too-many-parts' | 'too-deep';
}

// Mail composed by people and programs has less than ten parts; a mailing-list digest has hundreds.
const MAX_PARTS = 1_000;
// Each level searches its range once more, so depth times size is the work. Real mail stays below ten.
const MAX_DEPTH = 32;
// RFC 2046 §5.1.1: a boundary has 1 to 70 characters; some programs write a few more.
const MAX_BOUNDARY_CHARS = 200;

const NO_PARAMS: ReadonlyMap<string, string> = new Map();

/** Indexes the parts of a message whose header has been indexed. */
export function indexMime(raw: Buffer, header: HeaderIndex = indexHeader(raw)): MimeIndex {
  const walk = new Walk(raw);
  walk.part(header, { start: header.bodyStart, end: raw.length }, 0, 'text/plain', 0);
  return { leaves: walk.leaves, verdict: walk.verdict };
}

class Walk {
  readonly leaves: MimeLeaf[] = [];
  verdict: MimeIndex['verdict'] = 'ok';
  readonly #raw: Buffer;
  #parts = 0;

  constructor(raw: Buffer) {
    this.#raw = raw;
  }

  part(header: HeaderIndex, range: Range, headerStart: number, defaultType: string, depth: number): void {
    const content = describe(this.#raw, header, defaultType);
    const { type, params, charset, encoding } = content;
    const closed = content.closed;
    const boundary = params.get('boundary') ?? '';
    const leaf = (why: Closed): void => void this.leaves.push({ headerStart, range, type, params, charset, encoding, depth, closed: why });
    if (!type.startsWith('multipart/') || closed !== '') return leaf(closed);
    if (boundary === '' || boundary.length > MAX_BOUNDARY_CHARS || /[\r\n]/.test(boundary)) return leaf('no-boundary');
    if (depth === MAX_DEPTH) {
      this.verdict = 'too-deep';
      return leaf('not-text');
    }
    const childType = type === 'multipart/digest' ? 'message/rfc822' : 'text/plain';
    eachChild(this.#raw, range, boundary, (child) => {
      if (this.verdict === 'ok' && ++this.#parts > MAX_PARTS) this.verdict = 'too-many-parts';
      if (this.verdict !== 'ok') return false;
      const inner = indexHeader(this.#raw, child.start, child.end);
      this.part(inner, { start: inner.bodyStart, end: child.end }, child.start, childType, depth + 1);
      return this.verdict === 'ok';
    });
  }
}

interface Content {
  readonly type: string;
  readonly params: ReadonlyMap<string, string>;
  readonly charset: string;
  readonly encoding: ContentEncoding;
  readonly closed: Closed;
}

function describe(raw: Buffer, header: HeaderIndex, defaultType: string): Content {
  const content = only(raw, header, 'content-type');
  const disposition = only(raw, header, 'content-disposition');
  const transfer = only(raw, header, 'content-transfer-encoding');
  const type = content?.token ?? defaultType;
  const params = content?.params ?? NO_PARAMS;
  const encoding = encodingOf(transfer?.token ?? '7bit');
  const unclear = [content, disposition, transfer].includes(UNCLEAR) || header.fault !== undefined;
  return {
    type,
    params,
    charset: (params.get('charset') ?? 'us-ascii').toLowerCase(),
    encoding: encoding ?? 'identity',
    closed: unclear ? 'ambiguous-header' : closedBy(type, params, disposition, encoding),
  };
}

function closedBy(type: string, params: ReadonlyMap<string, string>, disposition: HeaderToken | undefined, encoding: ContentEncoding | undefined): Closed {
  // RFC 1847 §2.1: not one octet of a signed part may change.
  if (type === 'multipart/signed') return 'signed';
  if (type === 'multipart/encrypted') return 'encrypted';
  if (!type.startsWith('text/') && !type.startsWith('multipart/')) return 'not-text';
  // RFC 2183 §2.8: an unknown disposition is an attachment. A named text is a file, wherever it is shown.
  if (disposition !== undefined && disposition.token !== 'inline') return 'attachment';
  if (type.startsWith('text/') && (named(params, 'name') || named(disposition?.params, 'filename'))) return 'attachment';
  if (encoding === undefined) return 'unknown-encoding';
  // RFC 2045 §6.4: a multipart is never encoded.
  return type.startsWith('multipart/') && encoding !== 'identity' ? 'unknown-encoding' : '';
}

/** Also under RFC 2231 names: `filename*`, `filename*0`, `filename*0*`. */
function named(params: ReadonlyMap<string, string> | undefined, name: string): boolean {
  if (params === undefined) return false;
  for (const key of params.keys()) if (key === name || key.startsWith(`${name}*`)) return true;
  return false;
}

function encodingOf(token: string): ContentEncoding | undefined {
  if (token === '7bit' || token === '8bit' || token === 'binary') return 'identity';
  return token === 'quoted-printable' || token === 'base64' ? token : undefined;
}

/** Stands for a field that is there twice or cannot be read. */
const UNCLEAR: HeaderToken = Object.freeze({ token: '', params: NO_PARAMS });

function only(raw: Buffer, header: HeaderIndex, name: string): HeaderToken | undefined {
  let found: HeaderToken | undefined;
  for (const field of header.fields) {
    if (field.name !== name) continue;
    if (found !== undefined) return UNCLEAR;
    found = parseHeaderToken(fieldValue(raw, field)) ?? UNCLEAR;
  }
  return found;
}

/** Calls `visit` with the octets between delimiter lines until it returns false; preamble and epilogue are no parts. */
function eachChild(raw: Buffer, range: Range, boundary: string, visit: (child: Range) => boolean): void {
  const mark = Buffer.from(`--${boundary}`, 'latin1');
  let childStart = -1;
  let from = range.start;
  while (from < range.end) {
    const at = raw.indexOf(mark, from);
    if (at === -1 || at >= range.end) break;
    const line = delimiterAt(raw, range, at, mark.length);
    from = line?.end ?? at + 1;
    if (line === undefined) continue;
    // The CRLF before the delimiter is the delimiter's; a part directly after another's delimiter is empty.
    if (childStart !== -1 && !visit({ start: childStart, end: Math.max(childStart, at - 2) })) return;
    if (line.closing) return;
    childStart = line.end;
  }
  // RFC 2046 §5.1.2: a part whose closing delimiter is missing ends with what is around it.
  if (childStart !== -1) visit({ start: childStart, end: range.end });
}

/** The delimiter line at `at`, or undefined when the mark stands inside a line or goes on as another boundary. */
function delimiterAt(raw: Buffer, range: Range, at: number, markLength: number): { readonly end: number; readonly closing: boolean } | undefined {
  if (at !== range.start && raw[at - 1] !== 10) return undefined;
  let next = at + markLength;
  const closing = raw[next] === 45 && raw[next + 1] === 45;
  if (closing) next += 2;
  // RFC 2046 §5.1.1: white space a transport added
  while (next < range.end && (raw[next] === 32 || raw[next] === 9)) next++;
  if (next >= range.end) return { end: range.end, closing };
  return raw[next] === 13 && raw[next + 1] === 10 ? { end: Math.min(next + 2, range.end), closing } : undefined;
}
