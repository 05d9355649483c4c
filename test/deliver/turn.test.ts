// Connections of a lane open no faster than its rate, in real time.
import t from 'tap';
import { ConnectionTurns } from '../../daemon/deliver/turn.ts';
import { systemClock } from '../../daemon/runtime/index.ts';

// The daemon's timers do not keep a process alive; a test has to.
const awake = setInterval(() => undefined, 1_000);
t.teardown(() => clearInterval(awake));

t.test('twenty a second are twenty a second, and lanes do not share', async (t) => {
  const turns = new ConnectionTurns(systemClock);
  const rate = { count: 20, perMs: 1000, burst: 1 };
  const never = new AbortController().signal;
  const at: number[] = [];
  const started = performance.now();
  await Promise.all([
    ...Array.from({ length: 6 }, () => turns.wait('a', rate, never).then(() => at.push(Date.now()))),
    turns.wait('b', rate, never).then(() => t.ok(performance.now() - started < 1000, 'the other lane did not queue behind')),
  ]);
  t.equal(at.length, 6);
  for (let i = 0; i < 5; i++) t.ok((at[i + 1] ?? 0) - (at[i] ?? 0) >= 49, `gap ${i}: ${(at[i + 1] ?? 0) - (at[i] ?? 0)} ms`);
});

t.test('no rate, and an abort, do not wait', async (t) => {
  const turns = new ConnectionTurns(systemClock);
  const stop = new AbortController();
  await turns.wait('a', undefined, stop.signal);
  const rate = { count: 1, perMs: 3_600_000, burst: 1 };
  await turns.wait('a', rate, stop.signal);
  const waiting = turns.wait('a', rate, stop.signal);
  stop.abort();
  await waiting;
  t.pass('the second left with the abort');
});
