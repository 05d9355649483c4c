// The preference page, /p/TOKEN: what a person gets, what may be measured, a pause, coming back, being
// forgotten. The token, which came by mail, is the authority; there are no cookies and no sessions. Callers
// may rely on: GET and HEAD change nothing; a POST names what it changes, may be repeated, and is answered
// only when it is durable; each change is an event here and a leaf of the log. GDPR Art. 7(3), 17, 21.
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { newEvent, type EventKind } from '../events/index.ts';
import { CLICK_MODES, NO_TRACKING, OPEN_MODES, isMailError, type BasisFact, type Tracking } from '../mail/index.ts';
import type { ConsentRecord } from '../ledger/index.ts';
import type { Policy } from '../settings/index.ts';
import { fieldOf, readForm } from './form.ts';
import { deskOf, nameOfPurpose, render, show, showBroken, showTrouble, type Desk, type Sheet } from './layout.ts';
import { erasePage, erasedPage, preferencePage, unmeasurePage } from './preference-page.ts';
import { standingOf, type PurposeLine, type Standing } from './person.ts';
import { dayIn } from './texts.ts';
import { personOf, touchOf, withdraw, type PagesOptions, type Touch } from './touch.ts';

const DAY_MS = 86_400_000;
const PAUSES: Readonly<Record<string, number>> = { '30': 30 * DAY_MS, '90': 90 * DAY_MS };

/** What a POST is carried out with. */
interface Act {
  readonly options: PagesOptions;
  readonly desk: Desk;
  readonly touch: Touch;
  readonly standing: Standing;
  readonly form: FormData;
  /** SHA-256 of the page the person had before them, hex. */
  readonly formHash: string;
  /** The page's address without its token. */
  readonly source: string;
}

/** Answers GET, HEAD and POST of /p/TOKEN. */
export async function answerPreferences(options: PagesOptions, token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const touch = touchOf(options, 'preferences', token, request.headers.host);
  const tenant = touch === undefined ? undefined : options.settings().tenants.get(touch.tenant);
  const count = (result: string): void => options.metrics.hits.inc({ page: 'preferences', result });
  const form = request.method === 'POST' ? await readForm(request) : undefined;
  if (touch === undefined || tenant === undefined) {
    count('invalid');
    return showBroken(request, response);
  }
  const desk = deskOf(request, tenant);
  const step = new URLSearchParams((request.url ?? '').split('?', 2)[1]).get('step');
  const sheetOf = (standing: Standing, said: string | undefined): Sheet => {
    if (standing.erased) return erasedPage(desk);
    return (step === 'tracking' ? unmeasurePage(desk, standing, touch.claim.purpose, said) : undefined) ?? preferencePage(desk, standing, said);
  };
  try {
    const standing = await standingOf(options, tenant, touch);
    if (form === undefined) {
      count('shown');
      const sheet = step === 'erase' && !standing.erased ? erasePage(desk, standing, options.clock.now()) : sheetOf(standing, undefined);
      return show(request, response, 200, desk, sheet);
    }
    const formHash = createHash('sha256').update(render(desk, preferencePage(desk, standing, undefined))).digest('hex');
    const source = `${tenant.domains[0]?.pages ?? ''}/p/`;
    const said = typeof form === 'string' || standing.erased ? undefined : await carryOut({ options, desk, touch, standing, form, formHash, source });
    count(said === undefined ? 'invalid' : 'done');
    const after = await standingOf(options, tenant, touch);
    return show(request, response, said === undefined && !after.erased ? 400 : 200, desk, sheetOf(after, said));
  } catch (error) {
    if (!isMailError(error)) throw error;
    count('failed');
    options.log.error({ error: String(error), tenant: tenant.id }, 'a preference page could not be answered');
    return showTrouble(request, response, desk);
  }
}

/** What was done, in words; undefined when the form asks for nothing this page can do. */
async function carryOut(act: Act): Promise<string | undefined> {
  const { form, standing, desk } = act;
  const line = standing.lines.find(({ purpose }) => purpose === fieldOf(form, 'purpose'));
  const blanks = { purpose: nameOfPurpose(line?.purpose ?? '') };
  switch (fieldOf(form, 'change')) {
    case 'stop':
      if (line === undefined || line.state === 'needed') return undefined;
      await stop(act, line.purpose);
      return desk.say('said_stop', blanks);
    case 'stop-all':
      for (const { purpose, state } of standing.lines) if (state !== 'needed' && state !== 'off') await stop(act, purpose);
      return desk.say('said_stop_all');
    case 'start':
      return line !== undefined && (await start(act, line)) ? desk.say('said_start', blanks) : undefined;
    case 'tracking':
      return line !== undefined && (await track(act, line)) ? desk.say('said_tracking', blanks) : undefined;
    case 'pause':
      return pause(act, PAUSES[fieldOf(form, 'days')]);
    case 'resume':
      await act.options.ledger.lift(act.touch.tenant, act.touch.claim.hashes, 'recipient', { cause: 'pause' });
      tell(act, 'suppression', 'pause lifted');
      return desk.say('said_resume');
    case 'erase':
      return fieldOf(form, 'sure') === 'yes' ? erase(act) : undefined;
    default:
      return undefined;
  }
}

async function stop(act: Act, purpose: string): Promise<void> {
  await withdraw(act.options, { tenant: act.touch.tenant, claim: { ...act.touch.claim, purpose } });
  tell(act, 'unsubscribed', purpose);
}

/** Coming back: a new consent under the policy in force, with nothing measured until that is chosen too. */
async function start(act: Act, line: PurposeLine): Promise<boolean> {
  const { policy } = act.standing;
  if (line.state === 'on' || line.state === 'paused') return true; // said twice
  if (policy === undefined || (line.state !== 'off' && line.state !== 'pending')) return false;
  await give(act, line, policy, NO_TRACKING, undefined);
  return true;
}

/** The choice of what may be measured, never more than the policy they agreed to and today's allow. */
async function track(act: Act, line: PurposeLine): Promise<boolean> {
  const { standing: { tenant, policy }, form } = act;
  const { consent } = line;
  if (policy === undefined || consent?.state !== 'given' || (line.state !== 'on' && line.state !== 'paused')) return false;
  const opens = OPEN_MODES.find((mode) => mode === fieldOf(form, 'opens')) ?? 'none';
  const clicks = CLICK_MODES.find((mode) => mode === fieldOf(form, 'clicks')) ?? 'none';
  if (OPEN_MODES.indexOf(opens) > OPEN_MODES.indexOf(policy.tracking.opens) || CLICK_MODES.indexOf(clicks) > CLICK_MODES.indexOf(policy.tracking.clicks)) return false;
  if (consent.tracking.opens === opens && consent.tracking.clicks === clicks) return true;
  // Less is a choice within what was agreed. More is agreed to now, on a page that shows today's policy.
  const collected = tenant.policies.find(({ hash }) => hash === consent.policyHash) ?? policy;
  const isMore = OPEN_MODES.indexOf(opens) > OPEN_MODES.indexOf(consent.tracking.opens) || CLICK_MODES.indexOf(clicks) > CLICK_MODES.indexOf(consent.tracking.clicks);
  await give(act, line, isMore ? policy : collected, { opens, clicks }, consent);
  return true;
}

async function give(act: Act, { purpose, consent }: PurposeLine, policy: Policy, tracking: Tracking, kept: ConsentRecord | undefined): Promise<void> {
  const { options: { ledger, clock }, touch } = act;
  // The link came by mail to this address and was opened: that is what a double opt-in shows. The choice of
  // what is measured is a form of its own.
  const facts = new Set<BasisFact>([...consent?.facts ?? [], 'double-opt-in', 'tracking-consent-apart']);
  const given = await ledger.give(touch.tenant, {
    hashes: touch.claim.hashes, purpose, state: 'given', legalBasis: kept?.legalBasis ?? 'gdpr_6_1_a', policyHash: policy.hash, method: 'preference-page',
    evidence: { source: act.source, time: clock.now(), formHash: act.formHash }, tracking, facts: [...facts], by: 'recipient',
    ...(consent?.jurisdiction !== undefined && { jurisdiction: consent.jurisdiction }),
    ...(kept?.expiresAt !== undefined && { expiresAt: kept.expiresAt }),
  });
  tell(act, 'consent', kept === undefined ? 'given' : 'tracking changed', given.record.id);
}

async function pause(act: Act, ms: number | undefined): Promise<string | undefined> {
  const { options: { ledger, clock }, touch, desk, standing } = act;
  if (ms === undefined) return undefined;
  const until = clock.now() + ms;
  // Of two pauses the later end would stay: the person's last word is the one that counts.
  await ledger.lift(touch.tenant, touch.claim.hashes, 'recipient', { cause: 'pause' });
  // What belongs to an order goes on: a receipt that does not come helps nobody.
  for (const { purpose, state } of standing.lines) {
    if (state !== 'needed') await ledger.suppress(touch.tenant, { hashes: touch.claim.hashes, scope: `purpose:${purpose}`, cause: 'pause', until, by: 'recipient' });
  }
  tell(act, 'suppression', 'pause');
  return desk.say('said_pause', { date: dayIn(desk.language, until) });
}

async function erase({ options, touch, standing, desk }: Act): Promise<string> {
  const records = await options.ledger.erase(touch.tenant, touch.claim.hashes, 'recipient', standing.tenant.keepEvidenceMs ?? 0);
  // Who was forgotten is not written into the journal.
  options.record(newEvent('erased', options.clock, { tenant: touch.tenant, by: 'recipient', reason: `${records} records` }));
  return desk.say('erased_title');
}

function tell({ options, touch }: Act, kind: EventKind, reason: string, evidence?: string): void {
  const { claim, tenant } = touch;
  options.record(newEvent(kind, options.clock, {
    tenant, stream: claim.stream, message_id: claim.message, recipient: claim.recipient, person: personOf(touch), reason, by: 'recipient', ...(evidence !== undefined && { evidence }),
  }));
}
