// Consents and suppressions, one person at a time: what an operator records, takes back and looks up. Every
// change is an event beside the leaf the ledger writes.
import { parseScope, SUPPRESSION_CAUSES, type SuppressionCause } from '../ledger/index.ts';
import { CLICK_MODES, NO_TRACKING, OPEN_MODES } from '../mail/index.ts';
import type { Operation } from './control.ts';
import { record, type Desk } from './desk.ts';
import { limitOf, oneOf, person, policyOf, purposeOf, required, tenantOf, text, wrong, type Params } from './params.ts';

export function peopleOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    'consent.add': (params) => addConsent(desk, params),
    'consent.withdraw': (params) => withdraw(desk, params),
    'consent.show': async (params) => {
      const { tenant, hashes } = person(desk, params);
      return { records: await desk.ledger.show(tenant.id, hashes) };
    },
    'suppress.add': (params) => suppress(desk, params),
    'suppress.remove': async (params) => {
      const { tenant, hashes } = person(desk, params);
      const lifted = await desk.ledger.lift(tenant.id, hashes, 'cli');
      record(desk, 'suppression', tenant, hashes, 'lifted');
      return { lifted };
    },
    'suppress.list': async (params) => {
      const limit = limitOf(params);
      const rows = [];
      for await (const row of desk.ledger.list(tenantOf(desk, params).id)) {
        if (rows.push(row) >= limit) break;
      }
      return { suppressions: rows, more: rows.length >= limit };
    },
  };
}

async function addConsent(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const purpose = purposeOf(tenant, params);
  const now = desk.clock.now();
  const policy = policyOf(desk, tenant, params, now).hash;
  const opens = oneOf(params, 'opens', OPEN_MODES, NO_TRACKING.opens);
  const clicks = oneOf(params, 'clicks', CLICK_MODES, NO_TRACKING.clicks);
  const result = await desk.ledger.give(tenant.id, {
    hashes, purpose, state: 'given', policyHash: policy, tracking: { opens, clicks }, by: 'cli',
    legalBasis: text(params, 'basis') || 'gdpr_6_1_a', method: text(params, 'method') || 'operator',
    evidence: { source: required(params, 'source'), time: now },
    ...(typeof params['expiresAt'] === 'number' && { expiresAt: params['expiresAt'] }),
  });
  record(desk, 'consent', tenant, hashes, 'given', result.record.id);
  return result;
}

async function withdraw(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const purpose = text(params, 'purpose') === '' ? '*' : purposeOf(tenant, params);
  const withdrawn = await desk.ledger.withdraw(tenant.id, purpose, hashes, 'cli');
  record(desk, 'consent', tenant, hashes, 'withdrawn');
  return { withdrawn };
}

async function suppress(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const cause: SuppressionCause = oneOf(params, 'cause', SUPPRESSION_CAUSES, 'manual');
  const scope = parseScope(text(params, 'scope') || 'all');
  if (scope === undefined) throw wrong('scope: expected all, purpose:NAME or stream:NAME');
  const made = await desk.ledger.suppress(tenant.id, {
    hashes, scope, cause, by: 'cli', ...(typeof params['until'] === 'number' && { until: params['until'] }),
  });
  record(desk, 'suppression', tenant, hashes, cause);
  return made;
}
