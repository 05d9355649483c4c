// Unsubscribing: the mailbox provider's one-click POST and a person's page with one button. GET never
// changes anything. A POST is answered 200 only when withdrawal and suppression are durable; when the
// ledger fails it is a 503 to be repeated. A one-click POST is answered alike for a valid, repeated,
// foreign or forged token: 200, empty. A person with a broken link is told so, for otherwise they would
// believe to be unsubscribed when they are not. RFC 8058.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { newEvent } from '../events/index.ts';
import { PAGE_POLICY, html, page } from './html.ts';
import { personOf, touchOf, withdraw, type PagesOptions, type Touch } from './touch.ts';

// The body has one field of 26 octets; multipart with its boundaries stays below 500.
const BODY_OCTETS = 4_096;

export const PAGE_HEADERS = {
  'Content-Type': 'text/html; charset=utf-8',
  'Content-Security-Policy': PAGE_POLICY,
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-store',
  'X-Content-Type-Options': 'nosniff',
} as const;

/** Answers GET, HEAD and POST of /u/TOKEN. */
export async function answerUnsubscribe(options: PagesOptions, token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const touch = touchOf(options, 'unsubscribe', token, request.headers.host);
  const count = (result: string): void => options.metrics.hits.inc({ page: 'unsubscribe', result });
  if (request.method !== 'POST') {
    count(touch === undefined ? 'invalid' : 'shown');
    if (touch === undefined) show(request, response, 404, brokenPage());
    else show(request, response, 200, askPage(options, touch));
    return;
  }
  const body = await readBody(request);
  if (body === undefined) {
    count('invalid');
    response.writeHead(413, { 'Content-Length': 0, Connection: 'close' }).end();
    return;
  }
  const asked = await whatIsAsked(body, request.headers['content-type'] ?? '');
  if (asked === 'nothing') {
    count('invalid');
    response.writeHead(400, { 'Content-Length': 0 }).end();
    return;
  }
  if (touch !== undefined && !(await carryOut(options, touch))) {
    count('failed');
    response.writeHead(503, { 'Content-Length': 0, 'Retry-After': 60 }).end();
    return;
  }
  count(touch === undefined ? 'invalid' : 'done');
  if (asked === 'page') {
    if (touch === undefined) show(request, response, 404, brokenPage());
    else show(request, response, 200, donePage(options, touch));
  } else {
    // RFC 8058 §3.1 MUST
    response.writeHead(200, { 'Cache-Control': 'no-store', 'Content-Length': 0 }).end();
  }
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

/** The whole body, or undefined when it is longer than allowed or does not arrive whole. */
async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
  const parts: Buffer[] = [];
  let octets = 0;
  try {
    for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      octets += part.length;
      if (octets > BODY_OCTETS) return undefined;
      parts.push(part);
    }
  } catch {
    return undefined; // the client went away
  }
  return Buffer.concat(parts);
}

/** `one-click` for a provider's POST, `page` for our own form's. RFC 8058 §3.2 */
async function whatIsAsked(body: Buffer, type: string): Promise<'one-click' | 'page' | 'nothing'> {
  let form: FormData;
  try {
    form = await new Response(new Uint8Array(body), { headers: { 'Content-Type': type } }).formData();
  } catch {
    return 'nothing'; // neither multipart/form-data nor urlencoded, or not well formed
  }
  if (form.get('confirm') === 'yes') return 'page';
  return String(form.get('List-Unsubscribe')).trim() === 'One-Click' ? 'one-click' : 'nothing';
}

function show(request: IncomingMessage, response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { ...PAGE_HEADERS, 'Content-Length': Buffer.byteLength(text) });
  response.end(request.method === 'HEAD' ? undefined : text);
}

function sender(options: PagesOptions, touch: Touch): { readonly name: string; readonly footer: ReturnType<typeof html> } {
  const contact = options.settings().tenants.get(touch.tenant)?.contact;
  // A tenant that has left: its mail is still in people's mailboxes, and the link still works.
  if (contact === undefined) return { name: 'the sender', footer: html`` };
  return { name: contact.name, footer: html`<p>${contact.name}, ${contact.postal}<br><a href="mailto:${contact.email}">${contact.email}</a></p>` };
}

function askPage(options: PagesOptions, touch: Touch): string {
  const { name, footer } = sender(options, touch);
  return page(`Unsubscribe from ${name}`, html`<p>You will no longer get mail of the kind “${touch.claim.purpose}” from ${name}. This takes effect at once.</p>
<form method="post"><input type="hidden" name="confirm" value="yes"><button type="submit">Unsubscribe</button></form>`, footer);
}

function donePage(options: PagesOptions, touch: Touch): string {
  const { name, footer } = sender(options, touch);
  return page('You are unsubscribed', html`<p role="status">${name} will send you no more mail of the kind “${touch.claim.purpose}”. A message already on its way may still arrive.</p>`, footer);
}

function brokenPage(): string {
  return page('This link does not work', html`<p role="alert">The link is incomplete. Nothing was changed. Please use the link in the message again, or the unsubscribe button of your mail program.</p>`);
}
