// Routing, classification and whole attempts: real sockets to scripted MXes, fake answers from DNS.
import t from 'tap';
import type { Phase, Reply, Signed } from '../../daemon/mail/index.ts';
import { parseReply } from '../../daemon/mail/index.ts';
import type { Resolver } from '../../daemon/dns/index.ts';
import { Metrics, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { laneLimits, shippedBounces, type LaneLimits, type Settings, type Shaping } from '../../daemon/settings/index.ts';
import { classify, openDeliverer, resolveRoute, type HostsRoute, type RouteResult } from '../../daemon/deliver/index.ts';
import { RouteCache } from '../../daemon/deliver/route.ts';
import { startMx, type Answer, type Mx, type MxScript } from '../lib/mx.ts';

const LIMITS: LaneLimits = { connections: 2, connectionRate: undefined, messageRate: undefined, deliveriesPerConnection: 3, tls: 'opportunistic', idleMs: 5_000, tenantConnections: undefined, tenantMessageRate: undefined };
const shapingOf = (more: Partial<Shaping> = {}): Shaping => ({
  defaults: LIMITS,
  providers: [{ id: 'bigmail', match: ['.bigmail.example', 'mx.other.example'], sites: 'together', says: { connections: 9, tls: 'required' }, total: {}, egress: new Map() }],
  routes: [], retry: { firstMs: 300_000, maxMs: 14_400_000 }, egress: [{ id: 'main', address: '127.0.0.1', helo: 'out.example', says: {}, total: {} }], tenants: new Map(), pools: new Map(), use: [], automation: [], recovery: { add: 0.1, everyMs: 60_000, holdMs: 86_400_000 }, ...more,
});
const settingsOf = (shaping: Shaping, hash = 'h'): Settings => ({ hash, shaping, bounces: shippedBounces(), server: { hostname: 'postern.example', sandbox: false } } as unknown as Settings);
type Zone = Readonly<Record<string, { readonly mx?: readonly [number, string][] | 'fails'; readonly a?: readonly string[] | 'fails' }>>;
function resolverOf(zone: Zone): Resolver & { asked: number } {
  const answer = (records: readonly unknown[] | 'fails' | undefined) => {
    if (records === 'fails') return { kind: 'failed', reason: 'SERVFAIL' };
    return records === undefined ? { kind: 'none' } : { kind: 'found', records, ttlSeconds: 300, authentic: false };
  };
  const made = {
    asked: 0,
    async mx(domain: string) {
      made.asked++;
      const mx = zone[domain]?.mx;
      return answer(mx === 'fails' ? mx : mx?.map(([preference, exchange]) => ({ preference, exchange })));
    },
    async addresses(host: string) { return answer(zone[host]?.a); },
  };
  return made as unknown as Resolver & { asked: number };
}
const replyOf = (line: string): Reply => parseReply([line]) ?? (() => { throw new Error(line); })();

const rules = shippedBounces();

t.test('classify', async (t) => {
  const rows: readonly [Phase, string, string, string, boolean][] = [
    ['final', '250 2.0.0 ok', 'delivered', 'none', false],
    ['rcpt', '550 5.1.1 user unknown', 'failed', 'bad-mailbox', true],
    ['rcpt', '550 5.1.10 null MX', 'failed', 'refuses-mail', false],
    ['rcpt', '550 5.1.2 bad system', 'failed', 'bad-domain', false],
    ['mail', '550 5.1.1 sender unknown', 'failed', 'bad-mailbox', false],
    ['rcpt', '450 4.1.1 user unknown', 'deferred', 'bad-mailbox', false],
    ['rcpt', '550 5.7.1 user unknown', 'failed', 'bad-mailbox', false],
    ['rcpt', '550 5.7.1 no such user here, listed at spamhaus', 'failed', 'client', false],
    ['final', '550 5.7.26 unauthenticated', 'failed', 'auth', false],
    ['rcpt', '552 5.2.2 mailbox full', 'deferred', 'quota', false],
    ['rcpt', '552 too many recipients', 'deferred', 'too-many', false],
    ['rcpt', '552 mailbox size exceeded', 'deferred', 'quota', false],
    ['mail', '552 5.3.4 too big', 'failed', 'too-large', false],
    ['rcpt', '550 no such user', 'failed', 'bad-mailbox', true],
    ['rcpt', '550 5.0.0 mailbox unknown', 'failed', 'bad-mailbox', true],
    ['rcpt', '550 go away', 'failed', 'client', false],
    ['rcpt', '550 5.2.1 disabled', 'failed', 'inactive-mailbox', false],
    ['rcpt', '451 4.7.1 greylisted, come back', 'deferred', 'greylisted', false],
    ['greet', '554 5.7.1 not you', 'deferred', 'client', false],
    ['greet', '550 5.1.1 unknown', 'deferred', 'client', false],
    ['rcpt', '421 4.3.2 closing', 'deferred', 'rate', false],
    ['final', '554 5.6.0 broken MIME', 'failed', 'content', false],
    // Wordings of large receivers and of qmail, Exim: what was blocked is the letter; a domain not in a list is about relaying.
    ['final', "550 5.7.1 Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam, this message has been blocked.", 'failed', 'spam', false],
    ['rcpt', '550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient a@x.example not found by SMTP address lookup', 'failed', 'bad-mailbox', true],
    ['final', '554 delivery error: dd Not a valid recipient - mta.example', 'failed', 'bad-mailbox', true],
    ['rcpt', "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", 'failed', 'relaying', false],
    ['final', "550 5.7.515 Access denied, sending domain x.example doesn't meet the required authentication level.", 'failed', 'auth', false],
    ['final', '550 Message headers fail syntax check', 'failed', 'noncompliant', false],
    ['rcpt', '451 Could not complete sender verify callout', 'deferred', 'sender', false],
  ];
  for (const [phase, line, kind, of, dead] of rows) t.same(classify(rules, phase, replyOf(line)), { kind, class: of, deadAddress: dead }, `${phase}: ${line}`);
  for (const phase of ['greet', 'mail', 'rcpt', 'data', 'final'] as const) {
    for (const code of [450, 550, 551, 552, 553, 554]) {
      for (let detail = 0; detail <= 40; detail++) {
        const found = classify(rules, phase, replyOf(`${code} ${Math.floor(code / 100)}.7.${detail} user unknown, does not exist, invalid mailbox`));
        if (found.deadAddress || !rules.classes.has(found.class)) t.fail(`${code} x.7.${detail} at ${phase}`);
      }
    }
  }
});

t.test('ten thousand MX records: ten hosts, and a name that is one', async (t) => {
  const mx = Array.from({ length: 10_000 }, (_, n): [number, string] => [n, `mx${String(n).padStart(5, '0')}.many.example`]);
  const zone: Zone = { 'many.example': { mx }, 'fewer.example': { mx: mx.slice(1) }, ...Object.fromEntries(mx.map(([, host]) => [host, { a: ['192.5.6.30'] }])) };
  const route = async (domain: string): Promise<RouteResult> => (await resolveRoute(domain, { resolver: resolverOf(zone), shaping: shapingOf(), sandbox: false, hostname: 'postern.example' })).route;
  const [many, fewer] = [await route('many.example'), await route('fewer.example')];
  t.match([many, fewer], [{ kind: 'hosts', hosts: { length: 10 }, site: /^mx00000\.many\.example,\+[0-9a-f]{20}$/ }, { kind: 'hosts' }]);
  t.not(many.kind === 'hosts' && many.site, fewer.kind === 'hosts' && fewer.site, 'another set, another site');
});

t.test('routes', async (t) => {
  const zone: Zone = {
    'two.example': { mx: [[20, 'b.host.example'], [10, 'A.host.example.']] }, 'a.host.example': { a: ['192.0.2.1', '198.41.0.4'] }, 'b.host.example': { a: ['8.8.8.8'] },
    'big.example': { mx: [[1, 'x.bigmail.example'], [2, 'mx.other.example']] }, 'x.bigmail.example': { a: ['8.8.4.4'] }, 'mx.other.example': { a: ['9.9.9.9'] },
    'half.example': { mx: [[1, 'x.bigmail.example'], [2, 'b.host.example']] },
    'implicit.example': { a: ['1.1.1.1'] }, 'null.example': { mx: [[0, '.']] }, 'fails.example': { mx: 'fails' },
    'inner.example': { mx: [[0, 'inside.example']] }, 'inside.example': { a: ['127.0.0.1', '10.0.0.1', '169.254.169.254', '::1', '::ffff:127.0.0.1'] },
    'afails.example': { mx: [[0, 'bad.host.example']] }, 'bad.host.example': { a: 'fails' }, 'hollow.example': { mx: [[0, 'nowhere.example']] },
    'self.example': { mx: [[10, 'postern.example'], [20, 'b.host.example']] }, 'second.example': { mx: [[5, 'b.host.example'], [10, 'postern.example']] },
    'literal.example': { mx: [[0, '127.0.0.1']] },
  };
  const resolver = resolverOf(zone);
  const route = async (domain: string, more: Partial<Shaping> = {}, sandbox = false): Promise<RouteResult> =>
    (await resolveRoute(domain, { resolver, shaping: shapingOf(more), sandbox, hostname: 'postern.example' })).route;
  t.match(await route('two.example'), { kind: 'hosts', site: 'a.host.example,b.host.example', label: 'other', tls: 'opportunistic', viaRoute: false, hosts: [{ name: 'a.host.example', port: 25 }, { name: 'b.host.example' }] });
  t.match(await route('big.example'), { kind: 'hosts', site: 'bigmail', label: 'bigmail', tls: 'required' });
  t.match(await route('half.example'), { site: 'b.host.example,x.bigmail.example' }, 'every host must match');
  t.match(await route('implicit.example'), { hosts: [{ name: 'implicit.example', addresses: ['1.1.1.1'] }] });
  t.match(await route('null.example'), { kind: 'failed', status: '5.1.10', deadAddress: true });
  t.match(await route('no.example'), { kind: 'failed', status: '5.1.2', class: 'bad-domain', deadAddress: false });
  t.match(await route('fails.example'), { kind: 'deferred', class: 'dns' });
  t.match(await route('afails.example'), { kind: 'deferred', class: 'dns' });
  t.match(await route('hollow.example'), { kind: 'deferred', class: 'dns' });
  t.match(await route('inner.example'), { kind: 'failed', class: 'routing' }, 'no private target but by a route');
  t.not((await route('literal.example')).kind, 'hosts');
  t.match(await route('self.example'), { kind: 'failed', status: '5.4.6' });
  t.match(await route('second.example'), { hosts: [{ name: 'b.host.example' }] });
  const routes = { routes: [
    { domain: 'two.example', via: [{ host: '127.0.0.1', port: 2525 }], tls: 'off' as const },
    { domain: '*.two.example', via: [{ host: 'a.host.example', port: 26 }], tls: 'required' as const },
  ] };
  t.match(await route('two.example', routes), { site: 'route:127.0.0.1:2525', viaRoute: true, tls: 'off', hosts: [{ addresses: ['127.0.0.1'], port: 2525 }] });
  t.match(await route('sub.two.example', routes), { tls: 'required', hosts: [{ name: 'a.host.example', port: 26 }] });
  t.match(await route('xtwo.example', routes), { kind: 'failed', status: '5.1.2' }, 'a wildcard needs the dot');
  t.match(await route('big.example', routes, true), { kind: 'failed', class: 'sandbox' });
  t.equal((await route('two.example', routes, true)).kind, 'hosts');
  t.equal(laneLimits(shapingOf(), { egress: 'main', provider: 'bigmail' }).connections, 9);
  t.equal(laneLimits(shapingOf(), { egress: 'main', provider: '' }).connections, 2);

  const now = { ms: 1_000_000 };
  const clock: Clock = { now: () => now.ms, after: () => () => undefined };
  const cache = new RouteCache(clock);
  const get = (hash = 'h') => cache.get('two.example', hash, () => ({ resolver, shaping: shapingOf(), sandbox: false, hostname: 'postern.example' }));
  resolver.asked = 0;
  await Promise.all([get(), get(), get()]);
  now.ms += 299_000;
  await get();
  t.equal(resolver.asked, 1, 'one look-up for many askers, for the TTL');
  now.ms += 2_000;
  await get();
  t.equal(resolver.asked, 2);
  await get('other');
  t.equal(resolver.asked, 3, 'a reload forgets');
});

const signed = (more: object = {}): Signed => ({
  id: 'm', index: 0, returnPath: 'v@bounces.example', head: Buffer.from('Subject: x\r\n\r\n'), body: [Buffer.from('.hello\r\n'), Buffer.from('bye')],
  message: { receivedAt: Date.now(), envelope: { mailFrom: 'a@b.example', smtpUtf8: false, body: '8BITMIME' } }, recipient: { wire: 'p@site.example', domain: 'site.example' }, ...more,
} as unknown as Signed);
const hostsOf = (mxes: readonly { host: string; port: number }[], tls: LaneLimits['tls'] = 'opportunistic'): HostsRoute => ({
  kind: 'hosts', site: 'site', provider: '', label: 'other', tls, viaRoute: true, hosts: mxes.map((m, i) => ({ name: `mx${i}.site.example`, addresses: [m.host], port: m.port, preference: i })),
});
async function scene(scripts: readonly MxScript[], run: (s: { mxes: Mx[]; attempt: (m?: Signed, tls?: LaneLimits['tls']) => ReturnType<ReturnType<typeof openDeliverer>['attempt']>; deliverer: ReturnType<typeof openDeliverer>; open: () => Promise<number> }) => Promise<void>, limits: Partial<LaneLimits> = {}): Promise<void> {
  const mxes = await Promise.all(scripts.map((script) => startMx(script)));
  const metrics = new Metrics();
  const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
  const settings = settingsOf(shapingOf({ defaults: { ...LIMITS, ...limits } }));
  const deliverer = openDeliverer({ settings: () => settings, resolver: resolverOf({}), clock: systemClock, log: quiet, metrics,
    timeouts: { connectMs: 500, tlsMs: 200, greetMs: 200, mailMs: 200, rcptMs: 200, dataMs: 200, blockMs: 200, finalMs: 200, quitMs: 100 } });
  try {
    await run({ mxes, deliverer, attempt: (m = signed(), tls) => deliverer.attempt(m, hostsOf(mxes, tls), { egress: 'main' }),
      open: async () => (await metrics.connections.get()).values.reduce((sum, v) => sum + v.value, 0) });
    deliverer.close();
    t.equal((await metrics.connections.get()).values.reduce((sum, v) => sum + v.value, 0), 0, 'no connection is left');
  } finally {
    deliverer.close();
    await Promise.all(mxes.map((mx) => mx.close()));
  }
}

t.test('delivered, kept and reused', async (t) => {
  await scene([{ tls: true }], async ({ mxes: [mx], attempt, deliverer, open }) => {
    const first = await attempt();
    t.match(first, { kind: 'delivered', phase: 'final', host: 'mx0.site.example', class: 'none', tls: /^TLSv1.3/, reply: { code: 250 } });
    t.equal(mx?.messages[0]?.body.toString(), 'Subject: x\r\n\r\n.hello\r\nbye\r\n');
    t.match(mx?.messages[0], { from: 'v@bounces.example', to: 'p@site.example', tls: true });
    t.match(mx?.lines[0], 'EHLO out.example');
    for (let i = 0; i < 5; i++) t.equal((await attempt()).kind, 'delivered');
    t.equal(mx?.connections(), 2, 'three deliveries a connection');
    t.equal((await attempt()).kind, 'delivered');
    t.equal(await open(), 1);
    mx?.dropAll();
    t.equal((await attempt()).kind, 'delivered', 'a dead kept session is replaced in silence');
    await deliverer.closeIdle();
    t.equal(await open(), 0);
    t.equal(mx?.lines.at(-1), 'QUIT');
  });
  await scene([{ answers: { mail: (n) => (n === 1 ? '421 4.4.2 idle too long' : undefined) } }], async ({ mxes: [mx], attempt }) => {
    await attempt();
    t.equal((await attempt()).kind, 'delivered', '421 to the second MAIL of a kept session begins anew');
    t.equal(mx?.connections(), 2);
  });
  await scene([{ answers: { mail: (n) => (n % 2 === 1 ? '452 4.5.3 Too many recipients: Too many messages sent' : undefined) } }], async ({ mxes: [mx], attempt }) => {
    for (let i = 0; i < 3; i++) t.equal((await attempt()).kind, 'delivered', 'a full session is left for a new one');
    t.equal(mx?.connections(), 3);
  });
  await scene([{ answers: { mail: () => '452 4.5.3 Too many messages in this session' } }], async ({ mxes: [mx], attempt }) => {
    t.match(await attempt(), { kind: 'deferred', phase: 'mail' }, 'who says so to the first message is believed');
    t.equal(mx?.connections(), 1);
  });
  await scene([{ answers: { rset: '502 5.5.1 no such command', data: (n) => (n === 0 ? '451 4.3.0 later' : undefined) } }], async ({ mxes: [mx], attempt }) => {
    t.match(await attempt(), { kind: 'deferred', phase: 'data' });
    t.equal((await attempt()).kind, 'delivered', 'who does not know RSET gets the next message on a new connection');
    t.equal(mx?.connections(), 2);
  });
  await scene([{}], async ({ attempt, open }) => {
    await attempt();
    await new Promise((r) => setTimeout(r, 150));
    t.equal(await open(), 0, 'idle sessions end');
  }, { idleMs: 40 });
});

t.test('a host with many addresses that is down leaves room for the next', async (t) => {
  await scene([{}], async ({ mxes: [mx], deliverer }) => {
    const port = mx?.port ?? 0;
    const dead = Array.from({ length: 8 }, (_, i) => `127.0.1.${i + 1}`);
    const hosts = [{ name: 'one', addresses: dead, port, preference: 1 }, { name: 'two', addresses: ['127.0.0.1'], port, preference: 2 }];
    t.match(await deliverer.attempt(signed(), { ...hostsOf([]), hosts }, { egress: 'main' }), { kind: 'delivered', host: 'two' });
  });
});

const six = await startMx({}, '::1').then((mx) => mx, () => undefined);
t.teardown(() => six?.close());
t.test('a host in both families: whichever answers', { skip: six === undefined && 'SKIPPED: no ::1 here' }, async (t) => {
  const port = six?.port ?? 0;
  await scene([], async ({ deliverer, open }) => {
    const hosts = [{ name: 'both', addresses: ['127.0.1.1', '127.0.1.2', '::1'], port, preference: 1 }];
    t.match(await deliverer.attempt(signed(), { ...hostsOf([]), hosts }, { egress: 'any' }), { kind: 'delivered', host: 'both' });
    t.equal(await open(), 1);
    t.equal((await deliverer.attempt(signed(), { ...hostsOf([]), hosts }, { egress: 'any' })).kind, 'delivered');
    t.equal(six?.connections(), 1, 'and is kept');
    t.match(await deliverer.attempt(signed(), { ...hostsOf([]), hosts }, { egress: 'main' }), { kind: 'deferred', phase: 'connect' }, 'from an address of one family, only that');
  });
});

t.test('TLS', async (t) => {
  await scene([{ brokenTls: true }], async ({ mxes: [mx], attempt }) => {
    t.match(await attempt(), { kind: 'delivered', tls: '' });
    t.equal(mx?.connections(), 2);
    mx?.dropAll();
    t.match(await attempt(), { kind: 'delivered', tls: '' });
    t.equal(mx?.lines.filter((l) => l === 'STARTTLS').length, 1, 'remembered');
    t.match(await attempt(signed(), 'required'), { kind: 'deferred', phase: 'tls' });
    t.equal(mx?.messages.length, 2);
  });
  await scene([{}, { tls: true }], async ({ mxes, attempt }) => {
    t.match(await attempt(signed(), 'required'), { kind: 'delivered', host: 'mx1.site.example', tls: /^TLS/ });
    t.notOk(mxes[0]?.lines.some((l) => l.startsWith('MAIL')), 'required says nothing in clear');
  });
});

t.test('the next host, and when not', async (t) => {
  for (const answers of [{ connect: '554 5.7.1 no' }, { connect: { fault: 'close' } }, { ehlo: '421 4.3.2 busy' }, { rcpt: { fault: 'close' } }, { data: { fault: 'stall' } }] as NonNullable<MxScript['answers']>[]) {
    await scene([{ answers }, {}], async ({ attempt }) => {
      t.match(await attempt(), { kind: 'delivered', host: 'mx1.site.example' }, JSON.stringify(answers));
    });
  }
  for (const final of [{ fault: 'close' }, { fault: 'stall' }, { raw: 'what?\r\n' }, { raw: '354 go on\r\n' }, { raw: '250-half' }, { endless: '250-x\r\n' }] as Answer[]) {
    await scene([{ answers: { final } }, {}], async ({ mxes, attempt }) => {
      t.match(await attempt(), { kind: 'deferred', phase: 'final', class: 'connection', host: 'mx0.site.example', reason: /unknown/ }, JSON.stringify(final));
      t.equal(mxes[1]?.connections(), 0, 'not sent twice within one attempt');
    });
  }
  for (const answers of [{ data: '250 2.0.0 ok' }, { data: { raw: '354 go on\r\n250 2.0.0 taken\r\n' } }, { rcpt: { raw: '354 go on\r\n' } }, { connect: { raw: '220 a\r\n220 b\r\n' } }] as NonNullable<MxScript['answers']>[]) {
    await scene([{ answers }, {}], async ({ mxes, attempt }) => {
      t.match(await attempt(), { kind: 'delivered', host: 'mx1.site.example' }, `out of step: ${JSON.stringify(answers)}`);
      t.same(mxes.map(({ messages }) => messages.length), [0, 1], 'once');
      t.equal(mxes[0]?.finals(), 0, 'the message was not said to who had not asked for it');
    });
  }
  await scene([{ answers: { final: (n) => ({ raw: n === 0 ? '250 2.0.0 taken\r\n550 5.1.1 no such user\r\n' : '250 2.0.0 taken\r\n' }) } }], async ({ mxes: [mx], attempt }) => {
    t.same([(await attempt()).kind, (await attempt()).kind], ['delivered', 'delivered'], 'a word too many condemns nobody');
    t.equal(mx?.connections(), 2);
  });
  for (const [line, expected] of [['550 5.1.1 unknown', { kind: 'failed', deadAddress: true, class: 'bad-mailbox' }], ['450 4.2.1 later', { kind: 'deferred' }]] as const) {
    await scene([{ answers: { rcpt: line } }, {}], async ({ mxes, attempt }) => {
      const outcome = await attempt();
      t.match(outcome, { ...expected, phase: 'rcpt', host: 'mx0.site.example' });
      t.notMatch(outcome.reason, '@');
      t.equal(mxes[1]?.connections(), 0, 'an answer is an answer');
    });
  }
  await scene([{ answers: { connect: '554 5.7.1 no' } }], async ({ attempt }) => {
    t.match(await attempt(), { kind: 'deferred', phase: 'greet', class: 'client', reply: { code: 554 } });
  });
  await scene([{ extensions: [] }], async ({ mxes: [mx], attempt }) => {
    t.match(await attempt(signed({ recipient: { wire: 'jörg@site.example', domain: 'site.example' } })), { kind: 'failed', class: 'unsupported', deadAddress: false, reason: /^5\.6\.7/ });
    t.match(await attempt(signed({ recipient: { wire: 'j@bücher.example', domain: 'xn--bcher-kva.example' } })), { kind: 'delivered' });
    t.equal(mx?.messages[0]?.to, 'j@xn--bcher-kva.example');
  });
  await scene([{ answers: { connect: { fault: 'stall' } } }], async ({ attempt, deliverer }) => {
    const running = attempt();
    setTimeout(() => deliverer.close(), 30);
    t.match(await running, { kind: 'deferred', class: 'connection' }, 'shutdown settles what runs');
  });
});
