// DANE (RFC 7672): which hosts have made a promise, whether their certificates keep it, and that of a promise
// that is not kept nothing is sent, least of all in clear.
import { execFileSync } from 'node:child_process';
import { X509Certificate, createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { resolveRoute, type RouteResult, type TargetHost } from '../../daemon/deliver/index.ts';
import { tlsaFault, usableTlsa } from '../../daemon/deliver/dane.ts';
import type { LetterToGo } from '../../daemon/deliver/letter.ts';
import { needOf } from '../../daemon/deliver/need.ts';
import type { Answer, MxRecord, Resolver, TlsaRecord } from '../../daemon/dns/index.ts';
import type { Outcome } from '../../daemon/mail/index.ts';
import type { LaneLimits, Shaping } from '../../daemon/settings/index.ts';
import { hostAt, letterTo, limitsOf, openTestDeliverer, routeTo, saidTo } from '../lib/deliver.ts';
import { startMx, testCertificate, type Mx, type MxScript } from '../lib/mx.ts';

const dir = t.testdir();
const openssl = (...args: readonly string[]): void => void execFileSync('openssl', args, { stdio: 'ignore', cwd: dir });
const der = (name: string): Buffer => new X509Certificate(readFileSync(join(dir, name))).raw;
const spki = (certificate: Buffer): Buffer => new X509Certificate(certificate).publicKey.export({ type: 'spki', format: 'der' });
const sha = (octets: Buffer, kind = 'sha256'): Buffer => createHash(kind).update(octets).digest();
const tlsa = (usage: number, selector: number, matchingType: number, certificate: Buffer): TlsaRecord => ({ usage, selector, matchingType, certificate });

t.test('which records count, and whether a chain keeps them', async (t) => {
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl('req', '-x509', ...ec, '-days', '2', '-subj', '/CN=Test CA', '-addext', 'basicConstraints=critical,CA:TRUE', '-keyout', 'ca.key', '-out', 'ca.pem');
  openssl('req', '-x509', ...ec, '-days', '2', '-subj', '/CN=Other CA', '-addext', 'basicConstraints=critical,CA:TRUE', '-keyout', 'other.key', '-out', 'other.pem');
  const leaf = (name: string, san: string, ca: string): Buffer => {
    writeFileSync(join(dir, 'ext'), `subjectAltName=DNS:${san}\n`);
    openssl('req', ...ec, '-subj', '/CN=x', '-keyout', `${name}.key`, '-out', `${name}.csr`);
    openssl('x509', '-req', '-in', `${name}.csr`, '-CA', `${ca}.pem`, '-CAkey', `${ca}.key`, '-CAcreateserial', '-days', '1', '-extfile', 'ext', '-out', `${name}.pem`);
    return der(`${name}.pem`);
  };
  const [ca, other] = [der('ca.pem'), der('other.pem')];
  const [own, foreign, misnamed] = [leaf('own', 'mx.x.example', 'ca'), leaf('foreign', 'mx.x.example', 'other'), leaf('misnamed', 'mx.y.example', 'ca')];
  const judge = (records: readonly TlsaRecord[], chain: readonly Buffer[], now = Date.now()): boolean => tlsaFault(records, chain, ['mx.x.example'], now) === '';
  for (const [selector, octets] of [[0, own], [1, spki(own)]] as const) {
    for (const [matching, digest] of [[0, octets], [1, sha(octets)], [2, sha(octets, 'sha512')]] as const) {
      t.ok(judge([tlsa(3, selector, matching, digest)], [own, ca]), `3 ${selector} ${matching}`);
      t.notOk(judge([tlsa(3, selector, matching, digest)], [foreign, other]));
    }
  }
  t.ok(judge([tlsa(3, 1, 1, sha(spki(misnamed)))], [misnamed], Date.now() + 9 * 86_400_000), 'of a named key neither name nor dates count (§3.1.1)');
  for (const [name, record] of [['2 0 1', tlsa(2, 0, 1, sha(ca))], ['2 1 1', tlsa(2, 1, 1, sha(spki(ca)))], ['2 0 0', tlsa(2, 0, 0, ca)]] as const) {
    t.ok(judge([record], [own, ca]), name);
    t.notOk(judge([record], [foreign, other]), `${name}: another issuer`);
    t.notOk(judge([record], [foreign, ca]), `${name}: an issuer that did not sign`);
    t.notOk(judge([record], [misnamed, ca]), `${name}: another host's (§3.2.2)`);
    t.notOk(judge([record], [own, ca], Date.now() + 9 * 86_400_000), `${name}: out of date`);
    t.equal(judge([record], [own]), name === '2 0 0', `${name}: the issuer was not sent, but the record may bring it`);
  }
  t.ok(judge([tlsa(3, 1, 1, sha(spki(foreign))), tlsa(3, 1, 1, sha(spki(own)))], [own]), 'one of several is enough: keys are rolled so');
  t.notOk(judge([tlsa(3, 1, 1, sha(spki(own)))], []), 'no certificate');
  t.same(usableTlsa([tlsa(0, 0, 1, sha(own)), tlsa(1, 0, 1, sha(own)), tlsa(3, 2, 1, sha(own)), tlsa(3, 1, 3, sha(own)), tlsa(3, 1, 1, Buffer.alloc(5)), tlsa(3, 1, 2, sha(own))]), [], 'usages 0 and 1, unknown and cut off');
  for (const usage of [2, 3]) t.same(usableTlsa([tlsa(usage, 0, 0, Buffer.from('junk'))]), [], 'a whole certificate that is none');
});

t.test('who has made a promise', async (t) => {
  const found = <T>(records: readonly T[], authentic: boolean): Answer<T> => ({ kind: 'found', records, ttlSeconds: 300, authentic });
  const record = tlsa(3, 1, 1, sha(Buffer.from('x')));
  const route = (mx: boolean, address: boolean, promise: Answer<TlsaRecord>): Promise<{ readonly route: RouteResult }> => resolveRoute('x.example', {
    resolver: { mx: async () => found<MxRecord>([{ exchange: 'mx.x.example', preference: 1 }], mx), addresses: async () => found(['192.5.6.30'], address), txt: async () => ({ kind: 'none' }), tlsa: async (name: string) => (name === '_25._tcp.mx.x.example' ? promise : { kind: 'none' }), close: () => undefined } as Resolver,
    shaping: { defaults: { tls: 'opportunistic' }, providers: [], routes: [], egress: [] } as unknown as Shaping, sandbox: false, hostname: 'relay.example',
  });
  const promised = async (...args: Parameters<typeof route>): Promise<unknown> => {
    const { route: made } = await route(...args);
    return made.kind === 'hosts' ? made.hosts[0]?.tlsa : made;
  };
  t.same(await promised(true, true, found([record], true)), [record]);
  t.same(await promised(true, true, found([tlsa(0, 0, 1, sha(Buffer.from('x')))], true)), [], 'nothing usable: TLS alone is asked for (§2.2)');
  for (const [mx, address, tlsaSecure] of [[false, true, true], [true, false, true], [true, true, false]] as const) t.equal(await promised(mx, address, found([record], tlsaSecure)), undefined, 'only what DNSSEC vouches for, all the way');
  t.equal(await promised(true, true, { kind: 'none' }), undefined);
  t.match(await promised(true, true, { kind: 'failed', reason: 'SERVFAIL' }), { kind: 'deferred', class: 'tls', reason: /TLSA/ }, 'a promise that cannot be read is none to go past');
});

t.test('where the promise stands: aliases, and domains without MX', async (t) => {
  const found = <T>(records: readonly T[], authentic: boolean, canonical?: string): Answer<T> => ({ kind: 'found', records, ttlSeconds: 300, authentic, ...(canonical !== undefined && { canonical }) });
  const record = tlsa(3, 1, 1, sha(Buffer.from('x')));
  const hostOf = async (mx: Answer<MxRecord>, address: Answer<string>, promises: Readonly<Record<string, Answer<TlsaRecord>>>): Promise<unknown> => {
    const { route } = await resolveRoute('x.example', {
      resolver: { mx: async () => mx, addresses: async () => address, txt: async () => ({ kind: 'none' }), tlsa: async (name: string) => promises[name] ?? { kind: 'none' }, close: () => undefined } as Resolver,
      shaping: { defaults: { tls: 'opportunistic' }, providers: [], routes: [], egress: [] } as unknown as Shaping, sandbox: false, hostname: 'relay.example',
    });
    return route.kind === 'hosts' ? route.hosts[0] : route;
  };
  const mx = found<MxRecord>([{ exchange: 'mx.x.example', preference: 1 }], true);
  const alias = found(['192.5.6.30'], true, 'real.y.example');
  t.match(await hostOf(mx, alias, { '_25._tcp.real.y.example': found([record], true), '_25._tcp.mx.x.example': found([], true) }), { name: 'mx.x.example', tlsa: [record], tlsaBase: 'real.y.example' }, 'where the aliases lead first');
  const atName = await hostOf(mx, alias, { '_25._tcp.mx.x.example': found([record], true) });
  t.match(atName, { tlsa: [record] }, 'then the name itself');
  t.equal((atName as TargetHost).tlsaBase, undefined);
  t.match(await hostOf(mx, alias, { '_25._tcp.real.y.example': { kind: 'failed', reason: 'SERVFAIL' }, '_25._tcp.mx.x.example': found([record], true) }), { kind: 'deferred', class: 'tls' }, 'what cannot be read is not gone past');
  t.equal((await hostOf(mx, { ...alias, authentic: false } as Answer<string>, { '_25._tcp.mx.x.example': found([record], true) }) as TargetHost).tlsa, undefined, 'an alias that nobody vouches for');
  const own = { '_25._tcp.x.example': found([record], true) };
  t.match(await hostOf({ kind: 'none', authentic: true }, found(['192.5.6.30'], true), own), { name: 'x.example', tlsa: [record] }, 'no MX, and that is certain');
  t.equal((await hostOf({ kind: 'none', authentic: false }, found(['192.5.6.30'], true), own) as TargetHost).tlsa, undefined, 'no MX, says somebody');
});

t.test('the name asked for in the handshake, and the names an issuer may vouch for', async (t) => {
  const host: TargetHost = { name: 'mx.x.example', tlsaBase: 'real.y.example', addresses: [], port: 25, preference: 0 };
  const to = { domain: 'x.example', tlsOptional: false } as LetterToGo;
  const issuer = [tlsa(2, 0, 1, sha(Buffer.from('ca')))];
  t.match(needOf({ ...host, tlsa: issuer }, to), { by: 'DANE', servername: 'real.y.example', names: ['real.y.example', 'mx.x.example', 'x.example'] });
  t.match(needOf({ ...host, tlsa: [tlsa(3, 1, 1, sha(Buffer.from('key')))] }, to), { servername: 'real.y.example', names: [] }, 'a named key needs no name');
  t.match(needOf({ ...host, tlsa: [], sts: true }, to), { by: 'MTA-STS', servername: 'mx.x.example' });
});

t.test('a promise is kept or nothing is sent', async (t) => {
  const own = new X509Certificate(testCertificate().cert).raw;
  const [right, wrong] = [tlsa(3, 1, 1, sha(spki(own))), tlsa(3, 1, 1, sha(Buffer.from('another')))];
  const attempt = async (hosts: readonly (readonly [MxScript, readonly TlsaRecord[]])[], tls: LaneLimits['tls'] = 'opportunistic'): Promise<{ readonly outcome: Outcome; readonly mxes: readonly Mx[] }> => {
    const mxes = await Promise.all(hosts.map(([script]) => startMx(script)));
    const deliverer = openTestDeliverer(limitsOf(tls));
    const route = routeTo(mxes.map((mx, i) => hostAt(mx, { name: `mx${i}.x.example`, preference: i, tlsa: hosts[i]?.[1] ?? [] })), { tls });
    try {
      return { outcome: await deliverer.attempt(letterTo(), route, { egress: '' }), mxes };
    } finally {
      deliverer.close();
      await Promise.all(mxes.map((mx) => mx.close()));
    }
  };
  const kept = await attempt([[{ tls: true }, [wrong, right]]]);
  t.match(kept.outcome, { kind: 'delivered', tls: /^TLSv1\.\d \S+ DANE$/ });
  t.equal(kept.mxes[0]?.messages[0]?.tls, true);
  t.match((await attempt([[{ tls: true }, []]])).outcome, { kind: 'delivered', tls: /^TLSv1\.\d \S+$/ }, 'nothing usable: encrypted, by whoever it is');
  for (const [name, script, records] of [
    ['another certificate', { tls: true }, [wrong]], ['STARTTLS stripped', {}, [right]], ['STARTTLS stripped, nothing usable', {}, []], ['STARTTLS refused', { tls: true, answers: { starttls: '454 4.7.0 not now' } }, [right]],
    ['garbage for a handshake', { brokenTls: true }, [right]], ['a host that closes', { tls: true, answers: { starttls: { fault: 'close' } } }, [right]],
  ] as const) {
    const { outcome, mxes } = await attempt([[script, records]]);
    t.match(outcome, { kind: 'deferred', phase: 'tls' }, name);
    t.same(mxes.flatMap(saidTo), [], `${name}: not a word of it`);
    t.equal(mxes[0]?.messages.length, 0);
  }
  const second = await attempt([[{ tls: true }, [wrong]], [{ tls: true }, [right]]]);
  t.match(second.outcome, { kind: 'delivered', host: 'mx1.x.example' }, 'the next host may keep its own');
  t.match((await attempt([[{}, [right]]], 'off')).outcome, { kind: 'delivered', tls: '' }, 'tls: off is an operator\'s word');
});
