// The life of a message, readable in one sitting. Only this file sees the whole row of rooms: it calls
// them in order and turns what they return into replies, spool states and events. In: recipient() and
// message(), called by the submission door. Out: attempt(), called by the schedule for each recipient
// whose time has come. When in doubt the message waits: nothing is sent ungated or unsigned, nothing
// that was answered 250 is lost.
import { compose, render } from './compose/index.ts';
import type { Deliverer, RouteResult } from './deliver/index.ts';
import { composeDsn, maskReply, newEvent, type DsnAction, type Event, type EventKind, type Journal } from './events/index.ts';
import { admit, clear, judgeAttempt, judgeMessage, judgeRecipient, judgeSender, judgeText, profilesNamed, verdictReply, type Verdict, type Yes } from './gate/index.ts';
import type { SentCopies } from './feedback/index.ts';
import type { Facts, Ledger, Suspension } from './ledger/index.ts';
import {
  campaignOf, indexHeader, isMailError, MailError, messageFacts, parseAddress, reply, replyLine, shownText,
  type Address, type AddressHashes, type AdmittedRecipient, type Cleared, type Composed, type Due, type EnvelopeRecipient, type Outcome, type Reply, type Submitted,
} from './mail/index.ts';
import { newId, type Clock, type Keyring, type Log, type Metrics } from './runtime/index.ts';
import { backoffMs, type LaneName } from './schedule/index.ts';
import type { SendingDomain, Settings, Stream, Tenant } from './settings/index.ts';
import type { Signer } from './sign/index.ts';
import type { Spool } from './spool/index.ts';
import { makeNotice, receivedField, type SubmissionContext, type SubmissionHooks } from './submission/index.ts';

/** The rooms a message passes; main.ts opens them. */
export interface House {
  readonly settings: () => Settings;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly keyring: Keyring;
  readonly ledger: Ledger;
  readonly spool: Spool;
  readonly signer: Signer;
  readonly deliverer: Deliverer;
  readonly journal: Journal;
  /** Whom a bounce of a delivered copy is about; without it none is remembered. */
  readonly sent?: Pick<SentCopies, 'note'>;
}

/** What the submission door and the schedule call. */
export interface Pipeline extends SubmissionHooks {
  /** One recipient's attempt, settled durably when it resolves. */
  attempt(due: Due, lane: LaneName, route: RouteResult): Promise<{ readonly reached: boolean; readonly outcome: Outcome }>;
  /** Ends one whose time was over before an attempt could be made, durably; the lane where one is known. */
  ended(due: Due, lane?: LaneName): Promise<void>;
}

/** A gate that cannot tell, a key that cannot be read: ours to mend, so the mail waits only briefly. */
const LOCAL_RETRY_MS = 60_000;
// Only when what RCPT said is lost: the application tries again and everybody is judged anew.
const NOBODY_ADMITTED = reply(451, '3.0', 'the recipients of this transaction are not known any more; try again');
const NOT_CONFIGURED = reply(451, '3.5', 'tenant or stream is not configured any more');

export function openPipeline(house: House): Pipeline {
  // What the gate admitted, by transaction, until DATA ends or the transaction is reset.
  const admitted = new Map<string, Admission>();
  return {
    sender: (context, mailFrom) => judgeAtMail(house, context, mailFrom),
    recipient: (context, recipient) => judgeAtRcpt(house, admitted, context, recipient),
    async message(submitted) {
      const admission = admitted.get(submitted.id) ?? noAdmission();
      admitted.delete(submitted.id);
      if (admission.recipients.length === 0) return NOBODY_ADMITTED;
      return accept(house, submitted, admission);
    },
    reset: (context) => void admitted.delete(context.id),
    suspended: async (tenant) => (await house.ledger.suspension(tenant)) !== undefined,
    attempt: (due, lane, route) => attempt(house, due, lane, route),
    ended: (due, lane = NO_LANE) => settle(house, due, lane, untried(due)),
  };
}

/** For what never got a lane. */
const NO_LANE: LaneName = { id: '', label: 'none', egress: '', provider: '' };

/** What RCPT has found out of one transaction: who may have the message, and whose rules its content must keep. */
interface Admission {
  readonly recipients: AdmittedRecipient[];
  readonly profiles: Set<string>;
  /** Every one of them allows individual opens. */
  individual: boolean;
}

const noAdmission = (): Admission => ({ recipients: [], profiles: new Set(), individual: true });

// ---- in ----------------------------------------------------------------------------------------

async function judgeAtMail(house: House, context: SubmissionContext, mailFrom: string): Promise<Reply | undefined> {
  const { credential } = context;
  const place = placeOf(house.settings(), credential.tenant, credential.stream);
  if (place === undefined) return NOT_CONFIGURED;
  const verdict = judgeSender({ tenant: place.tenant, credential, mailFrom, facts: await suspensionOf(house, credential.tenant) });
  return verdict.answer === 'yes' ? undefined : refuse(house, place, context.id, verdict);
}

async function judgeAtRcpt(house: House, admitted: Map<string, Admission>, context: SubmissionContext, recipient: EnvelopeRecipient): Promise<Reply | undefined> {
  const place = placeOf(house.settings(), context.credential.tenant, context.credential.stream);
  if (place === undefined) return NOT_CONFIGURED;
  let address: Address;
  try {
    address = parseAddress(recipient.wire);
  } catch (error) {
    if (!isMailError(error, 'E_ADDRESS')) throw error;
    return reply(553, '1.3', error.message.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 200));
  }
  const hashes = house.ledger.hashes(place.tenant.id, address);
  const facts = await askLedger(house, place, hashes);
  const verdict = judgeRecipient({ ...place, now: house.clock.now(), facts, profiles: house.settings(), domain: address.domain });
  if (verdict.answer !== 'yes') return refuse(house, place, context.id, verdict, hashes);
  noteShadowed(house, place, context.id, verdict, hashes);
  const admission = admitted.get(context.id) ?? noAdmission();
  // The same address twice in one transaction is one recipient (RFC 5321 §4.1.1.3 leaves it to us).
  if (!admission.recipients.some((known) => known.wire === recipient.wire)) {
    admission.recipients.push({ ...recipient, domain: address.domain, hashes, evidence: verdict.evidence });
  }
  admission.profiles.add(verdict.profile);
  admission.individual &&= verdict.tracking.opens === 'individual';
  admitted.set(context.id, admission);
  return undefined;
}

/** End of DATA: judge, compose, store, and only then the 250. */
async function accept(house: House, submitted: Submitted, { recipients, profiles, individual }: Admission): Promise<Reply> {
  const started = performance.now();
  const { origin } = submitted;
  const place = placeOf(house.settings(), origin.tenant, origin.stream);
  const credential = house.settings().credentials.get(origin.credential);
  if (place === undefined || credential === undefined) return NOT_CONFIGURED;
  const index = indexHeader(submitted.raw);
  const header = messageFacts(submitted.raw, index);
  const verdict = judgeMessage({
    ...place, credential, envelope: submitted.envelope, header, profiles: profilesNamed(house.settings(), profiles), text: () => shownText(submitted.raw, index),
  });
  if (verdict.answer !== 'yes') return refuse(house, place, submitted.id, verdict);
  noteShadowed(house, place, submitted.id, verdict);
  const domain = sendingDomain(place.tenant, header.from[0] ?? '');
  if (domain === undefined) return reply(550, '7.1', 'the From domain is not one of your sending domains');
  const composed = composeFor(house, place, domain, submitted, recipients);
  const said = judgeText({ ...place, plan: composed.plan, individual });
  if (said.answer !== 'yes') return refuse(house, place, submitted.id, said);
  noteShadowed(house, place, submitted.id, said);
  const refused = await store(house, place, composed, campaignOf(submitted.raw, index, place.stream.campaignHeader));
  if (refused !== undefined) return refused;
  house.metrics.acceptSeconds.observe((performance.now() - started) / 1000);
  return reply(250, '0.0', `queued as ${submitted.id}`);
}

function composeFor(house: House, { stream, tenant }: Place, domain: SendingDomain, submitted: Submitted, recipients: readonly AdmittedRecipient[]): Composed {
  const { hostname } = house.settings().server;
  const { untrackedDomains: untracked = [] } = tenant;
  return compose(admit(submitted, recipients), { hostname, stream, domain, untracked, receivedFields: receivedField(submitted, hostname) });
}

/** Undefined once it is durable, else the reply. */
async function store(house: House, { stream, tenant }: Place, composed: Composed, campaign?: string): Promise<Reply | undefined> {
  try {
    await house.spool.store(composed, { expiresAt: house.clock.now() + stream.retryForMs, priority: stream.priority, ...(campaign !== undefined && { campaign }) });
  } catch (error) {
    if (isMailError(error, 'E_SPOOL_FULL')) return reply(452, '3.1', 'the spool is full, try again later');
    if (isMailError(error)) return reply(451, '3.0', 'local error, try again later');
    throw error;
  }
  for (const { why } of composed.plan.untouched) house.metrics.untouched.inc({ why });
  house.metrics.accepted.inc({ tenant: tenant.id, stream: stream.id });
  record(house, 'accepted', {
    tenant: tenant.id, stream: stream.id, message_id: composed.id, size_bytes: composed.raw.length,
    recipients: composed.recipients.length, policy: currentPolicy(tenant, house.clock.now()),
  });
  return undefined;
}

function refuse(house: House, { tenant, stream }: Place, messageId: string, verdict: Exclude<Verdict, { answer: 'yes' }>, hashes?: AddressHashes): Reply {
  const event = record(house, 'refused', {
    tenant: tenant.id, stream: stream.id, message_id: messageId, rule: verdict.rule, ...(hashes && { person: person(hashes) }),
  });
  house.metrics.refused.inc({ tenant: tenant.id, rule: verdict.rule });
  const said = verdictReply(verdict, event.id);
  if (!tenant.softRefuse || said.code < 500) return said;
  record(house, 'soft-refused', { tenant: tenant.id, stream: stream.id, rule: verdict.rule });
  return reply(said.code - 100, said.enhanced.slice(2), said.lines.join(' '));
}

/** What a rule that is only tried out would have refused. At attempts it is not told again. */
function noteShadowed(house: House, { tenant, stream }: Place, messageId: string, { shadowed }: Yes, hashes?: AddressHashes): void {
  for (const rule of shadowed) {
    record(house, 'soft-refused', { tenant: tenant.id, stream: stream.id, message_id: messageId, rule, reason: 'shadow', ...(hashes && { person: person(hashes) }) });
  }
}

// ---- out ---------------------------------------------------------------------------------------

async function attempt(house: House, due: Due, lane: LaneName, route: RouteResult): Promise<{ readonly reached: boolean; readonly outcome: Outcome }> {
  const tried = await tryOnce(house, due, lane, route);
  await settle(house, due, lane, tried);
  if (tried.hold === true) {
    // Damaged on disk: kept for a person to look at, never sent and never dropped.
    await house.spool.hold({ id: due.id });
    record(house, 'held', { tenant: due.message.origin.tenant, message_id: due.id, reason: 'the stored message does not match its seal' });
  }
  const { outcome } = tried;
  return { reached: outcome.kind !== 'deferred' || (outcome.phase !== 'connect' && outcome.phase !== 'dns'), outcome };
}

interface Tried {
  readonly outcome: Outcome;
  /** No attempt was made. */
  readonly untried?: true;
  readonly hold?: boolean;
  /** What the event tells of the copy that was sent. */
  readonly copy?: Pick<Event, 'rule' | 'policy' | 'evidence' | 'links' | 'pixel' | 'trackers' | 'signatures'>;
}

async function tryOnce(house: House, due: Due, lane: LaneName, route: RouteResult): Promise<Tried> {
  const { origin, plan } = due.message;
  const place = placeOf(house.settings(), origin.tenant, origin.stream);
  const domain = place?.tenant.domains.find((known) => known.name === plan.domain);
  if (place === undefined || domain === undefined) return { outcome: wait('the tenant, stream or sending domain is not configured any more') };
  const verdict = judgeAttempt({ ...place, origin, now: house.clock.now(), facts: await askLedger(house, place, due.recipient.hashes), profiles: house.settings(), domain: due.recipient.domain });
  if (verdict.answer === 'cannot-tell') return { outcome: wait(verdict.reason) };
  if (verdict.answer === 'no') {
    // A suspended tenant's queue is frozen, not thrown away (design §7).
    if (verdict.rule === 'tenant-suspended') return { outcome: wait(verdict.reason) };
    return { outcome: { kind: 'suppressed', rule: verdict.rule, phase: 'gate', host: '', reason: verdict.reason, class: 'suppressed' } };
  }
  if (route.kind !== 'hosts') return { outcome: unrouted(route) };
  try {
    const cleared = clear(due, verdict);
    const signed = await house.signer.sign(await renderCopy(house, cleared, place.stream, domain), domain);
    const outcome = await house.deliverer.attempt(signed, route, lane);
    const { links, pixel, trackers, signatures } = signed;
    return { outcome, copy: { rule: verdict.rule, policy: cleared.policy, evidence: cleared.evidence, links, pixel, signatures, ...(trackers > 0 && { trackers }) } };
  } catch (error) {
    if (!isMailError(error)) throw error;
    house.log.error({ code: error.code, message_id: due.id, err: error.message }, 'attempt not made');
    return { outcome: wait(`local error ${error.code}`), hold: error.code === 'E_SPOOL_CORRUPT' };
  }
}

async function renderCopy(house: House, cleared: Cleared, stream: Stream, domain: SendingDomain): Promise<ReturnType<typeof render>> {
  const { tenant } = cleared.message.origin;
  return render(cleared, await house.spool.body(cleared.id), { tenant, keys: house.keyring.tenant(tenant), domain, stream, inbound: house.settings().server.listeners.inbound.length > 0 });
}

/** DNS had no way there. */
function unrouted(route: Exclude<RouteResult, { kind: 'hosts' }>): Outcome {
  return { ...route, phase: 'dns', host: '' };
}

function wait(reason: string): Outcome {
  return { kind: 'deferred', phase: 'gate', host: '', reason, class: 'local', retryAfterMs: LOCAL_RETRY_MS };
}

/** The end of its time, which settle() makes of a deferral that comes after it. */
function untried({ recipient: { lastReply } }: Due): Tried {
  const last = lastReply === '' ? '' : `; last it was told: ${maskReply(lastReply)}`;
  return { untried: true, outcome: { kind: 'deferred', phase: 'gate', host: '', reason: `its time was over before it could be tried again${last}`, class: 'expired' } };
}

/** Writes down what came of it: ledger first, then the notice, then the spool; each step may be repeated. */
async function settle(house: House, due: Due, lane: LaneName, tried: Tried): Promise<void> {
  const { outcome } = tried;
  const now = house.clock.now();
  const { tenant } = due.message.origin;
  house.metrics.outcomes.inc({ tenant, lane: lane.label, result: outcome.kind, class: outcome.class });
  if (outcome.kind === 'deferred' && now < due.recipient.expiresAt) {
    const { retry } = house.settings().shaping;
    const backoff = outcome.phase === 'gate' ? LOCAL_RETRY_MS : backoffMs(due.recipient.attempts + 1, retry, Math.random(), outcome.retryAfterMs);
    const noticeAt = delayNoticeAt(house, due) ?? Infinity;
    // One last attempt at the very end of the time the stream gives it, and one when its waiting is to be told:
    // only that one was planned before the time and comes after it, so that the notice goes once.
    const nextAt = Math.min(now + backoff, due.recipient.expiresAt, now < noticeAt ? noticeAt : Infinity);
    if (now >= noticeAt && due.recipient.nextAt <= noticeAt) await mention(house, due, outcome, 'delayed');
    recordOutcome(house, 'deferred', due, lane, tried, { next_at: nextAt });
    await house.spool.settle(due, { kind: 'later', nextAt, lastReply: outcome.reply === undefined ? outcome.reason : replyLine(outcome.reply) });
    return;
  }
  if (outcome.kind === 'failed' && outcome.deadAddress) {
    await house.ledger.suppress(tenant, { scope: 'all', cause: 'hard-bounce', hashes: due.recipient.hashes, by: 'bounce' });
    record(house, 'suppression', { tenant, person: person(due.recipient.hashes), class: 'hard-bounce', by: 'bounce' });
  }
  const kind: EventKind = outcome.kind === 'deferred' ? 'expired' : outcome.kind;
  recordOutcome(house, kind, due, lane, tried);
  if (kind === 'delivered') {
    remember(house, due);
    if (tried.copy?.links !== undefined) house.metrics.links.inc(tried.copy.links);
    if (tried.copy?.trackers !== undefined) house.metrics.trackers.inc(tried.copy.trackers);
  }
  if (kind === 'delivered') await mention(house, due, outcome, 'relayed');
  else await tellTenant(house, due, outcome, 'failed');
  await house.spool.settle(due, { kind: 'done' });
}

/** A bounce that comes back names the message and a number; notices have no way back. */
function remember({ settings, sent }: House, due: Due): void {
  const { origin } = due.message;
  const place = placeOf(settings(), origin.tenant, origin.stream);
  if (place === undefined || origin.kind === 'notice' || settings().server.listeners.inbound.length === 0) return;
  sent?.note({ tenant: origin.tenant, message: due.id, recipient: due.index, stream: origin.stream, purpose: place.stream.purpose, hashes: due.recipient.hashes });
}

/** Which recipients a notice of this kind is for: those whom nobody asked about otherwise. RFC 3461 §4.1. */
const ASKED: Readonly<Record<DsnAction, (notify: readonly string[]) => boolean>> = {
  failed: (notify) => notify.length === 0 || notify.includes('FAILURE'),
  delayed: (notify) => notify.includes('DELAY'),
  relayed: (notify) => notify.includes('SUCCESS'),
};

/** When a recipient's waiting is told of, for who asked; undefined for who did not. */
function delayNoticeAt(house: House, { message, recipient }: Due): number | undefined {
  const place = placeOf(house.settings(), message.origin.tenant, message.origin.stream);
  return place !== undefined && ASKED.delayed(recipient.dsn?.notify ?? []) ? message.receivedAt + place.stream.delayNoticeMs : undefined;
}

/** A notice to the tenant's return address; never for a notice, never to a null reverse-path. */
async function tellTenant(house: House, due: Due, outcome: Outcome, action: DsnAction): Promise<void> {
  const { origin, envelope, plan } = due.message;
  const place = placeOf(house.settings(), origin.tenant, origin.stream);
  const to = place?.stream.bouncesTo || envelope.mailFrom;
  const domain = place?.tenant.domains.find((known) => known.name === plan.domain);
  if (origin.kind !== 'relay' || to === '' || place === undefined || domain === undefined || !ASKED[action](due.recipient.dsn?.notify ?? [])) return;
  const now = house.clock.now();
  const id = newId(now);
  const body = await house.spool.body(due.id);
  // RFC 3461 §4.3: of what did not fail only the header comes back; RFC 8689 §5: nor of what may not be read on the way.
  const full = envelope.ret === 'FULL' && action === 'failed' && envelope.requireTls !== true;
  const original = full ? body : body.subarray(0, plan.bodyStart);
  const raw = await composeDsn({
    reportingMta: house.settings().server.hostname, from: `mailer-daemon@${domain.name}`, to, messageId: id, at: now, arrivedAt: due.message.receivedAt,
    ...(envelope.envid !== undefined && { envid: envelope.envid }),
    ...(due.recipient.dsn?.orcpt !== undefined && { orcpt: due.recipient.dsn.orcpt }),
    ...(action === 'delayed' && { until: due.recipient.expiresAt }),
    recipient: due.recipient.wire, action, status: statusOf(outcome, action), remoteMta: outcome.host,
    diagnostic: outcome.reply === undefined ? '' : replyLine(outcome.reply), reason: outcome.reason, original, headerOctets: plan.bodyStart, full,
  });
  const address = parseAddress(to);
  const hashes = house.ledger.hashes(origin.tenant, address);
  const submitted = makeNotice({ id, tenant: origin.tenant, stream: origin.stream, to, raw, at: now, requireTls: envelope.requireTls === true });
  const refused = await store(house, place, composeFor(house, place, domain, submitted, [{ wire: to, domain: address.domain, hashes, evidence: '' }]));
  if (refused !== undefined) throw new MailError(refused.code === 452 ? 'E_SPOOL_FULL' : 'E_STORE', `the notice could not be stored: ${replyLine(refused)}`);
}

/** A notice that is not worth another attempt: for it a copy would go out twice, or a host be asked again at once. */
async function mention(house: House, due: Due, outcome: Outcome, action: 'delayed' | 'relayed'): Promise<void> {
  try {
    await tellTenant(house, due, outcome, action);
  } catch (error) {
    if (!isMailError(error)) throw error;
    house.log.error({ code: error.code, message_id: due.id, err: error.message }, `the tenant could not be told that a message is ${action}`);
  }
}

function statusOf(outcome: Outcome, action: DsnAction): string {
  const told = outcome.reply?.enhanced ?? '';
  // RFC 3464 §2.3.4: what is tried again is no 5yz, whatever the host called it.
  if (told !== '') return action === 'delayed' ? told.replace(/^5/, '4') : told;
  if (action === 'relayed') return '2.0.0';
  // RFC 3463 §3.5: no answer from host; the directory server, for DNS; else nothing is known.
  if (action === 'delayed') return outcome.phase === 'connect' ? '4.4.1' : outcome.phase === 'dns' ? '4.4.3' : '4.0.0';
  if (outcome.status !== undefined) return outcome.status;
  // RFC 3463 §3.5 and §3.8: delivery time expired; security or policy.
  if (outcome.kind === 'deferred') return '4.4.7';
  return outcome.kind === 'suppressed' ? '5.7.1' : '5.0.0';
}

// ---- both --------------------------------------------------------------------------------------

interface Place {
  readonly tenant: Tenant;
  readonly stream: Stream;
}

function placeOf(settings: Settings, tenantId: string, streamId: string): Place | undefined {
  const tenant = settings.tenants.get(tenantId);
  const stream = tenant?.streams.get(streamId);
  return tenant === undefined || stream === undefined ? undefined : { tenant, stream };
}

/** Facts about a person, or undefined when the store did not answer: then nobody may say yes. */
async function askLedger(house: House, { tenant, stream }: Place, hashes: AddressHashes): Promise<Facts | undefined> {
  try {
    return await house.ledger.facts(tenant.id, stream.purpose, stream.id, hashes);
  } catch (error) {
    if (!isMailError(error)) throw error;
    house.log.error({ code: error.code, err: error.message }, 'the ledger did not answer');
    return undefined;
  }
}

async function suspensionOf(house: House, tenant: string): Promise<{ readonly suspension?: Suspension } | undefined> {
  try {
    const suspension = await house.ledger.suspension(tenant);
    return suspension === undefined ? {} : { suspension };
  } catch (error) {
    if (!isMailError(error)) throw error;
    return undefined;
  }
}

/** The tenant's sending domain an author address belongs to: the domain itself or one above it. */
export function sendingDomain(tenant: Tenant, author: string): SendingDomain | undefined {
  const domain = author.slice(author.lastIndexOf('@') + 1).toLowerCase();
  return tenant.domains.find(({ name }) => domain === name || domain.endsWith(`.${name}`));
}

function currentPolicy(tenant: Tenant, now: number): string {
  return tenant.policies.findLast(({ effectiveAt }) => effectiveAt <= now)?.hash ?? '';
}

const person = (hashes: AddressHashes): string => hashes.consent.toString('hex', 0, 6);

function record(house: House, kind: EventKind, fields: Partial<Event>): Event {
  const event = newEvent(kind, house.clock, fields);
  house.journal.record(event);
  return event;
}

function recordOutcome(house: House, kind: EventKind, due: Due, lane: LaneName, { outcome, copy, untried: waited }: Tried, more: Partial<Event> = {}): void {
  const { origin } = due.message;
  record(house, kind, {
    tenant: origin.tenant, stream: origin.stream, message_id: due.id, recipient: due.index, person: person(due.recipient.hashes),
    lane: lane.id, host: outcome.host, phase: outcome.phase, class: outcome.class, reason: outcome.reason, attempts: due.recipient.attempts + (waited === true ? 0 : 1),
    ...(outcome.reply !== undefined && { code: outcome.reply.code, status: outcome.reply.enhanced, reply: maskReply(replyLine(outcome.reply)) }),
    ...(outcome.kind === 'suppressed' && { rule: outcome.rule }),
    ...(outcome.tls !== undefined && { tls: outcome.tls }),
    ...(outcome.delaysMs !== undefined && { delays_ms: outcome.delaysMs }),
    ...copy, ...more,
  });
}
