// A signed copy as the outbound session is given it: which extensions it needs is found out here, once, before
// any host is asked. Pure. RFC 3461 §4, RFC 6531 §3.4, RFC 8689 §3.
import { isAscii } from 'node:buffer';
import type { Signed } from '../mail/index.ts';
import type { DsnParameters, Letter } from '../smtp/index.ts';

export interface LetterToGo extends Letter {
  /** The recipient's, in A-labels. */
  readonly domain: string;
  /** RFC 8689 §3: `TLS-Required: No` */
  readonly tlsOptional: boolean;
}

/** The signed copy as the session is given it. */
export function letterOf(signed: Signed): LetterToGo {
  const { envelope, plan } = signed.message;
  const { wire, domain, dsn } = signed.recipient;
  const chunks = [signed.head, ...signed.body];
  let size = 0;
  let ascii = true;
  for (const chunk of chunks) {
    size += chunk.length;
    ascii &&= isAscii(chunk);
  }
  const parameters: DsnParameters = {
    notify: passedOn(dsn?.notify ?? []),
    ...(envelope.ret === undefined ? {} : { ret: envelope.ret }),
    ...(envelope.envid === undefined ? {} : { envid: envelope.envid }),
    ...(dsn?.orcpt === undefined ? {} : { orcpt: dsn.orcpt }),
  };
  const recipient = asciiWhereItCan(wire, domain);
  return {
    domain,
    from: signed.returnPath,
    recipient,
    dsn: parameters,
    smtpUtf8: envelope.smtpUtf8 && !isAscii(signed.head),
    body8bit: !ascii,
    requireTls: envelope.requireTls === true,
    tlsOptional: plan?.tlsOptional === true,
    size,
    chunks,
  };
}

/** That it was handed over we say ourselves: reports go to our reverse-path, where nobody waits for good news. */
function passedOn(notify: DsnParameters['notify']): DsnParameters['notify'] {
  if (!notify.includes('SUCCESS')) return notify;
  return notify.length === 1 ? ['FAILURE'] : notify.filter((one) => one !== 'SUCCESS');
}

/** A local part in ASCII needs no SMTPUTF8: its domain has an A-label (RFC 5890 §2.3.2.1). */
function asciiWhereItCan(wire: string, domain: string): string {
  if (isAscii(Buffer.from(wire))) return wire;
  const local = wire.slice(0, wire.lastIndexOf('@'));
  return isAscii(Buffer.from(local)) ? `${local}@${domain}` : wire;
}
