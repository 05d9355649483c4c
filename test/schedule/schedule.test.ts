// The schedule against a real spool and a clock that the test moves: who goes next, how many at once,
// when again. `run` is the test's: it stands for the attempt.
import * as fc from 'fast-check';
import t from 'tap';
import { PRIORITIES, type Due, type Priority } from '../../daemon/mail/index.ts';
import type { Clock } from '../../daemon/runtime/index.ts';
import { TimeHeap } from '../../daemon/schedule/heap.ts';
import { backoffMs, WarmUp, type LaneName } from '../../daemon/schedule/index.ts';
import { Turns } from '../../daemon/schedule/turns.ts';
import { LIMITS, quiet, stage } from './stage.ts';

// On a busy machine it takes longer than the usual half minute.
t.setTimeout(120_000);

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
  const turns = new Turns<{ readonly tenant: string; readonly name: string; readonly priority: Priority }>();
  const queues = [['big', 'a'], ['big', 'b'], ['big', 'c'], ['small', 'd']].map(([tenant = '', name = '']) => ({ tenant, name, priority: 'normal' as const }));
  for (const queue of queues) turns.add(queue);
  t.same(Array.from({ length: 6 }, () => turns.next()?.name), ['a', 'd', 'b', 'd', 'c', 'd']);
  for (const queue of queues) turns.remove(queue);
  t.ok(turns.empty);
  t.equal(turns.next(), undefined);
});

t.test('turns: of one tenant what is higher goes first, and one turn of eight goes below', async (t) => {
  const turns = new Turns<{ readonly tenant: string; readonly priority: Priority }>();
  const of = (tenant: string): { tenant: string; priority: Priority }[] => PRIORITIES.map((priority) => ({ tenant, priority }));
  const [mine, urgent] = [of('acme'), { tenant: 'pushy', priority: 'high' as const }];
  for (const queue of mine.toReversed()) turns.add(queue);
  const count = (n: number): Record<string, number> => {
    const seen: Record<string, number> = {};
    for (let i = 0; i < n; i++) {
      const { tenant = '', priority = '' } = turns.next() ?? {};
      seen[tenant === 'acme' ? priority : tenant] = (seen[tenant === 'acme' ? priority : tenant] ?? 0) + 1;
    }
    return seen;
  };
  t.same(count(64), { high: 56, normal: 7, low: 1 });
  turns.add(urgent);
  t.same(count(128), { pushy: 64, high: 56, normal: 7, low: 1 }, 'nobody gets in front of another tenant');
  t.equal(turns.next(() => true, new Set([urgent, ...mine.slice(0, 2)]))?.priority, 'low', 'past those that cannot go');
  const [high, normal, low] = mine as [typeof urgent, typeof urgent, typeof urgent];
  turns.remove(urgent);
  turns.remove(normal);
  t.same(count(64), { high: 56, low: 8 });
  turns.remove(high);
  turns.remove(high);
  t.same([turns.size, turns.next()], [1, low]);
});

t.test('back-off doubles to its end with a quarter of jitter, and hears what the receiver asks', async (t) => {
  const retry = { firstMs: 300_000, maxMs: 14_400_000 };
  t.same([1, 2, 3, 7, 50].map((n) => backoffMs(n, retry, 0.5)), [300_000, 600_000, 1_200_000, 14_400_000, 14_400_000]);
  t.equal(backoffMs(1, retry, 0), 225_000);
  t.equal(backoffMs(1, retry, 1), 375_000);
  t.equal(backoffMs(1, retry, 0.5, 3_600_000), 3_600_000);
  t.equal(backoffMs(1, retry, 0.5, 999_999_999), 14_400_000, 'but not past the end');
});


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

t.test('what matters goes in front of the same tenant\'s backlog, and of nobody else\'s', async (t) => {
  const { store, ran, finish } = await stage(t, { ...LIMITS, connections: 1 });
  const names = new Map<string, string>();
  const put = async (n: number, tenant: string, priority: Priority): Promise<void> => {
    for (let i = 0; i < n; i++) names.set(await store(tenant, 'd.example', { priority }), `${tenant} ${priority}`);
  };
  await put(40, 'acme', 'low');
  await put(1, 'acme', 'high');
  await finish();
  t.same(ran.map(({ id }) => names.get(id)), ['acme low', 'acme high'], 'the next attempt is its own');
  await put(30, 'acme', 'high');
  await put(30, 'other', 'normal');
  const before = ran.length;
  for (let i = 0; i < 32; i++) await finish();
  const seen = ran.slice(before).map(({ id }) => names.get(id));
  t.equal(seen.filter((name) => name === 'other normal').length, 16, 'the other tenant has every second turn');
  t.equal(seen.filter((name) => name === 'acme low').length, 2, 'and what is low starves not: one of eight');
});

t.test('what was read ahead and then held or dropped is not attempted', async (t) => {
  const { store, ran, finish, spool, move } = await stage(t, { ...LIMITS, connections: 1 });
  const ids: string[] = [];
  for (let i = 0; i < 6; i++) {
    ids.push(await store('acme', 'd.example'));
    move(1);
  }
  await finish();
  await spool.drop({ id: ids[2] ?? '' });
  await spool.hold({ id: ids[3] ?? '' });
  while (ran.length < 4) await finish();
  await finish();
  t.same(ran.map(({ id }) => ids.indexOf(id)), [0, 1, 4, 5]);
  await spool.release({});
  await quiet();
  t.equal(ids.indexOf(ran[4]?.id ?? ''), 3, 'and what is let go goes');
});

const MINUTE = 60_000;

t.test('whose time is over ends then, though the lane is suspended, and nobody else does', async (t) => {
  let pausedUntil = 0;
  const { store, ran, ended, finish, move, spool, schedule } = await stage(t, { ...LIMITS, connections: 1 }, 'done', { rules: () => ({ limits: { ...LIMITS, connections: 1 }, shared: [], pausedUntil, pausedFor: 'suspended' }) });
  const step = async (ms: number): Promise<void> => {
    for (let passed = 0; passed < ms; passed += MINUTE / 4) {
      move(MINUTE / 4);
      await quiet();
    }
  };
  const first = await store('acme', 'd.example', { forMs: 60 * MINUTE });
  pausedUntil = Date.now() + 30 * 86_400_000;
  const waits = await store('acme', 'd.example', { forMs: 60 * MINUTE });
  const urgent = await store('acme', 'd.example', { forMs: 20 * MINUTE, priority: 'high' });
  const held = await store('acme', 'd.example', { forMs: 20 * MINUTE });
  const elsewhere = await store('acme', 'never-routed.example', { forMs: 90 * MINUTE });
  await spool.hold({ id: held });
  await step(20 * MINUTE);
  t.same(ended, [], 'not before its time');
  await step(MINUTE);
  t.same(ended.map(({ due, lane }) => [due.id, lane]), [[urgent, 'one/d.example']], 'within the minute');
  await step(39 * MINUTE);
  t.equal(ended.length, 1);
  await step(MINUTE);
  t.same(ended.slice(1).map(({ due }) => due.id), [waits], 'what is under way ends by itself');
  await step(30 * MINUTE);
  t.equal(ended.at(-1)?.due.id, elsewhere);
  pausedUntil = 0;
  schedule.refresh();
  await finish();
  await step(MINUTE);
  t.same(ran.map(({ id }) => id), [first], 'nothing that ended is sent when the lane opens');
  t.same(spool.show(held)?.recipients.length, 1, 'what is held by hand stays');
});

t.test('a queue whose row is just being ended is not looked at over and over, and goes on afterwards', async (t) => {
  let pausedUntil = Date.now() + 86_400_000;
  const open: { due: Due; done: () => void }[] = [];
  const { store, ran, move, spool, schedule } = await stage(t, LIMITS, 'done', {
    rules: () => ({ limits: LIMITS, shared: [], pausedUntil, pausedFor: 'suspended' }),
    ended: (due) => new Promise((done) => void open.push({ due, done })),
  });
  await store('acme', 'd.example', { forMs: 1 });
  move(6 * MINUTE);
  await quiet();
  t.equal(open.length, 1);
  pausedUntil = 0;
  schedule.refresh();
  await quiet();
  t.equal(ran.length, 0, 'it is not attempted any more');
  for (const { due, done } of open) {
    await spool.settle(due, { kind: 'done' });
    done();
  }
  await quiet();
  const next = await store('acme', 'd.example');
  t.same(ran.map(({ id }) => id), [next]);
});

t.test('after a start everybody has some minutes for a last attempt', async (t) => {
  const { store, ran, ended, move, spool } = await stage(t, LIMITS, 'later', { route: async () => new Promise(() => undefined) });
  await store('acme', 'd.example', { forMs: 1 });
  for (let i = 0; i < 4 * 4; i++) {
    move(MINUTE / 4);
    await quiet();
  }
  t.same([ran.length, ended.length], [0, 0]);
  for (let i = 0; i < 4 * 2; i++) {
    move(MINUTE / 4);
    await quiet();
  }
  t.equal(ended.length, 1, 'then it is over, also where DNS never answered');
  t.equal(spool.counts().recipients, 0);
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

t.test('sources share by weight, a stream has its own, and who rests is stood in for', async (t) => {
  const paused = new Map<string, number>();
  const lane = (egress: string): LaneName => ({ id: `${egress}/d.example`, label: `${egress}/other`, egress, provider: '' });
  const { store, ran, finish, lanes, schedule } = await stage(t, { ...LIMITS, connections: 4 }, 'done', {
    sources: (_lane, tenant) => (tenant === 'solo' ? [{ lane: lane('c'), weight: 1 }] : [{ lane: lane('a'), weight: 3 }, { lane: lane('b'), weight: 1 }]),
    rules: ({ id }) => ({ limits: { ...LIMITS, connections: 4 }, shared: [], pausedUntil: paused.get(id) ?? 0, pausedFor: 'warm-up' }),
  });
  for (let i = 0; i < 40; i++) await store('acme', 'd.example');
  await store('solo', 'd.example');
  t.equal(lanes.at(-1), 'c', 'another pool does not wait for this one');
  for (let i = 0; i < 24; i++) await finish();
  const count = (egress: string): number => lanes.filter((name) => name === egress).length;
  t.ok(count('a') >= 15 && count('b') >= 5 && count('b') <= 10, `a ${count('a')}, b ${count('b')}`);
  t.ok(schedule.lanes().every(({ active }) => active <= 4));
  paused.set('a/d.example', Date.now() + 3_600_000);
  const before = count('a');
  while (ran.length < 41) await finish();
  t.equal(count('a'), before);
  t.equal(new Set(ran.map((due) => due.id)).size, 41);
});

t.test('a warm-up has its days, and starts anew with each', async (t) => {
  const day = 86_400_000;
  const since = Date.UTC(2026, 5, 1);
  let now = since + day / 2;
  const clock: Clock = { now: () => now, after: () => () => undefined };
  const source = { id: 'new', address: '', helo: '', says: {}, total: {}, warmup: { since, perDay: [2, 3] } };
  const warm = new WarmUp(clock);
  const send = (): boolean => {
    if (warm.pausedUntil('new/x', source) > now) return false;
    warm.count('new/x', source);
    return true;
  };
  t.same([send(), send(), send()], [true, true, false]);
  t.equal(warm.pausedUntil('new/x', source), since + day);
  t.equal(warm.pausedUntil('new/y', source), 0, 'each site has its own share');
  t.ok(new WarmUp(clock, JSON.parse(JSON.stringify(warm.state())) as ReturnType<WarmUp['state']>).pausedUntil('new/x', source) > now, 'over a restart too');
  now += day;
  t.same([send(), send(), send(), send()], [true, true, true, false]);
  now += day;
  t.same(Array.from({ length: 10 }, send).filter(Boolean).length, 10, 'the list has ended');
  t.equal(warm.pausedUntil('old/x', undefined), 0);
});
