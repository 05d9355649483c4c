// The DNS records that a sending domain and its host must publish, worked out from what the daemon is
// configured with, so that an operator copies them instead of composing them. Nothing is looked up and
// nothing is changed; what is already published may say the same in other words. Names are without, host
// names in values with, the final dot. RFC 6376, 7208, 9989 (DMARC), 8461 (MTA-STS), 8460 (TLS-RPT).
import { createHash } from 'node:crypto';
import { isIPv6 } from 'node:net';
import { isPublicAddress } from '../dns/index.ts';
import type { SendingDomain } from '../settings/index.ts';
import { readKey, recordOf } from './keys.ts';

export interface DnsRecord {
  readonly name: string;
  readonly type: 'A' | 'AAAA' | 'CNAME' | 'MX' | 'PTR' | 'TXT';
  /** As in a zone file: texts quoted and split into strings of at most 255 octets. */
  readonly value: string;
  /** One sentence: what breaks without it. */
  readonly why: string;
}

// RFC 1035 §3.3: a character-string holds at most 255 octets.
const STRING_OCTETS = 255;
// One week: long enough to be worth caching, short enough to correct a mistake (RFC 8461 §3.2 allows a year).
const STS_MAX_AGE_SECONDS = 604_800;

/**
 * Everything to publish for one sending domain. `addresses` are the egress addresses; those that are not
 * public are left out. Reads the public halves of the DKIM keys. @throws MailError E_KEY_UNREADABLE
 */
export function dnsRecords({ domain, hostname, addresses }: {
  readonly domain: SendingDomain;
  readonly hostname: string;
  readonly addresses: readonly string[];
}): DnsRecord[] {
  const egress = [...new Set(addresses)].filter(isPublicAddress);
  const postmaster = `mailto:postmaster@${domain.name}`;
  const mechanisms = egress.length === 0 ? [`a:${hostname}`] : egress.map((ip) => `${isIPv6(ip) ? 'ip6' : 'ip4'}:${ip}`);
  const records: DnsRecord[] = [
    ...hostAddresses(hostname, egress, 'receivers look up the name we greet them with and expect the address we come from'),
    ...egress.map((ip): DnsRecord => ({
      name: reverseName(ip), type: 'PTR', value: `${hostname}.`,
      why: 'large receivers refuse mail from addresses whose reverse name does not lead back to them; whoever gave you the address sets it',
    })),
    text(hostname, 'v=spf1 a -all', 'covers mail with the empty return path, which is judged by the greeting name (RFC 7208 §2.4)'),
    text(domain.returnPath, `v=spf1 ${mechanisms.join(' ')} -all`, 'SPF is judged on the return path: it lists who may send with it'),
    { name: domain.returnPath, type: 'MX', value: `10 ${hostname}.`, why: 'bounces and complaints come back here; without it dead addresses are mailed for ever' },
    ...domain.dkim.map((entry) => text(
      `${entry.selector}._domainkey.${domain.name}`, recordOf(readKey(entry.keyFile)),
      'receivers check our signature with this key; without it DKIM and DMARC fail',
    )),
    text(`_dmarc.${domain.name}`, `v=DMARC1; p=none; rua=${postmaster}`, 'bulk senders must have a DMARC record; raise p to quarantine, then reject, once the reports show only your own mail'),
    text(`_mta-sts.${domain.returnPath}`, `v=STSv1; id=${mtaStsPolicy(hostname).id}`, 'announces the policy below to whoever sends us bounces, so that they insist on TLS'),
    ...alias(`mta-sts.${domain.returnPath}`, hostname, egress, `serves https://mta-sts.${domain.returnPath}/.well-known/mta-sts.txt`),
    text(`_smtp._tls.${domain.returnPath}`, `v=TLSRPTv1; rua=${postmaster}`, 'senders report here when TLS towards our return path fails'),
  ];
  const pages = new URL(domain.pages).hostname;
  if (pages === hostname) return records;
  const why = 'the links in our mail lead here: unsubscribe must work for as long as the mail exists';
  // RFC 1034 §3.6.2: no other data may stand beside a CNAME.
  const taken = pages === domain.name || pages === domain.returnPath;
  return [...records, ...(taken ? hostAddresses(pages, egress, why) : alias(pages, hostname, egress, why))];
}

/** The MTA-STS policy of a return path whose MX is `hostname`, and the id that changes with it (RFC 8461 §3.1, §3.2). */
export function mtaStsPolicy(hostname: string): { readonly text: string; readonly id: string } {
  const policy = `version: STSv1\r\nmode: enforce\r\nmx: ${hostname}\r\nmax_age: ${STS_MAX_AGE_SECONDS}\r\n`;
  return { text: policy, id: createHash('sha256').update(policy).digest('hex').slice(0, 20) };
}

function text(name: string, value: string, why: string): DnsRecord {
  const strings: string[] = [];
  for (let i = 0; i < value.length; i += STRING_OCTETS) strings.push(`"${value.slice(i, i + STRING_OCTETS)}"`);
  return { name, type: 'TXT', value: strings.join(' '), why };
}

function hostAddresses(name: string, egress: readonly string[], why: string): DnsRecord[] {
  if (egress.length === 0) return [{ name, type: 'A', value: '<public address of this machine>', why }];
  return egress.map((ip) => ({ name, type: isIPv6(ip) ? 'AAAA' : 'A', value: ip, why }));
}

function alias(name: string, hostname: string, egress: readonly string[], why: string): DnsRecord[] {
  return name === hostname ? hostAddresses(name, egress, why) : [{ name, type: 'CNAME', value: `${hostname}.`, why }];
}

/** `4.3.2.1.in-addr.arpa`, or the 32 nibbles under `ip6.arpa` (RFC 1035 §3.5, RFC 3596 §2.5). */
function reverseName(ip: string): string {
  if (!isIPv6(ip)) return `${ip.split('.').toReversed().join('.')}.in-addr.arpa`;
  const [left = '', right = ''] = new URL(`http://[${ip}]/`).hostname.slice(1, -1).split('::');
  const groups = (side: string): string[] => (side === '' ? [] : side.split(':'));
  const head = groups(left);
  const tail = groups(right);
  const zeros = Array.from({ length: 8 - head.length - tail.length }, () => '0');
  const nibbles = [...head, ...zeros, ...tail].map((group) => group.padStart(4, '0')).join('');
  return `${[...nibbles].toReversed().join('.')}.ip6.arpa`;
}
