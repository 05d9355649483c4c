// DANE for SMTP: which TLSA records count, and whether a host's certificates are the ones they promise.
// Callers may rely on: only records that a validating resolver vouched for come here; where there are
// records at all the connection is encrypted or not made, and where one of them can be used it is
// authenticated by them alone. Pure. RFC 7672, RFC 6698, RFC 7671.
import { X509Certificate, createHash } from 'node:crypto';
import type { TlsaRecord } from '../dns/index.ts';

export const DANE_TA = 2;
const DANE_EE = 3;

/** RFC 7672 §3.1: usages 0 and 1 are not for SMTP; an unknown selector or digest cannot be checked. */
export function usableTlsa(records: readonly TlsaRecord[]): readonly TlsaRecord[] {
  return records.filter(({ usage, selector, matchingType, certificate }) => (usage === DANE_TA || usage === DANE_EE) && (selector === 0 || selector === 1)
    && ((matchingType === 0 && (selector === 1 || isCertificate(certificate))) || (matchingType === 1 && certificate.length === 32) || (matchingType === 2 && certificate.length === 64)));
}

function isCertificate(octets: Buffer): boolean {
  try {
    return new X509Certificate(octets).raw.length > 0;
  } catch {
    // A stranger wrote this record: what cannot be read is not usable (RFC 7672 §2.2), and no fault of ours.
    return false;
  }
}

/** '' when the chain (DER, the host's own first) is what a record promises; else why not. `names`: what the host may call itself. */
export function tlsaFault(records: readonly TlsaRecord[], chain: readonly Buffer[], names: readonly string[], now: number): string {
  const certificates = chain.map((octets) => new X509Certificate(octets));
  const [own] = certificates;
  if (own === undefined) return 'the host shows no certificate';
  for (const record of records) {
    // RFC 7672 §3.1.1: the key is named, so neither the name in the certificate nor its dates count.
    if (record.usage === DANE_EE ? isNamed(record, own) : isAnchored(record, certificates, names, now)) return '';
  }
  return 'no TLSA record names the certificate or its issuer';
}

/** RFC 7672 §3.1.2: an issuer is named; the host's certificate must lead to it, hold its name and be in date. */
function isAnchored(record: TlsaRecord, chain: readonly X509Certificate[], names: readonly string[], now: number): boolean {
  // A record may bring the whole issuer, which the host then need not send.
  const issuers = record.matchingType === 0 && record.selector === 0 ? [...chain, new X509Certificate(record.certificate)] : chain;
  const at = issuers.findIndex((certificate, i) => i > 0 && isNamed(record, certificate));
  if (at === -1 || !names.some((name) => chain[0]?.checkHost(name) !== undefined)) return false;
  const used = at < chain.length ? chain.slice(0, at + 1) : issuers;
  return used.every((certificate, i) => {
    const issuer = used[i + 1];
    return certificate.validFromDate.getTime() <= now && now <= certificate.validToDate.getTime()
      && (issuer === undefined || (issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)));
  });
}

function isNamed({ selector, matchingType, certificate: named }: TlsaRecord, certificate: X509Certificate): boolean {
  const octets = selector === 0 ? certificate.raw : certificate.publicKey.export({ type: 'spki', format: 'der' });
  const found = matchingType === 0 ? octets : createHash(matchingType === 1 ? 'sha256' : 'sha512').update(octets).digest();
  return found.equals(named);
}
