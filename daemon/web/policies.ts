// Privacy policies in public: each version under its hash, for ever the same octets; a page that lists a
// host's versions; and a feed of them, so that a change can be noticed by whoever wants to. Callers may rely
// on: a program that asks for a version gets its text alone, a browser gets it on a page. RFC 4287, RFC 9110 §12.5.1.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { policyInForce } from '../gate/index.ts';
import type { Policy, Tenant } from '../settings/index.ts';
import { html, type Html } from './html.ts';
import { deskOf, show, type Desk } from './layout.ts';
import { dayIn } from './texts.ts';
import { hostsOf, type PagesOptions } from './touch.ts';

/** Answers GET and HEAD under /policy/. False where there is no such thing. */
export function answerPolicies(options: PagesOptions, name: string, request: IncomingMessage, response: ServerResponse): boolean {
  if (name === '' || name === 'feed.atom') return list(options, name, request, response);
  for (const tenant of options.settings().tenants.values()) {
    const policy = tenant.policies.find(({ hash }) => hash === name);
    if (policy === undefined) continue;
    if (!(request.headers.accept ?? '').includes('text/html')) {
      send(request, response, 'text/plain; charset=utf-8', policy.text);
      return true;
    }
    const desk = deskOf(request, tenant);
    show(request, response, 200, desk, { title: `${desk.say('policy')}, ${desk.say('version', { version: policy.version })}`, feed: '/policy/feed.atom', body: html`<p>${when(options, desk, tenant, policy)}</p>
<div class="card text">${policy.text.trim()}</div>
<p class="note">${desk.say('fingerprint')} (SHA-256): <code>${policy.hash}</code></p>
<p><a href="/policy/?lang=${desk.language}">${desk.say('policies_title')}</a></p>` });
    return true;
  }
  return false;
}

/** The versions of the tenants whose pages stand under the host that was asked. */
function list(options: PagesOptions, name: string, request: IncomingMessage, response: ServerResponse): boolean {
  const settings = options.settings();
  const host = (request.headers.host ?? '').toLowerCase();
  const tenants = [...hostsOf(settings).get(host) ?? []].flatMap((id) => settings.tenants.get(id) ?? []);
  const [first] = tenants;
  if (first === undefined) return false;
  if (name === 'feed.atom') {
    send(request, response, 'application/atom+xml; charset=utf-8', feedOf(tenants));
    return true;
  }
  const desk = deskOf(request, first);
  const cards = tenants.flatMap((tenant) => tenant.policies.toReversed().map((policy): Html => html`<section class="card"><h2><a href="/policy/${policy.hash}?lang=${desk.language}">${desk.say('version', { version: policy.version })}</a></h2>
<p>${when(options, desk, tenant, policy)}</p></section>
`));
  show(request, response, 200, desk, { title: desk.say('policies_title'), feed: '/policy/feed.atom', body: html`<p>${desk.say('policies')}</p>
${cards}<p><a href="/policy/feed.atom">${desk.say('feed')}</a></p>` });
  return true;
}

function when({ clock, ledger }: PagesOptions, desk: Desk, tenant: Tenant, policy: Policy): string {
  const now = clock.now();
  const current = policyInForce(tenant, now, ledger.unpublished(tenant.id));
  const key = policy === current ? 'version_now' : policy.effectiveAt > now ? 'version_next' : 'version_then';
  return desk.say(key, { date: dayIn(desk.language, policy.effectiveAt) });
}

/** RFC 4287 §4.1.1: the newest first; an entry is named by its hash and never changes. */
function feedOf(tenants: readonly Tenant[]): string {
  const base = tenants[0]?.domains[0]?.pages ?? '';
  const at = (ms: number): string => new Date(ms).toISOString();
  const policies = tenants.flatMap(({ contact, policies: all }) => all.map((policy) => ({ contact, policy }))).sort((a, b) => b.policy.effectiveAt - a.policy.effectiveAt);
  const entries = policies.map(({ contact, policy }) => html`<entry>
<id>urn:sha256:${policy.hash}</id>
<title>${contact.name}: ${policy.version}</title>
<updated>${at(policy.effectiveAt)}</updated>
<author><name>${contact.name}</name></author>
<link href="${base}/policy/${policy.hash}"/>
<summary>${policy.purposes.join(', ')}</summary>
</entry>
`);
  return html`<?xml version="1.0" encoding="utf-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
<id>${base}/policy/</id>
<title>${tenants.map(({ contact }) => contact.name).join(', ')}</title>
<updated>${at(policies[0]?.policy.effectiveAt ?? 0)}</updated>
<link rel="self" href="${base}/policy/feed.atom"/>
${entries}</feed>
`.toString();
}

function send(request: IncomingMessage, response: ServerResponse, type: string, text: string): void {
  response.writeHead(200, {
    'Content-Type': type, 'Content-Length': Buffer.byteLength(text), 'Cache-Control': 'no-store', Vary: 'Accept',
    'Referrer-Policy': 'no-referrer', 'X-Content-Type-Options': 'nosniff', 'Content-Security-Policy': "default-src 'none'",
  });
  response.end(request.method === 'HEAD' ? undefined : text);
}
