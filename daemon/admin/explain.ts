// Whether people may be mailed on a stream, and why: the gate's own code, asked beside the mail, under the
// configuration in force and, where one is named, under a proposed tree as well; and what the decision
// about a message that was sent relied on. Callers may rely on: nothing is changed by asking, and a
// proposed tree is read, judged with and forgotten. A tree that a reload would refuse is refused here, with
// the same file, line and column.
import { isAbsolute } from 'node:path';
import { planText } from '../compose/index.ts';
import type { Event } from '../events/index.ts';
import { judgeMessage, judgeRecipient, judgeText, profileOf, profilesNamed, type RuleId, type Verdict } from '../gate/index.ts';
import type { Facts } from '../ledger/index.ts';
import { indexHeader, isMailError, MailError, messageFacts, NO_TRACKING, parseAddress, shownText, type Address, type Tracking } from '../mail/index.ts';
import { formatProblem, loadSettings, policyProblem, type Profile, type Settings, type Stream, type Tenant } from '../settings/index.ts';
import type { Operation } from './control.ts';
import { pseudonymOf, type Desk } from './desk.ts';
import { messageId, person, required, streamOf, tenantOf, text, wrong, type Params } from './params.ts';

export function explainOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    explain: (params) => explain(desk, params),
    'explain.people': (params) => explainPeople(desk, params),
    'explain.letter': (params) => explainLetter(desk, params),
    'explain.decision': (params) => explainDecision(desk, params),
  };
}

/** Where a question is put: one configuration's tenant and stream. */
interface Place {
  readonly settings: Settings;
  readonly tenant: Tenant;
  readonly stream: Stream;
}

async function explain(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, address: { domain }, hashes } = person(desk, params);
  const place: Place = { settings: desk.settings(), tenant, stream: streamOf(tenant, params) };
  const { settings, stream } = place;
  const facts = await desk.ledger.facts(tenant.id, stream.purpose, stream.id, hashes);
  const recipient = judgeRecipient({ tenant, stream, now: desk.clock.now(), facts, profiles: settings, domain, explain: true });
  const raw = text(params, 'message');
  const message = raw === '' ? undefined : judgeLetter(place, Buffer.from(raw, 'base64'), [profileOf(settings, tenant, domain, facts.consent)], recipient.answer !== 'yes' || recipient.tracking.opens === 'individual');
  return { tenant: tenant.id, stream: stream.id, purpose: stream.purpose, recipient, facts: shownFacts(facts), ...(message !== undefined && { message }) };
}

/** The gate's facts as JSON can carry them. */
function shownFacts({ unpublished, ...facts }: Facts): unknown {
  return { ...facts, ...(unpublished !== undefined && { unpublished: [...unpublished] }) };
}

/** A verdict in few words. */
export interface Judged {
  readonly answer: Verdict['answer'];
  readonly rule: RuleId;
  /** Absent for a yes. */
  readonly reason?: string;
  readonly evidence?: string;
  readonly policy?: string;
  readonly tracking?: Tracking;
  /** Whose rules hold for them. */
  readonly profile: string;
  readonly shadowed?: readonly RuleId[];
}

/** What is said of one address of a list; `error` when it is none. */
export interface PersonJudged extends Partial<Judged> {
  readonly rcpt: string;
  readonly error?: string;
  readonly proposed?: Judged;
}

async function explainPeople(desk: Desk, params: Params): Promise<unknown> {
  const { rcpts } = params;
  if (!Array.isArray(rcpts) || !rcpts.every((one) => typeof one === 'string')) throw wrong('rcpts: expected a list of addresses');
  const current = placeIn(desk.settings(), params);
  const proposed = proposedPlace(desk, params);
  const now = typeof params['at'] === 'number' ? params['at'] : desk.clock.now();
  const people: PersonJudged[] = [];
  for (const rcpt of rcpts) {
    let address: Address;
    try {
      address = parseAddress(rcpt);
    } catch (error) {
      if (!isMailError(error, 'E_ADDRESS')) throw error;
      people.push({ rcpt, error: error.message });
      continue;
    }
    people.push({ rcpt, ...await judgeOne(desk, current, address, now), ...(proposed !== undefined && { proposed: await judgeOne(desk, proposed, address, now) }) });
  }
  return {
    tenant: current.tenant.id, stream: current.stream.id, people,
    ...(proposed !== undefined && { tree: proposed.settings.hash, coming: coming(current.tenant, proposed.tenant, now) }),
  };
}

function placeIn(settings: Settings, params: Params): Place {
  const tenant = tenantOf({ settings: () => settings }, params);
  return { settings, tenant, stream: streamOf(tenant, params) };
}

function proposedPlace(desk: Desk, params: Params): Place | undefined {
  const dir = text(params, 'proposed');
  if (dir === '') return undefined;
  if (!isAbsolute(dir)) throw wrong(`proposed: expected an absolute path, got ${JSON.stringify(dir)}`);
  const loaded = loadSettings(dir);
  const conflicts = loaded.ok ? desk.ledger.policyConflicts(text(params, 'tenant'), loaded.settings.tenants.get(text(params, 'tenant'))?.policies ?? []) : [];
  const problems = loaded.ok ? conflicts.map(({ version, reason }) => policyProblem(dir, text(params, 'tenant'), version, reason)) : loaded.problems;
  if (!loaded.ok || problems.length > 0) throw new MailError('E_CONFIG', `${dir} could not be taken, ${problems.length} problem(s):\n${problems.map(formatProblem).join('\n')}`);
  try {
    return placeIn(loaded.settings, params);
  } catch (error) {
    if (!isMailError(error)) throw error;
    throw wrong(`in ${dir}: ${error.message}`, error);
  }
}

async function judgeOne({ ledger }: Desk, { settings, tenant, stream }: Place, address: Address, now: number): Promise<Judged> {
  const facts = await ledger.facts(tenant.id, stream.purpose, stream.id, ledger.hashes(tenant.id, address));
  const verdict = judgeRecipient({ tenant, stream, now, facts, profiles: settings, domain: address.domain });
  const profile = profileOf(settings, tenant, address.domain, facts.consent).id;
  if (verdict.answer !== 'yes') return { answer: verdict.answer, rule: verdict.rule, reason: verdict.reason, profile };
  const { answer, rule, evidence, policy, tracking, shadowed } = verdict;
  return { answer, rule, profile, evidence, policy, tracking, ...(shadowed.length > 0 && { shadowed }) };
}

/** Versions of the proposed tree that do not hold yet at this time. */
function coming(current: Tenant, proposed: Tenant, now: number): readonly { readonly version: string; readonly effectiveAt: number }[] {
  return proposed.policies.filter(({ hash, effectiveAt }) => effectiveAt > now && !current.policies.some((known) => known.hash === hash))
    .map(({ version, effectiveAt }) => ({ version, effectiveAt }));
}

/** `profiles`: those of the people it is for, as explain.people told them, and whether all allow individual opens; `proposed...` under the proposed tree. */
async function explainLetter(desk: Desk, params: Params): Promise<unknown> {
  const raw = Buffer.from(required(params, 'message'), 'base64');
  const judge = (place: Place, name: string, individual: unknown): Verdict => {
    const ids: unknown = params[name];
    return judgeLetter(place, raw, profilesNamed(place.settings, Array.isArray(ids) ? ids.filter((id) => typeof id === 'string') : []), individual !== false);
  };
  const proposed = proposedPlace(desk, params);
  return { message: judge(placeIn(desk.settings(), params), 'profiles', params['individual']), ...(proposed !== undefined && { proposed: judge(proposed, 'proposedProfiles', params['proposedIndividual']) }) };
}

/** Judges a letter as at the end of DATA, were these the profiles of the people it is for. */
function judgeLetter({ tenant, stream }: Omit<Place, 'settings'>, raw: Buffer, profiles: readonly Profile[], individual: boolean): Verdict {
  const credential = tenant.credentials.find((known) => known.stream === stream.id);
  if (credential === undefined) throw wrong(`stream ${stream.id} has no credential, so nobody can submit to it`);
  const crlf = Buffer.from(raw.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
  const index = indexHeader(crlf);
  const verdict = judgeMessage({
    tenant, stream, credential, envelope: { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' }, header: messageFacts(crlf, index),
    profiles, text: () => shownText(crlf, index), explain: true,
  });
  const [domain] = tenant.domains;
  if (verdict.answer !== 'yes' || domain === undefined) return verdict;
  const said = judgeText({ tenant, stream, plan: planText(crlf, index, { stream, domain, untracked: tenant.untrackedDomains ?? [] }), individual, explain: true });
  return { ...said, ...(said.answer === 'yes' && { shadowed: [...verdict.shadowed, ...said.shadowed] }), steps: [...(verdict.steps ?? []).filter(({ result }) => result !== 'decided'), ...(said.steps ?? [])] };
}

// ---- a message that was sent -------------------------------------------------------------------

/** What was decided of one recipient last, and what it rests on. */
export interface Decision {
  /** Absent for those refused at RCPT, who have no place in the message. */
  readonly recipient?: number;
  readonly person?: string;
  readonly event: string;
  readonly at?: number;
  readonly rule?: string;
  /** The leaf of the consent relied on. */
  readonly evidence?: string;
  readonly policy?: string;
  readonly version?: string;
  /** The command that prints the proof. */
  readonly receipt?: string;
}

const OUTCOMES: ReadonlySet<string> = new Set(['delivered', 'deferred', 'failed', 'expired', 'suppressed']);

async function explainDecision(desk: Desk, params: Params): Promise<unknown> {
  const id = messageId(params);
  const last = new Map<number, Event>();
  const refused: Event[] = [];
  let accepted: Event | undefined;
  for await (const event of desk.journal.trace(id)) {
    if (event.event === 'accepted') accepted = event;
    if (event.event === 'refused' && event.person !== undefined) refused.push(event);
    if (event.recipient !== undefined && OUTCOMES.has(event.event)) last.set(event.recipient, event);
  }
  const tenant = accepted?.tenant ?? desk.spool.tenantOf(id) ?? refused[0]?.tenant;
  if (tenant === undefined) throw wrong('the journal tells nothing of it: it does not reach back that far (limits.keep_events), or the id is not ours');
  const policies = desk.settings().tenants.get(tenant)?.policies ?? [];
  const decision = ({ event, recipient, person: who, at, rule, evidence = '', policy = '' }: Omit<Decision, 'version' | 'receipt'>): Decision => ({
    ...(recipient !== undefined && { recipient }), ...(who !== undefined && { person: who }), event, ...(at !== undefined && { at }), ...(rule !== undefined && { rule }),
    ...(evidence !== '' && { evidence }),
    ...(policy !== '' && { policy, version: policies.find(({ hash }) => hash === policy)?.version ?? 'not configured any more' }),
    ...(/^\d+$/.test(evidence) && { receipt: `postern ledger receipt --tenant ${tenant} --leaf ${evidence}` }),
  });
  const waiting = (desk.spool.show(id)?.recipients ?? []).filter(({ index }) => !last.has(index))
    .map(({ index, hashes, evidence }) => decision({ recipient: index, person: pseudonymOf(hashes), event: 'waiting', evidence }));
  const rows = [...[...last.values()].map(decision), ...waiting].sort((a, b) => (a.recipient ?? 0) - (b.recipient ?? 0));
  return {
    message_id: id, tenant, ...(accepted?.stream !== undefined && { stream: accepted.stream }), ...(accepted !== undefined && { accepted_at: accepted.at }),
    recipients: [...rows, ...refused.map(decision)],
  };
}

/** How far a person may be tracked, for comparing. */
export function trackingOf({ tracking = NO_TRACKING }: Pick<Judged, 'tracking'>): string {
  return `opens ${tracking.opens}, clicks ${tracking.clicks}`;
}
