// Recipients' pages over real sockets: what is answered, what is recorded, and what is the same for
// everybody. Keys, tokens, ledger and gate are the real ones, on a real store.
import { execFileSync } from 'node:child_process';
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { request as plainRequest, type IncomingHttpHeaders } from 'node:http';
import { request as secureRequest } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TLSSocket } from 'node:tls';
import t from 'tap';
import type { Event } from '../../daemon/events/index.ts';
import { sealToken, type Claim } from '../../daemon/compose/index.ts';
import { openLedger, type Ledger } from '../../daemon/ledger/index.ts';
import { NO_TRACKING, parseAddress, type AddressHashes, type Tracking } from '../../daemon/mail/index.ts';
import { Metrics, newId, openKeyring, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';
import { html, openPages, type Pages, type PagesOptions } from '../../daemon/web/index.ts';

const HASH = 'ab'.repeat(32);
const NOW = 1_800_000_000_000;
const clock: Clock = { now: () => NOW, after: (ms, run) => systemClock.after(ms, run) };
const message = newId(NOW);
const log = { debug() {}, info() {}, warn() {}, error() {} };

const contact = { name: 'Acme <b>& Co', email: 'privacy@acme.example', postal: 'Road 1, Town', url: 'https://acme.example' };
const policy = { version: '1', hash: HASH, text: 'We mail those who said yes. Grüße', effectiveAt: 0, purposes: ['newsletter'], tracking: { opens: 'individual', clicks: 'individual' } };
const stream = { id: 'news', purpose: 'newsletter', class: 'marketing', consentRequired: true };
const acme = { id: 'acme', contact, policies: [policy], domains: [{ pages: 'https://news.acme.example', returnPath: 'bounce.acme.example' }], streams: new Map([['news', stream]]) };

function settingsOf(listeners: Partial<Settings['server']['listeners']>, tls = { certificateFile: '', keyFile: '' }): Settings {
  return { server: { hostname: 'mx.postern.example', tls, listeners: { pages: [{ host: '127.0.0.1', port: 0 }], pagesTls: false, ...listeners } }, tenants: new Map([['acme', acme]]) } as unknown as Settings;
}

interface World {
  readonly pages: Pages;
  readonly events: Event[];
  readonly options: PagesOptions;
  readonly ledger: Ledger;
  readonly hashes: AddressHashes;
  /** A token of the person's, or with other fields. */
  token(fields: Partial<Claim>, tenant?: string): string;
  /** Gives consent with this ceiling. */
  consent(tracking: Tracking): Promise<void>;
  breakStore(): Promise<void>;
}

const ALL: Tracking = { opens: 'individual', clicks: 'individual' };

async function open(test: { teardown(run: () => unknown): void }, settings = settingsOf({})): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-pages-'));
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  keyring.load(['acme', 'left-us', 'other']);
  const store = openLedgerStore(dir);
  let closed: Promise<void> | undefined;
  const breakStore = (): Promise<void> => (closed ??= store.close());
  test.teardown(async () => {
    await breakStore();
    rmSync(dir, { recursive: true });
  });
  const ledger = openLedger({ store, keyring, clock });
  const hashes = ledger.hashes('acme', parseAddress('jo@example.com'));
  const events: Event[] = [];
  const options: PagesOptions = { settings: () => settings, keyring, ledger, clock, log, metrics: new Metrics(), record: (event) => events.push(event) };
  const pages = await openPages(options);
  test.teardown(() => pages.close());
  const world: World = {
    pages, events, options, ledger, hashes, breakStore,
    token: (fields, tenant = 'acme') => sealToken(keyring.tenant(tenant), { kind: 'click', message, recipient: 3, stream: 'news', purpose: 'newsletter', hashes, ...fields }),
    async consent(tracking) {
      await ledger.give('acme', { hashes, purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: HASH, method: 'form', by: 'test', evidence: { source: 'form', time: NOW }, tracking });
    },
  };
  await world.consent(ALL);
  return world;
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
  /** All headers but Date, as sent. */
  raw: string;
  /** Common name of the server's certificate, '' without TLS. */
  certificate: string;
}

function ask(world: World, method: string, path: string, body = '', headers: Record<string, string> = {}, secure = false): Promise<Answer> {
  const port = world.pages.addresses[0]?.port;
  return new Promise((done, fail) => {
    const options = { host: '127.0.0.1', port, method, path, headers, agent: false as const, rejectUnauthorized: false };
    const call = (secure ? secureRequest : plainRequest)(options, (response) => {
      const parts: Buffer[] = [];
      const { socket } = response;
      const certificate = socket instanceof TLSSocket ? String(socket.getPeerCertificate().subject.CN) : '';
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () => {
        const raw = response.rawHeaders.filter((_, i, all) => all[i - (i % 2)] !== 'Date').join('|');
        done({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(parts), raw, certificate });
      });
    });
    call.on('error', fail);
    call.end(body);
  });
}

const URLENCODED = { 'Content-Type': 'application/x-www-form-urlencoded' };
const MULTIPART = { 'Content-Type': 'multipart/form-data; boundary=xx' };
const ONE_CLICK = 'List-Unsubscribe=One-Click';
const ONE_CLICK_PARTS = '--xx\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--xx--\r\n';
const PERSON = { 'User-Agent': 'Mozilla/5.0 (X11; Linux x86_64)' };

const TARGET = 'https://shop.example/a?b=1&c=%20d#ü';

t.test('a click leads to its target byte for byte and is recorded', async (t) => {
  const world = await open(t);
  const path = `/c/${world.token({ target: TARGET })}`;
  const answer = await ask(world, 'GET', `${path}?utm_source=x`, '', PERSON);
  t.equal(answer.status, 302);
  t.equal(Buffer.from(String(answer.headers.location), 'latin1').toString(), TARGET);
  t.equal(answer.headers['referrer-policy'], 'no-referrer');
  t.equal(answer.headers['cache-control'], 'no-store');
  t.notOk(answer.headers['set-cookie']);
  await world.pages.settled();
  t.match(world.events, [{ event: 'clicked', tenant: 'acme', stream: 'news', message_id: message, recipient: 3, person: world.hashes.consent.toString('hex').slice(0, 12), class: 'person' }]);
  t.notMatch(JSON.stringify(world.events), /shop|127\.0|Mozilla/, 'no URL, address or user agent');
  await ask(world, 'GET', path, '', { ...PERSON, 'Sec-Purpose': 'prefetch' });
  await world.pages.settled();
  t.equal(world.events[1]?.class, 'prefetch');
  const head = await ask(world, 'HEAD', path, '', PERSON);
  await world.pages.settled();
  t.equal(head.status, 302);
  t.equal(world.events[2]?.class, 'head-request');
});

t.test('a person who withdrew is redirected and not recorded; so is everybody when it cannot be told', async (t) => {
  for (const state of ['no ceiling', 'withdrawn', 'stream gone', 'store down']) {
    const world = await open(t);
    if (state === 'no ceiling') await world.consent({ opens: 'none', clicks: 'none' });
    if (state === 'withdrawn') await world.ledger.withdraw('acme', 'newsletter', world.hashes, 'test');
    if (state === 'store down') await world.breakStore();
    const which = state === 'stream gone' ? { stream: 'old' } : {};
    t.equal((await ask(world, 'GET', `/c/${world.token({ target: TARGET, ...which })}`, '', PERSON)).status, 302, state);
    t.equal((await ask(world, 'GET', `/o/${world.token({ kind: 'open', mode: 'individual', ...which })}.gif`, '', PERSON)).status, 200, state);
    await world.pages.settled();
    t.same(world.events, [], state);
  }
});

t.test('a form\'s fields go where they were meant to go, and nowhere else', async (t) => {
  const world = await open(t);
  const goal = 'https://shop.example/search?old=1#ü';
  const path = `/f/${world.token({ kind: 'form', target: goal })}`;
  const location = async (method: string, query: string, body = ''): Promise<string> => {
    const answer = await ask(world, method, `${path}${query}`, body, { ...PERSON, ...(body === '' ? {} : URLENCODED) });
    t.equal(answer.status, method === 'POST' ? 307 : 302);
    t.equal(answer.headers['referrer-policy'], 'no-referrer');
    return Buffer.from(String(answer.headers.location), 'latin1').toString();
  };
  t.equal(await location('GET', '?q=maps&p=2'), 'https://shop.example/search?q=maps&p=2#ü', 'GET: the fields take the place of the query');
  t.equal(await location('GET', '?'), 'https://shop.example/search?#ü');
  t.equal(await location('GET', ''), goal);
  t.equal(await location('POST', '', 'secret=1'), goal, 'POST: sent again to the target by the browser, never read here');
  t.equal(await location('POST', '?x=y', 'secret=1'), goal);
  for (const sly of ['?@evil.example/', '?//evil.example', '?https://evil.example', '?%0d%0aSet-Cookie:a=b', `?${'x'.repeat(7_000)}`]) t.equal(new URL(await location('GET', sly)).host, 'shop.example', sly.slice(0, 20));
  await world.pages.settled();
  t.ok(world.events.length > 5 && world.events.every(({ event }) => event === 'clicked'));
  t.notMatch(JSON.stringify(world.events), /maps|secret|evil|shop/);
  const nowhere = await ask(world, 'GET', '/nowhere');
  for (const other of [`/f/${world.token({ target: TARGET })}`, path.replace('/f/', '/c/'), '/f/forged', `/f/${world.token({ kind: 'form', target: 'javascript:x' })}`]) t.equal((await ask(world, 'GET', other)).raw, nowhere.raw, 'a token is for its own place');
});

t.test('replayed, cut and glued: a token says what it said, or nothing', async (t) => {
  const world = await open(t);
  const token = world.token({ target: TARGET });
  const [once, again] = [await ask(world, 'GET', `/c/${token}`, '', PERSON), await ask(world, 'GET', `/c/${token}`, '', PERSON)];
  t.equal(once.raw, again.raw, 'a link may be followed twice');
  const nowhere = await ask(world, 'GET', '/nowhere');
  const unlike = [...Array(20).keys()].map((cut) => token.slice(0, token.length - 1 - cut * 3)).concat(`${token}${token}`, token.replace(/^./, 'B'), [...token].toReversed().join(''), token.toLowerCase());
  for (const one of unlike) t.equal((await ask(world, 'GET', `/c/${one}`)).raw, nowhere.raw);
  const part = await ask(world, 'GET', `/o/${world.token({ kind: 'open', mode: 'individual' })}.gif`, '', { ...PERSON, Range: 'bytes=0-9' });
  t.match([part.status, part.body.length, part.headers['content-range'], part.headers['accept-ranges']], [200, 43, undefined, undefined], 'a range request gets the whole');
  for (const method of ['PUT', 'PATCH', 'OPTIONS', 'TRACE']) t.equal((await ask(world, method, `/c/${token}`)).status, 404, method);
});

t.test('what is not a click of ours is one constant 404', async (t) => {
  const world = await open(t);
  const expected = await ask(world, 'GET', '/nowhere');
  t.equal(expected.status, 404);
  const valid = world.token({ target: TARGET });
  const tokens = [`${valid.slice(0, -6)}AAAAAA`, 'forged', world.token({ kind: 'open', mode: 'individual' }), world.token({ target: 'javascript:alert(1)' }), world.token({ target: 'https://a.example/\r\nSet-Cookie: a=b' })];
  for (const path of [...tokens.map((token) => `/c/${token}`), '/c/', '/', '/policy/00', '/c/a/b', '/constructor/x', '/c/__proto__', '//evil.example/%2e%2e']) {
    const answer = await ask(world, 'GET', path);
    t.equal(`${answer.status} ${answer.raw} ${answer.body}`, `404 ${expected.raw} ${expected.body}`, path.slice(0, 30));
  }
  t.equal((await ask(world, 'DELETE', `/c/${valid}`)).status, 404);
});

t.test('the pixel is the same for everybody', async (t) => {
  const world = await open(t);
  const token = world.token({ kind: 'open', mode: 'individual' });
  const valid = await ask(world, 'GET', `/o/${token}.gif`, '', PERSON);
  t.equal(valid.body.length, 43);
  t.equal(valid.headers['content-type'], 'image/gif');
  for (const header of ['set-cookie', 'etag', 'last-modified', 'location']) t.notOk(valid.headers[header], header);
  const foreign = world.token({ kind: 'open', mode: 'individual' }, 'other');
  for (const other of [token, 'forged.gif', `${world.token({ target: TARGET })}.gif`, foreign]) {
    const answer = await ask(world, 'GET', `/o/${other}`, '', PERSON);
    t.equal(answer.raw, valid.raw);
    t.ok(answer.body.equals(valid.body));
  }
  await world.pages.settled();
  t.equal(world.events.length, 2, 'only the two valid ones are recorded');
  const head = await ask(world, 'HEAD', `/o/${token}.gif`);
  t.equal(head.raw, valid.raw);
  t.equal(head.body.length, 0);
});

t.test('one-click unsubscribing', async (t) => {
  const world = await open(t);
  const token = world.token({ kind: 'unsubscribe' });
  const first = await ask(world, 'POST', `/u/${token}`, ONE_CLICK, URLENCODED);
  t.equal(first.status, 200);
  t.equal(first.body.length, 0);
  t.notOk(first.headers['set-cookie']);
  const facts = await world.ledger.facts('acme', 'newsletter', 'news', world.hashes);
  t.equal(facts.consent?.state, 'withdrawn');
  t.match(facts.suppressions, [{ scope: 'purpose:newsletter', cause: 'unsubscribe', by: 'recipient' }]);
  t.same((await world.ledger.facts('other', 'newsletter', 'news', world.hashes)).suppressions, [], 'nobody else learns of it');
  for (const [name, body, type] of [
    [token, ONE_CLICK, URLENCODED], [token, ONE_CLICK_PARTS, MULTIPART], ['forged', ONE_CLICK, URLENCODED], ['forged', ONE_CLICK_PARTS, MULTIPART],
    [world.token({ target: TARGET }), ONE_CLICK, URLENCODED], [world.token({ kind: 'unsubscribe' }, 'left-us'), ONE_CLICK, URLENCODED],
  ] as const) {
    const answer = await ask(world, 'POST', `/u/${name}`, body, type);
    t.equal(`${answer.status} ${answer.raw} ${answer.body}`, `200 ${first.raw} `, `${name.slice(0, 8)} ${type['Content-Type']}`);
  }
  t.equal((await world.ledger.facts('acme', 'newsletter', 'news', world.hashes)).suppressions.length, 1, 'repeating adds nothing');
  t.equal((await world.ledger.facts('left-us', 'newsletter', 'news', world.hashes)).suppressions.length, 1, 'also for a tenant that has left');
  t.match(world.events[0], { event: 'unsubscribed', tenant: 'acme', message_id: message, by: 'recipient' });
});

t.test('T36: sixty days after its tenant was suspended a link still unsubscribes', async (t) => {
  const { options, ledger, hashes, token, events } = await open(t);
  await ledger.suspend('acme', 'test', 'test');
  const later = await openPages({ ...options, clock: { ...clock, now: () => NOW + 61 * 86_400_000 } });
  t.teardown(() => later.close());
  const world = { pages: later } as World;
  t.match(await ask(world, 'POST', `/u/${token({ kind: 'unsubscribe' })}`, ONE_CLICK, URLENCODED), { status: 200 });
  t.match(await ledger.facts('acme', 'newsletter', 'news', hashes), { suspension: Object, suppressions: [{ cause: 'unsubscribe', scope: 'purpose:newsletter' }] });
  t.match(events, [{ event: 'unsubscribed' }]);
  for (const [kind, path] of [['unsubscribe', 'u'], ['preferences', 'p']] as const) t.match(await ask(world, 'GET', `/${path}/${token({ kind })}`), { status: 200 }, `the page /${path}/`);
});

t.test('what is not a request to unsubscribe changes nothing', async (t) => {
  const world = await open(t);
  const token = world.token({ kind: 'unsubscribe' });
  for (let i = 0; i < 20; i++) await ask(world, i % 2 === 0 ? 'GET' : 'HEAD', `/u/${token}?List-Unsubscribe=One-Click`, '', PERSON);
  for (const name of [token, 'forged']) {
    t.equal((await ask(world, 'POST', `/u/${name}`, 'x=y', URLENCODED)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${name}`, '', URLENCODED)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${name}`, ONE_CLICK, { 'Content-Type': 'text/plain' })).status, 400);
    t.equal((await ask(world, 'POST', `/u/${name}`, '--yy\r\n', MULTIPART)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${name}`, `${ONE_CLICK}&pad=${'x'.repeat(5_000)}`, URLENCODED)).status, 413);
  }
  const facts = await world.ledger.facts('acme', 'newsletter', 'news', world.hashes);
  t.match([facts.consent?.state, facts.suppressions.length], ['given', 0]);
  await world.breakStore();
  const failed = await ask(world, 'POST', `/u/${token}`, ONE_CLICK, URLENCODED);
  t.equal(failed.status, 503, 'never a 200 that is not durable');
  t.ok(failed.headers['retry-after']);
  t.same(world.events, []);
});

t.test('the page a person sees', async (t) => {
  const world = await open(t);
  const path = `/u/${world.token({ kind: 'unsubscribe' })}`;
  const shown = await ask(world, 'GET', path, '', PERSON);
  const text = shown.body.toString();
  t.equal(shown.status, 200);
  t.match(text, /Unsubscribe from Acme &lt;b&gt;&amp; Co/);
  t.match(text, /<form method="post"><input type="hidden" name="confirm" value="yes"><div class="row"><button/);
  t.notMatch(text, /<script|<b>|https?:/);
  t.match(shown.headers['content-security-policy'], /default-src 'none'; style-src 'sha256-/);
  const done = await ask(world, 'POST', path, 'confirm=yes', URLENCODED);
  t.equal(done.status, 200);
  t.match(done.body.toString(), /You are unsubscribed/);
  t.equal((await world.ledger.facts('acme', 'newsletter', 'news', world.hashes)).consent?.state, 'withdrawn');
  for (const [method, body] of [['GET', ''], ['POST', 'confirm=yes']] as const) {
    const broken = await ask(world, method, '/u/forged', body, body === '' ? {} : URLENCODED);
    t.equal(broken.status, 404);
    t.match(broken.body.toString(), /Nothing was changed/);
  }
  t.match((await ask(world, 'GET', `/u/${world.token({ kind: 'unsubscribe' }, 'left-us')}`)).body.toString(), /the sender/);
  t.equal(html`<a href="${'"><script>'}">${html`<b>${1}</b>`}</a>`.toString(), '<a href="&quot;&gt;&lt;script&gt;"><b>1</b></a>');
});

t.test('stop measuring, keep the mail: one question, of who can answer it', async (t) => {
  const world = await open(t);
  const path = `/p/${world.token({ kind: 'preferences' })}?step=tracking`;
  const tracking = async (): Promise<unknown> => (await world.ledger.facts('acme', 'newsletter', 'news', world.hashes)).consent?.tracking;
  const shown = (await ask(world, 'GET', path)).body.toString();
  t.match(shown, /<h1>Stop measuring, keep the mail<\/h1>/);
  t.equal(shown.match(/<button/g)?.length, 1);
  for (const lang of ['fr', 'de', 'it', 'hi']) t.match((await ask(world, 'GET', `${path}&lang=${lang}`)).body.toString(), new RegExp(`<html lang="${lang}"[^]*step=tracking&amp;lang=en`), lang);
  t.same(await tracking(), ALL, 'a look changes nothing');
  const done = await ask(world, 'POST', path, 'change=tracking&purpose=newsletter&opens=none&clicks=none', URLENCODED);
  t.match([done.status, done.body.toString()], [200, /role="status">Done[^]*Nothing is measured in/]);
  t.same(await tracking(), NO_TRACKING);
  t.notMatch((await ask(world, 'GET', path)).body.toString(), /<button/, 'nothing left to stop');
  await world.ledger.withdraw('acme', 'newsletter', world.hashes, 'recipient');
  t.match((await ask(world, 'GET', path)).body.toString(), /You do not get this mail/, 'who gets no mail sees how things stand');
});

t.test('documents', async (t) => {
  const world = await open(t);
  const policy = await ask(world, 'GET', `/policy/${HASH}`);
  t.match([policy.status, policy.headers['content-type'], policy.body.toString()], [200, 'text/plain; charset=utf-8', 'We mail those who said yes. Grüße']);
  const security = await ask(world, 'GET', '/.well-known/security.txt');
  t.match(security.body.toString(), /^Contact: mailto:postmaster@mx\.postern\.example\nExpires: \d{4}-.*Z\n/);
  t.match((await ask(world, 'GET', '/.well-known/security.txt', '', { Host: 'NEWS.acme.example' })).body.toString(), /privacy@acme\.example/);
  t.match((await ask(world, 'GET', '/.well-known/mta-sts.txt', '', { Host: 'mta-sts.bounce.acme.example' })).body.toString(), /^version: STSv1\r\nmode: enforce\r\nmx: mx\.postern\.example\r\n/, 'who sends us bounces');
  t.equal((await ask(world, 'GET', '/.well-known/mta-sts.txt', '', { Host: 'mta-sts.evil.example' })).status, 404);
});

t.test('listeners: a taken port is named, TLS is served and renewed', async (t) => {
  const world = await open(t);
  const taken = settingsOf({ pages: [{ host: '127.0.0.1', port: 0 }, { host: '127.0.0.1', port: world.pages.addresses[0]?.port ?? 0 }] });
  await t.rejects(openPages({ ...world.options, settings: () => taken }), { code: 'E_IN_USE', message: /listeners\.pages/ });
  await t.rejects(open(t, settingsOf({ pagesTls: true }, { certificateFile: '/nonexistent', keyFile: '/nonexistent' })), { code: 'E_KEY_UNREADABLE' });
  const dir = mkdtempSync(join(tmpdir(), 'postern-pages-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const tls = { certificateFile: join(dir, 'cert.pem'), keyFile: join(dir, 'key.pem') };
  try {
    makeCertificate(tls, 'one.example');
  } catch (error) {
    t.comment(`openssl is not here: ${String(error)}`);
    t.pass('TLS pages', { skip: 'needs openssl' });
    return;
  }
  const secure = await open(t, settingsOf({ pagesTls: true }, tls));
  t.match(await ask(secure, 'GET', '/o/x.gif', '', {}, true), { status: 200, certificate: 'one.example' });
  makeCertificate(tls, 'two.example');
  secure.pages.renewTls();
  t.match(await ask(secure, 'GET', '/o/x.gif', '', {}, true), { status: 200, certificate: 'two.example' });
  rmSync(tls.certificateFile);
  t.throws(() => secure.pages.renewTls(), { code: 'E_KEY_UNREADABLE' });
  t.match(await ask(secure, 'GET', '/o/x.gif', '', {}, true), { status: 200, certificate: 'two.example' }, 'the old pair stays');
});

function makeCertificate(tls: { certificateFile: string; keyFile: string }, name: string): void {
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', `/CN=${name}`, '-keyout', tls.keyFile, '-out', tls.certificateFile], { stdio: 'pipe' });
}
