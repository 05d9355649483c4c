// Double opt-in, /confirm/TOKEN: the page shows who asks for what, with one button. Callers may rely on: GET
// and HEAD change nothing; only a consent that still waits (pending, not expired) becomes given, so that an old letter never
// brings back what was withdrawn since; the record says when it was asked for and when confirmed.
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { newEvent } from '../events/index.ts';
import type { ConsentRecord } from '../ledger/index.ts';
import { isMailError } from '../mail/index.ts';
import type { Tenant } from '../settings/index.ts';
import { fieldOf, readForm } from './form.ts';
import { html } from './html.ts';
import { deskOf, nameOfPurpose, render, show, showBroken, showTrouble, type Desk, type Sheet } from './layout.ts';
import { personOf, touchOf, type PagesOptions, type Touch } from './touch.ts';

/** Answers GET, HEAD and POST of /confirm/TOKEN. */
export async function answerConfirm(options: PagesOptions, token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const touch = touchOf(options, 'confirm', token, request.headers.host);
  const tenant = touch === undefined ? undefined : options.settings().tenants.get(touch.tenant);
  const count = (result: string): void => options.metrics.hits.inc({ page: 'confirm', result });
  const form = request.method === 'POST' ? await readForm(request) : undefined;
  const desk = deskOf(request, tenant);
  try {
    const consent = touch === undefined ? undefined : (await options.ledger.facts(touch.tenant, touch.claim.purpose, touch.claim.stream, touch.claim.hashes)).consent;
    const isDone = consent?.state === 'given';
    if (touch === undefined || tenant === undefined || consent === undefined || !(isDone || isWaiting(consent, options.clock.now()))) {
      count('invalid');
      return showBroken(request, response);
    }
    const purpose = nameOfPurpose(touch.claim.purpose);
    if (form === undefined) {
      count('shown');
      return show(request, response, 200, desk, isDone ? donePage(desk, purpose) : askPage(desk, purpose, tenant, consent));
    }
    if (typeof form === 'string' || fieldOf(form, 'confirm') !== 'yes') {
      count('invalid');
      return show(request, response, 400, desk, isDone ? donePage(desk, purpose) : askPage(desk, purpose, tenant, consent));
    }
    if (!isDone) await confirm(options, touch, tenant, consent, render(desk, askPage(desk, purpose, tenant, consent)));
    count('done');
    return show(request, response, 200, desk, donePage(desk, purpose));
  } catch (error) {
    if (!isMailError(error)) throw error;
    count('failed');
    options.log.error({ error: String(error) }, 'a confirmation could not be stored');
    return showTrouble(request, response, desk);
  }
}

const isWaiting = ({ state, expiresAt }: ConsentRecord, now: number): boolean => state === 'pending' && (expiresAt === undefined || expiresAt > now);

async function confirm({ ledger, clock, record }: PagesOptions, touch: Touch, tenant: Tenant, pending: ConsentRecord, shown: string): Promise<void> {
  const now = clock.now();
  const { claim } = touch;
  const { legalBasis, policyHash, tracking, givenAt, jurisdiction, facts } = pending;
  const given = await ledger.give(touch.tenant, {
    hashes: claim.hashes, purpose: claim.purpose, state: 'given', legalBasis, policyHash, tracking, method: 'double-opt-in', by: 'recipient',
    evidence: {
      source: `${tenant.domains[0]?.pages ?? ''}/confirm/`, time: now, formHash: createHash('sha256').update(shown).digest('hex'),
      doubleOptIn: { requestedAt: givenAt, confirmedAt: now },
    },
    ...(facts !== undefined && { facts }), ...(jurisdiction !== undefined && { jurisdiction }),
  });
  record(newEvent('consent', clock, { tenant: touch.tenant, stream: claim.stream, person: personOf(touch), reason: 'confirmed', by: 'recipient', evidence: given.record.id }));
}

function askPage(desk: Desk, purpose: string, tenant: Tenant, { policyHash }: ConsentRecord): Sheet {
  const policy = tenant.policies.find(({ hash }) => hash === policyHash);
  return {
    title: desk.say('confirm_title', { purpose }),
    body: html`<p>${desk.say('confirm', { purpose })}</p>
<form method="post" action="?lang=${desk.language}"><input type="hidden" name="confirm" value="yes"><div class="row"><button class="main" type="submit">${desk.say('confirm_button')}</button></div></form>
<p>${desk.say('confirm_ignore')}</p>
${policy === undefined ? '' : html`<p class="note"><a href="/policy/${policy.hash}">${desk.say('policy')}, ${desk.say('version', { version: policy.version })}</a></p>`}`,
  };
}

function donePage(desk: Desk, purpose: string): Sheet {
  return { title: desk.say('confirmed_title'), body: html`<p role="status">${desk.say('confirmed', { purpose })}</p>` };
}
