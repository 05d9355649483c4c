export { openSpool, type Spool, type Waiting, type Settlement, type Listed, type SpoolCounts } from './spool.ts';
export type { Filter as QueueFilter, QueueHead } from './queues.ts';
export type { QueueId } from './rows.ts';
