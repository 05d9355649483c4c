// Writes the notice a tenant gets when a message of theirs could not be delivered. RFC 3464 (delivery
// status), RFC 6522 (multipart/report), RFC 3834 (automatic mail). It goes to the tenant's return
// address only, with the null reverse-path; a notice never leads to another notice. nodemailer builds
// the MIME; the status fields are ours.
import MimeNode from 'nodemailer/lib/mime-node';
import type { Instant } from '../mail/index.ts';

/** What a failure notice says. Statuses and replies are as the remote host gave them. */
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
  readonly action: 'failed' | 'delayed';
  /** `5.1.1` */
  readonly status: string;
  readonly remoteMta: string;
  /** `550 5.1.1 user unknown`, '' when no host answered. */
  readonly diagnostic: string;
  readonly reason: string;
  /** The original header, or the whole message where RET=FULL was asked. */
  readonly original: Buffer;
  readonly full: boolean;
}

const line = (text: string): string => text.replaceAll(/[\r\n]+/g, ' ').slice(0, 900);

/** The notice as canonical bytes, ready to be spooled. */
export async function composeDsn(facts: DsnFacts): Promise<Buffer> {
  const root = new MimeNode('multipart/report; report-type=delivery-status');
  root.setHeader({
    From: `Mail Delivery System <${facts.from}>`,
    To: facts.to,
    Subject: facts.action === 'failed' ? 'Mail could not be delivered' : 'Mail is delayed',
    Date: new Date(facts.at).toUTCString().replace('GMT', '+0000'),
    'Message-ID': `<${facts.messageId}@${facts.from.slice(facts.from.lastIndexOf('@') + 1)}>`,
    // RFC 3834 §5
    'Auto-Submitted': 'auto-replied',
  });
  root.createChild('text/plain; charset=utf-8').setContent([
    facts.action === 'failed' ? `Your message to ${facts.recipient} could not be delivered.` : `Your message to ${facts.recipient} is still waiting.`,
    '',
    `Reason: ${facts.reason}`,
    ...(facts.diagnostic === '' ? [] : [`The receiving host said: ${line(facts.diagnostic)}`]),
    '',
    facts.action === 'failed' ? 'It will not be tried again.' : 'It will be tried again; nothing needs to be done.',
    '',
  ].join('\r\n'));
  // RFC 3464 §2.2 and §2.3
  root.createChild('message/delivery-status').setContent([
    ...(facts.envid === undefined ? [] : [`Original-Envelope-Id: ${line(facts.envid)}`]),
    `Reporting-MTA: dns; ${facts.reportingMta}`,
    `Arrival-Date: ${new Date(facts.arrivedAt).toUTCString().replace('GMT', '+0000')}`,
    '',
    ...(facts.orcpt === undefined ? [] : [`Original-Recipient: ${line(facts.orcpt)}`]),
    `Final-Recipient: rfc822; ${facts.recipient}`,
    `Action: ${facts.action}`,
    `Status: ${facts.status}`,
    ...(facts.remoteMta === '' ? [] : [`Remote-MTA: dns; ${facts.remoteMta}`]),
    ...(facts.diagnostic === '' ? [] : [`Diagnostic-Code: smtp; ${line(facts.diagnostic)}`]),
    `Last-Attempt-Date: ${new Date(facts.at).toUTCString().replace('GMT', '+0000')}`,
    '',
  ].join('\r\n'));
  root.createChild(facts.full ? 'message/rfc822' : 'text/rfc822-headers').setContent(facts.original);
  const built = await root.build();
  return Buffer.from(built.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
}
