// Real newsletters under four judges that share no code with the rewriter: off is the submitted octets;
// on differs only in the planned ranges, read back by mailparser; the links found are those parse5 finds,
// each difference under a rule named here; and Chromium paints copy and original alike, with the pixel
// loaded and with it blocked.
import { existsSync } from 'node:fs';
import { simpleParser, type ParsedMail } from 'mailparser';
import { SAXParser } from 'parse5-sax-parser';
import { chromium, type Page } from 'playwright-core';
import t from 'tap';
import { NO_TRACKING, type Composed, type PlannedEdit } from '../../daemon/mail/index.ts';
import { ALL, CODINGS, PAGES, RECEIVED, STREAM, body, bytes, composed, copy, crlf, encoded, keyring, letter, newsletters, undone, type Coding } from './letters.ts';

const CHROMIUM = '/usr/bin/chromium';
const corpus = newsletters();
const texts = new Map(newsletters('.txt'));
const skip = corpus.length === 0 ? 'SKIPPED: no newsletters at ../shared/corpus: the oracles judge NOTHING' : false;
const unseen = skip !== false ? skip : existsSync(CHROMIUM) ? false : `SKIPPED: no ${CHROMIUM}; scripts/peers install brings it`;
for (const why of new Set([skip, unseen])) if (why !== false) t.comment(why);
t.setTimeout(60_000);

const ring = keyring(t.testdir());
const BOTH = { ...STREAM, textLinks: true };
const latin1 = (octets: Buffer): string => octets.toString('latin1');

/** The newsletter as an application submits it: text and HTML, and a file that is nobody's business. */
function submitted(name: string, source: Buffer, coding: Coding): Buffer {
  const text = texts.get(name.replace('.html', '.txt')) ?? crlf('Read it at https://x.example/online, or (https://y.example/b).\n');
  const part = (head: string, content: Buffer): Buffer => Buffer.concat([crlf(`--=_b\n${head}\n`), content, crlf('\n')]);
  return letter('Content-Type: multipart/alternative; boundary="=_b"\n', Buffer.concat([
    part(`Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: ${coding}\n`, encoded(text, coding)),
    part(`Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: ${coding}\n`, encoded(folded(source), coding)),
    part('Content-Type: text/html; charset=utf-8\nContent-Disposition: attachment; filename=a.html\nContent-Transfer-Encoding: base64\n', encoded(Buffer.from('<a href="https://x.example/file">'), 'base64')),
    crlf('--=_b--\n'),
  ]), 'Bcc: somebody@y.example\nList-Unsubscribe: <mailto:u@acme.example>\n');
}

/** No line beyond 998 octets, for 8bit has no other way; folded where HTML has a space. */
const folded = (source: Buffer): Buffer => Buffer.from(latin1(source).replaceAll(/[^\r\n]{900,}/g, (line) => line.replaceAll(/(.{1,700}) /g, '$1\r\n')), 'latin1');

const each = async (judge: (label: string, raw: Buffer, message: Composed, coding: Coding) => void | Promise<void>): Promise<void> => {
  for (const [name, source] of corpus) {
    for (const coding of CODINGS) {
      const raw = submitted(name, source, coding);
      await judge(`${name} ${coding}`, raw, composed(raw, { stream: BOTH }), coding);
    }
  }
};

t.test('off: the submitted octets, but for the fields that are planned', { skip }, async (t) => {
  await each((label, raw, message) => {
    const out = bytes(copy(message, ring, NO_TRACKING, { unsubscribable: false }));
    const expected = latin1(raw).replace('Bcc: somebody@y.example\r\n', '').replace('List-Unsubscribe: <mailto:u@acme.example>\r\n', '');
    t.ok(out.equals(Buffer.from(RECEIVED + expected, 'latin1')), label);
  });
});

/** What the copy has in place of each edit, when everything else stands in it as submitted; undefined when something does not. */
function writtenFor(edits: readonly PlannedEdit[], raw: Buffer, from: number, out: Buffer): readonly string[] | undefined {
  const written: string[] = [];
  let at = 0;
  let stood = from;
  for (const edit of edits) {
    const gap = raw.subarray(stood, edit.start);
    if (!out.subarray(at, at + gap.length).equals(gap)) return undefined;
    at += gap.length;
    stood = edit.end;
    const next = edits[written.length + 1]?.start ?? raw.length;
    // What was written ends where the octets up to the next edit begin again.
    const rest = raw.subarray(stood, next);
    const end = next === raw.length ? out.length - rest.length : out.indexOf(rest, at);
    if (end < at || end - at > 3_000) return undefined;
    written.push(latin1(out.subarray(at, end)));
    at = end;
  }
  return out.subarray(at).equals(raw.subarray(stood)) ? written : undefined;
}

t.test('on: only planned ranges differ, lines keep their limits, and another reader sees the same letter', { skip }, async (t) => {
  let links = 0;
  await each(async (label, raw, message, coding) => {
    const made = copy(message, ring, ALL, { stream: BOTH });
    const out = body(made);
    const edits = message.plan.parts.flatMap((part) => part.edits);
    const written = writtenFor(edits, raw, message.plan.bodyStart, out);
    t.equal(written?.length, edits.length, `${label}: outside the planned edits nothing differs`);
    t.ok(written?.every((text) => text !== ''), `${label}: something stands in place of each`);
    const long = latin1(out).split('\r\n').filter((line) => line.length > (coding === '8bit' ? 998 : 76));
    t.same(long, [], `${label}: lines`);
    t.notMatch(latin1(bytes(made)), /\r(?!\n)|(?<!\r)\n/, `${label}: no bare CR or LF`);
    const [was, is] = [await simpleParser(raw), await simpleParser(bytes(made))];
    links += sameLetter(t, label, was, is, made.links);
  });
  t.ok(links > 300, `${links} links`);
});

/** Compares what mailparser made of both; the copy's edits are taken back by opening its tokens. @returns the links that were rewritten */
function sameLetter(t: Tap, label: string, was: ParsedMail, is: ParsedMail, count: number): number {
  const octets = (text: string): string => latin1(Buffer.from(text));
  const [page, text] = [undone(octets(is.html || ''), ring), undone(octets(is.text ?? ''), ring)];
  t.equal(page.targets.length + text.targets.length, count, `${label}: as many links as the event tells`);
  firstDifference(t, entities(page.text), entities(octets(was.html || '')), `${label}: HTML`);
  firstDifference(t, text.text, octets(was.text ?? ''), `${label}: text`);
  t.same(is.attachments.map(({ content, filename }) => [filename, content.toString('hex')]), was.attachments.map(({ content, filename }) => [filename, content.toString('hex')]), `${label}: the file`);
  const ownFields = new Set(['received', 'bcc', 'list-unsubscribe', 'list-unsubscribe-post', 'list']);
  const fields = (mail: ParsedMail): string[] => mail.headerLines.filter(({ key }) => !ownFields.has(key)).map(({ line }) => line);
  t.same(fields(is), fields(was), `${label}: fields`);
  return count;
}

const entities = (text: string): string => text.replaceAll('&amp;', '&');
type Tap = Pick<typeof t, 'equal' | 'same' | 'ok' | 'match'>;

function firstDifference(t: Tap, got: string, expected: string, label: string): void {
  let at = 0;
  while (at < got.length && got[at] === expected[at]) at++;
  t.equal(got === expected ? '' : got.slice(at - 60, at + 100), got === expected ? '' : expected.slice(at - 60, at + 100), label);
}

// ---- parse5 ------------------------------------------------------------------------------------

interface Seen {
  readonly tag: string;
  readonly attribute: string;
  readonly target: string;
  /** Offset of the attribute in the text. */
  readonly at: number;
  readonly exempt: boolean;
  readonly comment: boolean;
}

/** Every attribute of the text whose value leads to a web page, with where it stands; conditional comments are read like text. */
function seenByParse5(text: string, base = 0, comment = false): Seen[] {
  const found: Seen[] = [];
  const parser = new SAXParser({ sourceCodeLocationInfo: true });
  parser.on('startTag', ({ tagName, attrs, sourceCodeLocation }) => {
    const places = (sourceCodeLocation as { readonly attrs?: Readonly<Record<string, { readonly startOffset: number } | undefined>> } | null | undefined)?.attrs;
    const exempt = attrs.some(({ name, value }) => name === 'data-no-track' || name === 'ses:no-track' || (name === 'clicktracking' && value === 'off'));
    for (const { name, value } of attrs) {
      const target = value.replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, '');
      if (/^https?:\/\//i.test(target)) found.push({ tag: tagName, attribute: name, target, at: base + (places?.[name]?.startOffset ?? 0), exempt, comment });
    }
  });
  parser.on('comment', ({ text: inside, sourceCodeLocation }) => {
    const open = /^\[if [^\]]*\]>/i.exec(inside)?.[0];
    if (!comment && open !== undefined) found.push(...seenByParse5(inside.slice(open.length), base + (sourceCodeLocation?.startOffset ?? 0) + '<!--'.length + open.length, true));
  });
  parser.end(text);
  return found.toSorted((a, b) => a.at - b.at);
}

const LEADS: Readonly<Record<string, string | undefined>> = { a: 'href', area: 'href' };
/** Elements beyond a and area whose links people follow: forms, buttons, Outlook's shapes, pictures drawn as SVG. */
const LEADS_TOO = /^(?:form action|(?:button|input) formaction|v:\w+ href|a xlink:href)$/;
/** Why a link of the text is none of the plan; each stands for a sentence of the README. */
const LEFT_ALONE: readonly (readonly [string, (link: Seen) => boolean])[] = [
  ['not a place a reader is led to', ({ tag, attribute }) => LEADS[tag] !== attribute && !LEADS_TOO.test(`${tag} ${attribute}`)],
  ['the author exempted it', ({ exempt }) => exempt],
  ['an objection must not depend on our redirect', ({ target }) => /unsub|opt-?out|preference/i.test(target)],
  ['a placeholder nobody filled in', ({ target }) => /\{\{|\*\||\[\[|%%/.test(target)],
  ['white space inside', ({ target }) => /\s/.test(target)],
  ['our own page', ({ target }) => target.startsWith(PAGES)],
];

t.test('the links are those parse5 finds', { skip }, async (t) => {
  const why = new Map<string, number>();
  let found = 0;
  for (const [name, source] of corpus) {
    // parse5 counts a CRLF as one character; the plan is made from the same text with lone line feeds.
    const text = source.toString('utf8').replaceAll('\r\n', '\n');
    const raw = letter('Content-Type: text/html; charset=utf-8\n', Buffer.from(text));
    const { plan } = composed(raw);
    const start = plan.parts[0]?.range.start ?? 0;
    const ours = (plan.parts[0]?.edits ?? []).filter(({ kind }) => kind === 'link').map((edit) => ({ target: edit.target, at: raw.subarray(start, edit.start).toString('utf8').length }));
    found += ours.length;
    const taken = new Set<number>();
    for (const link of seenByParse5(text)) {
      // The value begins a name, an equals sign and a quote after its attribute.
      const i = ours.findIndex(({ target, at }, n) => !taken.has(n) && target === link.target && at > link.at && at - link.at < 40);
      const reason = LEFT_ALONE.find(([, holds]) => holds(link))?.[0];
      if (i !== -1) taken.add(i);
      if ((i === -1) !== (reason !== undefined)) t.fail(`${name}: ${link.tag} ${link.attribute} ${link.target} is ${i === -1 ? 'not ' : ''}in the plan${reason === undefined ? '' : `, though ${reason}`}`);
      if (i === -1) why.set(reason ?? '', (why.get(reason ?? '') ?? 0) + 1);
    }
    t.same(ours.filter((_, n) => !taken.has(n)), [], `${name}: nothing is rewritten that parse5 does not see`);
  }
  t.ok(found > 60, `${found} links`);
  for (const [reason, count] of why) t.comment(`${count} left alone: ${reason}`);
});

// ---- Chromium ----------------------------------------------------------------------------------

const GIF = Buffer.from('R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7', 'base64');

t.test('Chromium paints the copy as it paints the original', { skip: unseen }, async (t) => {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
  try {
    const page = await (await browser.newContext({ viewport: { width: 700, height: 800 }, javaScriptEnabled: false })).newPage();
    let blocked = true;
    let pixels = 0;
    // Nothing leaves the house: the pixel is answered here, everything else fails as it does offline.
    await page.route('**/*', (route) => {
      if (blocked || !route.request().url().startsWith(`${PAGES}/o/`)) return route.abort();
      pixels++;
      return route.fulfill({ body: GIF, contentType: 'image/gif' });
    });
    for (const [i, [name, source]] of corpus.entries()) {
      const coding = CODINGS[i % CODINGS.length] ?? '8bit';
      const raw = submitted(name, source, coding);
      const made = copy(composed(raw), ring, ALL);
      const [was, is] = [(await simpleParser(raw)).html || '', (await simpleParser(bytes(made))).html || ''];
      t.not(was, is, name);
      const painted = await paint(page, was);
      for (blocked of [true, false]) t.ok(painted.equals(await paint(page, is)), `${name} ${coding}, the pixel ${blocked ? 'blocked' : 'loaded'}`);
    }
    t.equal(pixels, corpus.length, 'each pixel was asked for once');
  } finally {
    await browser.close();
  }
});

async function paint(page: Page, html: string): Promise<Buffer> {
  await page.setContent(html, { waitUntil: 'load' });
  return page.screenshot({ fullPage: true });
}
