// Suppressions: record, lift, list, look up. Callers may rely on: each item is answered for itself, in its
// place; and what a person said or did (an unsubscribe, an objection, a complaint, an erasure) is not the
// tenant's to lift: it ends by a new consent of that person or by the operator's hand.
import { z } from 'zod';
import type { ListedSuppression, Suppression, SuppressionEntry } from '../../ledger/index.ts';
import type { AddressHashes } from '../../mail/index.ts';
import type { Tenant } from '../../settings/index.ts';
import { hashesOf } from './consents.ts';
import { inSlices, record, route, type ApiDesk, type Route } from './route.ts';
import { ITEMS, addressText, person, scope, showSuppression, shownSuppression, time } from './shapes.ts';

const suppression = z.strictObject({
  address: addressText,
  // Erasure and restriction have their routes under /v1/subjects, which do more than suppress.
  cause: z.enum(['manual', 'unsubscribe', 'objection', 'complaint', 'hard-bounce']).default('manual'),
  scope: scope.default('all'),
  until: time.optional().meta({ description: 'Left out: for ever.' }),
});

const add = route({
  method: 'POST', url: '/v1/suppressions', scope: 'suppressions:write', changes: true,
  summary: 'Records suppressions. Mail that waits for these people is not sent.',
  body: z.strictObject({ suppressions: z.array(suppression).min(1).max(ITEMS) }),
  answer: z.strictObject({ results: z.array(z.strictObject({ result: z.enum(['recorded', 'refused']), suppression: shownSuppression.optional(), reason: z.string().optional() })) }),
  items: ({ suppressions }) => suppressions.length,
  async run(desk, call) {
    const read = call.body.suppressions.map((one): SuppressionEntry | string => {
      const hashes = hashesOf(desk, call.tenant, one.address);
      return typeof hashes === 'string' ? hashes : { hashes, scope: one.scope, cause: one.cause, by: call.by, ...(one.until !== undefined && { until: one.until }) };
    });
    const made = await inSlices(read.filter((one) => typeof one !== 'string'), (slice) => desk.ledger.suppressAll(call.tenant.id, slice));
    let next = 0;
    const results = read.map((one) => {
      if (typeof one === 'string') return { result: 'refused' as const, reason: one };
      const kept = made[next++];
      if (kept === undefined) throw new Error('as many results as entries');
      record(desk, call, 'suppression', one.hashes, one.cause);
      return { result: 'recorded' as const, suppression: showSuppression(kept) };
    });
    return { results };
  },
});

const lift = route({
  method: 'POST', url: '/v1/suppressions/lift', scope: 'suppressions:write', changes: true,
  summary: 'Lifts what you or a mail server recorded. What the person said or did ends by a new consent, or by the operator.',
  body: person.extend({ cause: z.enum(['manual', 'hard-bounce', 'restriction']), scope: scope.optional().meta({ description: 'Left out: every scope.' }) }),
  answer: z.strictObject({ lifted: z.int() }),
  async run(desk, call) {
    const { address, cause, scope: about } = call.body;
    const hashes = desk.ledger.hashes(call.tenant.id, address);
    const lifted = await desk.ledger.lift(call.tenant.id, hashes, call.by, { cause, ...(about !== undefined && { scope: about }) });
    if (lifted > 0) record(desk, call, 'suppression', hashes, 'lifted');
    return { lifted };
  },
});

export const listedSuppression = shownSuppression.extend({ hash: z.string(), width: z.enum(['address', 'family']) });

export function showListed(one: ListedSuppression): z.input<typeof listedSuppression> {
  return { hash: one.hash, width: one.width, ...showSuppression(one) };
}

const cursor = z.string().regex(/^[0-9a-f]{1,128}$/);
// A query is text: what is asked for in digits is a number.
const limit = z.string().regex(/^[1-9]\d{0,3}$/).transform(Number).refine((count) => count <= ITEMS, `at most ${ITEMS}`).meta({ type: 'integer', minimum: 1, maximum: ITEMS });

const list = route({
  method: 'GET', url: '/v1/suppressions', scope: 'suppressions:read',
  summary: 'Suppressions by keyed hash, page by page; addresses are not kept. For all of them at once take /v1/export.',
  query: z.strictObject({ after: cursor.optional().meta({ description: '`next` of the page before.' }), limit: limit.optional().meta({ type: 'integer', minimum: 1, maximum: ITEMS, description: '100 if left out.' }) }),
  answer: z.strictObject({ suppressions: z.array(listedSuppression), next: z.string().optional().meta({ description: 'Absent on the last page.' }) }),
  async run({ ledger }, { tenant, query: { after = '', limit: most = 100 } }) {
    const rows: ListedSuppression[] = [];
    for await (const row of ledger.list(tenant.id, after)) {
      if (row.hash <= after) continue;
      const last = rows.at(-1);
      // One person's suppressions stay on one page, so that the hash alone says where the next begins.
      if (rows.length >= most && last !== undefined && last.hash !== row.hash) return { suppressions: rows.map(showListed), next: last.hash };
      rows.push(row);
    }
    return { suppressions: rows.map(showListed) };
  },
});

const lookUp = route({
  method: 'POST', url: '/v1/suppressions/lookup', scope: 'suppressions:read',
  summary: 'What stands against mailing a person. POST, because an address does not belong in a URL.',
  body: person,
  answer: z.strictObject({ suppressions: z.array(shownSuppression) }),
  async run(desk, { tenant, body }) {
    const found = await suppressionsOf(desk, tenant, desk.ledger.hashes(tenant.id, body.address));
    return { suppressions: found.map(showSuppression) };
  },
});

/** Every suppression of a person that can stand against mail: of scope all, or of a purpose or stream there is. */
export async function suppressionsOf({ ledger }: Pick<ApiDesk, 'ledger'>, tenant: Tenant, hashes: AddressHashes): Promise<readonly Suppression[]> {
  const streams = [...tenant.streams.values()];
  const purposes = [...new Set([...tenant.policies.flatMap((policy) => policy.purposes), ...streams.map(({ purpose }) => purpose)])];
  const found = new Map<string, Suppression>();
  for (let i = 0; i < Math.max(1, purposes.length, streams.length); i++) {
    const { suppressions } = await ledger.facts(tenant.id, purposes[i] ?? '', streams[i]?.id ?? '', hashes);
    for (const one of suppressions) found.set(one.id, one);
  }
  return [...found.values()];
}

export const SUPPRESSION_ROUTES: readonly Route[] = [add, lift, list, lookUp];
