// The schedule against a real spool and a clock that the test moves: who goes next, how many at once,
// when again. `run` is the test's: it stands for the attempt.
import { mkdtempSync, rmSync } from 'node:fs';
import { createSecretKey } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t from 'tap';
import type { Due } from '../../daemon/mail/index.ts';
import { Metrics, openKeyring, openLog, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { TimeHeap } from '../../daemon/schedule/heap.ts';
import { backoffMs, Schedule, type LaneName } from '../../daemon/schedule/index.ts';
import { Turns } from '../../daemon/schedule/turns.ts';
import type { LaneLimits } from '../../daemon/settings/index.ts';
import { openSpool, type Spool } from '../../daemon/spool/index.ts';
import { composed } from '../spool/room.ts';

t.test('the heap gives back what was put in, in order', async (t) => {
  fc.assert(fc.property(fc.array(fc.integer({ min: 0, max: 1000 })), (times) => {
    const heap = new TimeHeap<number>();
    for (const [i, at] of times.entries()) heap.push(at, i);
    const out: number[] = [];
    for (let top = heap.pop(); top !== undefined; top = heap.pop()) out.push(top.at);
    t.same(out, times.toSorted((a, b) => a - b));
  }), { numRuns: 200 });
});

t.test('turns: tenants alternate whatever they have, and queues within a tenant', async (t) => {
  const turns = new Turns<{ readonly tenant: string; readonly name: string }>();
  const queues = [['big', 'a'], ['big', 'b'], ['big', 'c'], ['small', 'd']].map(([tenant = '', name = '']) => ({ tenant, name }));
  for (const queue of queues) turns.add(queue);
  t.same(Array.from({ length: 6 }, () => turns.next()?.name), ['a', 'd', 'b', 'd', 'c', 'd']);
  for (const queue of queues) turns.remove(queue);
  t.ok(turns.empty);
  t.equal(turns.next(), undefined);
});

t.test('back-off doubles to its end with a quarter of jitter, and hears what the receiver asks', async (t) => {
  const retry = { firstMs: 300_000, maxMs: 14_400_000 };
  t.same([1, 2, 3, 7, 50].map((n) => backoffMs(n, retry, 0.5)), [300_000, 600_000, 1_200_000, 14_400_000, 14_400_000]);
  t.equal(backoffMs(1, retry, 0), 225_000);
  t.equal(backoffMs(1, retry, 1), 375_000);
  t.equal(backoffMs(1, retry, 0.5, 3_600_000), 3_600_000);
  t.equal(backoffMs(1, retry, 0.5, 999_999_999), 14_400_000, 'but not past the end');
});

const LIMITS: LaneLimits = { connections: 2, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 100, tls: 'opportunistic', idleMs: 1000, tenantConnections: undefined, tenantMessageRate: undefined };

interface Stage {
  readonly spool: Spool;
  readonly schedule: Schedule<string>;
  readonly ran: Due[];
  /** Ends the oldest attempt under way. */
  readonly finish: (reached?: boolean) => Promise<void>;
  readonly store: (tenant: string, domain: string) => Promise<string>;
  readonly move: (ms: number) => void;
}

async function stage(t: Tap, limits: LaneLimits = LIMITS, settle: 'done' | 'later' | 'throw' = 'done'): Promise<Stage> {
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
  const open: (() => Promise<void>)[] = [];
  const schedule = new Schedule<string>({
    spool, clock, log, metrics: new Metrics(),
    route: async (_tenant, domain) => ({ lane: { id: `one/${domain}`, label: 'one/other', egress: 'one', provider: '' } satisfies LaneName, route: domain }),
    rules: () => ({ limits, shared: [], pausedUntil: 0, pausedFor: '' }),
    run: (due) => new Promise((resolve, reject) => {
      ran.push(due);
      let reached = true;
      const end = async (): Promise<void> => {
        if (settle === 'throw') return reject(new Error('a bug'));
        await spool.settle(due, settle === 'done' ? { kind: 'done' } : { kind: 'later', nextAt: now + 60_000, lastReply: '450 later' });
        resolve({ reached });
      };
      open.push(Object.assign(end, { unreached: () => (reached = false) }));
    }),
  });
  schedule.start();
  t.teardown(async () => {
    const stopped = schedule.stop();
    await Promise.all(open.splice(0).map((end) => end()));
    await stopped;
    await spool.close();
    rmSync(dir, { recursive: true });
  });
  return {
    spool, schedule, ran,
    async finish(reached = true) {
      const end = open.shift() as (() => Promise<void>) & { unreached: () => void };
      if (!reached) end.unreached();
      await end();
      await quiet();
    },
    async store(tenant, domain) {
      const message = composed([`reader@${domain}`], 100, tenant, now);
      await spool.store(message, { expiresAt: now + 86_400_000 });
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

const quiet = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 15));

t.test('no more at once than the lane may have, and each row once', async (t) => {
  const { store, ran, finish } = await stage(t);
  for (let i = 0; i < 5; i++) await store('acme', 'd.example');
  t.equal(ran.length, 2);
  await finish();
  t.equal(ran.length, 3);
  for (let i = 0; i < 4; i++) await finish();
  t.equal(ran.length, 5);
  t.equal(new Set(ran.map((due) => due.id)).size, 5);
});

t.test('a newcomer waits for one message of the other tenant, not for its backlog', async (t) => {
  const { store, ran, finish } = await stage(t, { ...LIMITS, connections: 1 });
  for (let i = 0; i < 50; i++) await store('big', 'd.example');
  await finish();
  const mine = await store('small', 'd.example');
  const before = ran.length;
  await finish();
  await finish();
  t.ok(ran.slice(before).some((due) => due.id === mine));
});

t.test('what is deferred comes back when its time has come, not before', async (t) => {
  const { store, ran, finish, move } = await stage(t, LIMITS, 'later');
  await store('acme', 'd.example');
  await finish();
  t.equal(ran.length, 1);
  move(59_000);
  await quiet();
  t.equal(ran.length, 1);
  move(2_000);
  await quiet();
  t.equal(ran.length, 2);
  t.equal(ran[1]?.recipient.attempts, 1);
});

t.test('the message rate of a lane holds to the message', async (t) => {
  const { store, ran, finish, move } = await stage(t, { ...LIMITS, connections: 10, messageRate: { count: 2, perMs: 1000, burst: 1 } });
  for (let i = 0; i < 4; i++) await store('acme', 'd.example');
  t.equal(ran.length, 1);
  move(499);
  await quiet();
  t.equal(ran.length, 1);
  move(11);
  await quiet();
  t.equal(ran.length, 2);
  await finish();
  move(1000);
  await quiet();
  t.equal(ran.length, 3, 'a quiet second is not saved up');
});

t.test('a lane that reaches nobody pauses', async (t) => {
  const { store, ran, finish, move, schedule } = await stage(t, { ...LIMITS, connections: 1 });
  for (let i = 0; i < 12; i++) await store('acme', 'd.example');
  for (let i = 0; i < 10; i++) await finish(false);
  t.equal(ran.length, 10);
  t.match(schedule.lanes()[0]?.pausedFor, /reached nobody/);
  move(60_001);
  await quiet();
  t.equal(ran.length, 11);
});

t.test('a bug in an attempt loses nothing and does not spin', async (t) => {
  const { store, ran, finish, move, spool } = await stage(t, LIMITS, 'throw');
  const id = await store('acme', 'd.example');
  await finish();
  await quiet();
  t.equal(ran.length, 1);
  t.equal(spool.show(id)?.recipients.length, 1, 'it still waits');
  move(30_001);
  await quiet();
  t.equal(ran.length, 2);
});
