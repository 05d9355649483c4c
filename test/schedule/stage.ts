// What the schedule's tests share: a real spool, a clock that the test moves, and attempts that end when the
// test says so.
import { mkdtempSync, rmSync } from 'node:fs';
import { createSecretKey } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Due, Priority } from '../../daemon/mail/index.ts';
import { Metrics, openKeyring, openLog, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { Schedule, type LaneName, type ScheduleOptions } from '../../daemon/schedule/index.ts';
import type { LaneLimits } from '../../daemon/settings/index.ts';
import { openSpool, type Spool } from '../../daemon/spool/index.ts';
import { composed } from '../spool/room.ts';

export const LIMITS: LaneLimits = { connections: 2, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 100, tls: 'opportunistic', idleMs: 1000, tenantConnections: undefined, tenantMessageRate: undefined };

export interface Stage {
  readonly spool: Spool;
  readonly schedule: Schedule<string>;
  /** Another one over the same spool, as after a start. */
  readonly again: () => Promise<void>;
  readonly ran: Due[];
  /** Egress of each, in the same order. */
  readonly lanes: string[];
  /** Whose time was over before an attempt could be made. */
  readonly ended: { readonly due: Due; readonly lane: string }[];
  /** Ends the oldest attempt under way. */
  readonly finish: (reached?: boolean) => Promise<void>;
  readonly store: (tenant: string, domain: string, more?: { readonly priority?: Priority; readonly forMs?: number }) => Promise<string>;
  readonly move: (ms: number) => void;
}

/** A schedule over a spool in a folder of its own; each domain is a site unless `more` says otherwise. */
export async function stage(t: Tap, limits: LaneLimits = LIMITS, settle: 'done' | 'later' | 'throw' = 'done', more: Partial<ScheduleOptions<string>> = {}): Promise<Stage> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-schedule-'));
  const timers: { at: number; run: () => void }[] = [];
  let now = Date.now();
  const clock: Clock = {
    now: () => now,
    after(ms, run) {
      const timer = { at: now + ms, run };
      timers.push(timer);
      return () => void timers.splice(timers.indexOf(timer), timers.includes(timer) ? 1 : 0);
    },
  };
  const log = openLog('silent');
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(Buffer.alloc(32, 7)));
  // The spool keeps its own house on the system's clock for its background work.
  const spool = await openSpool({ dir: join(dir, 'spool'), keyring, clock: { ...systemClock, now: () => now }, log, reserveBytes: 0 });
  const ran: Due[] = [];
  const lanes: string[] = [];
  const ended: { due: Due; lane: string }[] = [];
  const open: (() => Promise<void>)[] = [];
  const make = (): Schedule<string> => new Schedule<string>({
    spool, clock, log, metrics: new Metrics(),
    route: async (_tenant, domain) => ({ lane: { id: `one/${domain}`, label: 'one/other', egress: 'one', provider: '' } satisfies LaneName, route: domain }),
    rules: () => ({ limits, shared: [], pausedUntil: 0, pausedFor: '' }),
    ended: async (due, lane) => {
      ended.push({ due, lane: lane?.id ?? '' });
      await spool.settle(due, { kind: 'done' });
    },
    run: (due, lane) => new Promise((resolve, reject) => {
      ran.push(due);
      lanes.push(lane.egress);
      let reached = true;
      const end = async (): Promise<void> => {
        if (settle === 'throw') return reject(new Error('a bug'));
        await spool.settle(due, settle === 'done' ? { kind: 'done' } : { kind: 'later', nextAt: now + 60_000, lastReply: '450 later' });
        resolve({ reached });
      };
      open.push(Object.assign(end, { unreached: () => (reached = false) }));
    }),
    ...more,
  });
  let schedule = make();
  schedule.start();
  const stop = async (): Promise<void> => {
    const stopped = schedule.stop();
    await Promise.all(open.splice(0).map((end) => end()));
    await stopped;
  };
  t.teardown(async () => {
    await stop();
    await spool.close();
    rmSync(dir, { recursive: true });
  });
  return {
    spool, ran, lanes, ended,
    get schedule() {
      return schedule;
    },
    async again() {
      await stop();
      schedule = make();
      schedule.start();
      await quiet();
    },
    async finish(reached = true) {
      const end = open.shift() as (() => Promise<void>) & { unreached: () => void };
      if (!reached) end.unreached();
      await end();
      await quiet();
    },
    async store(tenant, domain, { priority = 'normal', forMs = 86_400_000 } = {}) {
      const message = composed([`reader@${domain}`], 100, tenant, now);
      await spool.store(message, { expiresAt: now + forMs, priority });
      await quiet();
      return message.id;
    },
    move(ms) {
      now += ms;
      for (const timer of timers.splice(0).toSorted((a, b) => a.at - b.at)) {
        if (timer.at <= now) timer.run();
        else timers.push(timer);
      }
    },
  };
}

interface Tap {
  teardown(run: () => Promise<void>): void;
}

/** Until what was begun has settled. */
export const quiet = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 15));
