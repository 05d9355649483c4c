// What a reader sees of a message: parts, encodings and charsets, tags and entities; never a throw, and
// linear time whatever the markup.
import * as fc from 'fast-check';
import t from 'tap';
import { comparableText, showing, shownText } from '../../daemon/mail/index.ts';

const crlf = (text: string): Buffer => Buffer.from(text.replaceAll('\n', '\r\n'));
/** As the eye takes it: one space between words. */
const seen = (raw: Buffer): string => shownText(raw).replaceAll(/\s+/g, ' ').trim();
const html = (body: string): string => seen(crlf(`Content-Type: text/html; charset=utf-8\n\n${body}`));

t.test('HTML: the words between the tags', async (t) => {
  const table: readonly (readonly [string, string, string])[] = [
    ['tags are gaps', '<p>1 Example Street<br>12345 <b>Town</b></p>', '1 Example Street 12345 Town'],
    ['entities', 'Acme&nbsp;&amp;&#32;S&ouml;hne &#x20AC; &lt;b&gt;', 'Acme & Söhne € <b>'],
    ['what nobody sees', '<head><title>T</title><STYLE type="a>b">p{}</STYLE ></head><script>"</p>"</script>x<!-- y --><template>z</template>', 'x'],
    ['Outlook\'s comments', '<!--[if mso]><p>only there</p><![endif]-->here<![if !mso]> too<![endif]>', 'here too'],
    ['a > in an attribute', '<a title="a > b" href=\'c>d\'>in</a> <img alt = "x>y">out', 'in out'],
    ['a stray quote in a tag', `<p class=x" id=y>seen</p>`, 'seen'],
    ['less than', 'a < b <3 c <- d', 'a < b <3 c <- d'],
    ['a style that does not end', 'a<style>b', 'a'],
    ['a comment that does not end', 'a<!-- b', 'a'],
    ['a tag that does not end', 'a<p b', 'a'],
    ['a value that does not end', 'a<p b="c>d', 'a'],
    ['a name that only begins like one', '<styled>a</styled><title-bar>b</title-bar>', 'a b'],
    ['declarations', '<?xml version="1.0"?><!DOCTYPE html>a', 'a'],
  ];
  for (const [name, body, shown] of table) t.equal(html(body), shown, name);
});

t.test('parts, encodings and charsets', async (t) => {
  const part = (type: string, body: string, more = ''): string => `--b\nContent-Type: ${type}\n${more}\n${body}\n`;
  const letter = (...parts: readonly string[]): string => seen(crlf(`Content-Type: multipart/alternative; boundary=b\n\n${parts.join('')}--b--\n`));
  t.equal(seen(crlf('Subject: x\n\nplain   text\nhere')), 'plain text here');
  t.equal(letter(part('text/plain', 'the plain one'), part('text/html', '<p>the rich one')), 'the rich one', 'of two forms the rich one is seen');
  t.equal(letter(part('text/plain', 'a'), part('text/plain', 'b')), 'a b');
  t.equal(letter(part('text/plain', 'a'), part('text/html', 'file', 'Content-Disposition: attachment\n')), 'a', 'a file is not shown');
  t.equal(letter(part('text/html; charset=utf-8', 'S=C3=B6h=\nne', 'Content-Transfer-Encoding: quoted-printable\n')), 'Söhne');
  t.equal(letter(part('text/html; charset=utf-8', Buffer.from('<p>Söhne</p>').toString('base64'), 'Content-Transfer-Encoding: base64\n')), 'Söhne');
  t.equal(letter(part('text/html; charset=iso-8859-1', 'S=F6hne', 'Content-Transfer-Encoding: quoted-printable\n')), 'Söhne');
  t.equal(seen(Buffer.concat([crlf('Content-Type: text/plain; charset=koi8-r\n\n'), Buffer.from([0xf0, 0xd2])])), 'Пр');
  t.equal(letter(part('text/plain; charset=nobodys', 'a')), '', 'a charset nobody knows');
  t.equal(letter(part('text/plain', 'a =ZZ', 'Content-Transfer-Encoding: quoted-printable\n')), '', 'no quoted-printable');
  t.equal(seen(crlf('Content-Type: multipart/signed; boundary=b\n\n--b\n\na\n--b--\n')), '', 'a signed part is not looked into');
  t.equal(seen(crlf(`Content-Type: text/plain\n\n${'a'.repeat(5 << 20)}`)), '', 'megabytes of text');
  t.equal(letter(part('text/plain', 'a'), part('text/plain', 'b'.repeat(1 << 20)), part('text/plain', 'c')), 'a', 'up to a megabyte in all');
  t.equal(seen(Buffer.alloc(0)), '');
});

t.test('compared without case, white space, commas and what has no width; at the end first, then everywhere', async (t) => {
  t.equal(comparableText(html('Ac\u200Bme&shy;\u00AD &zwnj;&nbsp;&zwnj;&nbsp;B')), 'acmeb', 'fillers of a preview');
  const address = comparableText('1 Example Street, 12345 Town');
  for (const words of ['1 EXAMPLE Street\n12345 Town', `${'word '.repeat(5_000)}1 example street 12345 Town`, `1 Example Street 12345 Town${' word'.repeat(5_000)}`, `${'word '.repeat(400)}1 Example\nStreet ${'12345 Town '.repeat(180)}`]) {
    t.ok(showing(words)(address), `${words.length} characters`);
  }
  for (const words of ['', '1 Example Street', '1 Example Street 12346 Town', 'word '.repeat(5_000)]) t.notOk(showing(words)(address), `not in ${words.length} characters`);
});

t.test('never throws; linear in what is sent', async (t) => {
  const bits = fc.constantFrom('<', '>', '"', "'", '=', '<!--', '-->', '</style', '<style>', '<script', '&', '&#', 'a', ' ', '\n', '<p ', '\u00AD');
  fc.assert(fc.property(fc.array(bits, { maxLength: 60 }), (some) => typeof html(some.join('')) === 'string'));
  for (const evil of ['<', '<!--', '<style>', '<p a="', "<a b='", '<a ', '&', '</style']) {
    // In time that grew with the square this would take minutes, and the test's time would end it.
    t.type(html(evil.repeat(900_000 / evil.length)), 'string', `900 kB of ${evil}`);
  }
  const row = '<tr><td style="font-family:Arial,sans-serif;font-size:14px;color:#333333;padding:0 24px"><a href="https://shop.example/item?id=12345&amp;campaign=november" style="color:#0a0a0a;text-decoration:none">A thing to buy</a> for &euro; 19,90</td></tr>\n';
  for (const encoding of ['8bit', 'quoted-printable']) {
    const body = encoding === '8bit' ? row : row.replaceAll('=', '=3D');
    const raw = crlf(`Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: ${encoding}\n\n${body.repeat(Math.ceil(51_200 / body.length))}`);
    for (let i = 0; i < 100; i++) shownText(raw);
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 50; i++) {
      const started = performance.now();
      shownText(raw);
      best = Math.min(best, performance.now() - started);
    }
    t.comment(`shownText of ${(raw.length / 1024).toFixed(0)} KiB ${encoding}: ${(best * 1000).toFixed(0)} us`);
  }
});
