// MTA-STS (RFC 8461): the page as a hostile or clumsy web server may serve it, how long it holds, which hosts it
// lets take the mail, and that a host which cannot prove itself gets nothing.
import { createSecretKey, randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type ServerOptions } from 'node:https';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import t from 'tap';
import { resolveRoute, type TargetHost } from '../../daemon/deliver/index.ts';
import { MtaSts, isInPolicy, parsePolicy, type StsOptions, type StsPolicy, type StsState } from '../../daemon/deliver/mta-sts.ts';
import type { Answer, MxRecord, Resolver } from '../../daemon/dns/index.ts';
import type { Outcome } from '../../daemon/mail/index.ts';
import { openKept, type Clock, type Kept } from '../../daemon/runtime/index.ts';
import type { Shaping } from '../../daemon/settings/index.ts';
import { eventually } from '../lib/daemon.ts';
import { hostAt, letterTo, limitsOf, makeAuthority, openTestDeliverer, quiet, routeTo, saidTo } from '../lib/deliver.ts';
import { startMx, type MxScript } from '../lib/mx.ts';

t.setTimeout(60_000);
const dir = t.testdir();
const authority = makeAuthority(dir);
const { pem: ca, certificate: pair } = authority;

const found = <T>(...records: readonly T[]): Answer<T> => ({ kind: 'found', records, ttlSeconds: 60, authentic: false });
const NONE = { kind: 'none' } as const;
const POLICY = 'version: STSv1\r\nmode: enforce\r\nmx: mx1.x.example\r\nmx: *.backup.example\r\nmax_age: 1000\r\n';

interface World {
  readonly sts: MtaSts;
  /** What reports are told. */
  readonly failures: readonly string[];
  readonly options: StsOptions;
  readonly now: { ms: number };
  /** What the web server answers, and what DNS says. */
  readonly says: { page: (response: ServerResponse, request: IncomingMessage) => void; txt: Answer<string>; address: Answer<string> };
  asked(): number;
}

async function open(certificate: ServerOptions): Promise<World & { close(): Promise<void> }> {
  const now = { ms: 1_000_000 };
  let asked = 0;
  const says: World['says'] = { page: (response) => void response.writeHead(200, { 'Content-Type': 'text/plain' }).end(POLICY), txt: found('v=STSv1; id=1;'), address: found('127.0.0.1') };
  const server: Server = createServer(certificate, (request, response) => {
    asked++;
    says.page(response, request);
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const clock: Clock = { now: () => now.ms, after: () => () => undefined };
  const resolver = { txt: async () => says.txt, addresses: async () => says.address };
  const failures: string[] = [];
  const options = {
    failed: ({ domain, unread }: { readonly domain: string; readonly unread: string }): void => void failures.push(`${domain} ${unread}`), resolver, clock, log: quiet, allowed: (address: string) => address === '127.0.0.1', port: (server.address() as AddressInfo).port, ca };
  return { failures, sts: new MtaSts(options), options, now, says, asked: () => asked, close: () => new Promise((done) => { server.closeAllConnections(); server.close(() => done()); }) };
}

t.test('a policy is fetched once for an id, and holds for its time whatever becomes of record and page', async (t) => {
  const world = await open(pair('mta-sts.x.example'));
  t.teardown(() => world.close());
  const { sts, says, now } = world;
  t.same((await Promise.all([1, 2, 3].map(() => sts.policyFor('x.example')))).map((policy) => policy?.mode), ['enforce', 'enforce', 'enforce'], 'who asks meanwhile waits for the same page');
  t.match(await sts.policyFor('x.example'), { mode: 'enforce', mx: ['mx1.x.example', '*.backup.example'], maxAgeMs: 1_000_000 });
  await sts.policyFor('x.example');
  t.equal(world.asked(), 1);
  says.txt = NONE;
  t.match(await sts.policyFor('x.example'), { mode: 'enforce' }, 'the record is gone: who takes it away wins nothing');
  says.txt = { kind: 'failed', reason: 'SERVFAIL' };
  t.match(await sts.policyFor('x.example'), { mode: 'enforce' });
  says.txt = found('v=STSv1; id=2');
  says.page = (response) => void response.writeHead(500).end();
  t.match(await sts.policyFor('x.example'), { mode: 'enforce' }, 'the new page does not come: the old policy holds');
  await sts.policyFor('x.example');
  t.equal(world.asked(), 2, 'and is not asked for again at once');
  now.ms += 301_000;
  says.page = (response) => void response.writeHead(200, { 'Content-Type': 'text/plain; charset=utf-8' }).end(POLICY.replace('enforce', 'testing'));
  t.match(await sts.policyFor('x.example'), { mode: 'testing' });
  now.ms += 501_000;
  says.page = (response) => void response.writeHead(200, { 'Content-Type': 'text/plain' }).end(POLICY.replace('max_age: 1000', 'max_age: 2000'));
  t.match(await sts.policyFor('x.example'), { mode: 'testing' }, 'past half its time it is fetched anew, beside the mail');
  t.ok(await eventually(() => world.asked() === 4));
  await new Promise((done) => setTimeout(done, 50));
  now.ms += 600_000;
  says.txt = NONE;
  t.match(await sts.policyFor('x.example'), { mode: 'enforce', maxAgeMs: 2_000_000 }, 'so that who cuts us off at its end gains nothing');
  now.ms += 1_500_000;
  t.equal(await sts.policyFor('x.example'), undefined, 'after its time nothing holds');
});

t.test('over a restart, sealed, and never longer than its time', async (t) => {
  const key = createSecretKey(randomBytes(32));
  const file = join(dir, 'mta-sts');
  const warnings: string[] = [];
  const kept = (): Kept<StsState> => openKept(file, key, { ...quiet, warn: (_fields: unknown, text?: string) => void warnings.push(text ?? '') });
  const now = { ms: 1_000_000 };
  const clock: Clock = { now: () => now.ms, after: () => () => undefined };
  const resolver = { txt: async (): Promise<Answer<string>> => ({ kind: 'none' }), addresses: async (): Promise<Answer<string>> => ({ kind: 'none' }) };
  const start = (): MtaSts => new MtaSts({ resolver, clock, log: quiet, allowed: () => true, kept: kept() });
  const world = await open(pair('mta-sts.x.example'));
  t.teardown(() => world.close());
  const first = new MtaSts({ ...world.options, clock, kept: kept() });
  t.match(await first.policyFor('x.example'), { mode: 'enforce' });
  first.close();
  t.notMatch(readFileSync(file, 'latin1'), /example|STSv1/);
  t.match(await start().policyFor('x.example'), { mode: 'enforce', mx: ['mx1.x.example', '*.backup.example'] }, 'though record and page are gone');
  now.ms += 1_000_001;
  t.equal(await start().policyFor('x.example'), undefined, 'its time is over');
  writeFileSync(file, 'something else');
  t.equal(await start().policyFor('x.example'), undefined);
  t.match(warnings, [/cannot be read/]);
});

t.test('a page that is none, and a host that is none', async (t) => {
  const world = await open(pair('mta-sts.x.example'));
  t.teardown(() => world.close());
  const { sts, says } = world;
  const good = (text: string) => (response: ServerResponse): void => void response.writeHead(200, { 'Content-Type': 'text/plain' }).end(text);
  for (const [name, page] of [
    ['a redirect', (response) => void response.writeHead(301, { Location: 'https://mta-sts.x.example/.well-known/other', 'Content-Type': 'text/plain' }).end()],
    ['HTML', (response) => void response.writeHead(200, { 'Content-Type': 'text/html' }).end(POLICY)], ['404', (response) => void response.writeHead(404, { 'Content-Type': 'text/plain' }).end(POLICY)],
    ['endless', (response) => void response.writeHead(200, { 'Content-Type': 'text/plain' }).end('x'.repeat(200_000))], ['cut off', (response) => { response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': '999' }); response.write(POLICY); response.destroy(); }],
    ['no version', good(POLICY.replace('STSv1', 'STSv2'))], ['no mode', good(POLICY.replace('enforce', 'maybe'))], ['no age', good(POLICY.replace('1000', 'soon'))], ['no host', good('version: STSv1\nmode: enforce\nmax_age: 9\n')],
  ] as readonly (readonly [string, World['says']['page']])[]) {
    const fresh = await open(pair('mta-sts.x.example'));
    fresh.says.page = page;
    t.equal(await fresh.sts.policyFor('x.example'), undefined, name);
    t.equal(fresh.asked(), 1, name);
    t.same(fresh.failures, [`x.example sts-policy-${name.startsWith('no ') ? 'invalid' : 'fetch-error'}`], name);
    await fresh.close();
  }
  for (const [name, txt] of [['no record', NONE], ['two records', found('v=STSv1; id=1', 'v=STSv1; id=2')], ['no id', found('v=STSv1;')], ['another record', found('v=spf1 -all')], ['an id too long', found(`v=STSv1; id=${'1'.repeat(33)}`)]] as const) {
    says.txt = txt;
    t.equal(await sts.policyFor('x.example'), undefined, name);
  }
  t.equal(world.asked(), 0, 'without a record nobody is asked');
  says.txt = found('v=STSv1; id=1');
  for (const address of [NONE, found('10.0.0.1'), { kind: 'failed', reason: 'x' }] as const) {
    const fresh = await open(pair('mta-sts.x.example'));
    fresh.says.address = address;
    t.equal(await fresh.sts.policyFor('x.example'), undefined, 'no address that may be asked');
    await fresh.close();
  }
  const misnamed = await open(pair('mta-sts.y.example'));
  t.equal(await misnamed.sts.policyFor('x.example'), undefined, 'a certificate of somebody else');
  t.same(misnamed.failures, ['x.example sts-webpki-invalid']);
  await misnamed.close();
  t.match(parsePolicy('version: STSv1\nmode: none\nmax_age: 99999999999\nmode: enforce\n'.replace('99999999999', '9999999999')), { mode: 'none', maxAgeMs: 31_557_600_000 }, 'at most a year; the first of a name counts');
});

t.test('which hosts may take the mail', async (t) => {
  const policy: StsPolicy = { mode: 'enforce', mx: ['mx1.x.example', '*.backup.example'], maxAgeMs: 1 };
  for (const [host, isIn] of [['mx1.x.example', true], ['a.backup.example', true], ['mx2.x.example', false], ['backup.example', false], ['a.b.backup.example', false], ['mx1.x.example.evil.example', false], ['evilbackup.example', false]] as const) t.equal(isInPolicy(policy, host), isIn, host);
  const route = async (mode: StsPolicy['mode'], hosts: readonly string[]): Promise<unknown> => (await resolveRoute('x.example', {
    resolver: { mx: async () => found<MxRecord>(...hosts.map((exchange, preference) => ({ exchange, preference }))), addresses: async () => found('192.5.6.30'), txt: async () => NONE, tlsa: async () => NONE, close: () => undefined } as unknown as Resolver,
    shaping: { defaults: { tls: 'opportunistic' }, providers: [], routes: [], egress: [] } as unknown as Shaping, sandbox: false, hostname: 'relay.example', sts: { policyFor: async () => ({ ...policy, mode }) },
  })).route;
  t.match(await route('enforce', ['mx1.x.example', 'mx.evil.example']), { kind: 'hosts', hosts: { length: 1, 0: { name: 'mx1.x.example', sts: true } } });
  t.match(await route('enforce', ['mx.evil.example']), { kind: 'deferred', class: 'tls', reason: /MTA-STS/ }, 'forged MX records lead nowhere');
  t.match(await route('testing', ['mx.evil.example']), { kind: 'hosts', hosts: { length: 1, 0: { name: 'mx.evil.example', sts: undefined } } }, 'testing changes nothing');
});

t.test('a host proves itself or gets nothing', async (t) => {
  const attempt = async (script: MxScript, name: string, tlsa?: TargetHost['tlsa']): Promise<{ readonly outcome: Outcome; readonly said: readonly string[] }> => {
    const mx = await startMx(script);
    const deliverer = openTestDeliverer();
    try {
      return { outcome: await deliverer.attempt(letterTo(), routeTo([hostAt(mx, { name, sts: true, ...(tlsa && { tlsa }) })]), { egress: '' }), said: saidTo(mx) };
    } finally {
      deliverer.close();
      await mx.close();
    }
  };
  for (const [name, script] of [['a certificate nobody vouches for', { tls: true }], ['STARTTLS stripped', {}], ['garbage for a handshake', { brokenTls: true }], ['STARTTLS refused', { tls: true, answers: { starttls: '454 4.7.0 no' } }]] as const) {
    const { outcome, said } = await attempt(script, 'mx1.x.example');
    t.match(outcome, { kind: 'deferred', phase: 'tls' }, name);
    t.same(said, [], `${name}: not a word`);
  }
  const { outcome: unusable, said: nothing } = await attempt({ tls: true }, 'mx1.x.example', []);
  t.match(unusable, { kind: 'deferred', phase: 'tls' }, 'TLSA records of which none can be used leave the policy in force');
  t.same(nothing, []);
  authority.trust(t);
  const certificate = pair('mx1.x.example');
  t.match((await attempt({ tls: true, certificate }, 'mx1.x.example')).outcome, { kind: 'delivered', tls: / MTA-STS$/ });
  t.match((await attempt({ tls: true, certificate }, 'mx2.x.example')).outcome, { kind: 'deferred', phase: 'tls' }, 'another host\'s');
});

t.test('page, route and attempt together: stripped, forged, misnamed and over, and never a word in clear', async (t) => {
  const world = await open(authority.certificate('mta-sts.x.example'));
  const before = getCACertificates('default');
  setDefaultCACertificates([...before, authority.pem.toString()]);
  const good: MxScript = { tls: true, certificate: authority.certificate('mx1.x.example') };
  const mx = await startMx(good);
  const deliverer = openTestDeliverer(limitsOf('opportunistic', 1));
  t.teardown(async () => {
    deliverer.close();
    setDefaultCACertificates(before);
    await Promise.all([mx.close(), world.close()]);
  });
  const send = async (script: MxScript, exchange = 'mx1.x.example'): Promise<unknown> => {
    mx.script = script;
    const { route } = await resolveRoute('x.example', {
      resolver: { mx: async () => found<MxRecord>({ exchange, preference: 1 }), addresses: async () => found(mx.host), txt: async () => NONE, tlsa: async () => NONE, close: () => undefined } as unknown as Resolver,
      shaping: { defaults: { tls: 'opportunistic' }, providers: [], routes: [{ domain: 'x.example', via: [], loopbackMx: mx.port, tls: 'opportunistic' }], egress: [] } as unknown as Shaping, sandbox: true, hostname: 'relay.example', sts: world.sts,
    });
    return route.kind === 'hosts' ? deliverer.attempt(letterTo(), route, { egress: '' }) : route;
  };
  t.match(await send(good), { kind: 'delivered', tls: / MTA-STS$/ });
  t.match(await send({}), { kind: 'deferred', phase: 'tls' }, 'STARTTLS stripped');
  t.match(await send({ tls: true }), { kind: 'deferred', phase: 'tls' }, 'a certificate nobody vouches for');
  t.match(await send(good, 'mx.evil.example'), { kind: 'deferred', class: 'tls', reason: /MTA-STS/ }, 'MX records that lie');
  world.now.ms += 1_000_001;
  world.says.txt = NONE;
  t.match(await send({}), { kind: 'deferred', phase: 'tls', reason: /spoke TLS lately/ }, 'the policy is over and cannot be had: what the host did lately still counts');
  t.match(await send(good), { kind: 'delivered', tls: /SHA\d+$/ }, 'and no proof is asked for any more');
  t.same(mx.messages.map(({ tls }) => tls), [true, true]);
});
