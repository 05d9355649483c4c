export { EVENT_KINDS, isTracking, type Event, type EventKind } from './event.ts';
export { openJournal, newEvent, maskReply, type Journal, type JournalOptions, type JournalledEvent, type SealedSegment } from './journal.ts';
export { tlsReport, tlsReportMail, type TlsReportFacts } from './tls-report.ts';
export { composeDsn, type DsnAction, type DsnFacts } from './dsn.ts';
