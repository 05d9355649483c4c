// Decides which recipient goes next, on which lane, when (design §5). Two tiers: a *queue* is what one
// tenant has for one domain at one priority, owns times and lies on disk; a *lane* is one egress source towards one site
// and owns connections and rates. In memory there is one small object for each queue and for each lane,
// and the few rows a lane is about to send: ten million waiting rows cost disk, not memory.
//
// Callers may rely on: a row is handed to `run` by one lane only and never twice at once; `run` is not
// called while the lane's limits forbid it; when `run` rejects (a bug) the row stays where it was and is
// tried again after a pause, and nothing is lost. Nothing is started after stop().
import type { Due, MessageId, Priority } from '../mail/index.ts';
import type { LaneLimits } from '../settings/index.ts';
import type { QueueHead, QueueId, Waiting } from '../spool/index.ts';
import { Ends } from './ends.ts';
import { TimeHeap } from './heap.ts';
import type { LaneName, LaneRules, LaneView, Routed, ScheduleOptions, Source } from './lane.ts';
import { LookUps } from './look-ups.ts';
import { laneGates, Permits, tenantGates, type GateLimits, type Held, type Permit } from './permits.ts';
import { Turns } from './turns.ts';

interface Queue<Route> {
  readonly id: QueueId;
  readonly tenant: string;
  readonly domain: string;
  readonly priority: Priority;
  state: 'waiting' | 'routing' | 'active';
  nextAt: number;
  /** New rows came while the queue was being read. */
  fresh: boolean;
  rows: Waiting[];
  /** Rows under way. */
  running: number;
  site: Site<Route> | undefined;
  route: Route | undefined;
}

/** Where queues lead, whatever the source: here tenants take turns. */
interface Site<Route> {
  readonly id: string;
  /** Any lane there. */
  readonly name: LaneName;
  readonly turns: Turns<Queue<Route>>;
  readonly lanes: Map<string, Lane<Route>>;
  /** Fair queueing between the lanes: the least start tag of those that were asked last. */
  tag: number;
  timer: { readonly at: number; readonly cancel: () => void } | undefined;
}

interface Lane<Route> {
  readonly name: LaneName;
  readonly site: Site<Route>;
  active: number;
  /** Finish tag of what went last: where it begins again among the lanes of the site. */
  tag: number;
  /** Nothing goes on it for now: then the others take its share. */
  paused: boolean;
  pausedUntil: number;
  pausedFor: string;
  unreached: number;
  held: { readonly by: string; readonly since: number; readonly until: number } | undefined;
}

/** Lanes on which something may go, with what holds there. */
type Open<Route> = ReadonlyMap<Lane<Route>, { readonly limits: LaneLimits; readonly gates: readonly GateLimits[] }>;

/** Rows read ahead for one queue: enough to keep a lane busy, few enough to be fair with memory. */
const READ_AHEAD = 32;
const LOOK_AGAIN_MS = 60_000;
/** Queues looked at for one that an open lane may take; more have their turn a moment later. */
const TRIES = 64;
const TRY_AGAIN_MS = 100;
/** Messages of weight 1 that a lane may be ahead of one of its pool that is busy. */
const LEAD = 2;
/** After a bug in `run` the row rests this long, so that a loop of bugs does not eat a core. */
const BUG_PAUSE_MS = 30_000;
/** So many attempts in a row that reached nobody pause the lane: the site is down, asking more is noise. */
const UNREACHED_LIMIT = 10;
const UNREACHED_PAUSE_MS = 60_000;
const rowKey = ({ id, index }: Pick<Waiting, 'id' | 'index'>): string => `${id}/${index}`;

/** One a process. start() reads the heads of all queues; from then on the spool tells of new ones. */
export class Schedule<Route> {
  readonly #options: ScheduleOptions<Route>;
  readonly #queues = new Map<QueueId, Queue<Route>>();
  readonly #lanes = new Map<string, Lane<Route>>();
  readonly #sites = new Map<string, Site<Route>>();
  readonly #waiting = new TimeHeap<Queue<Route>>();
  readonly #lookUps = new LookUps<Queue<Route>, Routed<Route>>({
    look: ({ tenant, domain }) => this.#options.route(tenant, domain),
    found: (queue, routed) => this.#routed(queue, routed),
    failed: (queue, error) => this.#bug(error, 'route', () => this.#park(queue, this.#options.clock.now() + BUG_PAUSE_MS)),
  });
  readonly #running = new Set<string>();
  readonly #resting = new Map<string, number>();
  readonly #ends: Ends;
  #timer: (() => void) | undefined;
  #stopped = false;
  #idle: (() => void) | undefined;
  #active = 0;
  readonly #permits = new Permits((id) => {
    const lane = this.#lanes.get(id);
    if (lane !== undefined) this.#pump(lane.site);
  });

  constructor(options: ScheduleOptions<Route>) {
    this.#options = options;
    const { spool, clock } = options;
    this.#ends = new Ends({ spool, clock, skip: (id, index) => this.#passedOver(id, index), end: (row) => this.#end(row, this.#queues.get(row.queue)) });
  }

  /** Takes up everything that waits on disk. */
  start(): void {
    this.#options.spool.onReady((head) => this.wake(head));
    for (const head of this.#options.spool.queues()) this.wake(head);
    this.#ends.start();
  }

  /** A queue has something due at `head.nextAt`. */
  wake(head: QueueHead): void {
    if (this.#stopped) return;
    let queue = this.#queues.get(head.queue);
    if (queue === undefined) {
      queue = {
        id: head.queue, tenant: head.tenant, domain: head.domain, priority: head.priority, state: 'waiting', nextAt: Number.POSITIVE_INFINITY,
        fresh: false, rows: [], running: 0, site: undefined, route: undefined,
      };
      this.#queues.set(head.queue, queue);
    }
    if (queue.state === 'active') {
      queue.fresh = true;
      if (queue.site !== undefined) {
        queue.site.turns.add(queue);
        this.#pump(queue.site);
      }
    } else if (queue.state === 'waiting' && head.nextAt < queue.nextAt) {
      this.#park(queue, head.nextAt);
    }
  }

  /** Stops starting attempts and resolves when those under way have settled. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.();
    this.#lookUps.stop();
    for (const site of this.#sites.values()) site.timer?.cancel();
    await this.#ends.stop();
    if (this.#active > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
  }

  lanes(): LaneView[] {
    const now = this.#options.clock.now();
    return [...this.#lanes.values()].map((lane) => {
      const rules = this.#rules(lane);
      return {
        lane: lane.name.id, active: lane.active, connections: rules.limits.connections, queues: lane.site.turns.size,
        pausedUntil: rules.pausedUntil > now ? rules.pausedUntil : 0, pausedFor: rules.pausedUntil > now ? rules.pausedFor : '',
        ...(lane.held !== undefined && { held: lane.held }),
      };
    });
  }

  /** Recipients who are due on the way to where a lane leads, counted to `most`. */
  due(lane: string, most: number): number {
    const { spool, clock } = this.#options;
    let count = 0;
    for (const { id } of this.#lanes.get(lane)?.site.turns.all() ?? []) {
      if (count >= most) break;
      count += spool.countDue(id, clock.now(), most - count);
    }
    return count;
  }

  /** Something about limits or pauses has changed, of one lane or of all: what may go now goes. */
  refresh(only?: string): void {
    for (const site of this.#sites.values()) {
      if (only !== undefined && !site.lanes.has(only)) continue;
      site.timer?.cancel();
      site.timer = undefined;
      this.#pump(site);
      this.#dropIdle(site);
    }
  }

  /** Lanes may have changed altogether: every queue looks for its lane anew. What is under way goes on. */
  reroute(): void {
    for (const site of this.#sites.values()) {
      for (const queue of site.turns.all()) {
        site.turns.remove(queue);
        queue.site = undefined;
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
    this.#lookUps.add(queue);
  }

  #routed(queue: Queue<Route>, routed: Routed<Route>): void {
    if (this.#stopped) return;
    const id = routed.lane.id.slice(routed.lane.id.indexOf('/') + 1);
    const site = this.#sites.get(id) ?? { id, name: routed.lane, turns: new Turns<Queue<Route>>(), lanes: new Map<string, Lane<Route>>(), tag: 0, timer: undefined };
    this.#sites.set(id, site);
    queue.state = 'active';
    queue.site = site;
    queue.route = routed.route;
    queue.fresh = true;
    for (const { lane } of this.#sources(site, queue.tenant)) this.#laneOf(site, lane);
    site.turns.add(queue);
    this.#pump(site);
  }

  #laneOf(site: Site<Route>, name: LaneName): Lane<Route> {
    const known = site.lanes.get(name.id);
    if (known !== undefined) return known;
    const lane: Lane<Route> = { name, site, active: 0, tag: site.tag, paused: false, pausedUntil: 0, pausedFor: '', unreached: 0, held: undefined };
    site.lanes.set(name.id, lane);
    this.#lanes.set(name.id, lane);
    return lane;
  }

  #sources(site: Site<Route>, tenant: string, stream?: string): readonly Source[] {
    return this.#options.sources?.(site.name, tenant, stream) ?? [{ lane: site.name, weight: 1 }];
  }

  /** Starts as many attempts as the lanes of a site may make now, and sets a timer when only time is missing. */
  #pump(site: Site<Route>): void {
    const tried = new Set<Queue<Route>>();
    while (!this.#stopped && !site.turns.empty && tried.size < TRIES) {
      const now = this.#options.clock.now();
      const open = this.#open(site, now);
      if (open.size === 0) return this.#again(site, now);
      const queue = this.#nextQueue(site, open, now, tried);
      if (queue === undefined && tried.size > 0) break;
      if (queue === undefined) return this.#again(site, now);
      this.#fill(queue, now);
      if (queue.rows.length === 0) {
        site.turns.remove(queue);
        this.#settleQueue(queue);
        continue;
      }
      const chosen = this.#choose(site, queue, open, now);
      if (chosen === undefined) {
        tried.add(queue);
        continue;
      }
      const { lane, row } = chosen;
      queue.rows.splice(queue.rows.indexOf(row), 1);
      // It was read ahead: since then somebody may have held or dropped it, or its time may be over.
      if (this.#passedOver(row.id, row.index) || !this.#options.spool.stillDue(row, now)) continue;
      const of = open.get(lane);
      const gates = of === undefined ? [] : [...of.gates, ...this.#tenantGates(lane, queue.tenant, of.limits)];
      this.#launch(lane, queue, row, this.#permits.take(gates, now));
    }
    if (site.turns.empty) for (const lane of site.lanes.values()) lane.held = undefined;
    else this.#later(site, this.#options.clock.now() + TRY_AGAIN_MS);
  }

  /** The lanes on which something may go, with what it is counted at; the others know why not. */
  #open(site: Site<Route>, now: number): Open<Route> {
    const open = new Map<Lane<Route>, { readonly limits: LaneLimits; readonly gates: readonly GateLimits[] }>();
    for (const lane of site.lanes.values()) {
      const { limits, shared, pausedUntil, pausedFor } = this.#rules(lane);
      const gates = laneGates(lane.name.id, limits, shared);
      // What it missed meanwhile is not made up for.
      if (lane.paused) lane.tag = Math.max(lane.tag, site.tag);
      lane.paused = pausedUntil > now;
      const held = pausedUntil > now ? { by: pausedFor, until: pausedUntil } : this.#permits.holds(lane.name.id, gates, now);
      if (held === undefined) open.set(lane, { limits, gates });
      else this.#hold(lane, held, now);
    }
    return open;
  }

  /** The queue whose turn it is, of a tenant that an open lane is open to. */
  #nextQueue(site: Site<Route>, open: Open<Route>, now: number, tried: ReadonlySet<Queue<Route>>): Queue<Route> | undefined {
    const why = new Map<Lane<Route>, Held>();
    const queue = site.turns.next((tenant) => this.#sources(site, tenant).some(({ lane: name }) => {
      const lane = this.#laneOf(site, name);
      const of = open.get(lane);
      if (of === undefined) return false;
      const held = this.#tenantHeld(lane, tenant, of.limits, now);
      // The earliest to end decides when to look again; one that waits for an attempt needs no timer.
      const before = why.get(lane);
      if (held !== undefined && (before === undefined || (held.until > 0 && (before.until === 0 || held.until < before.until)))) why.set(lane, held);
      return held === undefined;
    }), tried);
    for (const lane of open.keys()) {
      const held = why.get(lane);
      if (queue === undefined && held !== undefined) this.#hold(lane, held, now);
      else lane.held = undefined;
    }
    return queue;
  }

  /** The first row for which a lane is open, and of those the lane that is furthest behind its weight. */
  #choose(site: Site<Route>, queue: Queue<Route>, open: Open<Route>, now: number): { readonly lane: Lane<Route>; readonly row: Waiting; readonly weight: number } | undefined {
    const streams = new Set<string>();
    for (const row of queue.rows) {
      const { stream } = row.message.origin;
      if (streams.has(stream)) continue;
      streams.add(stream);
      const lanes = this.#sources(site, queue.tenant, stream)
        .map(({ lane, weight }) => ({ lane: this.#laneOf(site, lane), row, weight }))
        .filter(({ lane }) => !lane.paused && (this.#options.tenantPausedUntil?.(lane.name.id, queue.tenant) ?? 0) <= now);
      // Weights are shares: a lane that is busy keeps its own, and the others go ahead of it by little.
      const start = (lane: Lane<Route>): number => (open.has(lane) ? Math.max(lane.tag, site.tag) : lane.tag);
      const least = Math.min(...lanes.map(({ lane }) => start(lane)));
      const [best] = lanes
        .filter(({ lane }) => {
          const of = open.get(lane);
          return of !== undefined && start(lane) <= least + LEAD && this.#tenantHeld(lane, queue.tenant, of.limits, now) === undefined;
        })
        .sort((a, b) => start(a.lane) - start(b.lane) || b.weight - a.weight);
      if (best === undefined) continue;
      best.lane.tag = start(best.lane) + 1 / best.weight;
      site.tag = Math.max(site.tag, least);
      return best;
    }
    return undefined;
  }

  /** Looks again when the first of the lanes may go. */
  #again(site: Site<Route>, now: number): void {
    const times = [...site.lanes.values()].flatMap(({ held }) => (held === undefined || held.until === 0 ? [] : [held.until]));
    // Limits may grow meanwhile, step by step: nobody waits longer than this on a number of yesterday.
    if (times.length > 0) this.#later(site, Math.min(now + LOOK_AGAIN_MS, ...times));
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
  }

  #later(site: Site<Route>, at: number): void {
    if (site.timer !== undefined && site.timer.at <= at) return;
    site.timer?.cancel();
    const cancel = this.#options.clock.after(Math.max(1, at - this.#options.clock.now()), () => {
      site.timer = undefined;
      this.#pump(site);
      this.#dropIdle(site);
    });
    site.timer = { at, cancel };
  }

  #fill(queue: Queue<Route>, now: number): void {
    if (queue.rows.length === 0 && queue.fresh) {
      queue.rows = this.#options.spool.due(queue.id, now, READ_AHEAD, (id, index) => this.#passedOver(id, index));
      queue.fresh = queue.rows.length === READ_AHEAD;
    }
  }

  #launch(lane: Lane<Route>, queue: Queue<Route>, row: Waiting, permit: Permit): void {
    const { run, clock } = this.#options;
    const key = rowKey(row);
    const route = queue.route as Route;
    queue.running += 1;
    this.#running.add(key);
    lane.active += 1;
    this.#active += 1;
    this.#options.started?.(lane.name);
    run(row as Due, lane.name, route).then(
      ({ reached }) => this.#reached(lane, reached),
      (error: unknown) => this.#bug(error, 'run', () => this.#resting.set(key, clock.now() + BUG_PAUSE_MS)),
    ).finally(() => {
      queue.running -= 1;
      this.#running.delete(key);
      lane.active -= 1;
      this.#active -= 1;
      this.#permits.give(permit);
      if (queue.rows.length === 0 && !queue.fresh && queue.running === 0) this.#settleQueue(queue);
      this.#pump(lane.site);
      this.#dropIdle(lane.site);
      if (this.#active === 0) this.#idle?.();
    });
  }

  /** Under way, or resting after a bug. */
  #passedOver(id: MessageId, index: number): boolean {
    const key = rowKey({ id, index });
    return this.#running.has(key) || (this.#resting.get(key) ?? 0) > this.#options.clock.now();
  }

  /** Its time was over and no attempt could be made. */
  async #end(row: Waiting, queue: Queue<Route> | undefined): Promise<void> {
    const key = rowKey(row);
    this.#running.add(key);
    if (queue !== undefined) queue.running += 1;
    try {
      await this.#options.ended(row as Due, queue?.site?.name);
    } catch (error) {
      this.#bug(error, 'end', () => this.#resting.set(key, this.#options.clock.now() + BUG_PAUSE_MS));
    } finally {
      this.#running.delete(key);
      if (queue !== undefined) {
        queue.running -= 1;
        this.#settleQueue(queue);
      }
    }
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
    if (queue.state !== 'active' || queue.running > 0 || queue.fresh || queue.rows.length > 0) return;
    queue.site?.turns.remove(queue);
    queue.site = undefined;
    queue.route = undefined;
    const nextAt = this.#options.spool.nextAt(queue.id);
    if (nextAt === undefined) {
      this.#queues.delete(queue.id);
      return;
    }
    // What is due and was not found just now rests after a bug, or is being ended or held: to look at once again would be to spin.
    const now = this.#options.clock.now();
    this.#sweepResting(now);
    this.#park(queue, nextAt > now ? nextAt : now + (this.#resting.size > 0 ? BUG_PAUSE_MS : TRY_AGAIN_MS));
  }

  #sweepResting(now: number): void {
    for (const [key, until] of this.#resting) if (until <= now) this.#resting.delete(key);
  }

  #dropIdle(site: Site<Route>): void {
    // A lane that is paused or rate-limited keeps its state, or a quiet second would reset its limits.
    const now = this.#options.clock.now();
    if (!site.turns.empty || this.#sites.get(site.id) !== site) return;
    for (const lane of site.lanes.values()) if (lane.active > 0 || !this.#permits.idle(lane.name.id, now) || lane.pausedUntil > now) return;
    site.timer?.cancel();
    this.#sites.delete(site.id);
    for (const id of site.lanes.keys()) this.#lanes.delete(id);
  }

  #bug(error: unknown, where: string, then: () => void): void {
    this.#options.metrics.bugs.inc({ room: 'schedule' });
    this.#options.log.error({ where, err: error instanceof Error ? error.stack : String(error) }, 'unexpected exception; the row waits');
    then();
  }
}
