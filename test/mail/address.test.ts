// Addresses: what is refused and why, and the properties that let consent be narrow and suppression wide.
import * as fc from 'fast-check';
import t from 'tap';
import { addressKeys, foldCase, isMailError, parseAddress, type AddressKeys } from '../../daemon/mail/index.ts';

const keys = (text: string): AddressKeys => addressKeys(parseAddress(text));

t.test('addresses that are taken', async (t) => {
  const table: readonly (readonly [string, string, string, boolean])[] = [
    ['Jane.Doe+x@Example.COM', 'Jane.Doe+x', 'example.com', true],
    ['a@b.example.', 'a', 'b.example', true],
    ['"john"@x.example', 'john', 'x.example', true],
    ['"a\\b c"@x.example', 'ab c', 'x.example', true],
    ['"a@b"@x.example', 'a@b', 'x.example', true],
    ["!#$%&'*+-/=?^_`{|}~@x.example", "!#$%&'*+-/=?^_`{|}~", 'x.example', true],
    ['a@faß.de', 'a', 'xn--fa-hia.de', false],
    ['a@BÜCHER.example', 'a', 'xn--bcher-kva.example', false],
    ['a@XN--BCHER-KVA.example', 'a', 'xn--bcher-kva.example', true],
    ['δοκιμή@παράδειγμα.example', 'δοκιμή', 'xn--hxajbheg2az3al.example', false],
    ['a@r3---sn-x.example', 'a', 'r3---sn-x.example', true],
    [`${'a'.repeat(64)}@x.example`, 'a'.repeat(64), 'x.example', true],
  ];
  for (const [text, local, domain, ascii] of table) t.same(parseAddress(text), { wire: text, local, domain, ascii }, text);
});

t.test('addresses that are refused, each with a reason', async (t) => {
  const long = `${'a'.repeat(63)}.`.repeat(4);
  const table: readonly string[] = [
    '', 'a', '@x.example', 'a@', 'a@x', 'a b@x.example', ' a@x.example', 'a@x.example ', '<a@x.example>', 'a..b@x.example', '.a@x.example', 'a.@x.example',
    '""@x.example', '"a@x.example', '"a"b"@x.example', '"a\\"@x.example', 'a"b@x.example', 'a@[192.0.2.1]', 'a@[IPv6:2001:db8::1]',
    'a@127.0.0.1', 'a@127.1', 'a@0x7f.1', 'a@x.0x7f', 'a@x.1e', 'a@１２７.１', 'a@x..example', 'a@.x.example', 'a@x.example..', 'a@-x.example', 'a@x-.example', 'a@x_y.example',
    'a@x%41.example', 'a@x.example:25', 'a@x.example/p', 'a@x.example?q', 'a@x\\y.example', 'a@ｇmail.com', 'a@gmail。com', 'a@xn--.example',
    `${'a'.repeat(65)}@x.example`, `a@${long}example`, `a@${'a'.repeat(64)}.example`, `${'é'.repeat(33)}@x.example`, 'a'.repeat(100_000),
    'e\u0301@x.example', 'a\u200Bb@x.example', 'a\u202Eb@x.example', 'a\u00ADb@x.example', 'a\uFEFF@x.example', 'a\u00A0b@x.example', 'a\u3164b@x.example', 'a\uD800@x.example', 'a\u0378@x.example',
    'a\r\n@x.example', 'a\0@x.example', 'a\u0085@x.example', '@relay.example:a@x.example', 'a(comment)@x.example', 'a@x.example,b@x.example', '\u212A@x.example',
  ];
  for (const text of table) {
    try {
      parseAddress(text);
      t.fail(`taken: ${JSON.stringify(text)}`);
    } catch (error) {
      t.ok(isMailError(error, 'E_ADDRESS') && error.message.length > 10, `${JSON.stringify(text.slice(0, 40))}: ${error instanceof Error ? error.message : ''}`);
    }
  }
});

t.test('anything at all is an address or E_ADDRESS, and the quick way for ASCII domains is the URL parser\'s', async (t) => {
  fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.tuple(fc.string(), fc.string({ unit: 'grapheme' })).map(([a, b]) => `${a}@${b}.example`)), (text) => {
    try {
      const address = parseAddress(text);
      return address.wire === text && address.domain === new URL(`http://${address.domain}/`).hostname;
    } catch (error) {
      return isMailError(error, 'E_ADDRESS');
    }
  }), { numRuns: 2_000 });
  t.pass();
});

t.test('case folding: the known traps', async (t) => {
  for (const [a, b] of [['ß', 'ss'], ['ẞ', 'SS'], ['ΟΔΟΣ', 'οδοσ'], ['οδος', 'οδοσ'], ['\u212A', 'k'], ['ſ', 's'], ['ı', 'i'], ['ﬁ', 'FI'], ['Å', '\u212B'], ['µ', 'μ'], ['ǅ', 'ǆ'], ['ᾳ', 'αι'], ['ª', 'a'], ['Ａ', 'a'], ['ꭰ', 'Ꭰ']] as const) {
    t.equal(foldCase(a), foldCase(b), `${a} and ${b}`);
  }
  t.not(foldCase('а'), foldCase('a'), 'Cyrillic and Latin stay apart');
  t.equal(foldCase('İ'), 'i\u0307', 'as in the full folding of Unicode');
  let odd = 0;
  for (let c = 0x80; c < 0x20000; c++) {
    if (c >= 0xd800 && c < 0xe000) continue;
    const s = String.fromCodePoint(c);
    const folded = foldCase(s);
    if (foldCase(folded) !== folded || foldCase(s.toLowerCase()) !== folded || foldCase(s.toUpperCase()) !== folded) odd++;
  }
  t.equal(odd, 0, '(a) idempotent and blind to case for every code point that has one');
});

// Locals out of the characters that have ever made trouble, at domains with and without provider rules.
const local = fc.string({ unit: fc.constantFrom('a', 'B', 'k', '.', '+', '-', 'ß', 'ẞ', 'ς', 'Σ', 'ı', 'İ', 'ſ', 'ﬁ', '＋', '․', '1'), minLength: 1, maxLength: 12 })
  .map((text) => text.normalize('NFC'));
const domain = fc.constantFrom('gmail.com', 'GoogleMail.com', 'me.com', 'iCloud.com', 'pm.me', 'yahoo.com', 'acme.example', 'outlook.com');
const address = fc.tuple(local, domain).map(([l, d]) => `"${l}"@${d}`);

t.test('properties of the keys', async (t) => {
  fc.assert(fc.property(address, (text) => foldCase(foldCase(text)) === foldCase(text)));
  t.pass('(a) folding is idempotent');
  const swap = (text: string): string => text.replace(/[a-z]/gi, (c) => (c === c.toLowerCase() ? c.toUpperCase() : c.toLowerCase()));
  fc.assert(fc.property(address, (text) => {
    const other = swap(text);
    const [a, b] = [keys(text), keys(other)];
    return a.consent === b.consent && a.suppression === b.suppression && a.family === b.family;
  }));
  fc.assert(fc.property(address, address, (one, two) => {
    const [a, b] = [keys(one), keys(two)];
    return (a.consent !== b.consent || a.suppression === b.suppression) && (a.suppression !== b.suppression || a.family === b.family);
  }), { numRuns: 3_000 });
  t.pass('(b) an equal narrow key means an equal wide one');
  fc.assert(fc.property(address, (text) => {
    const at = text.lastIndexOf('@');
    for (const spelling of [text.slice(0, at).toUpperCase(), text.slice(0, at).toLowerCase()]) {
      const written = `${spelling.normalize('NFC')}${text.slice(at).toUpperCase()}`;
      if (keys(written).suppression !== keys(text).suppression) return false;
    }
    return true;
  }));
  t.pass('(c) another spelling finds the same suppression');
  t.not(keys('a+news@gmail.com').consent, keys('a@gmail.com').consent, '(d) a tagged consent is not the plain address\'s');
  t.equal(keys('a.b@gmail.com').family, keys('AB+x@googlemail.com').family, '(e) an objection reaches the person\'s other spellings');
  t.not(keys('a.b@gmail.com').suppression, keys('ab@gmail.com').suppression);
  t.not(keys('a.b@acme.example').family, keys('ab@acme.example').family, '(f) a hosted domain keeps its dots');
  t.not(keys('a+x@acme.example').family, keys('a@acme.example').family, '(f) and its tags');
  t.equal(keys('x@me.com').family, keys('x+y@mac.com').family);
  t.equal(keys('x@pm.me').family, keys('x@protonmail.com').family);
  t.not(keys('x@hotmail.com').family, keys('x@outlook.com').family, 'two mailboxes, not aliases');
  t.equal(keys('base-shop@yahoo.com').family, keys('base@yahoo.com').family);
  t.equal(keys('+a@gmail.com').family, '+a@gmail.com');
  t.equal(keys('"john"@x.example').consent, keys('John@X.example').consent, 'quoting makes no other person');
  fc.assert(fc.property(address, (text) => parseAddress(text).wire === text));
  t.pass('(g) the wire form is the given one');
});
