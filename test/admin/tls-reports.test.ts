// TLS reports (RFC 8460): what connections come to, counted for domains that ask and for nobody else; sealed while it
// waits; sent the day after by mail and by HTTPS, once; and nothing at all where they are not asked for.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import { gunzipSync } from 'node:zlib';
import { simpleParser } from 'mailparser';
import t from 'tap';
import { createSecretKey, randomBytes } from 'node:crypto';
import { openTlsReports } from '../../daemon/admin/index.ts';
import { openDeliverer, type HostsRoute, type TargetHost, type TlsSeen } from '../../daemon/deliver/index.ts';
import type { Answer, Resolver } from '../../daemon/dns/index.ts';
import type { Composed, Signed } from '../../daemon/mail/index.ts';
import { Metrics, openKeyring, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { shippedBounces, type LaneLimits, type Settings } from '../../daemon/settings/index.ts';
import { startMx, type MxScript } from '../lib/mx.ts';

t.setTimeout(60_000);
const dir = mkdtempSync(join(tmpdir(), 'postern-tlsrpt-'));
const openssl = (...args: readonly string[]): void => void execFileSync('openssl', args, { stdio: 'ignore', cwd: dir });
const EC = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
openssl('req', '-x509', ...EC, '-days', '2', '-subj', '/CN=Test CA', '-keyout', 'ca.key', '-out', 'ca.pem');
function pair(name: string, days: string): { readonly key: Buffer; readonly cert: Buffer } {
  writeFileSync(join(dir, 'ext'), `subjectAltName=DNS:${name}\n`);
  openssl('req', ...EC, '-subj', '/CN=x', '-keyout', 'k', '-out', 'csr');
  openssl('x509', '-req', '-in', 'csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', days, '-extfile', 'ext', '-out', 'c');
  return { key: readFileSync(join(dir, 'k')), cert: readFileSync(join(dir, 'c')) };
}
const [good, expired] = [pair('mx1.asks.example', '1'), pair('mx1.asks.example', '-1')];
const before = getCACertificates('default');
setDefaultCACertificates([...before, readFileSync(join(dir, 'ca.pem'), 'utf8')]);
t.teardown(() => {
  setDefaultCACertificates(before);
  rmSync(dir, { recursive: true });
});

const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const POLICY = { mode: 'enforce', mx: ['*.asks.example'], maxAgeMs: 86_400_000 } as const;
const limits = { connections: 5, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 1, tls: 'opportunistic', idleMs: 1_000 } as unknown as LaneLimits;
const RUA = 'v=TLSRPTv1; rua=mailto:tls@asks.example, https://reports.asks.example/in';

/** A world in which `asks.example` wants reports, and what leaves it. */
async function open(t: { teardown(end: () => Promise<void>): unknown }, reports = true) {
  const now = { ms: Date.parse('2026-11-23T10:00:00Z') };
  const clock: Clock = { now: () => now.ms, after: systemClock.after };
  const dataDir = mkdtempSync(join(dir, 'data-'));
  const keyring = openKeyring(join(dataDir, 'keys'), createSecretKey(randomBytes(32)));
  const domain = { name: 'ops.example', dkim: [], returnPath: 'b.ops.example', pages: 'https://p.ops.example' };
  const tenant = { id: 'ops', domains: [domain], streams: new Map([['news', { id: 'news', class: 'marketing' }], ['notes', { id: 'notes', class: 'transactional' }]]) };
  const settings = {
    hash: 'h', bounces: shippedBounces(), tenants: new Map([['ops', tenant]]), shaping: { defaults: limits, providers: [], routes: [], egress: [], tenants: [] },
    server: { hostname: 'relay.ops.example', dataDir, tlsReports: reports ? { tenant: 'ops', organization: 'Ops', contact: 'ops@ops.example' } : undefined },
  } as unknown as Settings;
  const asked: string[] = [];
  const found = (...records: readonly string[]): Answer<string> => ({ kind: 'found', records, ttlSeconds: 60, authentic: false });
  const resolver = { txt: async (name: string) => (asked.push(name), name === '_smtp._tls.asks.example' ? found('v=spf1 -all', RUA) : { kind: 'none' as const }), addresses: async () => found('127.0.0.1') };
  const posted: { readonly type: string; readonly body: Buffer }[] = [];
  let status = 201;
  const server = createServer(pair('reports.asks.example', '1'), (request, response) => {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part)).on('end', () => {
      posted.push({ type: request.headers['content-type'] ?? '', body: Buffer.concat(parts) });
      response.writeHead(status).end();
    });
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  t.teardown(() => new Promise<void>((done) => server.close(() => done())));
  const stored: Composed[] = [];
  const start = (): ReturnType<typeof openTlsReports> => openTlsReports({
    settings: () => settings, keyring, clock, log: quiet, resolver, ledger: { hashes: () => ({ consent: Buffer.alloc(16), suppression: Buffer.alloc(16), family: Buffer.alloc(16) }) } as never,
    spool: { store: async (message: Composed) => (stored.push(message), { id: message.id }) } as never, https: { allowed: (address) => address === '127.0.0.1', port: (server.address() as AddressInfo).port, ca: readFileSync(join(dir, 'ca.pem')) },
  });
  return { now, dataDir, settings, clock, asked, posted, stored, start, answers: (code: number) => void (status = code) };
}

/** One attempt to a host that behaves like this. */
async function attempt(world: Awaited<ReturnType<typeof open>>, seen: (of: TlsSeen) => Promise<void>, script: MxScript, of: Partial<TargetHost>, domain = 'asks.example', plan = {}): Promise<void> {
  const mx = await startMx(script);
  const told: Promise<void>[] = [];
  const deliverer = openDeliverer({
    settings: () => world.settings, resolver: {} as Resolver, clock: systemClock, log: quiet, metrics: new Metrics(), timeouts: { connectMs: 500, tlsMs: 500, greetMs: 500, quitMs: 100 }, limits: () => limits,
    tlsSeen: (one) => (told.push(seen(one)), Promise.resolve()),
  });
  const route: HostsRoute = { kind: 'hosts', site: 's', provider: '', label: 'other', tls: 'opportunistic', viaRoute: false, policy: POLICY, hosts: [{ name: 'mx1.asks.example', addresses: [mx.host], port: mx.port, preference: 0, ...of }] };
  const letter = {
    id: 'm', index: 0, returnPath: 'v@b.example', head: Buffer.from('Subject: x\r\n\r\n'), body: [Buffer.from('x')],
    message: { receivedAt: Date.now(), envelope: { mailFrom: 'a@b.example', smtpUtf8: false, body: '8BITMIME' }, plan }, recipient: { wire: `p@${domain}`, domain },
  } as unknown as Signed;
  await deliverer.attempt(letter, route, { egress: '' });
  await Promise.all(told);
  deliverer.close();
  await mx.close();
}

interface Report {
  readonly policies: readonly { readonly policy: Record<string, unknown>; readonly summary: Record<string, number>; readonly 'failure-details'?: readonly Record<string, unknown>[] }[];
  readonly [key: string]: unknown;
}

t.test('a day with a domain that asks', async (t) => {
  const world = await open(t);
  let reports = world.start();
  for (const [script, of] of [
    [{ tls: true, certificate: good }, { sts: true }], [{ tls: true, certificate: good }, { sts: true }], [{ tls: true, certificate: expired }, { sts: true }],
    [{ tls: true }, { sts: true }], [{ tls: true, certificate: good }, { sts: true, name: 'mx2.asks.example' }], [{}, { sts: true }], [{ tls: true }, {}], [{}, {}],
    [{ tls: true }, { tlsa: [{ usage: 3, selector: 1, matchingType: 1, certificate: Buffer.alloc(32, 7) }] }],
  ] as const) await attempt(world, reports.seen, script, of);
  await attempt(world, reports.seen, { tls: true }, {}, 'silent.example');
  await attempt(world, reports.seen, { tls: true }, {}, 'silent.example');
  await attempt(world, reports.seen, {}, {}, 'asks.example', { tlsOptional: true });
  t.equal(world.asked.filter((name) => name === '_smtp._tls.silent.example').length, 1, 'who does not ask is asked once');
  await reports.close();
  const kept = readFileSync(join(world.dataDir, 'tls-results'), 'latin1');
  t.notMatch(kept, /asks|example/, 'sealed');

  reports = world.start();
  await reports.look();
  t.equal(world.stored.length + world.posted.length, 0, 'not before the day has ended');
  world.now.ms += 86_400_000;
  world.answers(503);
  await reports.look();
  t.equal(world.stored.length, 1);
  t.equal(world.posted.length, 1);
  world.answers(200);
  await reports.look();
  t.equal(world.stored.length, 1, 'who has it does not get it again');
  t.equal(world.posted.length, 2, 'who could not take it does');
  await reports.look();
  t.equal(world.posted.length, 2);
  await reports.close();

  const report = JSON.parse(gunzipSync(world.posted[1]?.body ?? Buffer.alloc(0)).toString()) as Report;
  t.equal(world.posted[1]?.type, 'application/tlsrpt+gzip');
  t.match(report, { 'organization-name': 'Ops', 'contact-info': 'ops@ops.example', 'date-range': { 'start-datetime': '2026-11-23T00:00:00Z', 'end-datetime': '2026-11-23T23:59:59Z' } });
  const of = (type: string): Report['policies'][number] | undefined => report.policies.find(({ policy }) => policy['policy-type'] === type);
  t.match(of('sts'), { policy: { 'policy-domain': 'asks.example', 'mx-host': ['*.asks.example'], 'policy-string': ['version: STSv1', 'mode: enforce', 'mx: *.asks.example', 'max_age: 86400'] }, summary: { 'total-successful-session-count': 2, 'total-failure-session-count': 4 } });
  t.same(of('sts')?.['failure-details']?.map((one) => [one['result-type'], one['receiving-mx-hostname'], one['failed-session-count']]), [
    ['certificate-expired', 'mx1.asks.example', 1], ['certificate-not-trusted', 'mx1.asks.example', 1], ['certificate-host-mismatch', 'mx2.asks.example', 1], ['starttls-not-supported', 'mx1.asks.example', 1],
  ]);
  t.match(of('no-policy-found'), { summary: { 'total-successful-session-count': 1, 'total-failure-session-count': 1 } });
  t.match(of('tlsa'), { policy: { 'policy-string': [`3 1 1 ${'07'.repeat(32)}`] }, summary: { 'total-failure-session-count': 1 }, 'failure-details': [{ 'result-type': 'tlsa-invalid' }] });

  const mail = await simpleParser(world.stored[0]?.raw ?? Buffer.alloc(0));
  t.match(mail.subject, /^Report Domain: asks\.example Submitter: relay\.ops\.example Report-ID: <[0-9a-z]+@relay\.ops\.example>$/);
  t.match([mail.headers.get('tls-report-domain'), mail.headers.get('tls-report-submitter'), mail.headers.get('tls-required')], ['asks.example', 'relay.ops.example', 'No']);
  t.equal(mail.from?.text, 'tls-reports@ops.example');
  t.match(mail.attachments[0], { contentType: 'application/tlsrpt+gzip', filename: /^relay\.ops\.example!asks\.example!\d+!\d+!\w+\.json\.gz$/ });
  t.same((JSON.parse(gunzipSync(mail.attachments[0]?.content ?? Buffer.alloc(0)).toString()) as Report).policies, report.policies);
  t.match(world.stored[0], { plan: { tlsOptional: true }, origin: { tenant: 'ops', stream: 'notes', kind: 'notice' }, envelope: { mailFrom: '' } });
});

t.test('a report that nobody takes is given up', async (t) => {
  const world = await open(t);
  const reports = world.start();
  world.answers(500);
  await attempt(world, reports.seen, { tls: true }, {});
  world.now.ms += 4 * 86_400_000;
  await reports.look();
  await reports.look();
  t.equal(world.posted.length, 1);
  await reports.close();
});

t.test('not asked for: nothing is looked up, counted or kept', async (t) => {
  const world = await open(t, false);
  const reports = world.start();
  await attempt(world, reports.seen, {}, {});
  await reports.close();
  t.same(world.asked, []);
  t.notOk(existsSync(join(world.dataDir, 'tls-results')));
  t.same(readdirSync(world.dataDir), ['keys']);
});
