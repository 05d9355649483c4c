// The ledger as an operator looks at it: is the log whole, what proves one of its leaves, which policy
// versions hold and why one does not. Callers may rely on: nothing here changes the log but a checkpoint,
// which says what it is already, and `policy.publish`, which is the operator's word in place of our own look.
import { policyInForce } from '../gate/index.ts';
import type { Policy, Tenant } from '../settings/index.ts';
import type { Operations, Params } from './control.ts';
import { record, type Desk } from './desk.ts';
import { person, purposeOf, required, tenantOf, text, versionOf, wrong } from './params.ts';

export function ledgerOperations(desk: Desk): Operations {
  return {
    'ledger.verify': async (params, progress) => {
      const tenant = tenantOf(desk, params);
      return { tenant: tenant.id, ...await desk.ledger.log.verify(tenant.id, (leaves, of) => progress({ tenant: tenant.id, leaves, of })) };
    },
    'ledger.receipt': (params) => receipt(desk, params),
    'ledger.checkpoint': async (params) => {
      const tenant = tenantOf(desk, params);
      const { text: checkpoint, size } = await desk.ledger.log.checkpoint(tenant.id);
      return { tenant: tenant.id, size, checkpoint, verifier_key: desk.ledger.log.verifierKey(tenant.id) };
    },
    'policy.list': async (params) => ({ policies: listPolicies(desk, tenantOf(desk, params)) }),
    'policy.publish': async (params) => {
      const tenant = tenantOf(desk, params);
      const policy = versionOf(tenant, required(params, 'version'));
      const waited = desk.ledger.unpublished(tenant.id).has(policy.hash);
      // The ledger leaves a leaf that names who said so.
      await desk.ledger.published(tenant.id, policy.hash, 'cli');
      if (waited) record(desk, 'policy-published', tenant, undefined, `version ${policy.version}, by the operator's word`);
      return { changed: waited, ...listPolicies(desk, tenant).find(({ hash }) => hash === policy.hash) };
    },
  };
}

async function receipt(desk: Desk, params: Params): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const leaf = await leafOf(desk, tenant, params);
  const made = await desk.ledger.log.receipt(tenant.id, leaf);
  if (made === undefined) throw wrong(`there is no leaf ${leaf} in the log of ${tenant.id}, or its key was destroyed by an erasure: no receipt can be made`);
  const policy = tenant.policies.find(({ hash }) => hash === noticeOf(made.payload));
  return { ...made, ...(policy !== undefined && { policy: { text: Buffer.from(policy.text).toString('base64'), purposes: policy.purposes, tracking: policy.tracking } }) };
}

async function leafOf(desk: Desk, tenant: Tenant, params: Params): Promise<number> {
  const { leaf } = params;
  if (leaf !== undefined) {
    if (typeof leaf !== 'number' || !Number.isSafeInteger(leaf) || leaf < 0) throw wrong('leaf: expected a whole number, the evidence id of `explain` or of an event');
    return leaf;
  }
  if (text(params, 'rcpt') === '') throw wrong('say which: --leaf N, or --rcpt ADDRESS with --purpose NAME');
  const purpose = purposeOf(tenant, params);
  const consents = await desk.ledger.show(tenant.id, person(desk, params).hashes);
  const found = consents.find((consent) => consent.purpose === purpose);
  if (found === undefined) throw wrong(`no consent of this person for purpose ${purpose} is on record${consents.length === 0 ? '' : `; there is one for ${consents.map((one) => one.purpose).join(', ')}`}`);
  return Number(found.id);
}

/** The hash of the policy a payload rests on, where it does. */
function noticeOf(payload: string): unknown {
  return (JSON.parse(payload) as Readonly<Record<string, unknown>>)['privacy_notice'];
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
