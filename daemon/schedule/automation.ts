// What receivers say changes how we send (rules of shaping.yaml). Each lane has the actions that rules have
// begun on it, and a share of its limits: every action that ends leaves the lane with little, and it gets
// back a fixed part at a time, so that it comes back gently. Callers may rely on: replies to attempts begun
// before a rule acted do not make it act again; where several actions hold, the strictest does; nothing is
// forgotten over a reload or a restart; what is told of a lane names no tenant but the one concerned, and
// what a receiver said to one tenant is told to nobody else.
import { replyLine, type Outcome } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import { isTooMany, laneLimits, REPLY_LOOKED_AT, type AutomationAction, type AutomationRule, type LaneLimits, type Rate, type Shaping } from '../settings/index.ts';

/** One action in force. */
export interface Action {
  readonly lane: string;
  readonly rule: string;
  readonly action: AutomationAction | 'recover';
  /** With suspend-tenant: whom it concerns; else ''. */
  readonly tenant: string;
  readonly since: number;
  readonly until: number;
  /** With slow. */
  readonly rate?: Rate;
  /** With recover: what of its limits the lane has now, 0 to 1. */
  readonly share?: number;
}

/** What a lane keeps for its way back. */
interface Recovery {
  /** 0 to 1: share of the lane's limits when the action has ended. */
  readonly share: number;
  /** The same until then. */
  readonly during: number;
  /** Only connections came to be few; rates are as they were. */
  readonly connectionsOnly: boolean;
  /** All that was said was said to mail: connections may be opened as fast as ever, the messages on them are few. */
  readonly opensFreely: boolean;
  /** When the action ends: from then on the share grows. */
  readonly from: number;
  readonly since: number;
  readonly rule: string;
  /** Told off again on its way back: until then the lane stays below the share at which that was. */
  readonly ceiling?: { readonly share: number; readonly until: number };
}

/** What outlives a restart. */
export interface AutomationState {
  readonly actions: readonly Action[];
  readonly recoveries: readonly (Recovery & { readonly lane: string })[];
}

export interface AutomationOptions {
  readonly shaping: () => Shaping;
  readonly clock: Clock;
  /** Hears of an action that begins or ends, by whom, with the lane's metric label where it is known. */
  readonly onChange: (change: 'began' | 'ended', action: Action, by: string, label: string) => void;
  readonly state?: AutomationState;
}

/** Whose attempt it was. */
export interface ObservedLane {
  readonly id: string;
  readonly label: string;
  readonly provider: string;
  readonly egress: string;
}

interface Watched {
  /** Matches of a reply rule, or bad ends of a share rule, ascending. */
  readonly hits: number[];
  /** Attempts of a share rule. */
  readonly all: number[];
  actedAt: number;
}

// The class of bounces.yaml for a receiver that asks every stranger to come back: it says nothing of how we send, so no
// share counts it. A rule whose own pattern answers to such a reply acts all the same.
const GREYLISTED = 'greylisted';
// A reply of these phases is to the connection, a later one to the mail on it.
const AT_CONNECTING: ReadonlySet<Outcome['phase']> = new Set(['connect', 'tls', 'greet']);
// A lane that was suspended begins with this: one connection, and a little.
const LEAST = 0.05;
// Of the share at which a lane was told off on its way back it gets so much from then on: the receiver said no to
// the whole of it, and what it bears lies between that and the step before.
const BELOW = 0.8;
// Counters are forgotten when there are so many; then rules begin to count anew.
const WATCHED = 20_000;
// Times kept for one share rule: more attempts than that in the window, and the oldest are left out.
const TIMES = 5_000;

/** One a process. */
export class Automation {
  readonly #options: AutomationOptions;
  readonly #actions = new Map<string, Action[]>();
  readonly #recoveries = new Map<string, Recovery>();
  readonly #watched = new Map<string, Watched>();

  constructor(options: AutomationOptions) {
    this.#options = options;
    for (const action of options.state?.actions ?? []) this.#actions.set(action.lane, [...this.#actions.get(action.lane) ?? [], action]);
    for (const { lane, ...recovery } of options.state?.recoveries ?? []) this.#recoveries.set(lane, recovery);
  }

  /** Takes note of what an attempt came to that began at `startedAt`. */
  observe(lane: ObservedLane, tenant: string, outcome: Outcome, startedAt: number): void {
    const rules = this.#options.shaping().automation;
    // Most attempts of most houses end well, and then only shares are of interest.
    if (rules.length === 0 || outcome.phase === 'gate' || outcome.phase === 'dns') return;
    const line = outcome.reply === undefined || outcome.kind === 'delivered' ? '' : replyLine(outcome.reply).slice(0, REPLY_LOOKED_AT);
    const now = this.#options.clock.now();
    for (const rule of rules) {
      if (rule.provider !== undefined && rule.provider !== lane.provider) continue;
      if (rule.reply !== undefined ? line !== '' && rule.reply.pattern.test(line) : rule.share !== undefined && outcome.class !== GREYLISTED) this.#count(rule, lane, tenant, outcome, startedAt, now);
    }
  }

  /** What holds for a lane now, made from what shaping.yaml says. */
  limits(lane: string, base: LaneLimits): LaneLimits {
    const now = this.#options.clock.now();
    const actions = this.#inForce(lane, now);
    const share = this.#share(lane, now);
    if (actions.length === 0 && share === 1) return base;
    const recovery = this.#recoveries.get(lane);
    const pace = recovery?.connectionsOnly === true ? 1 : share;
    const rates = actions.flatMap(({ rate }) => (rate === undefined ? [] : [rate]));
    return {
      ...base,
      connections: actions.some(({ action }) => action === 'single') ? 1 : Math.max(1, Math.floor(base.connections * share)),
      messageRate: slowest([...rates, ...(base.messageRate === undefined ? [] : [scaled(base.messageRate, pace)])]),
      connectionRate: base.connectionRate === undefined ? undefined : scaled(base.connectionRate, recovery?.opensFreely === true ? 1 : pace),
    };
  }

  /** Until when nothing goes on a lane, and why; 0: it may. */
  suspended(lane: string): { readonly pausedUntil: number; readonly pausedFor: string } {
    const action = this.#inForce(lane, this.#options.clock.now()).filter((one) => one.action === 'suspend').toSorted((a, b) => b.until - a.until)[0];
    return action === undefined ? { pausedUntil: 0, pausedFor: '' } : { pausedUntil: action.until, pausedFor: `suspended by rule ${action.rule}` };
  }

  /** Until when a tenant's mail rests on a lane; 0: it may go. */
  tenantSuspended(lane: string, tenant: string): number {
    return Math.max(0, ...this.#inForce(lane, this.#options.clock.now()).filter((one) => one.action === 'suspend-tenant' && one.tenant === tenant).map(({ until }) => until));
  }

  /** Everything in force; a lane on its way back is an action `recover` too. */
  list(): readonly Action[] {
    const now = this.#options.clock.now();
    const { recovery: steps } = this.#options.shaping();
    const back = [...this.#recoveries].filter(([lane]) => this.#share(lane, now) < 1).map(([lane, recovery]): Action => ({
      lane, rule: recovery.rule, action: 'recover', tenant: '', since: recovery.since, until: wholeAt(recovery, steps), share: this.#share(lane, now),
    }));
    return [...[...this.#actions.keys()].flatMap((lane) => this.#inForce(lane, now)), ...back];
  }

  /** How much of its limits a lane has, 0 to 1. */
  shareOf(lane: string): number {
    return this.#share(lane, this.#options.clock.now());
  }

  /** Ends what fits, at once and wholly. @returns how many actions ended */
  lift(which: (action: Action) => boolean, by: string): number {
    const ended = this.list().filter(which);
    for (const one of ended) {
      if (one.action === 'recover') this.#recoveries.delete(one.lane);
      else this.#set(one.lane, (this.#actions.get(one.lane) ?? []).filter((known) => known !== one));
      // Nothing is left to come back from.
      if ((this.#actions.get(one.lane) ?? []).every(({ action }) => action === 'suspend-tenant')) this.#recoveries.delete(one.lane);
      for (const key of this.#watched.keys()) if (key.startsWith(`${one.rule}\n${one.lane}\n`)) this.#watched.delete(key);
      this.#options.onChange('ended', one, by, '');
    }
    return ended.length;
  }

  /** Tells of what has ended by itself. */
  sweep(): void {
    const now = this.#options.clock.now();
    for (const [lane, actions] of this.#actions) {
      const ended = actions.filter(({ until }) => until <= now);
      if (ended.length === 0) continue;
      this.#set(lane, actions.filter(({ until }) => until > now));
      for (const one of ended) this.#options.onChange('ended', one, 'time', '');
    }
    for (const lane of this.#recoveries.keys()) if (this.#share(lane, now) >= 1) this.#recoveries.delete(lane);
  }

  state(): AutomationState {
    return { actions: [...this.#actions.values()].flat(), recoveries: [...this.#recoveries].map(([lane, recovery]) => ({ lane, ...recovery })) };
  }

  #set(lane: string, actions: Action[]): void {
    if (actions.length === 0) this.#actions.delete(lane);
    else this.#actions.set(lane, actions);
  }

  #inForce(lane: string, now: number): readonly Action[] {
    return this.#actions.get(lane)?.filter(({ until }) => until > now) ?? [];
  }

  #share(lane: string, now: number): number {
    const recovery = this.#recoveries.get(lane);
    if (recovery === undefined) return 1;
    return now < recovery.from ? recovery.during : grown(recovery, now, this.#options.shaping().recovery);
  }

  #count(rule: AutomationRule, lane: ObservedLane, tenant: string, outcome: Outcome, startedAt: number, now: number): void {
    const of = rule.action === 'suspend-tenant' ? tenant : '';
    const key = `${rule.id}\n${lane.id}\n${of}`;
    if (this.#watched.size >= WATCHED) this.#watched.clear();
    const seen = this.#watched.get(key) ?? { hits: [], all: [], actedAt: 0 };
    this.#watched.set(key, seen);
    // It was on its way when the rule acted: it says nothing about what the action did.
    if (startedAt <= seen.actedAt) return;
    const { reply, share } = rule;
    const windowMs = reply?.perMs ?? share?.withinMs ?? 0;
    forget(seen.hits, now - windowMs);
    forget(seen.all, now - windowMs);
    if (share !== undefined) seen.all.push(now);
    if (share === undefined || outcome.kind === share.of) seen.hits.push(now);
    if (reply !== undefined ? seen.hits.length < reply.count : share !== undefined && !isTooMany(seen.hits.length, seen.all.length, share)) return;
    seen.hits.length = 0;
    seen.all.length = 0;
    seen.actedAt = now;
    this.#act(rule, lane, of, outcome, now);
  }

  #act(rule: AutomationRule, lane: ObservedLane, tenant: string, outcome: Outcome, now: number): void {
    const until = now + rule.forMs;
    const action: Action = { lane: lane.id, rule: rule.id, action: rule.action, tenant, since: now, until, ...(rule.rate !== undefined && { rate: rule.rate }) };
    // The same again takes the place of what it was.
    this.#set(lane.id, [...(this.#actions.get(lane.id) ?? []).filter((one) => one.rule !== rule.id || one.tenant !== tenant), action]);
    if (rule.action !== 'suspend-tenant') this.#recoverFrom(rule, lane, outcome, now, until);
    this.#options.onChange('began', action, 'automation', lane.label);
  }

  #recoverFrom(rule: AutomationRule, lane: ObservedLane, { phase }: Outcome, now: number, until: number): void {
    const before = this.#recoveries.get(lane.id);
    const share = this.#share(lane.id, now);
    const left = leftBy(rule, laneLimits(this.#options.shaping(), lane), share);
    const growing = before !== undefined && now >= before.from && share < 1;
    const ceiling = growing ? { share: Math.max(LEAST, share * BELOW), until: until + this.#options.shaping().recovery.holdMs } : before?.ceiling;
    this.#recoveries.set(lane.id, {
      share: Math.min(left, before !== undefined && before.from > now ? before.share : 1), during: rule.action === 'halve' ? left : share,
      connectionsOnly: rule.action === 'single' && (before === undefined || share === 1 || before.connectionsOnly),
      opensFreely: !AT_CONNECTING.has(phase) && (before === undefined || share === 1 || before.opensFreely),
      from: Math.max(until, before?.from ?? 0), since: now, rule: rule.id, ...(ceiling !== undefined && { ceiling }),
    });
  }
}

interface Steps {
  readonly add: number;
  readonly everyMs: number;
}

/** The share of a lane on its way back: step by step, below its ceiling while that holds, and on from there. */
function grown({ share, from, ceiling }: Recovery, now: number, { add, everyMs }: Steps): number {
  const free = (at: number): number => share + Math.floor(Math.max(0, at - from) / everyMs) * add;
  if (ceiling === undefined) return Math.min(1, free(now));
  const below = Math.min(ceiling.share, free(Math.min(now, ceiling.until)));
  return now < ceiling.until ? below : Math.min(1, below + Math.floor((now - ceiling.until) / everyMs) * add);
}

/** When it has all of its limits again. */
function wholeAt(recovery: Recovery, steps: Steps): number {
  const { ceiling, from, share } = recovery;
  const [at, has] = ceiling === undefined ? [from, share] : [ceiling.until, grown(recovery, ceiling.until, steps)];
  return at + Math.ceil((1 - has) / steps.add) * steps.everyMs;
}

/** What a lane begins again with when an action has ended. */
function leftBy({ action, rate }: AutomationRule, { connections, messageRate }: LaneLimits, share: number): number {
  if (action === 'halve') return Math.max(LEAST, share / 2);
  if (action === 'single') return Math.min(share, 1 / connections);
  if (rate === undefined || messageRate === undefined) return LEAST;
  return Math.min(share, Math.max(LEAST, rate.count / rate.perMs / (messageRate.count / messageRate.perMs)));
}

function forget(times: number[], before: number): void {
  let old = 0;
  while ((times[old] ?? Number.POSITIVE_INFINITY) <= before) old++;
  if (times.length - old > TIMES) old = times.length - TIMES;
  if (old > 0) times.splice(0, old);
}

function scaled(rate: Rate, share: number): Rate {
  if (share >= 1) return rate;
  const count = rate.count * share;
  return count >= 1 ? { count: Math.floor(count), perMs: rate.perMs, burst: 1 } : { count: 1, perMs: Math.ceil(rate.perMs / count), burst: 1 };
}

function slowest(rates: readonly Rate[]): Rate | undefined {
  return rates.toSorted((a, b) => a.count / a.perMs - b.count / b.perMs)[0];
}
