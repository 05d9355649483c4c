// The tenants' logs as an operator asks about them: whether they are whole and agree with the journal's
// files, receipts to hand out, and the signed checkpoint. Nothing here changes what is on record.
import type { Receipt } from '../ledger/index.ts';
import { isMailError } from '../mail/index.ts';
import type { SealedSegment } from '../events/index.ts';
import type { Tenant } from '../settings/index.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { person, purposeOf, tenantOf, text, wrong, type Params } from './params.ts';

export function ledgerOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    'ledger.verify': (params, progress) => verifyAll(desk, params, progress),
    'ledger.receipt': (params) => receiptOf(desk, params),
    'ledger.checkpoint': async (params) => {
      const { id } = tenantOf(desk, params);
      const { text: checkpoint, size } = await desk.ledger.log.checkpoint(id);
      return { tenant: id, size, checkpoint, verifier_key: desk.ledger.log.verifierKey(id) };
    },
  };
}

/** What verification found of one tenant. */
interface Checked {
  readonly tenant: string;
  readonly ok: boolean;
  readonly leaves: number;
  readonly opened: number;
  readonly erased: number;
  /** The first leaf that is wrong, or whose journal file is. */
  readonly first_bad?: number;
  readonly reason: string;
  /** Files of the journal the log speaks of: those compared, and those that have been removed for their age. */
  readonly journal: { readonly compared: number; readonly gone: number };
}

async function verifyAll(desk: Desk, params: Params, progress: (p: object) => void): Promise<unknown> {
  const tenants = text(params, 'tenant') === '' ? [...desk.settings().tenants.values()] : [tenantOf(desk, params)];
  // A file holds lines of several tenants and is read once.
  const digests = new Map<string, Promise<SealedSegment | undefined>>();
  const digest = (segment: string): Promise<SealedSegment | undefined> => {
    const known = digests.get(segment) ?? desk.journal.digest(segment);
    digests.set(segment, known);
    return known;
  };
  const found: Checked[] = [];
  for (const { id } of tenants) found.push(await verifyOne(desk, id, digest, progress));
  return { ok: found.every(({ ok }) => ok), tenants: found };
}

interface JournalLeaf {
  readonly leaf: number;
  readonly payload: string;
}

async function verifyOne({ ledger }: Desk, tenant: string, digest: (segment: string) => Promise<SealedSegment | undefined>, progress: (p: object) => void): Promise<Checked> {
  const leaves: JournalLeaf[] = [];
  try {
    const { firstBad, ...verified } = await ledger.log.verify(
      tenant, (done, of) => progress({ tenant, leaves: done, of }),
      // Payloads begin with their event: payload.ts.
      ({ leaf, slot, payload }) => void (slot === undefined && payload?.startsWith('{"event":"journal"') === true && leaves.push({ leaf, payload })),
    );
    const journal = { compared: 0, gone: 0 };
    for (const { leaf, payload } of verified.ok ? leaves : []) {
      const said = JSON.parse(payload) as { readonly segment: string; readonly lines: number; readonly sha256: string };
      const file = await digest(said.segment);
      if (file === undefined) {
        journal.gone++;
        continue;
      }
      journal.compared++;
      const held = file.tenants.find((one) => one.tenant === tenant);
      if (held?.sha256 === said.sha256 && held.lines === said.lines) continue;
      return { tenant, ...verified, ok: false, first_bad: leaf, reason: `the journal file ${said.segment}.jsonl is not as leaf ${leaf} says: it holds ${held?.lines ?? 0} lines of this tenant${held?.lines === said.lines ? ', of which some were changed' : `, not ${said.lines}`}`, journal };
    }
    return { tenant, ...verified, ...(firstBad !== undefined && { first_bad: firstBad }), journal };
  } catch (error) {
    // One tenant's key or checkpoint that cannot be read must not keep the others from being looked at.
    if (!isMailError(error)) throw error;
    return { tenant, ok: false, leaves: 0, opened: 0, erased: 0, reason: error.message, journal: { compared: 0, gone: 0 } };
  }
}

async function receiptOf(desk: Desk, params: Params): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const leaf = params['leaf'] === undefined ? await lastLeaf(desk, tenant, params) : Number(params['leaf'] ?? Number.NaN);
  if (!Number.isSafeInteger(leaf) || leaf < 0) throw wrong('leaf: expected a whole number, as `postern consent show` prints it as id');
  const receipt = await desk.ledger.log.receipt(tenant.id, leaf);
  if (receipt === undefined) throw wrong(`the log of ${tenant.id} has no leaf ${leaf}, or the person it speaks of was erased`);
  return withPolicy(receipt, tenant);
}

/** The leaf that holds now: the consent, or its withdrawal, which names the consent in `supersedes`. */
async function lastLeaf(desk: Desk, tenant: Tenant, params: Params): Promise<number> {
  if (text(params, 'rcpt') === '') throw wrong('say which: --rcpt with --purpose, or --leaf');
  const { hashes } = person(desk, params);
  const purpose = purposeOf(tenant, params);
  for (const { leaf, payload } of await desk.ledger.history(tenant.id, hashes)) {
    if (payload !== undefined && (JSON.parse(payload) as { readonly purpose?: string }).purpose === purpose) return leaf;
  }
  throw wrong(`nothing is on record of this person for purpose ${purpose}, or its evidence was destroyed`);
}

/** Adds the policy's text and permissions where the version is still configured, so that its hash can be checked too. */
function withPolicy(receipt: Receipt, tenant: Tenant): unknown {
  const { privacy_notice: hash } = JSON.parse(receipt.payload) as { readonly privacy_notice?: string };
  const policy = tenant.policies.find((known) => known.hash === hash);
  if (policy === undefined) return receipt;
  return { ...receipt, policy: { text: Buffer.from(policy.text).toString('base64'), purposes: policy.purposes, tracking: policy.tracking } };
}
