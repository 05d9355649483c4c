// The test run: tap over the test files, then the type check, the linter and, where it exists, the
// check that generated files are up to date; each of those three counts as one test. A passing file is
// one line, a failing one is shown whole. Skipped tests are listed with their reason, and where a
// program was missing, so is the command that installs it. The counts are tap's own. What the tests write
// lies in one temporary folder that is removed at the end. The last line is "N passed, N failed"; the exit
// code is 0 only when nothing failed and something ran.
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';

interface Count {
  passed: number;
  failed: number;
  skipped: number;
}

const root = dirname(import.meta.dirname);
const files = process.argv.slice(2);
const skips: string[] = [];
// Short: paths of Unix sockets end at 107 octets. Open to look into: the processes of a Postfix run as its own user.
const scratch = mkdtempSync(join(tmpdir(), 'pt-'));
chmodSync(scratch, 0o755);

/** Runs tap and adds up what its closing line says. */
async function runTap(count: Count): Promise<void> {
  const bin = join(root, 'node_modules/.bin');
  // tap starts `node` for each file: the pinned one has to be found first.
  const env = { ...process.env, TMPDIR: scratch, PATH: `${dirname(process.execPath)}${delimiter}${bin}${delimiter}${process.env['PATH'] ?? ''}` };
  const tap = spawn(process.execPath, [join(bin, 'tap'), '--reporter=tap', ...files], { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<number>((done) => {
    tap.on('close', (code) => done(code ?? 1));
  });
  let block: string[] = [];
  let broken = false;
  let summed = false;
  for await (const line of createInterface({ input: tap.stdout })) {
    const skip = /^\s+ok \d+ - (.*?) # SKIP ?(.*)$/.exec(line);
    if (skip !== null) skips.push(skip[2] === '' ? String(skip[1]) : `${skip[1]}: ${skip[2]}`);
    const sum = /^# (\{ total: .*\})$/.exec(line);
    const end = /^(not )?ok \d+ - (.*)$/.exec(line);
    if (sum !== null) {
      const of = (name: string): number => Number(new RegExp(`\\b${name}: (\\d+)`).exec(line)?.[1] ?? 0);
      count.passed += of('pass');
      count.failed += of('fail');
      count.skipped += of('skip') + of('todo');
      summed = true;
    } else if (end !== null) {
      broken = end[1] !== undefined;
      if (broken) console.log(block.join('\n'));
      console.log(line);
      block = [];
    } else if (line.startsWith('# Subtest')) {
      broken = false;
      block = [line];
    } else if (broken) {
      console.log(line);
    } else {
      block.push(line);
    }
  }
  // A tap that dies, or finds no file, has failed whatever it counted.
  if ((await ended) !== 0 && count.failed === 0) count.failed++;
  if (!summed) console.log(block.join('\n'));
}

/** Runs one of the other checks as one test. */
function check(count: Count, name: string, args: readonly string[]): void {
  const startedAt = performance.now();
  const run = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  const ok = run.status === 0;
  if (ok) count.passed++;
  else count.failed++;
  console.log(`${ok ? 'ok' : 'not ok'} - ${name} # time=${Math.round(performance.now() - startedAt)}ms`);
  if (!ok) console.log(`${run.stdout}${run.stderr}${run.error === undefined ? '' : String(run.error)}`);
}

const count: Count = { passed: 0, failed: 0, skipped: 0 };
try {
  await runTap(count);
} finally {
  rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
}
if (files.length === 0) {
  check(count, 'type check (npm run check)', ['node_modules/typescript/bin/tsc', '--noEmit']);
  check(count, 'lint (npm run lint)', ['node_modules/oxlint/bin/oxlint', '--deny-warnings', 'daemon', 'scripts', 'test']);
  if (existsSync(join(root, 'scripts/generate.ts'))) check(count, 'generated files are up to date', ['scripts/generate.ts', '--check']);
}
if (skips.length > 0) {
  console.log(`\nSKIPPED, ${skips.length} not run:`);
  for (const skip of skips) console.log(`  - ${skip}`);
  const missing = spawnSync('sh', [join(root, 'scripts/peers'), 'missing'], { encoding: 'utf8' }).stdout.trim();
  if (missing !== '') console.log(`Programs not installed: ${missing.split(/\s+/).join(', ')}. As root: scripts/peers install`);
}
console.log(`\n${count.passed} passed, ${count.failed} failed`);
process.exitCode = count.failed === 0 && count.passed > 0 ? 0 : 1;
