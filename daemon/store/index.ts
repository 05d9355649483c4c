export { openLmdb, isLmdbCommitError, type LmdbOptions } from './lmdb.ts';
export { openLedgerStore, type LedgerStore, type StoreChange, type StoreEntry } from './ledger-store.ts';
