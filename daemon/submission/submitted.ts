// Makes Submitted: the only place where a message enters the house, from an authenticated session or as
// a notice of Postern's own. Also writes the Received field, which names neither client nor tenant nor
// recipient (test T8). RFC 5321 §4.4, RFC 3848.
import type { Envelope, Instant, MessageId, Submitted } from '../mail/index.ts';
import type { Credential } from '../settings/index.ts';

/** A message from a session whose DATA has ended. */
export function makeSubmitted(parts: {
  readonly id: MessageId;
  readonly credential: Credential;
  readonly envelope: Envelope;
  readonly raw: Buffer;
  readonly at: Instant;
  readonly protocol: string;
}): Submitted {
  const { credential } = parts;
  return Object.freeze({
    id: parts.id, origin: { tenant: credential.tenant, stream: credential.stream, credential: credential.username, kind: 'relay' },
    envelope: parts.envelope, raw: parts.raw, receivedAt: parts.at, protocol: parts.protocol,
  }) as unknown as Submitted;
}

/** A letter of Postern's own. */
interface Letter {
  readonly id: MessageId;
  readonly tenant: string;
  readonly stream: string;
  readonly to: string;
  readonly raw: Buffer;
  readonly at: Instant;
  /** As the message it tells of (RFC 8689 §5). */
  readonly requireTls?: boolean;
}

/** To a tenant, with the null reverse-path. */
export function makeNotice(letter: Letter): Submitted {
  return makeLetter(letter, 'notice');
}

/** To a person whose consent waits to be confirmed. */
export function makeInvitation(letter: Letter): Submitted {
  return makeLetter(letter, 'invitation');
}

function makeLetter(parts: Letter, kind: 'notice' | 'invitation'): Submitted {
  return Object.freeze({
    id: parts.id, origin: { tenant: parts.tenant, stream: parts.stream, credential: '', kind },
    envelope: { mailFrom: '', recipients: [{ wire: parts.to }], smtpUtf8: /[^\0-\x7f]/.test(parts.to), body: '7BIT', ...(parts.requireTls === true && { requireTls: true }) },
    raw: parts.raw, receivedAt: parts.at, protocol: 'local',
  }) as unknown as Submitted;
}

/** The trace line; `with` is left out for mail that came over no wire. */
export function receivedField(submitted: Submitted, hostname: string): string {
  const via = submitted.origin.kind === 'relay' ? ` with ${submitted.protocol}` : '';
  const date = new Date(submitted.receivedAt).toUTCString().replace('GMT', '+0000');
  return `Received: by ${hostname}${via} id ${submitted.id};\r\n\t${date}\r\n`;
}
