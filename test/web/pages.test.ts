// Recipients' pages over real sockets: what is answered, what is recorded, and what is the same for
// everybody. Tokens, ledger and gate are stand-ins for other rooms' interfaces; test/flow has the real ones.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { request as plainRequest, type IncomingHttpHeaders } from 'node:http';
import { request as secureRequest } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Event } from '../../daemon/events/index.ts';
import type { Tracking } from '../../daemon/mail/index.ts';
import { Metrics, newId, systemClock } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';
import { html, openPages, type Pages, type PagesOptions, type Touch } from '../../daemon/web/index.ts';

const HASH = 'ab'.repeat(32);
const hashes = { consent: Buffer.alloc(16, 1), suppression: Buffer.alloc(16, 2), family: Buffer.alloc(16, 3) };
const message = newId(1_800_000_000_000);
const log = { debug() {}, info() {}, warn() {}, error() {} };

function claim(fields: Partial<Touch['claim']>): Touch {
  return { tenant: 'acme', claim: { kind: 'click', message, recipient: 3, stream: 'news', purpose: 'newsletter', hashes, ...fields } };
}

const TOUCHES: Readonly<Record<string, Touch>> = {
  click: claim({ target: 'https://shop.example/a?b=1&c=%20d#ü' }),
  script: claim({ target: 'javascript:alert(1)' }),
  split: claim({ target: 'https://shop.example/\r\nSet-Cookie: a=b' }),
  open: claim({ kind: 'open', mode: 'individual' }),
  lesser: claim({ kind: 'open', mode: 'aggregate' }),
  bye: claim({ kind: 'unsubscribe' }),
  gone: { ...claim({ kind: 'unsubscribe' }), tenant: 'left-us' },
};

function settingsOf(listeners: Partial<Settings['server']['listeners']>, tls = { certificateFile: '', keyFile: '' }): Settings {
  const contact = { name: 'Acme <b>& Co', email: 'privacy@acme.example', postal: 'Road 1, Town', url: 'https://acme.example' };
  const acme = { id: 'acme', contact, policies: [{ hash: HASH, text: 'We mail those who said yes. Grüße' }], domains: [{ pages: 'https://news.acme.example' }] };
  return { server: { hostname: 'mx.postern.example', tls, listeners: { pages: [{ host: '127.0.0.1', port: 0 }], pagesTls: false, ...listeners } }, tenants: new Map([['acme', acme]]) } as unknown as Settings;
}

interface World {
  pages: Pages;
  events: Event[];
  withdrawn: string[];
  tracking: Tracking | undefined;
  broken: boolean;
  options: PagesOptions;
}

async function open(test: { teardown(run: () => unknown): void }, settings = settingsOf({})): Promise<World> {
  const world = { events: [] as Event[], withdrawn: [] as string[], tracking: { opens: 'individual', clicks: 'individual' } as Tracking | undefined, broken: false };
  const options: PagesOptions = {
    settings: () => settings,
    readToken: (text) => (Object.hasOwn(TOUCHES, text) ? TOUCHES[text] : undefined),
    mayTrack: async () => {
      if (world.broken) throw new Error('store down');
      return world.tracking;
    },
    unsubscribe: async (touch) => {
      if (world.broken) throw new Error('store down');
      world.withdrawn.push(`${touch.tenant}/${touch.claim.purpose}`);
    },
    clock: systemClock, log, metrics: new Metrics(), record: (event) => world.events.push(event),
  };
  const pages = await openPages(options);
  test.teardown(() => pages.close());
  return Object.assign(world, { pages, options });
}

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
  /** All headers but Date, as sent. */
  raw: string;
}

function ask(world: World, method: string, path: string, body = '', headers: Record<string, string> = {}, secure = false): Promise<Answer> {
  const port = world.pages.addresses[0]?.port;
  return new Promise((done, fail) => {
    const options = { host: '127.0.0.1', port, method, path, headers, agent: false as const, rejectUnauthorized: false };
    const call = (secure ? secureRequest : plainRequest)(options, (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () => {
        const raw = response.rawHeaders.filter((_, i, all) => all[i - (i % 2)] !== 'Date').join('|');
        done({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(parts), raw });
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

t.test('a click leads to its target byte for byte and is recorded', async (t) => {
  const world = await open(t);
  const answer = await ask(world, 'GET', '/c/click?utm_source=x', '', PERSON);
  t.equal(answer.status, 302);
  t.equal(Buffer.from(String(answer.headers.location), 'latin1').toString(), 'https://shop.example/a?b=1&c=%20d#ü');
  t.equal(answer.headers['referrer-policy'], 'no-referrer');
  t.equal(answer.headers['cache-control'], 'no-store');
  t.notOk(answer.headers['set-cookie']);
  await world.pages.settled();
  t.match(world.events, [{ event: 'clicked', tenant: 'acme', stream: 'news', message_id: message, recipient: 3, person: '010101010101', class: 'person' }]);
  t.notMatch(JSON.stringify(world.events), /shop|127\.0|Mozilla/, 'no URL, address or user agent');
  await ask(world, 'GET', '/c/click', '', { ...PERSON, 'Sec-Purpose': 'prefetch' });
  await world.pages.settled();
  t.equal(world.events[1]?.class, 'machine');
  const head = await ask(world, 'HEAD', '/c/click', '', PERSON);
  await world.pages.settled();
  t.equal(head.status, 302);
  t.equal(world.events.length, 2, 'HEAD records nothing');
});

t.test('a person who withdrew is redirected and not recorded; so is everybody when it cannot be told', async (t) => {
  const world = await open(t);
  for (const state of ['withdrawn', 'none', 'broken']) {
    world.tracking = state === 'withdrawn' ? undefined : { opens: 'none', clicks: 'none' };
    world.broken = state === 'broken';
    t.equal((await ask(world, 'GET', '/c/click', '', PERSON)).status, 302, state);
    t.equal((await ask(world, 'GET', '/o/open.gif', '', PERSON)).status, 200, state);
    await world.pages.settled();
    t.same(world.events, [], state);
  }
});

t.test('what is not a click of ours is one constant 404', async (t) => {
  const world = await open(t);
  const expected = await ask(world, 'GET', '/nowhere');
  t.equal(expected.status, 404);
  for (const path of ['/c/forged', '/c/open', '/c/script', '/c/split', '/c/', '/', '/policy/00', '/c/a/b', '/constructor/x', '/c/__proto__', '//evil.example/%2e%2e']) {
    const answer = await ask(world, 'GET', path);
    t.equal(`${answer.status} ${answer.raw} ${answer.body}`, `404 ${expected.raw} ${expected.body}`, path);
  }
  t.equal((await ask(world, 'DELETE', '/c/click')).status, 404);
});

t.test('the pixel is the same for everybody', async (t) => {
  const world = await open(t);
  const valid = await ask(world, 'GET', '/o/open.gif', '', PERSON);
  t.equal(valid.body.length, 43);
  t.equal(valid.headers['content-type'], 'image/gif');
  for (const header of ['set-cookie', 'etag', 'last-modified', 'location']) t.notOk(valid.headers[header], header);
  for (const path of ['/o/open', '/o/forged.gif', '/o/click.gif', '/o/bye', '/o/x']) {
    const other = await ask(world, 'GET', path, '', PERSON);
    t.equal(other.raw, valid.raw, path);
    t.ok(other.body.equals(valid.body), path);
  }
  await world.pages.settled();
  t.equal(world.events.length, 2, 'only the two valid ones are recorded');
  const head = await ask(world, 'HEAD', '/o/open.gif');
  t.equal(head.raw, valid.raw);
  t.equal(head.body.length, 0);
});

t.test('a ceiling below individual leaves nothing of the person, the message or the hour', async (t) => {
  const world = await open(t);
  for (const opens of ['aggregate', 'lastOpenDate'] as const) {
    world.tracking = { opens, clicks: 'none' };
    await ask(world, 'GET', '/o/open.gif', '', PERSON);
  }
  world.tracking = { opens: 'individual', clicks: 'none' };
  await ask(world, 'GET', '/o/lesser.gif', '', PERSON);
  await world.pages.settled();
  t.equal(world.events.length, 3);
  for (const event of world.events) {
    t.same(Object.keys(event).sort(), ['at', 'class', 'event', 'id', 'stream', 'tenant']);
    t.equal(event.at % 86_400_000, 0, 'a day, not a time');
    t.equal(event.id.slice(0, 10), newId(event.at).slice(0, 10), 'the id tells no more than the day');
  }
});

t.test('one-click unsubscribing', async (t) => {
  const world = await open(t);
  const first = await ask(world, 'POST', '/u/bye', ONE_CLICK, URLENCODED);
  t.equal(first.status, 200);
  t.equal(first.body.length, 0);
  t.notOk(first.headers['set-cookie']);
  for (const [path, body, type] of [
    ['/u/bye', ONE_CLICK, URLENCODED], ['/u/bye', ONE_CLICK_PARTS, MULTIPART], ['/u/forged', ONE_CLICK, URLENCODED],
    ['/u/forged', ONE_CLICK_PARTS, MULTIPART], ['/u/click', ONE_CLICK, URLENCODED], ['/u/gone', ONE_CLICK, URLENCODED],
  ] as const) {
    const answer = await ask(world, 'POST', path, body, type);
    t.equal(`${answer.status} ${answer.raw} ${answer.body}`, `200 ${first.raw} `, `${path} ${type['Content-Type']}`);
  }
  t.same(world.withdrawn, ['acme/newsletter', 'acme/newsletter', 'acme/newsletter', 'left-us/newsletter']);
  t.match(world.events[0], { event: 'unsubscribed', tenant: 'acme', message_id: message, by: 'recipient' });
});

t.test('what is not a request to unsubscribe changes nothing', async (t) => {
  const world = await open(t);
  for (let i = 0; i < 20; i++) await ask(world, i % 2 === 0 ? 'GET' : 'HEAD', '/u/bye?List-Unsubscribe=One-Click', '', PERSON);
  for (const token of ['bye', 'forged']) {
    t.equal((await ask(world, 'POST', `/u/${token}`, 'x=y', URLENCODED)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${token}`, '', URLENCODED)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${token}`, ONE_CLICK, { 'Content-Type': 'text/plain' })).status, 400);
    t.equal((await ask(world, 'POST', `/u/${token}`, '--yy\r\n', MULTIPART)).status, 400);
    t.equal((await ask(world, 'POST', `/u/${token}`, `${ONE_CLICK}&pad=${'x'.repeat(5_000)}`, URLENCODED)).status, 413);
  }
  t.same(world.withdrawn, []);
  world.broken = true;
  const failed = await ask(world, 'POST', '/u/bye', ONE_CLICK, URLENCODED);
  t.equal(failed.status, 503, 'never a 200 that is not durable');
  t.ok(failed.headers['retry-after']);
  t.same(world.events, []);
});

t.test('the page a person sees', async (t) => {
  const world = await open(t);
  const shown = await ask(world, 'GET', '/u/bye', '', PERSON);
  const text = shown.body.toString();
  t.equal(shown.status, 200);
  t.match(text, /Unsubscribe from Acme &lt;b&gt;&amp; Co/);
  t.match(text, /<form method="post"><input type="hidden" name="confirm" value="yes"><button/);
  t.notMatch(text, /<script|<b>|https?:/);
  t.match(shown.headers['content-security-policy'], /default-src 'none'; style-src 'sha256-/);
  t.same(world.withdrawn, []);
  const done = await ask(world, 'POST', '/u/bye', 'confirm=yes', URLENCODED);
  t.equal(done.status, 200);
  t.match(done.body.toString(), /You are unsubscribed/);
  t.same(world.withdrawn, ['acme/newsletter']);
  for (const [method, body] of [['GET', ''], ['POST', 'confirm=yes']] as const) {
    const broken = await ask(world, method, '/u/forged', body, body === '' ? {} : URLENCODED);
    t.equal(broken.status, 404);
    t.match(broken.body.toString(), /Nothing was changed/);
  }
  t.match((await ask(world, 'GET', '/u/gone')).body.toString(), /the sender/);
  t.equal(html`<a href="${'"><script>'}">${html`<b>${1}</b>`}</a>`.toString(), '<a href="&quot;&gt;&lt;script&gt;"><b>1</b></a>');
});

t.test('documents', async (t) => {
  const world = await open(t);
  const policy = await ask(world, 'GET', `/policy/${HASH}`);
  t.match([policy.status, policy.headers['content-type'], policy.body.toString()], [200, 'text/plain; charset=utf-8', 'We mail those who said yes. Grüße']);
  const security = await ask(world, 'GET', '/.well-known/security.txt');
  t.match(security.body.toString(), /^Contact: mailto:postmaster@mx\.postern\.example\nExpires: \d{4}-.*Z\n/);
  t.match((await ask(world, 'GET', '/.well-known/security.txt', '', { Host: 'NEWS.acme.example' })).body.toString(), /privacy@acme\.example/);
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
  t.equal((await ask(secure, 'GET', '/o/x.gif', '', {}, true)).status, 200);
  makeCertificate(tls, 'two.example');
  secure.pages.renewTls();
  t.equal((await ask(secure, 'GET', '/o/x.gif', '', {}, true)).status, 200);
});

function makeCertificate(tls: { certificateFile: string; keyFile: string }, name: string): void {
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', `/CN=${name}`, '-keyout', tls.keyFile, '-out', tls.certificateFile], { stdio: 'pipe' });
}
