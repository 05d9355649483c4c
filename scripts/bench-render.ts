// What a 50 KiB newsletter costs: read, plan and first copy; then each further copy, before signing
//
// One letter (24 links, tables, inline styles, conditional comments for Outlook) in quoted-printable,
// base64 and 8bit, for a recipient who allows everything: every link and the pixel are sealed for that
// person. first_ms: the header and the parts indexed, the text decoded, links found, the plan made and one
// copy rendered. further_ms: another person's copy from the same plan. Beside it what most senders do in
// JavaScript: mailparser reads the letter, parse5 finds the links, nodemailer composes it anew; the same
// tokens are sealed there. All in turn, on one thread; each figure a median over the rounds' medians, the
// figures without a name of an encoding are the slowest encoding's.
//   npm run bench -- render [--json] [--rounds 9]
import { createSecretKey } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { simpleParser } from 'mailparser';
import MailComposer from 'nodemailer/lib/mail-composer/index.js';
import { SAXParser } from 'parse5-sax-parser';
import { compose, openSealer, render, type RenderContext } from '../daemon/compose/index.ts';
import type { Admitted, Cleared, Composed, Rendered } from '../daemon/mail/index.ts';
import { newId, openKeyring } from '../daemon/runtime/index.ts';
import type { SendingDomain, Stream } from '../daemon/settings/index.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, rounds: { type: 'string', default: '9' } } });
const ROUNDS = Number(values.rounds);
const LETTERS = 150;
const PEER_LETTERS = 15;
const BYTES = 50 * 1_024;
const LINKS = 24;
const CODINGS = ['quoted-printable', 'base64', '8bit'] as const;
type Coding = (typeof CODINGS)[number];
const PAGES = 'https://news.demo.example';
const DOMAIN: SendingDomain = { name: 'demo.example', dkim: [], returnPath: 'bounce.demo.example', pages: PAGES };
const STREAM: Stream = {
  id: 'news', purpose: 'newsletter', class: 'marketing', consentRequired: true, retryForMs: 1, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '',
};
const HASHES = { consent: Buffer.alloc(16, 1), suppression: Buffer.alloc(16, 2), family: Buffer.alloc(16, 3) };

/** A letter of BYTES octets when in 8bit, as templates make them. */
function html(n: number): string {
  const story = (i: number): string => `<!--[if mso | IE]><table align="center" border="0" cellpadding="0" style="width:600px;" width="600"><tr><td style="line-height:0px;font-size:0px;"><![endif]-->
<div style="margin:0px auto;max-width:600px;"><table role="presentation" border="0" cellpadding="0" cellspacing="0" style="width:100%;"><tbody><tr><td style="direction:ltr;padding:20px 0;text-align:center;">
<a class="button" style="color:#414141;text-decoration:none" href="https://demo.example/issue-${n}/story/${i}?utm_source=newsletter&amp;utm_medium=email&amp;utm_campaign=launch" target="_blank"><img alt="" src="https://images.demo.example/${n}/${i}.png" width="280"></a>
<p style="font-family:Helvetica,Arial,sans-serif;font-size:14px;line-height:22px;color:#414141">Story ${i} of ${n}: na\u00efve caf\u00e9s, \u201cquoted\u201d &#8211; and more.</p></td></tr></tbody></table></div>
<!--[if mso | IE]></td></tr></table><![endif]-->\n`;
  const stories = Array.from({ length: LINKS }, (_, i) => story(i));
  const head = '<!doctype html>\n<html><head><title>News</title><style>@media only screen and (min-width:480px) { .column { width:100% !important; } }</style></head>\n<body>\n';
  const missing = BYTES - 600 - Buffer.byteLength(head + stories.join(''));
  const filler = '<p style="margin:0;padding:0 10px">Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod.</p>\n';
  const each = filler.repeat(Math.floor(missing / filler.length / LINKS));
  return `${head}${stories.map((text) => text + each).join('')}</body></html>\n`;
}

async function letter(n: number, coding: Coding): Promise<Buffer> {
  const text = html(n);
  const mail = new MailComposer({
    from: 'News <news@demo.example>', to: 'readers@demo.example', subject: `Issue ${n}`, text: `Issue ${n}: https://demo.example/issue-${n}`, html: text,
    textEncoding: coding === '8bit' ? 'base64' : coding,
  } as never);
  let raw = (await mail.compile().build()).toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n');
  // nodemailer sends no 8bit of its own accord.
  if (coding === '8bit') raw = raw.replaceAll(/Content-Transfer-Encoding: base64(\r\n\r\n)([A-Za-z0-9+/=\r\n]+)(?=\r\n--)/g, (_all, end: string, chars: string) => `Content-Transfer-Encoding: 8bit${end}${Buffer.from(chars, 'base64').toString('latin1').replaceAll('\n', '\r\n')}`);
  return Buffer.from(raw, 'latin1');
}

const dir = mkdtempSync(join(tmpdir(), 'postern-bench-render-'));
const keyring = openKeyring(dir, createSecretKey(Buffer.alloc(32, 7)));
keyring.load(['demo']);
const CONTEXT: RenderContext = { tenant: 'demo', keys: keyring.tenant('demo'), domain: DOMAIN, stream: STREAM, inbound: true };

function planned(raw: Buffer): Composed {
  const admitted = {
    id: newId(Date.now()), origin: { tenant: 'demo', stream: 'news', credential: 'app', kind: 'relay' }, raw, receivedAt: Date.now(), protocol: 'ESMTPSA',
    envelope: { mailFrom: 'news@demo.example', smtpUtf8: false, body: '8BITMIME' }, recipients: [],
  } as unknown as Admitted;
  return compose(admitted, { hostname: 'mx.demo.example', stream: STREAM, domain: DOMAIN, receivedFields: 'Received: by mx.demo.example with ESMTPSA;\r\n Mon, 23 Nov 2026 04:10:00 +0000\r\n' });
}

function copyOf({ id, raw, origin, envelope, receivedAt, plan }: Composed, index: number): Rendered {
  const cleared = {
    id, index, message: { origin, envelope, plan, sizeBytes: raw.length, receivedAt }, tracking: { opens: 'individual', clicks: 'individual' }, evidence: '', policy: '', unsubscribable: true,
    recipient: { wire: 'reader@demo.example', domain: 'demo.example', hashes: HASHES, evidence: '', attempts: 0, nextAt: 0, expiresAt: 0, held: false, lastReply: '' },
  } as unknown as Cleared;
  return render(cleared, raw, CONTEXT);
}

// ---- the peer ----------------------------------------------------------------------------------

interface Parsed {
  readonly id: string;
  readonly subject: string;
  readonly text: string;
  readonly html: string;
  /** Offsets of the links' values, and where they lead. */
  readonly links: readonly { readonly start: number; readonly end: number; readonly target: string }[];
}

async function parsedByPeer(raw: Buffer): Promise<Parsed> {
  const mail = await simpleParser(raw);
  const text = typeof mail.html === 'string' ? mail.html : '';
  const links: { start: number; end: number; target: string }[] = [];
  const parser = new SAXParser({ sourceCodeLocationInfo: true });
  parser.on('startTag', ({ tagName, attrs, sourceCodeLocation }) => {
    const where = (sourceCodeLocation as { attrs?: Record<string, { startOffset: number; endOffset: number }> } | null)?.attrs?.['href'];
    const target = attrs.find(({ name }) => name === 'href')?.value;
    if (tagName === 'a' && where !== undefined && target !== undefined) links.push({ start: where.startOffset + 'href="'.length, end: where.endOffset - 1, target });
  });
  parser.end(text);
  return { id: newId(Date.now()), subject: mail.subject ?? '', text: mail.text ?? '', html: text, links };
}

async function copyByPeer({ id, subject, text, html: page, links }: Parsed, index: number, coding: Coding): Promise<Buffer> {
  const sealer = openSealer(CONTEXT.keys, { message: id, recipient: index, stream: 'news', purpose: 'newsletter', hashes: HASHES });
  let out = '';
  let at = 0;
  for (const { start, end, target } of links) {
    out += `${page.slice(at, start)}${PAGES}/c/${sealer.click(target)}`;
    at = end;
  }
  out += page.slice(at).replace('</body>', `<img src="${PAGES}/o/${sealer.open('individual')}" width="1" height="1" alt="" border="0"></body>`);
  const mail = new MailComposer({
    from: 'News <news@demo.example>', to: 'readers@demo.example', subject, text, html: out, textEncoding: coding === '8bit' ? 'quoted-printable' : coding,
    list: { unsubscribe: { url: `${PAGES}/u/${sealer.unsubscribe()}` } },
  } as never);
  return mail.compile().build();
}

// ---- time --------------------------------------------------------------------------------------

const quantile = (list: readonly number[], share: number): number => [...list].sort((a, b) => a - b)[Math.min(list.length - 1, Math.floor(list.length * share))] ?? 0;
const median = (list: readonly number[]): number => quantile(list, 0.5);

async function timed(list: readonly Buffer[], first: (raw: Buffer) => unknown, further: (made: never, index: number) => unknown): Promise<{ first: number[]; further: number[] }> {
  const times = { first: [] as number[], further: [] as number[] };
  for (const raw of list) {
    const from = performance.now();
    const step = first(raw);
    // What is not asynchronous is not made to wait for a turn.
    const made = (step instanceof Promise ? await step : step) as never;
    times.first.push(performance.now() - from);
    const again = performance.now();
    const other = further(made, 1);
    if (other instanceof Promise) await other;
    times.further.push(performance.now() - again);
  }
  return times;
}

const ours = (list: readonly Buffer[]): ReturnType<typeof timed> => timed(list, (raw) => {
  const made = planned(raw);
  copyOf(made, 0);
  return made;
}, (made: Composed, index) => copyOf(made, index));
const theirs = (list: readonly Buffer[], coding: Coding): ReturnType<typeof timed> => timed(list, async (raw) => {
  const made = await parsedByPeer(raw);
  await copyByPeer(made, 0, coding);
  return made;
}, (made: Parsed, index) => copyByPeer(made, index, coding));

/** Nothing is timed that does less than it says. */
async function verify(raw: Buffer, coding: Coding): Promise<void> {
  const made = copyOf(planned(raw), 0);
  const seen = async (letterOut: Buffer): Promise<number> => ((await simpleParser(letterOut)).html || '').split(`href="${PAGES}/c/`).length - 1;
  const [mine, peers] = [await seen(Buffer.concat([made.header, Buffer.from('\r\n'), ...made.body])), await seen(await copyByPeer(await parsedByPeer(raw), 0, coding))];
  if (mine !== LINKS || peers !== LINKS || !made.pixel) throw new Error(`not a fair run: ${mine} and ${peers} of ${LINKS} links in ${coding}`);
}

try {
  const figures: Record<string, number> = {};
  const round = (value: number): number => Math.round(value * 1_000) / 1_000;
  const runs = new Map<string, number[]>();
  const note = (name: string, value: number): void => void runs.set(name, [...(runs.get(name) ?? []), value]);
  const letters = new Map<Coding, Buffer[]>();
  for (const coding of CODINGS) {
    const list: Buffer[] = [];
    for (let n = 0; n < LETTERS; n++) list.push(await letter(n, coding));
    letters.set(coding, list);
    await verify(list[0] ?? Buffer.alloc(0), coding);
  }
  // The first round compiles the code and is not counted.
  for (let n = 0; n <= ROUNDS; n++) {
    for (const [coding, list] of letters) {
      const [mine, peer] = [await ours(list), await theirs(list.slice(0, PEER_LETTERS), coding)];
      if (n === 0) continue;
      const name = coding === 'quoted-printable' ? 'qp' : coding;
      for (const step of ['first', 'further'] as const) {
        note(`${step}_${name}_ms`, median(mine[step]));
        note(`${step}_${name}_p99_ms`, quantile(mine[step], 0.99));
        note(`peer_${step}_${name}_ms`, median(peer[step]));
      }
    }
    if (!values.json && n > 0) console.log(`round ${n} of ${ROUNDS}`);
  }
  const all = (name: string): number => median(runs.get(name) ?? []);
  for (const step of ['first', 'further'] as const) {
    const names = ['qp', 'base64', '8bit'].map((name) => `${step}_${name}`);
    figures[`${step}_ms`] = round(Math.max(...names.map((name) => all(`${name}_ms`))));
    figures[`${step}_p99_ms`] = round(Math.max(...names.map((name) => all(`${name}_p99_ms`))));
    figures[`${step}_ratio`] = round(Math.min(...names.map((name) => all(`peer_${name}_ms`) / all(`${name}_ms`))));
  }
  for (const name of runs.keys()) figures[name] = round(all(name));
  const ran = `${ROUNDS} rounds of ${LETTERS} letters of ${letters.get('8bit')?.[0]?.length ?? 0} octets (8bit), ${LINKS} links; peer: mailparser, parse5-sax-parser and nodemailer, ${PEER_LETTERS} letters a round`;
  if (values.json) console.log(JSON.stringify({ name: 'render', ran, figures, targets: { first_ms: 1, further_ms: 0.3 } }));
  else console.table(figures);
} finally {
  rmSync(dir, { recursive: true, force: true });
}
