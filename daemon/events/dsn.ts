// Writes the notice a tenant gets of a recipient: could not be delivered, still waits, was handed over. RFC
// 3464 (delivery status), RFC 6522 (multipart/report), RFC 6533 (addresses beyond ASCII), RFC 3834 (automatic
// mail). It goes to the tenant's return address only, with the null reverse-path; a notice never leads to
// another notice. nodemailer builds the MIME; the status fields are ours.
import { isAscii } from 'node:buffer';
import MimeNode from 'nodemailer/lib/mime-node';
import type { Instant } from '../mail/index.ts';

/** What became of a recipient, in the words of RFC 3464 §2.3.3. */
export type DsnAction = 'failed' | 'delayed' | 'relayed';

/** What a notice says. Statuses and replies are as the remote host gave them. */
export interface DsnFacts {
  readonly reportingMta: string;
  /** The author of the notice, `mailer-daemon@acme.example`. */
  readonly from: string;
  readonly to: string;
  readonly messageId: string;
  readonly at: Instant;
  readonly arrivedAt: Instant;
  readonly envid?: string;
  readonly orcpt?: string;
  readonly recipient: string;
  readonly action: DsnAction;
  /** `5.1.1` */
  readonly status: string;
  readonly remoteMta: string;
  /** `550 5.1.1 user unknown`, '' when no host answered. */
  readonly diagnostic: string;
  readonly reason: string;
  /** Until when it is tried; only where it still is. */
  readonly until?: Instant;
  /** The original header, or the whole message where RET=FULL was asked. */
  readonly original: Buffer;
  /** How much of it is the header. */
  readonly headerOctets: number;
  readonly full: boolean;
}

interface Words {
  readonly subject: string;
  readonly happened: string;
  readonly follows: string;
}

const WORDS: Readonly<Record<DsnAction, Words>> = {
  failed: { subject: 'Mail could not be delivered', happened: 'could not be delivered', follows: 'It will not be tried again.' },
  delayed: { subject: 'Mail is delayed', happened: 'is still waiting', follows: 'It will be tried again; nothing needs to be done.' },
  relayed: { subject: 'Mail was handed over', happened: 'was taken by the receiving host', follows: 'Whether it reaches the mailbox is known there; no further notice will come from here unless it comes back.' },
};

const isAsciiText = (text: string): boolean => isAscii(Buffer.from(text));
const stamp = (at: Instant): string => new Date(at).toUTCString().replace('GMT', '+0000');
const line = (text: string): string => text.replaceAll(/[\r\n]+/g, ' ').slice(0, 900);

/** The notice as canonical bytes, ready to be spooled. */
export async function composeDsn(facts: DsnFacts): Promise<Buffer> {
  const words = WORDS[facts.action];
  // RFC 6533 §4: the parts are of another type where an address is not ASCII.
  const utf8 = !isAsciiText(`${facts.recipient}${facts.orcpt ?? ''}`) || !isAscii(facts.original.subarray(0, facts.headerOctets));
  const root = new MimeNode('multipart/report; report-type=delivery-status');
  root.setHeader({
    From: `Mail Delivery System <${facts.from}>`,
    To: facts.to,
    Subject: words.subject,
    Date: stamp(facts.at),
    'Message-ID': `<${facts.messageId}@${facts.from.slice(facts.from.lastIndexOf('@') + 1)}>`,
    // RFC 3834 §5
    'Auto-Submitted': 'auto-replied',
  });
  root.createChild('text/plain; charset=utf-8').setContent([
    `Your message to ${facts.recipient} ${words.happened}.`,
    '',
    ...(facts.reason === '' ? [] : [`Reason: ${facts.reason}`]),
    ...(facts.diagnostic === '' ? [] : [`The receiving host said: ${line(facts.diagnostic)}`]),
    '',
    words.follows,
    '',
  ].join('\r\n'));
  // RFC 3464 §2.2 and §2.3
  addPart(root, utf8 ? 'message/global-delivery-status' : 'message/delivery-status', Buffer.from([
    ...(facts.envid === undefined ? [] : [`Original-Envelope-Id: ${line(facts.envid)}`]),
    `Reporting-MTA: dns; ${facts.reportingMta}`,
    `Arrival-Date: ${stamp(facts.arrivedAt)}`,
    '',
    ...(facts.orcpt === undefined ? [] : [`Original-Recipient: ${line(facts.orcpt)}`]),
    `Final-Recipient: ${isAsciiText(facts.recipient) ? 'rfc822' : 'utf-8'}; ${facts.recipient}`,
    `Action: ${facts.action}`,
    `Status: ${facts.status}`,
    ...(facts.remoteMta === '' ? [] : [`Remote-MTA: dns; ${facts.remoteMta}`]),
    ...(facts.diagnostic === '' ? [] : [`Diagnostic-Code: smtp; ${line(facts.diagnostic)}`]),
    `Last-Attempt-Date: ${stamp(facts.at)}`,
    ...(facts.until === undefined ? [] : [`Will-Retry-Until: ${stamp(facts.until)}`]),
    '',
  ].join('\r\n')));
  const original = utf8 ? (facts.full ? 'message/global' : 'message/global-headers') : facts.full ? 'message/rfc822' : 'text/rfc822-headers';
  addPart(root, original, facts.original);
  const built = await root.build();
  return Buffer.from(built.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
}

/** Octets as they are, and said so: nobody should have to read a status behind an encoding. */
function addPart(root: MimeNode, type: string, octets: Buffer): void {
  const part = root.createChild(type);
  // RFC 2045 §6.2
  part.setHeader('Content-Transfer-Encoding', isAscii(octets) ? '7bit' : '8bit');
  part.setContent(octets);
}
