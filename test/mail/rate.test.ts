// Limits: what one stranger is, and what they get. The rate limiter is exact: over any window no more than promised, and no less than could be had.
import t from 'tap';
import { Gcra, networkOf, Pace } from '../../daemon/mail/index.ts';

t.test('a burst, then evenly', async (t) => {
  const gcra = new Gcra({ count: 60, perMs: 60_000, burst: 3 });
  t.same([0, 0, 0, 0].map((now) => gcra.take(now)), [0, 0, 0, 1_000]);
  t.equal(gcra.take(999), 1, 'a refusal takes nothing');
  t.equal(gcra.take(1_000), 0);
  t.equal(gcra.take(1_500, 2), 1_500, 'two at once wait for both');
  t.notOk(gcra.idle(3_999));
  t.ok(gcra.idle(4_000));
  t.same([90_000, 90_000, 90_000].map((now) => gcra.take(now)), [0, 0, 0], 'a rest gives the burst back and no more');
  t.ok(gcra.take(90_000) > 0);
});

t.test('over every window, whatever the arrivals', async (t) => {
  let seed = 42;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return (seed >>> 8) % below;
  };
  let over = 0;
  for (let round = 0; round < 200; round++) {
    const rate = { count: 1 + random(20), perMs: 100 + random(5_000), burst: 1 + random(8) };
    const gcra = new Gcra(rate);
    const taken: number[] = [];
    for (let now = 1_000, i = 0; i < 400; i++) {
      const waitMs = gcra.take(now);
      if (waitMs === 0) taken.push(now);
      else if (random(3) === 0) now += waitMs - 1 + random(2);
      now += random(4) === 0 ? random(rate.perMs) : 0;
    }
    taken.forEach((from, i) => {
      if (taken.slice(i).filter((at) => at < from + rate.perMs).length > rate.count + rate.burst - 1) over += 1;
    });
  }
  t.equal(over, 0);
});

t.test('waiting as told is enough', async (t) => {
  const gcra = new Gcra({ count: 7, perMs: 1_000, burst: 2 });
  let now = 0;
  for (let i = 0; i < 70; i++) {
    const waitMs = gcra.take(now);
    now += waitMs;
    if (waitMs > 0) t.equal(gcra.take(now), 0);
  }
  t.ok(now >= 9_700 && now <= 9_800, `70 at 7/s with a burst of 2 take ${now} ms`);
});

t.test('one network is an IPv4 address, or 64 bits of an IPv6 one, however it is written', async (t) => {
  const same = [['2001:db8:0:1::1', '2001:0db8:0000:0001:ffff:ffff:ffff:ffff'], ['fe80::1%eth0', 'fe80::2'], ['::ffff:192.0.2.1', '192.0.2.1'], ['2001:DB8::9', '2001:db8::']] as const;
  for (const [one, other] of same) t.equal(networkOf(one), networkOf(other), `${one} and ${other}`);
  t.equal(new Set(['192.0.2.1', '192.0.2.2', '2001:db8::1', '2001:db8:0:1::1', '::1', ''].map(networkOf)).size, 6, 'others are others');
});

t.test('a pace holds in every window, spaces evenly, makes up for late timers and saves nothing up', async (t) => {
  let seed = 7;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return (seed >>> 8) % below;
  };
  let over = 0;
  for (let round = 0; round < 200; round++) {
    const rate = { count: 1 + random(40), perMs: 100 + random(5_000), burst: 1 + random(8) };
    const pace = new Pace(rate);
    const taken: number[] = [];
    for (let now = 1_000, i = 0; i < 400; i++) {
      const waitMs = pace.wait(now);
      if (waitMs === 0) {
        pace.take(now);
        taken.push(now);
      } else now += waitMs + random(3);
      if (random(20) === 0) now += random(rate.perMs);
    }
    taken.forEach((from, i) => {
      if (taken.slice(i).filter((at) => at < from + rate.perMs).length > rate.count) over += 1;
    });
  }
  t.equal(over, 0, 'whatever the burst');

  const even = new Pace({ count: 20, perMs: 1_000, burst: 1 });
  let now = 10_000;
  for (let i = 0; i < 2_000; i++) {
    now += even.wait(now) + (i % 2); // every other timer is a millisecond late
    t.equal(even.wait(now), 0);
    even.take(now);
  }
  t.ok(2_000 / ((now - 10_000) / 50) >= 0.98, `${2_000 / ((now - 10_000) / 50)} of the rate is used`);
  now += 60_000;
  even.take(now);
  t.ok(even.wait(now) >= 49, 'a rest is not saved up');
  t.notOk(even.idle(now + 900));
  t.ok(even.idle(now + 1_100));

  const many = new Pace({ count: 10_000, perMs: 3_600_000, burst: 1 });
  many.take(now);
  t.ok(many.wait(now) >= 363 && many.wait(now) <= 365, 'a high count is kept in parts');
});
