// What an operator can ask for. The CLI calls these through the control socket of a running daemon, or on
// stores it opened itself when none runs: the same functions either way, so no command ever needs the
// daemon stopped. Each file beside this one has those of one matter; parameters come from outside and are
// checked there (params.ts).
import { automationOperations } from './automation.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { explainOperations } from './explain.ts';
import { importOperations } from './import-file.ts';
import { invitationOperations } from './invite.ts';
import { keyOperations } from './keys.ts';
import { ledgerOperations } from './ledger-operations.ts';
import { peopleOperations } from './people.ts';
import { policyOperations } from './policies.ts';
import { queueOperations } from './queue.ts';
import { shapingOperations } from './shaping.ts';
import { subjectOperations } from './subjects.ts';
import { tenantOperations } from './tenants.ts';
import { topOperations } from './top.ts';

export type { Desk } from './desk.ts';

export function operationsOf(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    status: async () => ({ hash: desk.settings().hash, ...desk.spool.counts(), lanes: desk.lanes() }),
    ...explainOperations(desk),
    ...peopleOperations(desk),
    ...importOperations(desk),
    ...queueOperations(desk),
    ...ledgerOperations(desk),
    ...tenantOperations(desk),
    ...policyOperations(desk),
    ...subjectOperations(desk),
    ...invitationOperations(desk),
    ...keyOperations(desk),
    ...shapingOperations(desk),
    ...automationOperations(desk),
    ...topOperations(desk),
  };
}
