export {
  openLedger, type ConsentEntry, type ConsentResult, type Facts, type Ledger, type LedgerParts, type ListedSuppression, type SuppressionEntry,
} from './ledger.ts';
export {
  CONSENT_STATES, SUPPRESSION_CAUSES, parseScope,
  type ConsentRecord, type ConsentState, type Evidence, type Suppression, type SuppressionCause, type SuppressionScope, type Suspension,
} from './records.ts';
export { importConsents, importSuppressions, type ImportOptions, type ImportResult } from './import.ts';
export type { RowError } from './rows.ts';
