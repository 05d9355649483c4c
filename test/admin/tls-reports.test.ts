// TLS reports (RFC 8460): what connections come to, counted for domains that ask and for nobody else; sealed while it
// waits; sent the day after by mail and by HTTPS, once; and nothing at all where they are not asked for.
import { createSecretKey, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { simpleParser } from 'mailparser';
import t from 'tap';
import { openTlsReports } from '../../daemon/admin/index.ts';
import type { TargetHost } from '../../daemon/deliver/index.ts';
import type { Answer } from '../../daemon/dns/index.ts';
import type { Composed } from '../../daemon/mail/index.ts';
import { openKeyring, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';
import { hostAt, letterTo, limitsOf, makeAuthority, openTestDeliverer, quiet, routeTo, settingsOf } from '../lib/deliver.ts';
import { startMx, type MxScript } from '../lib/mx.ts';

t.setTimeout(60_000);
const dir = mkdtempSync(join(tmpdir(), 'postern-tlsrpt-'));
const authority = makeAuthority(dir);
authority.trust(t);
const [good, expired] = [authority.certificate('mx1.asks.example'), authority.certificate('mx1.asks.example', -1)];
t.teardown(() => rmSync(dir, { recursive: true }));

const POLICY = { mode: 'enforce', mx: ['*.asks.example'], maxAgeMs: 86_400_000 } as const;
const limits = limitsOf('opportunistic', 1);
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
    ...settingsOf(limits), tenants: new Map([['ops', tenant]]),
    server: { hostname: 'relay.ops.example', dataDir, tlsReports: reports ? { tenant: 'ops', organization: 'Ops', contact: 'ops@ops.example' } : undefined },
  } as unknown as Settings;
  const asked: string[] = [];
  const found = (...records: readonly string[]): Answer<string> => ({ kind: 'found', records, ttlSeconds: 60, authentic: false });
  const resolver = { txt: async (name: string) => (asked.push(name), name === '_smtp._tls.asks.example' ? found('v=spf1 -all', RUA) : { kind: 'none' as const }), addresses: async () => found('127.0.0.1') };
  const posted: { readonly type: string; readonly body: Buffer }[] = [];
  let status = 201;
  const server = createServer(authority.certificate('reports.asks.example'), (request, response) => {
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
    spool: { store: async (message: Composed) => (stored.push(message), { id: message.id }) } as never, https: { allowed: (address) => address === '127.0.0.1', port: (server.address() as AddressInfo).port, ca: authority.pem },
  });
  return { now, dataDir, settings, clock, asked, posted, stored, start, answers: (code: number) => void (status = code) };
}

/** One attempt to a host that behaves like this. */
async function attempt(world: Awaited<ReturnType<typeof open>>, seen: ReturnType<typeof openTlsReports>['seen'], script: MxScript, of: Partial<TargetHost>, domain = 'asks.example', plan = {}): Promise<void> {
  const mx = await startMx(script);
  const told: Promise<void>[] = [];
  const deliverer = openTestDeliverer(limits, { settings: () => world.settings, tlsSeen: (one) => (told.push(seen(one)), Promise.resolve()) });
  await deliverer.attempt(letterTo(domain, {}, plan), routeTo([hostAt(mx, { name: 'mx1.asks.example', ...of })], { policy: POLICY }), { egress: '' });
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
