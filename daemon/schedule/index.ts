export { backoffMs } from './backoff.ts';
export { Schedule, type LaneView, type Routed, type ScheduleOptions } from './schedule.ts';
