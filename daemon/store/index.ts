export { openLmdb, isLmdbCommitError, type LmdbOptions } from './lmdb.ts';
export { openLedgerStore, type LedgerStore, type StoreEntry, type StorePart, type StoreSnapshot, type StoreWrite } from './ledger-store.ts';
