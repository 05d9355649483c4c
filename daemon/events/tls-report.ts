// A day of TLS with one domain's hosts, as its owner asked to be told (RFC 8460): the JSON report, and the mail it
// goes in. Callers may rely on: it names domain, hosts, policies and numbers of sessions, and neither tenants nor
// recipients. Pure.
import { gzipSync } from 'node:zlib';
import MimeNode from 'nodemailer/lib/mime-node';
import type { Instant } from '../mail/index.ts';

export interface TlsReportFacts {
  readonly organization: string;
  readonly contact: string;
  /** Unique among ours. */
  readonly id: string;
  /** UTC, `2026-11-23`. */
  readonly day: string;
  readonly domain: string;
  readonly policies: readonly {
    readonly policy: { readonly type: string; readonly string: readonly string[]; readonly mx: readonly string[] };
    readonly successes: number;
    readonly failures: readonly { readonly result: string; readonly host: string; readonly address: string; readonly reason: string; readonly count: number }[];
  }[];
}

/** The report, gzipped. RFC 8460 §4.4. */
export function tlsReport({ organization, contact, id, day, domain, policies }: TlsReportFacts): Buffer {
  return gzipSync(JSON.stringify({
    'organization-name': organization,
    'date-range': { 'start-datetime': `${day}T00:00:00Z`, 'end-datetime': `${day}T23:59:59Z` },
    'contact-info': contact,
    'report-id': id,
    policies: policies.map(({ policy, successes, failures }) => ({
      policy: { 'policy-type': policy.type, ...(policy.string.length > 0 && { 'policy-string': policy.string }), 'policy-domain': domain, ...(policy.mx.length > 0 && { 'mx-host': policy.mx }) },
      summary: { 'total-successful-session-count': successes, 'total-failure-session-count': failures.reduce((sum, { count }) => sum + count, 0) },
      ...(failures.length > 0 && {
        'failure-details': failures.map(({ result, host, address, reason, count }) => ({
          'result-type': result, ...(host !== '' && { 'receiving-mx-hostname': host, 'receiving-ip': address }), 'failed-session-count': count, ...(reason !== '' && { 'failure-reason-code': reason }),
        })),
      }),
    })),
  }));
}

/** The mail for a `mailto:` address. RFC 8460 §5.3; RFC 8689 §3: a report of broken TLS must not wait for it. */
export async function tlsReportMail(report: Buffer, { id, day, domain }: TlsReportFacts, mail: { readonly from: string; readonly to: string; readonly submitter: string; readonly at: Instant }): Promise<Buffer> {
  const root = new MimeNode('multipart/report; report-type="tlsrpt"');
  const [begin, end] = [`${day}T00:00:00Z`, `${day}T23:59:59Z`].map((time) => Math.floor(Date.parse(time) / 1_000));
  root.setHeader({
    From: mail.from,
    To: mail.to,
    Subject: `Report Domain: ${domain} Submitter: ${mail.submitter} Report-ID: <${id}@${mail.submitter}>`,
    Date: new Date(mail.at).toUTCString().replace('GMT', '+0000'),
    'Message-ID': `<${id}@${mail.from.slice(mail.from.lastIndexOf('@') + 1)}>`,
    'TLS-Report-Domain': domain,
    'TLS-Report-Submitter': mail.submitter,
    'TLS-Required': 'No',
    // RFC 3834 §5
    'Auto-Submitted': 'auto-generated',
  });
  root.createChild('text/plain; charset=utf-8').setContent(`How TLS went with the hosts of ${domain} on ${day} (UTC), as its _smtp._tls record asks (RFC 8460).\r\n`);
  const part = root.createChild('application/tlsrpt+gzip', { filename: `${mail.submitter}!${domain}!${begin}!${end}!${id}.json.gz` });
  part.setHeader({ 'Content-Transfer-Encoding': 'base64', 'Content-Disposition': 'attachment' });
  part.setContent(report);
  const built = await root.build();
  return Buffer.from(built.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
}
