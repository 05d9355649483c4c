// Connections of a lane open no faster than its rate, on a clock that the test moves.
import t from 'tap';
import { Turnstile } from '../../daemon/deliver/turn.ts';
import type { Clock } from '../../daemon/runtime/index.ts';

function handClock(): Clock & { readonly move: (ms: number) => Promise<void> } {
  let now = 1_000_000;
  const timers: { at: number; run: () => void }[] = [];
  return {
    now: () => now,
    after(ms, run) {
      const timer = { at: now + ms, run };
      timers.push(timer);
      return () => void timers.splice(timers.indexOf(timer), 1);
    },
    async move(ms) {
      now += ms;
      for (const timer of timers.splice(0)) {
        if (timer.at <= now) timer.run();
        else timers.push(timer);
      }
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}

t.test('twenty a second are one each 51 ms: the second and what the way may add, and lanes do not share', async (t) => {
  const clock = handClock();
  const turns = new Turnstile(clock);
  const rate = { count: 20, perMs: 1000, burst: 1 };
  const never = new AbortController().signal;
  const opened: string[] = [];
  for (let i = 0; i < 4; i++) void turns.pass(() => [{ key: 'a', rate: rate }], never).then(() => opened.push('a'));
  void turns.pass(() => [{ key: 'b', rate: rate }], never).then(() => opened.push('b'));
  await clock.move(0);
  t.same(opened.toSorted(), ['a', 'b'], 'the other lane did not queue behind');
  await clock.move(50);
  t.equal(opened.length, 2);
  await clock.move(1);
  t.equal(opened.length, 3);
  await clock.move(51);
  t.equal(opened.length, 4);
  await clock.move(1000);
  t.equal(opened.length, 5);
});

t.test('no rate, and an abort, do not wait', async (t) => {
  const turns = new Turnstile(handClock());
  const stop = new AbortController();
  await turns.pass(() => [{ key: 'a', rate: undefined }], stop.signal);
  const rate = { count: 1, perMs: 3_600_000, burst: 1 };
  await turns.pass(() => [{ key: 'a', rate: rate }], stop.signal);
  const waiting = turns.pass(() => [{ key: 'a', rate: rate }], stop.signal);
  stop.abort();
  await waiting;
  t.pass('the second left with the abort');
});

t.test('who waits goes by the rate of the moment: a rule that ends frees those it caught', async (t) => {
  const clock = handClock();
  const turns = new Turnstile(clock);
  const never = new AbortController().signal;
  let rate = { count: 1, perMs: 3_600_000, burst: 1 };
  const rates = () => [{ key: 'a', rate }];
  await turns.pass(rates, never);
  let gone = 0;
  for (let i = 0; i < 2; i++) void turns.pass(rates, never).then(() => gone++);
  await clock.move(60_000);
  t.equal(gone, 0, 'an hour is not over');
  t.equal(turns.waitsUntil('a') > clock.now() + 3_000_000, true);
  rate = { count: 10, perMs: 1_000, burst: 1 };
  await clock.move(1_000);
  t.equal(gone, 1, 'one goes within the second, and what was counted counts on');
  await clock.move(102);
  t.equal(gone, 2);
});
