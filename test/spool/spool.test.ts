// The spool on real files and a real LMDB: stored is kept, settled is gone, damage is held, full is refused,
// and no file tells an address. Crashes are in test/crash/spool.test.ts.
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Composed } from '../../daemon/mail/index.ts';
import type { Spool, Waiting } from '../../daemon/spool/index.ts';
import { composed, folder, openIn } from './room.ts';

const LATER = Date.now() + 86_400_000;
const FAR = Date.now() + 10 * 86_400_000;

async function spoolFor(t: Pick<typeof import('tap').t, 'teardown'>, more: Parameters<typeof openIn>[1] = {}): Promise<{ dir: string; spool: Spool }> {
  const dir = folder();
  const spool = await openIn(dir, more);
  t.teardown(async () => {
    await spool.close();
    rmSync(dir, { recursive: true });
  });
  return { dir, spool };
}

function all(spool: Spool, until = FAR): Waiting[] {
  return [...spool.queues()].flatMap((q) => spool.due(q.queue, until, 10_000));
}

t.test('a stored message comes back due, recipient by recipient, and its body as it was', async (t) => {
  const { spool } = await spoolFor(t);
  const ready: string[] = [];
  spool.onReady((q) => ready.push(`${q.tenant} ${q.domain}`));
  const m = composed(['ann@one.example', 'bob@one.example', 'eve@two.example'], 3_000);
  const stored = await spool.store(m, { expiresAt: FAR });
  t.equal(stored.id, m.id);
  t.same(ready.toSorted(), ['acme one.example', 'acme two.example']);
  t.same([...spool.queues()].map((q) => q.domain).toSorted(), ['one.example', 'two.example']);
  const due = all(spool);
  t.same(due.map((d) => d.recipient.wire).toSorted(), ['ann@one.example', 'bob@one.example', 'eve@two.example']);
  const ann = due.find((d) => d.index === 0);
  t.same(ann?.recipient.hashes, m.recipients[0]?.hashes);
  t.same(ann?.recipient.dsn, m.recipients[0]?.dsn);
  t.same(ann?.message, { origin: m.origin, envelope: m.envelope, plan: m.plan, sizeBytes: 3_000, receivedAt: m.receivedAt });
  t.same(await spool.body(m.id), m.raw);
  t.equal(spool.tenantOf(m.id), 'acme');
  t.match(spool.counts(), { messages: 1, recipients: 3 });
  t.equal(spool.show(m.id)?.recipients.length, 3);
  t.equal(spool.show('0'.repeat(26)), undefined);
});

t.test('settling: later comes back later with one attempt more, the last done frees the body', async (t) => {
  const { spool } = await spoolFor(t);
  const m = composed(['ann@one.example', 'bob@one.example']);
  await spool.store(m, { expiresAt: FAR });
  const [first, second] = all(spool) as [Waiting, Waiting];
  await spool.settle(first, { kind: 'later', nextAt: LATER, lastReply: '451 4.7.1 try later' });
  t.equal(all(spool, Date.now()).length, 1);
  const again = all(spool, LATER).find((d) => d.index === first.index);
  t.match(again?.recipient, { attempts: 1, nextAt: LATER, lastReply: '451 4.7.1 try later', wire: first.recipient.wire });
  // Twice at once, as after a bug or a race: counted once.
  await Promise.all([spool.settle(second, { kind: 'done' }), spool.settle(second, { kind: 'done' })]);
  t.match(spool.counts(), { messages: 1, recipients: 1 });
  await spool.settle(first, { kind: 'done' });
  t.match(spool.counts(), { messages: 0, recipients: 0, liveBytes: 0 });
  await t.rejects(spool.body(m.id), { code: 'E_SPOOL_CORRUPT' });
  await spool.settle(first, { kind: 'later', nextAt: LATER, lastReply: '' });
  t.same(all(spool), [], 'a recipient who is gone does not come back');
});

t.test('due gives the earliest first, passes over what is under way, and stops at the limit', async (t) => {
  const { spool } = await spoolFor(t);
  for (let i = 0; i < 5; i++) await spool.store(composed([`p${i}@one.example`]), { expiresAt: FAR });
  const rows = all(spool);
  for (const [i, d] of rows.entries()) await spool.settle(d, { kind: 'later', nextAt: LATER - i, lastReply: '' });
  const [q] = [...spool.queues()];
  t.equal(q?.nextAt, LATER - 4);
  t.equal(spool.nextAt(q?.queue ?? ''), LATER - 4);
  t.equal(spool.nextAt('0'.repeat(32)), undefined);
  const got = spool.due(q?.queue ?? '', LATER, 2, (id) => id === rows[3]?.id);
  t.same(got.map((d) => d.id), [rows[4]?.id, rows[2]?.id]);
});

t.test('hold, release, retry, drop and list, by message, tenant and domain', async (t) => {
  const { spool } = await spoolFor(t);
  const m = composed(Array.from({ length: 1_200 }, (_, i) => `p${i}@one.example`));
  const other = composed(['x@one.example', 'y@two.example'], 100, 'other');
  await Promise.all([spool.store(m, { expiresAt: FAR }), spool.store(other, { expiresAt: FAR })]);
  t.equal(await spool.hold({ tenant: 'acme', domain: 'one.example' }), 1_200);
  t.equal(await spool.hold({ tenant: 'acme' }), 0);
  t.equal(all(spool).length, 2);
  t.same([...spool.queues()].map((q) => q.tenant), ['other', 'other']);
  t.equal(await spool.release({ id: m.id }), 1_200);
  t.equal(all(spool).length, 1_202);
  for (const d of all(spool).slice(0, 50)) await spool.settle(d, { kind: 'later', nextAt: LATER, lastReply: '' });
  t.equal(await spool.retry({}), 50);
  t.equal(all(spool, Date.now()).length, 1_202);
  const page = await spool.list({ tenant: 'acme', limit: 1_000 });
  const rest = await spool.list({ tenant: 'acme', limit: 1_000, after: page.at(-1)?.cursor ?? '' });
  t.equal(new Set([...page, ...rest].map((l) => l.index)).size, 1_200);
  t.equal((await spool.list({ domain: 'two.example', limit: 9 }))[0]?.recipient.wire, 'y@two.example');
  t.equal(await spool.drop({ id: m.id, tenant: 'other' }), 0, 'another tenant\'s message is not touched');
  t.equal(await spool.drop({ domain: 'one.example' }), 1_201);
  t.match(spool.counts(), { messages: 1, recipients: 1 });
});

t.test('what is in every queue is changed once each, counted by tenant as it goes', async (t) => {
  const { spool } = await spoolFor(t);
  const people = Array.from({ length: 1_000 }, (_, i) => `p${i}@d${i % 300}.example`);
  for (let i = 0; i < 13; i++) await spool.store(composed(people), { expiresAt: FAR });
  await spool.store(composed(people.slice(0, 20), 100, 'other'), { expiresAt: FAR });
  const counts: Record<string, number[]> = {};
  const counted = (tenant: string, recipients: number): void => void (counts[tenant] ??= []).push(recipients);
  const sum = (tenant: string): number => (counts[tenant] ?? []).reduce((a, b) => a + b, 0);
  t.equal(await spool.hold({ tenant: 'acme' }, counted), 13_000);
  t.same([Object.keys(counts), sum('acme')], [['acme'], 13_000]);
  t.ok((counts['acme']?.length ?? 0) >= 13, 'told of page by page');
  t.same([...spool.queues()].map(({ tenant }) => tenant), people.slice(0, 20).map(() => 'other'));
  t.equal(await spool.hold({}, counted), 20);
  t.equal(sum('other'), 20);
  t.equal(await spool.release({}), 13_020);
  t.equal([...spool.queues()].length, 320);
  t.equal(await spool.drop({ tenant: 'acme' }), 13_000);
  t.match(spool.counts(), { messages: 1, recipients: 20 });
});

t.test('what waits for one person is found by any of their hashes, and made due', async (t) => {
  const { spool } = await spoolFor(t);
  const [one, two] = [composed(['ann@one.example', 'bob@one.example']), composed(['ann@one.example'], 100, 'other')];
  await Promise.all([spool.store(one, { expiresAt: FAR }), spool.store(two, { expiresAt: FAR })]);
  for (const d of all(spool)) await spool.settle(d, { kind: 'later', nextAt: LATER, lastReply: '' });
  const hashes = one.recipients[0]?.hashes ?? { consent: Buffer.alloc(16), suppression: Buffer.alloc(16), family: Buffer.alloc(16) };
  for (const person of Object.values(hashes)) t.same((await spool.list({ tenant: 'acme', person, limit: 9 })).map(({ index }) => index), [0]);
  t.same(await spool.list({ person: Buffer.alloc(16), limit: 9 }), []);
  t.equal(await spool.retry({ id: one.id, person: two.recipients[0]?.hashes.family ?? Buffer.alloc(16) }), 0, 'not to this person');
  t.equal(await spool.retry({ tenant: 'acme', person: hashes.family }), 1);
  t.same(all(spool, Date.now()).map(({ id, index }) => [id, index]), [[one.id, 0]]);
});

t.test('priorities have queues of their own, and commands reach all of them', async (t) => {
  const { dir, spool } = await spoolFor(t);
  const ready: string[] = [];
  spool.onReady((q) => ready.push(`${q.domain} ${q.priority}`));
  for (const priority of ['low', 'normal', 'high'] as const) await spool.store(composed(['ann@one.example', 'bob@two.example']), { expiresAt: FAR, priority });
  t.same(ready, ['one.example low', 'two.example low', 'one.example normal', 'two.example normal', 'one.example high', 'two.example high']);
  t.equal(new Set([...spool.queues()].map(({ queue }) => queue)).size, 6);
  for (const { queue } of spool.queues()) t.equal(spool.countDue(queue, FAR, 9), 1);
  const one = { tenant: 'acme', domain: 'one.example' };
  const first = await spool.list({ ...one, limit: 2 });
  const rest = await spool.list({ ...one, limit: 2, after: first.at(-1)?.cursor ?? '' });
  t.same([...first, ...rest].map(({ priority }) => priority).toSorted(), ['high', 'low', 'normal'], 'a domain is listed whole, page by page');
  t.equal(await spool.hold(one), 3);
  await spool.close();
  const again = await openIn(dir);
  t.same([...again.queues()].map(({ domain, priority }) => `${domain} ${priority}`).toSorted(), ['two.example high', 'two.example low', 'two.example normal']);
  await again.close();
});

t.test('a campaign is found among much else, by its tenant\'s hash alone', async (t) => {
  const { spool } = await spoolFor(t);
  const people = (n: number): string[] => Array.from({ length: n }, (_, i) => `p${i}@d${i % 50}.example`);
  await Promise.all([
    ...Array.from({ length: 5 }, () => spool.store(composed(people(600)), { expiresAt: FAR, campaign: 'autumn' })),
    spool.store(composed(people(4_470)), { expiresAt: FAR, campaign: 'summer', priority: 'low' }),
    spool.store(composed(people(30)), { expiresAt: FAR, campaign: 'summer' }),
    spool.store(composed(people(40)), { expiresAt: FAR }),
    spool.store(composed(people(20), 100, 'other'), { expiresAt: FAR, campaign: 'summer' }),
  ]);
  const summer = spool.campaign('acme', 'summer');
  t.equal((await spool.list({ campaign: summer, limit: 9_999 })).length, 4_500);
  t.match((await spool.list({ campaign: summer, limit: 1 }))[0], { campaign: 'summer', tenant: 'acme' });
  const seen: string[] = [];
  for (let after: string | undefined; ;) {
    const page = await spool.list({ campaign: summer, limit: 1_333, ...(after !== undefined && { after }) });
    seen.push(...page.map(({ id, index }) => `${id}/${index}`));
    after = page.at(-1)?.cursor;
    if (page.length < 1_333) break;
  }
  t.same([seen.length, new Set(seen).size], [4_500, 4_500], 'listed page by page');
  t.same(await spool.list({ campaign: summer, tenant: 'other', limit: 9 }), []);
  t.equal(await spool.hold({ tenant: 'acme', campaign: summer }), 4_500);
  t.equal(await spool.hold({ campaign: summer }), 0);
  t.equal(await spool.release({ campaign: summer, domain: 'd7.example' }), 91, 'with a domain: what is both');
  t.equal(await spool.drop({ campaign: summer }), 4_500);
  t.equal(spool.counts().recipients, 3_060);
  const [row] = await spool.list({ tenant: 'other', limit: 1 });
  t.equal(spool.show(row?.id ?? '')?.meta.campaign, 'summer', 'the other tenant keeps its own');
});

t.test('who may wait no longer is found by the end of its time, unless held or settled', async (t) => {
  const { dir, spool } = await spoolFor(t);
  const [soon, later] = [Date.now() + 60_000, Date.now() + 120_000];
  const [a, b, c] = [composed(['a@one.example', 'b@two.example']), composed(['c@one.example']), composed(['d@one.example'])];
  await spool.store(a, { expiresAt: soon });
  await spool.store(b, { expiresAt: later, priority: 'high' });
  await spool.store(c, { expiresAt: soon });
  // Of one time they come by their ids, which are random within a millisecond.
  const wires = (s: Spool, until: number): string[] => s.ended(until, 9).map(({ recipient }) => recipient.wire).toSorted();
  t.same(wires(spool, soon - 1), []);
  t.same(wires(spool, soon), ['a@one.example', 'b@two.example', 'd@one.example']);
  t.same(spool.ended(soon, 9, (id) => id === a.id).map(({ id }) => id), [c.id]);
  t.equal(spool.ended(later, 9).at(-1)?.id, b.id, 'who ends first comes first');
  t.equal(spool.ended(later, 2).length, 2);
  await spool.hold({ id: c.id });
  for (const d of all(spool).filter(({ id }) => id === a.id)) await spool.settle(d, d.index === 0 ? { kind: 'done' } : { kind: 'later', nextAt: soon, lastReply: '' });
  t.same(wires(spool, later), ['b@two.example', 'c@one.example']);
  await spool.close();
  const again = await openIn(dir);
  t.same(wires(again, later), ['b@two.example', 'c@one.example'], 'over a restart too');
  await again.release({ id: c.id });
  t.same(wires(again, soon), ['b@two.example', 'd@one.example']);
  const due = again.ended(soon, 9).find(({ id }) => id === a.id);
  t.same([...again.queues()].find(({ queue }) => queue === due?.queue)?.domain, 'two.example');
  await again.close();
});

t.test('a row that due() gave is known to be held or gone since', async (t) => {
  const { spool } = await spoolFor(t);
  const m = composed(['a@one.example', 'b@one.example']);
  await spool.store(m, { expiresAt: FAR });
  const [first, second] = all(spool) as [Waiting, Waiting];
  t.ok(spool.stillDue(first, Date.now()));
  await spool.settle(first, { kind: 'done' });
  t.notOk(spool.stillDue(first, Date.now()));
  await spool.hold({});
  t.notOk(spool.stillDue(second, Date.now()));
  await spool.release({});
  t.ok(spool.stillDue(second, Date.now()));
});

t.test('nothing stands in clear in any file', async (t) => {
  const { dir, spool } = await spoolFor(t);
  const body = Buffer.from('Subject: Quarterlysecret\r\n\r\nDear Annabel\r\n');
  await spool.store(composed(['annabel@receiver.example'], body), { expiresAt: FAR });
  for (const d of all(spool)) await spool.settle(d, { kind: 'later', nextAt: LATER, lastReply: '451 annabel unknown' });
  const grep = (text: string): string => {
    try {
      return execFileSync('grep', ['-rilaF', text, dir], { encoding: 'utf8' });
    } catch {
      return ''; // grep's way to say that it found nothing
    }
  };
  for (const text of ['annabel', 'receiver.example', 'Quarterlysecret', 'sender.example']) t.equal(grep(text), '', text);
});

t.test('a second opener is refused, and reopening finds everything', async (t) => {
  const dir = folder();
  t.teardown(() => rmSync(dir, { recursive: true }));
  const spool = await openIn(dir);
  await t.rejects(openIn(dir), { code: 'E_STORE_LOCKED' });
  const kept: Composed[] = [];
  for (let i = 0; i < 20; i++) kept.push(composed([`p${i}@d${i % 3}.example`], 2_000));
  await Promise.all(kept.map((m) => spool.store(m, { expiresAt: FAR })));
  const counts = spool.counts();
  await spool.close();
  await t.rejects(spool.store(composed(['a@b.example']), { expiresAt: FAR }), { code: 'E_STORE' });
  // A process that is gone, and one whose number has been given to another since.
  for (const stale of ['999999999 1 boot', `${process.pid} 1 another-boot`]) {
    writeFileSync(join(dir, 'spool', 'lock'), stale);
    writeFileSync(join(dir, 'spool', 'segments', '00000099.seg'), 'torn');
    const again = await openIn(dir);
    t.same(again.counts(), counts);
    t.notOk(readdirSync(join(dir, 'spool', 'segments')).includes('00000099.seg'), 'an orphan is unlinked');
    for (const m of kept) t.ok((await again.body(m.id)).equals(m.raw));
    t.equal(all(again).length, 20);
    await again.close();
  }
  t.same(readdirSync(join(dir, 'spool')).toSorted(), ['rows', 'segments']);
});

t.test('a damaged body is refused; a damaged envelope is held', async (t) => {
  const dir = folder();
  t.teardown(() => rmSync(dir, { recursive: true }));
  const spool = await openIn(dir);
  const m = composed(['ann@one.example'], 5_000);
  await spool.store(m, { expiresAt: FAR });
  await spool.close();
  const file = join(dir, 'spool', 'segments', '00000001.seg');
  const bytes = readFileSync(file);
  const flip = (at: number): void => {
    const damaged = Buffer.from(bytes);
    damaged[at] = (damaged[at] ?? 0) ^ 1;
    writeFileSync(file, damaged);
  };
  flip(bytes.length - 100);
  let again = await openIn(dir);
  t.equal(all(again).length, 1);
  await t.rejects(again.body(m.id), { code: 'E_SPOOL_CORRUPT' });
  // What the attempt does then: hold the message, and whatever it still settles leaves it held.
  const [found] = all(again) as [Waiting];
  t.equal(await again.hold({ id: m.id }), 1);
  await again.settle(found, { kind: 'later', nextAt: Date.now(), lastReply: '' });
  t.same(all(again), [], 'a held recipient is not due');
  t.same([...again.queues()], []);
  t.equal(await again.release({ id: m.id }), 1);
  await again.close();
  flip(60);
  again = await openIn(dir);
  t.same(all(again), []);
  await again.close();
  writeFileSync(file, bytes);
  again = await openIn(dir);
  t.same(all(again), [], 'held');
  t.equal(await again.release({ id: m.id }), 1);
  t.equal(all(again).length, 1);
  await again.close();
});

t.test('below the reserve nothing is taken, and what waits still goes', async (t) => {
  const dir = folder();
  t.teardown(() => rmSync(dir, { recursive: true }));
  let spool = await openIn(dir);
  await spool.store(composed(['ann@one.example']), { expiresAt: FAR });
  await spool.close();
  spool = await openIn(dir, { reserveBytes: 2 ** 52 });
  await t.rejects(spool.store(composed(['bob@one.example']), { expiresAt: FAR }), { code: 'E_SPOOL_FULL' });
  t.match(spool.counts(), { messages: 1, recipients: 1 });
  for (const d of all(spool)) await spool.settle(d, { kind: 'done' });
  t.match(spool.counts(), { messages: 0 });
  await spool.close();
  spool = await openIn(dir);
  t.match(spool.counts(), { segmentBytes: 0 });
  await spool.close();
});

t.test('a sparse segment is rewritten, and an empty one unlinked', async (t) => {
  const { dir, spool } = await spoolFor(t);
  const kept: Composed[] = [];
  const BODY = 1024 * 1024;
  for (let i = 0; i < 80; i++) {
    const m = composed([`p${i}@one.example`], BODY);
    await spool.store(m, { expiresAt: FAR });
    if (i % 20 === 0) kept.push(m);
    else for (const d of all(spool).filter((d) => d.id === m.id)) await spool.settle(d, { kind: 'done' });
  }
  const deadline = Date.now() + 10_000;
  while (readdirSync(join(dir, 'spool', 'segments')).includes('00000001.seg') && Date.now() < deadline) await new Promise((r) => setTimeout(r, 50));
  t.notOk(readdirSync(join(dir, 'spool', 'segments')).includes('00000001.seg'));
  t.match(spool.counts(), { messages: 4 });
  await spool.close();
  const again = await openIn(dir);
  for (const m of kept) t.ok((await again.body(m.id)).equals(m.raw));
  await again.close();
});

t.test('ten thousand domains, sixty thousand rows', async (t) => {
  const { spool } = await spoolFor(t);
  const started = performance.now();
  for (let i = 0; i < 6; i++) {
    await spool.store(composed(Array.from({ length: 10_000 }, (_, j) => `p${i}@d${j}.example`), 100), { expiresAt: FAR });
  }
  const storedMs = performance.now() - started;
  t.match(spool.counts(), { messages: 6, recipients: 60_000 });
  const seeking = performance.now();
  const heads = [...spool.queues()];
  t.equal(heads.length, 10_000);
  t.comment(`stored in ${Math.round(storedMs)} ms, 10,000 heads in ${Math.round(performance.now() - seeking)} ms`);
  t.equal(spool.due(heads[0]?.queue ?? '', FAR, 100).length, 6);
});

t.test('the due index holds what the rows say, through several rounds of late changes and a reopening', async (t) => {
  const dir = folder();
  t.teardown(() => rmSync(dir, { recursive: true }));
  let spool = await openIn(dir);
  const expected = new Map<string, number>();
  const agree = (what: string): void => {
    const found = new Map<string, number>();
    for (const q of spool.queues()) {
      t.equal(q.nextAt, spool.nextAt(q.queue), 'a head is the first of its queue');
      for (const d of spool.due(q.queue, FAR, 100_000)) found.set(`${d.id}/${d.index}`, d.recipient.nextAt);
    }
    t.equal(found.size, expected.size, what);
    t.equal([...expected].filter(([key, at]) => found.get(key) !== at).length, 0, `${what}: every recipient at its time, once`);
    t.equal(spool.counts().recipients, expected.size);
  };
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 4; i++) {
      // Every other message has an id from long ago, as one whose session was slow.
      const m = composed(Array.from({ length: 1_500 }, (_, j) => `p${j}@d${j % 37}.example`), 100, 'acme', Date.now() - (i % 2) * 3_600_000);
      const { storedAt } = await spool.store(m, { expiresAt: FAR });
      for (let j = 0; j < 1_500; j++) expected.set(`${m.id}/${j}`, storedAt);
    }
    const waiting = all(spool);
    await Promise.all(waiting.map(async (d, i) => {
      const key = `${d.id}/${d.index}`;
      if (i % 3 === 0) {
        expected.set(key, LATER + i);
        await spool.settle(d, { kind: 'later', nextAt: LATER + i, lastReply: '' });
      } else if (i % 3 === 1 && round < 2) {
        expected.delete(key);
        await spool.settle(d, { kind: 'done' });
      }
    }));
    if (round === 2) agree(`round ${round}`);
    await spool.close();
    spool = await openIn(dir);
    if (round !== 2) agree(`reopened after round ${round}`);
  }
  t.equal(await spool.drop({}), expected.size);
  t.match(spool.counts(), { messages: 0, recipients: 0, liveBytes: 0 });
  t.same([...spool.queues()], []);
  await spool.close();
});

t.test('rows cut short are E_STORE before anything is read, and the file stays as it is', async (t) => {
  const dir = folder();
  const spool = await openIn(dir);
  for (let n = 0; n < 200; n++) await spool.store(composed([`p${n}@r${n}.example`]), { expiresAt: FAR });
  await spool.close();
  const file = join(dir, 'spool/rows/data.mdb');
  const half = Math.floor(statSync(file).size / 8192) * 4096;
  truncateSync(file, half);
  await t.rejects(openIn(dir), { code: 'E_STORE', message: /data\.mdb has \d+ octets of \d+: it was cut off/ });
  t.equal(statSync(file).size, half);
});
