// REQUIRETLS (RFC 8689): a message that asks for it goes to hosts that prove themselves and promise the same, and
// nobody else hears a word of it; `TLS-Required: No` gets through what the receiver's own promises would hold up.
import t from 'tap';
import type { TargetHost } from '../../daemon/deliver/index.ts';
import type { Envelope, Outcome, Plan, Signed } from '../../daemon/mail/index.ts';
import type { LaneLimits } from '../../daemon/settings/index.ts';
import { hostAt, letterTo, limitsOf, makeAuthority, openTestDeliverer, routeTo, saidTo } from '../lib/deliver.ts';
import { startMx, type MxScript } from '../lib/mx.ts';

t.setTimeout(60_000);
const authority = makeAuthority(t.testdir());
authority.trust(t);
const certificate = authority.certificate('mx1.x.example');
const OFFERED = ['PIPELINING', 'REQUIRETLS'];

const letter = (envelope: Partial<Envelope>, plan: Partial<Plan> = {}): Signed => letterTo('x.example', envelope, plan);

async function attempt(message: Signed, script: MxScript, of: Partial<TargetHost>, tls?: LaneLimits['tls']): Promise<{ readonly outcome: Outcome; readonly said: readonly string[] }> {
  const mx = await startMx(script);
  const deliverer = openTestDeliverer(limitsOf(tls));
  try {
    return { outcome: await deliverer.attempt(message, routeTo([hostAt(mx, of)]), { egress: '' }), said: saidTo(mx) };
  } finally {
    deliverer.close();
    await mx.close();
  }
}

t.test('to hosts that prove themselves and offer it, and the parameter goes along', async (t) => {
  for (const [of, label] of [[{ sts: true }, 'MTA-STS'], [{ vouched: true }, 'PKIX']] as const) {
    const { outcome, said } = await attempt(letter({ requireTls: true }), { tls: true, certificate, extensions: OFFERED }, of);
    t.match(outcome, { kind: 'delivered', tls: new RegExp(` ${label}$`) }, label);
    t.match(said[0], /^MAIL FROM:<v@b\.example> .*REQUIRETLS$/);
  }
});

t.test('to nobody else, and not a word', async (t) => {
  const all = { tls: true, certificate, extensions: OFFERED };
  for (const [name, script, of, outcome, tls] of [
    ['nothing vouches for the host', all, {}, { kind: 'failed', status: '5.7.30' }],
    ['it proves itself but promises nothing', { ...all, extensions: [] }, { sts: true }, { kind: 'failed', status: '5.7.30' }],
    ['it promises in clear only', { extensions: OFFERED }, { sts: true }, { kind: 'deferred', phase: 'tls' }],
    ['STARTTLS is refused', { ...all, answers: { starttls: '454 4.7.0 no' } }, { vouched: true }, { kind: 'deferred', phase: 'tls' }],
    ['a certificate nobody vouches for', { tls: true, extensions: OFFERED }, { vouched: true }, { kind: 'deferred', phase: 'tls' }],
    ['TLSA records of which none can be used', all, { tlsa: [] }, { kind: 'failed', status: '5.7.30' }],
    ['another host\'s certificate', all, { vouched: true, name: 'mx2.x.example' }, { kind: 'deferred', phase: 'tls' }],
    ['TLS switched off for the lane', { extensions: OFFERED }, { vouched: true }, { kind: 'deferred', phase: 'tls' }, 'off'],
  ] as const satisfies readonly (readonly [string, MxScript, Partial<TargetHost>, object, LaneLimits['tls']?])[]) {
    const got = await attempt(letter({ requireTls: true }), script, of, tls);
    t.match(got.outcome, outcome, name);
    t.same(got.said, [], name);
  }
});

t.test('a session made without proof is not used for it, and one host that cannot does not speak for another', async (t) => {
  const mx = await startMx({ tls: true, certificate, extensions: OFFERED });
  const plain = await startMx({ tls: true, certificate, extensions: [] });
  const deliverer = openTestDeliverer();
  const host = hostAt(mx, { vouched: true });
  t.match(await deliverer.attempt(letter({}), routeTo([host]), { egress: '' }), { kind: 'delivered', tls: /SHA\d+$/ });
  t.match(await deliverer.attempt(letter({ requireTls: true }), routeTo([host]), { egress: '' }), { kind: 'delivered', tls: / PKIX$/ });
  t.equal(mx.connections(), 2);
  const cannot = hostAt(plain, { vouched: true, preference: 0 });
  t.match(await deliverer.attempt(letter({ requireTls: true }), routeTo([cannot, { ...host, preference: 1 }]), { egress: '' }), { kind: 'delivered' }, 'the next host can');
  await mx.close();
  const gone = { ...host, preference: 1 };
  t.match(await deliverer.attempt(letter({ requireTls: true }), routeTo([cannot, gone]), { egress: '' }), { kind: 'deferred', phase: 'connect' }, 'the next host may be able to, later');
  t.match(await deliverer.attempt(letter({ requireTls: true }), routeTo([{ ...gone, preference: 0 }, { ...cannot, preference: 1 }]), { egress: '' }), { kind: 'deferred', phase: 'connect' }, 'and the other way round');
  deliverer.close();
  await plain.close();
});

t.test('TLS-Required: No', async (t) => {
  const optional = letter({}, { tlsOptional: true });
  t.match((await attempt(optional, {}, { sts: true })).outcome, { kind: 'delivered', tls: '' }, 'in clear, though the receiver promised TLS');
  t.match((await attempt(optional, { tls: true }, { sts: true })).outcome, { kind: 'delivered', tls: /SHA\d+$/ }, 'encrypted where it can be');
  const mx = await startMx({ tls: true });
  const deliverer = openTestDeliverer(limitsOf('opportunistic', 1));
  const once = (message: Signed): Promise<Outcome> => deliverer.attempt(message, routeTo([hostAt(mx)]), { egress: '' });
  t.match(await once(letter({})), { kind: 'delivered', tls: /SHA\d+$/ });
  mx.script = {};
  t.match(await once(letter({})), { kind: 'deferred', reason: /spoke TLS lately/ });
  t.match(await once(optional), { kind: 'delivered', tls: '' }, 'and though the host spoke TLS lately');
  deliverer.close();
  await mx.close();
  t.match((await attempt(letter({}, {}), {}, { sts: true })).outcome, { kind: 'deferred' }, 'without it the promise holds');
  t.match((await attempt(letter({ requireTls: true }, { tlsOptional: true }), {}, { sts: true })).outcome, { kind: 'deferred' }, 'REQUIRETLS stands above it');
});
