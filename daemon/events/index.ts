export { EVENT_KINDS, type Event, type EventKind } from './event.ts';
export { openJournal, newEvent, maskReply, type Journal, type JournalledEvent } from './journal.ts';
export { composeDsn, type DsnFacts } from './dsn.ts';
