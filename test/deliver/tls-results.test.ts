// What TLS reports are told under an MTA-STS policy in `testing`: mail goes, and what `enforce` would have stopped
// is counted. Real sessions. The whole of a day is in admin/tls-reports.test.ts.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import t from 'tap';
import { openDeliverer, type HostsRoute } from '../../daemon/deliver/index.ts';
import { TlsResults } from '../../daemon/deliver/tls-results.ts';
import type { Resolver } from '../../daemon/dns/index.ts';
import type { Signed } from '../../daemon/mail/index.ts';
import { Metrics, systemClock } from '../../daemon/runtime/index.ts';
import { shippedBounces, type LaneLimits, type Settings } from '../../daemon/settings/index.ts';
import { startMx, type MxScript } from '../lib/mx.ts';

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const limits = { connections: 5, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 1, tls: 'opportunistic', idleMs: 1_000 } as unknown as LaneLimits;
const settings = { hash: 'h', bounces: shippedBounces(), server: { hostname: 'relay.example' }, shaping: { defaults: limits, providers: [], routes: [], egress: [], tenants: [] } } as unknown as Settings;
const letter = {
  id: 'm', index: 0, returnPath: 'v@b.example', head: Buffer.from('Subject: x\r\n\r\n'), body: [Buffer.from('x')],
  message: { receivedAt: Date.now(), envelope: { mailFrom: 'a@b.example', smtpUtf8: false, body: '8BITMIME' } }, recipient: { wire: 'p@x.example', domain: 'x.example' },
} as unknown as Signed;

t.test('testing stops nothing and tells everything', async (t) => {
  const dir = t.testdir();
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1', '-subj', '/CN=x', '-addext', 'subjectAltName=DNS:mx1.x.example,DNS:mx9.x.example', '-keyout', 'key', '-out', 'crt'], { stdio: 'ignore', cwd: dir });
  const certificate = { key: readFileSync(join(dir, 'key')), cert: readFileSync(join(dir, 'crt')) };
  const before = getCACertificates('default');
  t.teardown(() => setDefaultCACertificates(before));
  setDefaultCACertificates([...before, certificate.cert.toString()]);
  const results = new TlsResults({ resolver: { txt: async () => ({ kind: 'found', records: ['v=TLSRPTv1; rua=mailto:t@x.example'], ttlSeconds: 60, authentic: false }) }, clock: systemClock });
  for (const [name, script] of [
    ['mx1.x.example', { tls: true, certificate }], ['mx1.x.example', { tls: true }], ['mx2.x.example', { tls: true, certificate }], ['mx9.x.example', { tls: true, certificate }], ['mx1.x.example', {}],
  ] as readonly (readonly [string, MxScript])[]) {
    const mx = await startMx(script);
    const told: Promise<void>[] = [];
    const deliverer = openDeliverer({ settings: () => settings, resolver: {} as Resolver, clock: systemClock, log: quiet, metrics: new Metrics(), timeouts: { connectMs: 500, tlsMs: 500, greetMs: 500, quitMs: 100 }, limits: () => limits, tlsSeen: (seen) => (told.push(results.seen(seen)), Promise.resolve()) });
    const route: HostsRoute = {
      kind: 'hosts', site: 's', provider: '', label: 'other', tls: 'opportunistic', viaRoute: false, policy: { mode: 'testing', mx: ['mx1.x.example', 'mx2.x.example'], maxAgeMs: 1_000 },
      hosts: [{ name, addresses: [mx.host], port: mx.port, preference: 0 }],
    };
    t.match(await deliverer.attempt(letter, route, { egress: '' }), { kind: 'delivered' });
    await Promise.all(told);
    deliverer.close();
    await mx.close();
  }
  await results.seen({ domain: 'x.example', unread: 'sts-policy-fetch-error' });
  const [day] = results.state();
  t.match(day?.counts[1], { policy: { type: 'sts', string: [] }, successes: 0, failures: [{ result: 'sts-policy-fetch-error', host: '', count: 1 }] });
  t.equal(day?.counts.length, 2);
  t.match(day?.counts[0], { policy: { type: 'sts', string: ['version: STSv1', 'mode: testing', 'mx: mx1.x.example', 'mx: mx2.x.example', 'max_age: 1'] }, successes: 1 });
  t.same(day?.counts[0]?.failures.map(({ result, host, count }) => [result, host, count]), [
    ['certificate-not-trusted', 'mx1.x.example', 1], ['certificate-host-mismatch', 'mx2.x.example', 1], ['validation-failure', 'mx9.x.example', 1], ['starttls-not-supported', 'mx1.x.example', 1],
  ]);
});
