// A host that spoke TLS lately and does not now gets a day, and nobody's mail in clear meanwhile.
import t from 'tap';
import { openDeliverer, type HostsRoute } from '../../daemon/deliver/index.ts';
import type { Resolver } from '../../daemon/dns/index.ts';
import type { Outcome, Signed } from '../../daemon/mail/index.ts';
import { Metrics, systemClock } from '../../daemon/runtime/index.ts';
import { shippedBounces, type LaneLimits, type Settings } from '../../daemon/settings/index.ts';
import { startMx } from '../lib/mx.ts';

const HOUR = 3_600_000;
const LIMITS = { connections: 5, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 1, tls: 'opportunistic', idleMs: 1_000 } as unknown as LaneLimits;
const letter = {
  id: 'm', index: 0, returnPath: 'v@b.example', head: Buffer.from('Subject: x\r\n\r\n'), body: [Buffer.from('secret')],
  message: { receivedAt: Date.now(), envelope: { mailFrom: 'a@b.example', smtpUtf8: false, body: '8BITMIME' } }, recipient: { wire: 'p@x.example', domain: 'x.example' },
} as unknown as Signed;

t.test('STARTTLS that was there and is gone', async (t) => {
  const mx = await startMx({});
  t.teardown(() => mx.close());
  const settings = { hash: 'h', bounces: shippedBounces(), server: { hostname: 'relay.example' }, shaping: { defaults: LIMITS, providers: [], routes: [], egress: [], tenants: [] } } as unknown as Settings;
  let ahead = 0;
  const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
  const deliverer = openDeliverer({ settings: () => settings, resolver: {} as Resolver, clock: { ...systemClock, now: () => Date.now() + ahead }, log: quiet, metrics: new Metrics(), timeouts: { connectMs: 500, tlsMs: 300, greetMs: 300, quitMs: 100 }, limits: () => LIMITS });
  t.teardown(() => deliverer.close());
  const route: HostsRoute = { kind: 'hosts', site: 's', provider: '', label: 'other', tls: 'opportunistic', viaRoute: false, hosts: [{ name: 'mx.x.example', addresses: [mx.host], port: mx.port, preference: 0 }] };
  const attempt = (): Promise<Outcome> => deliverer.attempt(letter, route, { egress: '' });
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
