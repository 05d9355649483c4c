// Consents: record, withdraw, look up, and ask what the gate would decide. Callers may rely on: a request
// of the wrong shape changes nothing; in one of the right shape each item is answered for itself, in its
// place, and what is said to be recorded is durable; after a failure the whole may be sent again, for the
// same said twice decides what it did once. A withdrawal is never refused for what it names.
import { z } from 'zod';
import { judgeRecipient } from '../../gate/index.ts';
import type { ConsentEntry, ConsentStatement } from '../../ledger/index.ts';
import { NO_TRACKING, isMailError, parseAddress, type Instant } from '../../mail/index.ts';
import type { Settings, Tenant } from '../../settings/index.ts';
import { Problem } from './problem.ts';
import { inSlices, record, route, type ApiDesk, type Route } from './route.ts';
import { ITEMS, addressText, at, basisFacts, consentState, evidenceId, hash, iso, legalBasis, person, text, time, tracking } from './shapes.ts';

const consent = z.strictObject({
  address: addressText,
  purpose: text,
  state: z.enum(['given', 'pending', 'refused']).default('given'),
  source: text.meta({ description: 'Form, file or system it comes from, in your words.' }),
  time: time.meta({ description: 'When the person said it.' }),
  policy: text.meta({ description: 'Version or hash of the policy it was collected under.' }),
  tracking: tracking.default(NO_TRACKING),
  legal_basis: legalBasis.default('gdpr_6_1_a'),
  method: text.default('api').meta({ description: '`form`, `paper`, `phone`, ...' }),
  facts: basisFacts.optional(),
  jurisdiction: text.optional().meta({ description: 'Profile id, such as `de`.' }),
  expires_at: time.optional(),
  form_hash: hash.optional(),
  ip_pseudonym: text.optional(),
  double_opt_in: z.strictObject({ requested_at: time, confirmed_at: time.optional() }).optional(),
});
type Consent = z.output<typeof consent>;

const consentResult = z.strictObject({ result: z.enum(['recorded', 'kept', 'refused']), evidence: evidenceId.optional(), reason: z.string().optional() });
type ConsentAnswer = z.output<typeof consentResult>;

const give = route({
  method: 'POST', url: '/v1/consents', scope: 'consents:write', changes: true,
  summary: 'Records consents, requests still to be confirmed, and refusals. `kept`: what is on record says more, or is newer.',
  body: z.strictObject({ consents: z.array(consent).min(1).max(ITEMS) }),
  answer: z.strictObject({ results: z.array(consentResult) }),
  items: ({ consents }) => consents.length,
  async run(desk, call) {
    const read = call.body.consents.map((one) => entryOf(desk, call.tenant, one, call.by));
    const entries = read.filter((one) => typeof one !== 'string');
    const given = await inSlices(entries, (slice) => desk.ledger.giveAll(call.tenant.id, slice));
    let next = 0;
    const results = read.map((one): ConsentAnswer => {
      if (typeof one === 'string') return { result: 'refused', reason: one };
      const result = given[next++];
      if (result === undefined) throw new Error('as many results as entries');
      if (result.kind === 'recorded') record(desk, call, 'consent', one.hashes, one.state, result.record.id);
      return { result: result.kind, evidence: result.record.id };
    });
    return { results };
  },
});

// Clocks of two machines differ by less, and the time carries its offset.
const AHEAD_MS = 300_000;

/** What the ledger is given, or why it is not. */
function entryOf(desk: ApiDesk, tenant: Tenant, one: Consent, by: string): ConsentEntry | string {
  const policy = tenant.policies.find(({ version, hash: known }) => version === one.policy || known === one.policy);
  if (policy === undefined) return 'policy is not a version or hash of a policy of yours';
  if (!policy.purposes.includes(one.purpose)) return 'purpose is not one that this policy version allows';
  if (one.jurisdiction !== undefined && !desk.settings().profiles.has(one.jurisdiction)) return 'jurisdiction is not a profile id';
  const now = desk.clock.now();
  const optIn = one.double_opt_in;
  const said: readonly (Instant | undefined)[] = [one.time, optIn?.requested_at, optIn?.confirmed_at];
  if (said.some((told) => told !== undefined && told > now + AHEAD_MS)) return 'a time is in the future';
  if (optIn?.confirmed_at !== undefined && optIn.confirmed_at < optIn.requested_at) return 'confirmed before it was requested';
  const hashes = hashesOf(desk, tenant, one.address);
  if (typeof hashes === 'string') return hashes;
  return {
    hashes, purpose: one.purpose, state: one.state, legalBasis: one.legal_basis, policyHash: policy.hash, method: one.method, tracking: one.tracking, by,
    evidence: {
      source: one.source, time: one.time,
      ...(one.form_hash !== undefined && { formHash: one.form_hash }),
      ...(one.ip_pseudonym !== undefined && { ipPseudonym: one.ip_pseudonym }),
      ...(optIn !== undefined && { doubleOptIn: { requestedAt: optIn.requested_at, ...(optIn.confirmed_at !== undefined && { confirmedAt: optIn.confirmed_at }) } }),
    },
    ...(one.expires_at !== undefined && { expiresAt: one.expires_at }),
    ...(one.facts !== undefined && { facts: [...new Set(one.facts)] }),
    ...(one.jurisdiction !== undefined && { jurisdiction: one.jurisdiction }),
  };
}

/** The keyed hashes of an address, or what is wrong with it. */
export function hashesOf({ ledger }: ApiDesk, tenant: Tenant, address: string): ConsentEntry['hashes'] | string {
  try {
    return ledger.hashes(tenant.id, parseAddress(address));
  } catch (error) {
    if (isMailError(error, 'E_ADDRESS')) return error.message;
    throw error;
  }
}

const withdraw = route({
  method: 'POST', url: '/v1/consents/withdraw', scope: 'consents:write', changes: true,
  summary: 'Withdraws the consent to one purpose, or to all. Mail that waits for this person is not sent.',
  body: person.extend({ purpose: text.optional().meta({ description: 'Left out: all purposes.' }) }),
  answer: z.strictObject({ withdrawn: z.int().meta({ description: 'Records that changed.' }) }),
  async run(desk, call) {
    const hashes = desk.ledger.hashes(call.tenant.id, call.body.address);
    const withdrawn = await desk.ledger.withdraw(call.tenant.id, call.body.purpose ?? '*', hashes, call.by);
    if (withdrawn > 0) record(desk, call, 'consent', hashes, 'withdrawn');
    return { withdrawn };
  },
});

export const shownConsent = z.strictObject({
  evidence: evidenceId, purpose: z.string(), state: consentState, legal_basis: z.string(), policy: hash, given_at: at, changed_at: at, expires_at: at.optional(),
  tracking: z.strictObject({ opens: z.string(), clicks: z.string() }), facts: z.array(z.string()).optional(), jurisdiction: z.string().optional(),
  method: z.string(), source: z.string(), form_hash: z.string().optional(), ip_pseudonym: z.string().optional(),
  double_opt_in: z.strictObject({ requested_at: at, confirmed_at: at.optional() }).optional(), changed_by: z.string(),
});

export function showConsent({ evidence, ...one }: ConsentStatement): z.input<typeof shownConsent> {
  const optIn = evidence.doubleOptIn;
  return {
    evidence: one.id, purpose: one.purpose, state: one.state, legal_basis: one.legalBasis, policy: one.policyHash, given_at: iso(one.givenAt), changed_at: iso(one.changedAt),
    ...(one.expiresAt !== undefined && { expires_at: iso(one.expiresAt) }), tracking: one.tracking,
    ...(one.facts !== undefined && { facts: [...one.facts] }), ...(one.jurisdiction !== undefined && { jurisdiction: one.jurisdiction }),
    method: one.method, source: evidence.source, ...(evidence.formHash !== undefined && { form_hash: evidence.formHash }),
    ...(evidence.ipPseudonym !== undefined && { ip_pseudonym: evidence.ipPseudonym }),
    ...(optIn !== undefined && { double_opt_in: { requested_at: iso(optIn.requestedAt), ...(optIn.confirmedAt !== undefined && { confirmed_at: iso(optIn.confirmedAt) }) } }),
    changed_by: one.changedBy,
  };
}

const lookUp = route({
  method: 'POST', url: '/v1/consents/lookup', scope: 'consents:read',
  summary: 'Every consent record of a person. POST, because an address does not belong in a URL.',
  body: person,
  answer: z.strictObject({ consents: z.array(shownConsent) }),
  async run(desk, { tenant, body }) {
    const found = await desk.ledger.show(tenant.id, desk.ledger.hashes(tenant.id, body.address));
    return { consents: found.map(showConsent) };
  },
});

const step = z.strictObject({ rule: z.string(), result: z.enum(['passed', 'decided', 'shadowed']), says: z.string(), evidence: evidenceId.optional(), policy: hash.optional() });
const decision = z.strictObject({
  answer: z.enum(['yes', 'no', 'cannot-tell']), rule: z.string(), reason: z.string().optional(), evidence: evidenceId.optional(), policy: hash.optional(),
  tracking: z.strictObject({ opens: z.string(), clicks: z.string() }).optional(), unsubscribable: z.boolean().optional(), profile: z.string().optional(),
  shadowed: z.array(z.string()).optional(), steps: z.array(step),
});

const decide = route({
  method: 'POST', url: '/v1/decisions', scope: 'consents:read',
  summary: 'What the gate would decide now for a person on a stream, with each rule it asked.',
  body: person.extend({ stream: text }),
  answer: decision,
  async run(desk, { tenant, body }) {
    const stream = tenant.streams.get(body.stream);
    if (stream === undefined) return new Problem('not-found');
    const hashes = desk.ledger.hashes(tenant.id, body.address);
    const facts = await desk.ledger.facts(tenant.id, stream.purpose, stream.id, hashes);
    const settings: Settings = desk.settings();
    const verdict = judgeRecipient({ tenant, stream, now: desk.clock.now(), facts, profiles: settings, domain: body.address.domain, explain: true });
    const { answer, rule, steps = [] } = verdict;
    if (verdict.answer !== 'yes') return { answer, rule, reason: verdict.reason, steps };
    const { evidence, policy, tracking: may, unsubscribable, profile, shadowed } = verdict;
    return { answer, rule, ...(evidence !== '' && { evidence }), ...(policy !== '' && { policy }), tracking: may, unsubscribable, ...(profile !== '' && { profile }), ...(shadowed.length > 0 && { shadowed }), steps };
  },
});

export const CONSENT_ROUTES: readonly Route[] = [give, withdraw, lookUp, decide];
