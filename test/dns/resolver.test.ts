// The stub resolver against a real server on real sockets (test/lib/zone.ts): what it finds, what it
// takes for "none", what it must only ever call "failed", and how long it believes any of it.
import { createSocket } from 'node:dgram';
import t from 'tap';
import { AnswerCache } from '../../daemon/dns/cache.ts';
import { isPublicAddress, openResolver, type Answer, type Resolver } from '../../daemon/dns/index.ts';
import { systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { startZone, type Zone, type ZoneOptions, type ZoneServer } from '../lib/zone.ts';

type Test = { teardown(run: () => unknown): void };

function movable(): Clock & { move(ms: number): void } {
  let now = 1_000_000;
  return { now: () => now, move: (ms) => { now += ms; }, after: (ms, run) => systemClock.after(ms, run) };
}

async function setUp(test: Test, zone: Zone, options: ZoneOptions = {}, trustAd = true): Promise<{ server: ZoneServer; resolver: Resolver; clock: ReturnType<typeof movable> }> {
  const server = await startZone(zone, options);
  const clock = movable();
  const resolver = openResolver({ servers: [server], timeoutMs: 60, trustAd }, clock);
  test.teardown(async () => {
    resolver.close();
    await server.close();
  });
  return { server, resolver, clock };
}

const recordsOf = <T>(answer: Answer<T>): readonly T[] | string => (answer.kind === 'found' ? answer.records : answer.kind);
const reasonOf = (answer: Answer<unknown>): string => (answer.kind === 'failed' ? answer.reason : answer.kind);

t.test('finds what is there', async (t) => {
  const certificate = Buffer.alloc(32, 7);
  const { resolver, server } = await setUp(t, {
    'a.example': { MX: [[20, 'Mx2.A.example'], [10, 'mx1.a.example']], ttl: 120, ad: true },
    'null.example': { MX: [[0, '.']] },
    'mx1.a.example': { A: ['192.0.2.1', '192.0.2.2'], AAAA: ['2001:db8::1'] },
    'four.example': { A: ['192.0.2.3'] },
    'six.example': { AAAA: ['2001:db8::6'] },
    't.example': { TXT: ['v=one', ['v=', 'two'], 'x'.repeat(600)] },
    '_25._tcp.mx1.a.example': { TLSA: [{ usage: 3, selector: 1, matchingType: 1, certificate }] },
    '*.wild.example': { MX: [[5, 'mx1.a.example']] },
  });
  t.same(await resolver.mx('a.example'), {
    kind: 'found', ttlSeconds: 120, authentic: true,
    records: [{ preference: 20, exchange: 'mx2.a.example' }, { preference: 10, exchange: 'mx1.a.example' }],
  });
  t.same(recordsOf(await resolver.mx('null.example')), [{ preference: 0, exchange: '' }], 'the null MX is for the caller to see');
  t.same(recordsOf(await resolver.addresses('mx1.a.example')), ['192.0.2.1', '192.0.2.2', '2001:db8::1']);
  t.same(recordsOf(await resolver.addresses('four.example')), ['192.0.2.3']);
  t.same(recordsOf(await resolver.addresses('six.example')), ['2001:db8::6']);
  t.same(recordsOf(await resolver.txt('t.example')), ['v=one', 'v=two', 'x'.repeat(600)]);
  t.same(recordsOf(await resolver.tlsa('_25._tcp.mx1.a.example')), [{ usage: 3, selector: 1, matchingType: 1, certificate }]);
  t.same(recordsOf(await resolver.mx('any.wild.example')), [{ preference: 5, exchange: 'mx1.a.example' }]);
  t.equal((await resolver.mx('nobody.example')).kind, 'none');
  t.equal((await resolver.mx('four.example')).kind, 'none');
  t.equal((await resolver.addresses('nobody.example')).kind, 'none');
  t.ok(server.queries.every((query) => query.dnssec), 'DNSSEC is asked for when the answer is to be believed');
});

t.test('the AD bit counts only where it is trusted', async (t) => {
  const zone = { 'a.example': { A: ['192.0.2.1'], ad: true }, 'b.example': { A: ['192.0.2.1'], AAAA: ['2001:db8::1'] } };
  const trusting = await setUp(t, zone);
  const wary = await setUp(t, zone, {}, false);
  const authentic = async (resolver: Resolver, host: string): Promise<unknown> => {
    const answer = await resolver.addresses(host);
    return answer.kind === 'found' && answer.authentic;
  };
  t.equal(await authentic(trusting.resolver, 'a.example'), true);
  t.equal(await authentic(trusting.resolver, 'b.example'), false);
  t.equal(await authentic(wary.resolver, 'a.example'), false);
  t.match(await trusting.resolver.mx('a.example'), { kind: 'none', authentic: true }, 'of a denial too');
  t.match(await trusting.resolver.mx('b.example'), { kind: 'none', authentic: false });
  t.match(await wary.resolver.mx('a.example'), { kind: 'none', authentic: false });
});

t.test('aliases are followed inside the answer, and not for ever', async (t) => {
  const zone: Record<string, { CNAME?: string; MX?: [number, string][]; ttl?: number }> = {
    'alias.example': { CNAME: 'Real.example', ttl: 30 },
    'real.example': { MX: [[1, 'mx.example']], ttl: 600 },
    'round.example': { CNAME: 'round2.example' },
    'round2.example': { CNAME: 'round.example' },
    'dangling.example': { CNAME: 'gone.example' },
    'odd.example': { CNAME: 'a b.example' },
    'a b.example': { MX: [[1, 'mx.example']] },
  };
  for (let i = 0; i < 12; i++) zone[`long${i}.example`] = { CNAME: `long${i + 1}.example` };
  zone['long12.example'] = { MX: [[1, 'mx.example']] };
  const { resolver } = await setUp(t, zone);
  const answer = await resolver.mx('alias.example');
  t.match(answer, { kind: 'found', ttlSeconds: 30, records: [{ exchange: 'mx.example' }], canonical: 'real.example' }, 'the shorter TTL holds, and where it led is told');
  t.notMatch(await resolver.mx('real.example'), { canonical: String }, 'no alias, nothing to tell');
  t.match(reasonOf(await resolver.mx('round.example')), /circle/);
  t.match(reasonOf(await resolver.mx('long0.example')), /aliases/);
  t.match(recordsOf(await resolver.mx('long6.example')), [{ exchange: 'mx.example' }]);
  t.equal((await resolver.mx('dangling.example')).kind, 'none');
  t.match(reasonOf(await resolver.mx('odd.example')), /no host name/);
});

t.test('what cannot be told is failed, never none', async (t) => {
  const MX = [[1, 'mx.example']] as const;
  const { resolver, server } = await setUp(t, {
    'servfail.example': { fault: 'servfail', MX },
    'refused.example': { fault: 'refused', MX },
    'silent.example': { fault: 'timeout', MX },
    'id.example': { fault: 'wrong-id', MX },
    'question.example': { fault: 'wrong-question', MX },
    'garbage.example': { fault: 'garbage', MX },
    'loop.example': { fault: 'pointer-loop', MX },
    'lame.example': { fault: 'lame', MX },
    'bad.example': { MX: [[1, 'a b.example'], [2, 'x\r\ny.example'], [3, '192.0.2.1'], [4, '-x.example']] },
    'mixed.example': { MX: [[1, 'a"b.example'], [2, 'good_1.example']] },
  });
  t.match(reasonOf(await resolver.mx('servfail.example')), /SERVFAIL/);
  t.equal(server.queries.length, 1, 'a server that has answered is not asked again at once');
  t.match(reasonOf(await resolver.mx('refused.example')), /REFUSED/);
  for (const name of ['silent', 'id', 'question']) t.match(reasonOf(await resolver.mx(`${name}.example`)), /no answer within 60 ms/, name);
  t.match(reasonOf(await resolver.mx('garbage.example')), /./);
  t.match(reasonOf(await resolver.mx('loop.example')), /pointer/);
  t.match(reasonOf(await resolver.mx('lame.example')), /lame/);
  t.match(reasonOf(await resolver.mx('bad.example')), /no usable MX record among 4/);
  t.match(recordsOf(await resolver.mx('mixed.example')), [{ exchange: 'good_1.example' }]);
  const asked = server.queries.length;
  for (const name of ['', '.', 'a..b', 'a b.example', `${'x'.repeat(64)}.example`, `${'x.'.repeat(127)}example`, '127.0.0.1', 'x\r\ny']) {
    t.match(reasonOf(await resolver.mx(name)), /not a domain name/, JSON.stringify(name));
  }
  t.equal(server.queries.length, asked, 'nothing is asked about what is no name');
});

t.test('one family that fails does not hide the other', async (t) => {
  const { resolver } = await setUp(t, {
    'half.example': { A: ['192.0.2.1'], fault: 'servfail', faultTypes: ['AAAA'] },
    'bare.example': { fault: 'servfail', faultTypes: ['AAAA'] },
  });
  t.same(recordsOf(await resolver.addresses('half.example')), ['192.0.2.1']);
  t.equal((await resolver.addresses('bare.example')).kind, 'failed', 'no A and an AAAA nobody knows: cannot tell');
});

t.test('an address in hand does not wait for a family that is silent', async (t) => {
  const server = await startZone({ 'half.example': { A: ['192.0.2.1'], fault: 'timeout', faultTypes: ['AAAA'] } });
  const resolver = openResolver({ servers: [server], timeoutMs: 20_000, trustAd: false }, systemClock);
  t.teardown(async () => {
    resolver.close();
    await server.close();
  });
  const startedAt = performance.now();
  t.same(recordsOf(await resolver.addresses('half.example')), ['192.0.2.1']);
  t.ok(performance.now() - startedAt < 15_000);
});

t.test('a spoofed datagram is passed over for the true one; a cut answer is fetched over TCP', async (t) => {
  const { resolver, server } = await setUp(t, {
    'spoof.example': { MX: [[1, 'mx.example']], fault: 'spoofed-first' },
    'big.example': { TXT: ['y'.repeat(9_000)], fault: 'truncate' },
    'cut.example': { MX: [[1, 'mx.example']], fault: 'truncate' },
  });
  t.match(recordsOf(await resolver.mx('spoof.example')), [{ exchange: 'mx.example' }]);
  t.match(recordsOf(await resolver.mx('cut.example')), [{ exchange: 'mx.example' }]);
  t.same(recordsOf(await resolver.txt('big.example')), ['y'.repeat(9_000)]);
  t.same(server.queries.map((query) => query.transport), ['udp', 'udp', 'tcp', 'udp', 'tcp']);
  await resolver.txt('big.example');
  t.equal(server.queries.length, 7, 'an answer of 9,000 octets is not kept');
});

t.test('over TCP too: silence, garbage and other questions are failures', async (t) => {
  const { resolver, server } = await setUp(t, { 'silent.example': { fault: 'tcp-silent' }, 'wrong.example': { fault: 'tcp-wrong', A: ['192.0.2.1'] }, 'garbage.example': { fault: 'tcp-garbage' } });
  t.match(reasonOf(await resolver.mx('silent.example')), /no answer within 60 ms/);
  t.match(reasonOf(await resolver.mx('wrong.example')), /answer to another question/);
  t.match(reasonOf(await resolver.mx('garbage.example')), /answer to another question/);
  t.ok(server.queries.some(({ transport }) => transport === 'tcp'));
});

t.test('as many MX records as a message holds (64 KiB) come over TCP and are not kept', async (t) => {
  const MX = Array.from({ length: 1_500 }, (_, i): [number, string] => [i, `m${i}.example`]);
  const { resolver, server } = await setUp(t, { 'many.example': { MX, fault: 'truncate' } });
  t.equal(recordsOf(await resolver.mx('many.example')).length, 1_500);
  const asked = server.queries.length;
  t.equal(recordsOf(await resolver.mx('many.example')).length, 1_500);
  t.equal(server.queries.length, asked * 2, 'a stranger\'s zone does not fill the cache');
});

t.test('records about other names are neither an answer nor remembered', async (t) => {
  const { resolver, server } = await setUp(t, { 'evil.example': { fault: 'strangers' }, 'victim.example': { A: ['192.0.2.1'] } });
  t.equal((await resolver.addresses('evil.example')).kind, 'none');
  t.same(recordsOf(await resolver.addresses('victim.example')), ['192.0.2.1']);
  t.ok(server.queries.some(({ name }) => name === 'victim.example'));
});

t.test('the cache is bounded, and gives up what was used least lately', async (t) => {
  const cache = new AnswerCache({ now: () => 0, after: () => () => undefined });
  const read = { answer: { kind: 'none' as const }, cacheSeconds: 60 };
  for (let i = 0; i < 50_000; i++) cache.keep(`MX d${i}.example`, read, 100);
  t.ok(cache.get('MX d0.example'), 'used');
  for (let i = 0; i < 10; i++) cache.keep(`MX e${i}.example`, read, 100);
  t.ok(cache.get('MX d0.example'));
  t.same(Array.from({ length: 12 }, (_, i) => cache.get(`MX d${i + 1}.example`) === undefined), [...Array.from({ length: 10 }, () => true), false, false]);
});

t.test('the next server is asked', async (t) => {
  const silent = await startZone({ '*': { fault: 'timeout' } });
  const broken = await startZone({ '*': { fault: 'servfail' } });
  const good = await startZone({ '*': { MX: [[1, 'mx.example']] } });
  // A port nobody listens on: taken and given back.
  const closed = createSocket('udp4');
  await new Promise<void>((done) => { closed.bind(0, '127.0.0.1', done); });
  const { port } = closed.address();
  closed.close();
  const resolver = openResolver({ servers: [{ host: '127.0.0.1', port }, silent, broken, good], timeoutMs: 60, trustAd: false }, systemClock);
  const nobody = openResolver({ servers: [{ host: '127.0.0.1', port }], timeoutMs: 5_000, trustAd: false }, systemClock);
  t.teardown(async () => {
    resolver.close();
    nobody.close();
    await Promise.all([silent.close(), broken.close(), good.close()]);
  });
  t.match(recordsOf(await resolver.mx('a.example')), [{ exchange: 'mx.example' }]);
  const startedAt = performance.now();
  t.match(reasonOf(await nobody.mx('a.example')), /ECONNREFUSED/);
  t.ok(performance.now() - startedAt < 2_000, 'a closed port is not waited for');
});

t.test('answers are kept for their TTL, denials for the SOA minimum, failures for seconds', async (t) => {
  const zone: Zone = {
    'a.example': { A: ['192.0.2.1'], ttl: 100 },
    'zero.example': { MX: [[1, 'mx.example']], ttl: 0 },
    'long.example': { MX: [[1, 'mx.example']], ttl: 10_000_000 },
    'top.example': { MX: [[1, 'mx.example']], ttl: 0x8000_0001 },
    'down.example': { fault: 'servfail' },
    'nosoa.example': { fault: 'no-soa' },
  };
  const { resolver, server, clock } = await setUp(t, zone, { negativeTtl: 60 });
  const asks = async (name: string): Promise<number> => {
    const before = server.queries.length;
    await resolver.mx(name);
    return server.queries.length - before;
  };
  const ttl = async (name: string): Promise<unknown> => {
    const answer = await resolver.mx(name);
    return answer.kind === 'found' ? answer.ttlSeconds : answer.kind;
  };
  t.equal(await ttl('zero.example'), 5);
  t.equal(await ttl('top.example'), 5, 'a TTL with its top bit set is zero');
  t.equal(await ttl('long.example'), 86_400);
  t.equal(await asks('A.example'), 1, 'denied: there is no MX');
  t.equal(await asks('a.EXAMPLE'), 0, 'case makes no difference');
  t.equal(await asks('down.example'), 1);
  t.equal(await asks('down.example'), 0);
  t.equal(await asks('nosoa.example'), 1);
  t.equal(await asks('nosoa.example'), 1, 'a denial without an SOA is not kept');
  clock.move(5_001);
  t.equal(await asks('zero.example'), 1);
  t.equal(await asks('down.example'), 1);
  t.equal(await asks('a.example'), 0);
  clock.move(20_000);
  t.equal(await ttl('long.example'), 86_400 - 25, 'the TTL is counted down');
  clock.move(35_000);
  t.equal(await asks('a.example'), 1, 'the denial is over after 60 s');
});

t.test('one question is on its way once', async (t) => {
  const { resolver, server } = await setUp(t, { 'a.example': { MX: [[1, 'mx.example']] } }, { delayMs: 20 });
  const answers = await Promise.all(Array.from({ length: 50 }, () => resolver.mx('a.example')));
  t.equal(server.queries.length, 1);
  t.ok(answers.every((answer) => answer.kind === 'found'));
});

t.test('many different questions at once are all answered', async (t) => {
  const server = await startZone({ '*': { MX: [[1, 'mx.example']] } });
  const resolver = openResolver({ servers: [server], timeoutMs: 5_000, trustAd: false }, systemClock);
  t.teardown(async () => {
    resolver.close();
    await server.close();
  });
  const answers = await Promise.all(Array.from({ length: 600 }, (_, i) => resolver.mx(`d${i}.example`)));
  t.equal(answers.filter((answer) => answer.kind === 'found').length, 600);
});

t.test('close ends what is under way', async (t) => {
  const { server } = await setUp(t, { '*': { fault: 'timeout' } });
  const resolver = openResolver({ servers: [server], timeoutMs: 60_000, trustAd: false }, systemClock);
  const asked = resolver.addresses('a.example');
  setTimeout(() => resolver.close(), 20);
  t.match(reasonOf(await asked), /closed/);
  t.match(reasonOf(await resolver.mx('b.example')), /closed/);
});

t.test('only addresses of the public Internet are public', async (t) => {
  for (const ip of ['8.8.8.8', '1.1.1.1', '172.15.255.255', '172.32.0.1', '100.63.255.255', '100.128.0.1', '223.255.255.255', '2606:4700::1111', '2a00:1450::1', '2001:4860:4860::8888']) {
    t.ok(isPublicAddress(ip), ip);
  }
  for (const ip of [
    '0.0.0.0', '0.1.2.3', '10.0.0.1', '100.64.0.1', '100.127.255.255', '127.0.0.1', '127.255.255.254', '169.254.169.254', '172.16.0.1', '172.31.255.255',
    '192.0.0.192', '192.0.2.1', '192.88.99.1', '192.168.1.1', '198.18.0.1', '198.19.255.255', '198.51.100.7', '203.0.113.9', '224.0.0.1', '239.1.1.1', '240.0.0.1', '255.255.255.255',
    '::', '::1', '::ffff:127.0.0.1', '::ffff:8.8.8.8', '::ffff:7f00:1', '::127.0.0.1', '64:ff9b::8.8.8.8', '64:ff9b::7f00:1', '64:ff9b:1::1', '100::1', '2001::1', '2001:db8::1',
    '2002:7f00:1::', '3fff::1', 'fc00::1', 'fd00:ec2::254', 'fe80::1', 'fe80::1%lo', 'fec0::1', 'ff02::1', '2606:4700::1%eth0', '', 'localhost', '127.1', '0x7f.1', '2130706433', '8.8.8.8 ', '010.8.8.8',
  ]) t.notOk(isPublicAddress(ip), ip);
});
