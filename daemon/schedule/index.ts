export { backoffMs } from './backoff.ts';
export { Schedule, type LaneName, type LaneRules, type LaneView, type Routed, type ScheduleOptions } from './schedule.ts';
