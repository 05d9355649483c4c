// kill -9 at any moment and a disk that takes no more: nothing acknowledged is lost, nothing settled
// comes back, nothing refused is kept, and the next start leaves no file without a live row.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { folder, openIn } from '../spool/room.ts';

const CHILD = join(import.meta.dirname, 'spool-child.ts');

interface Told {
  readonly stored: Map<string, string>;
  readonly settling: Set<string>;
  readonly settled: Set<string>;
  readonly refused: Map<string, string>;
  readonly lines: readonly string[];
  readonly status: number | null;
  readonly stderr: string;
}

/** Runs the child, kills it after `killMs` if given, and reads what it said. */
async function run(dir: string, mode: 'kill' | 'full' | 'rows' | 'disk', killMs?: number): Promise<Told> {
  // RLIMIT_FSIZE in 1024-octet blocks: no file may pass it, which a process sees as EFBIG.
  const command = mode === 'full' || mode === 'rows' ? ['sh', '-c', 'ulimit -f 6000; exec "$0" "$@"', process.execPath, CHILD, dir, mode] : [process.execPath, CHILD, dir, mode];
  const child = spawn(command[0] ?? '', command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  let timer: NodeJS.Timeout | undefined;
  child.stdout.on('data', (octets: Buffer) => {
    if (out.length === 0 && killMs !== undefined) timer = setTimeout(() => child.kill('SIGKILL'), killMs);
    out.push(octets);
  });
  child.stderr.on('data', (octets: Buffer) => err.push(octets));
  const status = await new Promise<number | null>((resolve) => {
    child.on('close', resolve);
  });
  clearTimeout(timer);
  const text = Buffer.concat(out).toString();
  const lines = text.slice(0, text.lastIndexOf('\n')).split('\n');
  const told = { stored: new Map<string, string>(), settling: new Set<string>(), settled: new Set<string>(), refused: new Map<string, string>() };
  for (const line of lines) {
    const [what, id = '', more = ''] = line.split(' ');
    if (what === 'stored') told.stored.set(id, more);
    if (what === 'refused') told.refused.set(id, more);
    if (what === 'settling') told.settling.add(id);
    if (what === 'settled') told.settled.add(id);
  }
  return { ...told, lines, status, stderr: Buffer.concat(err).toString() };
}

/** Opens the spool again and compares it with everything that was ever said of it. */
async function verify(t: { equal: (a: unknown, b: unknown, what: string) => void }, dir: string, told: Omit<Told, 'lines' | 'status' | 'stderr'>): Promise<void> {
  const spool = await openIn(dir);
  const there = new Set((await spool.list({ limit: 1e9 })).map((l) => l.id));
  let [lost, wrong, back, kept] = [0, 0, 0, 0];
  for (const [id, hash] of told.stored) {
    if (!there.has(id)) {
      if (!told.settling.has(id)) lost++;
      continue;
    }
    if (told.settled.has(id)) back++;
    if (createHash('sha256').update(await spool.body(id)).digest('hex') !== hash) wrong++;
  }
  for (const id of told.refused.keys()) if (there.has(id)) kept++;
  t.equal(lost, 0, `none of ${told.stored.size} acknowledged is lost`);
  t.equal(wrong, 0, 'every body is as it was');
  t.equal(back, 0, `none of ${told.settled.size} settled comes back`);
  t.equal(kept, 0, 'nothing refused is kept');
  const { messages, liveBytes } = spool.counts();
  t.equal(there.size, messages, 'every message row has recipients');
  // What the rows add up to is what the segments are said to hold.
  let octets = 0;
  for (const id of there) octets += (await spool.body(id)).length;
  t.equal(liveBytes > octets && liveBytes < octets + messages * 2_000, true, 'live octets agree with the bodies');
  t.equal(readdirSync(join(dir, 'spool')).toSorted().join(' '), 'lock rows segments', 'no draft is left');
  await spool.drop({});
  t.equal(JSON.stringify(spool.counts().liveBytes), '0', 'all of it can be given back');
  await spool.close();
  const empty = await openIn(dir);
  t.equal(readdirSync(join(dir, 'spool', 'segments')).length, 0, 'no segment is left');
  await empty.close();
}

t.test('kill -9, again and again over one spool', async (t) => {
  const dir = folder();
  t.teardown(() => rmSync(dir, { recursive: true }));
  const told = { stored: new Map<string, string>(), settling: new Set<string>(), settled: new Set<string>(), refused: new Map<string, string>() };
  for (const killMs of [30, 150, 333, 500, 700, 900]) {
    const round = await run(dir, 'kill', killMs);
    t.equal(round.stderr, '', `round of ${killMs} ms`);
    for (const [id, hash] of round.stored) told.stored.set(id, hash);
    for (const id of round.settling) told.settling.add(id);
    for (const id of round.settled) told.settled.add(id);
  }
  t.ok(told.stored.size > 100, `${told.stored.size} messages were acknowledged`);
  await verify(t, dir, told);
});

for (const [mode, what] of [['full', 'segments'], ['rows', 'rows']] as const) {
  t.test(`a disk that takes no more ${what}: refused with a code, the process lives, what waits still goes`, async (t) => {
    const dir = folder();
    t.teardown(() => rmSync(dir, { recursive: true }));
    const round = await run(dir, mode, 30_000);
    t.equal(round.status, 0, round.stderr);
    t.ok(round.stored.size > 0 && round.refused.size >= 40);
    // LMDB calls a write that the disk took only in part an input/output error.
    const codes = new Set(round.refused.values());
    t.ok([...codes].every((code) => code === 'E_SPOOL_FULL' || (mode === 'rows' && code === 'E_STORE')), [...codes].join(' '));
    t.equal(round.lines.at(-1), 'closed');
    t.ok(round.settled.size > 0, `${round.settled.size} were settled on the full disk`);
    await verify(t, dir, round);
  });
}

/** A file system of 12 MiB on this folder; the reason when there cannot be one. */
function mountSmall(dir: string): string | undefined {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m,mode=0700', 'tmpfs', dir], { stdio: 'pipe' });
    return undefined;
  } catch (error) {
    return `no small file system can be mounted here (needs root and mount): ${String(error)}`;
  }
}

const small = folder();
const unmountable = mountSmall(small);
if (unmountable !== undefined) t.comment(`SKIPPED LOUDLY: ${unmountable}`);
t.teardown(() => {
  if (unmountable === undefined) execFileSync('umount', [small]);
  rmSync(small, { recursive: true });
});

t.test('a real disk without room: refused with a code, the process lives, what waits still goes', { skip: unmountable ?? false }, async (t) => {
  const round = await run(small, 'disk', 30_000);
  t.equal(round.status, 0, round.stderr);
  t.ok(round.stored.size > 0 && round.refused.size >= 40);
  t.same([...new Set(round.refused.values())], ['E_SPOOL_FULL']);
  t.equal(round.lines.at(-1), 'closed');
  t.ok(round.settled.size > 0, `${round.settled.size} were settled on the full disk`);
  await verify(t, small, round);
});
