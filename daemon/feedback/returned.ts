// What is done with mail that came back to a token of ours: an unsubscription is carried out, a dead
// address is suppressed, a complaint withdraws consent too. Callers may rely on: it is durable when the
// promise resolves to a 250, repeating it changes nothing, and a tenant's suspension does not stand in the
// way (test T36). When the ledger or the table of copies does not answer it is a 451, and the sender repeats it.
// RFC 3464, RFC 3834, RFC 5965, RFC 8058.
import { openMailto, openReturnPath, openToken, type MailToken } from '../compose/index.ts';
import { classify, type BounceClass } from '../deliver/index.ts';
import { maskReply, newEvent, type Event, type EventKind } from '../events/index.ts';
import type { Ledger } from '../ledger/index.ts';
import { isMailError, reply, replyLine, type AddressHashes, type BounceRules, type Reply } from '../mail/index.ts';
import type { Clock, Keyring, Log, Metrics } from '../runtime/index.ts';
import type { Settings } from '../settings/index.ts';
import { fieldText, isAutomatic, readReport, type Report, type ReportedRecipient } from './report.ts';
import type { SentCopies } from './sent.ts';

export interface FeedbackOptions {
  readonly settings: () => Settings;
  readonly keyring: Keyring;
  readonly ledger: Pick<Ledger, 'withdraw' | 'suppress'>;
  readonly sent: SentCopies;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly record: (event: Event) => void;
}

/** What an address of ours stands for. */
export type Mailbox =
  | { readonly kind: 'bounce' | 'unsubscribe'; readonly token: MailToken }
  | { readonly kind: 'role'; readonly role: 'abuse' | 'postmaster'; readonly tenant: string | undefined };

/** The person a token leads to, with what the mail was. */
interface Reached {
  readonly stream: string;
  readonly purpose: string;
  readonly hashes: AddressHashes;
}

const DONE = reply(250, '0.0', 'taken');
const AGAIN = reply(451, '3.0', 'local error, try again later');
const NOBODY_NAMED = reply(550, '6.0', 'the subject line that names the subscription is missing; use the unsubscribe link in the message');

/** Carries out one message to a token's address. */
export async function takeBack(options: FeedbackOptions, mailbox: Extract<Mailbox, { token: MailToken }>, raw: Buffer): Promise<Reply> {
  try {
    return mailbox.kind === 'unsubscribe' ? await unsubscribe(options, mailbox.token, raw) : await report(options, mailbox.token, await readReport(raw));
  } catch (error) {
    if (!isMailError(error)) throw error;
    options.log.error({ code: error.code, err: error.message, tenant: mailbox.token.tenant }, 'mail that came back could not be acted upon; the sender will repeat it');
    return AGAIN;
  }
}

/** A complaint at abuse@ that names one of our copies; false when it is for a person to read. @throws MailError E_STORE */
export async function takeComplaint(options: FeedbackOptions, raw: Buffer): Promise<boolean> {
  const found = await readReport(raw);
  if (found.kind !== 'complaint' || !COMPLAINTS.has(found.type)) return false;
  const token = tokenWithin(options.keyring, found.returned);
  const person = token === undefined ? undefined : reached(options, token, found.returned);
  if (token === undefined || person === undefined) return false;
  await complain(options, token, person);
  return true;
}

async function unsubscribe(options: FeedbackOptions, token: MailToken, raw: Buffer): Promise<Reply> {
  // RFC 3834 §2: a program's answer is nobody's wish.
  if (isAutomatic(raw)) {
    count(options, token, 'unsubscribe', 'automatic');
    return DONE;
  }
  const person = reached(options, token, fieldText(raw, 'subject'));
  if (person === undefined) {
    count(options, token, 'unsubscribe', 'person-unknown');
    return NOBODY_NAMED;
  }
  // Suppression first: it alone stops the mail, should the second step fail and nobody ask again.
  await options.ledger.suppress(token.tenant, { hashes: person.hashes, scope: `purpose:${person.purpose}`, cause: 'unsubscribe', by: 'recipient' });
  await options.ledger.withdraw(token.tenant, person.purpose, person.hashes, 'recipient');
  record(options, 'unsubscribed', token, person, { by: 'recipient' });
  count(options, token, 'unsubscribe', 'done');
  return DONE;
}

async function report(options: FeedbackOptions, token: MailToken, found: Report): Promise<Reply> {
  switch (found.kind) {
    case 'delivery':
      await bounce(options, token, found.recipients, reached(options, token, found.returned));
      return DONE;
    case 'complaint': {
      const person = COMPLAINTS.has(found.type) ? reached(options, token, found.returned) : undefined;
      if (person === undefined) count(options, token, 'complaint', COMPLAINTS.has(found.type) ? 'person-unknown' : 'no-complaint');
      else await complain(options, token, person);
      return DONE;
    }
    case 'automatic':
      count(options, token, 'other', 'automatic');
      return DONE;
    case 'other':
      count(options, token, 'other', 'dropped');
      return DONE;
    default:
      return found satisfies never;
  }
}

// RFC 5965 §7.3, RFC 6430: what is a recipient's own word against the mail. auth-failure and virus are about
// the mail's way, and not-spam is the contrary.
const COMPLAINTS: ReadonlySet<string> = new Set(['abuse', 'fraud', 'opt-out', 'opt-out-list']);

async function complain(options: FeedbackOptions, token: MailToken, person: Reached): Promise<void> {
  await options.ledger.suppress(token.tenant, { hashes: person.hashes, scope: 'all', cause: 'complaint', by: 'recipient' });
  await options.ledger.withdraw(token.tenant, person.purpose, person.hashes, 'recipient');
  record(options, 'complained', token, person, { by: 'recipient' });
  count(options, token, 'complaint', 'done');
}

async function bounce(options: FeedbackOptions, token: MailToken, recipients: readonly ReportedRecipient[], person: Reached | undefined): Promise<void> {
  const { action, said, judged } = judgeReport(options.settings().bounces, recipients);
  const dead = judged.dead && person !== undefined;
  if (dead) await options.ledger.suppress(token.tenant, { hashes: person.hashes, scope: 'all', cause: 'hard-bounce', by: 'bounce' });
  record(options, 'bounced', token, person, {
    by: 'bounce', reason: action, class: judged.class,
    ...(said !== undefined && { code: said.code, status: said.enhanced, reply: maskReply(replyLine(said)) }),
  });
  if (dead) record(options, 'suppression', token, person, { class: 'hard-bounce', by: 'bounce' });
  const result = action !== 'failed' ? 'passing' : dead ? 'suppressed' : judged.dead ? 'person-unknown' : 'failed';
  count(options, token, 'bounce', result);
}

interface JudgedReport {
  readonly action: ReportedRecipient['action'];
  readonly said: Reply | undefined;
  readonly judged: { readonly class: BounceClass; readonly dead: boolean };
}

/**
 * What a report means for the one recipient its copy had. A list behind the address makes several groups:
 * the address is dead only when every one of them failed for good.
 */
export function judgeReport(rules: BounceRules, recipients: readonly ReportedRecipient[]): JudgedReport {
  const first = recipients.find(({ action }) => action === 'failed') ?? recipients[0];
  if (first === undefined) return { action: 'unknown', said: undefined, judged: { class: 'other', dead: false } };
  const said = replyOf(first);
  const meaning = first.action === 'failed' || first.action === 'delayed' ? (said === undefined ? 'other' : classify(rules, 'final', said).class) : 'none';
  return { action: first.action, said, judged: { class: meaning, dead: recipients.every((one) => isDead(rules, one)) } };
}

function isDead(rules: BounceRules, recipient: ReportedRecipient): boolean {
  const said = replyOf(recipient);
  // Two statuses that disagree (the host's and the reporter's) condemn nobody when either speaks of policy.
  const policy = [recipient.status, said?.enhanced ?? ''].some((status) => status.slice(2).startsWith('7.'));
  return recipient.action === 'failed' && !policy && said !== undefined && classify(rules, 'final', said).deadAddress;
}

/** The reply the report quotes; else one made of its status. */
function replyOf({ status, reply: quoted }: ReportedRecipient): Reply | undefined {
  if (quoted !== undefined && quoted.code >= 400) {
    const better = quoted.enhanced === '' && status.startsWith(String(quoted.code)[0] ?? '-') ? status : quoted.enhanced;
    return { ...quoted, enhanced: better };
  }
  if (status === '' || status.startsWith('2')) return undefined;
  return { code: status.startsWith('5') ? 550 : 450, enhanced: status, lines: [''] };
}

/** The person by the sealed token that came along, else by the table of copies. @throws MailError E_STORE */
function reached({ keyring, sent }: FeedbackOptions, token: MailToken, text: string): Reached | undefined {
  for (const { tenant, claim } of sealedWithin(keyring, text)) {
    if (claim.kind === 'unsubscribe' && tenant === token.tenant && claim.message === token.message && claim.recipient === token.recipient) return claim;
  }
  return sent.find(token.tenant, token.message, token.recipient);
}

// Of tokens in one text ours comes first or second; a text made of nothing else must not keep us busy.
const TRIED = 20;

function* sealedWithin(keyring: Keyring, text: string): Generator<NonNullable<ReturnType<typeof openToken>>> {
  // Long subjects are folded by some programs even where there is no space.
  const unfolded = text.replaceAll(/=?\r?\n[ \t]*/g, '');
  for (const candidates of [text, unfolded]) {
    let tried = 0;
    // A token is at least its key id, IV, hashes and tag: 110 octets.
    for (const [word] of candidates.matchAll(/[A-Za-z0-9_-]{140,4096}/g)) {
      const opened = openToken(keyring, word);
      if (opened !== undefined) yield opened;
      if (++tried >= TRIED) break;
    }
  }
}

/** The copy that a text speaks of: by a sealed link token, a reverse-path or an unsubscribe address in it. */
function tokenWithin(keyring: Keyring, text: string): MailToken | undefined {
  for (const { tenant, claim } of sealedWithin(keyring, text)) {
    if (claim.kind === 'unsubscribe') return { tenant, message: claim.message, recipient: claim.recipient };
  }
  let tried = 0;
  for (const [word] of text.matchAll(/\b[bu]-[a-z2-7]{55}(?![a-z2-7])/gi)) {
    const token = openReturnPath(keyring, word) ?? openMailto(keyring, word);
    if (token !== undefined || ++tried >= TRIED) return token;
  }
  return undefined;
}

function record({ record: write, clock }: FeedbackOptions, kind: EventKind, token: MailToken, person: Reached | undefined, fields: Partial<Event>): void {
  write(newEvent(kind, clock, {
    tenant: token.tenant, message_id: token.message, recipient: token.recipient,
    ...(person !== undefined && { stream: person.stream, person: person.hashes.consent.toString('hex', 0, 6) }), ...fields,
  }));
}

type Result = 'done' | 'suppressed' | 'failed' | 'passing' | 'automatic' | 'dropped' | 'person-unknown' | 'no-complaint';

function count({ metrics }: FeedbackOptions, { tenant }: MailToken, kind: 'bounce' | 'complaint' | 'unsubscribe' | 'other', result: Result): void {
  metrics.returned.inc({ tenant, kind, result });
}
