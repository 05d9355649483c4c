export { backoffMs } from './backoff.ts';
export { Automation, type Action, type AutomationOptions, type AutomationState, type ObservedLane } from './automation.ts';
export type { LaneName, LaneRules, LaneView, Routed, ScheduleOptions, Source } from './lane.ts';
export { Flow, FLOWS, type FlowKind, type FlowRates } from './flow.ts';
export { WarmUp, type WarmUpState } from './warm-up.ts';
export { Schedule } from './schedule.ts';
