// What a person may ask of a tenant, done by the operator on a running relay whose receiving MX puts
// everybody off: all that is held, being forgotten while mail waits, being left alone. And the operator's
// word for a policy's page that the relay cannot see.
import { createServer } from 'node:http';
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { makeGrounds, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx } from '../lib/mx.ts';

interface Subject {
  readonly consents: readonly { readonly id: string; readonly purpose: string; readonly state: string }[];
  readonly suppressions: readonly { readonly cause: string; readonly scope: string }[];
  readonly history: readonly { readonly leaf: number; readonly entry?: Readonly<Record<string, unknown>> }[];
  readonly events: readonly Readonly<Record<string, unknown>>[];
  readonly waiting: readonly { readonly to: string; readonly message_id: string }[];
}

let mx: Mx;
let grounds: Grounds;
let daemon: Awaited<ReturnType<Grounds['serve']>>;
const who = (rcpt: string, more: object = {}): Record<string, unknown> => ({ tenant: 'demo', rcpt, ...more });
const subject = (rcpt: string): Promise<Subject> => grounds.control('subject.export', who(rcpt)) as Promise<Subject>;
const explain = (rcpt: string, stream = 'newsletter'): Promise<unknown> => grounds.control('explain', who(rcpt, { stream }));

async function waiting(rcpt: string): Promise<string> {
  const { id, reply } = await grounds.send({ from: 'news@demo.example', to: rcpt, subject: 'The letter', text: 'The story.' });
  if (id === '') throw new Error(reply);
  await grounds.event(id, ['deferred']);
  return id;
}

t.before(async () => {
  mx = await startMx();
  mx.script = { answers: { rcpt: '450 4.2.0 later' } };
  grounds = await makeGrounds(mx.port);
  await grounds.consent(Object.fromEntries(['ann@gmail.com', 'ann+shop@gmail.com', 'bea@gmail.com', 'cleo@example.com'].map((address) => [address, 'none'])));
  daemon = await grounds.serve();
});
t.teardown(async () => {
  await daemon.stop();
  await mx.close();
  grounds.remove();
});

t.test('all that is held of a person, and of nobody else', async (t) => {
  const id = await waiting('cleo@example.com');
  await grounds.control('suppress.add', who('cleo@example.com', { cause: 'objection', scope: 'stream:receipts' }));
  const held = await subject('CLEO@example.com');
  t.match(held, {
    format: 'postern-subject/1', tenant: 'demo', exported_at: /^\d{4}-/, pii_principal_id: /^[0-9a-f]{32}$/,
    consents: [{ purpose: 'newsletter', state: 'given', method: 'form' }], suppressions: [{ cause: 'objection', scope: 'stream:receipts' }],
    waiting: [{ message_id: id, to: 'cleo@example.com', attempts: 1, last_reply: /^450 / }],
  });
  t.equal(held.waiting.length, 1);
  t.ok(held.history.some(({ leaf, entry }) => String(leaf) === held.consents[0]?.id && entry?.['event'] === 'consent'));
  t.same(new Set(held.events.map(({ person }) => person)).size, 1);
  t.same(held.events.map(({ event }) => event).filter((event) => event === 'deferred' || event === 'suppression'), ['deferred', 'suppression']);
  t.notMatch(JSON.stringify(held.events), /@/, 'events have no address');
  t.match(await subject('nobody@example.com'), { consents: [], suppressions: [], history: [], events: [], waiting: [] });
  await t.rejects(subject('no address'), { code: 'E_ADDRESS' });
});

t.test('forgotten while mail waits, under another spelling as well', async (t) => {
  const [own, tagged, other] = [await waiting('ann@gmail.com'), await waiting('ann+shop@gmail.com'), await waiting('bea@gmail.com')];
  const [before] = (await subject('ann@gmail.com')).consents;
  // Of them alone: the notices that their mail was dropped go the same way.
  const named = (): number => mx.lines.filter((line) => line.startsWith('RCPT TO:<ann')).length;
  const tries = named();
  await t.rejects(grounds.control('subject.erase', who('ann@gmail.com')), { code: 'E_CONTROL', message: /for good; `postern subject export` first .* --yes/ });
  t.match(await grounds.control('subject.erase', who('ann@gmail.com', { yes: true })), {
    destroyed: { consent_records: Number, evidence: true }, waiting_mail_due: 2, remains: [/^a suppression of cause erasure/, /nobody can open/, /held/, /pseudonym/],
  });
  for (const id of [own, tagged]) t.match(await grounds.event(id, ['suppressed', 'delivered', 'failed']), { event: 'suppressed', rule: 'suppressed-erasure' });
  t.equal(named(), tries, 'nobody was connected to for them');
  t.match(await grounds.control('queue.show', { id: other }), { recipients: [{ wire: 'bea@gmail.com', attempts: 1 }] }, 'who is not meant waits on');
  t.match(await subject('ann@gmail.com'), { consents: [], suppressions: [{ cause: 'erasure', scope: 'all' }], waiting: [] });
  await t.rejects(grounds.control('ledger.receipt', { tenant: 'demo', leaf: Number(before?.id) }), { message: /erased/ });
  t.match(await grounds.control('ledger.verify'), { ok: true });
  t.match(await grounds.control('subject.erase', who('ann@gmail.com', { yes: true })), { destroyed: { consent_records: 0 }, waiting_mail_due: 0 }, 'may be repeated');
  await daemon.stop(); // what was recorded is on disk then
  const erased = execFileSync('grep', ['-rh', '"event":"erased"', join(grounds.dataDir, 'events')], { encoding: 'utf8' });
  t.notMatch(erased, /"person"/, 'who was forgotten is not written down');
  daemon = await grounds.serve();
});

t.test('evidence outlives the person where the tenant says so, and that is told', async (t) => {
  grounds.edit('tenants/demo.yaml', (yaml) => `keep_evidence: 365d\n${yaml}`);
  await grounds.control('reload');
  const [consent] = (await subject('cleo@example.com')).consents;
  t.match(await grounds.control('subject.erase', who('cleo@example.com', { yes: true })), { destroyed: { consent_records: 1, evidence: false }, evidence_kept_until: Number });
  t.match(await grounds.control('ledger.receipt', { tenant: 'demo', leaf: Number(consent?.id) }), { payload: /"event":"consent"/ }, 'by its number alone');
  t.match(await subject('cleo@example.com'), { consents: [] });
});

t.test('left alone, and mailed again', async (t) => {
  t.match(await grounds.control('subject.restrict', who('bea@gmail.com')), { restricted: true, id: String, since: Number });
  t.match(await explain('bea@gmail.com'), { recipient: { answer: 'no', rule: 'suppressed-restriction' } });
  t.match(await explain('bea@gmail.com', 'receipts'), { recipient: { answer: 'no', rule: 'suppressed-restriction' } }, 'on no stream at all');
  await grounds.control('suppress.add', who('bea@gmail.com', { cause: 'objection', scope: 'stream:receipts' }));
  t.same(await grounds.control('subject.restrict', who('bea@gmail.com', { off: true })), { restricted: false, lifted: 1 });
  t.match(await explain('bea@gmail.com'), { recipient: { answer: 'yes' } });
  t.match(await explain('bea@gmail.com', 'receipts'), { recipient: { rule: 'suppressed-objection' } }, 'only the restriction is lifted');
  t.same(await grounds.control('subject.restrict', who('bea@gmail.com', { off: true })), { restricted: false, lifted: 0 });
  const { events } = await subject('bea@gmail.com');
  t.same(events.filter(({ event }) => event === 'restricted').map(({ reason }) => reason), ['restricted', 'lifted']);
});

t.test('a version whose page is published elsewhere', async (t) => {
  // A page that is there and says something else.
  const elsewhere = createServer((_, answer) => void answer.end('another text'));
  await new Promise<void>((done) => elsewhere.listen(0, '127.0.0.1', done));
  t.teardown(() => elsewhere.close());
  const address = elsewhere.address();
  const port = typeof address === 'object' ? address?.port : undefined;
  writeFileSync(join(grounds.root, 'policies/next.md'), '# The next notice\n');
  grounds.edit('tenants/demo.yaml', (yaml) => yaml.replace(/pages: http\S+/, `pages: http://127.0.0.1:${port}`)
    .replace('domains:', '  - { version: "next", effective: 2099-01-01, text: policies/next.md, purposes: [newsletter], tracking: { opens: none, clicks: none } }\ndomains:'));
  await grounds.control('reload');
  for (let i = 0; i < 50 && !JSON.stringify(await grounds.control('policy.list', { tenant: 'demo' })).includes('waiting for its page'); i++) await new Promise((done) => setTimeout(done, 20));
  t.match(await grounds.control('policy.list', { tenant: 'demo' }), { policies: [{ version: '2026-01', state: 'in force' }, { version: 'next', state: 'waiting for its page', hash: /^[0-9a-f]{64}$/, effectiveAt: Number }] });
  t.match(await grounds.control('policy.publish', { tenant: 'demo', version: 'next' }), { changed: true, version: 'next', state: 'announced' });
  t.match(await grounds.control('policy.publish', { tenant: 'demo', version: 'next' }), { changed: false });
  await t.rejects(grounds.control('policy.publish', { tenant: 'demo', version: '9' }), { code: 'E_CONTROL', message: /no policy version "9"; it has: 2026-01, next/ });
  await t.rejects(grounds.control('policy.publish', { tenant: 'demo' }), { message: /version is missing/ });
});

t.test('a new token is in the tenant\'s log', async (t) => {
  t.same(await grounds.control('token.created', { tenant: 'demo', id: 'crm', scopes: ['receipts', 'nonsense'] }), { noted: true });
  for (const [params, message] of [[{ id: 'crm', scopes: [] }, /scopes: expected some of consents:read/], [{ scopes: ['receipts'] }, /id is missing/]] as const) {
    await t.rejects(grounds.control('token.created', { tenant: 'demo', ...params }), { code: 'E_CONTROL', message });
  }
});
