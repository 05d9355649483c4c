// What a tenant can show others: receipts and checkpoints of its log, its policy versions, and all of its
// suppressions as lines. Callers may rely on: a leaf that is not there, that was erased or that never could
// be are one 404; a stream of lines ends with a line that counts them, so that one cut short is noticed,
// and it breaks off within a second when the tenant is suspended.
import { Readable } from 'node:stream';
import { z } from 'zod';
import { policyInForce } from '../../gate/index.ts';
import { CLICK_MODES, OPEN_MODES } from '../../mail/index.ts';
import { Problem } from './problem.ts';
import { route, type ApiDesk, type Call, type Route } from './route.ts';
import { at, hash, iso } from './shapes.ts';
import { listedSuppression, showListed } from './suppressions.ts';

const receipt = route({
  method: 'GET', url: '/v1/receipts/:leaf', scope: 'receipts',
  summary: 'One leaf of your log with its proof, to be checked offline by scripts/verify-receipt.',
  // 15 digits: beyond them a number is not exact, and no log is that long.
  path: z.strictObject({ leaf: z.string().regex(/^(?:0|[1-9]\d{0,14})$/) }),
  answer: z.strictObject({
    format: z.literal('postern-receipt/1'), leaf: z.int(), payload: z.string(), salt: z.base64(), size: z.int(), proof: z.array(z.base64()), checkpoint: z.string(), verifier_key: z.string(),
  }),
  async run({ ledger }, { tenant, path }) {
    return await ledger.log.receipt(tenant.id, Number(path.leaf)) ?? new Problem('not-found');
  },
});

const checkpoint = route({
  method: 'GET', url: '/v1/checkpoint', scope: 'receipts',
  summary: 'The signed state of your log (C2SP tlog-checkpoint). Keep it: a later log that does not contain it was changed.',
  answer: z.strictObject({ size: z.int(), checkpoint: z.string(), verifier_key: z.string() }),
  async run({ ledger }, { tenant }) {
    const { text, size } = await ledger.log.checkpoint(tenant.id);
    return { size, checkpoint: text, verifier_key: ledger.log.verifierKey(tenant.id) };
  },
});

const policies = route({
  method: 'GET', url: '/v1/policies',
  summary: 'Your policy versions, in order of effect.',
  answer: z.strictObject({
    policies: z.array(z.strictObject({
      version: z.string(), hash, effective_at: at, purposes: z.array(z.string()), tracking: z.strictObject({ opens: z.enum(OPEN_MODES), clicks: z.enum(CLICK_MODES) }),
      published: z.boolean().meta({ description: 'Its page has been seen; before that it is not in force.' }), in_force: z.boolean(),
    })),
  }),
  async run({ ledger, clock }, { tenant }) {
    const unpublished = ledger.unpublished(tenant.id);
    const current = policyInForce(tenant, clock.now(), unpublished);
    return {
      policies: tenant.policies.map((policy) => ({
        version: policy.version, hash: policy.hash, effective_at: iso(policy.effectiveAt), purposes: policy.purposes, tracking: policy.tracking,
        published: !unpublished.has(policy.hash), in_force: policy === current,
      })),
    };
  },
});

const exportAll = route({
  method: 'GET', url: '/v1/export', scope: 'export', lines: true,
  summary: 'All of your suppressions by keyed hash, one JSON object a line. Consent records are not in it.',
  answer: z.discriminatedUnion('line', [
    z.strictObject({ line: z.literal('start'), format: z.literal('postern-export/1'), exported_at: at, contains: z.array(z.literal('suppressions')) }),
    listedSuppression.extend({ line: z.literal('suppression') }),
    z.strictObject({ line: z.literal('end'), lines: z.int() }),
  ]),
  async run(desk, call) {
    return Readable.from(exportLines(desk, call), { objectMode: false, highWaterMark: 65_536 });
  },
});

// How soon a stream under way notices that its tenant was suspended (design §7: within five).
const ASK_AGAIN_MS = 1_000;

async function* exportLines({ ledger, clock, log }: ApiDesk, { tenant }: Call): AsyncGenerator<string> {
  const line = (value: object): string => `${JSON.stringify(value)}\n`;
  try {
    yield line({ line: 'start', format: 'postern-export/1', exported_at: iso(clock.now()), contains: ['suppressions'] });
    let lines = 0;
    let askedAt = clock.now();
    for await (const row of ledger.list(tenant.id)) {
      if (clock.now() - askedAt >= ASK_AGAIN_MS) {
        askedAt = clock.now();
        if (await ledger.suspension(tenant.id) !== undefined) throw new Error('the tenant was suspended meanwhile');
      }
      lines++;
      yield line({ line: 'suppression', ...showListed(row) });
    }
    yield line({ line: 'end', lines });
  } catch (error) {
    // The status has been sent: the connection is cut, and the line that counts is missing.
    log.warn({ tenant: tenant.id, error: String(error) }, 'an export was broken off');
    throw error;
  }
}

export const PROOF_ROUTES: readonly Route[] = [receipt, checkpoint, policies, exportAll];
