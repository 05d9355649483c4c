// The tenants' HTTP API over real TLS sockets: who is let in, what is refused and how, what is recorded,
// and that one tenant finds nothing of another. Ledger, gate and store are the real ones. Every answer is
// held against the shape the OpenAPI document promises.
import { execFile } from 'node:child_process';
import { createHash, createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { request as plainRequest } from 'node:http';
import { Agent, request as secureRequest, type RequestOptions } from 'node:https';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { connect } from 'node:tls';
import { promisify } from 'node:util';
import { generate } from 'selfsigned';
import t from 'tap';
import { openApi } from '../../daemon/admin/index.ts';
import { API_ROUTES, REQUESTS_PER_MINUTE } from '../../daemon/admin/api/server.ts';
import type { Event } from '../../daemon/events/index.ts';
import { openLedger, type Ledger } from '../../daemon/ledger/index.ts';
import { Metrics, openKeyring, systemClock, type Clock } from '../../daemon/runtime/index.ts';
import { API_SCOPES, type Settings } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const START = Date.parse('2026-06-01T12:00:00Z');
const AUTH_FAILURES = 5;
const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest();
const JO = 'jo@example.com';

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  // Tests look into whatever came.
  readonly json: ReturnType<typeof JSON.parse>;
}

interface World {
  readonly port: number;
  readonly cert: string;
  readonly certificateFile: string;
  readonly ledger: Ledger;
  readonly events: Event[];
  readonly lines: string[];
  readonly metrics: Metrics;
  /** Tokens by name: `acme`, `bravo` hold every scope, `acme-none` none, `acme/SCOPE` just that one. */
  token(name: string): string;
  pass(ms: number): void;
  breakStore(): Promise<void>;
  ask(method: string, path: string, body?: unknown, more?: { readonly token?: string; readonly headers?: Record<string, string>; readonly from?: string }): Promise<Answer>;
  renew(): void;
}

const policy = (id: string, version: string, effectiveAt: number): object => ({ version, hash: sha256(`${id} ${version}`).toString('hex'), text: 'We mail those who said yes.', effectiveAt, purposes: ['newsletter', 'offers'], tracking: { opens: 'individual', clicks: 'individual' } });
const stream = (id: string, purpose: string): [string, object] => [id, { id, purpose, class: 'marketing', consentRequired: true, legalBasis: 'gdpr_6_1_a' }];
const profile = { id: 'eu', tlds: [], bases: ['gdpr_6_1_a'], basisFacts: {}, basisExpiresMs: {}, tracking: { opens: 'individual', clicks: 'individual' }, trackingApart: { opens: 'individual', clicks: 'individual' }, headers: [], footer: [], reaskMs: 0, unsubscribeForMs: 0 };

function tenantOf(id: string, secrets: Map<string, string>): object {
  const token = (name: string, key: string, scopes: readonly string[]): object => {
    secrets.set(key, randomBytes(24).toString('base64url'));
    return { id: name, tenant: id, secretHash: sha256(secrets.get(key) ?? ''), scopes };
  };
  return {
    id, contact: { name: id, email: `privacy@${id}.example`, postal: '', url: '' }, policies: [policy(id, '1', 0), policy(id, '2', START + 86_400_000)],
    domains: [], streams: new Map([stream('news', 'newsletter'), stream(`${id}-offers`, 'offers')]), credentials: [], softRefuse: false, keepEvidenceMs: 0,
    apiTokens: [token('app', id, API_SCOPES), token('none', `${id}-none`, []), ...API_SCOPES.map((scope) => token(scope.replace(':', '-'), `${id}/${scope}`, [scope]))],
  };
}

async function open(test: { teardown(run: () => unknown): void }): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-api-'));
  const tls = { certificateFile: join(dir, 'tls.crt'), keyFile: join(dir, 'tls.key') };
  const write = async (): Promise<string> => {
    const pems = await generate([{ name: 'commonName', value: 'localhost' }], { keyType: 'ec', curve: 'P-256', extensions: [{ name: 'subjectAltName', altNames: [{ type: 2, value: 'localhost' }, { type: 7, ip: '127.0.0.1' }] }] });
    writeFileSync(tls.certificateFile, pems.cert);
    writeFileSync(tls.keyFile, pems.private);
    return pems.cert;
  };
  const cert = await write();
  const secrets = new Map<string, string>();
  const settings = {
    server: { hostname: 'mx.postern.example', tls, limits: { authFailures: AUTH_FAILURES }, listeners: { api: [{ host: '127.0.0.1', port: 0 }] } },
    tenants: new Map(['acme', 'bravo'].map((id) => [id, tenantOf(id, secrets)])), profiles: new Map([['eu', profile]]), strictest: { ...profile, id: 'strictest' },
  } as unknown as Settings;
  let now = START;
  const clock: Clock = { now: () => now, after: (ms, run) => systemClock.after(ms, run) };
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  keyring.load(['acme', 'bravo']);
  const store = openLedgerStore(dir);
  const ledger = openLedger({ store, keyring, clock, hostname: 'mx.postern.example' });
  const events: Event[] = [];
  const lines: string[] = [];
  const say = (fields: object, text: string): void => void lines.push(JSON.stringify({ ...fields, text }));
  const metrics = new Metrics();
  const api = await openApi({ settings: () => settings, ledger, journal: { record: (event) => events.push(event), async *trace() {}, async *person() {} }, keyring, clock, log: { debug: say, info: say, warn: say, error: say }, metrics });
  const agent = new Agent({ keepAlive: true, ca: cert });
  const port = api.addresses[0]?.port ?? 0;
  let broken: Promise<void> | undefined;
  const breakStore = (): Promise<void> => (broken ??= ledger.close().then(() => store.close()));
  test.teardown(async () => {
    agent.destroy();
    await api.close();
    await breakStore();
    rmSync(dir, { recursive: true });
  });
  const token = (name: string): string => secrets.get(name) ?? name;
  return {
    port, cert, certificateFile: tls.certificateFile, ledger, events, lines, metrics, token, breakStore,
    pass: (ms) => void (now += ms),
    renew: () => api.renewTls(),
    async ask(method, path, body, { token: who = 'acme', headers = {}, from } = {}) {
      const text = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
      const answer = await send({
        host: '127.0.0.1', port, method, path, agent, servername: 'localhost', ...(from !== undefined && { localAddress: from }),
        headers: { ...(who !== '' && { authorization: `Bearer ${token(who)}` }), ...(text !== undefined && { 'content-type': 'application/json' }), ...headers },
      }, text);
      agreesWithDocument(method, path, answer);
      return answer;
    },
  };
}

function send(options: RequestOptions, body?: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = secureRequest(options, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString();
        const isJson = /\/(?:problem\+)?json;/.test(response.headers['content-type'] ?? '');
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text, json: isJson ? JSON.parse(text) : undefined });
      });
    });
    request.on('error', reject);
    request.end(body);
  });
}

/** A 200 has the shape its route promises; anything else is a whole problem. */
function agreesWithDocument(method: string, path: string, { status, headers, text, json }: Answer): void {
  if (status !== 200) {
    if (headers['content-type'] !== 'application/problem+json; charset=utf-8' || json?.status !== status) throw new Error(`not a problem: ${status} ${text}`);
    if (typeof json.type !== 'string' || typeof json.title !== 'string' || typeof json.detail !== 'string') throw new Error(`not a whole problem: ${text}`);
    return;
  }
  const found = API_ROUTES.find((route) => route.method === method && new RegExp(`^${route.url.replace(/:\w+/, '[^/]+')}(?:\\?|$)`).test(path));
  if (found === undefined) return;
  for (const one of found.lines === true ? text.trimEnd().split('\n') : [text]) found.answer.parse(JSON.parse(one));
}

const yes = (address: string, more: object = {}): object => ({ address, purpose: 'newsletter', source: 'form 7', time: '2026-05-01T10:00:00+02:00', policy: '1', ...more });
/** A good body for each route that takes one. */
const BODIES: Readonly<Record<string, unknown>> = {
  '/v1/consents': { consents: [yes(JO)] },
  '/v1/suppressions': { suppressions: [{ address: JO }] },
  '/v1/suppressions/lift': { address: JO, cause: 'manual' },
  '/v1/decisions': { address: JO, stream: 'news' },
};
const bodyOf = (url: string, method: string): unknown => (method === 'GET' ? undefined : BODIES[url] ?? { address: JO });

t.test('who is let in (T23, T24, T16)', async (t) => {
  const world = await open(t);
  const documented = Object.entries((await world.ask('GET', '/openapi.json', undefined, { token: '' })).json.paths as Record<string, object>).flatMap(([url, methods]) => Object.keys(methods).map((method) => `${method.toUpperCase()} ${url.replaceAll(/\{(\w+)\}/g, ':$1')}`));
  t.same(documented.sort(), API_ROUTES.map(({ method, url }) => `${method} ${url}`).sort(), 'the document lists every route');
  for (const { method, url, scope } of API_ROUTES) {
    const path = url.replace(':leaf', '0');
    const bodies = new Set<string>();
    for (const token of ['', 'a-wrong-one']) {
      const answer = await world.ask(method, path, bodyOf(url, method), { token, from: `127.0.1.${API_ROUTES.findIndex((one) => one.url === url) + 1}` });
      t.equal(answer.status, 401, `${method} ${url} with ${token || 'nothing'}`);
      t.match(answer.headers, { 'www-authenticate': 'Bearer realm="postern"', 'cache-control': 'no-store' });
      t.notOk(answer.headers['set-cookie'] ?? answer.headers['access-control-allow-origin']);
      bodies.add(answer.text);
    }
    t.equal(bodies.size, 1, 'alike');
    for (const other of [...API_SCOPES.map((one) => `acme/${one}`), 'acme-none']) {
      const { status } = await world.ask(method, path, bodyOf(url, method), { token: other });
      const allowed = scope === undefined || other === `acme/${scope}`;
      if (allowed ? status === 403 || status === 401 : status !== 403) t.fail(`${other} at ${method} ${url}: ${status}`);
    }
  }
  t.equal((await world.ask('GET', '/v1/nothing-here')).status, 404);
  t.equal((await world.ask('DELETE', '/v1/consents')).status, 404);
  t.equal((await world.ask('GET', '/%')).status, 404, 'a path that is none');
  t.equal((await world.ask('GET', '/v1/policies', undefined, { token: '', headers: { authorization: `Basic ${Buffer.from(`app:${world.token('acme')}`).toString('base64')}` } })).status, 401);

  await t.rejects(new Promise((_done, fail) => plainRequest({ host: '127.0.0.1', port: world.port, path: '/v1/policies', headers: { authorization: `Bearer ${world.token('acme')}` } }, () => fail(new Error('answered'))).on('error', fail).end()), { code: /ECONNRESET|HPE_INVALID_CONSTANT/ }, 'plain HTTP');
  const hello = (version: 'TLSv1.1' | 'TLSv1.2'): Promise<string> => new Promise((done) => {
    const socket = connect({ host: '127.0.0.1', port: world.port, ca: world.cert, servername: 'localhost', minVersion: 'TLSv1', maxVersion: version, ciphers: 'DEFAULT@SECLEVEL=0' }, () => {
      done(socket.getProtocol() ?? '');
      socket.destroy();
    });
    socket.on('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message));
  });
  t.equal(await hello('TLSv1.2'), 'TLSv1.2');
  t.match(await hello('TLSv1.1'), /ERR_SSL.*VERSION|ECONNRESET/, 'TLS 1.1');
  const pems = await generate([{ name: 'commonName', value: 'renewed' }], { keyType: 'ec', curve: 'P-256' });
  writeFileSync(world.certificateFile, pems.cert);
  writeFileSync(world.certificateFile.replace('.crt', '.key'), pems.private);
  world.renew();
  t.match(await hello('TLSv1.2'), /SELF_SIGNED/, 'the renewed certificate is another one');
});

t.test('consents and what the gate makes of them', async (t) => {
  const world = await open(t);
  const { json } = await world.ask('POST', '/v1/consents', { consents: [
    yes(JO, { tracking: { opens: 'individual' }, double_opt_in: { requested_at: '2026-05-01T08:00:00Z', confirmed_at: '2026-05-01T08:05:00Z' }, form_hash: 'ab'.repeat(32), jurisdiction: 'eu', method: 'form' }),
    yes('not an address'), yes('a@example.com', { policy: '9' }), yes('a@example.com', { purpose: 'other' }), yes('a@example.com', { time: '2026-06-01T12:06:00Z' }),
    yes('a@example.com', { jurisdiction: 'mars' }), yes(JO, { time: '2026-04-01T00:00:00Z' }), yes('no@example.com', { state: 'refused' }),
    yes('a@example.com', { double_opt_in: { requested_at: '2026-05-01T08:00:00Z', confirmed_at: '2026-05-01T07:05:00Z' } }),
  ] });
  t.match(json.results.map((one: { result: string }) => one.result), ['recorded', 'refused', 'refused', 'refused', 'refused', 'refused', 'kept', 'recorded', 'refused']);
  t.equal(json.results[6].evidence, json.results[0].evidence, 'kept: the evidence that stands');
  t.match(json.results.map((one: { reason?: string }) => one.reason ?? ''), ['', /no @/, /policy/, /purpose/, /future/, /profile/, '', '', /before/]);
  t.match(world.events, [{ event: 'consent', tenant: 'acme', reason: 'given', by: 'api:app', evidence: json.results[0].evidence }, { event: 'consent', reason: 'refused' }]);
  t.equal(world.events.length, 2, 'what changed is an event, and nothing else');

  const { json: looked } = await world.ask('POST', '/v1/consents/lookup', { address: 'JO@example.com' });
  t.match(looked.consents, [{ state: 'given', source: 'form 7', given_at: '2026-05-01T08:00:00.000Z', method: 'form', facts: ['double-opt-in'], jurisdiction: 'eu', changed_by: 'api:app', form_hash: 'ab'.repeat(32) }]);
  const decide = async (address: string, token = 'acme'): Promise<Answer['json']> => (await world.ask('POST', '/v1/decisions', { address, stream: 'news' }, { token })).json;
  t.match(await decide(JO), { answer: 'yes', rule: 'ok-consent', evidence: json.results[0].evidence, profile: 'eu', tracking: { opens: 'individual', clicks: 'none' } });
  t.match(await decide('no@example.com'), { answer: 'no', rule: 'consent-refused', steps: [{ result: 'passed' }] });
  t.match(await decide('a@example.com'), { answer: 'no', rule: 'consent-missing' });

  t.same((await world.ask('POST', '/v1/consents/withdraw', { address: JO, purpose: 'newsletter' })).json, { withdrawn: 1 });
  t.same((await world.ask('POST', '/v1/consents/withdraw', { address: JO })).json, { withdrawn: 0 });
  t.match(await decide(JO), { answer: 'no', rule: 'consent-withdrawn' });
  const before = Number(/r=(\d+)/.exec(String((await world.ask('GET', '/v1/policies')).headers['ratelimit']))?.[1]);
  const many = Array.from({ length: 1_000 }, (_, i) => yes(`p${i}@example.com`));
  const started = performance.now();
  const bulk = await world.ask('POST', '/v1/consents', { consents: many });
  t.comment(`1,000 consents in ${(performance.now() - started).toFixed(0)} ms`);
  t.match(bulk.headers['ratelimit'], new RegExp(`r=${before - 11};`), 'a thousand items count as ten requests more');
  t.equal(bulk.json.results.filter((one: { result: string }) => one.result === 'recorded').length, 1_000);
  t.equal((await world.ask('POST', '/v1/consents', { consents: [...many, yes(JO)] })).status, 400, '1,001');
  t.match((await world.ask('GET', '/v1/policies')).json.policies, [{ version: '1', in_force: true, published: true }, { version: '2', in_force: false }]);
});

t.test('suppressions, people and proofs', async (t) => {
  const world = await open(t);
  await world.ask('POST', '/v1/consents', { consents: [yes(JO), yes('al@example.com')] });
  world.events.length = 0;
  const { json } = await world.ask('POST', '/v1/suppressions', { suppressions: [{ address: JO, cause: 'unsubscribe', scope: 'purpose:newsletter' }, { address: JO }, { address: 'nobody' }, ...Array.from({ length: 30 }, (_, i) => ({ address: `s${i}@example.com`, cause: 'objection' }))] });
  t.match(json.results.slice(0, 3), [{ result: 'recorded', suppression: { cause: 'unsubscribe', scope: 'purpose:newsletter', by: 'api:app' } }, { result: 'recorded', suppression: { cause: 'manual', scope: 'all' } }, { result: 'refused', reason: /no @/ }]);
  t.equal(world.events.length, 32);
  const found = (await world.ask('POST', '/v1/suppressions/lookup', { address: JO })).json.suppressions;
  t.same(found.map((one: { cause: string }) => one.cause).sort(), ['manual', 'unsubscribe']);
  const seen: string[] = [];
  for (let after = '', page = 0; page < 20; page++) {
    const { json: one } = await world.ask('GET', `/v1/suppressions?limit=7${after === '' ? '' : `&after=${after}`}`);
    seen.push(...one.suppressions.map(({ hash, id }: { hash: string; id: string }) => `${hash} ${id}`));
    if (one.next === undefined) break;
    after = one.next;
  }
  t.equal(new Set(seen).size, 32, 'page by page, each once');
  t.equal(seen.length, 32);
  t.same((await world.ask('POST', '/v1/suppressions/lift', { address: JO, cause: 'manual' })).json, { lifted: 1 });
  t.match((await world.ask('POST', '/v1/suppressions/lift', { address: JO, cause: 'unsubscribe' })).json, { status: 400, errors: [{ pointer: '#/cause' }] }, 'what a person said is not lifted here');
  const exported = (await world.ask('GET', '/v1/export')).text.trimEnd().split('\n').map((line) => JSON.parse(line));
  t.match([exported[0], exported.at(-1)], [{ line: 'start', contains: ['suppressions'] }, { line: 'end', lines: 31 }]);

  const subject = (await world.ask('POST', '/v1/subjects/export', { address: 'al@example.com' })).json;
  t.match(subject, { consents: [{ purpose: 'newsletter' }], log: [{ entry: { event: 'consent', source: 'form 7' } }] });
  const { evidence } = subject.consents[0];
  const receipt = (await world.ask('GET', `/v1/receipts/${evidence}`)).json;
  t.match(receipt, { format: 'postern-receipt/1', leaf: Number(evidence) });
  const head = (await world.ask('GET', '/v1/checkpoint')).json;
  t.match(head.checkpoint, new RegExp(`^mx\\.postern\\.example/ledger/[0-9a-f]{16}\n${head.size}\n`));
  t.equal(head.verifier_key, receipt.verifier_key);
  t.match((await world.ask('POST', '/v1/subjects/restrict', { address: 'al@example.com' })).json, { suppression: { cause: 'restriction', scope: 'all' } });
  t.match((await world.ask('POST', '/v1/decisions', { address: 'al@example.com', stream: 'news' })).json, { answer: 'no', rule: 'suppressed-restriction' });
  t.same((await world.ask('POST', '/v1/suppressions/lift', { address: 'al@example.com', cause: 'restriction' })).json, { lifted: 1 });
  t.same((await world.ask('POST', '/v1/subjects/erase', { address: 'al@example.com' })).json, { erased: 1 });
  t.match((await world.ask('POST', '/v1/subjects/export', { address: 'al@example.com' })).json, { consents: [], log: [], suppressions: [{ cause: 'erasure' }] });
  t.equal((await world.ask('GET', `/v1/receipts/${evidence}`)).status, 404, 'nor is there a receipt any more');
  t.match(world.events.at(-1), { event: 'suppression', reason: 'erasure', person: undefined });
  const written = [...world.lines, await world.metrics.registry.metrics(), JSON.stringify(world.events)].join('\n');
  t.notMatch(written, /example\.com|@/, 'no address in log, metrics or events');
  t.match(written, /postern_api_requests_total\{route="GET \/v1\/receipts\/:leaf",status="404"\} 1/);
});

t.test('one tenant finds nothing of another (I-11)', async (t) => {
  const world = await open(t);
  const { json } = await world.ask('POST', '/v1/consents', { consents: [yes(JO, { source: 'secret of acme' })] });
  await world.ask('POST', '/v1/suppressions', { suppressions: [{ address: JO }] });
  const before = (await world.ask('GET', '/v1/export')).text.split('\n').slice(1).join();
  const bravo = { token: 'bravo' };
  const strange = 'never-heard-of@example.com';
  for (const { method, url } of API_ROUTES.filter(({ url, changes }) => url !== '/v1/policies' && changes !== true)) {
    const ask = (address: string, leaf: string): Promise<Answer> => world.ask(method, url.replace(':leaf', leaf), method === 'GET' ? undefined : { ...bodyOf(url, method) as object, address }, bravo);
    const [foreign, none] = [await ask(JO, json.results[0].evidence), await ask(strange, '999999')];
    const plain = (answer: Answer): string => answer.text.replaceAll(/[0-9a-f]{32}/g, 'HASH');
    t.equal(foreign.status, none.status, url);
    t.equal(plain(foreign), plain(none), `${url}: octet for octet`);
    t.notMatch(foreign.text, /secret of acme|api:app/);
  }
  for (const { method, url } of API_ROUTES.filter(({ changes }) => changes === true)) {
    t.equal((await world.ask(method, url, bodyOf(url, method), bravo)).status, 200, `${url}, as bravo`);
    t.equal((await world.ask(method, url, { ...bodyOf(url, method) as object, tenant: 'acme' }, bravo)).status, 400, `${url}: a tenant in the body`);
  }
  t.equal((await world.ask('GET', '/v1/export')).text.split('\n').slice(1).join(), before, 'acme has what it had');
  t.match((await world.ask('POST', '/v1/consents/lookup', { address: JO })).json.consents, [{ state: 'given', source: 'secret of acme' }]);
  const gone = await Promise.all(['0', '999999', 'x', '-1', '01', '1e3', '9'.repeat(40)].map((leaf) => world.ask('GET', `/v1/receipts/${leaf === '0' ? '7777' : leaf}`, undefined, bravo)));
  const streams = await Promise.all(['acme-offers', 'no-such'].map((stream_) => world.ask('POST', '/v1/decisions', { address: JO, stream: stream_ }, bravo)));
  const all = [...gone, ...streams, await world.ask('GET', '/nowhere', undefined, bravo)];
  t.same(new Set(all.map(({ status, text }) => `${status} ${text}`)).size, 1, 'one 404');
});

t.test('requests that are refused', async (t) => {
  const world = await open(t);
  const post = (body: unknown, headers: Record<string, string> = {}, path = '/v1/consents'): Promise<Answer> => world.ask('POST', path, body, { headers });
  const invalid = async (body: unknown, pointer: string, path?: string): Promise<void> => {
    const { status, json } = await post(body, {}, path);
    t.equal(status, 400, pointer);
    t.ok(json.errors?.some((one: { pointer: string }) => one.pointer === pointer), `${pointer}: ${JSON.stringify(json)}`);
  };
  await invalid({ consents: [yes(JO), yes(JO, { colour: 'red' })] }, '#/consents/1/colour');
  await invalid({ consents: [yes(JO, { 'a/b~c%': 1 })] }, '#/consents/0/a~1b~0c%25');
  await invalid({ consents: [yes(JO, { purpose: 7 })] }, '#/consents/0/purpose');
  await invalid({ consents: [yes(JO, { time: 1_780_000_000_000 })] }, '#/consents/0/time');
  await invalid({ consents: [yes(JO, { time: '2026-05-01T10:00:00' })] }, '#/consents/0/time');
  await invalid({ consents: [yes(JO, { time: '1969-05-01T10:00:00Z' })] }, '#/consents/0/time');
  await invalid({ consents: [yes(JO, { source: 'ü'.repeat(200) })] }, '#/consents/0/source');
  await invalid({ consents: [yes(JO, { legal_basis: 'because' })] }, '#/consents/0/legal_basis');
  await invalid({ consents: yes(JO) }, '#/consents');
  await invalid({ consents: [] }, '#/consents');
  await invalid([], '#');
  await invalid({ address: 'a\u200bb@example.com' }, '#/address', '/v1/consents/lookup');
  await invalid({ address: JO, cause: 'manual', scope: 'everything' }, '#/scope', '/v1/suppressions/lift');
  t.match((await post({ consents: [yes(JO, { purpose: 'my-secret', colour: 1 })] })).text, /colour/);
  t.notMatch((await post({ consents: [yes('jo@secret.example', { state: 'my-secret' })] })).text, /secret/, 'values are not repeated');
  t.match((await world.ask('GET', '/v1/suppressions?limit=5000')).json, { status: 400, errors: [{ parameter: 'limit' }] });
  t.match((await world.ask('GET', '/v1/suppressions?limit=ten&x=1')).json.errors, [{ parameter: 'limit' }, { parameter: 'x' }]);
  t.match((await post('{"consents": [')).json, { status: 400, type: /malformed/ });
  t.match((await post('{"__proto__": {"consents": []}}')).json, { status: 400 });
  t.match((await post(undefined)).json, { status: 400 });
  t.match((await post('consents=1', { 'content-type': 'application/x-www-form-urlencoded' })).json, { status: 415 });
  t.match((await post('x', { 'content-type': 'text/plain' })).json, { status: 415 });
  t.match((await post({ consents: [yes(JO, { method: 'x'.repeat(1_060_000) })] })).json, { status: 413 });
  t.equal(world.events.length, 0);
  t.same((await world.ask('POST', '/v1/consents/lookup', { address: JO })).json, { consents: [] }, 'nothing was recorded');

  const keyed = { 'idempotency-key': '"8e03978e-40d5-43dd-bc93-6894a57f9324"' };
  const first = await post({ consents: [yes(JO)] }, keyed);
  const again = await post({ consents: [yes(JO)] }, keyed);
  t.same([again.status, again.text], [200, first.text], 'the same key, the same request: the same answer');
  t.equal(world.events.length, 1, 'carried out once');
  t.match((await world.ask('POST', '/v1/consents', { consents: [yes(JO)] })).json.results[0], { ...first.json.results[0], result: 'kept' }, 'without a key the same said again is kept, not recorded twice');
  t.match((await post({ consents: [yes('al@example.com')] }, keyed)).json, { status: 422, type: /key-reused/ });
  t.match((await post({ address: JO }, keyed, '/v1/consents/withdraw')).json, { status: 422 }, 'another route');
  t.equal((await world.ask('POST', '/v1/consents', { consents: [yes('al@example.com')] }, { token: 'bravo', headers: keyed })).status, 200, 'another tenant');
  t.match((await post({ consents: [yes(JO)] }, { 'idempotency-key': 'x'.repeat(256) })).json, { status: 400, type: /idempotency-key/ });
  const both = await Promise.all([1, 2].map(() => post({ consents: [yes('both@example.com')] }, { 'idempotency-key': 'k' })));
  t.match(both.map(({ status }) => status).sort(), [200, /200|409/], 'two at once');
  world.pass(86_400_001);
  t.equal((await post({ consents: [yes('al@example.com')] }, keyed)).status, 200, 'forgotten after a day');
});

t.test('limits, suspension and a store that is down', async (t) => {
  const world = await open(t);
  const get = (token: string, from = '127.0.0.1'): Promise<Answer> => world.ask('GET', '/v1/policies', undefined, { token, from });
  for (let i = 0; i < REQUESTS_PER_MINUTE; i += 20) await Promise.all(Array.from({ length: 20 }, () => get('acme/export')));
  const over = await get('acme/export');
  t.match(over, { status: 429, headers: { 'ratelimit-policy': `"token";q=${REQUESTS_PER_MINUTE};w=60`, ratelimit: /^"token";r=0;t=\d+$/, 'retry-after': /^\d+$/ } });
  t.equal((await get('acme')).status, 200, 'each token has its own');
  world.pass(60_000);
  t.match(await get('acme/export'), { status: 200, headers: { ratelimit: `"token";r=${REQUESTS_PER_MINUTE - 1};t=60` } });

  t.equal((await get('acme', '127.0.2.1')).status, 200);
  for (let i = 0; i < AUTH_FAILURES; i++) t.equal((await get(`wrong-${i}`, '127.0.2.1')).status, 401);
  t.match(await get('wrong', '127.0.2.1'), { status: 429, headers: { 'retry-after': '600' }, json: { type: /too-many-failures/ } });
  t.equal((await get('bravo', '127.0.2.1')).status, 429, 'nobody is heard from there');
  t.equal((await get('acme', '127.0.2.1')).status, 200, 'save whom it is known to have let in');
  t.equal((await get('bravo', '127.0.2.2')).status, 200, 'other addresses are');
  world.pass(600_000);
  t.equal((await get('bravo', '127.0.2.1')).status, 200);

  const wrong = await get('wrong', '127.0.2.3');
  await world.ledger.suspend('acme', 'complaints', 'test');
  const dead = await get('acme');
  t.same([dead.status, dead.text, dead.headers['www-authenticate']], [401, wrong.text, wrong.headers['www-authenticate']], 'a dead token is as a wrong one');
  t.equal((await get('bravo')).status, 200);
  await world.ledger.resume('acme', 'test');
  t.equal((await get('acme')).status, 200);

  await world.breakStore();
  const down = await get('acme');
  t.match(down, { status: 503, headers: { 'retry-after': '5' } });
  t.equal((await world.ask('POST', '/v1/consents', { consents: [yes(JO)] }, { headers: { 'idempotency-key': 'z' } })).status, 503);
  t.equal((await get('wrong', '127.0.2.4')).status, 401);
});

t.test('the OpenAPI document', async (t) => {
  const world = await open(t);
  const { json: document } = await world.ask('GET', '/openapi.json', undefined, { token: '' });
  t.match(document, { openapi: '3.1.0', info: { title: String, version: String }, components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } }, schemas: { Problem: { type: 'object' } } } });
  for (const { method, url, scope, body } of API_ROUTES) {
    const operation = document.paths[url.replace(/:(\w+)/, '{$1}')][method.toLowerCase()];
    t.same(operation.security, [{ token: scope === undefined ? [] : [scope] }], url);
    t.type(operation.summary, 'string');
    t.equal(operation.requestBody?.required ?? false, body !== undefined);
    if (body !== undefined) t.equal(operation.requestBody.content['application/json'].schema.additionalProperties, false);
    for (const name of [...url.matchAll(/:(\w+)/g)].map(([, one]) => one)) t.match(operation.parameters.find((one: { name: string }) => one.name === name), { in: 'path', required: true });
    t.ok(Object.values(operation.responses['200'].content as Record<string, { schema: object }>).every(({ schema }) => Object.keys(schema).length > 0));
    t.equal(operation.responses.default.content['application/problem+json'].schema.$ref, '#/components/schemas/Problem');
  }
  t.match(document.paths['/v1/suppressions'].get.parameters.find((one: { name: string }) => one.name === 'limit'), { in: 'query', required: false, schema: { type: 'integer', maximum: 1_000 } });
  t.notMatch(JSON.stringify(document), /"nullable"|draft-0/);
});

t.test('the recipes of the README', async (t) => {
  const section = /\n## The tenant's API\n(.*?)(?=\n## |$)/s.exec(readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8'))?.[1];
  if (section === undefined) return void t.pass('recipes', { skip: 'README.md has no section "The tenant\'s API"' });
  const world = await open(t);
  const recipes = [...section.matchAll(/```sh\n(.*?)```/gs)].map(([, text = '']) => text);
  t.ok(recipes.length > 0);
  const env = { ...process.env, PATH: `${dirname(process.execPath)}:${process.env['PATH']}`, API: `https://localhost:${world.port}`, TOKEN: world.token('acme'), CURL_CA_BUNDLE: world.certificateFile };
  const cwd = mkdtempSync(join(tmpdir(), 'postern-recipes-'));
  t.teardown(() => rmSync(cwd, { recursive: true }));
  symlinkSync(join(import.meta.dirname, '../../scripts'), join(cwd, 'scripts'));
  for (const recipe of recipes) {
    const { stdout } = await promisify(execFile)('bash', ['-euo', 'pipefail', '-c', recipe], { env, cwd }).catch((error: unknown) => ({ stdout: `failed: ${String(error)}` }));
    t.notMatch(stdout, /failed|problem-type|"refused"/);
  }
  t.match(world.events.map(({ event, reason }) => `${event} ${reason}`), ['consent given', 'consent withdrawn', 'suppression manual', 'suppression lifted', 'suppression restriction', 'suppression erasure'], 'they did what they say');
});
