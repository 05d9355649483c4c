// Policy versions through the whole relay: they never change under their name (T1), come into force only
// when announced and seen (T38), and leave their trace in the tenant's log with everything else.
import t from 'tap';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { openStores } from '../../daemon/main.ts';
import { openLog } from '../../daemon/runtime/index.ts';
import { CHECKOUT, makeGrounds, pause, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx } from '../lib/mx.ts';

let mx: Mx;
let grounds: Grounds;
const letter = { from: 'news@demo.example', to: 'reader@example.com', subject: 'x', html: '<a href="https://demo.example/x">x</a>' };
const policyFile = 'policies/demo-2026-01.md';
const explain = async (): Promise<unknown> => grounds.control('explain', { tenant: 'demo', stream: 'newsletter', rcpt: 'reader@example.com' });

/** Adds a version to the tenant's file. */
function addVersion(version: string, effective: string, text: string, purposes = 'newsletter, receipts'): void {
  writeFileSync(join(grounds.root, `policies/${version}.md`), text);
  grounds.edit('tenants/demo.yaml', (yaml) => yaml.replace('\ndomains:', `\n  - version: "${version}"\n    effective: ${effective}\n    text: policies/${version}.md\n    purposes: [${purposes}]\ndomains:`));
}

t.before(async () => {
  mx = await startMx();
  grounds = await makeGrounds(mx.port);
  await grounds.consent({ 'reader@example.com': 'individual' });
});
t.teardown(async () => {
  await mx.close();
  grounds.remove();
});

t.test('T1: a published version never changes under its name', async (t) => {
  const daemon = await grounds.serve();
  t.match((await grounds.send(letter)).reply, /^250/);
  const text = readFileSync(join(grounds.root, policyFile), 'utf8');
  grounds.edit(policyFile, (old) => `${old}.`);
  const said = JSON.stringify(await grounds.control('reload'));
  t.match(said, /"ok":false.*tenants\/demo\.yaml","line":\d+.*"path":"policies\[0\]\.version".*published as [0-9a-f]{64}; its text and permissions are now [0-9a-f]{64}/);
  t.match((await grounds.send(letter)).reply, /^250/, 'the old one is in force');
  await daemon.stop();
  await t.rejects(grounds.serve(), { code: 'E_CONFIG', message: /tenants\/demo\.yaml:\d+:\d+ policies\[0\]\.version: this version was published as/ }, 'nor does it start with it');
  writeFileSync(join(grounds.root, policyFile), text);
  grounds.edit('tenants/demo.yaml', (yaml) => yaml.replace('tracking: { opens: individual', 'tracking: { opens: aggregate'));
  await t.rejects(grounds.serve(), { code: 'E_CONFIG' }, 'permissions are part of it');
  grounds.edit('tenants/demo.yaml', (yaml) => yaml.replace('tracking: { opens: aggregate', 'tracking: { opens: individual'));
});

t.test('T38: announced first, and in force only when its page can be read', async (t) => {
  const daemon = await grounds.serve();
  const before = readFileSync(join(grounds.root, 'tenants/demo.yaml'), 'utf8');
  addVersion('past', '2026-02-01', 'Said too late.');
  t.match(JSON.stringify(await grounds.control('reload')), /"ok":false.*must be announced before it takes effect/);
  writeFileSync(join(grounds.root, 'tenants/demo.yaml'), before);

  // A page address that answers with something else, and later with the text.
  let answer = 'something else';
  const elsewhere: Server = createServer((_, response) => response.end(answer));
  await new Promise<void>((ready) => elsewhere.listen(0, '127.0.0.1', ready));
  t.teardown(() => elsewhere.close());
  const pages = /pages: (http:\S+)/.exec(before)?.[1] ?? '';
  const soon = `${new Date(Date.now() + 2_000).toISOString().slice(0, 19)}Z`;
  addVersion('next', soon, 'We mail you receipts only.', 'receipts');
  grounds.edit('tenants/demo.yaml', (yaml) => yaml.replace(`pages: ${pages}`, `pages: http://127.0.0.1:${(elsewhere.address() as AddressInfo).port}`));
  t.match(await grounds.control('reload'), { ok: true });
  await pause(2_200);
  t.match(await explain(), { recipient: { answer: 'yes', rule: 'ok-consent' } }, 'its time has come, but nobody can read it: the old one holds');
  answer = 'We mail you receipts only.';
  t.match(await grounds.control('reload'), { ok: true });
  let now = '';
  for (let i = 0; i < 100 && !now.includes('purpose-not-in-policy'); i++) {
    await pause(20);
    now = JSON.stringify(await explain());
  }
  t.match(now, /purpose-not-in-policy/, 'seen: the new one holds');
  await daemon.stop();
});

t.test('the log holds it all, with the journal, and verifies', async (t) => {
  const stores = await openStores(grounds.root, openLog('silent'));
  const { log } = stores.ledger;
  const verified = await log.verify('demo');
  t.match(verified, { ok: true, erased: 0 });
  const told = [];
  for (let leaf = 0; leaf < verified.leaves; leaf++) told.push(JSON.parse((await log.entry('demo', leaf))?.payload ?? '{}') as Record<string, unknown>);
  t.match(told.map(({ event }) => event), ['policy']);
  for (const event of ['policy', 'policy-published', 'consent', 'journal']) t.ok(told.some((one) => one['event'] === event), event);
  for (const { segment, lines, sha256 } of told.filter(({ event }) => event === 'journal')) {
    t.match(await stores.journal.digest(String(segment)), { segment, tenants: [{ tenant: 'demo', lines, sha256 }] }, 'the file is the one that was entered');
  }
  const receipt = await log.receipt('demo', told.findIndex(({ event }) => event === 'consent'));
  const file = join(grounds.dir, 'receipt.json');
  writeFileSync(file, JSON.stringify(receipt));
  t.match(execFileSync(join(CHECKOUT, 'scripts/verify-receipt'), [file, '--key', log.verifierKey('demo')], { encoding: 'utf8' }), /newsletter/);
  await stores.close();
});
