// What a test of the delivery room stands on: a deliverer with short timers, a letter, a route to scripted hosts, and an
// authority of the test's own whose certificates Node believes while the test runs.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { openDeliverer, type Deliverer, type DelivererParts, type HostsRoute, type TargetHost } from '../../daemon/deliver/index.ts';
import type { Resolver } from '../../daemon/dns/index.ts';
import type { Envelope, Plan, Signed } from '../../daemon/mail/index.ts';
import { Metrics, systemClock, type Log } from '../../daemon/runtime/index.ts';
import { shippedBounces, type LaneLimits, type Settings } from '../../daemon/settings/index.ts';
import type { Mx } from './mx.ts';

export const quiet: Log = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

export const limitsOf = (tls: LaneLimits['tls'] = 'opportunistic', deliveriesPerConnection = 10): LaneLimits =>
  ({ connections: 5, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection, tls, idleMs: 1_000 }) as unknown as LaneLimits;

export const settingsOf = (limits: LaneLimits): Settings =>
  ({ hash: 'h', bounces: shippedBounces(), server: { hostname: 'relay.example' }, shaping: { defaults: limits, providers: [], routes: [], egress: [], tenants: [] } }) as unknown as Settings;

/** A deliverer that sends as these limits say and asks no DNS. */
export function openTestDeliverer(limits = limitsOf(), more: Partial<DelivererParts> = {}): Deliverer {
  return openDeliverer({
    settings: () => settingsOf(limits), resolver: {} as Resolver, clock: systemClock, log: quiet, metrics: new Metrics(),
    timeouts: { connectMs: 500, tlsMs: 500, greetMs: 500, quitMs: 100 }, limits: () => limits, ...more,
  });
}

/** A signed copy for somebody at `domain`. */
export function letterTo(domain = 'x.example', envelope: Partial<Envelope> = {}, plan: Partial<Plan> = {}): Signed {
  return {
    id: 'm', index: 0, returnPath: 'v@b.example', head: Buffer.from('Subject: x\r\n\r\n'), body: [Buffer.from('secret')],
    message: { receivedAt: Date.now(), envelope: { mailFrom: 'a@b.example', smtpUtf8: false, body: '8BITMIME', ...envelope }, plan }, recipient: { wire: `p@${domain}`, domain },
  } as unknown as Signed;
}

/** The host at which a scripted MX answers. */
export const hostAt = ({ host, port }: Pick<Mx, 'host' | 'port'>, of: Partial<TargetHost> = {}): TargetHost => ({ name: 'mx1.x.example', addresses: [host], port, preference: 0, ...of });

export const routeTo = (hosts: readonly TargetHost[], more: Partial<HostsRoute> = {}): HostsRoute => ({ kind: 'hosts', site: 's', provider: '', label: 'other', tls: 'opportunistic', viaRoute: false, hosts, ...more });

/** What a host was told of a message. */
export const saidTo = (mx: Mx): readonly string[] => mx.lines.filter((line) => /^(?:MAIL|RCPT|DATA)/.test(line));

export interface TestAuthority {
  readonly pem: Buffer;
  /** A certificate for these names (`DNS:` where nothing else is said), good for so many days; 0 and less: not any more. */
  certificate(name: string, days?: number): { readonly key: Buffer; readonly cert: Buffer };
  /** Node believes it from now on, until the test ends. */
  trust(t: { teardown(end: () => void): unknown }): void;
}

/** An authority in a folder of the test's own. */
export function makeAuthority(dir: string): TestAuthority {
  const openssl = (...args: readonly string[]): void => void execFileSync('openssl', args, { stdio: 'ignore', cwd: dir });
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl('req', '-x509', ...ec, '-days', '2', '-subj', '/CN=Test CA', '-keyout', 'ca.key', '-out', 'ca.pem');
  const pem = readFileSync(join(dir, 'ca.pem'));
  return {
    pem,
    certificate(name, days = 1) {
      writeFileSync(join(dir, 'ext'), `subjectAltName=${name.includes(':') ? name : `DNS:${name}`}\n`);
      openssl('req', ...ec, '-subj', '/CN=x', '-keyout', 'host.key', '-out', 'host.csr');
      openssl('x509', '-req', '-in', 'host.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', String(days), '-extfile', 'ext', '-out', 'host.pem');
      return { key: readFileSync(join(dir, 'host.key')), cert: readFileSync(join(dir, 'host.pem')) };
    },
    trust(t) {
      const before = getCACertificates('default');
      setDefaultCACertificates([...before, pem.toString()]);
      t.teardown(() => setDefaultCACertificates(before));
    },
  };
}
