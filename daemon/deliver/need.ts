// What a host must prove, and a connection to it must be, before it is told anything of a message: what the host
// promises of itself (DANE, MTA-STS), what the message asks for (REQUIRETLS, TLS-Required) and what the operator
// says, in that order of weight. Callers may rely on: REQUIRETLS is below nothing. Pure. RFC 7672, RFC 8461, RFC 8689.
import type { TlsaRecord } from '../dns/index.ts';
import type { LaneLimits } from '../settings/index.ts';
import { DANE_TA } from './dane.ts';
import type { LetterToGo } from './letter.ts';
import type { TargetHost } from './route.ts';

/** What must be known of a host before it is told anything of a message. */
export interface Need {
  /** By what its certificate is judged; '': by nothing. RFC 8461 §2: MTA-STS does not take the place of DANE where both speak. */
  readonly by: 'DANE' | 'MTA-STS' | 'PKIX' | '';
  readonly tlsa: readonly TlsaRecord[];
  /** Asked for in the handshake. RFC 7672 §8.1: where the TLSA records stand. */
  readonly servername: string;
  /** What a certificate may bear that an issuer named by DANE vouches for: that name, the MX host, the domain itself. RFC 7672 §3.2.2. */
  readonly names: readonly string[];
  /** The host promised TLS; RFC 7672 §2.2, RFC 8461 §5. */
  readonly promised: boolean;
  /** REQUIRETLS: above everything, the operator's own word too. */
  readonly required: boolean;
}

/** undefined: the message needs a proof that this host has no way to give. RFC 8689 §3, §4.2.1. */
export function needOf({ name, tlsa, tlsaBase = name, sts, vouched }: TargetHost, { domain, requireTls, tlsOptional }: LetterToGo): Need | undefined {
  const required = requireTls === true;
  if (tlsOptional && !required) return { by: '', tlsa: [], servername: name, names: [], promised: false, required };
  const usable = tlsa ?? [];
  const by = usable.length > 0 ? 'DANE' : sts === true ? 'MTA-STS' : required && vouched === true ? 'PKIX' : '';
  const names = usable.some(({ usage }) => usage === DANE_TA) ? [...new Set([tlsaBase, name, domain])] : [];
  return required && by === '' ? undefined : { by, tlsa: usable, servername: by === 'DANE' ? tlsaBase : name, names, promised: tlsa !== undefined || sts === true, required };
}

/** Only an operator who switched TLS off has a say above what hosts promise. */
export function wantedTls(own: LaneLimits['tls'], { promised, required }: Need): LaneLimits['tls'] {
  return required || (promised && own !== 'off') ? 'required' : own;
}
