// Tracking through the whole relay: what four people with four choices get in their mail, what their hits
// leave, who may read it and for what (T13, T16), that the operator sees none of it whatever they ask (T20),
// that nothing of it stands readable in metrics, log or journal (T21), and that what sends mail does not
// know of it (T22).
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { request } from 'node:https';
import { dirname, join, resolve } from 'node:path';
import t from 'tap';
import { operationsOf, type Desk } from '../../daemon/admin/index.ts';
import { openStores } from '../../daemon/main.ts';
import { openLog } from '../../daemon/runtime/index.ts';
import { addApiToken } from '../../daemon/settings/index.ts';
import { CHECKOUT, eventually, freePorts, makeGrounds, pause, spawnDaemon } from '../lib/daemon.ts';
import { startMx } from '../lib/mx.ts';

const BROWSER = { 'user-agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.5.0' };
const TARGET = 'https://shop.example/secret-path?a=1&b=2';
const [ANN, BOB, CAT, DAN, EVE] = ['ann@one.example', 'bob@one.example', 'cat@one.example', 'dan@two.example', 'eve@two.example'] as const;

t.test('T12, T13, T16, T20, T21: from the mail to who may read of it', async (t) => {
  const mx = await startMx();
  const grounds = await makeGrounds(mx.port);
  t.teardown(async () => { await mx.close(); grounds.remove(); });
  const { submissions: apiPort } = await freePorts();
  grounds.edit('postern.yaml', (text) => text.replace('  metrics:', `  api: ["127.0.0.1:${apiPort}"]\n  metrics:`));
  const { secret } = addApiToken(grounds.root, 'demo', { id: 'app', scopes: ['tracking:read', 'subjects'] });
  await grounds.consent({ [ANN]: 'individual', [BOB]: 'lastOpenDate', [CAT]: 'aggregate', [DAN]: 'aggregate', [EVE]: 'none' });
  const daemon = await spawnDaemon(grounds.root);
  t.teardown(() => daemon.child.kill('SIGKILL'));

  const html = `<p><a href="${TARGET.replace('&', '&amp;')}">read</a></p>`;
  const send = async (to: string | readonly string[]): Promise<string> => {
    const mail = { from: 'news@demo.example', to: 'undisclosed-recipients:;', subject: 'The letter', html, envelope: { from: 'news@demo.example', to: [...(typeof to === 'string' ? [to] : to)] } };
    const { id, reply } = await grounds.send(mail);
    t.match(id, /^[0-9A-Z]{26}$/, reply);
    return id;
  };
  const campaign = await send([ANN, BOB, CAT, DAN, EVE]);
  const [alone] = [await send(CAT), await send(DAN)];
  t.ok(await eventually(() => mx.messages.length === 7), 'all is delivered');
  const copies = (to: string): string[] => mx.messages.filter((one) => one.to === to).map(({ body }) => body.toString('latin1').replaceAll('=\r\n', '').replaceAll('=3D', '='));
  const pixel = (text = ''): string => /src="http:\/\/127\.0\.0\.1:\d+(\/o\/[\w.-]+)"/.exec(text)?.[1] ?? '';
  const link = (text = ''): string => /href="http:\/\/127\.0\.0\.1:\d+(\/c\/[\w.-]+)"/.exec(text)?.[1] ?? '';
  const isShared = (text: string): boolean => pixel(text) === pixel(copies(DAN).find((one) => pixel(one) === pixel(text)));
  t.ok(copies(CAT).every(isShared), 'T13: cat\'s pixels are dan\'s, in the campaign and in letters sent one by one');
  t.equal(new Set([...copies(CAT), ...copies(DAN)].map(pixel)).size, 2);
  t.same([...copies(BOB), ...copies(CAT), ...copies(EVE)].map(link).filter((path) => path !== ''), [], 'no link of theirs is ours');
  t.equal(pixel(copies(EVE)[0]), '', 'T12: nor a pixel of who allows nothing');

  const hit = (path: string): Promise<unknown> => fetch(`http://127.0.0.1:${grounds.ports.pages}${path}`, { headers: BROWSER, redirect: 'manual' });
  const paths = [ANN, BOB, CAT, DAN].flatMap((to) => copies(to).flatMap((text) => [pixel(text), link(text)])).filter((path) => path !== '');
  t.equal(paths.length, 7);
  for (const path of [...paths, ...paths]) await hit(path);
  await pause(1_000);

  const today = new Date().toISOString().slice(0, 10);
  const ask = (method: string, path: string, body?: object): Promise<{ readonly status: number; readonly json: Record<string, unknown> }> => new Promise((done, fail) => {
    const call = request({ host: '127.0.0.1', port: apiPort, method, path, rejectUnauthorized: false, agent: false, headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' } }, (answer) => {
      let text = '';
      answer.on('data', (part: Buffer) => (text += part.toString()));
      answer.on('end', () => done({ status: answer.statusCode ?? 0, json: JSON.parse(text) as Record<string, unknown> }));
    });
    call.on('error', fail);
    call.end(body === undefined ? undefined : JSON.stringify(body));
  });
  t.match(await ask('GET', '/v1/tracking/opens?purpose=newsletter'), { status: 200, json: { opens: [
    { stream: 'newsletter', message_id: undefined, date: today, opens: 4, proxies: 0, machines: 0 }, { message_id: campaign, date: today, opens: 4 },
  ] } });
  t.match(await ask('GET', `/v1/tracking/opens?purpose=newsletter&message_id=${alone}`), { status: 200, json: { opens: [] } }, 'what one person got has no counter of its own');
  const { json: { events } } = await ask('GET', `/v1/tracking/events?purpose=newsletter&message_id=${campaign}`);
  t.match(events, [{ event: 'opened', message_id: campaign, recipient: 0 }, { event: 'clicked', link: TARGET }, { event: 'opened' }, { event: 'clicked', link: TARGET }]);
  t.equal(new Set((events as { person: string }[]).map(({ person }) => person)).size, 1, 'of ann only');
  t.same((await ask('POST', '/v1/tracking/last-open', { address: BOB, purpose: 'newsletter' })).json, { last_opens: [{ purpose: 'newsletter', date: today }] });
  t.same((await ask('POST', '/v1/tracking/last-open', { address: ANN, purpose: 'newsletter' })).json, { last_opens: [] });
  t.match((await ask('POST', '/v1/subjects/export', { address: ANN })).json, { last_opens: [], tracking: [{ event: 'opened' }, { event: 'clicked', link: TARGET }, {}, {}] });
  t.match((await ask('POST', '/v1/subjects/export', { address: BOB })).json, { last_opens: [{ date: today }], tracking: [] });
  t.match(await ask('GET', `/v1/tracking/events?purpose=newsletter&message_id=${'0'.repeat(26)}`), { status: 404 });

  for (const [method, path, body] of [
    ['GET', '/v1/tracking/opens?purpose=profiling'], ['GET', `/v1/tracking/events?purpose=profiling&message_id=${campaign}`], ['POST', '/v1/tracking/last-open', { address: BOB, purpose: 'profiling' }],
  ] as const) t.match(await ask(method, path, body), { status: 403, json: { type: 'urn:problem-type:postern:purpose' } }, `T16: ${path}`);
  t.equal((await ask('GET', '/v1/tracking/opens')).status, 400, 'nobody reads without saying why');

  // T20: every operation there is, asked everything it could want.
  const operations = Object.keys(operationsOf({} as Desk));
  t.ok(operations.length > 20);
  const people = [ANN, BOB, CAT];
  let answers = '';
  for (const op of operations) {
    for (const rcpt of people) {
      const params = { tenant: 'demo', id: campaign, rcpt, address: rcpt, recipients: people, from: 'news@demo.example', stream: 'newsletter', purpose: 'newsletter', leaf: 0, limit: 100, domain: 'one.example' };
      answers += `${op} ${JSON.stringify(await grounds.control(op, params).catch((error: unknown) => String(error)))}\n`;
    }
  }
  t.match(answers, /"event":"delivered"/, 'they do answer');
  const tokens = paths.map((path) => path.slice(3).replace('.gif', ''));
  const tracked = new RegExp(['"event":"(?:opened|clicked)"', 'shop\\.example', 'last_open', '"sealed"', ...tokens].join('|'));
  t.notMatch(answers, tracked, 'T20: no operation tells what people opened or followed');

  const metrics = await (await fetch(`http://127.0.0.1:${grounds.ports.metrics}/metrics`)).text();
  await daemon.kill('SIGTERM');
  const readable = new RegExp(['shop\\.example', 'secret-path', ANN, BOB, CAT, DAN, EVE, ...tokens].join('|'));
  t.notMatch(metrics, readable, 'T21: metrics');
  t.notMatch(daemon.output(), readable, 'T21: log');
  for (const folder of ['events', 'ledger', 'keys', 'spool']) {
    const found = readdirSync(join(grounds.dataDir, folder), { recursive: true, encoding: 'utf8' }).filter((name) => /\.\w+$/.test(name) && readable.test(readFileSync(join(grounds.dataDir, folder, name), 'latin1')));
    t.same(found, [], `T21: ${folder}`);
  }
  t.equal(readdirSync(join(grounds.dataDir, 'events')).map((name) => readFileSync(join(grounds.dataDir, 'events', name), 'latin1').split('"clicked"').length - 1).reduce((a, b) => a + b), 2);

  const stores = await openStores(grounds.root, openLog('silent'));
  const noted: string[] = [];
  for (let leaf = 0; ; leaf++) {
    const entry = await stores.ledger.log.entry('demo', leaf).catch(() => undefined);
    if (entry === undefined) break;
    if (entry.payload?.includes('tracking-refused') === true) noted.push(entry.payload);
  }
  await stores.close();
  t.equal(noted.length, 3, 'T16: each refusal is a leaf');
  t.match(noted[0], /"profiling"/);
  t.notMatch(noted.join(), /@|one\.example/);
});

t.test('T22: what decides when and how mail is sent does not know of opens and clicks', async (t) => {
  const reached = new Set<string>();
  const walk = (file: string): void => {
    if (reached.has(file) || !existsSync(file)) return;
    reached.add(file);
    const source = readFileSync(file, 'utf8');
    for (const [, names = '', from = ''] of source.matchAll(/^(?:import|export)\s+(?!type\b)([^;']*?)\s*from\s+'(\.[^']+)'/gm)) {
      // `{ type A, type B }` is nothing at run time.
      if (!/^\{\s*(?:type \w+,?\s*)+\}$/.test(names)) walk(resolve(dirname(file), from));
    }
  };
  for (const room of ['schedule', 'deliver', 'gate']) for (const name of readdirSync(join(CHECKOUT, 'daemon', room))) walk(join(CHECKOUT, 'daemon', room, name));
  t.ok(reached.size > 40, 'the walk is a walk');
  t.same([...reached].filter((file) => /ledger\/|daemon\/web\//.test(file)), []);
  for (const room of ['schedule', 'deliver']) {
    for (const name of readdirSync(join(CHECKOUT, 'daemon', room))) t.notMatch(readFileSync(join(CHECKOUT, 'daemon', room, name), 'utf8'), /isTracking|TrackingRows|lastOpen|'(?:opened|clicked)'/, `${room}/${name}`);
  }
});
