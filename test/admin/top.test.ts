// `postern top`: what the daemon answers (rates by a clock that the test moves, lanes in order, a bounded
// count), how it is drawn on wide and narrow terminals, and on a real pseudo-terminal that the screen is
// given back however it ends.
import { execFile, spawn } from 'node:child_process';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import t from 'tap';
import { operationsOf, runTop, type Desk, type TopView } from '../../daemon/admin/index.ts';
import { topText } from '../../daemon/admin/top-screen.ts';
import { Flow, type LaneView } from '../../daemon/schedule/index.ts';
import { CHECKOUT, eventually, makeGrounds, pause } from '../lib/daemon.ts';
import { startMx } from '../lib/mx.ts';

// On a busy machine it takes longer than the usual half minute.
t.setTimeout(120_000);

t.test('rates are of the last ten whole seconds, by lane and in all', async (t) => {
  let now = 1_000_000_000_000;
  const flow = new Flow({ now: () => now, after: () => () => undefined });
  for (let i = 0; i < 40; i++) flow.note('one/a', 'delivered');
  flow.note('one/b', 'failed');
  flow.note('', 'accepted');
  t.match(flow.rates('one/a'), { delivered: 0 }, 'not while the second lasts');
  now += 1_000;
  flow.note('one/a', 'deferred');
  t.match(flow.rates('one/a'), { delivered: 4, deferred: 0, failed: 0 });
  t.match(flow.rates(), { accepted: 0.1, delivered: 4, failed: 0.1 });
  now += 9_000;
  t.match(flow.rates('one/a'), { delivered: 4, deferred: 0.1 });
  now += 1_000;
  t.match(flow.rates('one/a'), { delivered: 0, deferred: 0.1 });
  t.match(flow.rates('nobody'), { delivered: 0 });
});

const lane = (name: string, more: Partial<LaneView> = {}): LaneView => ({ lane: name, active: 0, connections: 10, queues: 0, pausedUntil: 0, pausedFor: '', ...more });

async function viewOf(lanes: readonly LaneView[], flow: Flow, now: number, params: Record<string, unknown> = {}): Promise<TopView> {
  const desk = {
    clock: { now: () => now }, flow, lanes: () => lanes, due: (name: string, most: number) => Math.min(most, name === 'one/busy' ? 5_000 : 3),
    settings: () => ({ server: { dataDir: '/tmp' } }), spool: { counts: () => ({ messages: 12_345, recipients: 1_234_567, segmentBytes: 3 * 2 ** 30, liveBytes: 2 ** 30 }) },
  } as unknown as Desk;
  return await operationsOf(desk)['top']?.(params, () => undefined) as TopView;
}

const START = Date.UTC(2026, 10, 23, 12, 0, 0);
async function example(): Promise<TopView> {
  let now = START;
  const flow = new Flow({ now: () => now, after: () => () => undefined });
  for (let i = 0; i < 25; i++) flow.note('one/busy', i % 5 === 0 ? 'deferred' : 'delivered');
  flow.note('', 'accepted');
  now += 2_000;
  return viewOf([
    lane('one/idle'), lane('one/waiting', { queues: 2 }), lane('one/busy', { active: 10, queues: 812, held: { by: 'all 10 connections of the lane are at work', since: START, until: 0 } }),
    lane('one/a-very-long-name-of-a-site-with-hosts.protection.outlook.example', { queues: 7, pausedUntil: START + 3_600_000, pausedFor: 'rule refused: suspended' }),
    lane('one/paused-and-empty', { pausedUntil: START + 3_600_000, pausedFor: 'warm-up' }),
  ], flow, now);
}

t.test('what stands still comes first, then what does most; who is due is counted to a bound', async (t) => {
  const view = await example();
  t.same(view.lanes.map(({ lane: name }) => name.slice(4, 12)), ['a-very-l', 'busy', 'waiting', 'idle', 'paused-a']);
  t.match(view, { at: START + 2_000, messages: 12_345, recipients: 1_234_567, rates: { accepted: 0.1, delivered: 2, deferred: 0.5, failed: 0 }, active: 10, lanes_in_all: 5, counted_to: 1_000 });
  t.match(view.lanes[1], { due: 1_000, active: 10, connections: 10, queues: 812, delivered: 2, deferred: 0.5, held: { what: /all 10 connections/, until: 0 } });
  t.match(view.lanes[0], { held: { what: 'rule refused: suspended', until: START + 3_600_000 } });
  const many = Array.from({ length: 2_000 }, (_, i) => lane(`one/l${i}`, { queues: 1 }));
  const some = await viewOf(many, new Flow({ now: () => START, after: () => () => undefined }), START, { lanes: 1_000 });
  t.match([some.lanes.length, some.lanes_in_all, some.counted_to], [500, 2_000, 20], 'many lanes are counted less far');
  await t.rejects(async () => operationsOf({} as Desk)['top']?.({}, () => undefined), { message: /needs a running daemon/ });
});

t.test('every line fits the terminal, wide or narrow', async (t) => {
  const view = await example();
  const wide = topText(view, 160);
  t.match(wide[0], /^postern 12:00:02 UTC {2}a second: 0\.1 in, 2\.0 delivered, 0\.5 deferred, 0 failed$/);
  t.match(wide[1], /^queue 1,234,567 recipients, 12,345 messages; disk .*iB free$/);
  t.equal(wide[2], 'spool 3.0 GiB, 1.0 GiB live; 5 lanes, 10 attempts at work');
  t.match(wide[4], /^LANE +ACTIVE +DUE +SENT\/S +DEFER\/S +FAIL\/S +QUEUES +HELD BY$/);
  t.match(wide[5], /outlook\.example +0\/10 +3 +0 +0 +0 +7 {2}until 13:00:00: rule refused: suspended$/);
  t.match(wide[6], /^one\/busy +10\/10 +1000\+ +2\.0 +0\.5 +0 +812 {2}all 10 connections of the lane are at work$/);
  for (const columns of [200, 120, 80, 60, 40, 20]) t.ok(topText(view, columns).every((line) => line.length <= columns), `${columns} columns`);
  t.match(topText(view, 80)[5], /^one\/a-v.*\.\..*example +0\/10 /, 'the middle of a long name goes');
  t.match(topText(view, 40)[5], /0\/10 +3 {2}until/, 'the least: who is due and what holds it');
  t.equal(topText({ ...view, lanes: [] }, 80)[4], 'no lane has anything to do');
  const [hostile] = view.lanes;
  if (hostile !== undefined) t.notMatch(topText({ ...view, lanes: [{ ...hostile, lane: 'one/\u001B[31mred' }] }, 80).join(''), /\u001B/);
});

t.test('on a terminal: other screen, a look each time, keys, and the terminal given back', async (t) => {
  const view = await example();
  const terminal = (): { stdin: NodeJS.ReadStream & PassThrough; stdout: NodeJS.WriteStream; written: () => string; raw: boolean[] } => {
    const [stdin, stdout, raw] = [new PassThrough(), new PassThrough(), [] as boolean[]];
    let text = '';
    stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
    return {
      stdin: Object.assign(stdin, { isTTY: true, setRawMode: (on: boolean) => raw.push(on) }) as unknown as NodeJS.ReadStream & PassThrough,
      stdout: Object.assign(stdout, { isTTY: true, columns: 80, rows: 10 }) as unknown as NodeJS.WriteStream, written: () => text, raw,
    };
  };
  for (const key of ['q', '\u0003']) {
    const at = terminal();
    const asked: number[] = [];
    const over = runTop(async (lanes) => {
      asked.push(lanes);
      return view;
    }, { every: 600 }, at);
    await eventually(() => at.written().includes('HELD BY'));
    await pause(10);
    at.stdin.write(' ');
    t.ok(await eventually(() => asked.length === 2), 'any key looks at once');
    at.stdin.write(key);
    await over;
    t.same(asked, [5, 5], 'as many lanes as fit');
    t.same(at.raw, [true, false]);
    t.match(at.written(), /^\u001B\[\?1049h\u001B\[\?25l\u001B\[Hpostern/);
    t.ok(at.written().endsWith('\u001B[?25h\u001B[?1049l'));
  }
  const failing = terminal();
  await t.rejects(runTop(() => Promise.reject(new Error('the daemon went away')), { every: 1 }, failing), /went away/);
  t.same([failing.raw, failing.written().endsWith('\u001B[?25h\u001B[?1049l')], [[true, false], true]);
  const hung = terminal();
  const over = runTop(() => new Promise(() => undefined), { every: 1 }, hung);
  hung.stdin.write('q');
  await over;
  t.same(hung.raw, [true, false], 'nobody waits for a daemon that does not answer');
  const piped = Object.assign(new PassThrough(), { isTTY: false }) as unknown as NodeJS.WriteStream & PassThrough;
  let looks = 0;
  const lines = runTop(async () => {
    if (++looks > 3) piped.emit('error', new Error('EPIPE'));
    return view;
  }, { every: 0.01, json: true }, { stdin: terminal().stdin, stdout: piped });
  await lines;
  const [first = ''] = String(piped.read()).split('\n');
  t.same(JSON.parse(first), JSON.parse(JSON.stringify(view)), 'one object a line, until nobody reads');
});

t.test('against a running relay, through a pseudo-terminal', async (t) => {
  const mx = await startMx({ answers: { rcpt: '450 4.2.0 later' } });
  const grounds = await makeGrounds(mx.port);
  await grounds.consent({ 'reader@example.com': 'none' });
  const daemon = await grounds.serve();
  t.teardown(async () => {
    await daemon.stop();
    await mx.close();
    grounds.remove();
  });
  const { id } = await grounds.send({ from: 'news@demo.example', to: 'reader@example.com', subject: 'x', text: 'Demo tenant, 1 Example Street, Example Town, privacy@demo.example', headers: { 'X-Campaign-ID': 'spring sale' } });
  t.match(await grounds.event(id, ['deferred']), { event: 'deferred' });
  const view = await grounds.control('top') as TopView;
  t.match(view, { recipients: 1, messages: 1, lanes: Array });
  t.ok(view.disk_free_bytes > 0);
  // The campaign that was submitted is in the queue, sealed, and in no event.
  t.match(await grounds.control('queue.list', { campaign: 'spring sale' }), { rows: [{ campaign: 'spring sale' }] });
  t.match(await grounds.control('queue.show', { id }), { meta: { campaign: 'spring sale' } });
  t.notMatch(JSON.stringify(await grounds.control('trace', { id })), /spring/);
  const postern = join(CHECKOUT, 'scripts/postern');
  const once = await new Promise<string>((resolve) => execFile(postern, ['top', '--config', grounds.root], (_error, out) => resolve(out)));
  t.match(once, /^postern \d\d:\d\d:\d\d UTC .*\nqueue 1 recipients/, 'no terminal: once');
  // util-linux's script makes a pseudo-terminal; the shell in it sees what top leaves behind.
  const shown = async (keys: string): Promise<string> => {
    const child = spawn('script', ['-qec', `stty cols 90 rows 12; ${postern} top --every 0.3 --config ${grounds.root}; echo status $?; stty -a | grep -o -- '-*\\bicanon'`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, SHELL: '/bin/sh' } });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    const gone = new Promise((resolve) => child.once('exit', resolve));
    t.ok(await eventually(() => out.split('\u001B[H').length > 3, 20_000), 'it is drawn again and again');
    child.stdin.write(keys);
    await Promise.race([gone, pause(20_000)]);
    child.kill('SIGKILL');
    return out;
  };
  for (const keys of ['q', '\u0003']) {
    const out = await shown(keys);
    t.match(out, /\u001B\[\?1049h\u001B\[\?25l\u001B\[Hpostern \d\d/);
    t.match(out, /\u001B\[\?25h\u001B\[\?1049lstatus 0\r\nicanon/, 'the terminal is as it was');
  }
});
