// Reads what came back: a delivery report (RFC 3464), a complaint (RFC 5965), an automatic answer (RFC
// 3834), or anything else. Callers may rely on: whatever the octets are, the answer is a value and the work
// is bounded, for only the first part of a long message is looked at. Nothing is believed here: who a
// report is about is said by the address it came to, never by what stands in it.
import { simpleParser } from 'mailparser';
import { fieldValues, indexHeader, parseReply, type Reply } from '../mail/index.ts';

/** What one group of fields of a delivery report says. */
export interface ReportedRecipient {
  readonly action: 'failed' | 'delayed' | 'delivered' | 'relayed' | 'expanded' | 'unknown';
  /** RFC 3463, '' where none is readable. */
  readonly status: string;
  /** The address as the report names it, without its type; for tests and cases, not for decisions. */
  readonly recipient: string;
  /** What the remote host said, as a reply; undefined where no SMTP reply is quoted. */
  readonly reply: Reply | undefined;
  /** The Diagnostic-Code field's text. */
  readonly diagnostic: string;
}

export type Report =
  | { readonly kind: 'delivery'; readonly recipients: readonly ReportedRecipient[]; readonly returned: string }
  | { readonly kind: 'complaint'; readonly type: string; readonly returned: string }
  | { readonly kind: 'automatic' }
  | { readonly kind: 'other'; readonly returned: string };

// Reports begin with their report: the original mail comes last, and of it only the header is looked at.
const LOOKED_AT_OCTETS = 262_144;
// A report about one recipient has one group; a mailing list that failed everywhere has more than we need.
const MAX_GROUPS = 100;

/** Says what a message is; never rejects. */
export async function readReport(raw: Buffer): Promise<Report> {
  const header = indexHeader(raw);
  const type = fieldText(raw, 'content-type').toLowerCase();
  if (!type.startsWith('multipart/report') && isAutomatic(raw)) return { kind: 'automatic' };
  let parts: Parts;
  try {
    parts = await partsOf(raw.subarray(0, Math.max(header.bodyStart, LOOKED_AT_OCTETS)));
  } catch {
    return { kind: 'other', returned: '' }; // not MIME that anybody could read: it says nothing
  }
  if (parts.complaint !== undefined) {
    const fields = fieldGroups(parts.complaint)[0];
    return { kind: 'complaint', type: (fields?.get('feedback-type') ?? '').toLowerCase(), returned: parts.returned };
  }
  if (parts.delivery !== undefined) return { kind: 'delivery', recipients: reportedRecipients(parts.delivery), returned: parts.returned };
  return isAutomatic(raw) ? { kind: 'automatic' } : { kind: 'other', returned: parts.returned };
}

/** RFC 3834 §5, and the fields of programs that are older than it. */
export function isAutomatic(raw: Buffer): boolean {
  const submitted = fieldText(raw, 'auto-submitted').replace(/[;(].*$/s, '').trim().toLowerCase();
  if (submitted !== '') return submitted !== 'no';
  return fieldText(raw, 'x-autoreply') !== '' || fieldText(raw, 'x-autorespond') !== '' || /^(?:auto_reply|bulk)$/i.test(fieldText(raw, 'precedence'));
}

/** The first field of this name, unfolded; '' where there is none. */
export function fieldText(raw: Buffer, name: string): string {
  return fieldValues(raw, indexHeader(raw), name)[0] ?? '';
}

interface Parts {
  readonly delivery: string | undefined;
  readonly complaint: string | undefined;
  /** Text in which the returned mail's header may stand. */
  readonly returned: string;
}

async function partsOf(raw: Buffer): Promise<Parts> {
  // Without keepDeliveryStatus the library melts the report into the text.
  const mail = await simpleParser(raw, { keepDeliveryStatus: true, skipHtmlToText: true, skipTextToHtml: true, skipImageLinks: true, skipTextLinks: true });
  const text = (type: RegExp): string | undefined => mail.attachments.find(({ contentType }) => type.test(contentType))?.content.toString('latin1');
  const returned = mail.attachments.filter(({ contentType }) => /^(?:message\/(?:rfc822|global)|text\/rfc822-headers)/i.test(contentType)).map(({ content }) => content.toString('latin1'));
  return {
    // RFC 6533 §4: the internationalized form has the same fields
    delivery: text(/^message\/(?:global-)?delivery-status$/i),
    complaint: text(/^message\/feedback-report$/i),
    // text/rfc822-headers is text to the library
    returned: [...returned, mail.text ?? ''].join('\n'),
  };
}

/** Fields by lower-case name, one map for each group between empty lines; the first field of a name counts. */
function fieldGroups(text: string): readonly ReadonlyMap<string, string>[] {
  const groups = text.replaceAll('\r\n', '\n').replaceAll(/\n[ \t]+(?=\S)/g, ' ').split(/\n[ \t]*\n+/).slice(0, MAX_GROUPS + 1);
  return groups.map((group) => {
    const fields = new Map<string, string>();
    for (const line of group.split('\n')) {
      const colon = line.indexOf(':');
      const name = line.slice(0, Math.max(colon, 0)).trim().toLowerCase();
      if (name !== '' && !fields.has(name)) fields.set(name, line.slice(colon + 1).trim());
    }
    return fields;
  });
}

const ACTIONS: readonly ReportedRecipient['action'][] = ['failed', 'delayed', 'delivered', 'relayed', 'expanded'];

/** The groups of a delivery report that are about a recipient. */
export function reportedRecipients(text: string): readonly ReportedRecipient[] {
  return fieldGroups(text).filter((fields) => fields.has('final-recipient') || fields.has('original-recipient') || fields.has('action')).map((fields) => {
    const action = (fields.get('action') ?? '').replace(/[\s;(].*$/s, '').toLowerCase();
    return {
      action: ACTIONS.find((known) => known === action) ?? 'unknown',
      // RFC 3464 §2.3.4: a comment may follow
      status: /(?:^|\s)([245]\.\d{1,3}\.\d{1,3})(?!\d)/.exec(fields.get('status') ?? '')?.[1] ?? '',
      recipient: (fields.get('final-recipient') ?? fields.get('original-recipient') ?? '').replace(/^[^;]*;\s*/, '').replaceAll(/^<|>$/g, ''),
      reply: quotedReply(fields.get('diagnostic-code') ?? ''),
      diagnostic: (fields.get('diagnostic-code') ?? '').replace(/^[\w-]+\s*;\s*/, ''),
    };
  });
}

/** RFC 3464 §2.3.6: `smtp; 550 5.1.1 no such user`. Lines of a long reply were folded, `550-` and all. */
function quotedReply(text: string): Reply | undefined {
  const said = /^(?:smtp|x-[\w-]+)\s*;\s*(.*)$/is.exec(text)?.[1] ?? text;
  const found = /(?:^|[\s:<"])([2-5]\d\d)[ -](?:#)?((?:[245]\.\d{1,3}\.\d{1,3})?.*)$/s.exec(said);
  const printable = (found?.[2] ?? '').replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 500);
  return found === null ? undefined : parseReply([`${found[1] ?? ''} ${printable}`]);
}
