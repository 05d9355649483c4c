// The house rules that a reader could break without noticing: who may import whom, what mail and gate
// may use, how long a file or a function may be, and that every file says what it is for.
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import t from 'tap';

const root = join(import.meta.dirname, '..');
const ROOMS = ['mail', 'runtime', 'events', 'store', 'dns', 'smtp', 'settings', 'ledger', 'gate', 'submission', 'compose', 'sign', 'spool', 'schedule', 'deliver', 'feedback', 'web', 'admin'];
const STAGES = ROOMS.slice(ROOMS.indexOf('submission'), ROOMS.indexOf('deliver') + 1);
/** Above the rooms: nobody imports them. They may import any room, through its index. */
const ROOF = ['main.ts', 'pipeline.ts', 'cli.ts'];
/** Packages that mail may use: pure, no I/O. */
const PURE = ['entities'];

interface Import {
  readonly from: string;
  readonly typeOnly: boolean;
}

function filesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts')).map((name) => join(folder, name)).sort();
}

/** Static, re-exporting and dynamic imports. */
function importsOf(source: string): Import[] {
  const imports: Import[] = [];
  for (const [, keyword, names = '', from = ''] of source.matchAll(/^(import|export)\s+(?:([^;'"=()]*?)\bfrom\s*)?'([^']+)'/gm)) {
    const listed = /\{([^}]*)\}/s.exec(names)?.[1]?.split(',').map((name) => name.trim()).filter((name) => name !== '');
    const inline = listed !== undefined && listed.length > 0 && !/^[^{]*\w\s*,\s*\{/.test(names) && listed.every((name) => name.startsWith('type '));
    imports.push({ from, typeOnly: /^type\b/.test(names) || (keyword !== undefined && inline) });
  }
  for (const [, from = ''] of source.matchAll(/\bimport\(\s*'([^']+)'\s*\)/g)) imports.push({ from, typeOnly: false });
  return imports;
}

/** What is wrong with one import, or undefined. */
function fault(file: string, { from, typeOnly }: Import): string | undefined {
  const inDaemon = relative('daemon', file);
  const room = inDaemon.split('/')[0] ?? '';
  if (!from.startsWith('.')) {
    if (room !== 'mail' && room !== 'gate') return undefined;
    if (from.startsWith('node:') && !typeOnly) return `${room} uses no Node builtin, but imports ${from}`;
    return room === 'mail' && !from.startsWith('node:') && !PURE.includes(from.split('/')[0] ?? '') ? `mail imports no package, but ${from}` : undefined;
  }
  const target = relative(join(root, 'daemon'), resolve(root, dirname(file), from));
  if (target.startsWith('..')) return /^\.\.\/(package\.json|config\/)/.test(target) ? undefined : `${from} is outside daemon/`;
  if (ROOF.includes(target)) return inDaemon === 'main.ts' || inDaemon === 'cli.ts' ? undefined : `nobody imports ${target}`;
  const other = target.split('/')[0] ?? '';
  if (other === room) return undefined;
  if (!target.endsWith('/index.ts')) return `${other} is entered through its index.ts, not ${target}`;
  if (!ROOMS.includes(room)) return undefined;
  if (ROOMS.indexOf(other) > ROOMS.indexOf(room)) return `${room} may not look right, to ${other}`;
  return STAGES.includes(room) && STAGES.includes(other) && !typeOnly ? `between stages only types: ${room} imports ${other}` : undefined;
}

/** Names and lengths of functions, found by their first line's indentation and the brace that ends them. */
function longFunctions(source: string): string[] {
  const lines = source.split('\n');
  const found: string[] = [];
  lines.forEach((line, at) => {
    const head = /^(\s*)(?:export )?(?:async )?(?:function\*? ?(\w*)|(?:static |async |\*|get |set )*(#?\w+)(?:<[^>]*>)?\((?!.*;$).*\)?.*\{$)/.exec(line);
    if (head === null || /^\s*(if|for|while|switch|catch|return|else|do|try)\b/.test(line)) return;
    const end = lines.findIndex((other, i) => i > at && other.startsWith(`${head[1]}}`));
    if (end - at + 1 > 80 && lines.slice(at, end).filter((body) => body.trim() !== '' && !/^\s*(\/\/|\*|\/\*)/.test(body)).length > 80) {
      found.push(`${head[2] ?? head[3] ?? '?'} has ${end - at + 1} lines`);
    }
  });
  return found;
}

t.test('the rules catch what they should', async (t) => {
  const faultOf = (file: string, line: string): string | undefined => importsOf(line).map((one) => fault(file, one)).find((text) => text !== undefined);
  t.match(faultOf('daemon/gate/judge.ts', "import { readFileSync } from 'node:fs';"), /no Node builtin/);
  t.match(faultOf('daemon/mail/dsn.ts', "import pino from 'pino';"), /no package/);
  t.match(faultOf('daemon/store/lmdb.ts', "import { judge } from '../gate/index.ts';"), /look right/);
  t.match(faultOf('daemon/web/pages.ts', "import { Claim } from '../compose/tokens.ts';"), /index\.ts/);
  t.match(faultOf('daemon/deliver/attempt.ts', "import { sign } from '../sign/index.ts';"), /only types/);
  t.match(faultOf('daemon/deliver/attempt.ts', "import {\n  type Signer,\n  sign,\n} from '../sign/index.ts';"), /only types/);
  t.match(faultOf('daemon/web/pages.ts', "import { accept } from '../pipeline.ts';"), /nobody imports/);
  t.match(faultOf('daemon/web/pages.ts', "const x = await import('../admin/index.ts');"), /look right/);
  t.equal(faultOf('daemon/deliver/attempt.ts', "import type { Signer } from '../sign/index.ts';"), undefined);
  t.equal(faultOf('daemon/deliver/attempt.ts', "import { type Signer, type Key } from '../sign/index.ts';"), undefined);
  t.equal(faultOf('daemon/main.ts', "import { openPages } from './web/index.ts';"), undefined);
  t.same(longFunctions(`function short() {\n}\nfunction long() {\n${'  x();\n'.repeat(80)}}`), ['long has 82 lines']);
});

t.test('the import law', async (t) => {
  const faults: string[] = [];
  for (const file of filesIn('daemon')) {
    const room = relative('daemon', file).split('/');
    if (room.length > 1 && !ROOMS.includes(room[0] ?? '')) faults.push(`${file}: ${room[0]} is not a room`);
    for (const one of importsOf(readFileSync(join(root, file), 'utf8'))) {
      const wrong = fault(file, one);
      if (wrong !== undefined) faults.push(`${file}: ${wrong}`);
    }
  }
  t.same(faults, []);
});

t.test('sizes, heads and names', async (t) => {
  const faults: string[] = [];
  for (const file of [...filesIn('daemon'), ...filesIn('scripts'), ...filesIn('test')]) {
    const source = readFileSync(join(root, file), 'utf8');
    const lines = source.split('\n').length - 1;
    if (lines > 500) faults.push(`${file} has ${lines} lines`);
    if (/(^|[/-])(util|utils|helper|helpers|common|manager|misc|base|types)\.ts$/.test(file)) faults.push(`${file}: a name that says nothing`);
    if (file.startsWith('daemon/')) faults.push(...longFunctions(source).map((text) => `${file}: ${text}`));
    if (file.endsWith('/index.ts')) continue;
    const head = /^(?:#!.*\n)?((?:\/\/.*\n)+)/.exec(source)?.[1]?.trim().split('\n').length ?? 0;
    // One sentence is enough for a small file; a manual page does not belong at the head of a big one.
    const [least, most] = file.startsWith('daemon/') ? [2, 18] : [1, 18];
    if (head < least || head > most) faults.push(`${file}: the head has ${head} lines of comment, not ${least} to ${most}`);
  }
  t.same(faults, []);
});
