// Unsubscribing: the mailbox provider's one-click POST and a person's page with one button. GET never
// changes anything. A POST is answered 200 only when withdrawal and suppression are durable; when the
// ledger fails it is a 503 to be repeated. A one-click POST is answered alike for a valid, repeated,
// foreign or forged token: 200, empty. A person with a broken link is told so, for otherwise they would
// believe to be unsubscribed when they are not. RFC 8058.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { openSealer } from '../compose/index.ts';
import { newEvent } from '../events/index.ts';
import { fieldOf, readForm } from './form.ts';
import { html, type Html } from './html.ts';
import { deskOf, nameOfPurpose, show, showBroken, showTrouble, type Desk } from './layout.ts';
import { personOf, touchOf, withdraw, type PagesOptions, type Touch } from './touch.ts';

/** Answers GET, HEAD and POST of /u/TOKEN. */
export async function answerUnsubscribe(options: PagesOptions, token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const touch = touchOf(options, 'unsubscribe', token, request.headers.host);
  const desk = deskOf(request, touch === undefined ? undefined : options.settings().tenants.get(touch.tenant));
  const count = (result: string): void => options.metrics.hits.inc({ page: 'unsubscribe', result });
  const refuse = (status: number): void => {
    count('invalid');
    response.writeHead(status, { 'Content-Length': 0, Connection: 'close' }).end();
  };
  if (request.method !== 'POST') {
    count(touch === undefined ? 'invalid' : 'shown');
    if (touch === undefined) return showBroken(request, response);
    return show(request, response, 200, desk, { title: desk.say('ask_title'), body: askBody(options, desk, touch) });
  }
  const form = await readForm(request);
  if (form === 'too-long') return refuse(413);
  const asked = form === 'malformed' ? 'nothing' : whatIsAsked(form);
  if (asked === 'nothing') return refuse(400);
  if (touch !== undefined && !(await carryOut(options, touch))) {
    count('failed');
    if (asked === 'page') return showTrouble(request, response, desk);
    response.writeHead(503, { 'Content-Length': 0, 'Retry-After': 60 }).end();
    return undefined;
  }
  count(touch === undefined ? 'invalid' : 'done');
  if (asked === 'page') {
    if (touch === undefined) return showBroken(request, response);
    return show(request, response, 200, desk, { title: desk.say('done_title'), body: doneBody(options, desk, touch) });
  }
  // RFC 8058 §3.1 MUST
  response.writeHead(200, { 'Cache-Control': 'no-store', 'Content-Length': 0 }).end();
  return undefined;
}

async function carryOut(options: PagesOptions, touch: Touch): Promise<boolean> {
  try {
    await withdraw(options, touch);
  } catch (error) {
    options.log.error({ error: String(error), tenant: touch.tenant }, 'an unsubscription could not be stored; the provider will repeat it');
    return false;
  }
  const { claim, tenant } = touch;
  options.record(newEvent('unsubscribed', options.clock, {
    tenant, stream: claim.stream, message_id: claim.message, recipient: claim.recipient,
    person: personOf(touch), by: 'recipient',
  }));
  return true;
}

/** `one-click` for a provider's POST, `page` for our own form's. RFC 8058 §3.2 */
function whatIsAsked(form: FormData): 'one-click' | 'page' | 'nothing' {
  if (fieldOf(form, 'confirm') === 'yes') return 'page';
  return fieldOf(form, 'List-Unsubscribe') === 'One-Click' ? 'one-click' : 'nothing';
}

function askBody(options: PagesOptions, desk: Desk, touch: Touch): Html {
  return html`<p>${desk.say('ask', { purpose: nameOfPurpose(touch.claim.purpose) })}</p>
<form method="post"><input type="hidden" name="confirm" value="yes"><div class="row"><button class="main" type="submit">${desk.say('ask_button')}</button></div></form>
${more(options, desk, touch, 'ask_more')}`;
}

function doneBody(options: PagesOptions, desk: Desk, touch: Touch): Html {
  return html`<p role="status">${desk.say('done', { purpose: nameOfPurpose(touch.claim.purpose) })}</p>
${more(options, desk, touch, 'done_more')}`;
}

/** The way to the preference page: who may unsubscribe a person may see what they get. A tenant that has left has none. */
function more({ keyring }: PagesOptions, desk: Desk, { tenant, claim }: Touch, text: 'ask_more' | 'done_more'): Html {
  if (desk.tenant === undefined) return html``;
  return html`<p><a href="/p/${openSealer(keyring.tenant(tenant), claim).preferences()}?lang=${desk.language}">${desk.say(text)}</a></p>`;
}
