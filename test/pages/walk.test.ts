// The pages as a recipient uses them, in a real Chromium: on a phone and on a desk, in light and dark, in every
// language, with JavaScript off. axe-core looks at each page and must find nothing; no request may leave
// the host. POSTERN_SHOTS=folder keeps pictures of what was seen.
import { createSecretKey, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium, type Browser, type Page } from 'playwright-core';
import t from 'tap';
import { sealToken, type Claim } from '../../daemon/compose/index.ts';
import type { Event } from '../../daemon/events/index.ts';
import { openLedger } from '../../daemon/ledger/index.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { Metrics, newId, openKeyring, systemClock } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';
import { LANGUAGES, openPages } from '../../daemon/web/index.ts';

const CHROMIUM = '/usr/bin/chromium';
const skip = existsSync(CHROMIUM) ? false : `SKIPPED: no ${CHROMIUM}; scripts/peers install brings it`;
if (skip !== false) t.comment(skip);
t.setTimeout(60_000);

const SHOTS = process.env['POSTERN_SHOTS'];
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const HASH = 'ab'.repeat(32);
const DAY_MS = 86_400_000;

interface World {
  readonly base: string;
  readonly events: Event[];
  readonly ledger: ReturnType<typeof openLedger>;
  path(kind: Claim['kind'], address: string): string;
  give(address: string, purpose: string, state?: 'given' | 'pending'): Promise<void>;
  facts(address: string): ReturnType<ReturnType<typeof openLedger>['facts']>;
  close(): Promise<void>;
}

async function openWorld(): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-walk-'));
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  keyring.load(['acme']);
  const store = openLedgerStore(dir);
  const clock = systemClock;
  const ledger = openLedger({ store, keyring, clock });
  const purposes = ['newsletter', 'new-books', 'orders'];
  const text = 'We send you what you asked for.\n\nWe measure nothing that you did not allow, and we give your address to nobody.';
  const policies = [
    { version: '2025-03', hash: 'cd'.repeat(32), text, effectiveAt: Date.parse('2025-03-01'), purposes, tracking: { opens: 'aggregate', clicks: 'none' } },
    { version: '2026-01', hash: HASH, text, effectiveAt: Date.parse('2026-01-01'), purposes, tracking: { opens: 'individual', clicks: 'individual' } },
  ];
  const streams = [['newsletter', 'marketing', true], ['new-books', 'marketing', true], ['orders', 'transactional', false]] as const;
  const acme = {
    id: 'acme', contact: { name: 'Acme Books', email: 'privacy@acme.example', postal: '1 Example Street, 12345 Example Town', url: 'https://acme.example' }, policies,
    domains: [{ name: 'acme.example', pages: '' }], streams: new Map(streams.map(([id, kind, consentRequired]) => [id, { id, purpose: id, class: kind, consentRequired }])),
    brand: { color: '#d9730d' }, keepEvidenceMs: 0,
  };
  const settings = { server: { hostname: 'mx.example', listeners: { pages: [{ host: '127.0.0.1', port: 0 }], pagesTls: false } }, tenants: new Map([['acme', acme]]) } as unknown as Settings;
  const events: Event[] = [];
  let current = settings;
  const log = { debug() {}, info() {}, warn() {}, error: (...what: unknown[]) => t.comment(JSON.stringify(what)) };
  const pages = await openPages({ settings: () => current, keyring, ledger, clock, log, metrics: new Metrics(), record: (event) => events.push(event) });
  const base = `http://127.0.0.1:${pages.addresses[0]?.port}`;
  current = { ...settings, tenants: new Map([['acme', { ...acme, domains: [{ name: 'acme.example', pages: base }] }]]) } as unknown as Settings;
  const hashesOf = (address: string) => ledger.hashes('acme', parseAddress(address));
  return {
    base, events, ledger,
    path: (kind, address) => {
      const token = sealToken(keyring.tenant('acme'), { kind, message: newId(clock.now()), recipient: 0, stream: 'newsletter', purpose: 'newsletter', hashes: hashesOf(address) });
      return `${base}/${{ unsubscribe: 'u', preferences: 'p', confirm: 'confirm', click: 'c', form: 'f', open: 'o' }[kind]}/${token}`;
    },
    async give(address, purpose, state = 'given') {
      await ledger.give('acme', {
        hashes: hashesOf(address), purpose, state, legalBasis: 'gdpr_6_1_a', policyHash: HASH, method: 'form', by: 'test',
        evidence: { source: 'form', time: clock.now() - 3 * DAY_MS }, tracking: { opens: 'individual', clicks: 'individual' },
      });
    },
    facts: (address) => ledger.facts('acme', 'newsletter', 'newsletter', hashesOf(address)),
    async close() {
      await pages.close();
      await ledger.close();
      await store.close();
      rmSync(dir, { recursive: true });
    },
  };
}

/** What axe-core finds on the page: nothing, one hopes. */
async function faults(page: Page): Promise<readonly string[]> {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const { axe, document } = globalThis as unknown as { document: unknown; axe: { run(what: unknown, options: object): Promise<{ violations: { id: string; nodes: { html: string; failureSummary: string }[] }[] }> } };
    const { violations } = await axe.run(document, { resultTypes: ['violations'] });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join(' | ')}`);
  });
}

/** Nothing is wider than the window. */
const overflow = (page: Page): Promise<number> => page.evaluate(() => {
  const { documentElement: root } = (globalThis as unknown as { document: { documentElement: { scrollWidth: number; clientWidth: number } } }).document;
  return root.scrollWidth - root.clientWidth;
});

t.test('in Chromium', { skip }, async (t) => {
  const world = await openWorld();
  t.teardown(() => world.close());
  const browser: Browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
  t.teardown(() => browser.close());
  const foreign: string[] = [];

  await t.test('a recipient, with JavaScript off', async (t) => {
    const jo = 'jo@example.com';
    for (const purpose of ['newsletter', 'new-books']) await world.give(jo, purpose);
    const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width: 360, height: 740 }, locale: 'en-GB' });
    const page = await context.newPage();
    page.on('request', (request) => void (request.url().startsWith(world.base) || foreign.push(request.url())));
    const submit = async (name: RegExp | string, within = 'main'): Promise<void> => {
      await page.locator(within).getByRole('button', { name }).first().click();
      await page.waitForLoadState();
    };
    const card = 'section[aria-labelledby=purpose-newsletter]';

    await page.goto(world.path('unsubscribe', jo));
    await submit('Unsubscribe');
    t.match(await page.textContent('h1'), /You are unsubscribed/);
    t.equal((await world.facts(jo)).consent?.state, 'withdrawn');
    await page.getByRole('link', { name: /come back/ }).click();
    t.match(await page.textContent(card), /You do not get this mail/);
    await submit('Subscribe again', card);
    t.match(await page.textContent('[role=status]'), /Done: you get “Newsletter”/);
    const back = await world.facts(jo);
    t.match([back.consent?.state, back.consent?.tracking, back.suppressions], ['given', { opens: 'none', clicks: 'none' }, []]);
    t.match((await world.ledger.show('acme', world.ledger.hashes('acme', parseAddress(jo)))).find(({ purpose }) => purpose === 'newsletter'), { method: 'preference-page', evidence: { source: `${world.base}/p/`, formHash: /^[0-9a-f]{64}$/ } });

    const books = 'section[aria-labelledby=purpose-new-books]';
    await page.locator(`${books} summary`).click();
    await page.locator(`${books} input[name=opens][value=none]`).check();
    await page.locator(`${books} input[name=clicks][value=none]`).check();
    await submit('Save', books);
    t.match((await world.ledger.facts('acme', 'new-books', 'new-books', world.ledger.hashes('acme', parseAddress(jo)))).consent?.tracking, { opens: 'none', clicks: 'none' }, 'no tracking any more');

    await page.getByRole('link', { name: 'Italiano' }).click();
    t.equal(await page.getAttribute('html', 'lang'), 'it');
    await submit('Pausa di 30 giorni');
    t.match((await world.facts(jo)).suppressions, [{ cause: 'pause', scope: 'purpose:newsletter' }]);
    t.equal(await page.getAttribute('html', 'lang'), 'it', 'the language stays with the form');
    await submit('Termina ora la pausa');
    t.same((await world.facts(jo)).suppressions, []);
    await page.getByRole('link', { name: 'English' }).click();
    await submit('Unsubscribe from everything above');
    t.equal((await world.facts(jo)).consent?.state, 'withdrawn');
    await submit('Subscribe again', card);

    await page.getByRole('link', { name: 'Delete my data…' }).click();
    t.equal((await world.facts(jo)).consent?.state, 'given', 'a look changes nothing');
    await page.getByRole('link', { name: 'Go back' }).click();
    await page.getByRole('link', { name: 'Delete my data…' }).click();
    await submit('Delete my data for good');
    t.match(await page.textContent('h1'), /You are forgotten/);
    t.match(await world.facts(jo), { consent: undefined, suppressions: [{ cause: 'erasure' }] });

    await world.give('sam@example.com', 'newsletter', 'pending');
    await page.goto(world.path('confirm', 'sam@example.com'));
    await submit('Yes, I want this mail');
    t.match((await world.facts('sam@example.com')).consent, { state: 'given', facts: ['double-opt-in'] });
    t.same(await context.cookies(), []);
    await context.close();
  });

  await t.test('axe-core finds nothing, in any language, light or dark, narrow or wide', async (t) => {
    await world.give('al@example.com', 'newsletter');
    await world.give('bo@example.com', 'newsletter', 'pending');
    await world.ledger.suppress('acme', { hashes: world.ledger.hashes('acme', parseAddress('cy@example.com')), scope: 'all', cause: 'complaint', by: 'test' });
    const shown: readonly (readonly [string, string, boolean])[] = [
      ['preferences', world.path('preferences', 'al@example.com'), true], ['erase', `${world.path('preferences', 'al@example.com')}?step=erase`, true],
      ['stop-measuring', `${world.path('preferences', 'al@example.com')}?step=tracking`, true],
      ['unsubscribe', world.path('unsubscribe', 'al@example.com'), true], ['confirm', world.path('confirm', 'bo@example.com'), true],
      ['broken', `${world.base}/p/broken`, false], ['stopped', world.path('preferences', 'cy@example.com'), false],
      ['erased', world.path('preferences', 'jo@example.com'), false], ['policies', `${world.base}/policy/`, false], ['policy', `${world.base}/policy/${HASH}`, false],
    ];
    const context = await browser.newContext({ bypassCSP: false });
    const page = await context.newPage();
    page.on('request', (request) => void (request.url().startsWith(world.base) || foreign.push(request.url())));
    for (const lang of Object.keys(LANGUAGES)) {
      for (const [name, url, always] of shown) {
        if (!always && lang !== 'en' && lang !== 'hi') continue;
        for (const scheme of lang === 'en' && always ? ['light', 'dark'] as const : lang === 'en' || lang === 'hi' || name === 'preferences' ? ['light'] as const : [] as const) {
          await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
          await page.setViewportSize(scheme === 'light' ? { width: 360, height: 740 } : { width: 1280, height: 860 });
          await page.goto(`${url}${url.includes('?') ? '&' : '?'}lang=${lang}`);
          for (const details of await page.locator('summary').all()) await details.click();
          t.same(await faults(page), [], `${name} ${lang} ${scheme}`);
          t.equal(await overflow(page), 0, `${name} ${lang} ${scheme}: as wide as the window`);
          if (SHOTS !== undefined) await page.screenshot({ path: join(SHOTS, `${name}-${lang}-${scheme}.png`), fullPage: true });
        }
      }
    }
    await page.setViewportSize({ width: 360, height: 740 });
    await page.goto(world.path('preferences', 'al@example.com'));
    await page.evaluate(`document.documentElement.setAttribute('dir', 'rtl')`);
    t.equal(await overflow(page), 0, 'right to left');
    if (SHOTS !== undefined) await page.screenshot({ path: join(SHOTS, 'preferences-rtl.png'), fullPage: true });
    await context.close();
  });
  t.same(foreign, [], 'nothing is asked of anybody else');
});
