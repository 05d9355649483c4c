// Parses a message once, at acceptance, and writes down where every later edit goes. The submitted
// octets are never written again: the plan names ranges to leave out, lines to put first, and ranges
// that may be replaced for a recipient who allows it. Callers may rely on: the plan is plain JSON,
// compose() does not throw whatever the message is, and a part that cannot be edited safely passes
// untouched and is listed with a reason from a closed list. RFC 6409 §8, RFC 5322 §3.6, RFC 8601 §5.
import {
  fieldValue, fieldValues, indexHeader, indexMime,
  type Admitted, type Composed, type HeaderField, type HeaderIndex, type MimeLeaf, type Plan, type PlannedPart, type Range,
} from '../mail/index.ts';
import type { SendingDomain, Stream } from '../settings/index.ts';
import { PLACEHOLDERS } from './links.ts';
import { MAX_LINKS, planPart } from './part.ts';
import { holdsPlaceholder, unfilledIn } from './unfilled.ts';

export interface ComposeContext {
  /** What we call ourselves; no Authentication-Results in our name comes from outside. */
  readonly hostname: string;
  readonly stream: Stream;
  readonly domain: SendingDomain;
  /** Domains the tenant excludes from rewriting. */
  readonly untracked?: readonly string[];
  /** Complete Received lines, each with its CRLF. */
  readonly receivedFields: string;
}

/** The message with its plan; never throws for what a message says. */
export function compose(admitted: Admitted, context: ComposeContext): Composed {
  const plan = planOf(admitted, context);
  // The one place where a message becomes composed.
  return Object.freeze({ ...admitted, plan }) as unknown as Composed;
}

function planOf({ raw, id, receivedAt, origin, recipients }: Admitted, context: ComposeContext): Plan {
  const header = indexHeader(raw);
  const marketing = context.stream.class === 'marketing' && origin.kind === 'relay';
  const removed = header.fields.filter((field) => mustGo(raw, field, context, marketing));
  const subscribed = header.fields.some((field) => field.name === 'list-unsubscribe');
  // A notice is Postern's own letter to a tenant: nobody's reading of it is counted.
  const text = origin.kind === 'relay' ? planText(raw, header, context) : NOTHING;
  return {
    version: 1,
    domain: context.domain.name,
    bodyStart: header.bodyStart,
    removed: joined(removed),
    added: context.receivedFields + missingFields(header, id, receivedAt, context.domain.name),
    parts: text.parts,
    subscribed: subscribed && marketing,
    ...(subscribed && !marketing ? { keepsUnsubscribe: true } : {}),
    ...(fieldValues(raw, header, 'tls-required').some((value) => value.toLowerCase() === 'no') ? { tlsOptional: true } : {}),
    ...(recipients.length > 1 ? { shared: true } : {}),
    ...(text.unknown === undefined ? {} : { unknown: text.unknown }),
    ...(text.unfilled === undefined ? {} : { unfilled: text.unfilled }),
    untouched: text.untouched,
  };
}

const NOTHING: TextPlan = { parts: [], untouched: [] };

/** Fields that do not leave the house. */
function mustGo(raw: Buffer, field: HeaderField, { hostname, domain }: ComposeContext, marketing: boolean): boolean {
  switch (field.name) {
    case 'bcc':
    case 'resent-bcc':
    // RFC 5321 §4.4: only the final delivery writes Return-Path.
    case 'return-path':
      return true;
    case 'dkim-signature':
      return signingDomain(fieldValue(raw, field)) === domain.name.toLowerCase();
    // RFC 8601 §5: a result in our name that we did not write is a forgery.
    case 'authentication-results':
      return authservId(fieldValue(raw, field)) === hostname.toLowerCase();
    case 'list-unsubscribe':
    case 'list-unsubscribe-post':
    case 'feedback-id':
      return marketing;
    default:
      return field.name.startsWith('x-postern-');
  }
}

function signingDomain(value: string): string | undefined {
  return /(?:^|;)\s*d\s*=\s*([^\s;]+)/.exec(value)?.[1]?.toLowerCase();
}

function authservId(value: string): string | undefined {
  return /^(?:\s|\([^()]*\))*"?([^\s;"()]+)/.exec(value)?.[1]?.toLowerCase();
}

/** Ranges in order, neighbours made one. */
function joined(fields: readonly HeaderField[]): readonly Range[] {
  const ranges: { start: number; end: number }[] = [];
  for (const { start, end } of fields) {
    const last = ranges.at(-1);
    if (last?.end === start) last.end = end;
    else ranges.push({ start, end });
  }
  return ranges;
}

// RFC 6409 §8.1, §8.3: a submission server adds what is missing, and nothing more.
function missingFields(header: HeaderIndex, id: string, receivedAt: number, domain: string): string {
  const has = (name: string): boolean => header.fields.some((field) => field.name === name);
  const date = has('date') ? '' : `Date: ${formatDate(receivedAt)}\r\n`;
  return has('message-id') ? date : `${date}Message-ID: <${id.toLowerCase()}@${domain}>\r\n`;
}

/** RFC 5322 §3.3, in UTC: `Mon, 23 Nov 2026 04:10:00 +0000`. */
function formatDate(at: number): string {
  return new Date(at).toUTCString().replace('GMT', '+0000');
}

type TextPlan = Pick<Plan, 'parts' | 'untouched' | 'unknown' | 'unfilled'>;

/** Where the text of a message can be edited, and what in it cannot; for who wants to know it before it is sent, too. */
export function planText(raw: Buffer, header: HeaderIndex, context: Pick<ComposeContext, 'stream' | 'domain' | 'untracked'>): TextPlan {
  const { leaves, verdict } = indexMime(raw, header);
  if (verdict !== 'ok') return { parts: [], untouched: [{ part: 0, why: verdict }], ...unfilledIn(holdsPlaceholder(raw, { start: header.bodyStart, end: raw.length }) ? [{ part: 0, why: verdict }] : []) };
  const { stream, domain, untracked = [] } = context;
  const parts: PlannedPart[] = [];
  const untouched: { part: number; why: string }[] = [];
  const unfilled: { part: number; why: string }[] = [];
  const skipped = (part: number, leaf: MimeLeaf, why: string): void => {
    if (why !== 'encrypted' && holdsPlaceholder(raw, leaf.range, leaf.encoding)) unfilled.push({ part, why });
  };
  const left = { ownHost: new URL(domain.pages).host, domains: untracked, objections: objectionsIn(raw, header) };
  let pixel = true;
  let linksLeft = MAX_LINKS;
  for (const [part, leaf] of leaves.entries()) {
    // An attachment or a picture was never meant to be edited; what was meant to be, and is not, is counted.
    if (leaf.closed === 'attachment' || leaf.closed === 'not-text') continue;
    if (leaf.closed === '' && !READ.has(leaf.type)) {
      skipped(part, leaf, 'type');
      continue;
    }
    // Nothing to read; where a boundary ended the header, a pixel here would stand in the header.
    if (leaf.range.start === leaf.range.end) continue;
    const html = leaf.type === 'text/html';
    const linked = html || (leaf.type === 'text/plain' && stream.textLinks);
    // RFC 3676 §4.4: with DelSp a link may go on over the line's end, so the links of such text are left alone.
    const flows = leaf.type === 'text/plain' && leaf.params.get('delsp')?.toLowerCase() === 'yes';
    const planned = leaf.closed !== '' ? leaf.closed : planPart(raw, leaf, { pixel: pixel && html, links: linked && !flows, linksLeft, left });
    if (linked && flows) untouched.push({ part, why: 'delsp' });
    if (typeof planned === 'string') {
      if (linked || leaf.closed !== '') untouched.push({ part, why: planned });
      skipped(part, leaf, planned);
    } else {
      // One pixel a message: the first HTML text is the one that is shown.
      if (html) pixel = false;
      linksLeft -= planned.edits.length;
      if (planned.edits.length > 0) parts.push(planned);
    }
  }
  const unknown = parts.flatMap(({ edits }) => edits).find(({ kind, target }) => kind === 'placeholder' && !PLACEHOLDERS.some((name) => name === target));
  return { parts, untouched, ...(unknown !== undefined && { unknown: unknown.target }), ...unfilledIn(unfilled) };
}

/** Texts that are read; of AMP only what others would count. */
const READ: ReadonlySet<string> = new Set(['text/html', 'text/plain', 'text/x-amp-html']);

/** The URLs by which the application itself lets people unsubscribe (RFC 2369 §3.2): these links never lead through us. */
function objectionsIn(raw: Buffer, header: HeaderIndex): ReadonlySet<string> {
  const fields = header.fields.filter(({ name }) => name === 'list-unsubscribe').map((field) => fieldValue(raw, field));
  return new Set(fields.flatMap((value) => [...value.matchAll(/<\s*(https?:[^<>]{1,2000}?)\s*>/gi)].map((found) => (found[1] ?? '').replaceAll(/\s+/g, ''))));
}
