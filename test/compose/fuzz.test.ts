// Inputs nobody would write: HTML of broken pieces, and whole messages, real newsletters among them, that
// were cut, doubled, flipped and glued. Whatever they are, nothing throws or hangs; every octet outside the
// planned edits stands in the copy as submitted; taking the edits back gives the submitted text; lines keep
// their limits; the parts stay the parts they were; links are where parse5 finds them. A failure prints its
// seed and the smallest input.
//   POSTERN_FUZZ_RUNS=100000 npm test -- test/compose/fuzz.test.ts       the long run, half a minute
import { decodeHTMLAttribute } from 'entities';
import * as fc from 'fast-check';
import { SAXParser } from 'parse5-sax-parser';
import t from 'tap';
import { findInHtml } from '../../daemon/compose/links.ts';
import { indexHeader, indexMime, NO_TRACKING, type Composed, type Rendered } from '../../daemon/mail/index.ts';
import { ALL, CODINGS, STREAM, body, bytes, composed, copy, crlf, decoded, encoded, gapsStand, html, keyring, letter, newsletters, undone } from './letters.ts';

const RUNS = Number(process.env['POSTERN_FUZZ_RUNS'] ?? 8_000);
const SEED = Number(process.env['POSTERN_FUZZ_SEED'] ?? 11);
// A hang is found by the clock of the whole run alone.
t.setTimeout(60_000 + RUNS * 20);
t.comment(`${RUNS} inputs, seed ${SEED}`);

const ring = keyring(t.testdir());
const STREAMS = [STREAM, { ...STREAM, textLinks: true, thirdPartyTrackers: 'report' as const }];
const bodyOf = (raw: Buffer): Buffer => raw.subarray(raw.indexOf('\r\n\r\n') + 4);
const longest = (octets: Buffer): number => Math.max(...octets.toString('latin1').split('\r\n').map((line) => line.length));
const hasBareEnds = (octets: Buffer): boolean => /\r(?!\n)|(?<!\r)\n/.test(octets.toString('latin1'));
/** Without what an edit may change beside its URL: how an ampersand is written, and lines around it. */
const plain = (text: string): string => text.replaceAll('&amp;', '&').replaceAll('\r\n', '');

function demand(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

/** What holds of every copy of every message. */
function standsAsSubmitted(message: Composed, made: Rendered): void {
  demand(gapsStand(message, body(made), wanted(message, made)), 'an octet outside the edits differs');
  // Of a header that is broken the gate lets nothing pass.
  if (indexHeader(message.raw).fault !== undefined) return;
  const [was, is] = [shapeOf(message.raw), shapeOf(bytes(made))];
  demand(JSON.stringify(was) === JSON.stringify(is), `the parts were ${JSON.stringify(was)} and are ${JSON.stringify(is)}`);
}

/** The kinds of edits that this copy has. */
const wanted = (message: Composed, made: Rendered): ReadonlySet<string> => new Set(['placeholder',
  ...(made.tracking.opens === 'individual' ? ['pixel'] : message.origin.stream === 'report' ? [] : ['tracker']), ...(made.tracking.clicks === 'individual' ? ['link', 'form'] : [])]);

const shapeOf = (raw: Buffer): readonly string[] => indexMime(raw).leaves.map(({ type, encoding, closed, depth }) => `${depth} ${type} ${encoding} ${closed}`);

t.test('HTML of broken pieces', async () => {
  const bit = fc.constantFrom(
    '<a href="https://x.example/1">', "<a href='https://x.example/a=b&amp;c'>", '<a href=https://x.example/\u00c3\u00a4 >', '</a>', '\r\n', 'word ', 'x'.repeat(90), '= ', '.', '\r\n.\r\n', '</body>', '--',
    '<!--[if mso]><v:rect href="https://x.example/v"><![endif]-->', '<!--', '-->', '<a href="', '"', "'", '>', '\t\r\n', '&amp', ' ', '--b', '{{x}}', 'x'.repeat(700), '<form action=https://x.example/f>', '<button formaction="',
    '<svg><a xlink:href="https://x.example/s" href="https://x.example/t">', '<img src="https://t.example/o" width=1 height=1>', '<img src=', '{{postern.preferences}} ', '{{postern.', '<script>', '</script>', '<style>', '<title>', '<![CDATA[', '<?x', '</', '<',
  );
  fc.assert(fc.property(fc.array(bit, { maxLength: 30 }), fc.constantFrom(...CODINGS), (bits, coding) => {
    const raw = html(Buffer.from(bits.join(''), 'latin1'), coding);
    const message = composed(raw);
    const off = copy(message, ring, NO_TRACKING);
    standsAsSubmitted(message, off);
    if (message.plan.parts.every(({ edits }) => edits.every(({ kind }) => kind === 'link' || kind === 'form' || kind === 'pixel'))) demand(body(off).equals(bodyOf(raw)), 'off is not what was submitted');
    const made = copy(message, ring, ALL);
    standsAsSubmitted(message, made);
    const out = body(made);
    const limit = coding === '8bit' ? 998 : 76;
    demand(!hasBareEnds(out), 'a bare CR or LF');
    demand(longest(bodyOf(raw)) > limit || longest(out) <= limit, 'a line is too long');
    const filled = /https:\/\/news\.acme\.example\/p\/[\w-]+/g;
    const back = undone(decoded(out, coding), ring).text.replaceAll(filled, '{{postern.preferences}}');
    demand(plain(back) === plain(decoded(bodyOf(raw), coding)), 'taking the edits back does not give what was submitted');
  }), { numRuns: Math.ceil(RUNS / 2), seed: SEED });
});

// ---- parse5 ------------------------------------------------------------------------------------

/** What parse5 gives for a start tag; its type does not say so. */
interface StartTagPlace {
  readonly attrs?: Readonly<Record<string, { readonly startOffset: number; readonly endOffset: number } | undefined>>;
}

/** Links of `a` and `area`, and where each value ends, as parse5 sees them. */
function oracle(text: string): readonly string[] {
  const found: string[] = [];
  const parser = new SAXParser({ sourceCodeLocationInfo: true });
  parser.on('startTag', ({ tagName, attrs, sourceCodeLocation }) => {
    if ((tagName !== 'a' && tagName !== 'area') || attrs.some(({ name }) => name === 'data-no-track')) return;
    const href = attrs.find(({ name }) => name === 'href');
    const where = (sourceCodeLocation as StartTagPlace | null | undefined)?.attrs?.['href'];
    if (href === undefined || href.value === '' || where === undefined) return;
    const quoted = /^\s*=\s*["']/.test(text.slice(where.startOffset + 'href'.length, where.endOffset));
    found.push(`${href.value}|${where.endOffset - (quoted ? 1 : 0)}`);
  });
  parser.end(text);
  return found;
}

const ours = (text: string): readonly string[] => findInHtml(text).links.map(({ value, end }) => `${decodeHTMLAttribute(value)}|${end}`);

t.test('the places of links are those parse5 finds', async (t) => {
  for (const [name, source] of newsletters()) {
    // parse5 takes conditional comments for comments, and a CRLF for one character.
    const text = source.toString('latin1').replaceAll(/<!--\[if [^\]]*\]>(?!<!).*?<!\[endif\]-->/gs, '').replaceAll('\r\n', '\n');
    const links = findInHtml(text).links.filter(({ kind }) => kind === 'link').map(({ value, end }) => `${decodeHTMLAttribute(value)}|${end}`);
    t.same(links, oracle(text), name);
  }
  const bit = fc.constantFrom(
    '<a ', '<area ', '<A\n', '<a/', '</a ', 'href="https://x.example/1"', "href='https://x.example/2'", 'href=https://x.example/3 ', ' HREF = "https://x.example/&amp;4"', 'href=""', 'href=', 'href', 'x=y', '=', '/', '\t', '\f',
    '>', '/>', '</a>', ' data-no-track ', '<!-- ', '<!-->', '<!--->', '--!>', '-->', '--', '<!doctype html>', '<!x', '<?x ', '</ ', '</>', '<![CDATA[', ']]>', '<script>', '</script>', '</script ', '<style>', '</style>', '<title>', '</title>',
    '<textarea>', '</TEXTAREA', '<xmp>', '</xmp>', '<iframe>', '</iframe/', '<noframes>', '"', "'", ' ', 'text', '<', '&lt;', '</body>', '<p class="x">', '<p title=a"b>', '<plaintext>',
  );
  // Of a comment inside a script browsers know more than is asked for here.
  const scripted = (bits: readonly string[]): boolean => bits.includes('<script>') && bits.some((one) => one.startsWith('<!-'));
  fc.assert(fc.property(fc.array(bit, { maxLength: 16 }).filter((bits) => !scripted(bits)), (bits) => {
    const text = bits.join('');
    const [mine, theirs] = [ours(text), oracle(text)];
    demand(JSON.stringify(mine) === JSON.stringify(theirs), `${JSON.stringify(mine)} is not ${JSON.stringify(theirs)}`);
  }), { numRuns: RUNS, seed: SEED });
});

/** A cut, a copy, a flipped octet or an inserted piece; places as parts of the whole. */
const piece = fc.constantFrom(
  '\r\n--b\r\n', '\r\n--b--\r\n', '--b', 'Content-Type: text/html\r\n', 'Content-Type: multipart/mixed; boundary=b\r\n\r\n', 'Content-Transfer-Encoding: base64\r\n', 'Content-Transfer-Encoding: quoted-printable\r\n', '\r\n\r\n', '=', '=\r\n', '=3D', '=ZZ', '\0', '\xff\xfe<\0a\0',
  '<a href="https://x.example/">', '<!--', '">', 'PGEg', '====', '{{postern.unsubscribe}}', 'charset=utf-16; ', '; boundary="', 'Content-Type: multipart/signed; boundary=b\r\n', 'x'.repeat(1_200),
);
const place = fc.double({ min: 0, max: 1, noNaN: true });
const change = fc.oneof(
  fc.record({ kind: fc.constant('cut' as const), from: place, length: place }), fc.record({ kind: fc.constant('double' as const), from: place, length: place, to: place }),
  fc.record({ kind: fc.constant('flip' as const), from: place, bit: fc.nat({ max: 7 }) }), fc.record({ kind: fc.constant('insert' as const), from: place, piece }),
);
type Change = typeof change extends fc.Arbitrary<infer T> ? T : never;

function changed(raw: Buffer, one: Change): Buffer {
  const at = (part: number): number => Math.floor(part * raw.length);
  const from = at(one.from);
  switch (one.kind) {
    case 'cut':
      return Buffer.concat([raw.subarray(0, from), raw.subarray(from + Math.floor(one.length * 400))]);
    case 'double':
      return Buffer.concat([raw.subarray(0, at(one.to)), raw.subarray(from, from + Math.floor(one.length * 400)), raw.subarray(at(one.to))]);
    case 'flip': {
      const copied = Buffer.from(raw);
      if (from < copied.length) copied[from] = (copied[from] ?? 0) ^ (1 << one.bit);
      return copied;
    }
    case 'insert':
      return Buffer.concat([raw.subarray(0, from), Buffer.from(one.piece, 'latin1'), raw.subarray(from)]);
  }
}

/** As the submission door lets it in: no bare CR or LF. */
const canonical = (raw: Buffer): Buffer => Buffer.from(raw.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');

/** Whole messages to begin with: each encoding, nested parts, and the shorter of the real newsletters. */
function seeds(): readonly Buffer[] {
  const part = (head: string, content: Buffer): Buffer => Buffer.concat([crlf(`--b\n${head}\n`), content, crlf('\n')]);
  const page = '<html><body><a href="https://x.example/1?a=1&amp;b=2">one</a> <img src="https://t.example/o" width="1" height="1"> {{postern.unsubscribe}}</body></html>\r\n';
  const built = (content: Buffer): readonly Buffer[] => CODINGS.map((coding) => letter('Content-Type: multipart/alternative; boundary=b\n', Buffer.concat([
    part('Content-Type: text/plain; charset=utf-8\n', crlf('Read https://x.example/2, or {{postern.preferences}}.\n')),
    part(`Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: ${coding}\n`, encoded(content, coding)),
    part('Content-Type: multipart/mixed; boundary=c\n', crlf('--c\nContent-Type: message/rfc822\n\nSubject: x\n\n<a href="https://x.example/3">\n--c--\n')), crlf('--b--\n'),
  ])));
  return [...built(crlf(page)), ...newsletters().filter(([, text]) => text.length < 30_000).slice(0, 6).flatMap(([, text]) => built(text))];
}

t.test('messages that were cut, doubled, flipped and glued', async () => {
  const begun = seeds();
  fc.assert(fc.property(fc.nat({ max: begun.length - 1 }), fc.array(change, { maxLength: 8 }), fc.constantFrom(...STREAMS), (i, changes, stream) => {
    const raw = canonical(changes.reduce(changed, begun[i] ?? Buffer.alloc(0)));
    const message = composed(raw, { stream }, { stream: stream.thirdPartyTrackers });
    for (const tracking of [NO_TRACKING, ALL]) {
      const made = copy(message, ring, tracking, { stream });
      standsAsSubmitted(message, made);
      demand(!hasBareEnds(bytes(made)), 'a bare CR or LF');
      demand(!/^bcc:/im.test(made.header.toString('latin1')) && made.header.at(-1) === 10, 'the header');
    }
  }), { numRuns: Math.floor(RUNS / 2), seed: SEED });
});
