// Reads a message that came back, of whatever make: reports by the standard, and the prose that MTAs wrote
// before it and beside it. What it finds is for people and for `postern classify`; the daemon itself believes
// only reports (returned.ts). Callers may rely on: it never rejects, the work is bounded, and recipients come
// in the order in which the message speaks of them. RFC 3464, RFC 5965, RFC 3834, RFC 5703's kin in prose.
import { simpleParser, type ParsedMail } from 'mailparser';
import { indexHeader, type BounceRules, type Phase, type Said } from '../mail/index.ts';
import { fieldText, isAutomatic, reportedRecipients, type ReportedRecipient } from './report.ts';

export type BounceKind = 'bounce' | 'delay' | 'success' | 'complaint' | 'auto-reply' | 'other';

export interface BouncedRecipient {
  /** As the message names it; '' where it names none. */
  readonly address: string;
  /** RFC 3463, '' where none is readable. */
  readonly status: string;
  /** SMTP code, '' where none is quoted. */
  readonly reply: string;
  readonly class: string;
  readonly reason: string;
  readonly hard: boolean;
}

export interface BouncedMail {
  readonly kind: BounceKind;
  readonly recipients: readonly BouncedRecipient[];
}

// Reports begin with their report: the original mail comes last.
const LOOKED_AT_OCTETS = 262_144;
// Prose about more than this many lines is no longer about the failure.
const MAX_LINES = 400;
const MAX_RECIPIENTS = 100;

const ADDRESS = /[^\s<>"'`(),;:[\]]{1,64}@[^\s<>"'`(),;:[\]]{1,255}[^\s<>"'`(),;:[\].]/;
/** Where the original message begins. */
const ORIGINAL = new RegExp(`^(?:${[
  '-{2,} ?(?:this is a copy|below this line|original message|the header of the original|returned message|unsent message|enclosed|message header|the body of|forwarded|undelivered message|original mail|start of returned|included is|returned mail)', '[- ]*original message follows',
  'message headers? follow', 'original message:', 'included is a copy', ' *below is a copy', 'return-path:', 'received:', '-{3,} ?forwarded', '-{4,}original', '\\*{3,} *original',
].join('|')})`, 'i');

/** The messages of a file: one (also of an empty file), or those of an mbox (RFC 4155), with CRLF. */
export function messagesIn(octets: Buffer): readonly Buffer[] {
  const text = octets.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n');
  const mbox = text.split(/(?:^|\r\n)From \S+ +\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d [^\r]*\r\n/).filter((one) => one.trim() !== '');
  return (mbox.length > 0 ? mbox : ['']).map((one) => Buffer.from(one, 'latin1'));
}

/** What a message that came back says, by these rules. */
export async function readBounce(raw: Buffer, rules: BounceRules): Promise<BouncedMail> {
  let mail: ParsedMail;
  try {
    mail = await simpleParser(raw.subarray(0, Math.max(indexHeader(raw).bodyStart, LOOKED_AT_OCTETS)), { keepDeliveryStatus: true, skipTextToHtml: true, skipImageLinks: true, skipTextLinks: true });
  } catch {
    return { kind: 'other', recipients: [] }; // not MIME that anybody could read
  }
  const part = (type: RegExp): string | undefined => mail.attachments.find(({ contentType }) => type.test(contentType))?.content.toString('utf8');
  const complaint = part(/^message\/feedback-report$/i);
  if (complaint !== undefined) return { kind: 'complaint', recipients: [named(rules, 'complaint', complainedOf(complaint, part(/^message\/rfc822|^text\/rfc822-headers/i) ?? ''))] };
  const header = indexHeader(raw);
  // A report whose parts nobody can tell apart is read as it stands.
  const text = (mail.text === undefined && mail.attachments.length === 0 ? raw.toString('utf8', header.bodyStart, header.bodyStart + LOOKED_AT_OCTETS) : mail.text ?? '').replaceAll('\r\n', '\n');
  const prose = proseOf(text);
  const noticed = noticeOf(text, rules);
  if (noticed !== undefined) return noticed;
  const fields = part(/^message\/(?:global-)?delivery-status$/i) ?? (/^(?:final|original)-recipient:/im.test(text) ? text : undefined);
  const groups = fields === undefined ? [] : reportedRecipients(fields);
  if (groups.length > 0) return reported(rules, groups, prose);
  const failed = fieldText(raw, 'x-failed-recipients').split(',').map((one) => one.trim()).filter((one) => one !== '');
  const looks = looksReturned(mail, prose, failed);
  if (!looks && isAnswer(raw, mail)) return { kind: 'auto-reply', recipients: [named(rules, 'auto-reply', mail.from?.value[0]?.address ?? '')] };
  if (!looks) return { kind: 'other', recipients: [] };
  const sections = sectionsOf(prose, failed);
  // What is said of somebody else does not count.
  const around = `${sections.length > 1 ? '' : prose} ${mail.subject ?? ''}`;
  const recipients = sections.map(({ address, said }) => judged(rules, address, said, around, undefined));
  return { kind: isDelay(mail, prose) ? 'delay' : 'bounce', recipients };
}

/** The failure's own words: what stands before the original message. */
function proseOf(text: string): string {
  const lines = text.split('\n').slice(0, MAX_LINES);
  const end = lines.findIndex((line, i) => i > 0 && ORIGINAL.test(line));
  return lines.slice(0, end === -1 ? lines.length : end).join('\n');
}

function looksReturned(mail: ParsedMail, prose: string, failed: readonly string[]): boolean {
  return failed.length > 0 || /mailer-?daemon|mail delivery|postmaster|post_master|mail\.delivery|delivery subsystem/i.test(mail.from?.text ?? '')
    || /undeliver|returned mail|delivery (?:failure|status|has failed|notification)|failure notice|failure delivery|mail failure|mail system error|not delivered|could not be delivered|non-?delivery|error sending your mail|warning: message|rejected/i.test(mail.subject ?? '')
    || /could not be delivered|unable to deliver|delivery to the following|not be able to deliver|did not reach/i.test(prose);
}

function isAnswer(raw: Buffer, mail: ParsedMail): boolean {
  return isAutomatic(raw) || /^(?:re: *)?(?:auto(?:matic)?[- ]?(?:reply|response|answer)|out of (?:the )?office|away|vacation|abwesenheit|absence|r[eé]ponse automatique|risposta automatica)/i.test(mail.subject ?? '');
}

const isDelay = (mail: ParsedMail, prose: string): boolean => /\bdelay|warning: message/i.test(mail.subject ?? '') || /warning message only|has been delayed|not yet been delivered|has not been delivered yet/i.test(prose);

function named(rules: BounceRules, id: string, address: string): BouncedRecipient {
  const of = rules.named(id);
  return { address, status: '', reply: '', class: of.id, reason: of.reason, hard: of.hard };
}

function complainedOf(report: string, original: string): string {
  return /^(?:original-rcpt-to|removal-recipient):\s*<?([^\s<>]+)/im.exec(report)?.[1] ?? /^to:.*?([^\s<>",;]+@[^\s<>",;]+)/im.exec(original)?.[1] ?? '';
}

// ---- reports ------------------------------------------------------------------------------------

function reported(rules: BounceRules, groups: readonly ReportedRecipient[], prose: string): BouncedMail {
  const told = sectionsOf(prose, []);
  const recipients = groups.slice(0, MAX_RECIPIENTS).map((group) => {
    const mine = told.find(({ address }) => address.toLowerCase() === group.recipient.toLowerCase())?.said ?? (groups.length === 1 ? prose : '');
    if ((group.action === 'unknown' && group.status.startsWith('2')) || group.action === 'delivered' || group.action === 'relayed' || group.action === 'expanded') {
      return { ...named(rules, 'none', group.recipient), status: group.status, reply: group.reply === undefined ? '' : String(group.reply.code) };
    }
    return judged(rules, group.recipient, /\w/.test(group.diagnostic) ? group.diagnostic : mine, mine, group);
  });
  const actions = new Set(groups.map(({ action }) => action));
  const kind = recipients.every((one) => one.class === 'none') ? 'success' : actions.has('failed') || actions.has('unknown') ? 'bounce' : actions.has('delayed') ? 'delay' : 'success';
  return { kind, recipients };
}

/** Amazon's notices are JSON (SNS); the like of a report. */
function noticeOf(text: string, rules: BounceRules): BouncedMail | undefined {
  const json = /^\s*(\{\s*"notificationType".*\})(?=\s*(?:\n-- ?\n|$))/s.exec(text)?.[1];
  if (json === undefined) return undefined;
  let notice: { readonly bounce?: { readonly bouncedRecipients?: readonly { readonly emailAddress?: string; readonly status?: string; readonly diagnosticCode?: string; readonly action?: string }[] }; readonly complaint?: { readonly complainedRecipients?: readonly { readonly emailAddress?: string }[] }; readonly delivery?: { readonly recipients?: readonly string[]; readonly smtpResponse?: string } };
  try {
    // Transports fold its one long line.
    notice = JSON.parse(json.replaceAll('\n', '')) as typeof notice;
  } catch {
    return undefined; // cut off: it is read as prose
  }
  if (notice.bounce !== undefined) return { kind: 'bounce', recipients: (notice.bounce.bouncedRecipients ?? []).map(({ emailAddress = '', status = '', diagnosticCode = '' }) => judged(rules, emailAddress, `${diagnosticCode} ${status}`, '', undefined)) };
  if (notice.complaint !== undefined) return { kind: 'complaint', recipients: (notice.complaint.complainedRecipients ?? []).map(({ emailAddress = '' }) => named(rules, 'complaint', emailAddress)) };
  return { kind: 'success', recipients: (notice.delivery?.recipients ?? []).map((address) => ({ ...named(rules, 'none', address), ...codesOf(notice.delivery?.smtpResponse ?? '') })) };
}

// ---- prose --------------------------------------------------------------------------------------

interface Section {
  readonly address: string;
  readonly said: string;
}

/** Each address that a line begins with, and what is said up to the next. */
function sectionsOf(prose: string, failed: readonly string[]): readonly Section[] {
  const heads: { address: string; rest: string; line: number }[] = [];
  const lines = prose.split('\n');
  for (const [i, line] of lines.entries()) {
    // Quoted commands and replies hold addresses too, and are no heads.
    const found = /^[\s*>"'<.-]*(?:(?:could not be delivered )?(?:to|recipient|address|unable to deliver message to|for) ?: ?)?[<"]*([^\s<>"'`(),;:[\]]{1,64}@[^\s<>"'`(),;:[\]]{1,255})[>"]*(.*)$/i.exec(line);
    const address = (found?.[1] ?? '').replace(/[.]+$/, '');
    if (found === null || !ADDRESS.test(`${address} `) || /^\s*(?:>>>|<<<|from:|cc:|subject:)/i.test(line)) continue;
    if (!heads.some((head) => head.address.toLowerCase() === address.toLowerCase())) heads.push({ address, rest: found[2] ?? '', line: i });
    if (heads.length === MAX_RECIPIENTS) break;
  }
  // A "To:" of the message itself, above the sentence that names who did not get it.
  const start = lines.findIndex((line) => /did not reach|was not delivered to|could not be reached/i.test(line));
  const own = heads.filter(({ line }) => line > start);
  const meant = failed.length === 0 ? own : own.filter(({ address }) => failed.some((one) => one.toLowerCase() === address.toLowerCase()));
  const used = meant.length > 0 || failed.length > 0 ? meant : heads;
  if (used.length === 0) {
    const address = failed[0] ?? ADDRESS.exec(prose)?.[0] ?? '';
    return failed.length > 1 ? failed.map((one) => ({ address: one, said: prose })) : [{ address, said: prose }];
  }
  return used.map(({ address, rest, line }, i) => {
    const said = `${rest}\n${lines.slice(line + 1, used[i + 1]?.line ?? lines.length).join('\n')}`;
    return { address: failed.find((one) => one.toLowerCase().startsWith(address.toLowerCase())) ?? address, said: /\w/.test(said) ? said : prose };
  });
}

// "192.0.2.1 said: 550", "host x: 550-5.1.1", "[554 5.4.6", "ResponseCode 421", "<<< 550"
const CODE = /(?:^|[\s:;<>"([#])([45]\d\d)(?=[\s:,-]|$)[\s:,-]*(?:\1[\s-]+)?#?([45]\.\d{1,3}\.\d{1,3})?(?!\d)/;
const STATUS = /(?:^|[\s(#[:;])([245]\.\d{1,3}\.\d{1,3})(?![\d.])/;

function codesOf(text: string): { readonly reply: string; readonly status: string } {
  const code = CODE.exec(text) ?? /(?:^|\s)(250) (?:#?(2\.\d\.\d))?/.exec(text);
  return { reply: code?.[1] ?? '', status: code?.[2] ?? STATUS.exec(text)?.[1] ?? '' };
}

/** Which command it answered; where nobody says that it was RCPT it may have been the whole message. */
function phaseOf(words: string): Phase {
  const text = words.replaceAll(/\s+/g, ' ');
  // In a transcript it is the last command before the first refusal.
  const command = /[^]*(?:>>>|SMTP command:?)\s*(EHLO|HELO|MAIL|RCPT|DATA)/i.exec(text.slice(0, Math.max(0, text.search(/<<< ?[45]\d\d/))))?.[1]?.toUpperCase();
  if (command === 'MAIL' || /after mail from|sender was rejected|\[mail_from\]|reply to mail from/i.test(text)) return 'mail';
  if (command === 'DATA' || /end of data|after i sent the message|final data|reply to (?:the )?(?:end of )?data|text command|smtp command\s+data/i.test(text)) return 'final';
  if (command === 'EHLO' || command === 'HELO' || /initial connection|while connecting|greeting|reply to (?:ehlo|helo)|refused to talk to me/i.test(text)) return 'greet';
  return command === 'RCPT' || /\brcpt\b|does not like recipient|recipient address rejected|rejected recipient|rejected address/i.test(text) ? 'rcpt' : 'final';
}

/** The meaning of one recipient's words; where they mean nothing, of what stands around them. */
function judged(rules: BounceRules, address: string, said: string, around: string, group: ReportedRecipient | undefined): BouncedRecipient {
  const own = codesOf(said);
  const far = own.reply === '' && own.status === '' ? codesOf(around) : own;
  const status = telling(own.status) ? own.status : telling(group?.status ?? '') ? (group?.status ?? '') : own.status || (group?.status ?? '') || far.status;
  const reply = own.reply || (group?.reply === undefined ? far.reply : String(group.reply.code));
  const phase = phaseOf(`${said} ${around}`);
  const asked = (text: string): Said => ({ phase, code: Number(reply), status, text: withoutAddresses(text) });
  // Words first, near before far: the reply itself, what stands beside it, all that stands there; then the codes.
  const near = [quoteIn(said), said, quoteIn(around), around].map(asked);
  const found = near.map((one) => rules.classOf(one, 'words')).find((one) => one !== undefined) ?? rules.classOf(asked(said));
  // What passes (4.x.x) condemns nobody, but for a mailbox that was unknown until its mail was given up.
  const passing = status.startsWith('4') || (status === '' && reply.startsWith('4'));
  const known = passing && found.id === 'bad-domain' ? rules.named('dns') : found;
  return { address, status, reply, class: known.id, reason: known.reason, hard: known.hard && !(passing && (known.id !== 'bad-mailbox' || group?.action === 'delayed')) };
}

/** The reply as it is quoted, from its code on. */
function quoteIn(text: string): string {
  const at = CODE.exec(text)?.index;
  return at === undefined ? '' : text.slice(at);
}

const telling = (status: string): boolean => status !== '' && !/^\d\.0\.0$/.test(status);

/** Addresses, links and host names are no words: a mailbox may be called spam@. */
const withoutAddresses = (text: string): string => text.replaceAll(/https?:\/\/([^\s/]*)\S*/g, ' $1 ').replaceAll(new RegExp(ADDRESS.source, 'g'), ' ').replaceAll(/\s+/g, ' ');
