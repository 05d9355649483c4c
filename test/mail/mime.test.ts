// The byte indexes: headers, mailbox lists, content descriptions, parts, quoted-printable. The oracle
// for parts is @zone-eu/mailsplit, which reads line by line where we jump from boundary to boundary.
import assert from 'node:assert/strict';
import { Splitter } from '@zone-eu/mailsplit';
import * as fc from 'fast-check';
import t from 'tap';
import {
  decodeQp, encodeQpRun, fieldValue, indexHeader, indexMime, messageFacts, parseHeaderToken, parseMailboxes, type MimeIndex,
} from '../../daemon/mail/index.ts';

const crlf = (text: string): Buffer => Buffer.from(text.replaceAll(/\r?\n/g, '\r\n'), 'latin1');
const facts = (text: string) => {
  const raw = crlf(text);
  return messageFacts(raw, indexHeader(raw));
};
const bodies = (raw: Buffer, index: MimeIndex): string[] => index.leaves.map((leaf) => raw.toString('latin1', leaf.range.start, leaf.range.end));

t.test('header: fields, folding and the body offset', async (t) => {
  const raw = crlf('Subject: one\n two\nX-Old : y\nTo:\n\tz@b.example\n\nbody\n');
  const header = indexHeader(raw);
  t.same(header.fields.map((f) => [f.name, fieldValue(raw, f)]), [['subject', 'one two'], ['x-old', 'y'], ['to', 'z@b.example']]);
  t.equal(raw.toString('latin1', header.bodyStart), 'body\r\n');
  t.equal(header.fault, undefined);
  t.equal(indexHeader(crlf('A: b\n')).bodyStart, 6, 'no empty line: the body is empty');
  t.equal(indexHeader(crlf('\nbody')).bodyStart, 2, 'no header at all');
  t.equal(indexHeader(Buffer.alloc(0)).bodyStart, 0);
  for (const bad of ['no colon here\nA: b\n\n', ' starts folded\nA: b\n\n', ': no name\n\n', 'F\u00e4: x\n\n']) {
    t.equal(indexHeader(crlf(bad)).fault, 'header-not-a-field', JSON.stringify(bad));
  }
  t.equal(fieldValue(crlf('Subject: gr\u00fcn\n\n'), { name: '', start: 0, end: 15, valueStart: 8 }), 'gr\u00fcn', 'not UTF-8: Latin-1');
});

t.test('header: 10,000 fields do not hurt, more than the cap is a fault and not an exception', async (t) => {
  const started = performance.now();
  const many = crlf(`${'X-A: b\n'.repeat(10_000)}From: a@b.example\n\nbody`);
  t.equal(messageFacts(many, indexHeader(many)).from[0], 'a@b.example');
  t.ok(performance.now() - started < 500, 'well under a second');
  const tooMany = crlf(`From: a@b.example\n${'X-A: b\n'.repeat(30_000)}\nbody`);
  const header = indexHeader(tooMany);
  t.equal(header.fault, 'header-too-many-fields');
  t.equal(tooMany.toString('latin1', header.bodyStart), 'body');
  t.equal(messageFacts(tooMany, header).fromMalformed, true);
});

t.test('header: fields cover the header without gaps, whatever the bytes', async () => {
  fc.assert(fc.property(fc.array(fc.constantFrom('A: b', ' fold', '\r\n', ':', 'x', '\t', '\0', '\u00ff')), (bits) => {
    const raw = Buffer.from(bits.join(''), 'latin1');
    const header = indexHeader(raw);
    let at = 0;
    for (const field of header.fields) {
      if (field.start !== at || field.end <= field.start) return false;
      at = field.end;
    }
    return header.bodyStart >= at && header.bodyStart <= raw.length && messageFacts(raw, header) !== undefined;
  }), { numRuns: 300 });
});

t.test('mailbox lists: strict', async (t) => {
  const table: readonly [string, readonly string[] | undefined][] = [
    ['a@b.example', ['a@b.example']],
    [' A <a@b.example> , "Q, R" <"q r"@b.example>', ['a@b.example', '"q r"@b.example']],
    ['John Q. Public <j@b.example>', ['j@b.example']],
    ['(c (nested \\) x)) a@b.example (after)', ['a@b.example']],
    ['Team: a@b.example, B <b@c.example>;', ['a@b.example', 'b@c.example']],
    ['undisclosed-recipients:;', []],
    ['=?utf-8?q?J=C3=B6?= <j@b.example>', ['j@b.example']],
    ['j\u00f6@\u00f6.example', ['j\u00f6@\u00f6.example']],
    ['a@[192.0.2.1]', ['a@[192.0.2.1]']],
    ['<a@b.example>', ['a@b.example']],
    ['', undefined], ['a', undefined], ['a@', undefined], ['@b', undefined], ['a@b.example,', undefined], [',a@b.example', undefined],
    ['a@b.example, , c@d.example', undefined], ['a@b.example c@d.example', undefined], ['a@b.example <c@d.example>', undefined],
    ['"open <a@b.example>', undefined], ['(open a@b.example', undefined], ['<@r.example:a@b.example>', undefined], ['a @b.example', undefined],
    ['a..b@c.example', undefined], ['.a@c.example', undefined], ['A <a@b.example', undefined], ['A <a@b.example>>', undefined],
    ['G: H: a@b.example;;', undefined], ['a@b.example\0', undefined], ['a@b.example;c@d.example', undefined], [`${'('.repeat(50)}${')'.repeat(50)}a@b.example`, undefined],
  ];
  for (const [text, expected] of table) t.same(parseMailboxes(text), expected, JSON.stringify(text).slice(0, 60));
  t.equal(parseMailboxes('"'.repeat(1_000_000)), undefined);
  fc.assert(fc.property(fc.array(fc.constantFrom('a', '@', '.', '<', '>', ',', ':', ';', '"', '(', ')', '\\', ' ', '\u00e9')), (bits) => {
    const found = parseMailboxes(bits.join(''));
    return found === undefined || found.every((address) => address.includes('@'));
  }), { numRuns: 500 });
});

t.test('message facts', async (t) => {
  t.same(facts('From: A <a@b.example>\nTo: x@y.example, z@y.example\nCc: w@y.example\nDate: now\nMessage-ID: <1@b>\nList-Unsubscribe: <https://x>\n\n'), {
    fromFields: 1, from: ['a@b.example'], fromMalformed: false, toAndCc: 3, dates: 1, messageIds: 1, hasListUnsubscribe: true,
    shown: ['x@y.example', 'z@y.example', 'w@y.example'], oneClickBroken: false, names: new Set(['from', 'to', 'cc', 'date', 'message-id', 'list-unsubscribe']),
  });
  t.match(facts('From: a@b.example\nFrom: c@d.example\nSender: s@b.example\n\n'), { fromFields: 2, from: ['a@b.example', 'c@d.example'], sender: 's@b.example', fromMalformed: false });
  t.match(facts('From: a@b.example\nSender: s@b.example\nSender: t@b.example\n\n'), { fromMalformed: true });
  t.match(facts('From: a@b.example\nSender: s@b.example, t@b.example\n\n'), { fromMalformed: true });
  t.match(facts('From: a@b.example\nTo: broken a@b, c@d <\n\n'), { toAndCc: 2, fromMalformed: false });
  t.match(facts('From: a@b.example\nbroken line\n\n'), { fromMalformed: true, headerFault: 'header-not-a-field' });
  t.match(facts('From: a@b.example\n c@d.example\n\n'), { fromMalformed: true, from: [] }, 'folding is white space');
});

t.test('content descriptions', async (t) => {
  t.same([...(parseHeaderToken('Text/HTML; Charset="utf-8" (a comment; with x=y); format=flowed;')?.params ?? [])], [['charset', 'utf-8'], ['format', 'flowed']]);
  t.equal(parseHeaderToken('text/html; a="(not a comment) \\"quoted\\""')?.params.get('a'), '(not a comment) "quoted"');
  const strange = parseHeaderToken('text/html; __proto__=x; constructor=y');
  t.equal(strange?.params.get('__proto__'), 'x');
  t.equal(({} as Record<string, unknown>)['x'], undefined);
  for (const bad of ['', ';', 'text/html; charset=a; charset=b', 'text/html charset=x', 'text/html; a="open', 'a b', `x;${' '.repeat(10_000)}`]) {
    t.equal(parseHeaderToken(bad), undefined, JSON.stringify(bad).slice(0, 50));
  }
});

t.test('parts: nesting, closing, attachments', async (t) => {
  const raw = crlf(`Content-Type: multipart/mixed; boundary=a

preamble
--a
Content-Type: multipart/alternative; boundary="a-b"

--a-b

plain
--a-b
Content-Type: text/html; charset=UTF-8
Content-Transfer-Encoding: Quoted-Printable

<p>
--a-b--
epilogue --a
--a\t
Content-Type: text/html
Content-Disposition: attachment

file
--a
Content-Type: text/html; name*0=x.html

file
--a
Content-Type: message/rfc822

Subject: x

inner
--a
Content-Type: multipart/signed; boundary=s

--s

signed
--s--
--a
Content-Type: text/html
Content-Type: text/plain

twice
--a
Content-Transfer-Encoding: x-uu

odd
--a
Content-Type: multipart/mixed

no boundary
--a--
--a

after the end
`);
  const index = indexMime(raw);
  t.equal(index.verdict, 'ok');
  t.same(index.leaves.map((l) => [l.type, l.closed, l.encoding, l.depth]), [
    ['text/plain', '', 'identity', 2], ['text/html', '', 'quoted-printable', 2], ['text/html', 'attachment', 'identity', 1], ['text/html', 'attachment', 'identity', 1],
    ['message/rfc822', 'not-text', 'identity', 1], ['multipart/signed', 'signed', 'identity', 1], ['', 'ambiguous-header', 'identity', 1],
    ['text/plain', 'unknown-encoding', 'identity', 1], ['multipart/mixed', 'no-boundary', 'identity', 1],
  ]);
  t.same(bodies(raw, index).slice(0, 4), ['plain', '<p>', 'file', 'file']);
  t.equal(index.leaves[1]?.charset, 'utf-8');
});

t.test('parts: hostile messages give a verdict', async (t) => {
  const open = crlf('Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n\nlast');
  t.same(bodies(open, indexMime(open)), ['last'], 'a missing closing boundary ends with the message');
  const wide = crlf(`Content-Type: multipart/mixed; boundary=x\n\n${'--x\n\na\n'.repeat(1_001)}--x--\n`);
  t.equal(indexMime(wide).verdict, 'too-many-parts');
  let nested = '';
  for (let i = 0; i < 1_000; i++) nested += `Content-Type: multipart/mixed; boundary=b${i}\n\n--b${i}\n`;
  t.equal(indexMime(crlf(`${nested}\ninner`)).verdict, 'too-deep');
  t.equal(indexMime(crlf('Content-Type: multipart/mixed; boundary="__proto__"; __proto__=1\n\n--__proto__\n\na\n--__proto__--')).leaves.length, 1);
  const started = performance.now();
  const marks = Buffer.from(`Content-Type: multipart/mixed; boundary=x\r\n\r\n${'--x '.repeat(1_000_000)}`);
  t.equal(indexMime(marks).verdict, 'ok');
  t.ok(performance.now() - started < 2_000, 'four megabytes of near misses');
});

interface Read { readonly type: string; readonly body: string }

/** The leaves as mailsplit sees them. It counts an epilogue to a leaf of the part that ended, so the messages below have none; nor empty parts, which it reports as a lone CRLF or nothing. */
function split(raw: Buffer): Promise<Read[]> {
  return new Promise((resolve, reject) => {
    const leaves = new Map<object, { type: string; body: string }>();
    const splitter: NodeJS.ReadWriteStream = new Splitter({ ignoreEmbedded: true });
    splitter.on('data', (data: { type: string; value?: Buffer; node?: object; multipart?: unknown; contentType?: unknown }) => {
      if (data.type === 'node' && !data.multipart) leaves.set(data, { type: String(data.contentType || 'text/plain'), body: '' });
      const leaf = data.type === 'body' && data.node !== undefined ? leaves.get(data.node) : undefined;
      if (leaf !== undefined && data.value !== undefined) leaf.body += data.value.toString('latin1');
    });
    splitter.on('end', () => resolve([...leaves.values()]));
    splitter.on('error', reject);
    splitter.end(raw);
  });
}

t.test('parts: agrees with mailsplit', async (t) => {
  const line = fc.constantFrom('text', '', '--', '--b', '-- x', '--b1x', ' --b0', 'a: b', '--b0-', '=', '.');
  const leaf = fc.tuple(fc.constantFrom('text/plain', 'text/html', 'image/png'), fc.array(line, { maxLength: 4 })).map(([type, lines]) => `Content-Type: ${type}\n\n${[...lines, 'end'].join('\n')}`);
  const multi = (boundary: string, children: readonly string[], tail: string): string =>
    `Content-Type: multipart/mixed; boundary="${boundary}"\n\npreamble\n${children.map((child) => `--${boundary}\n${child}\n`).join('')}--${boundary}${tail}`;
  const level = fc.array(fc.oneof(leaf, fc.array(leaf, { minLength: 1, maxLength: 3 }).map((inner) => multi('b1', inner, '--'))), { minLength: 1, maxLength: 4 });
  const message = fc.tuple(level, fc.constantFrom('--\n', '--', '-- \n')).map(([children, tail]) => crlf(multi('b0', children, tail)));
  let compared = 0;
  await fc.assert(fc.asyncProperty(message, async (raw) => {
    const theirs = await split(raw);
    const index = indexMime(raw);
    compared += theirs.length;
    assert.deepEqual(index.leaves.map((l, i) => ({ type: l.type, body: bodies(raw, index)[i] ?? '' })), theirs);
  }), { numRuns: 150, seed: 7 });
  t.ok(compared > 150);
});

t.test('quoted-printable: decodes with the way back', async (t) => {
  const raw = Buffer.from('x=3Dy=\r\nz=C3=a9= \r\nend');
  const qp = decodeQp(raw, 0, raw.length);
  t.equal(qp?.text, 'x=yz\u00c3\u00a9end');
  t.equal(qp?.startOf(3), 8, 'after the soft break');
  t.equal(qp?.endOf(3), 5, 'before the soft break');
  t.equal(qp?.endOf(2), 4);
  for (const bad of ['a=', 'href="x"', '=4', '=\n', '=ZZ', '= x']) t.equal(decodeQp(Buffer.from(`${bad}!`), 0, bad.length + 1), undefined, bad);
  t.equal(decodeQp(Buffer.from('ab='), 0, 3)?.text, 'ab', 'a soft break at the end of the part');
  fc.assert(fc.property(fc.string({ unit: fc.constantFrom('a', '=', 'b', '/', '"'), maxLength: 400 }), (text) => {
    const run = encodeQpRun(text);
    return decodeQp(Buffer.from(run), 0, run.length)?.text === text && run.split('\r\n').every((line) => line.length <= 76);
  }));
});
