export { openLmdb, isLmdbCommitError, type LmdbOptions } from './lmdb.ts';
export { openLedgerStore, type LedgerStore, type StoreEntry, type StorePart, type StoreWrite } from './ledger-store.ts';
