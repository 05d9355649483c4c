export { backoffMs } from './backoff.ts';
export { Automation, type Action, type AutomationOptions, type AutomationState, type ObservedLane } from './automation.ts';
export { Schedule, type LaneName, type LaneRules, type LaneView, type Routed, type ScheduleOptions } from './schedule.ts';
