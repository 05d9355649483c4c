export { openLedger, type LedgerParts } from './stored-ledger.ts';
export type { ConsentEntry, ConsentResult, Facts, ImportProgress, Ledger, ListedSuppression, SuppressionEntry } from './ledger.ts';
export type { LogEntry, Receipt, Verified, TenantLogs } from './log.ts';
export type { PolicyConflict } from './policy-book.ts';
export {
  CONSENT_STATES, SUPPRESSION_CAUSES, parseScope,
  type ConsentRecord, type ConsentState, type ConsentStatement, type Evidence, type Suppression, type SuppressionCause, type SuppressionScope, type Suspension,
} from './records.ts';
export { importConsents, importSuppressions, openConsentImport, openSuppressionImport, type ImportOptions, type ImportResult, type ImportRun } from './import.ts';
export type { RowError, RowFormat } from './rows.ts';
export type { Deleted, TenantTransfers } from './transfer.ts';
export type { Imported } from './transfer-in.ts';
export { OPENERS, type LastOpen, type OpenCount, type OpenDate, type Opener, type TrackingRows } from './tracking.ts';
export { linesOf, openSealed, sealLines, isSealed } from './transfer-seal.ts';
