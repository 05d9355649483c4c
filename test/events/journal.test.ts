// The journal on real files: order, batches, rotation, retention, a torn line, a disk that fails, and
// what maskReply leaves of a remote host's sentence.
import { appendFileSync, chmodSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { maskReply, newEvent, openJournal, type Event, type Journal } from '../../daemon/events/index.ts';
import { newId, systemClock, type Clock, type Log } from '../../daemon/runtime/index.ts';

const HOUR = 3_600_000;
const logged: string[] = [];
const log: Log = { debug() {}, info() {}, warn: (_, text) => logged.push(text), error: (_, text) => logged.push(text) };

function clockAt(start: number): Clock & { now: () => number; move(ms: number): void } {
  let now = start;
  return { now: () => now, move: (ms) => { now += ms; }, after: (ms, run) => systemClock.after(Math.min(ms, 20), run) };
}

async function traced(journal: Journal, id: string): Promise<Event[]> {
  const events: Event[] = [];
  for await (const event of journal.trace(id)) events.push(event);
  return events;
}

function folder(test: { teardown(run: () => void): void }): string {
  const dir = mkdtempSync(join(tmpdir(), 'postern-events-'));
  test.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return join(dir, 'events');
}

t.test('records in order, traces one message across files, seals beside', async (t) => {
  const dir = folder(t);
  const clock = clockAt(1_800_000_000_000);
  const journal = openJournal({ dir, clock, keepMs: 24 * HOUR, log });
  t.teardown(() => journal.close());
  const mine = newId(clock.now());
  const other = newId(clock.now());
  journal.record(newEvent('accepted', clock, { tenant: 'acme', message_id: mine }));
  journal.record(newEvent('accepted', clock, { tenant: 'acme', message_id: other }));
  await journal.flush();
  clock.move(HOUR);
  journal.record(newEvent('delivered', clock, { message_id: mine, recipient: 0, reply: '250 2.0.0 ok' }), Buffer.from('sealed'));
  const events = await traced(journal, mine);
  t.same(events.map((event) => event.event), ['accepted', 'delivered']);
  t.match(events[1], { recipient: 0, sealed: Buffer.from('sealed').toString('base64') });
  t.equal(readdirSync(dir).length, 2, 'a new hour is a new file');
  t.equal(statSync(join(dir, readdirSync(dir)[0] as string)).mode & 0o077, 0, 'nobody else may read it');
  t.same(await traced(journal, newId(clock.now())), [], 'an unknown message has no events');
  t.same(await traced(journal, '../../etc/passwd'), [], 'not an id: nothing');
});

t.test('one person of one tenant, across files', async (t) => {
  const clock = clockAt(1_800_000_000_000);
  const journal = openJournal({ dir: folder(t), clock, keepMs: 24 * HOUR, log });
  t.teardown(() => journal.close());
  const [ann, bob] = ['0123456789ab', 'ba9876543210'];
  journal.record(newEvent('consent', clock, { tenant: 'acme', person: ann }));
  journal.record(newEvent('consent', clock, { tenant: 'other', person: ann }));
  journal.record(newEvent('consent', clock, { tenant: 'acme', person: bob, reason: `"person":"${ann}"` }));
  await journal.flush();
  clock.move(HOUR);
  journal.record(newEvent('delivered', clock, { tenant: 'acme', person: ann }));
  const of = async (tenant: string, person: string): Promise<string[]> => {
    const events: string[] = [];
    for await (const { event } of journal.person(tenant, person)) events.push(event);
    return events;
  };
  t.same(await of('acme', ann), ['consent', 'delivered']);
  t.same(await of('other', ann), ['consent']);
  t.same(await of('acme', 'ffffffffffff'), []);
  t.same(await of('acme', '","person":"'), [], 'no pseudonym: nothing');
});

t.test('what is recorded reaches the disk without a flush, and close loses nothing', async (t) => {
  const dir = folder(t);
  const journal = openJournal({ dir, clock: systemClock, keepMs: HOUR, log });
  journal.record(newEvent('started', systemClock));
  await new Promise((done) => setTimeout(done, 200));
  t.match(readFileSync(join(dir, readdirSync(dir)[0] as string), 'utf8'), /"event":"started"/);
  const message_id = newId(systemClock.now());
  for (let i = 0; i < 5_000; i++) journal.record(newEvent('delivered', systemClock, { message_id, recipient: i }));
  await journal.close();
  journal.record(newEvent('stopped', systemClock));
  t.equal(journal.lost, 1, 'after close an event is counted as lost');
  const again = openJournal({ dir, clock: systemClock, keepMs: HOUR, log });
  t.teardown(() => again.close());
  const events = await traced(again, message_id);
  t.same(events.map((event) => event.recipient), Array.from({ length: 5_000 }, (_, i) => i));
});

t.test('retention removes whole files and only event files', async (t) => {
  const dir = folder(t);
  const clock = clockAt(1_800_000_000_000);
  const first = openJournal({ dir, clock, keepMs: 2 * HOUR, log });
  first.record(newEvent('started', clock));
  await first.close();
  writeFileSync(join(dir, 'notes.txt'), 'mine');
  const [old] = readdirSync(dir).filter((name) => name.endsWith('.jsonl'));
  clock.move(2 * HOUR);
  await openJournal({ dir, clock, keepMs: 2 * HOUR, log }).close();
  t.ok(readdirSync(dir).includes(old as string), 'its last line may be younger than its name');
  clock.move(2 * HOUR);
  await openJournal({ dir, clock, keepMs: 2 * HOUR, log }).close();
  t.same(readdirSync(dir), ['notes.txt']);
});

t.test('a torn last line hides nothing else', async (t) => {
  const dir = folder(t);
  const journal = openJournal({ dir, clock: systemClock, keepMs: HOUR, log });
  t.teardown(() => journal.close());
  const message_id = newId(systemClock.now());
  journal.record(newEvent('accepted', systemClock, { message_id }));
  await journal.flush();
  appendFileSync(join(dir, readdirSync(dir)[0] as string), `{"id":"X","message_id":"${message_id}","eve`);
  t.equal((await traced(journal, message_id)).length, 1);
});

t.test('a disk that fails is counted and logged once, and mail does not notice', async (t) => {
  const dir = folder(t);
  const journal = openJournal({ dir, clock: systemClock, keepMs: HOUR, log });
  t.teardown(() => journal.close());
  renameSync(dir, `${dir}.away`);
  writeFileSync(dir, 'not a folder');
  chmodSync(dir, 0o600);
  logged.length = 0;
  for (let i = 0; i < 3; i++) {
    journal.record(newEvent('accepted', systemClock));
    await journal.flush();
  }
  t.equal(journal.lost, 3);
  t.equal(logged.filter((text) => text.includes('being lost')).length, 1);
  rmSync(dir);
  renameSync(`${dir}.away`, dir);
  journal.record(newEvent('accepted', systemClock));
  await journal.flush();
  t.equal(journal.lost, 3, 'writing goes on when the disk is back');
  t.equal(readdirSync(dir).length, 1);
});

t.test('followers see each event, and a failing one is dropped', async (t) => {
  const journal = openJournal({ dir: folder(t), clock: systemClock, keepMs: HOUR, log });
  t.teardown(() => journal.close());
  const seen: string[] = [];
  const end = journal.follow((event) => seen.push(event.event));
  journal.follow(() => { throw new Error('closed terminal'); });
  journal.record(newEvent('started', systemClock));
  journal.record(newEvent('stopped', systemClock));
  end();
  journal.record(newEvent('accepted', systemClock));
  t.same(seen, ['started', 'stopped']);
});

t.test('maskReply', async (t) => {
  const table: [string, string][] = [
    ['550 5.1.1 <jo@example.com>: user unknown', '550 5.1.1 <…>: user unknown'],
    ['550 5.1.1 jo.doe+x@sub.example.com does not exist', '550 5.1.1 <…> does not exist'],
    ['"jo doe"@example.com rejected', '<…> rejected'],
    ['jo@[192.0.2.1] rejected', '<…> rejected'],
    ['jö@bücher.example nein', '<…> nein'],
    ['see https://example.org/?a=jo%40example.com now', 'see https:<…> now'],
    ['a@b.example,c@d.example', '<…>,<…>'],
    ['452 4.2.2 mailbox full', '452 4.2.2 mailbox full'],
    ['', ''],
  ];
  for (const [text, masked] of table) t.equal(maskReply(text), masked, text);
  const startedAt = performance.now();
  maskReply('"a'.repeat(100_000));
  maskReply('a'.repeat(200_000));
  t.ok(performance.now() - startedAt < 200, 'hostile text is cheap');
});
