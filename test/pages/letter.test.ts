// A letter from the application to the reader's screen and back: submitted over SMTP AUTH, delivered, opened
// in Chromium as a mail program would, followed, its "do not measure me" taken, left by the mail program's
// button and come back to. Each step is looked at in the ledger and the journal, not on the page alone.
// POSTERN_SHOTS=FOLDER keeps the pictures.
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { simpleParser, type ParsedMail } from 'mailparser';
import { chromium, type Browser, type Page } from 'playwright-core';
import t from 'tap';
import { eventually, makeGrounds, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx } from '../lib/mx.ts';

const CHROMIUM = '/usr/bin/chromium';
const skip = existsSync(CHROMIUM) ? false : `SKIPPED: no ${CHROMIUM}; scripts/peers install brings it`;
const SHOTS = process.env['POSTERN_SHOTS'];
if (skip !== false) t.comment(skip);
t.setTimeout(60_000);

const READER = 'reader@example.com';
const SHOP = 'https://shop.example/books?id=1&from=letter';
const LETTER = `<!doctype html><html><body style="font-family:sans-serif;margin:0;padding:24px;color:#222;background:#fff"><h1 style="font-size:22px">New books in November</h1>
<p>Three books came in that you may like. <a href="${SHOP.replace('&', '&amp;')}">See them</a>.</p>
<form action="https://shop.example/search?old=1"><input name="q" value="maps"> <button>Search</button></form>
<p style="font-size:12px;color:#666">You get this because you asked for it. <a href="{{postern.stop_tracking}}">Do not measure what I read</a> · <a href="{{postern.preferences}}">Choose</a> · <a href="{{postern.unsubscribe}}">Unsubscribe</a></p>
<img src="https://t.counter.example/o?u=7" width="1" height="1" alt=""></body></html>`;

interface World {
  readonly grounds: Grounds;
  readonly mx: Mx;
  readonly browser: Browser;
}

/** Sends the letter. @returns what the reader's mailbox got */
async function receive({ grounds, mx }: World): Promise<ParsedMail> {
  const before = mx.messages.length;
  const { id, reply } = await grounds.send({ from: 'Demo <news@demo.example>', to: READER, subject: 'New books in November', html: LETTER, text: 'Leave: {{postern.unsubscribe}}\n' });
  const told = await grounds.event(id, ['delivered']);
  if (told.event !== 'delivered') throw new Error(`${reply} ${JSON.stringify(told)}`);
  return simpleParser(mx.messages[before]?.body ?? Buffer.alloc(0));
}

/** What the ledger says of the reader. */
async function standing({ grounds }: World): Promise<{ readonly state?: string; readonly tracking?: { readonly opens: string; readonly clicks: string }; readonly rule: string }> {
  const { facts, recipient } = await grounds.control('explain', { tenant: 'demo', stream: 'newsletter', rcpt: READER }) as {
    readonly facts: { readonly consent?: { readonly state: string; readonly tracking: { readonly opens: string; readonly clicks: string } } }; readonly recipient: { readonly rule: string };
  };
  return { ...(facts.consent && { state: facts.consent.state, tracking: facts.consent.tracking }), rule: recipient.rule };
}

async function picture(page: Page, name: string): Promise<void> {
  if (SHOTS !== undefined) await page.screenshot({ path: join(SHOTS, `letter-${name}.png`), fullPage: true });
}

t.test('a letter as its reader meets it', { skip }, async (t) => {
  const mx = await startMx();
  const grounds = await makeGrounds(mx.port);
  await grounds.consent({ [READER]: 'individual' });
  const daemon = await grounds.serve();
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
  t.teardown(async () => {
    await browser.close();
    await daemon.stop();
    await mx.close();
    grounds.remove();
  });
  const world: World = { grounds, mx, browser };
  const mail = await receive(world);
  const html = (mail.html || '').replaceAll(/https?:\/\/[^/"]*(?=\/[a-z]+\/[\w-]{40,})/g, `http://127.0.0.1:${grounds.ports.pages}`);
  t.match(html, /counter\.example/, 'who allows individual opens gets the sender\'s own measuring too');
  const page = await (await browser.newContext({ viewport: { width: 390, height: 780 }, javaScriptEnabled: false, locale: 'en-GB' })).newPage();
  const asked: string[] = [];
  await page.route('**/*', (route) => {
    const url = route.request().url();
    if (url.startsWith(`http://127.0.0.1:${grounds.ports.pages}/`)) return route.continue();
    asked.push(url);
    return route.fulfill({ body: 'the shop', contentType: 'text/html' });
  });

  await t.test('opening and following', async (t) => {
    await page.setContent(html, { waitUntil: 'load' });
    await picture(page, 'received');
    await page.getByRole('link', { name: 'See them' }).click();
    await page.waitForURL(SHOP);
    await page.setContent(html, { waitUntil: 'load' });
    await page.getByRole('button', { name: 'Search' }).click();
    await page.waitForURL('https://shop.example/search?q=maps');
    t.ok(asked.includes(SHOP) && asked.includes('https://shop.example/search?q=maps'), 'link and form lead where their author wanted');
    // The operator is told none of it (T20): the journal's own files are.
    const events = join(grounds.dataDir, 'events');
    const recorded = (kind: string): number => readdirSync(events).map((name) => readFileSync(join(events, name), 'latin1').split(`"event":"${kind}"`).length - 1).reduce((a, b) => a + b, 0);
    t.ok(await eventually(() => recorded('clicked') === 2 && recorded('opened') > 0), 'recorded');
  });

  await t.test('"do not measure what I read": one page, one button, in the reader\'s language', async (t) => {
    await page.setContent(html, { waitUntil: 'load' });
    await page.getByRole('link', { name: 'Do not measure' }).click();
    t.match(await page.textContent('h1'), /Stop measuring, keep the mail/);
    t.match(await standing(world), { tracking: { opens: 'individual', clicks: 'individual' } }, 'looking changes nothing');
    await picture(page, 'stop-measuring');
    await page.getByRole('link', { name: 'Deutsch' }).click();
    t.match(await page.textContent('h1'), /Nichts mehr messen/, 'the language changes and the question stays');
    await picture(page, 'stop-measuring-de');
    await page.getByRole('button', { name: 'Nichts mehr messen' }).click();
    t.match(await page.textContent('[role=status]'), /Erledigt/);
    t.equal(await page.getByRole('button').count(), 0, 'nothing is left to press');
    await picture(page, 'stopped-de');
    t.match(await standing(world), { state: 'given', tracking: { opens: 'none', clicks: 'none' }, rule: 'ok-consent' });
    const next = await receive(world);
    t.notMatch(next.html, /\/[cof]\/[\w-]{40,}|counter\.example/, 'the next letter measures nothing, nor lets others');
    t.match(next.html, new RegExp(`href="${SHOP.replaceAll(/[?.]/g, '\\$&').replace('&', '&amp;')}"`));
  });

  await t.test('the mail program\'s button, and back again', async (t) => {
    // RFC 8058 §3.2, as a mail program does it: from the header alone, without cookies.
    const [, url = ''] = /<(https?:[^>]+)>/.exec(headerOf(mail, 'list-unsubscribe')) ?? [];
    t.equal(headerOf(mail, 'list-unsubscribe-post'), 'List-Unsubscribe=One-Click');
    const button = url.replace(/^https?:\/\/[^/]+/, `http://127.0.0.1:${grounds.ports.pages}`);
    const answer = await fetch(button, { method: 'POST', body: 'List-Unsubscribe=One-Click', headers: { 'Content-Type': 'application/x-www-form-urlencoded' } });
    t.match([answer.status, await answer.text()], [200, '']);
    t.match(await standing(world), { state: 'withdrawn', rule: 'suppressed-unsubscribe' });
    t.match((await grounds.send({ from: 'news@demo.example', to: READER, subject: 'x', html: LETTER })).reply, /^550 .*suppressed-unsubscribe/);
    await page.setContent(html, { waitUntil: 'load' });
    await page.getByRole('link', { name: 'Choose' }).click();
    t.match(await page.textContent('main'), /You do not get this mail/);
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.setViewportSize({ width: 1280, height: 860 });
    await picture(page, 'left-dark');
    await page.getByRole('button', { name: 'Subscribe again' }).click();
    t.match(await page.textContent('[role=status]'), /Done: you get/);
    await picture(page, 'back-dark');
    t.match(await standing(world), { state: 'given', tracking: { opens: 'none', clicks: 'none' }, rule: 'ok-consent' });
    t.ok(await receive(world));
  });
});

const headerOf = (mail: ParsedMail, name: string): string => (mail.headerLines.find(({ key }) => key === name)?.line ?? '').replace(/^[^:]*:\s*/, '').replaceAll(/\r\n/g, '');
