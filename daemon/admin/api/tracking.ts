// What tracking a tenant may read, and for what: each request says its purpose. Callers may rely on: a
// purpose that the policy in force does not name, or that the policy a person consented under did not, gets
// nothing (403) and leaves a leaf in the log; only the tenant whose mail it was reads anything, and the
// operator has no way to it (GDPR Art. 5(1)(b), 25). What is restricted (Art. 18) is not shown.
import { z } from 'zod';
import { isTracking, type JournalledEvent } from '../../events/index.ts';
import { policyInForce } from '../../gate/index.ts';
import { OPENERS, type OpenCount } from '../../ledger/index.ts';
import type { AddressHashes } from '../../mail/index.ts';
import { isId, unseal } from '../../runtime/index.ts';
import type { Tenant } from '../../settings/index.ts';
import { LINK_BOUND } from '../../web/index.ts';
import { Problem } from './problem.ts';
import { route, type ApiDesk, type Call, type Route } from './route.ts';
import { ITEMS, at, iso, person } from './shapes.ts';

const DAY_MS = 86_400_000;
const dayText = (day: number): string => iso(day * DAY_MS).slice(0, 10);

const date = z.iso.date();
// As purposes of a policy are written; nothing else is repeated into the log.
const purpose = z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/).meta({ description: 'What you read it for: one of the purposes of your policy.' });
const messageId = z.string().refine(isId, 'not a message id');

/** Whether the policies allow to read for this purpose; a no is noted. */
async function refusal({ ledger, clock }: ApiDesk, { tenant, by }: Pick<Call, 'tenant' | 'by'>, reading: string, collected?: ReadonlySet<string>): Promise<Problem | undefined> {
  const current = policyInForce(tenant, clock.now(), ledger.unpublished(tenant.id));
  if (current?.purposes.includes(reading) === true && [...collected ?? []].every((hash) => allows(tenant, hash, reading))) return undefined;
  await ledger.note(tenant.id, 'tracking-refused', by, { purpose: reading });
  return new Problem('purpose');
}

function allows(tenant: Tenant, policyHash: string, reading: string): boolean {
  return tenant.policies.find(({ hash }) => hash === policyHash)?.purposes.includes(reading) === true;
}

const shownCount = z.strictObject({
  stream: z.string(), message_id: z.string().optional().meta({ description: 'Absent: messages that one person got each, counted together.' }), date,
  opens: z.int(), proxies: z.int().meta({ description: 'Fetched by an image proxy in somebody\'s place.' }), machines: z.int().meta({ description: 'Prefetchers, scanners, previews.' }),
});

const opens = route({
  method: 'GET', url: '/v1/tracking/opens', scope: 'tracking:read',
  summary: 'Aggregate opens by message and day (UTC), page by page; of nobody in particular.',
  query: z.strictObject({ purpose, message_id: messageId.optional(), after: z.string().regex(/^[\w/.-]{1,200}$/).optional().meta({ description: '`next` of the page before.' }) }),
  answer: z.strictObject({ opens: z.array(shownCount), next: z.string().optional().meta({ description: 'Absent on the last page.' }) }),
  async run(desk, call) {
    const { query: { purpose: reading, message_id: message, after = '' }, tenant } = call;
    const refused = await refusal(desk, call, reading);
    if (refused !== undefined) return refused;
    const found: z.input<typeof shownCount>[] = [];
    let last = '';
    for await (const count of desk.ledger.tracking.counts(tenant.id, message)) {
      const place = placeOf(count);
      if (place <= after) continue;
      if (found.length === ITEMS) return { opens: found, next: last };
      found.push(showCount(count));
      last = place;
    }
    return { opens: found };
  },
});

const placeOf = ({ message, day, stream }: OpenCount): string => `${message}/${String(day).padStart(5, '0')}/${stream}`;

function showCount({ stream, message, day, opens: by }: OpenCount): z.input<typeof shownCount> {
  const [people, proxies, machines] = OPENERS.map((opener) => by[opener]);
  return { stream, ...(message !== '' && { message_id: message }), date: dayText(day), opens: people ?? 0, proxies: proxies ?? 0, machines: machines ?? 0 };
}

export const shownLastOpen = z.strictObject({ purpose: z.string().meta({ description: 'Of the mail that was opened.' }), date });

/** The last opens of a person, with their dates. */
export async function lastOpensOf({ ledger }: Pick<ApiDesk, 'ledger'>, tenant: Tenant, hashes: AddressHashes): Promise<z.input<typeof shownLastOpen>[]> {
  return (await ledger.tracking.lastOpens(tenant.id, hashes)).map(({ purpose: of, day }) => ({ purpose: of, date: dayText(day) }));
}

const lastOpen = route({
  method: 'POST', url: '/v1/tracking/last-open', scope: 'tracking:read',
  summary: 'The date somebody last opened your mail, by purpose of the mail, where they allow one to be kept.',
  body: person.extend({ purpose }),
  answer: z.strictObject({ last_opens: z.array(shownLastOpen) }),
  async run(desk, call) {
    const { tenant, body } = call;
    const hashes = desk.ledger.hashes(tenant.id, body.address);
    const found = await lastOpensOf(desk, tenant, hashes);
    const collected = new Set<string>();
    let restricted = false;
    for (const { purpose: mailed } of found) {
      const { consent, suppressions } = await desk.ledger.facts(tenant.id, mailed, '', hashes);
      if (consent !== undefined) collected.add(consent.policyHash);
      restricted ||= suppressions.some(({ cause }) => cause === 'restriction');
    }
    return await refusal(desk, call, body.purpose, collected) ?? { last_opens: restricted ? [] : found };
  },
});

export const shownTracking = z.strictObject({
  at, event: z.enum(['opened', 'clicked']), message_id: z.string(), recipient: z.int(), person: z.string().meta({ description: 'Keyed pseudonym.' }),
  machine: z.string().optional().meta({ description: 'What kind of machine it was; absent for a person.' }),
  link: z.string().optional().meta({ description: 'Where a click led.' }),
});

/** One event of a person's, its sealed part opened. */
export function showTracking({ keyring }: Pick<ApiDesk, 'keyring'>, tenant: Tenant, event: JournalledEvent): z.input<typeof shownTracking> {
  const link = event.sealed === undefined ? undefined : unseal(keyring.tenant(tenant.id).payload, Buffer.from(event.sealed, 'base64'), LINK_BOUND)?.toString('utf8');
  return {
    at: iso(event.at), event: event.event === 'clicked' ? 'clicked' : 'opened', message_id: event.message_id ?? '', recipient: event.recipient ?? 0, person: event.person ?? '',
    ...(event.class !== undefined && event.class !== 'person' && { machine: event.class }), ...(link !== undefined && { link }),
  };
}

const events = route({
  method: 'GET', url: '/v1/tracking/events', scope: 'tracking:read',
  summary: 'Opens and clicks of one message, person by person, of those who allowed it.',
  query: z.strictObject({ purpose, message_id: messageId }),
  answer: z.strictObject({ events: z.array(shownTracking), withheld: z.int().meta({ description: 'Events of people whose own policy version does not allow this purpose.' }) }),
  async run(desk, call) {
    const { tenant, query: { purpose: reading, message_id: message } } = call;
    const refused = await refusal(desk, call, reading);
    if (refused !== undefined) return refused;
    // Under which policy each recipient's copy was sent: that of their consent.
    const policies = new Map<number, string>();
    const found: JournalledEvent[] = [];
    let known = false;
    for await (const event of desk.journal.trace(message)) {
      if (event.tenant !== tenant.id) continue;
      known = true;
      if (event.policy !== undefined && event.recipient !== undefined) policies.set(event.recipient, event.policy);
      if (isTracking(event)) found.push(event);
    }
    if (!known) return new Problem('not-found');
    const allowed = found.filter(({ recipient = -1 }) => allows(tenant, policies.get(recipient) ?? '', reading));
    if (allowed.length < found.length) await desk.ledger.note(tenant.id, 'tracking-refused', call.by, { purpose: reading });
    return { events: allowed.map((event) => showTracking(desk, tenant, event)), withheld: found.length - allowed.length };
  },
});

export const TRACKING_ROUTES: readonly Route[] = [opens, lastOpen, events];
