// Policy versions as an operator looks at them: which hold, and why one does not. Callers may rely on:
// `policy.publish` is the operator's word in place of our own look at the page, and the ledger leaves a leaf
// that says whose word it was.
import { policyInForce } from '../gate/index.ts';
import type { Policy, Tenant } from '../settings/index.ts';
import type { Operations } from './control.ts';
import { record, type Desk } from './desk.ts';
import { required, tenantOf, versionOf } from './params.ts';

export function policyOperations(desk: Desk): Operations {
  return {
    'policy.list': async (params) => ({ policies: listPolicies(desk, tenantOf(desk, params)) }),
    'policy.publish': async (params) => {
      const tenant = tenantOf(desk, params);
      const policy = versionOf(tenant, required(params, 'version'));
      const waited = desk.ledger.unpublished(tenant.id).has(policy.hash);
      await desk.ledger.published(tenant.id, policy.hash, 'cli');
      if (waited) record(desk, 'policy-published', tenant, undefined, `version ${policy.version}, by the operator's word`);
      return { changed: waited, ...listPolicies(desk, tenant).find(({ hash }) => hash === policy.hash) };
    },
  };
}

export interface ListedPolicy {
  readonly version: string;
  readonly hash: string;
  readonly effectiveAt: number;
  readonly state: 'in force' | 'earlier' | 'announced' | 'waiting for its page';
  readonly purposes: string;
  readonly opens: string;
  readonly clicks: string;
}

function listPolicies(desk: Desk, tenant: Tenant): readonly ListedPolicy[] {
  const now = desk.clock.now();
  const unpublished = desk.ledger.unpublished(tenant.id);
  const current = policyInForce(tenant, now, unpublished);
  const stateOf = ({ hash, effectiveAt }: Policy): ListedPolicy['state'] => {
    if (hash === current?.hash) return 'in force';
    if (unpublished.has(hash)) return 'waiting for its page';
    return effectiveAt > now ? 'announced' : 'earlier';
  };
  return tenant.policies.map((policy) => ({
    version: policy.version, hash: policy.hash, effectiveAt: policy.effectiveAt, state: stateOf(policy),
    purposes: policy.purposes.join(' '), opens: policy.tracking.opens, clicks: policy.tracking.clicks,
  }));
}
