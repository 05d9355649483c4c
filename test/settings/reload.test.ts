// The settings in force: reload, watching by every way a file can change, and adding a credential.
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, chmodSync, cpSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { systemClock, type Log } from '../../daemon/runtime/index.ts';
import {
  addCredential, describeSettings, explainDefaults, formatProblem, jsonSchema, keysAsMarkdown, loadSettings, openSettings, type LiveSettings, type Problem,
} from '../../daemon/settings/index.ts';
import { CASES, copyTree, makeKeys, REPOSITORY } from './tree.ts';

const ACME = join(CASES, 'good/acme');
const clock = systemClock;
const closing: (() => void)[] = [];
t.teardown(() => closing.forEach((close) => close()));

const temporary = (): string => {
  const root = copyTree(ACME);
  closing.push(() => rmSync(root, { recursive: true, force: true }));
  return root;
};

const written: string[] = [];
const say = (fields: object, text: string): void => void written.push(`${text} ${JSON.stringify(fields)}`);
const log: Log = { debug: say, info: say, warn: say, error: say };

const edit = (file: string, from: string | RegExp, to: string): void => writeFileSync(file, readFileSync(file, 'utf8').replace(from, to));

interface Watched {
  readonly live: LiveSettings;
  readonly reloads: string[];
  readonly failures: (readonly Problem[])[];
  /** Waits until `true`, two seconds at most. */
  until(met: () => boolean): Promise<boolean>;
}

function openWatched(root: string): Watched {
  const reloads: string[] = [];
  const failures: (readonly Problem[])[] = [];
  const live = openSettings(root, { clock, log, onReload: (settings) => reloads.push(settings.hash), onFailed: (problems) => failures.push(problems) });
  closing.push(() => live.close());
  const until = async (met: () => boolean): Promise<boolean> => {
    for (let i = 0; i < 100 && !met(); i++) await pause(20);
    return met();
  };
  return { live, reloads, failures, until };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const softRefuse = (live: LiveSettings): boolean | undefined => live.current().tenants.get('acme')?.softRefuse;

t.test('a first load that fails throws every problem', async (t) => {
  const root = temporary();
  edit(join(root, 'tenants/acme.yaml'), 'purpose: newsletter', 'purpose: newsleter');
  rmSync(join(root, 'keys/tls.key'));
  t.throws(() => openSettings(root, { clock, log }), { code: 'E_CONFIG', message: /^2 problems in .*\npostern\.yaml:6:13 .*\ntenants\/acme\.yaml:16:14 / });
});

t.test('a broken tree changes nothing; a repaired one is taken', async (t) => {
  const root = temporary();
  const { live, failures, reloads } = openWatched(root);
  const before = live.current();
  const file = join(root, 'tenants/acme.yaml');
  edit(file, 'class: marketing', 'class: marketting');
  const broken = await live.reload();
  t.match(broken.ok ? [] : broken.problems.map(formatProblem), ['tenants/acme.yaml:17:12 streams[0].class: expected one of marketing, transactional; got "marketting"; did you mean marketing?']);
  t.equal(live.current(), before);
  t.equal(failures.length, 1);
  edit(file, 'class: marketting', 'class: marketing\n    text_links: true');
  t.match(await live.reload(), { ok: true, changed: true, needRestart: [] });
  t.equal(live.current().tenants.get('acme')?.streams.get('newsletter')?.textLinks, true);
  t.equal(before.tenants.get('acme')?.streams.get('newsletter')?.textLinks, false, 'an old snapshot never changes');
  t.match(await live.reload(), { ok: true, changed: false });
  t.equal(reloads.length, 2);
});

t.test('keys that need a restart are named and not applied', async (t) => {
  const root = temporary();
  const { live } = openWatched(root);
  edit(join(root, 'postern.yaml'), 'message_size: 10MiB', 'message_size: 1MiB\n  connections: 7');
  edit(join(root, 'tenants/acme.yaml'), 'contact:', 'soft_refuse: true\ncontact:');
  const result = await live.reload();
  t.match(result, { ok: true, needRestart: ['limits.message_size', 'limits.connections'] });
  t.equal(live.current().server.limits.messageBytes, 10 * 1024 * 1024);
  t.equal(softRefuse(live), true, 'what is live is applied all the same');
  t.match(describeSettings(live.current(), 'effective').find((one) => one.key === 'postern.yaml limits.message_size'), { value: '10MiB' });
  t.match(written.at(-1), /these keys of postern\.yaml take effect at the next restart .*limits\.message_size/);
  t.match(await live.reload(), { needRestart: ['limits.message_size', 'limits.connections'] }, 'still waiting for the restart');
});

t.test('watching sees an edit in place, a rename over and, twice, each again', async (t) => {
  const root = temporary();
  const { live, reloads, until } = openWatched(root);
  live.watch();
  const file = join(root, 'tenants/acme.yaml');
  for (let round = 0; round < 2; round++) {
    edit(file, /^(?:soft_refuse: \w+\n)?contact:/m, 'soft_refuse: true\ncontact:');
    t.ok(await until(() => softRefuse(live) === true), 'in place');
    writeFileSync(`${file}.new`, readFileSync(file, 'utf8').replace('soft_refuse: true', 'soft_refuse: false'));
    renameSync(`${file}.new`, file);
    t.ok(await until(() => softRefuse(live) === false), 'by rename');
  }
  const count = reloads.length;
  writeFileSync(file, readFileSync(file));
  await pause(400);
  t.equal(reloads.length, count, 'the same octets again are no reload');
  writeFileSync(join(root, 'policies/acme-2026-01.md'), 'Another text.\n');
  t.ok(await until(() => live.current().tenants.get('acme')?.policies[0]?.text === 'Another text.\n'), 'policy texts are watched too');
});

t.test('watching reports a broken tree once, and sees a key file that was missing', async (t) => {
  const root = temporary();
  const { live, failures, reloads, until } = openWatched(root);
  live.watch();
  const key = join(root, 'keys/acme.pem');
  renameSync(key, `${key}.away`);
  t.ok(await until(() => failures.length === 1));
  t.match(failures[0]?.map(formatProblem), ['tenants/acme.yaml:11:42 domains[0].dkim[0].key_file: keys/acme.pem: no such file']);
  writeFileSync(join(root, 'unrelated'), '');
  await pause(400);
  t.equal(failures.length, 1);
  renameSync(`${key}.away`, key);
  t.ok(await until(() => reloads.length === 1));
});

t.test('watching sees a swapped link, of the tree or inside it', async (t) => {
  const home = mkdtempSync(join(tmpdir(), 'postern-links-'));
  closing.push(() => rmSync(home, { recursive: true, force: true }));
  const release = (name: string, soft: boolean): string => {
    cpSync(ACME, join(home, name), { recursive: true });
    makeKeys(join(home, name));
    edit(join(home, name, 'tenants/acme.yaml'), 'contact:', `soft_refuse: ${String(soft)}\ncontact:`);
    return name;
  };
  const swap = (link: string, target: string): void => {
    symlinkSync(target, `${link}.new`);
    renameSync(`${link}.new`, link);
  };
  const one = release('one', false);
  const two = release('two', true);

  swap(join(home, 'current'), one);
  const tree = openWatched(join(home, 'current'));
  tree.live.watch();
  swap(join(home, 'current'), two);
  t.ok(await tree.until(() => softRefuse(tree.live) === true), 'the tree itself');
  edit(join(home, two, 'tenants/acme.yaml'), 'soft_refuse: true', 'soft_refuse: false');
  t.ok(await tree.until(() => softRefuse(tree.live) === false), 'and then a file behind the new link');

  // As Kubernetes mounts a ConfigMap: every name a link through ..data, which is swapped.
  const mount = join(home, 'mount');
  mkdirSync(mount);
  edit(join(home, two, 'tenants/acme.yaml'), 'soft_refuse: false', 'soft_refuse: true');
  swap(join(mount, '..data'), join(home, one));
  for (const name of readdirSync(join(home, one))) symlinkSync(join('..data', name), join(mount, name));
  const inside = openWatched(mount);
  inside.live.watch();
  t.equal(softRefuse(inside.live), false);
  swap(join(mount, '..data'), join(home, two));
  t.ok(await inside.until(() => softRefuse(inside.live) === true), 'inside the tree');
});

t.test('a credential is added with comments kept, its secret shown once', async (t) => {
  const root = temporary();
  const file = join(root, 'tenants/acme.yaml');
  chmodSync(file, 0o640);
  const { secret } = addCredential(root, 'acme', { username: 'crm', stream: 'receipts', from: ['acme.example'], rate: '10/s' });
  t.match(secret, /^[A-Za-z0-9_-]{32}$/);
  const text = readFileSync(file, 'utf8');
  t.match(text, /^# Comments stay where they are\.\n/);
  t.match(text, /# The shop\.\n/);
  t.match(text, /# no consent is needed for these\n/);
  t.notMatch(text, secret);
  t.equal(statSync(file).mode & 0o777, 0o640);
  t.strictSame(readdirSync(join(root, 'tenants')), ['acme.yaml'], 'no draft is left');
  const loaded = loadSettings(root);
  const made = loaded.ok ? loaded.settings.credentials.get('crm') : undefined;
  t.match(made, { tenant: 'acme', stream: 'receipts', from: ['acme.example'], rate: { count: 10, perMs: 1_000, burst: 1 } });
  t.strictSame(made?.secretHash, createHash('sha256').update(secret).digest());

  edit(file, /^credentials:[^]*/m, 'credentials: []\n');
  addCredential(root, 'acme', { username: 'first', stream: 'newsletter', from: ['news@acme.example'] });
  t.match(readFileSync(file, 'utf8'), /\ncredentials:\n {2}- username: first\n {4}secret: /);
});

t.test('a credential that would break the tree is refused and nothing is written', async (t) => {
  const root = temporary();
  const before = readFileSync(join(root, 'tenants/acme.yaml'), 'utf8');
  const refused = (tenant: string, wanted: object, message: RegExp): void => {
    t.throws(() => addCredential(root, tenant, { username: 'x', stream: 'newsletter', from: ['acme.example'], ...wanted }), { code: 'E_CONFIG', message });
  };
  refused('acme', { username: 'shop' }, /"shop" is already a username of tenant acme/);
  refused('acme', { stream: 'newsleter' }, /did you mean newsletter\?/);
  refused('acme', { from: ['other.example'] }, /outside the sending domains acme\.example/);
  refused('acme', { rate: '10' }, /rate with its unit/);
  refused('beta', {}, /tenant beta has no readable file/);
  refused('../acme', {}, /not a tenant id/);
  t.equal(readFileSync(join(root, 'tenants/acme.yaml'), 'utf8'), before);
});

t.test('settings are described: defaults, what was changed, what is in force; never a secret', async (t) => {
  const { live } = openWatched(temporary());
  const defaults = describeSettings(undefined, 'defaults');
  t.match(defaults.find((one) => one.key === 'postern.yaml limits.message_size'), { value: '25MiB', isDefault: true, doc: 'Largest message taken.' });
  const changed = describeSettings(live.current(), 'changed').map((one) => one.key);
  t.ok(changed.includes('postern.yaml limits.message_size'));
  t.notOk(changed.includes('postern.yaml limits.connections'));
  t.ok(changed.includes('tenants/acme.yaml credentials[0].rate'));
  const effective = describeSettings(live.current(), 'effective');
  t.match(effective.find((one) => one.key === 'postern.yaml limits.connections'), { value: 1_000, isDefault: true });
  t.match(effective.find((one) => one.key === 'tenants/acme.yaml credentials[0].secret'), { value: '(hidden)' });
  t.notMatch(JSON.stringify(effective), 'sha256:');
});

t.test('every key says what it is for, and a default says why; the files made from it are current', async (t) => {
  for (const key of explainDefaults()) {
    t.match(key.says, /\.$|[a-z]$|\)$/, `${key.file} ${key.key}`);
    t.ok(key.reload === 'live' || key.reload === 'restart', key.key);
    if (key.default !== undefined) t.not(key.reason, '', `${key.file} ${key.key} has a reason for its default`);
  }
  const shipped = (name: string): string => readFileSync(join(REPOSITORY, 'config', name), 'utf8');
  t.equal(shipped('README.md'), keysAsMarkdown());
  for (const [name, file] of [['postern', 'postern.yaml'], ['tenant', 'tenants/*.yaml'], ['shaping', 'shaping.yaml'], ['profiles', 'profiles.yaml']] as const) {
    t.strictSame(JSON.parse(shipped(`schema/${name}.json`)), jsonSchema(file));
    t.equal(jsonSchema(file)['$schema'], 'https://json-schema.org/draft/2020-12/schema');
  }
});
