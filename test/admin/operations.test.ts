// The operator's operations on real stores without a daemon: what they answer, what they refuse and why,
// and what they leave in the tenant's log.
import { cpSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { changes, operationsOf, peopleText, type Desk, type PersonJudged } from '../../daemon/admin/index.ts';
import { newEvent } from '../../daemon/events/index.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { openStores, type Stores } from '../../daemon/main.ts';
import { newId, openLog, systemClock } from '../../daemon/runtime/index.ts';
import type { Tenant } from '../../daemon/settings/index.ts';
import { makeGrounds, type Grounds } from '../lib/daemon.ts';
import { composed } from '../spool/room.ts';

let grounds: Grounds;
let stores: Stores;
let desk: Desk;
const expelled: string[] = [];
const HOUR = 3_600_000;
const at = (name: string): string => `${name}@example.com`;
const who = (name: string, more: object = {}): Record<string, unknown> => ({ tenant: 'demo', rcpt: at(name), ...more });
const progress: object[] = [];
const call = async <T = unknown>(op: string, params: Record<string, unknown> = {}): Promise<T> => {
  const operation = operationsOf(desk)[op];
  if (operation === undefined) throw new Error(`no operation ${op}`);
  return await operation(params, (p) => void progress.push(p)) as T;
};
const open = async (): Promise<void> => {
  stores = await openStores(grounds.root, openLog('silent'));
  desk = { ...stores, settings: () => stores.live.current(), clock: systemClock, lanes: () => [], expel: (tenant) => void expelled.push(tenant) };
};
const hashes = (name: string): ReturnType<Desk['ledger']['hashes']> => desk.ledger.hashes('demo', parseAddress(at(name)));
/** A message of the demo tenant that waits for these people. @returns its id */
async function queue(...names: string[]): Promise<string> {
  const message = composed(names.map(at), 200, 'demo');
  const recipients = message.recipients.map((one, i) => ({ ...one, hashes: hashes(names[i] ?? '') }));
  await desk.spool.store({ ...message, recipients } as typeof message, { expiresAt: Date.now() + HOUR });
  return message.id;
}
/** What the demo tenant's log tells of the operator's acts. */
async function acts(): Promise<Record<string, unknown>[]> {
  const found: Record<string, unknown>[] = [];
  await desk.ledger.log.verify('demo', undefined, ({ payload }) => {
    const { event, by, act, recipients } = JSON.parse(payload ?? '{}') as Record<string, unknown>;
    if (event === 'admin') found.push({ by, act, ...(recipients !== undefined && { recipients }) });
  });
  return found;
}

t.before(async () => {
  grounds = await makeGrounds(1);
  await grounds.consent({ [at('reader')]: 'individual', [at('german')]: 'none' });
  await open();
  for (const { hash } of desk.settings().tenants.get('demo')?.policies ?? []) await desk.ledger.published('demo', hash, 'test');
});
t.teardown(async () => {
  await stores.close();
  grounds.remove();
});

t.test('explain knows the profile, what a letter shows, and rules that are only tried out', async (t) => {
  const newsletter = { stream: 'newsletter' };
  t.match(await call('explain', who('reader', newsletter)), { purpose: 'newsletter', recipient: { answer: 'yes', rule: 'ok-consent', profile: 'eu' }, facts: { consent: { state: 'given' } } });
  t.match(await call('explain', { tenant: 'demo', rcpt: 'stranger@example.de', ...newsletter }), { recipient: { answer: 'no', rule: 'consent-missing' } });
  await desk.ledger.give('demo', { hashes: desk.ledger.hashes('demo', parseAddress('x@example.de')), purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: desk.settings().tenants.get('demo')?.policies[0]?.hash ?? '', method: 'form', evidence: { source: 'test', time: Date.now() }, tracking: { opens: 'none', clicks: 'none' }, by: 'test' });
  t.match(await call('explain', { tenant: 'demo', rcpt: 'x@example.de', ...newsletter }), { recipient: { answer: 'no', rule: 'profile-double-opt-in' } }, 'the domain\'s jurisdiction counts');
  const letter = (body: string): string => Buffer.from(`From: news@demo.example\nSubject: x\n\n${body}\n`).toString('base64');
  interface Letter { readonly message: { readonly shadowed: readonly string[]; readonly steps: readonly { readonly rule: string; readonly result: string }[] } }
  const { message } = await call<Letter>('explain', who('reader', { ...newsletter, message: letter('no footer here') }));
  t.match(message, { answer: 'yes', shadowed: Array });
  const shadowed = message.steps.filter(({ result }) => result === 'shadowed').map(({ rule }) => rule);
  t.same(shadowed, message.shadowed);
  t.ok(shadowed.includes('profile-footer-sender'), 'the letter does not show who sends it, and the rule is only tried out');
  const shown = await call<Letter>('explain', who('reader', { ...newsletter, message: letter('Demo tenant, 1 Example Street, Example Town, privacy@demo.example') }));
  t.same(shown.message.shadowed, []);
  for (const [params, text] of [
    [{}, /tenant is missing/], [{ tenant: 'nobody' }, /no tenant "nobody"; there are: demo/], [who('reader', { stream: 'x' }), /no stream "x"; it has: newsletter, receipts/],
    [{ tenant: 'demo', rcpt: 'not an address', stream: 'newsletter' }, /address/],
  ] as const) await t.rejects(call('explain', params), { message: text });
});

t.test('the queue: list, show, hold, release, retry, drop', async (t) => {
  interface Rows { readonly rows: readonly { readonly cursor: string }[] }
  const id = await queue('reader', 'second');
  t.match(await call('queue.list', { tenant: 'demo' }), { rows: [{ tenant: 'demo' }, { tenant: 'demo' }] });
  const { rows } = await call<Rows>('queue.list', { limit: 1 });
  t.equal(rows.length, 1);
  t.equal((await call<Rows>('queue.list', { after: rows[0]?.cursor })).rows.length, 1, 'goes on behind a row');
  t.match(await call('queue.show', { id }), { recipients: [{ wire: at('reader'), person: hashes('reader').consent.toString('hex', 0, 6) }, {}] });
  t.notMatch(JSON.stringify(await call('queue.show', { id })), /hashes/);
  t.match(await call('queue.hold', { id }), { changed: 2 });
  t.match(await call('queue.retry', { id }), { changed: 0 }, 'what is held is not tried');
  t.match(await call('queue.release', { domain: 'EXAMPLE.com' }), { changed: 2 });
  const other = await queue('third');
  t.match(await call('queue.drop', { tenant: 'demo', domain: 'example.org' }), { changed: 0 });
  t.match(await call('queue.drop', { id: other }), { changed: 1 });
  progress.length = 0;
  t.match(await call('queue.drop', { all: true }), { changed: 2 });
  t.same(progress, [{ recipients: 2 }], 'and tells how far it is');
  t.same((await acts()).slice(-4), [
    { by: 'cli', act: 'queue-held', recipients: 2 }, { by: 'cli', act: 'queue-released', recipients: 2 }, { by: 'cli', act: 'queue-dropped', recipients: 1 }, { by: 'cli', act: 'queue-dropped', recipients: 2 },
  ], 'each act is in the log of the tenant it met');
  for (const [op, params, text] of [
    ['queue.drop', {}, /say which: a message id, --tenant, --domain, --campaign, or --all/], ['queue.show', { id: 'x' }, /"x" is not a message id/], ['queue.show', { id: newId(1) }, /no such message waits/],
    ['queue.drop', { tenant: 'nobody' }, /no tenant "nobody"; there are: demo/], ['queue.list', { tenant: '../x', domain: 'example.com' }, /no tenant/],
  ] as const) await t.rejects(call(op, params), { code: 'E_CONTROL', message: text });
  t.same(readdirSync(join(grounds.dataDir, 'keys')).filter((name) => /nobody|x\b/.test(name)), [], 'a slip of the pen is given no keys');
});

t.test('the queue by campaign', async (t) => {
  const store = (name: string, campaign: string): Promise<unknown> => desk.spool.store(composed([at(name)], 100, 'demo'), { expiresAt: Date.now() + HOUR, campaign, priority: 'low' });
  await store('one', 'summer sale');
  await store('two', 'winter');
  await queue('third');
  t.match(await call('queue.list', { campaign: 'summer sale' }), { rows: [{ campaign: 'summer sale', priority: 'low', wire: at('one') }] });
  t.match(await call('queue.hold', { tenant: 'demo', campaign: 'summer sale' }), { changed: 1 });
  t.match(await call('queue.release', { campaign: 'summer' }), { changed: 0 }, 'the whole name');
  t.match(await call('queue.drop', { campaign: 'summer sale' }), { changed: 1 });
  t.match(await call('queue.drop', { campaign: 'winter' }), { changed: 1 });
  t.match(await call('queue.drop', { all: true }), { changed: 1 });
  const two = { ...desk, settings: () => ({ ...desk.settings(), tenants: new Map([...desk.settings().tenants, ['second', [...desk.settings().tenants.values()][0] as Tenant]]) }) };
  await t.rejects(async () => operationsOf(two)['queue.drop']?.({ campaign: 'x' }, () => undefined), { message: /say whose campaign, with --tenant; there are: demo, second/ });
  await t.rejects(call('queue.drop', { campaign: 'x', tenant: 'nobody' }), { message: /no tenant "nobody"/ });
});

t.test('tenants: suspended and resumed', async (t) => {
  t.match(await call('suspend', { tenant: 'demo', cause: 'unpaid' }), { cause: 'unpaid', by: 'cli' });
  t.match(await call('suspend', { tenant: 'demo', cause: 'again' }), { cause: 'unpaid' }, 'the first cause stays');
  t.same(expelled, ['demo', 'demo']);
  t.match(await call('explain', who('reader', { stream: 'newsletter' })), { recipient: { answer: 'no', rule: 'tenant-suspended' } });
  t.same(await call('resume', { tenant: 'demo' }), { resumed: true });
  t.same(await call('resume', { tenant: 'demo' }), { resumed: false });
  await t.rejects(call('suspend', { tenant: 'demo' }), { message: /cause is missing/ });
  await t.rejects(call('resume', { tenant: 'x' }), { message: /no tenant "x"/ });
});

t.test('ledger: receipts and the checkpoint', async (t) => {
  interface Proof { readonly leaf: number; readonly payload: string; readonly verifier_key: string; readonly policy?: object }
  const given = await call<Proof>('ledger.receipt', who('reader', { purpose: 'newsletter' }));
  t.match(JSON.parse(given.payload), { event: 'consent', event_state: 'given', purpose: 'newsletter' });
  t.match(given.policy, { purposes: ['newsletter', 'receipts'], text: String });
  const { verdict } = await import(`${'../../scripts/verify-receipt.mjs'}?functions`) as { verdict: (read: () => string, key?: string) => { good: boolean; checks: { check: string }[] } };
  const checked = verdict(() => JSON.stringify(given), given.verifier_key);
  t.ok(checked.good);
  t.same(checked.checks.map(({ check }) => check), ['format', 'key', 'signature', 'size', 'inclusion', 'policy'].filter((name) => checked.checks.some(({ check }) => check === name)));
  t.ok(checked.checks.some(({ check }) => check === 'policy'), 'text and permissions of the policy are proved too');
  t.match(await call('ledger.receipt', { tenant: 'demo', leaf: given.leaf }), { payload: given.payload });
  await call('consent.withdraw', who('german'));
  t.match(JSON.parse((await call<Proof>('ledger.receipt', who('german', { purpose: 'newsletter' }))).payload), { event: 'withdrawal', supersedes: Number }, 'the last word');
  const checkpoint = await call<Proof>('ledger.checkpoint', { tenant: 'demo' });
  t.match(checkpoint, { size: Number, checkpoint: /^relay\.demo\.example\/ledger\// });
  t.equal(checkpoint.verifier_key, given.verifier_key);
  for (const [params, text] of [
    [{ tenant: 'demo' }, /say which: --rcpt with --purpose, or --leaf/], [{ tenant: 'demo', leaf: 99_999 }, /no leaf 99999/], [{ tenant: 'demo', leaf: null }, /whole number/],
    [who('stranger', { purpose: 'newsletter' }), /nothing is on record/], [who('reader', { purpose: 'x' }), /"x" is in no policy/],
  ] as const) await t.rejects(call('ledger.receipt', params), { code: 'E_CONTROL', message: text });
});

t.test('ledger verify: good while it grows, and a changed journal file is named', async (t) => {
  interface Verified { readonly tenants: readonly { readonly reason: string; readonly first_bad: number }[] }
  const growing = (async () => {
    for (let i = 0; i < 200; i++) await desk.ledger.note('demo', 'admin', 'test', { act: 'meanwhile' });
  })();
  for (let i = 0; i < 20; i++) t.match(await call('ledger.verify'), { ok: true }, 'appending is no tampering');
  await growing;
  desk.journal.record(newEvent('consent', systemClock, { tenant: 'demo', reason: 'a line to change' }));
  await stores.close();
  await open();
  t.match(await call('ledger.verify', { tenant: 'demo' }), { ok: true, tenants: [{ tenant: 'demo', journal: { compared: 1, gone: 0 } }] });
  const events = join(grounds.dataDir, 'events');
  const file = join(events, readdirSync(events).filter((name) => name.endsWith('.jsonl')).sort()[0] ?? '');
  const before = readFileSync(file, 'utf8');
  writeFileSync(file, before.replace('a line to change', 'a line I changed'));
  const changed = await call<Verified>('ledger.verify', { tenant: 'demo' });
  t.match(changed, { ok: false, tenants: [{ ok: false, first_bad: Number, reason: /some were changed/ }] });
  writeFileSync(file, before.slice(0, before.indexOf('\n') + 1));
  t.match((await call<Verified>('ledger.verify', { tenant: 'demo' })).tenants[0]?.reason ?? '', /holds \d+ lines of this tenant, not \d+/);
  writeFileSync(file, before);
  const leaf = await desk.ledger.log.entry('demo', changed.tenants[0]?.first_bad ?? -1);
  t.match(JSON.parse(leaf?.payload ?? '{}'), { event: 'journal' });
  t.match(await call('ledger.verify'), { ok: true });
  await t.rejects(call('ledger.verify', { tenant: 'x' }), { message: /no tenant "x"/ });
});

t.test('T2: the decision about a message names the rule, the evidence, the policy, and how to prove it', async (t) => {
  const id = await queue('reader', 'second', 'third');
  const policy = desk.settings().tenants.get('demo')?.policies[0]?.hash ?? '';
  const { facts } = await call<{ facts: { consent: { id: string } } }>('explain', who('reader', { stream: 'newsletter' }));
  const evidence = facts.consent.id;
  const told = { tenant: 'demo', stream: 'newsletter', message_id: id };
  desk.journal.record(newEvent('accepted', systemClock, { ...told, recipients: 3, policy }));
  desk.journal.record(newEvent('refused', systemClock, { ...told, rule: 'consent-missing', person: 'ffffffffffff' }));
  desk.journal.record(newEvent('deferred', systemClock, { ...told, recipient: 0, rule: 'ok-consent', evidence, policy }));
  desk.journal.record(newEvent('delivered', systemClock, { ...told, recipient: 0, rule: 'ok-consent', evidence, policy }));
  desk.journal.record(newEvent('suppressed', systemClock, { ...told, recipient: 1, rule: 'suppressed-complaint' }));
  const answer = await call<{ recipients: readonly { receipt?: string }[] }>('explain.decision', { id });
  t.match(answer, { message_id: id, tenant: 'demo', stream: 'newsletter', accepted_at: Number, recipients: [
    { recipient: 0, event: 'delivered', rule: 'ok-consent', evidence, policy, version: '2026-01' }, { recipient: 1, event: 'suppressed', rule: 'suppressed-complaint' },
    { recipient: 2, event: 'waiting' }, { event: 'refused', rule: 'consent-missing', person: 'ffffffffffff' },
  ] });
  t.equal(answer.recipients.length, 4);
  const leaf = /^postern ledger receipt --tenant demo --leaf (\d+)$/.exec(answer.recipients[0]?.receipt ?? '')?.[1];
  t.match(await call('ledger.receipt', { tenant: 'demo', leaf: Number(leaf) }), { payload: /"event":"consent".*"event_state":"given"/, policy: { purposes: Array } }, 'what it names can be proved');
  t.notOk(answer.recipients[1]?.receipt, 'nothing to prove where nothing was relied on');
  await call('queue.drop', { id });
  await t.rejects(call('explain.decision', { id: newId(1) }), { message: /the journal tells nothing of it/ });
  await t.rejects(call('explain.decision', { id: 'x' }), { message: /not a message id/ });
});

t.test('many people, and a proposed configuration', async (t) => {
  const place = { tenant: 'demo', stream: 'newsletter' };
  const rcpts = [at('reader'), at('stranger'), 'x@example.de', 'no address'];
  t.match(await call('explain.people', { ...place, rcpts }), { people: [
    { rcpt: at('reader'), answer: 'yes', rule: 'ok-consent', profile: 'eu', tracking: { opens: 'individual' } }, { answer: 'no', rule: 'consent-missing', reason: String },
    { answer: 'no', rule: 'profile-double-opt-in', profile: 'de' }, { rcpt: 'no address', error: String },
  ] });
  const proposed = join(grounds.dir, 'proposed');
  cpSync(grounds.root, proposed, { recursive: true });
  const edit = (change: (text: string) => string): void => writeFileSync(join(proposed, 'tenants/demo.yaml'), change(readFileSync(join(grounds.root, 'tenants/demo.yaml'), 'utf8')));
  edit((text) => text.replace('jurisdiction: eu', 'jurisdiction: de'));
  const hash = desk.settings().hash;
  const { people, tree } = await call<{ people: PersonJudged[]; tree: string }>('explain.people', { ...place, rcpts, proposed });
  t.match(people[0], { answer: 'yes', proposed: { answer: 'no', rule: 'profile-double-opt-in' } });
  t.same(changes(people), [{ rcpt: at('reader'), change: 'was yes (ok-consent) -> no (profile-double-opt-in)' }]);
  t.match(peopleText(people, proposed, []), /1 of 4 would be treated otherwise\npeople +change\n1 +was yes \(ok-consent\) -> no \(profile-double-opt-in\)/);
  t.not(tree, hash);
  t.equal(desk.settings().hash, hash, 'the proposed tree is not adopted');
  t.match(await call('explain', who('reader', place)), { recipient: { answer: 'yes' } });
  edit((text) => text.replace('shadow: [profile-footer-sender, profile-footer-contact]', ''));
  const message = Buffer.from('From: news@demo.example\nSubject: x\n\nNothing shown.\n').toString('base64');
  t.match(await call('explain.letter', { ...place, proposed, message, profiles: ['eu'], proposedProfiles: ['eu'] }), { message: { answer: 'yes', shadowed: ['profile-footer-sender', 'profile-footer-contact'] }, proposed: { answer: 'no', rule: 'profile-footer-sender' } });
  edit((text) => text.replace('tracking: { opens: individual, clicks: individual }\n', 'tracking: { opens: individual, clicks: individual }\n  - { version: "next", effective: 2099-01-01, text: policies/demo-2026-01.md, purposes: [newsletter], tracking: { opens: none, clicks: none } }\n'));
  t.match(await call('explain.people', { ...place, rcpts, proposed }), { coming: [{ version: 'next' }] });
  const later = await call<{ people: PersonJudged[] }>('explain.people', { ...place, rcpts: [at('reader')], proposed, at: Date.parse('2099-01-02') });
  t.same(changes(later.people).map(({ change }) => change), ['was yes (ok-consent; opens individual, clicks individual) -> yes (ok-consent; opens none, clicks none)']);
  for (const [change, text] of [
    [(text: string) => text.replace('class: marketing', 'class: marketting'), /1 problem\(s\):\ntenants\/demo\.yaml:\d+:\d+ streams\[0\]\.class: .*marketing/],
    [(text: string) => text.replace('[newsletter, receipts]', '[newsletter]').replace(/  - \{ id: receipts.*\n/, '').replace(/  - username: demo-receipts[^]*$/, ''), /tenants\/demo\.yaml:\d+:\d+ policies\[0\]\.version: this version was published as/],
    [(text: string) => text.replace('id: newsletter', 'id: letters').replace('stream: newsletter', 'stream: letters'), /in .*proposed: tenant demo has no stream "newsletter"; it has: letters/],
  ] as const) {
    edit(change);
    await t.rejects(call('explain.people', { ...place, rcpts, proposed }), { message: text });
  }
  await t.rejects(call('explain.people', { ...place, rcpts, proposed: 'proposed' }), { message: /absolute path/ });
  await t.rejects(call('explain.people', { ...place, rcpts: 'x' }), { message: /expected a list/ });
});
