// What a person may ask of the tenant: to see what is held (GDPR Art. 15, 20), to be forgotten (Art. 17),
// to be left alone while something is looked into (Art. 18). Callers may rely on: an erasure destroys the
// person's secrets, keeps evidence only as long as the tenant's settings say, and leaves a suppression.
import { z } from 'zod';
import { isTracking } from '../../events/index.ts';
import { shownConsent, showConsent } from './consents.ts';
import { record, route, type Route } from './route.ts';
import { at, evidenceId, iso, person, showSuppression, shownSuppression } from './shapes.ts';
import { suppressionsOf } from './suppressions.ts';
import { lastOpensOf, showTracking, shownLastOpen, shownTracking } from './tracking.ts';

const exportOf = route({
  method: 'POST', url: '/v1/subjects/export', scope: 'subjects',
  summary: 'Everything on record about a person, and what the log says of how it came to be.',
  body: person,
  answer: z.strictObject({
    exported_at: at, pii_principal_id: z.string(), consents: z.array(shownConsent), suppressions: z.array(shownSuppression),
    log: z.array(z.strictObject({ leaf: evidenceId, entry: z.looseObject({ event: z.string() }).optional().meta({ description: 'Absent where its key was destroyed.' }) })),
    last_opens: z.array(shownLastOpen), tracking: z.array(shownTracking).meta({ description: 'Opens and clicks recorded of them.' }),
  }),
  async run(desk, { tenant, body }) {
    const hashes = desk.ledger.hashes(tenant.id, body.address);
    const [consents, suppressions, history] = [
      await desk.ledger.show(tenant.id, hashes), await suppressionsOf(desk, tenant, hashes), await desk.ledger.history(tenant.id, hashes),
    ];
    const tracked: z.input<typeof shownTracking>[] = [];
    for await (const event of desk.journal.person(tenant.id, hashes.consent.toString('hex', 0, 6))) if (isTracking(event)) tracked.push(showTracking(desk, tenant, event));
    return {
      exported_at: iso(desk.clock.now()), pii_principal_id: hashes.consent.toString('hex'), consents: consents.map(showConsent), suppressions: suppressions.map(showSuppression),
      log: history.map(({ leaf, payload }) => ({ leaf: String(leaf), ...(payload !== undefined && { entry: JSON.parse(payload) as object }) })),
      last_opens: await lastOpensOf(desk, tenant, hashes), tracking: tracked,
    };
  },
});

const erase = route({
  method: 'POST', url: '/v1/subjects/erase', scope: 'subjects', changes: true,
  summary: 'Forgets a person; a suppression stays, so that nobody mails them again. Cannot be undone.',
  body: person,
  answer: z.strictObject({ erased: z.int().meta({ description: 'Consent records that went.' }) }),
  async run(desk, call) {
    const hashes = desk.ledger.hashes(call.tenant.id, call.body.address);
    const erased = await desk.ledger.erase(call.tenant.id, hashes, call.by, call.tenant.keepEvidenceMs ?? 0);
    // Who was forgotten is not written down.
    record(desk, call, 'suppression', undefined, 'erasure');
    return { erased };
  },
});

const restrict = route({
  method: 'POST', url: '/v1/subjects/restrict', scope: 'subjects', changes: true,
  summary: 'Stops all mail to a person; ends by /v1/suppressions/lift with cause `restriction`.',
  body: person,
  answer: z.strictObject({ suppression: shownSuppression }),
  async run(desk, call) {
    const hashes = desk.ledger.hashes(call.tenant.id, call.body.address);
    const made = await desk.ledger.suppress(call.tenant.id, { hashes, scope: 'all', cause: 'restriction', by: call.by });
    record(desk, call, 'suppression', hashes, 'restriction');
    return { suppression: showSuppression(made) };
  },
});

export const SUBJECT_ROUTES: readonly Route[] = [exportOf, erase, restrict];
