// `postern consent import` and `suppress import` as an operator runs them: the CLI as a process, alone and
// beside a daemon, killed half-way and run again.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openStores } from '../../daemon/main.ts';
import { openLog } from '../../daemon/runtime/index.ts';
import { CHECKOUT, makeGrounds, pause, spawnDaemon, type Grounds } from '../lib/daemon.ts';

const POSTERN = join(CHECKOUT, 'scripts/postern');
const ROWS = 15_000;
// Every 5,000th cannot be read.
const REFUSED = ROWS / 5_000;
// Small windows, so that a kill finds an import between two of them.
const WINDOW = ['--window', '1000'];

// Some ten processes one after the other, each a second or two on a busy machine.
t.setTimeout(120_000);

interface Ran {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

async function grounds(t: Test): Promise<Grounds> {
  const made = await makeGrounds(9);
  t.teardown(() => made.remove());
  return made;
}

function cli(g: Grounds, args: readonly string[], input?: string): Ran {
  const ran = spawnSync(POSTERN, [...args, '--tenant', 'demo', '--config', g.root], { encoding: 'utf8', ...(input !== undefined && { input }) });
  return { status: ran.status, out: ran.stdout, err: ran.stderr };
}

function list(g: Grounds): string {
  const file = join(g.dir, 'list.csv');
  const rows = Array.from({ length: ROWS }, (_, i) => (i % 5_000 === 4_999 ? `nobody${i},newsletter,form,2025-12-31,2026-01` : `p${i}@d${i % 50}.example,newsletter,form,2025-12-31T10:00:00Z,2026-01`));
  writeFileSync(file, `\uFEFFemail,purpose,source,time,policy\r\n${rows.join('\r\n')}\r\n`);
  return file;
}

/** How many consents the log tells of; whoever opens the stores leaves a leaf of its own. */
async function consentsOf(g: Grounds): Promise<number> {
  const stores = await openStores(g.root, openLog('silent'));
  let consents = 0;
  const { ok } = await stores.ledger.log.verify('demo', undefined, ({ payload = '' }) => {
    if (payload.startsWith('{"event":"consent"')) consents++;
  });
  await stores.close();
  if (!ok) throw new Error('the log does not verify');
  return consents;
}

/** Kills the CLI once at least `rows` people have secrets. */
async function killedHalfWay(g: Grounds, args: readonly string[], rows: number): Promise<void> {
  const secrets = join(g.dataDir, 'keys/people/demo.person');
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', join(CHECKOUT, 'daemon/cli.ts'), ...args, '--tenant', 'demo', '--config', g.root], { stdio: 'ignore' });
  const gone = new Promise<void>((done) => child.once('exit', () => done()));
  for (let i = 0; i < 2_000 && !(existsSync(secrets) && statSync(secrets).size > rows * 16); i++) await pause(5);
  child.kill('SIGKILL');
  await gone;
}

t.test('an import killed half-way and run again comes to what one run comes to', async (t) => {
  const whole = await grounds(t);
  const once = cli(whole, ['consent', 'import', list(whole), ...WINDOW, '--report', join(whole.dir, 'report.csv'), '--json']);
  t.equal(once.status, 1, once.err);
  t.match(JSON.parse(once.out), { rows: ROWS, recorded: ROWS - REFUSED, kept: 0, errors: REFUSED });

  const g = await grounds(t);
  const args = ['consent', 'import', list(g), ...WINDOW, '--report', join(g.dir, 'report.csv')];
  await killedHalfWay(g, args, 8_192);
  const again = cli(g, args);
  t.equal(again.status, 1, again.err);
  t.match(again.out, /^went on at line \d+, where an earlier import stopped \(--from-start begins anew\)\n/);
  t.match(again.out, new RegExp(`${REFUSED} refused`));
  t.ok(Number(/at line (\d+)/.exec(again.out)?.[1]) > 1_000);
  t.equal(await consentsOf(g), ROWS - REFUSED);
  t.equal(readFileSync(join(g.dir, 'report.csv'), 'utf8'), readFileSync(join(whole.dir, 'report.csv'), 'utf8'), 'no refused row is told twice or not at all');
  t.equal(readFileSync(join(whole.dir, 'report.csv'), 'utf8').split('\n')[1], '5001,"the address has no @"');

  const third = cli(g, args);
  t.match(third.out, new RegExp(`^0 imported, ${ROWS - REFUSED} on record already`), 'what is done begins at the start again, and changes nothing');
  t.equal(await consentsOf(g), ROWS - REFUSED);
});

t.test('the same beside a daemon; one that begins anew', async (t) => {
  const g = await grounds(t);
  const file = list(g);
  const daemon = await spawnDaemon(g.root);
  try {
    await killedHalfWay(g, ['consent', 'import', file, ...WINDOW], 8_192);
    const anew = cli(g, ['consent', 'import', file, '--from-start', '--json']);
    t.match(JSON.parse(anew.out), { rows: ROWS, errors: REFUSED });
    t.notMatch(anew.out, 'resumedAt');
    t.match(cli(g, ['suppress', 'import', '-', '--format', 'ndjson'], '{"email":"a@x.example","cause":"manual"}\n'), { status: 0, out: /^1 imported, 0 on record already, 0 refused/ });
  } finally {
    await daemon.kill('SIGTERM');
  }
  t.equal(await consentsOf(g), ROWS - REFUSED);
});

t.test('dry run, standard input, and what cannot be read', async (t) => {
  const g = await grounds(t);
  const dry = cli(g, ['consent', 'import', list(g), '--dry-run']);
  t.match(dry, { status: 1, out: new RegExp(`^${ROWS - REFUSED} of ${ROWS} rows can be imported, ${REFUSED} refused; nothing was written\n.*list.csv:5001: the address has no @`) });
  t.equal(await consentsOf(g), 0);
  t.match(cli(g, ['consent', 'import', '-'], 'email,purpose,source,time,policy\na@x.example,newsletter,form,2025-12-31,2026-01\n'), { status: 0, out: /^1 imported/ });
  t.match(cli(g, ['consent', 'import', join(g.dir, 'no.csv')]), { status: 1, err: /no\.csv cannot be read: ENOENT/ });
  t.match(cli(g, ['consent', 'import', g.dir]), { status: 1, err: /is a folder/ });
  t.match(cli(g, ['consent', 'import', '-'], 'email\n'), { status: 1, err: /the header lacks purpose/ });
  t.match(cli(g, ['consent', 'import', '-'], ''), { status: 0, out: /^0 imported/ });
});
