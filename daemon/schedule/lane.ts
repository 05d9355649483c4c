// What the schedule and its users say to each other: lanes and what may go on them, where mail is routed,
// and how an attempt is made. Types only.
import type { Due, Outcome } from '../mail/index.ts';
import type { Clock, Log, Metrics } from '../runtime/index.ts';
import type { LaneLimits, SharedLimit, TotalLimits } from '../settings/index.ts';
import type { Spool } from '../spool/index.ts';

/** Which lane a queue's mail takes. */
export interface LaneName {
  /** `<egress>/<site>` */
  readonly id: string;
  /** The same from a closed set, for metrics. */
  readonly label: string;
  /** Egress source, an id of shaping.yaml. */
  readonly egress: string;
  /** '' where none matches. */
  readonly provider: string;
}

/** One of several lanes to a site: of two that may go, one with twice the weight gets twice as much. */
export interface Source {
  readonly lane: LaneName;
  readonly weight: number;
}

/** What may go on a lane at this moment. */
export interface LaneRules {
  readonly limits: LaneLimits;
  readonly shared: readonly SharedLimit[];
  /** Nothing goes before this; 0: no such time. */
  readonly pausedUntil: number;
  readonly pausedFor: string;
}

/** Where a queue's mail goes: the lane and whatever the deliverer needs to get there. */
export interface Routed<Route> {
  readonly lane: LaneName;
  readonly route: Route;
}

export interface ScheduleOptions<Route> {
  readonly spool: Spool;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  /** Finds the lane of a domain. A rejection counts as a bug; "no route" is a Route too, and `run` records it. */
  readonly route: (tenant: string, domain: string) => Promise<Routed<Route>>;
  /** What holds for a lane now; asked before every attempt, so that a change is felt by the next. */
  readonly rules: (lane: LaneName) => LaneRules;
  /** The lanes a tenant's stream may take to where `lane` leads, with their weights; without a stream all that its streams may take. Left out: that lane. */
  readonly sources?: (lane: LaneName, tenant: string, stream?: string) => readonly Source[];
  /** What a tenant may send in all. */
  readonly total?: (tenant: string) => TotalLimits | undefined;
  /** Until when a tenant may send nothing on a lane; 0: it may. */
  readonly tenantPausedUntil?: (lane: string, tenant: string) => number;
  /** Hears of each attempt as it is begun. */
  readonly started?: (lane: LaneName) => void;
  /** Ends a recipient whose time was over before an attempt could be made, durably; the lane where one is known. */
  readonly ended: (due: Due, lane: LaneName | undefined) => Promise<void>;
  /** Makes one attempt and settles it durably. `reached` false: the site could not be connected to. */
  readonly run: (due: Due, lane: LaneName, route: Route) => Promise<{ readonly reached: boolean; readonly outcome?: Outcome }>;
}

/** What `postern queue` and `top` show of a lane. */
export interface LaneView {
  readonly lane: string;
  readonly active: number;
  readonly connections: number;
  /** ms since the epoch, 0 when it is not paused. */
  readonly pausedUntil: number;
  readonly pausedFor: string;
  /** Why nothing more starts at this moment, although something waits; absent: it may. */
  readonly held?: { readonly by: string; readonly since: number; readonly until: number };
  /** Queues (tenant and domain) that have mail for it now. */
  readonly queues: number;
}
