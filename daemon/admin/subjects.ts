// What a person may ask of the tenant, done by the operator: to see everything (GDPR Art. 15 and 20), to be
// forgotten (Art. 17), to be left alone while something is looked into (Art. 18). Callers may rely on: an
// erasure is finished when it is answered, and mail that waits for the person is due at once, so that the
// gate ends it; what remains is told. Who was forgotten is not written into the journal.
import { setImmediate } from 'node:timers/promises';
import { isTracking, type JournalledEvent } from '../events/index.ts';
import type { LogEntry } from '../ledger/index.ts';
import type { AddressHashes } from '../mail/index.ts';
import { suppressionsOf } from './api/suppressions.ts';
import type { Operations, Params } from './control.ts';
import { noteAct, pseudonymOf, record, type Desk } from './desk.ts';
import { person, wrong } from './params.ts';

// Rows in one read of the queue: some milliseconds, after which the mail has its turn.
const PAGE_ROWS = 500;

export function subjectOperations(desk: Desk): Operations {
  return {
    'subject.export': (params) => exportSubject(desk, params),
    'subject.erase': (params) => eraseSubject(desk, params),
    'subject.restrict': (params) => restrictSubject(desk, params),
  };
}

async function exportSubject(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, address, hashes } = person(desk, params);
  const events: JournalledEvent[] = [];
  // What the person opened and followed only the tenant may read: POST /v1/subjects/export has it.
  for await (const event of desk.journal.person(tenant.id, pseudonymOf(hashes))) if (!isTracking(event)) events.push(event);
  // That somebody looked is on record; at whom is not, for this leaf outlives everybody's erasure.
  await noteAct(desk, tenant.id, 'subject-exported');
  return {
    format: 'postern-subject/1',
    exported_at: new Date(desk.clock.now()).toISOString(),
    tenant: tenant.id,
    pii_principal_id: hashes.consent.toString('hex'),
    consents: await desk.ledger.show(tenant.id, hashes),
    suppressions: await suppressionsOf(desk, tenant, hashes),
    history: (await desk.ledger.history(tenant.id, hashes)).map(entryOf),
    events,
    waiting: await waitingFor(desk, { tenant: tenant.id, domain: address.domain }, hashes),
  };
}

/** `entry` is absent where its key was destroyed. */
function entryOf({ leaf, payload }: LogEntry): { readonly leaf: number; readonly entry?: unknown } {
  return { leaf, ...(payload !== undefined && { entry: JSON.parse(payload) as unknown }) };
}

/** All of a person's mail lies in the queues of its domain. */
async function waitingFor({ spool }: Desk, queue: { readonly tenant: string; readonly domain: string }, { consent }: AddressHashes): Promise<readonly unknown[]> {
  // By recipient: one that is put off between two pages stands behind the cursor once more.
  const found = new Map<string, unknown>();
  for (let after: string | undefined; ;) {
    const rows = await spool.list({ ...queue, limit: PAGE_ROWS, ...(after !== undefined && { after }) });
    for (const { id, index, recipient } of rows) {
      const { wire, hashes, evidence, attempts, nextAt, expiresAt, held, lastReply } = recipient;
      if (hashes.consent.equals(consent)) found.set(`${id}/${index}`, { message_id: id, recipient: index, to: wire, evidence, attempts, next_at: nextAt, expires_at: expiresAt, held, last_reply: lastReply });
    }
    after = rows.at(-1)?.cursor;
    if (rows.length < PAGE_ROWS) return [...found.values()];
    await setImmediate();
  }
}

async function eraseSubject(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  if (params['yes'] !== true) throw wrong('this destroys what is on record of the person for good; `postern subject export` first if it may be wanted, then say --yes');
  const keepEvidenceMs = tenant.keepEvidenceMs ?? 0;
  const records = await desk.ledger.erase(tenant.id, hashes, 'cli', keepEvidenceMs);
  // The widest hash: what waits under a spelling with a tag goes as well.
  const due = await desk.spool.retry({ tenant: tenant.id, person: hashes.family });
  record(desk, 'erased', tenant, undefined, `${records} records`);
  return {
    destroyed: { consent_records: records, evidence: keepEvidenceMs === 0 },
    ...(keepEvidenceMs > 0 && { evidence_kept_until: desk.clock.now() + keepEvidenceMs }),
    waiting_mail_due: due,
    remains: [
      'a suppression of cause erasure by keyed hash, so that nobody mails them again',
      keepEvidenceMs === 0 ? 'leaves of the log that nobody can open any more' : 'leaves of the log, to be opened by their number alone until the time above (keep_evidence)',
      'mail for them that is held, which ends when it is released',
      'events under a pseudonym, until the journal is old (limits.keep_events)',
    ],
  };
}

async function restrictSubject(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  if (params['off'] === true) {
    const lifted = await desk.ledger.lift(tenant.id, hashes, 'cli', { cause: 'restriction' });
    if (lifted > 0) record(desk, 'restricted', tenant, hashes, 'lifted');
    return { restricted: false, lifted };
  }
  const { id, since } = await desk.ledger.suppress(tenant.id, { hashes, scope: 'all', cause: 'restriction', by: 'cli' });
  record(desk, 'restricted', tenant, hashes, 'restricted');
  return { restricted: true, id, since };
}
