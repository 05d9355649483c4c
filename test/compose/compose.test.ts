// From submitted to rendered bytes. The two promises: who may not be tracked gets what was submitted,
// byte for byte; and where something is edited, taking the edits back gives what was submitted.
import t from 'tap';
import { openReturnPath, openToken, render } from '../../daemon/compose/index.ts';
import { findInText } from '../../daemon/compose/links.ts';
import { indexMime, NO_TRACKING, type Rendered } from '../../daemon/mail/index.ts';
import {
  ALL, CODINGS, DOMAIN, PAGES, RECEIVED, STREAM, body, bytes, composed, copy, crlf, decoded, encoded, gapsStand, html, keyring, letter, newsletters, undone, type Coding,
} from './letters.ts';

const ring = keyring(t.testdir());
const TRANSACTIONAL = { ...STREAM, id: 'orders', class: 'transactional' as const };
const LINK = '<p>Hello <a class=x href="https://shop.example/a?b=1&amp;c=2">shop</a></p>';
const corpus = newsletters();
const noCorpus = corpus.length === 0 ? 'no corpus at ../shared/corpus: real newsletters are NOT tested here' : false;
if (noCorpus !== false) t.comment(noCorpus);

const hasBareEnds = (octets: Buffer): boolean => /\r(?!\n)|(?<!\r)\n/.test(octets.toString('latin1'));
const bodyOf = (raw: Buffer): Buffer => raw.subarray(raw.indexOf('\r\n\r\n') + 4);
const longest = (octets: Buffer): number => Math.max(...octets.toString('latin1').split('\r\n').map((line) => line.length));

t.test('not tracked: submitted minus removed plus added, byte for byte', async (t) => {
  for (const coding of CODINGS) {
    const raw = html(LINK, coding);
    const out = copy(composed(raw, { stream: TRANSACTIONAL }), ring, NO_TRACKING, { unsubscribable: false, stream: TRANSACTIONAL });
    t.ok(bytes(out).equals(Buffer.concat([Buffer.from(RECEIVED), raw])), coding);
    t.match(out, { links: 0, pixel: false });
    t.ok(out.body.every((slice) => slice.buffer === raw.buffer), 'slices are views');
  }
  const raw = letter('Content-Type: text/html\n', LINK, 'Bcc: secret@y.example\nX-Keep: 1\nBcc:\n other@y.example\nreturn-path: <x@y>\nResent-Bcc: z@y\nX-Postern-Id: 1\n');
  const expected = letter('Content-Type: text/html\n', LINK, 'X-Keep: 1\n');
  const out = copy(composed(raw), ring, NO_TRACKING, { unsubscribable: false });
  t.equal(bytes(out).toString(), RECEIVED + expected.toString());
});

t.test('header: what is removed, added, replaced', async (t) => {
  const own = [
    'DKIM-Signature: v=1; a=x; d = ACME.example; s=y', 'Authentication-Results: (c) MX.postern.example; dkim=pass',
    'List-Unsubscribe: <mailto:u@acme.example>', 'List-Unsubscribe-Post: List-Unsubscribe=One-Click', 'Feedback-ID: a:b:c:d',
  ];
  const foreign = ['DKIM-Signature: v=1; d=sub.acme.example', 'DKIM-Signature: v=1; bd=acme.example; d=esp.example', 'Authentication-Results: other.example; mx.postern.example=x'];
  const raw = letter('', 'text', [...own, ...foreign].map((line) => `${line}\n`).join(''));
  const marketing = composed(raw);
  t.equal(marketing.plan.subscribed, true);
  const head = copy(marketing, ring, ALL).header.toString();
  for (const line of own.slice(0, 2)) t.notOk(head.includes(line), line);
  for (const line of foreign) t.ok(head.includes(line), line);
  t.notMatch(head, /mailto|Feedback-ID/);
  t.equal(head.match(/^List-Unsubscribe:/gim)?.length, 1);
  t.match(head, /\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n$/);
  const token = /^List-Unsubscribe: <https:\/\/news\.acme\.example\/u\/([\w-]+)>\r$/m.exec(head)?.[1] ?? '';
  t.match(openToken(ring, token), { tenant: 'acme', claim: { kind: 'unsubscribe', message: marketing.id, recipient: 0, stream: 'news', purpose: 'newsletter' } });
  t.notMatch(copy(marketing, ring, ALL, { unsubscribable: false }).header.toString(), /List-Unsubscribe/);
  const kept = copy(composed(raw, { stream: TRANSACTIONAL }), ring, ALL, { stream: TRANSACTIONAL }).header.toString();
  t.match(kept, /mailto:u@acme.example/);
  t.equal(kept.match(/^List-Unsubscribe:/gim)?.length, 1, 'never two');
  const bare = composed(crlf('From: a@acme.example\n\nx'));
  t.equal(bare.plan.added, `${RECEIVED}Date: Mon, 23 Nov 2026 04:10:00 +0000\r\nMessage-ID: <${bare.id.toLowerCase()}@acme.example>\r\n`);
  t.equal(copy(composed(crlf('From: a@acme.example')), ring, ALL, { unsubscribable: false }).header.toString().endsWith('From: a@acme.example\r\n'), true, 'a header that does not end');
  t.equal(bytes(copy(composed(crlf('\nbody')), ring, NO_TRACKING, { unsubscribable: false })).toString().endsWith('@acme.example>\r\n\r\nbody'), true, 'no header at all');
});

t.test('reverse-path and notices', async (t) => {
  const message = composed(html(LINK));
  const { returnPath } = copy(message, ring, NO_TRACKING, { index: 5 });
  const [local = '', domain] = returnPath.split('@');
  t.equal(domain, 'bounce.acme.example');
  t.same(openReturnPath(ring, local), { tenant: 'acme', message: message.id, recipient: 5 });
  const notice = copy(composed(html(LINK), {}, { kind: 'notice' }), ring, ALL);
  t.match(notice, { returnPath: '', links: 0, pixel: false });
  t.notMatch(notice.header.toString(), /List-Unsubscribe/);
});

t.test('tracked: one link and the pixel, in each encoding', async (t) => {
  for (const coding of CODINGS) {
    const raw = html(`<body>${LINK}</body>`, coding);
    const message = composed(raw);
    const out = copy(message, ring, ALL);
    t.match(out, { links: 1, pixel: true });
    const text = decoded(body(out), coding);
    const token = /href="https:\/\/news\.acme\.example\/c\/([\w-]+)"/.exec(text)?.[1] ?? '';
    t.match(openToken(ring, token)?.claim, { kind: 'click', target: 'https://shop.example/a?b=1&c=2', recipient: 0, message: message.id });
    t.match(text, /style="margin-top:-1px" {0,2}><\/body>/);
    t.notOk(hasBareEnds(bytes(out)));
    t.equal(undone(text, ring).text, decoded(bodyOf(raw), coding).replace('&amp;', '&'), coding);
  }
});

t.test('tracking ceilings', async (t) => {
  const message = composed(html(LINK));
  const open = (r: Rendered): string => /\/o\/([\w-]+)/.exec(body(r).toString())?.[1] ?? '';
  const pixelOnly = copy(message, ring, { opens: 'lastOpenDate', clicks: 'none' });
  t.match(body(pixelOnly).toString(), /href="https:\/\/shop\.example\/a\?b=1&amp;c=2"/, 'links as submitted');
  t.match(openToken(ring, open(pixelOnly))?.claim, { kind: 'open', mode: 'lastOpenDate', recipient: 0 });
  t.match(copy(message, ring, { opens: 'none', clicks: 'individual' }), { links: 1, pixel: false });
  const aggregate = { opens: 'aggregate', clicks: 'none' } as const;
  const [one, two] = [copy(message, ring, aggregate, { index: 1 }), copy(message, ring, aggregate, { index: 2 })];
  t.equal(open(one), open(two), 'the same pixel for everybody');
  const claim = openToken(ring, open(one))?.claim;
  t.match(claim, { mode: 'aggregate', recipient: -1 });
  t.ok(claim?.hashes.consent.every((octet) => octet === 0), 'names nobody');
  t.not(open(copy(message, ring, ALL, { index: 1 })), open(copy(message, ring, ALL, { index: 2 })));
});

t.test('links: which are taken', async (t) => {
  const table: readonly [string, readonly string[]][] = [
    ['<a href=https://x.example/>u</a>', ['https://x.example/']],
    ["<A HREF='http://x.example'>s</A>", ['http://x.example']],
    ['<area href=" https://x.example/\n">', ['https://x.example/']],
    ['<a href="https&#58;//x.example/&quot;">', ['https://x.example/"']],
    ['<a href="https://x.example/&copy=1">', ['https://x.example/&copy=1']],
    ['<a href="https://x.example/\u00e4">', ['https://x.example/\u00e4']],
    ['<a href="https://x.example/1" href="https://x.example/2">', ['https://x.example/1']],
    ['<a href="" href="https://x.example/2">', []],
    ['<a data-no-track href="https://x.example/">', []],
    ['<a href="https://x.example/" clicktracking="off">', []], ['<a clicktracking=on href="https://x.example/">', ['https://x.example/']],
    ['<a href="https://x.example/" ses:no-track>', []],
    ['<a href="#top"><a href="mailto:a@b"><a href="tel:1"><a href="data:x"><a href="javascript:x"><a href="cid:1"><a href="/rel"><a href="//x.example">', []],
    ['<a href="{{ url }}"><a href="https://x.example/{{id}}"><a href="*|URL|*"><a href="https://x.example/%%id%%">', []],
    [`<a href="${PAGES}/u/x">`, []], ['<a href="https://x.example/unsubscribe?u=1">', []],
    ['<a href="https://x.example/a b"><a href="https://x.example/a\nb"><a href="https://"><a href="https://[x">', []],
    ['<link href="https://x.example/"><base href="https://x.example/"><img src="https://x.example/">', []],
    ['<script><a href="https://x.example/"></script><style><a href="https://x.example/"></style><textarea><a href="https://x.example/"></textarea>', []],
    ['<!-- <a href="https://x.example/"> --><!--[if mso]><a href="https://x.example/m">b</a><v:roundrect href="https://x.example/v"/><![endif]-->', ['https://x.example/m', 'https://x.example/v']],
    ['<!--[if !mso]><!--><a href="https://x.example/n">b</a><!--<![endif]-->', ['https://x.example/n']],
    ['<form action="https://x.example/f?a=1"><button formaction=https://x.example/g>b</button><input type=submit formaction=\'https://x.example/i\'></form>', ['https://x.example/f?a=1', 'https://x.example/g', 'https://x.example/i']],
    ['<form action="https://x.example/f" data-no-track><form action="/rel"><form><button action="https://x.example/n" href="https://x.example/n">', []],
    ['<svg><a xlink:href="https://x.example/s"><rect/></a><A XLINK:HREF="https://x.example/t" HREF="https://x.example/u"></svg><use xlink:href="https://x.example/w">', ['https://x.example/s', 'https://x.example/t', 'https://x.example/u']],
    ['<!-- <!-- <a href="https://x.example/"> --><!--[if mso]><!-- <a href="https://x.example/c"> --><![endif]-->', []],
    ['<a href="https://left.example/"><a href="https://sub.LEFT.example/x"><a href="https://notleft.example/y">', ['https://notleft.example/y']],
    ['<a href="https://acme.example/leave?u=1">', []],
    ['text <a href="https://x.example/', []], ['<a href="https://x.example/" ', []], ['<a __proto__="x" constructor=y href="https://x.example/">', ['https://x.example/']],
  ];
  for (const [source, expected] of table) {
    for (const coding of CODINGS) {
      const leave = 'List-Unsubscribe: <mailto:u@acme.example>,\n <https://acme.example/leave?u=1>\n';
      const { parts } = composed(letter(`Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: ${coding}\n`, encoded(crlf(source), coding), leave), { untracked: ['left.example'] }).plan;
      t.same(parts[0]?.edits.filter((e) => e.kind === 'link' || e.kind === 'form').map((e) => e.target), expected, `${coding} ${source}`);
    }
  }
  const latin = composed(html(Buffer.from('<a href="https://x.example/\u00e4"><a href="https://x.example/b">', 'latin1'), '8bit', 'iso-8859-1'));
  t.same(latin.plan.parts[0]?.edits.map((e) => e.target), ['https://x.example/b', ''], 'octets that are not UTF-8 are left alone');
  t.same(findInText('see https://x.example/a, (http://y.example/b). <https://z.example>').map((l) => l.value), ['https://x.example/a', 'http://y.example/b', 'https://z.example']);
});

t.test('the pixel stands before the last </body>', async (t) => {
  const at = (text: string): string => body(copy(composed(html(text)), ring, { opens: 'individual', clicks: 'none' })).toString().replace(/<img[^>]*>/, '|');
  t.equal(at('<body>a</body>b</BODY\n></html>'), '<body>a</body>b|</BODY\r\n></html>');
  t.equal(at('<html>a</html>'), '<html>a|</html>');
  t.equal(at('<p>a'), '<p>a|');
  t.equal(at('<body>a<!-- </body> --><script>"</body>"</script>'), '<body>a<!-- </body> --><script>"</body>"</script>|');
});

t.test('plain text only where the stream wants it', async (t) => {
  const raw = letter('Content-Type: text/plain; charset=utf-8\n', 'Go to https://x.example/a.\n');
  t.same(composed(raw).plan.parts, []);
  const stream = { ...STREAM, textLinks: true };
  const out = copy(composed(raw, { stream }), ring, ALL, { stream });
  t.match(out, { links: 1, pixel: false });
  t.equal(undone(body(out).toString(), ring).text, bodyOf(raw).toString());
  const flowed = 'See https://x.example/a-page \nfor more. \n> quoted https://x.example/b \n-- \nAcme\n';
  const lines = letter('Content-Type: text/plain; charset=utf-8; format=flowed\n', flowed);
  const turned = body(copy(composed(lines, { stream }), ring, ALL, { stream })).toString();
  t.equal(undone(turned, ring).text, bodyOf(lines).toString());
  t.same(turned.split('\r\n').map((line) => line.endsWith(' ')), flowed.split('\n').map((line) => line.endsWith(' ')), 'lines flow on where they did');
  t.match(composed(letter('Content-Type: text/plain; format=flowed; delsp=yes\n', 'https://x.example/a \nb'), { stream }).plan, { parts: [], untouched: [{ why: 'delsp' }] });
});

t.test('signed, encrypted, attached, unreadable: untouched and counted', async (t) => {
  const table: readonly [string, string, string | Buffer, readonly string[]][] = [
    ['signed', 'Content-Type: multipart/signed; boundary=b\n', `--b\nContent-Type: text/html\n\n${LINK}\n--b\nContent-Type: application/pgp-signature\n\nx\n--b--\n`, ['signed']],
    ['encrypted', 'Content-Type: multipart/encrypted; boundary=b\n', `--b\nContent-Type: text/html\n\n${LINK}\n--b--\n`, ['encrypted']],
    ['S/MIME', 'Content-Type: application/pkcs7-mime\nContent-Transfer-Encoding: base64\n', encoded(Buffer.from(LINK), 'base64'), []],
    ['attached', 'Content-Type: text/html\nContent-Disposition: attachment; filename=a.html\n', LINK, []],
    ['forwarded', 'Content-Type: message/rfc822\n', `Content-Type: text/html\n\n${LINK}`, []],
    ['inline PGP', 'Content-Type: text/html\n', `-----BEGIN PGP SIGNED MESSAGE-----\n${LINK}`, ['pgp']],
    ['charset', 'Content-Type: text/html; charset=utf-16\n', LINK, ['charset']],
    ['shift_jis', 'Content-Type: text/html; charset=shift_jis\n', LINK, ['charset']],
    ['NUL', 'Content-Type: text/html\n', `${LINK}\0`, ['nul']],
    ['broken quoted-printable', 'Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n', LINK, ['quoted-printable']],
    ['broken base64', 'Content-Type: text/html\nContent-Transfer-Encoding: base64\n', `${encoded(Buffer.from(LINK), 'base64').toString()}!`, ['base64']],
    ['two types', 'Content-Type: text/html\nContent-Type: text/plain\n', LINK, ['ambiguous-header']],
    ['odd encoding', 'Content-Type: text/html\nContent-Transfer-Encoding: x-uuencode\n', LINK, ['unknown-encoding']],
    ['too many links', 'Content-Type: text/html\n', LINK.repeat(1_001), ['too-many-links']],
    ['too large', 'Content-Type: text/html\n', LINK + 'x'.repeat(5_000_000), ['too-large']],
    ['deep', '', '', ['too-deep']],
  ];
  for (const [name, head, text, why] of table) {
    let raw = letter(head, text);
    if (name === 'deep') raw = crlf(`${Array.from({ length: 1_000 }, (_, i) => `Content-Type: multipart/mixed; boundary=b${i}\n\n--b${i}\n`).join('')}Content-Type: text/html\n\n${LINK}`);
    const message = composed(raw);
    t.same(message.plan.untouched.map((u) => u.why), why, name);
    const out = copy(message, ring, ALL);
    t.ok(body(out).equals(raw.subarray(message.plan.bodyStart)), `${name}: as submitted`);
    t.match(out, { links: 0, pixel: false });
  }
  const broken = letter('Content-Type: multipart/mixed; boundary="__proto__"; __proto__=x\n', `--__proto__\nContent-Type: text/html\n\n${LINK}`);
  t.match(copy(composed(broken), ring, ALL), { links: 1, pixel: true }, 'a missing closing boundary');
});

t.test('boundaries inside a line, and where none belongs', async (t) => {
  const inside = letter('Content-Type: multipart/mixed; boundary=b\n', '--b\nContent-Type: text/html\n\n<a href="https://x.example/--b">x --b</a> --b--\n--b--\n');
  const out = copy(composed(inside), ring, ALL);
  t.match(out, { links: 1, pixel: true });
  t.equal(undone(body(out).toString(), ring).text, bodyOf(inside).toString());
  const headless = letter('Content-Type: multipart/mixed; boundary=b\n', '--b\nContent-Type: text/html\n--b\n\ntext\n--b--\n');
  t.ok(body(copy(composed(headless), ring, ALL)).equals(bodyOf(headless)), 'no pixel in a header');
  const dashes = letter('Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n', '{{postern.unsubscribe}}--b');
  t.equal(composed(dashes).plan.unknown, 'unsubscribe--', 'it would come to begin a line');
});

t.test('hostile text costs no more than its size', async (t) => {
  const many = 1_000_000;
  const stream = { ...STREAM, textLinks: true };
  const texts = [
    `<a href="${' '.repeat(many)}x">`, `<a ${'x='.repeat(many)}>`, '<!--[if '.repeat(many / 10), '<!--'.repeat(many / 4), '</'.repeat(many), '</body'.repeat(many / 6), `http://${'.'.repeat(many)}`,
    '<b>'.repeat(many), `<img src="//x" style="${'width:'.repeat(many / 6)}">`.repeat(1), `<img src="https://${'a.'.repeat(many / 2)}">`, '{{postern.'.repeat(many / 10), `{{${' '.repeat(many)}postern.x}}`, '&'.repeat(many), '<a href="&'.repeat(many / 10), `${'x'.repeat(many)}<a href="https://x.example/">`, '='.repeat(many), '--\n'.repeat(many / 3),
  ];
  for (const text of texts) {
    for (const type of ['html', 'plain']) {
      const raw = letter(`Content-Type: text/${type}\n`, text);
      const started = performance.now();
      copy(composed(raw, { stream }), ring, ALL, { stream });
      const tookMs = performance.now() - started;
      t.ok(tookMs < 1_000, `${type} ${text.slice(0, 12)} took ${tookMs.toFixed(0)} ms`);
    }
  }
});

t.test('base64: only the groups a link or the pixel lies in are written anew', async (t) => {
  const widths: readonly (readonly [string, number | undefined])[] = [['76', 76], ['64', 64], ['uneven', 7], ['one line', undefined]];
  for (const [name, width] of widths) {
    for (let shift = 0; shift < 9; shift++) {
      const text = `${'x'.repeat(200 + shift)}<a href=https://x.example/${'1'.repeat(Math.floor(shift / 3))}></a>${'y'.repeat(300)}<a href=https://x.example/2></body>${'z'.repeat(shift % 3)}`;
      const chars = Buffer.from(text).toString('base64');
      const raw = letter('Content-Type: text/html\nContent-Transfer-Encoding: base64\n', Buffer.from(`${width === undefined ? chars : chars.replaceAll(new RegExp(`.{${width}}(?=.)`, 'g'), '$&\r\n')}\r\n`));
      const message = composed(raw);
      const out = copy(message, ring, ALL);
      t.match(out, { links: 2, pixel: true });
      const back = body(out).toString();
      t.equal(Buffer.from(back.replaceAll('\r\n', ''), 'base64').toString('base64'), back.replaceAll('\r\n', ''), `${name} ${shift}: padding only at the end`);
      t.equal(undone(decoded(body(out), 'base64'), ring).text, text, `${name} ${shift}`);
      t.ok(gapsStand(message, body(out)), `${name} ${shift}: the rest stands`);
      t.ok(longest(body(out)) <= Math.max(76, longest(raw)), `${name} ${shift}: lines`);
      t.notMatch(back, /\r\n\r\n/, 'no empty line');
      const first = message.plan.parts[0]?.edits[0];
      t.ok(first !== undefined && first.end - first.start < 40 + (width === 7 ? 14 : 2), 'a short run');
    }
  }
});

t.test('lines keep their limits', async (t) => {
  const long = `<a href="https://x.example/1">${'x'.repeat(500)}</a>`;
  const out = copy(composed(html(`${long}${long.slice(0, 300)}</a><a href="https://x.example/3"></a>\n<a href="https://x.example/4">`)), ring, ALL);
  t.ok(longest(body(out)) <= 998);
  t.match(out, { links: 1, pixel: true }, 'those that do not fit stay as they are');
  const far = `https://x.example/${'y'.repeat(1_900)}`;
  const skipped = copy(composed(html(`<a href="${far}">`, 'quoted-printable')), ring, ALL);
  t.equal(skipped.links, 0, 'a URL would be longer than 2,000 characters');
  const near = `https://x.example/${'y'.repeat(1_200)}`;
  const kept = copy(composed(html(`<a href="${near}">`, 'quoted-printable')), ring, ALL);
  t.equal(kept.links, 1);
  t.ok(longest(body(kept)) <= 76);
  const pixelled = copy(composed(html(`<b>${'x'.repeat(980)}</b>`)), ring, ALL);
  t.ok(pixelled.pixel && longest(body(pixelled)) <= 998, 'the pixel takes a line of its own');
});

function newsletter(source: Buffer, coding: Coding): Buffer {
  const part = (head: string, content: Buffer): Buffer => Buffer.concat([crlf(`${head}\n`), content]);
  const text = part('Content-Type: text/plain; charset=utf-8\n', crlf('Read it at https://x.example/online\n'));
  const page = part(`Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: ${coding}\n`, encoded(source, coding));
  const picture = part('Content-Type: image/png\nContent-Transfer-Encoding: base64\nContent-ID: <1>\n', encoded(Buffer.alloc(3_000, 9), 'base64'));
  const file = part('Content-Type: text/html\nContent-Disposition: attachment; filename=x.html\n', crlf(LINK));
  const join = (boundary: string, parts: readonly Buffer[]): Buffer => Buffer.concat([...parts.flatMap((p) => [crlf(`--${boundary}\n`), p, crlf('\n')]), crlf(`--${boundary}--\n`)]);
  const related = Buffer.concat([crlf('Content-Type: multipart/related; boundary=rel\n\n'), join('rel', [page, picture])]);
  const alternative = Buffer.concat([crlf('Content-Type: multipart/alternative; boundary=alt\n\n'), join('alt', [text, related])]);
  return letter('Content-Type: multipart/mixed; boundary=mix\n', join('mix', [alternative, file]));
}

t.test('real newsletters in three encodings', { skip: noCorpus }, async (t) => {
  let links = 0;
  for (const [name, source] of corpus) {
    for (const coding of CODINGS) {
      const raw = newsletter(source, coding);
      const message = composed(raw);
      t.same(message.plan.untouched, [], `${name} ${coding} is read`);
      t.ok(body(copy(message, ring, NO_TRACKING)).equals(bodyOf(raw)), `${name} ${coding} not tracked`);
      const out = copy(message, ring, ALL);
      const rendered = Buffer.concat([Buffer.from('Content-Type: multipart/mixed; boundary=mix\r\n\r\n'), ...out.body]);
      const [before, after] = [indexMime(raw).leaves, indexMime(rendered).leaves];
      t.equal(before.length, after.length);
      for (const [i, leaf] of before.entries()) {
        const was = raw.subarray(leaf.range.start, leaf.range.end);
        const is = rendered.subarray(after[i]?.range.start ?? 0, after[i]?.range.end ?? 0);
        if (i !== 1) {
          t.ok(was.equals(is), `${name} ${coding} part ${i}`);
        } else {
          const back = undone(decoded(is, coding), ring);
          links += back.targets.length;
          t.equal(back.targets.length, out.links);
          t.ok(plain(back.text) === plain(decoded(was, coding)), `${name} ${coding} taken back`);
          if (coding !== '8bit') t.ok(longest(is) <= 76);
        }
      }
      t.notOk(hasBareEnds(bytes(out)), 'no bare CR or LF');
      t.ok(gapsStand(message, body(out)), `${name} ${coding}: outside the planned edits nothing differs`);
    }
  }
  t.ok(links > 200, `${links} links`);
});

/** Both sides of a comparison without the difference between `&amp;` and `&`. */
const plain = (text: string): string => text.replaceAll('&amp;', '&');

t.test('cost of a copy (printed, not asserted)', { skip: noCorpus }, async (t) => {
  for (const name of ['austin.html', 'recast.html']) {
    const source = corpus.find(([known]) => known === name)?.[1] ?? Buffer.alloc(0);
    for (const coding of CODINGS) {
      const raw = newsletter(source, coding);
      const time = (runs: number, what: () => unknown): string => {
        for (let i = 0; i < runs; i++) what();
        const started = performance.now();
        for (let i = 0; i < runs; i++) what();
        return ((performance.now() - started) / runs).toFixed(3);
      };
      const message = composed(raw);
      const first = copy(message, ring, ALL);
      const cleared = { ...first } as unknown as Parameters<typeof render>[0];
      const context = { tenant: 'acme', keys: ring.tenant('acme'), domain: DOMAIN, stream: STREAM };
      t.comment(`${name} ${coding} ${raw.length} octets, ${first.links} links: compose ${time(60, () => composed(raw))} ms, render ${time(60, () => render(cleared, raw, context))} ms`);
    }
  }
});
