// The edits that are made for people who allow nothing: placeholders an author wrote, which become links of
// that one person, and pictures by which others count opens, which are emptied. T12 as a property: who
// allows nothing gets every other octet as it was submitted, and no address of ours that counts.
import * as fc from 'fast-check';
import t from 'tap';
import { openToken } from '../../daemon/compose/index.ts';
import { NO_TRACKING, type Tracking } from '../../daemon/mail/index.ts';
import { ALL, CODINGS, PAGES, STREAM, body, bytes, composed, copy, crlf, decoded, encoded, html, keyring, letter, newsletters, undone, type Coding } from './letters.ts';

t.setTimeout(60_000);
const ring = keyring(t.testdir());
const EMPTY = /data:image\/gif;base64,[A-Za-z0-9+/=]+/;
const REPORTING = { ...STREAM, thirdPartyTrackers: 'report' as const };

/** Kind of the token each link of ours opens to, in their order. */
const kindsIn = (text: string): readonly (string | undefined)[] => [...text.matchAll(/https:\/\/news\.acme\.example\/(\w)\/([\w-]+)(\?[\w=]+)?/g)]
  .map(([, room = '', token = '', step = '']) => `${room} ${openToken(ring, token)?.claim.kind}${step}`);

t.test('placeholders: links of this one recipient, for who allows nothing too, in each encoding', async (t) => {
  const source = '<p><a href="{{postern.unsubscribe}}">Leave</a> <a href=\'{{ postern.preferences }}\'>Choose</a> <a href={{postern.stop_tracking}}>Keep, do not measure</a> {{postern.unsubscribe}}</p>';
  const expected = ['u unsubscribe', 'p preferences', 'p preferences?step=tracking', 'u unsubscribe'];
  for (const coding of CODINGS) {
    for (let shift = 0; shift < 3; shift++) {
      const raw = html(`${'x'.repeat(60 + shift)}${source}${'y'.repeat(300)}`, coding);
      const message = composed(raw);
      const out = body(copy(message, ring, NO_TRACKING, { index: 4 }));
      const text = decoded(out, coding);
      t.same(kindsIn(text), expected, coding);
      // In 8bit the line would be too long: what is written then stands on lines of its own.
      t.equal(text.replaceAll('\r\n', '').replaceAll(/https:\/\/news\.acme\.example\/\w\/[\w-]+(?:\?[\w=]+)?/g, '|'), decoded(raw.subarray(raw.indexOf('\r\n\r\n') + 4), coding).replaceAll('\r\n', '').replaceAll(/\{\{[^}]*\}\}/g, '|'), `${coding}: nothing else`);
      const token = /\/u\/([\w-]+)/.exec(text)?.[1] ?? '';
      t.match(openToken(ring, token)?.claim, { message: message.id, recipient: 4, purpose: 'newsletter' });
      t.same(kindsIn(decoded(body(copy(message, ring, ALL, { unsubscribable: false })), coding)).slice(0, 3), ['p preferences', 'p preferences', 'p preferences?step=tracking'], 'what cannot be left is a choice');
      const longest = Math.max(...out.toString('latin1').split('\r\n').map((line) => line.length));
      t.ok(longest <= (coding === '8bit' ? 998 : 76));
    }
  }
  const plain = composed(letter('Content-Type: text/plain; format=flowed; delsp=yes\n', 'Leave: {{postern.unsubscribe}}\n'));
  t.same(kindsIn(body(copy(plain, ring, NO_TRACKING)).toString()), ['u unsubscribe'], 'plain text, whatever the stream says of its links');
  const tight = body(copy(composed(html(`<a href="{{postern.unsubscribe}}">${'x'.repeat(900)}</a>`)), ring, NO_TRACKING)).toString();
  t.ok(tight.split('\r\n').every((line) => line.length <= 998) && kindsIn(tight).length === 1, 'a line that would grow too long is broken at the URL');
});

t.test('placeholders: a mistake is named, and what only looks like one is left alone', async (t) => {
  const unknown = (text: string, head = 'Content-Type: text/html\n'): string | undefined => composed(letter(head, text)).plan.unknown;
  t.equal(unknown('<a href="{{postern.unsubscrybe}}">'), 'unsubscrybe');
  t.equal(unknown('{{postern.}}', 'Content-Type: text/plain\n'), '');
  t.equal(unknown('{{ postern.Unsubscribe }}'), 'Unsubscribe');
  for (const text of ['{{postern}}', '{{other.unsubscribe}}', '{postern.unsubscribe}', '{{ postern . unsubscribe }}', 'postern.unsubscribe', '{{postern.unsubscribe']) {
    t.equal(unknown(text), undefined);
    t.equal(body(copy(composed(letter('Content-Type: text/html\n', text)), ring, NO_TRACKING)).toString(), text, text);
  }
  const attached = letter('Content-Type: text/html\nContent-Disposition: attachment; filename=a.html\n', '{{postern.unsubscribe}}');
  t.ok(body(copy(composed(attached), ring, NO_TRACKING)).toString().endsWith('{{postern.unsubscribe}}'), 'not in a file');
});

t.test('placeholders: where nothing is edited, they are named with the part and why', async (t) => {
  const P = '<p>{{postern.unsubscribe}}</p>';
  const utf16 = Buffer.from(P, 'utf16le');
  const table: readonly (readonly [string, string, string | Buffer, string | undefined])[] = [
    ['charset', 'Content-Type: text/html; charset=shift_jis\n', P, '1: its charset'],
    ['UTF-16', 'Content-Type: text/html; charset=utf-16\nContent-Transfer-Encoding: base64\n', Buffer.from(utf16.toString('base64')), '1: its charset'],
    ['too large', 'Content-Type: text/html\n', `${P}${'x'.repeat(5_000_000)}`, '1: it is larger than 4 MiB'],
    ['too large, base64', 'Content-Type: text/html\nContent-Transfer-Encoding: base64\n', encoded(Buffer.from(`${P}${'x'.repeat(5_000_000)}`), 'base64'), '1: it is larger than 4 MiB'],
    ['too many', 'Content-Type: text/plain\n', '{{postern.unsubscribe}}\n'.repeat(1_001), '1: it has more than 1000 links'],
    ['too many with links', 'Content-Type: text/html\n', `${P}${'<a href="https://x.example/">'.repeat(1_000)}`, '1: it has more than 1000 links'],
    ['signed', 'Content-Type: multipart/signed; boundary=b\n', `--b\nContent-Type: text/html\n\n${P}\n--b\nContent-Type: application/pgp-signature\n\nx\n--b--\n`, '1: it is signed'],
    ['signed, quoted-printable', 'Content-Type: multipart/signed; boundary=b\n', `--b\nContent-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n{=7Bpostern.un=\nsubscribe}}\n--b--\n`, '1: it is signed'],
    ['PGP in the text', 'Content-Type: text/plain\n', `-----BEGIN PGP SIGNED MESSAGE-----\n\n${P}\n`, '1: it is signed or encrypted with PGP'],
    ['the second part', 'Content-Type: multipart/alternative; boundary=b\n', `--b\nContent-Type: text/plain\n\nx\n--b\nContent-Type: text/html; charset=x-odd\n\n${P}\n--b--\n`, '2: its charset'],
    ['NUL', 'Content-Type: text/html\n', `${P}\0`, '1: it holds a NUL'],
    ['broken quoted-printable', 'Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n', `${P}=`.repeat(2), '1: its quoted-printable'],
    ['broken base64', 'Content-Type: text/html\nContent-Transfer-Encoding: base64\n', `${Buffer.from(`${P}xx`).toString('base64')}!`, '1: its base64'],
    ['a calendar', 'Content-Type: text/calendar\n', P, '1: texts of its type'],
    ['an odd encoding', 'Content-Type: text/html\nContent-Transfer-Encoding: x-odd\n', P, '1: its transfer encoding'],
    ['two types', 'Content-Type: text/html\nContent-Type: text/plain\n', P, '1: its header can be read in two ways'],
    ['no boundary', 'Content-Type: multipart/mixed\n', `--b\n\n${P}\n--b--\n`, '1: its boundary'],
    ['many parts', 'Content-Type: multipart/mixed; boundary=b\n', `${'--b\n\nx\n'.repeat(1_001)}--b\n\n${P}\n--b--\n`, '1: the message has too many parts'],
    ['encrypted: nobody can tell', 'Content-Type: multipart/encrypted; boundary=b\n', `--b\n\n${P}\n--b--\n`, undefined],
    ['encrypted, and one that is not', 'Content-Type: multipart/mixed; boundary=a\n', `--a\nContent-Type: multipart/encrypted; boundary=b\n\n--b\n\n${P}\n--b--\n--a\nContent-Type: text/html; charset=x-odd\n\n${P}\n--a--\n`, '2: its charset'],
    ['a file', 'Content-Type: text/html; charset=x-odd\nContent-Disposition: attachment; filename=a.html\n', P, undefined],
    ['none there', 'Content-Type: text/html; charset=x-odd\n', '<p>{{postern}} postern.unsubscribe</p>', undefined],
    ['edited', 'Content-Type: text/html\n', P, undefined],
  ];
  for (const [name, head, text, unfilled] of table) {
    const { plan } = composed(letter(head, text));
    t.equal(plan.unfilled === undefined ? undefined : plan.unfilled.slice(0, unfilled?.length), unfilled, name);
    t.equal(plan.unknown, undefined);
  }
  for (const coding of CODINGS) {
    const shown = composed(html('<img src="https://t.example/o?{{postern.unsubscribe}}&u=1" width="1" height="1">', coding));
    t.match(decoded(body(copy(shown, ring, NO_TRACKING)), coding), /<img src="data:image\/gif;base64,[\w+/=]+ *" width="1" height="1">/, `${coding}: of a tracker that is emptied nothing stays`);
  }
});

t.test('base64: links side by side, in each way their groups can meet', async (t) => {
  const stream = { ...STREAM, textLinks: true };
  for (const between of [' ', '  ', '   ', ' \r\n ']) {
    for (let shift = 0; shift < 3; shift++) {
      const targets = Array.from({ length: 300 }, (_, i) => `https://x.example/${i}${'a'.repeat(i % 7)}`);
      const text = 'x '.padEnd(2 + shift, ' ') + targets.join(between);
      const out = copy(composed(letter('Content-Type: text/plain\nContent-Transfer-Encoding: base64\n', encoded(Buffer.from(text), 'base64')), { stream }), ring, ALL, { stream });
      t.equal(out.links, 300);
      const back = undone(decoded(body(out), 'base64'), ring);
      t.same(back.targets, targets);
      t.equal(back.text, text);
    }
  }
  const many = letter('Content-Type: text/plain\nContent-Transfer-Encoding: base64\n', encoded(Buffer.from('{{postern.unsubscribe}}'.repeat(100_000)), 'base64'));
  t.match(composed(many).plan, { parts: [], unfilled: /more than 1000 links/ }, 'placeholders are links');
});

const TRACKERS = [
  '<img src="https://t.example/o?u=1" width="1" height="1">', '<IMG WIDTH=0 HEIGHT=0 SRC=https://t.example/o>', "<img style='height: 1px; width:1px !important' src='//t.example/o'>",
  '<img src="https://t.example/o" width="600" height="300" style="width:0;height:0">', '<img src="https://www.google-analytics.com/collect?v=1">', '<img src="http://acme.us1.list-manage.com/track/open.php?u=1&amp;e=2" width="600">',
  '<bgsound src="https://t.example/b.wav">', '<!--[if mso]><img src="https://t.example/m" width="1" height="1"/><![endif]-->',
] as const;
const PICTURES = [
  '<img src="https://cdn.example/hero.png" width="600" height="300">', '<img src="https://cdn.example/rule.gif" width="600" height="1">', '<img src="https://cdn.example/x.png" style="max-width:100%;height:auto" width="1">',
  '<img src="cid:logo" width="1" height="1">', '<img src="/o.gif" width=1 height=1>', '<img src="data:image/gif;base64,AAAA" width=1 height=1>', '<img src="https://cdn.example/facebook.com/tr.png">', '<img width=1 height=1>',
  '<img src="https://cdn.example/m.png" style="display:none">', '<!-- <img src="https://t.example/o" width="1" height="1"> -->', '<img src="https://notfacebook.com/tr">',
] as const;

t.test('trackers of others: emptied, reported or refused, for who does not allow individual opens', async (t) => {
  const some: Tracking = { opens: 'lastOpenDate', clicks: 'none' };
  for (const coding of CODINGS) {
    for (const tracker of TRACKERS) {
      const raw = html(`<p>${tracker}</p>`, coding);
      const text = (tracking: Tracking, stream = STREAM): string => decoded(body(copy(composed(raw, { stream }), ring, tracking, { stream })), coding);
      for (const tracking of [NO_TRACKING, some]) {
        t.notMatch(text(tracking), /t\.example|google-analytics|list-manage/, `${coding} ${tracker}`);
        t.match(text(tracking), EMPTY);
      }
      t.match(text(ALL), /t\.example|google-analytics|list-manage/, 'who allows individual opens allows them to the sender, who may ask others');
      t.ok(text(NO_TRACKING, REPORTING).includes(tracker), 'only reported');
      t.equal(copy(composed(raw), ring, NO_TRACKING).trackers, 1);
      t.equal(copy(composed(raw, { stream: REPORTING }), ring, NO_TRACKING, { stream: REPORTING }).trackers, 1);
      t.equal(copy(composed(raw), ring, ALL).trackers, 0);
      t.match(text(NO_TRACKING, { ...STREAM, thirdPartyTrackers: 'refuse' }), EMPTY, 'who changed their mind after the message was taken');
    }
  }
  for (const picture of PICTURES) {
    const raw = html(`<p>${picture}</p>`);
    t.equal(body(copy(composed(raw), ring, NO_TRACKING)).toString(), `<p>${picture}</p>`, picture);
  }
  const amp = letter('Content-Type: text/x-amp-html; charset=utf-8\n', '<amp-pixel src="https://t.example/a"></amp-pixel><a href="https://x.example/">x</a></body>');
  t.match(body(copy(composed(amp), ring, NO_TRACKING)).toString(), /^<amp-pixel src="data:[^"]+"><\/amp-pixel><a href="https:\/\/x\.example\/">x<\/a><\/body>$/);
  t.notMatch(body(copy(composed(amp), ring, ALL)).toString(), /news\.acme/, 'of AMP nothing else is touched');
});

t.test('T12: who allows nothing gets what was submitted, whatever it is, and no address that counts', async (t) => {
  const bit = fc.constantFrom(
    '<a href="https://x.example/1">', "<a href='https://x.example/a=b&amp;c'>", '<form action=https://x.example/f>', '<svg><a xlink:href="https://x.example/s">', '</a>', '\r\n', 'word ', 'x'.repeat(90), '= ', '</body>',
    '<!--[if mso]><v:rect href="https://x.example/v"><![endif]-->', '<!--', '<a href="', '"', '\t\r\n', '&amp', '\u00c3\u00a4', ...TRACKERS, ...PICTURES, ' {{postern.preferences}} ', '({{postern.stop_tracking}})', '{{x}}',
  );
  fc.assert(fc.property(fc.array(bit, { maxLength: 25 }), fc.constantFrom(...CODINGS), (bits, coding) => {
    const raw = html(Buffer.from(bits.join(''), 'latin1'), coding);
    untouched(decoded(body(copy(composed(raw), ring, NO_TRACKING)), coding), decoded(raw.subarray(raw.indexOf('\r\n\r\n') + 4), coding));
  }), { numRuns: 600, seed: 12 });
  for (const [name, source] of newsletters()) {
    for (const coding of CODINGS) {
      const raw = html(source, coding);
      t.doesNotThrow(() => untouched(decoded(body(copy(composed(raw), ring, NO_TRACKING)), coding), decoded(raw.subarray(raw.indexOf('\r\n\r\n') + 4), coding)), `${name} ${coding}`);
    }
  }
});

/** Throws unless the copy is the submitted text, placeholders filled and trackers emptied, with every link as it was and none of ours that counts. */
function untouched(got: string, submitted: string): void {
  if (new RegExp(`${PAGES}/[cof]/`).test(got)) throw new Error('an address that counts');
  const hrefs = (text: string): readonly string[] => [...text.matchAll(/(?:href|action)=("[^"]*"|'[^']*'|[^\s>]+)/gi)].map(([, value = '']) => value).filter((value) => !/postern\.|news\.acme/.test(value));
  if (JSON.stringify(hrefs(got)) !== JSON.stringify(hrefs(submitted))) throw new Error(`links differ: ${JSON.stringify(hrefs(got))} is not ${JSON.stringify(hrefs(submitted))}`);
  // Everything that is neither a place of ours nor an emptied picture stands in its order.
  const pieces = got.replaceAll('\r\n', '').split(/https:\/\/news\.acme\.example\/p\/[\w-]+(?:\?step=tracking)?|data:image\/gif;base64,R0lGODlhAQABAIAAAAAAAP\/\/\/yH5BAEAAAAALAAAAAABAAEAAAIBRAA7 {0,2}/);
  let at = 0;
  const whole = submitted.replaceAll('\r\n', '');
  for (const piece of pieces) {
    const found = whole.indexOf(piece, at);
    if (found === -1) throw new Error(`not as submitted: ${piece.slice(0, 200)}`);
    at = found + piece.length;
  }
}

t.test('no copy of anybody names another\'s placeholder token', async (t) => {
  const message = composed(html('{{postern.unsubscribe}}'));
  const tokens = [1, 2, 3].map((index) => /\/u\/([\w-]+)/.exec(bytes(copy(message, ring, NO_TRACKING, { index })).toString())?.[1] ?? '');
  t.equal(new Set(tokens).size, 3);
  t.same(tokens.map((token) => openToken(ring, token)?.claim.recipient), [1, 2, 3]);
  const coding: Coding = 'base64';
  t.ok(decoded(body(copy(composed(html(crlf('{{postern.preferences}}'), coding)), ring, NO_TRACKING)), coding).startsWith(`${PAGES}/p/`), 'a part that is nothing else');
});
