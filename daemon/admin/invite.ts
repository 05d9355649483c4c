// Double opt-in, the letter: asks a person whose consent is pending to confirm it on a page. Callers may rely
// on: it goes through the gate and the queue like all mail, is signed, tracked by nobody and carries no
// advertising; nobody who is suppressed, unknown or confirmed is written to, neither now nor when it is
// tried again. RFC 3834 §5.
import MimeNode from 'nodemailer/lib/mime-node';
import { compose, openSealer } from '../compose/index.ts';
import { admit, judgeInvitation } from '../gate/index.ts';
import { isMailError, MailError } from '../mail/index.ts';
import { newId } from '../runtime/index.ts';
import type { SendingDomain, Stream, Tenant } from '../settings/index.ts';
import { makeInvitation, receivedField } from '../submission/index.ts';
import { isLanguage, LANGUAGES, nameOfPurpose, say, type Language } from '../web/index.ts';
import type { Operations, Params } from './control.ts';
import { record, type Desk } from './desk.ts';
import { person, purposeOf, required, text, wrong } from './params.ts';

// A person who did not ask learns nothing new from a third day of trying.
const RETRY_MS = 2 * 86_400_000;

export function invitationOperations(desk: Desk): Operations {
  return { 'consent.invite': (params) => invite(desk, params) };
}

async function invite(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, address, hashes } = person(desk, params);
  const purpose = purposeOf(tenant, params);
  const stream = [...tenant.streams.values()].find((one) => one.purpose === purpose);
  const [domain] = tenant.domains;
  if (stream === undefined || domain === undefined) throw wrong(`no stream of ${tenant.id} serves purpose ${purpose}`);
  const language = text(params, 'lang') || 'en';
  if (!isLanguage(language)) throw wrong(`lang: expected one of ${Object.keys(LANGUAGES).join(', ')}; got ${JSON.stringify(language)}`);
  const now = desk.clock.now();
  const facts = await desk.ledger.facts(tenant.id, purpose, stream.id, hashes);
  const verdict = judgeInvitation({ tenant, stream, now, facts });
  if (verdict.answer !== 'yes') throw wrong(`no letter is sent: ${verdict.reason} (rule ${verdict.rule})`);
  const id = newId(now);
  const to = required(params, 'rcpt');
  const link = `${domain.pages}/confirm/${openSealer(desk.keyring.tenant(tenant.id), { message: id, recipient: 0, stream: stream.id, purpose, hashes }).confirm()}?lang=${language}`;
  const raw = await letter({ tenant, domain, stream, language, to, link, at: now, id });
  const submitted = makeInvitation({ id, tenant: tenant.id, stream: stream.id, to, raw, at: now });
  const { hostname } = desk.settings().server;
  const composed = compose(admit(submitted, [{ wire: to, domain: address.domain, hashes, evidence: verdict.evidence }]), { hostname, stream, domain, receivedFields: receivedField(submitted, hostname) });
  try {
    await desk.spool.store(composed, { expiresAt: now + RETRY_MS, priority: stream.priority });
  } catch (error) {
    if (!isMailError(error, 'E_SPOOL_FULL')) throw error;
    throw new MailError('E_CONTROL', 'the spool is full; nothing was sent', { cause: error });
  }
  record(desk, 'consent', tenant, hashes, 'invited', verdict.evidence);
  return { message_id: id, purpose, evidence: verdict.evidence };
}

interface LetterParts {
  readonly tenant: Tenant;
  readonly domain: SendingDomain;
  readonly stream: Stream;
  readonly language: Language;
  readonly to: string;
  readonly link: string;
  readonly at: number;
  readonly id: string;
}

async function letter({ tenant: { contact }, domain, stream, language, to, link, at, id }: LetterParts): Promise<Buffer> {
  const words = { sender: contact.name, purpose: nameOfPurpose(stream.purpose) };
  // DMARC: the author's domain is the one that signs.
  const from = contact.email.endsWith(`@${domain.name}`) ? contact.email : `postmaster@${domain.name}`;
  const root = new MimeNode('text/plain; charset=utf-8');
  root.setHeader({
    From: `"${contact.name.replaceAll(/["\\]/g, '')}" <${from}>`,
    'Reply-To': contact.email,
    To: to,
    Subject: say(language, 'invite_subject', words),
    Date: new Date(at).toUTCString().replace('GMT', '+0000'),
    'Message-ID': `<${id.toLowerCase()}@${domain.name}>`,
    'Content-Language': language,
    // RFC 3834 §5
    'Auto-Submitted': 'auto-generated',
    'Content-Transfer-Encoding': 'quoted-printable',
  });
  root.setContent([say(language, 'invite', words), '', link, '', say(language, 'invite_ignore'), '', '-- ', contact.name, ...(contact.postal === '' ? [] : [contact.postal]), contact.email, ''].join('\r\n'));
  const built = await root.build();
  return Buffer.from(built.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
}
