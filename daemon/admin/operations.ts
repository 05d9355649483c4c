// What an operator can ask for. The CLI calls these through the control socket of a running daemon, or on
// stores it opened itself when none runs: the same functions either way, so no command ever needs the
// daemon stopped. Each file beside this one has those of one matter; parameters come from outside and are
// checked there (params.ts).
import { importConsents, importSuppressions, type RowError } from '../ledger/index.ts';
import type { Operation } from './control.ts';
import { record, type Desk } from './desk.ts';
import { explainOperations } from './explain.ts';
import { ledgerOperations } from './ledger-operations.ts';
import { oneOf, required, tenantOf, type Params } from './params.ts';
import { peopleOperations } from './people.ts';
import { policyOperations } from './policies.ts';
import { queueOperations } from './queue.ts';
import { subjectOperations } from './subjects.ts';
import { tenantOperations } from './tenants.ts';

export type { Desk } from './desk.ts';

export function operationsOf(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    status: async () => ({ hash: desk.settings().hash, ...desk.spool.counts(), lanes: desk.lanes() }),
    ...explainOperations(desk),
    ...peopleOperations(desk),
    'consent.import': (params, progress) => importRows(desk, params, progress, 'consent'),
    'suppress.import': (params, progress) => importRows(desk, params, progress, 'suppression'),
    ...queueOperations(desk),
    ...ledgerOperations(desk),
    ...tenantOperations(desk),
    ...policyOperations(desk),
    ...subjectOperations(desk),
  };
}

/** One chunk of a file: the CLI reads it and sends some thousand lines at a time, so progress is real. */
async function importRows(desk: Desk, params: Params, progress: (p: object) => void, what: 'consent' | 'suppression'): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const chunk = Buffer.from(required(params, 'text'), 'base64');
  const refused: RowError[] = [];
  const importer = what === 'consent' ? importConsents : importSuppressions;
  const result = await importer(desk.ledger, tenant, one(chunk), {
    format: oneOf(params, 'format', ['csv', 'ndjson'] as const, 'csv'), now: desk.clock.now(), by: 'import',
    onError: (error) => refused.push(error), onProgress: progress,
  });
  record(desk, what === 'consent' ? 'consent' : 'suppression', tenant, undefined, `${result.recorded} imported`);
  return { ...result, refused };
}

async function* one(chunk: Buffer): AsyncGenerator<Buffer> {
  yield chunk;
}
