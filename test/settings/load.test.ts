// Loading trees: good ones give the snapshot they say, each bad one fails with exactly its text.
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { explainLimits, formatProblem, hashPolicy, laneLimits, loadSettings, sharedLimits, type Settings } from '../../daemon/settings/index.ts';
import { CASES, copyTree, REPOSITORY } from './tree.ts';

const roots: string[] = [];
const tree = (from: string): string => {
  const root = copyTree(from);
  roots.push(root);
  return root;
};
t.teardown(() => roots.forEach((root) => rmSync(root, { recursive: true })));

function good(root: string, t: Test): Settings {
  const loaded = loadSettings(root);
  if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));
  t.strictSame(loaded.warnings.map(formatProblem).filter((line) => !line.startsWith('postern.yaml:2:')), []);
  return loaded.settings;
}

t.test('a tree becomes a frozen snapshot with units resolved', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  const settings = good(root, t);
  t.equal(settings.root, root);
  t.match(settings.hash, /^[0-9a-f]{64}$/);
  const { server, shaping } = settings;
  t.equal(server.dataDir, join(root, 'data'));
  t.equal(server.masterKeyFile, join(root, 'keys/master.key'));
  t.strictSame(server.listeners, { submissions: [{ host: '127.0.0.1', port: 2465 }], submission: [], inbound: [], pages: [{ host: '127.0.0.1', port: 8080 }], pagesTls: false, api: [], metrics: [{ host: '127.0.0.1', port: 9464 }] });
  t.equal(server.limits.messageBytes, 10 * 1024 * 1024);
  t.equal(server.limits.idleTimeoutMs, 300_000);
  t.ok(server.resolver.servers.length > 0, 'no servers written: those of the system');

  t.strictSame(shaping.defaults, {
    connections: 20, connectionRate: { count: 100, perMs: 60_000, burst: 1 }, messageRate: { count: 50, perMs: 1_000, burst: 1 }, deliveriesPerConnection: 100, tls: 'opportunistic', idleMs: 60_000,
    tenantConnections: undefined, tenantMessageRate: undefined,
  });
  t.strictSame(laneLimits(shaping, { egress: '', provider: shaping.providers[0]?.id ?? '' }), { ...shaping.defaults, connections: 5, connectionRate: undefined }, 'a provider inherits what it does not say');
  t.strictSame(shaping.routes[1]?.via, [{ host: '10.1.2.3', port: 25 }, { host: '2001:db8::25', port: 25 }, { host: 'relay.example', port: 26 }]);
  t.strictSame(shaping.retry, { firstMs: 60_000, maxMs: 3_600_000 });

  const acme = settings.tenants.get('acme');
  t.strictSame(acme?.streams.get('newsletter'), { id: 'newsletter', purpose: 'newsletter', class: 'marketing', consentRequired: true, retryForMs: 259_200_000, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '' });
  t.match(acme?.streams.get('receipts'), { consentRequired: false, retryForMs: 43_200_000, legalBasis: 'gdpr_6_1_b' });
  t.match(acme?.policies[0], { version: '2026-01', effectiveAt: Date.UTC(2026, 0, 1), tracking: { opens: 'aggregate', clicks: 'none' }, text: /^# Privacy notice/ });
  t.strictSame(settings.credentials.get('shop')?.secretHash, Buffer.alloc(32));
  t.strictSame(settings.credentials.get('shop')?.rate, { count: 600, perMs: 60_000, burst: 20 });
  t.equal(settings.credentials.get('shop'), acme?.credentials[0]);
  for (const part of [settings, server, server.limits, shaping.providers, acme, acme?.policies[0]?.purposes, acme?.domains[0]?.dkim, acme?.credentials[0]?.from]) t.ok(Object.isFrozen(part));
});

t.test('limits of a lane: each layer over the one before, key by key, and unset drops what was inherited', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  writeFileSync(join(root, 'shaping.yaml'), `
defaults: { connections: 20, message_rate: 50/s, connection_rate: 9/s, idle: 7s }
egress: [{ id: warm, address: 192.0.2.25, helo: mx.operator.example, connections: 8, deliveries_per_connection: 3, connection_rate: unset, total: { connections: 30 } }, { id: cold, address: 192.0.2.26, helo: m2.operator.example }]
providers:
  - { id: google, match: [.google.com], connections: 5, message_rate: unset, total: { message_rate: 6/s }, egress: [{ id: warm, connections: 2, connection_rate: 1/min }] }
`);
  const { shaping } = good(root, t);
  const lane = (egress: string, provider: string): Record<string, unknown> => {
    const { limits: { connections, messageRate, connectionRate, deliveriesPerConnection, idleMs }, from } = explainLimits(shaping, { egress, provider });
    return { connections, messageRate: messageRate?.count, connectionRate: connectionRate?.count, deliveriesPerConnection, idleMs, by: from.connections, unsetBy: from.messageRate };
  };
  const base = { connections: 20, messageRate: 50, connectionRate: 9, deliveriesPerConnection: 100, idleMs: 7_000, by: 'defaults', unsetBy: 'defaults' };
  t.strictSame(lane('cold', ''), base, 'defaults over what is built in');
  t.strictSame(lane('warm', ''), { ...base, connections: 8, connectionRate: undefined, deliveriesPerConnection: 3, by: 'egress warm' });
  t.strictSame(lane('cold', 'google'), { ...base, connections: 5, messageRate: undefined, by: 'provider google', unsetBy: 'provider google' });
  t.strictSame(lane('warm', 'google'), { ...base, connections: 2, messageRate: undefined, connectionRate: 1, deliveriesPerConnection: 3, by: 'provider google, egress warm', unsetBy: 'provider google' });
  t.match(sharedLimits(shaping, { egress: 'warm', provider: 'google' }), [{ key: 'provider google', messageRate: { count: 6 } }, { key: 'egress warm', connections: 30 }], 'totals hold beside them');
});

t.test('the tree we ship is good once its keys are made', async (t) => {
  const settings = good(tree(join(REPOSITORY, 'config')), t);
  t.equal(settings.shaping.providers.length, 16);
  t.ok(settings.tenants.has('example'));
});

t.test('a sandbox may use http, and warns when nothing leads out of it', async (t) => {
  const root = tree(join(CASES, 'good/sandbox'));
  const loaded = loadSettings(root);
  t.ok(loaded.ok);
  t.strictSame(loaded.warnings.map(formatProblem), ['postern.yaml:2:1 sandbox: a sandbox without a route delivers nothing']);
  t.equal(loaded.ok && loaded.settings.tenants.get('demo')?.policies[0]?.effectiveAt, Date.UTC(2026, 0, 1, 12));
});

t.test('each bad tree fails with exactly its text', async (t) => {
  const names = readdirSync(join(CASES, 'bad')).sort();
  t.ok(names.length >= 25);
  const base = tree(join(CASES, 'good/acme'));
  for (const name of names) {
    const text = readFileSync(join(CASES, 'bad', name), 'utf8');
    const expected = [...text.matchAll(/^# expect: (.*)$/gm)].map((match) => match[1] ?? '');
    const file = /^# file: (.*)$/m.exec(text)?.[1] ?? '';
    const loaded = loadSettings(base, { overlay: new Map([[file, Buffer.from(text)]]) });
    const got = loaded.ok ? [] : loaded.problems.map(formatProblem);
    if (process.env['UPDATE'] === '1') {
      // Each expectation is a line, and lines count: written twice, the numbers settle.
      const body = text.replace(/^(?:# expect: .*\n)+/, '');
      writeFileSync(join(CASES, 'bad', name), got.map((line) => `# expect: ${line}\n`).join('') + body);
    }
    t.ok(expected.length > 0, `${name} begins with what it expects`);
    t.strictSame(got, expected, name);
  }
});

t.test('a tenant file under a name that is no id is an error where it lies', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  writeFileSync(join(root, 'tenants/Beta_2.yaml'), '');
  writeFileSync(join(root, 'tenants/notes.txt'), '');
  writeFileSync(join(root, 'tenants/.acme.yaml.swp'), '\0');
  const loaded = loadSettings(root);
  t.strictSame(loaded.ok ? [] : loaded.problems.map(formatProblem), ['tenants/Beta_2.yaml:1:1 expected a file name of lower-case letters, digits and hyphens: it is the tenant id']);
  t.strictSame(loaded.warnings.map(formatProblem), ['tenants/notes.txt:1:1 not read: its name does not end in .yaml']);
});

t.test('problems of all files are told at once, in order', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  rmSync(join(root, 'keys/tls.key'));
  writeFileSync(join(root, 'shaping.yaml'), 'defaults: { tls: off, conections: 3 }\nretry: { first: 5 }\n');
  const loaded = loadSettings(root, { overlay: new Map([['tenants/beta.yaml', Buffer.from('contact: 1\n')]]) });
  t.strictSame(loaded.ok ? [] : loaded.problems.map(formatProblem), [
    'postern.yaml:6:13 tls.key_file: keys/tls.key: no such file',
    'shaping.yaml:1:23 defaults.conections: unknown key; did you mean connections?',
    'shaping.yaml:2:17 retry.first: expected a duration with its unit (ms, s, m, h, d), such as 3d; got 5',
    'tenants/beta.yaml:1:1 policies: this key is missing',
    'tenants/beta.yaml:1:1 domains: this key is missing',
    'tenants/beta.yaml:1:1 streams: this key is missing',
    'tenants/beta.yaml:1:10 contact: expected a map of keys; got 1',
  ]);
  t.notOk(loadSettings(join(root, 'nowhere')).ok);
});

t.test('bytes that are no text, and a missing postern.yaml', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  const broken = loadSettings(root, { overlay: new Map([['postern.yaml', Buffer.from([0xff, 0xfe])]]) });
  t.match(broken.ok ? [] : broken.problems.map(formatProblem), ['postern.yaml:1:1 not UTF-8']);
  rmSync(join(root, 'postern.yaml'));
  const missing = loadSettings(root);
  t.match(missing.ok ? [] : missing.problems.map(formatProblem), ['postern.yaml:1:1 no such file']);
});

t.test('credential: names a systemd credential', async (t) => {
  const root = tree(join(CASES, 'good/acme'));
  const text = readFileSync(join(root, 'postern.yaml'), 'utf8').replace('keys/master.key', 'credential:master.key');
  writeFileSync(join(root, 'postern.yaml'), text);
  const inside = loadSettings(root, { credentialsDir: join(root, 'keys') });
  t.equal(inside.ok && inside.settings.server.masterKeyFile, join(root, 'keys/master.key'));
  const elsewhere = loadSettings(root, { credentialsDir: join(root, 'tenants') });
  t.match(elsewhere.ok ? [] : elsewhere.problems.map(formatProblem), ['postern.yaml:3:18 master_key_file: credential:master.key: no such file']);
  const outside = loadSettings(root, { credentialsDir: join(root, 'not-the-service') });
  t.ok(outside.ok, 'a check outside the service passes');
  t.match(outside.warnings.map((warning) => warning.message), ['credential:master.key is not checked: credentials are seen by the service only']);
  copyFileSync(join(root, 'keys/master.key'), join(root, 'escaped'));
  writeFileSync(join(root, 'postern.yaml'), text.replace('credential:master.key', 'credential:../escaped'));
  t.notOk(loadSettings(root, { credentialsDir: join(root, 'keys') }).ok);
});

t.test('a policy hash is over octets and permissions, whatever their order', async (t) => {
  const text = Buffer.from('text');
  const tracking = { opens: 'none', clicks: 'individual' };
  const hash = hashPolicy(text, { purposes: ['b', 'a'], tracking });
  t.equal(hash, createHash('sha256').update('text\0{"purposes":["a","b"],"tracking":{"clicks":"individual","opens":"none"}}').digest('hex'));
  t.equal(hash, hashPolicy(text, { purposes: ['a', 'b'], tracking: { clicks: 'individual', opens: 'none' } }));
  t.not(hash, hashPolicy(text, { purposes: ['a'], tracking }));
  t.not(hash, hashPolicy(Buffer.from('text '), { purposes: ['a', 'b'], tracking }));
});
