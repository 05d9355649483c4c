// A host that spoke TLS lately and does not now gets a day, and nobody's mail in clear meanwhile.
import { createSecretKey, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { TlsMemoryState } from '../../daemon/deliver/tls-memory.ts';
import type { Outcome } from '../../daemon/mail/index.ts';
import { openKept, openLog, systemClock, type Kept } from '../../daemon/runtime/index.ts';
import { hostAt, letterTo, limitsOf, openTestDeliverer, routeTo } from '../lib/deliver.ts';
import { startMx } from '../lib/mx.ts';

const HOUR = 3_600_000;

t.test('STARTTLS that was there and is gone', async (t) => {
  const mx = await startMx({});
  t.teardown(() => mx.close());
  let ahead = 0;
  const deliverer = openTestDeliverer(limitsOf('opportunistic', 1), { clock: { ...systemClock, now: () => Date.now() + ahead } });
  t.teardown(() => deliverer.close());
  const attempt = (): Promise<Outcome> => deliverer.attempt(letterTo(), routeTo([hostAt(mx)]), { egress: '' });
  const inClear = (): number => mx.messages.filter(({ tls }) => !tls).length;

  t.match(await attempt(), { kind: 'delivered', tls: '' }, 'a host that never spoke TLS is mailed as it is');
  mx.script = { tls: true };
  t.match(await attempt(), { kind: 'delivered', tls: /TLS/ });
  for (const [name, script] of [['stripped', {}], ['garbage for a handshake', { brokenTls: true }]] as const) {
    mx.script = script;
    t.match(await attempt(), { kind: 'deferred', phase: 'tls', class: 'tls', reason: /spoke TLS lately/ }, name);
  }
  t.equal(inClear(), 1);
  mx.script = { tls: true };
  ahead += 2 * HOUR;
  t.match(await attempt(), { kind: 'delivered', tls: /TLS/ }, 'it is back');
  mx.script = {};
  ahead += 30 * HOUR;
  t.match(await attempt(), { kind: 'deferred' }, 'the day begins with the first time it is missed');
  ahead += 23 * HOUR;
  t.match(await attempt(), { kind: 'deferred' });
  ahead += 2 * HOUR;
  t.match(await attempt(), { kind: 'delivered', tls: '' }, 'after a day it has changed its mind');
  mx.script = { tls: true };
  t.match(await attempt(), { kind: 'delivered', tls: /TLS/ });
  mx.script = {};
  ahead += 8 * 24 * HOUR;
  t.match(await attempt(), { kind: 'delivered', tls: '' }, 'a week ago is not lately');
});

t.test('a restart between the two is no way around it, nor around the day', async (t) => {
  const mx = await startMx({ tls: true });
  t.teardown(() => mx.close());
  const [file, key] = [join(t.testdir(), 'spoke-tls'), createSecretKey(randomBytes(32))];
  const kept = (): Kept<TlsMemoryState> => openKept(file, key, openLog('silent'));
  let ahead = 0;
  const attempt = async (): Promise<Outcome> => {
    const deliverer = openTestDeliverer(limitsOf('opportunistic', 1), { clock: { ...systemClock, now: () => Date.now() + ahead }, spokeTls: kept() });
    const outcome = await deliverer.attempt(letterTo(), routeTo([hostAt(mx)]), { egress: '' });
    deliverer.close();
    return outcome;
  };
  t.match(await attempt(), { kind: 'delivered', tls: /TLS/ });
  t.notMatch(readFileSync(file, 'latin1'), /127\.0/, 'sealed');
  mx.script = {};
  t.match(await attempt(), { kind: 'deferred', phase: 'tls', reason: /spoke TLS lately/ });
  ahead += 23 * HOUR;
  t.match(await attempt(), { kind: 'deferred', phase: 'tls' }, 'still the same day');
  ahead += 2 * HOUR;
  t.match(await attempt(), { kind: 'delivered', tls: '' });
  t.equal(mx.messages.filter(({ tls }) => !tls).length, 1);
});
