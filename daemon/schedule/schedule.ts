// Decides which recipient goes next, on which lane, when (design §5). Two tiers: a *queue* is what one
// tenant has for one domain, owns times and lies on disk; a *lane* is one egress source towards one site
// and owns connections and rates. In memory there is one small object for each queue and for each lane,
// and the few rows a lane is about to send: ten million waiting rows cost disk, not memory.
//
// Callers may rely on: a row is handed to `run` by one lane only and never twice at once; `run` is not
// called while the lane's limits forbid it; when `run` rejects (a bug) the row stays where it was and is
// tried again after a pause, and nothing is lost. Nothing is started after stop().
import type { Due, Outcome } from '../mail/index.ts';
import type { Clock, Log, Metrics } from '../runtime/index.ts';
import type { LaneLimits, SharedLimit, TotalLimits } from '../settings/index.ts';
import type { QueueHead, QueueId, Spool, Waiting } from '../spool/index.ts';
import { TimeHeap } from './heap.ts';
import { laneGates, Permits, tenantGates, type GateLimits, type Held, type Permit } from './permits.ts';
import { Turns } from './turns.ts';

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
  /** What a tenant may send in all. */
  readonly total?: (tenant: string) => TotalLimits | undefined;
  /** Until when a tenant may send nothing on a lane; 0: it may. */
  readonly tenantPausedUntil?: (lane: string, tenant: string) => number;
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

interface Queue<Route> {
  readonly id: QueueId;
  readonly tenant: string;
  readonly domain: string;
  state: 'waiting' | 'routing' | 'active';
  nextAt: number;
  /** New rows came while the queue was being read. */
  fresh: boolean;
  rows: Waiting[];
  readonly running: Set<string>;
  lane: Lane<Route> | undefined;
  route: Route | undefined;
}

interface Lane<Route> {
  readonly name: LaneName;
  readonly turns: Turns<Queue<Route>>;
  active: number;
  pausedUntil: number;
  pausedFor: string;
  unreached: number;
  timer: { readonly at: number; readonly cancel: () => void } | undefined;
  held: { readonly by: string; readonly since: number; readonly until: number } | undefined;
}

/** Rows read ahead for one queue: enough to keep a lane busy, few enough to be fair with memory. */
const READ_AHEAD = 32;
const LOOK_AGAIN_MS = 60_000;
/** After a bug in `run` the row rests this long, so that a loop of bugs does not eat a core. */
const BUG_PAUSE_MS = 30_000;
/** So many attempts in a row that reached nobody pause the lane: the site is down, asking more is noise. */
const UNREACHED_LIMIT = 10;
const UNREACHED_PAUSE_MS = 60_000;
/** Look-ups under way at once: a start with 10,000 queues must not flood the resolver. */
const ROUTING_AT_ONCE = 64;

const rowKey = (row: Waiting): string => `${row.id}/${row.index}`;

/** One a process. start() reads the heads of all queues; from then on the spool tells of new ones. */
export class Schedule<Route> {
  readonly #options: ScheduleOptions<Route>;
  readonly #queues = new Map<QueueId, Queue<Route>>();
  readonly #lanes = new Map<string, Lane<Route>>();
  readonly #waiting = new TimeHeap<Queue<Route>>();
  readonly #unrouted: Queue<Route>[] = [];
  readonly #resting = new Map<string, number>();
  #routing = 0;
  #timer: (() => void) | undefined;
  #stopped = false;
  #idle: (() => void) | undefined;
  #active = 0;
  readonly #permits = new Permits((id) => {
    const lane = this.#lanes.get(id);
    if (lane !== undefined) this.#pump(lane);
  });

  constructor(options: ScheduleOptions<Route>) {
    this.#options = options;
  }

  /** Takes up everything that waits on disk. */
  start(): void {
    this.#options.spool.onReady((head) => this.wake(head));
    for (const head of this.#options.spool.queues()) this.wake(head);
  }

  /** A queue has something due at `head.nextAt`. */
  wake(head: QueueHead): void {
    if (this.#stopped) return;
    let queue = this.#queues.get(head.queue);
    if (queue === undefined) {
      queue = {
        id: head.queue, tenant: head.tenant, domain: head.domain, state: 'waiting', nextAt: Number.POSITIVE_INFINITY,
        fresh: false, rows: [], running: new Set(), lane: undefined, route: undefined,
      };
      this.#queues.set(head.queue, queue);
    }
    if (queue.state === 'active') {
      queue.fresh = true;
      if (queue.lane !== undefined) {
        queue.lane.turns.add(queue);
        this.#pump(queue.lane);
      }
    } else if (queue.state === 'waiting' && head.nextAt < queue.nextAt) {
      this.#park(queue, head.nextAt);
    }
  }

  /** Stops starting attempts and resolves when those under way have settled. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.();
    for (const lane of this.#lanes.values()) lane.timer?.cancel();
    if (this.#active > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
  }

  lanes(): LaneView[] {
    const now = this.#options.clock.now();
    return [...this.#lanes.values()].map((lane) => {
      const rules = this.#rules(lane);
      return {
        lane: lane.name.id, active: lane.active, connections: rules.limits.connections, queues: lane.turns.size,
        pausedUntil: rules.pausedUntil > now ? rules.pausedUntil : 0, pausedFor: rules.pausedUntil > now ? rules.pausedFor : '',
        ...(lane.held !== undefined && { held: lane.held }),
      };
    });
  }

  /** Something about limits or pauses has changed, of one lane or of all: what may go now goes. */
  refresh(only?: string): void {
    for (const lane of this.#lanes.values()) {
      if (only !== undefined && lane.name.id !== only) continue;
      lane.timer?.cancel();
      lane.timer = undefined;
      this.#pump(lane);
      this.#dropIdle(lane);
    }
  }

  /** Lanes may have changed altogether: every queue looks for its lane anew. What is under way goes on. */
  reroute(): void {
    for (const lane of this.#lanes.values()) {
      for (const queue of lane.turns.all()) {
        lane.turns.remove(queue);
        queue.lane = undefined;
        queue.rows = [];
        this.#toLane(queue);
      }
    }
    this.refresh();
  }

  #park(queue: Queue<Route>, at: number): void {
    queue.state = 'waiting';
    queue.nextAt = at;
    if (at <= this.#options.clock.now()) {
      this.#toLane(queue);
      return;
    }
    this.#waiting.push(at, queue);
    if (this.#waiting.peek()?.value === queue) this.#arm();
  }

  #arm(): void {
    this.#timer?.();
    this.#timer = undefined;
    const head = this.#waiting.peek();
    if (head === undefined || this.#stopped) return;
    this.#timer = this.#options.clock.after(Math.max(0, head.at - this.#options.clock.now()), () => this.#ring());
  }

  #ring(): void {
    const now = this.#options.clock.now();
    for (let head = this.#waiting.peek(); head !== undefined && head.at <= now; head = this.#waiting.peek()) {
      this.#waiting.pop();
      const queue = head.value;
      if (queue.state === 'waiting' && queue.nextAt === head.at) this.#toLane(queue);
    }
    this.#arm();
  }

  #toLane(queue: Queue<Route>): void {
    queue.state = 'routing';
    this.#unrouted.push(queue);
    this.#routeMore();
  }

  #routeMore(): void {
    while (this.#routing < ROUTING_AT_ONCE && !this.#stopped) {
      const queue = this.#unrouted.shift();
      if (queue === undefined) return;
      this.#routing += 1;
      this.#options.route(queue.tenant, queue.domain).then(
        (routed) => this.#routed(queue, routed),
        (error: unknown) => this.#bug(error, 'route', () => this.#park(queue, this.#options.clock.now() + BUG_PAUSE_MS)),
      ).finally(() => {
        this.#routing -= 1;
        this.#routeMore();
      });
    }
  }

  #routed(queue: Queue<Route>, routed: Routed<Route>): void {
    if (this.#stopped) return;
    const lane = this.#lanes.get(routed.lane.id)
      ?? { name: routed.lane, turns: new Turns<Queue<Route>>(), active: 0, pausedUntil: 0, pausedFor: '', unreached: 0, timer: undefined, held: undefined };
    this.#lanes.set(routed.lane.id, lane);
    queue.state = 'active';
    queue.lane = lane;
    queue.route = routed.route;
    queue.fresh = true;
    lane.turns.add(queue);
    this.#pump(lane);
  }

  /** Starts as many attempts as the lane may make now, and sets a timer when only time is missing. */
  #pump(lane: Lane<Route>): void {
    const { clock } = this.#options;
    while (!this.#stopped && !lane.turns.empty) {
      const now = clock.now();
      const rules = this.#rules(lane);
      if (rules.pausedUntil > now) return this.#hold(lane, { by: rules.pausedFor, until: rules.pausedUntil }, now);
      const gates = laneGates(lane.name.id, rules.limits, rules.shared);
      const held = this.#permits.holds(lane.name.id, gates, now);
      if (held !== undefined) return this.#hold(lane, held, now);
      const first: { held?: Held } = {};
      const queue = lane.turns.next((tenant) => {
        const why = this.#tenantHeld(lane, tenant, rules.limits, now);
        // The earliest to end decides when to look again; one that waits for an attempt needs no timer.
        if (why !== undefined && (first.held === undefined || (why.until > 0 && (first.held.until === 0 || why.until < first.held.until)))) first.held = why;
        return why === undefined;
      });
      if (queue === undefined) return this.#hold(lane, first.held ?? { by: 'nothing waits', until: 0 }, now);
      const row = this.#nextRow(queue, now);
      if (row === undefined) {
        lane.turns.remove(queue);
        this.#settleQueue(queue);
        continue;
      }
      this.#launch(lane, queue, row, this.#permits.take([...gates, ...this.#tenantGates(lane, queue.tenant, rules.limits)], now));
    }
    lane.held = undefined;
  }

  /** The rules of the moment, with the schedule's own pause for a site that is down. */
  #rules(lane: Lane<Route>): LaneRules {
    const rules = this.#options.rules(lane.name);
    return lane.pausedUntil > rules.pausedUntil ? { ...rules, pausedUntil: lane.pausedUntil, pausedFor: lane.pausedFor } : rules;
  }

  #tenantGates(lane: Lane<Route>, tenant: string, limits: LaneLimits): readonly GateLimits[] {
    return tenantGates(lane.name.id, tenant, limits, this.#options.total?.(tenant));
  }

  #tenantHeld(lane: Lane<Route>, tenant: string, limits: LaneLimits, now: number): Held | undefined {
    const until = this.#options.tenantPausedUntil?.(lane.name.id, tenant) ?? 0;
    if (until > now) return { by: `tenant ${tenant} rests on this lane`, until };
    return this.#permits.holds(lane.name.id, this.#tenantGates(lane, tenant, limits), now);
  }

  #hold(lane: Lane<Route>, { by, until }: Held, now: number): void {
    if (lane.held?.by !== by) lane.held = { by, since: now, until };
    else if (lane.held.until !== until) lane.held = { ...lane.held, until };
    // Limits may grow meanwhile, step by step: nobody waits longer than this on a number of yesterday.
    if (until > 0) this.#later(lane, Math.min(until, now + LOOK_AGAIN_MS));
  }

  #later(lane: Lane<Route>, at: number): void {
    if (lane.timer !== undefined && lane.timer.at <= at) return;
    lane.timer?.cancel();
    const cancel = this.#options.clock.after(Math.max(1, at - this.#options.clock.now()), () => {
      lane.timer = undefined;
      this.#pump(lane);
      this.#dropIdle(lane);
    });
    lane.timer = { at, cancel };
  }

  #nextRow(queue: Queue<Route>, now: number): Waiting | undefined {
    if (queue.rows.length === 0 && queue.fresh) {
      queue.rows = this.#options.spool.due(queue.id, now, READ_AHEAD, (id, index) => {
        const key = `${id}/${index}`;
        return queue.running.has(key) || (this.#resting.get(key) ?? 0) > now;
      });
      queue.fresh = queue.rows.length === READ_AHEAD;
    }
    return queue.rows.shift();
  }

  #launch(lane: Lane<Route>, queue: Queue<Route>, row: Waiting, permit: Permit): void {
    const { run, clock } = this.#options;
    const key = rowKey(row);
    const route = queue.route as Route;
    queue.running.add(key);
    lane.active += 1;
    this.#active += 1;
    run(row as Due, lane.name, route).then(
      ({ reached }) => this.#reached(lane, reached),
      (error: unknown) => this.#bug(error, 'run', () => this.#resting.set(key, clock.now() + BUG_PAUSE_MS)),
    ).finally(() => {
      queue.running.delete(key);
      lane.active -= 1;
      this.#active -= 1;
      this.#permits.give(permit);
      if (queue.rows.length === 0 && !queue.fresh && queue.running.size === 0) this.#settleQueue(queue);
      this.#pump(lane);
      this.#dropIdle(lane);
      if (this.#active === 0) this.#idle?.();
    });
  }

  #reached(lane: Lane<Route>, reached: boolean): void {
    lane.unreached = reached ? 0 : lane.unreached + 1;
    if (lane.unreached >= UNREACHED_LIMIT) {
      lane.unreached = 0;
      lane.pausedUntil = this.#options.clock.now() + UNREACHED_PAUSE_MS;
      lane.pausedFor = `${UNREACHED_LIMIT} attempts in a row reached nobody`;
    }
  }

  /** Nothing to send now: the queue goes back to the clock, or away when the disk has nothing of it. */
  #settleQueue(queue: Queue<Route>): void {
    if (queue.state !== 'active' || queue.running.size > 0 || queue.fresh || queue.rows.length > 0) return;
    const lane = queue.lane;
    lane?.turns.remove(queue);
    queue.lane = undefined;
    queue.route = undefined;
    const nextAt = this.#options.spool.nextAt(queue.id);
    if (nextAt === undefined) {
      this.#queues.delete(queue.id);
      return;
    }
    // A row that rests after a bug is due but not to be read yet.
    const now = this.#options.clock.now();
    this.#sweepResting(now);
    this.#park(queue, nextAt <= now && this.#resting.size > 0 ? now + BUG_PAUSE_MS : nextAt);
  }

  #sweepResting(now: number): void {
    for (const [key, until] of this.#resting) if (until <= now) this.#resting.delete(key);
  }

  #dropIdle(lane: Lane<Route>): void {
    // A lane that is paused or rate-limited keeps its state, or a quiet second would reset its limits.
    const now = this.#options.clock.now();
    if (lane.active > 0 || !lane.turns.empty || !this.#permits.idle(lane.name.id, now) || lane.pausedUntil > now || this.#lanes.get(lane.name.id) !== lane) return;
    lane.timer?.cancel();
    this.#lanes.delete(lane.name.id);
  }

  #bug(error: unknown, where: string, then: () => void): void {
    this.#options.metrics.bugs.inc({ room: 'schedule' });
    this.#options.log.error({ where, err: error instanceof Error ? error.stack : String(error) }, 'unexpected exception; the row waits');
    then();
  }
}
