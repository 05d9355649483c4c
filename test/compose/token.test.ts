// Tokens: what is sealed comes back whole, and anything else comes back as nothing at all.
import * as fc from 'fast-check';
import t from 'tap';
import { NOBODY, openReturnPath, openToken, sealReturnPath, sealToken, type Claim } from '../../daemon/compose/index.ts';
import { newId } from '../../daemon/runtime/index.ts';
import { hashes, keyring } from './letters.ts';

const ring = keyring(t.testdir());
const keys = ring.tenant('acme');
const message = newId(Date.now());
const click: Claim = { kind: 'click', message, recipient: 3, stream: 'news', purpose: 'newsletter', hashes: hashes(1), target: 'https://shop.example/?a=1&b=\u00e4' };

t.test('round trip', async (t) => {
  t.same(openToken(ring, sealToken(keys, click)), { tenant: 'acme', claim: click });
  const { target: _, ...who } = click;
  for (const mode of ['aggregate', 'lastOpenDate', 'individual'] as const) {
    const open: Claim = { ...who, kind: 'open', mode };
    t.same(openToken(ring, sealToken(keys, open))?.claim, open);
  }
  t.same(openToken(ring, sealToken(keys, { ...who, kind: 'unsubscribe' }))?.claim, { ...who, kind: 'unsubscribe' });
  t.not(sealToken(keys, click), sealToken(keys, click), 'two seals of one claim differ');
  const everybody: Claim = { ...who, kind: 'open', mode: 'aggregate', recipient: NOBODY };
  t.equal(sealToken(keys, everybody), sealToken(keys, everybody), 'but an aggregate open is one for all');
  t.equal(openToken(ring, sealToken(keys, everybody))?.claim.recipient, NOBODY);
  t.throws(() => sealToken(keys, { ...click, message: 'no id' }), RangeError);
  t.throws(() => sealToken(keys, { ...click, stream: 'x'.repeat(256) }), RangeError);
});

t.test('anything but a token of ours is nothing', async (t) => {
  const token = sealToken(keys, click);
  for (let i = 0; i < token.length; i++) {
    const other = token[i] === 'A' ? 'B' : 'A';
    if (openToken(ring, token.slice(0, i) + other + token.slice(i + 1)) !== undefined) t.fail(`character ${i} changed`);
    if (openToken(ring, token.slice(0, i)) !== undefined) t.fail(`cut at ${i}`);
  }
  t.equal(openToken(ring, `${token}A`), undefined);
  t.equal(openToken(ring, `${token}=`), undefined);
  t.equal(openToken(ring, 'A'.repeat(10_000)), undefined);
  // The other tenant's key id before this tenant's octets, and the other way round.
  const octets = Buffer.from(token, 'base64url');
  ring.tenant('other').token.id.copy(octets, 1);
  t.equal(openToken(ring, octets.toString('base64url')), undefined);
  t.equal(openToken(ring, sealToken(ring.tenant('other'), click))?.tenant, 'other');
  fc.assert(fc.property(fc.string(), (text) => openToken(ring, text) === undefined));
});

t.test('a new key seals, an older one opens until it is retired, and what a retired one sealed is garbage like any other', async (t) => {
  const folders = t.testdir({ here: {}, there: {} });
  const dir = `${folders}/here`;
  const mine = keyring(dir);
  const old = sealToken(mine.tenant('acme'), click);
  const oldId = mine.tenant('acme').token.id.toString('hex');
  t.match(mine.rotateToken('acme'), [/^[0-9a-f]{8}$/, oldId]);
  const fresh = sealToken(mine.tenant('acme'), click);
  t.notOk(fresh.startsWith(old.slice(0, 6)), 'another key id');
  for (const ring of [mine, keyring(dir)]) for (const token of [old, fresh]) t.same(openToken(ring, token), { tenant: 'acme', claim: click }, 'now, and after a restart');
  // The address keys and all others are what they were.
  t.ok(mine.tenant('acme').address.equals(keyring(dir).tenant('acme').address));
  const { olderTokens: _, ...withoutOlder } = mine.reveal('acme');
  const elsewhere = keyring(`${folders}/there`);
  elsewhere.destroy('acme');
  elsewhere.adopt('acme', mine.reveal('acme'));
  t.same(openToken(elsewhere, old), { tenant: 'acme', claim: click }, 'older keys go along with an export');
  t.throws(() => elsewhere.adopt('third', { ...withoutOlder, olderTokens: 'xyz' }), { code: 'E_KEY_WRONG' });
  t.throws(() => mine.retireToken('acme', mine.tenant('acme').token.id.toString('hex')), { code: 'E_CONTROL', message: new RegExp(`there are: ${oldId}`) }, 'the newest stays');
  t.equal(mine.retireToken('acme', oldId).length, 1);
  for (const ring of [mine, keyring(dir)]) {
    t.equal(openToken(ring, old), undefined);
    t.same(openToken(ring, fresh), { tenant: 'acme', claim: click });
  }
});

t.test('a token holds no address, target or name in clear', async (t) => {
  const clear = Buffer.from(sealToken(keys, click), 'base64url').toString('latin1');
  for (const secret of ['shop.example', 'news', 'newsletter', click.hashes.consent.toString('latin1')]) t.notOk(clear.includes(secret));
});

t.test('reverse-path', async (t) => {
  const local = sealReturnPath(keys, 'acme', message, 70_000);
  t.ok(local.length <= 64, `${local.length} octets`);
  t.match(local, /^[a-z0-9-]+$/);
  const expected = { tenant: 'acme', message, recipient: 70_000 };
  t.same(openReturnPath(ring, local), expected);
  t.same(openReturnPath(ring, local.toUpperCase()), expected, 'mail programs change the case');
  for (let i = 0; i < local.length; i++) {
    const other = local[i] === 'a' ? 'b' : 'a';
    if (openReturnPath(ring, local.slice(0, i) + other + local.slice(i + 1)) !== undefined) t.fail(`character ${i} changed`);
  }
  t.equal(openReturnPath(ring, local.slice(0, -1)), undefined);
  t.equal(openReturnPath(ring, `${local}a`), undefined);
  t.equal(openReturnPath(ring, 'postmaster'), undefined);
  t.equal(openReturnPath(ring, sealReturnPath(keys, 'other', message, 1)), undefined, 'a tag made for another tenant');
  fc.assert(fc.property(fc.constantFrom(0, 1, 0xfffffffe), fc.integer({ min: 0, max: 2 ** 47 }), (index, time) => {
    const id = newId(time);
    const opened = openReturnPath(ring, sealReturnPath(keys, 'acme', id, index));
    return opened?.message === id && opened.recipient === index;
  }));
});
