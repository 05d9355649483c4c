// Makes one recipient's bytes from the submitted ones and the plan, without parsing again. Callers may
// rely on: what no edit covers is a view of the submitted bytes, a recipient who may not be tracked
// gets every link as submitted, no line grows past its limit (76 in quoted-printable and base64, 998
// elsewhere: a link that would is left alone), and no bare CR or LF is made. RFC 5322 §2.1.1, RFC 2045
// §6.7 and §6.8, RFC 2369 §3.2, RFC 8058 §3.1.
import type { Cleared, OpenMode, Plan, PlannedEdit, PlannedPart, Range, Rendered } from '../mail/index.ts';
import { encodeQpRun } from '../mail/index.ts';
import type { TenantKeys } from '../runtime/index.ts';
import type { SendingDomain, Stream } from '../settings/index.ts';
import { clearText, encodeRun } from './base64.ts';
import { NOBODY, NO_MESSAGE, openSealer, sealMailto, sealReturnPath, tokenChars } from './token.ts';

export interface RenderContext {
  readonly tenant: string;
  readonly keys: TenantKeys;
  readonly domain: SendingDomain;
  readonly stream: Stream;
  /** Whether mail to the return path reaches us: only then may one unsubscribe by mail. */
  readonly inbound?: boolean;
}

// RFC 5322 §2.1.1 MUST: 998 characters without CRLF.
const LINE_OCTETS = 998;
// With up to four octets more a token's length has any remainder of three.
const FILLS = [0, 1, 2, 3, 4] as const;
const MOST_FILL = 4;
// Longer URLs are cut by mail programs, proxies and scanners.
const MAX_URL_CHARS = 2_000;

// Out of the flow and without height: neither loaded nor missing does it move a line or make the letter longer.
const PIXEL_LOOK = 'width="1" height="1" alt="" border="0" align="left" style="margin-top:-1px"';

// In place of somebody else's: one transparent pixel, asked of nobody (RFC 2397).
const EMPTY_PICTURE = 'data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7';
// The preference page with this one question first.
const STOP_TRACKING_STEP = '?step=tracking';

const ZERO_HASH = Buffer.alloc(16);
const CRLF = Buffer.from('\r\n');
const EQUALS = 61;

/** This recipient's header and body, not yet signed. */
export function render(cleared: Cleared, raw: Buffer, context: RenderContext): Rendered {
  const { plan, origin } = cleared.message;
  const notice = origin.kind === 'notice';
  const ink = origin.kind === 'relay' ? new Ink(cleared, context) : undefined;
  const body: Buffer[] = [];
  let at = plan.bodyStart;
  for (const part of plan.parts) {
    if (ink === undefined || !part.edits.some((edit) => ink.wants(edit))) continue;
    push(body, raw, at, part.range.start);
    spliced(body, raw, part, ink);
    at = part.range.end;
  }
  push(body, raw, at, raw.length);
  const returnPath = notice ? '' : `${sealReturnPath(context.keys, context.tenant, cleared.id, cleared.index)}@${context.domain.returnPath}`;
  // The one place where a message becomes rendered.
  return Object.freeze({
    ...cleared,
    header: renderHeader(raw, plan, ink !== undefined && cleared.unsubscribable && plan.keepsUnsubscribe !== true ? ink.unsubscribeFields() : ''),
    body,
    returnPath,
    links: ink?.links ?? 0,
    pixel: ink?.pixel ?? false,
    trackers: ink === undefined || cleared.tracking.opens === 'individual' ? 0 : plan.parts.reduce((sum, { edits }) => sum + edits.filter(({ kind }) => kind === 'tracker').length, 0),
  }) as unknown as Rendered;
}

function push(body: Buffer[], raw: Buffer, start: number, end: number): void {
  if (end > start) body.push(raw.subarray(start, end));
}

/** Added lines, the submitted header without what was removed, and the unsubscribe fields. */
function renderHeader(raw: Buffer, plan: Plan, last: string): Buffer {
  const slices = [Buffer.from(plan.added, 'latin1')];
  const end = headerEnd(raw, plan.bodyStart);
  let at = 0;
  for (const range of plan.removed) {
    push(slices, raw, at, range.start);
    at = range.end;
  }
  push(slices, raw, at, end);
  // Only a message that ends inside its header can lack the line's end.
  if (end > at && raw[end - 1] !== 10) slices.push(CRLF);
  slices.push(Buffer.from(last, 'latin1'));
  return Buffer.concat(slices);
}

/** Past the CRLF of the last field: the empty line before the body is not of the header. */
function headerEnd(raw: Buffer, bodyStart: number): number {
  const emptyLine = bodyStart >= 2 && raw[bodyStart - 2] === 13 && raw[bodyStart - 1] === 10 && (bodyStart === 2 || raw[bodyStart - 3] === 10);
  return emptyLine ? bodyStart - 2 : bodyStart;
}

/** What is written for one recipient: URLs with that recipient's tokens, and the count of them. */
class Ink {
  links = 0;
  pixel = false;
  readonly #cleared: Cleared;
  readonly #context: RenderContext;
  readonly #sealer: ReturnType<typeof openSealer>;
  readonly #who: { readonly stream: string; readonly purpose: string };

  constructor(cleared: Cleared, context: RenderContext) {
    this.#cleared = cleared;
    this.#context = context;
    this.#who = { stream: context.stream.id, purpose: context.stream.purpose };
    this.#sealer = openSealer(context.keys, { message: cleared.id, recipient: cleared.index, hashes: cleared.recipient.hashes, ...this.#who });
  }

  /** May this edit be made for this recipient? */
  wants(edit: PlannedEdit): boolean {
    const { opens, clicks } = this.#cleared.tracking;
    switch (edit.kind) {
      case 'placeholder':
        return true;
      case 'pixel':
        return opens !== 'none';
      case 'tracker':
        // What others count is never less than that.
        return opens !== 'individual' && this.#context.stream.thirdPartyTrackers !== 'report';
      default:
        return clicks === 'individual';
    }
  }

  /** Is the URL short enough to arrive whole? */
  fits(edit: PlannedEdit): boolean {
    return (edit.kind !== 'link' && edit.kind !== 'form') || this.chars(edit, MOST_FILL) < MAX_URL_CHARS;
  }

  /** Characters a link will have; known before a token is sealed. */
  chars(edit: PlannedEdit, fill = 0): number {
    return this.#context.domain.pages.length + '/c/'.length + tokenChars(this.#who, (edit.kind === 'placeholder' ? 0 : Buffer.byteLength(edit.target)) + fill) + this.#step(edit).length;
  }

  /** The text to put in place of the edit's range; given `beside`, its length and that make a multiple of three. */
  text(edit: PlannedEdit, beside?: number): string {
    if (edit.kind === 'tracker') return `${EMPTY_PICTURE}${beside === undefined ? '' : ' '.repeat((3 - (beside + EMPTY_PICTURE.length) % 3) % 3)}`;
    if (edit.kind !== 'pixel') {
      const fill = beside === undefined ? 0 : FILLS.find((octets) => (beside + this.chars(edit, octets)) % 3 === 0) ?? 0;
      return this.#link(edit, fill);
    }
    this.pixel = true;
    const text = `<img src="${this.#context.domain.pages}/o/${this.#openToken(this.#cleared.tracking.opens)}" ${PIXEL_LOOK}`;
    return `${text}${beside === undefined ? '' : ' '.repeat(2 - (beside + text.length) % 3)}>`;
  }

  #link(edit: PlannedEdit, fill: number): string {
    const { pages } = this.#context.domain;
    if (edit.kind === 'placeholder') {
      const token = this.#leaves(edit) ? `u/${this.#sealer.unsubscribe(fill)}` : `p/${this.#sealer.preferences(fill)}`;
      return `${pages}/${token}${this.#step(edit)}`;
    }
    this.links++;
    return edit.kind === 'form' ? `${pages}/f/${this.#sealer.form(edit.target, fill)}` : `${pages}/c/${this.#sealer.click(edit.target, fill)}`;
  }

  /** To unsubscribe from what cannot be is to choose among what can. */
  #leaves(edit: PlannedEdit): boolean {
    return edit.target === 'unsubscribe' && this.#cleared.unsubscribable;
  }

  #step(edit: PlannedEdit): string {
    return edit.kind === 'placeholder' && edit.target === 'stop_tracking' ? STOP_TRACKING_STEP : '';
  }

  #openToken(mode: OpenMode): string {
    if (mode !== 'aggregate') return this.#sealer.open(mode);
    const hashes = { consent: ZERO_HASH, suppression: ZERO_HASH, family: ZERO_HASH };
    const message = this.#cleared.message.plan.shared === true ? this.#cleared.id : NO_MESSAGE;
    return openSealer(this.#context.keys, { message, recipient: NOBODY, hashes, ...this.#who }).open(mode);
  }

  // RFC 8058 §3.1: one HTTPS URI, and the Post field beside it.
  unsubscribeFields(): string {
    const { domain, inbound, keys, tenant } = this.#context;
    const token = this.#sealer.unsubscribe();
    // RFC 2369 §2: by preference, and the subject (RFC 6068 §2) names the person: the address has no room for it.
    const mailto = inbound === true ? `,\r\n <mailto:${sealMailto(keys, tenant, this.#cleared.id, this.#cleared.index)}@${domain.returnPath}?subject=${token}>` : '';
    return `List-Unsubscribe: <${domain.pages}/u/${token}>${mailto}\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n`;
  }
}

function spliced(body: Buffer[], raw: Buffer, part: PlannedPart, ink: Ink): void {
  const edits = part.edits.filter((edit) => ink.wants(edit) && ink.fits(edit));
  if (part.encoding === 'base64') return base64Spliced(body, raw, part, edits.filter((edit) => edit.keep !== undefined), ink);
  const lines = new Lines(raw, part);
  let at = part.range.start;
  for (const edit of edits) {
    const written = part.encoding === 'quoted-printable' ? encodeQpRun(ink.text(edit)) : identityText(edit, lines, ink);
    if (written === undefined) continue;
    push(body, raw, at, edit.start);
    body.push(Buffer.from(written, 'latin1'));
    at = edit.end;
  }
  push(body, raw, at, part.range.end);
}

/** The edit's text if its line stays legal; what must not be left out gets lines of its own where it would not fit, which is white space around a URL. */
function identityText(edit: PlannedEdit, lines: Lines, ink: Ink): string | undefined {
  const length = edit.end - edit.start;
  if (edit.kind === 'link' || edit.kind === 'form') return lines.mayGrow(edit, ink.chars(edit) - length) ? ink.text(edit) : undefined;
  const text = ink.text(edit);
  return lines.mayGrow(edit, text.length - length) ? text : `\r\n${text}\r\n`;
}

/** Keeps count of how long the line of an identity-encoded part has become. */
class Lines {
  readonly #raw: Buffer;
  readonly #part: PlannedPart;
  #end = -1;
  #octets = 0;

  constructor(raw: Buffer, part: PlannedPart) {
    this.#raw = raw;
    this.#part = part;
  }

  /** True, and remembered, when the line the edit stands in may grow by so many octets. */
  mayGrow(edit: PlannedEdit, octets: number): boolean {
    if (edit.start > this.#end || this.#end === -1) {
      const before = edit.start === 0 ? -1 : this.#raw.lastIndexOf(10, edit.start - 1);
      const after = this.#raw.indexOf('\r\n', edit.end, 'latin1');
      this.#end = after === -1 ? this.#part.range.end : after;
      this.#octets = this.#end - before - 1;
    }
    if (octets > 0 && this.#octets + octets > LINE_OCTETS) return false;
    this.#octets += octets;
    return true;
  }
}

/** Edits in the same or neighbouring groups of base64 are written together; the lines of all others stay as they are. */
function base64Spliced(body: Buffer[], raw: Buffer, part: PlannedPart, edits: readonly PlannedEdit[], ink: Ink): void {
  let at = part.range.start;
  for (let i = 0; i < edits.length;) {
    const run = { start: edits[i]?.start ?? at, end: edits[i]?.end ?? at };
    const together: PlannedEdit[] = [];
    for (let edit = edits[i]; edit !== undefined && (together.length === 0 || edit.start <= run.end); edit = edits[++i]) {
      together.push(edit);
      run.end = Math.max(run.end, edit.end);
    }
    push(body, raw, at, run.start);
    body.push(Buffer.from(encodeRun(base64Text(raw, run, together, ink), raw, run, part.range), 'latin1'));
    at = run.end;
  }
  push(body, raw, at, part.range.end);
}

/** The run's text with the edits made, of such a length that what comes after it stays in its groups. */
function base64Text(raw: Buffer, run: Range, edits: readonly PlannedEdit[], ink: Ink): string {
  const clear = clearText(raw, run);
  const [octetsToStart, octetsToEnd] = [countOctets(raw, run), countOctets(raw, run)];
  let text = '';
  let from = 0;
  for (const [i, edit] of edits.entries()) {
    const [before, after] = edit.keep ?? [0, 0];
    text += clear.slice(from, octetsToStart(edit.start) + before);
    from = octetsToEnd(edit.end) - after;
    // Padding ends the part: nothing comes after it.
    const free = i < edits.length - 1 || raw[run.end - 1] === EQUALS;
    text += free ? ink.text(edit) : ink.text(edit, text.length + clear.length - from);
  }
  return text + clear.slice(from);
}

/** Counts the decoded octets before places of a run that come in order, and reads nothing twice. */
function countOctets(raw: Buffer, run: Range): (to: number) => number {
  let at = run.start;
  let octets = 0;
  return (to) => {
    octets += clearText(raw, { start: at, end: to }).length;
    at = Math.max(at, to);
    return octets;
  };
}
