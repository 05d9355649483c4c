// DANE with a real chain: Knot signs the zones, Unbound validates them, the relay asks Unbound and delivers over
// TLS or not at all. The battery of broken promises is in deliver/dane.test.ts; here it is whether DNSSEC's own
// words reach the decision: secure, insecure, bogus.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { X509Certificate, createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { freePorts, makeGrounds, pause, type Grounds } from '../lib/daemon.ts';
import { startMx, testCertificate } from '../lib/mx.ts';

const missing = ['/usr/sbin/knotd', '/usr/sbin/keymgr', '/usr/sbin/unbound'].filter((program) => !existsSync(program));
const skip = missing.length === 0 ? false : `SKIPPED: no ${missing.join(', ')}; scripts/peers install brings them`;
if (skip !== false) t.comment(skip);
t.setTimeout(60_000);

const ZONES = ['kept', 'broken', 'plain', 'bogus', 'alias', 'badalias', 'bare', 'badbare'].map((name) => `${name}.example`);
const spkiHash = createHash('sha256').update(new X509Certificate(testCertificate().cert).publicKey.export({ type: 'spki', format: 'der' })).digest('hex');

interface Served {
  readonly resolver: number;
  stop(): Promise<void>;
}

/** Knot with signed zones and a validating Unbound in front. */
async function serve(dir: string, mxPort: number): Promise<Served> {
  const { submissions: knotPort, submission: unboundPort } = await freePorts();
  const promise = (name: string, hash: string): string => `_${mxPort}._tcp.${name} TLSA 3 1 1 ${hash}\n`;
  const MX = '@ MX 10 mx\nmx A 127.0.0.1\n';
  const hosts: Readonly<Record<string, string>> = {
    kept: MX + promise('mx', spkiHash), broken: MX + promise('mx', '00'.repeat(32)), plain: MX, bogus: MX + promise('mx', spkiHash),
    alias: `@ MX 10 mx\nmx CNAME real\nreal A 127.0.0.1\n${promise('real', spkiHash)}`, badalias: `@ MX 10 mx\nmx CNAME real\nreal A 127.0.0.1\n${promise('real', '00'.repeat(32))}`,
    bare: `@ A 127.0.0.1\n_${mxPort}._tcp TLSA 3 1 1 ${spkiHash}\n`, badbare: `@ A 127.0.0.1\n_${mxPort}._tcp TLSA 3 1 1 ${'00'.repeat(32)}\n`,
  };
  const zone = (name: string): string => `$ORIGIN ${name}.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n${hosts[name.replace(/\..*/, '')] ?? ''}`;
  mkdirSync(join(dir, 'run'));
  for (const name of ZONES) writeFileSync(join(dir, `${name}.zone`), zone(name));
  writeFileSync(join(dir, 'knot.conf'), `server:\n    rundir: "${dir}/run"\n    listen: 127.0.0.1@${knotPort}\ndatabase:\n    storage: "${dir}/run"\npolicy:\n  - id: p\n    algorithm: ecdsap256sha256\n    single-type-signing: on\nzone:\n${ZONES.map((name) => `  - domain: ${name}\n    storage: "${dir}"\n    file: "${name}.zone"\n    zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    journal-content: all\n    dnssec-signing: on\n    dnssec-policy: p\n`).join('')}`);
  const knot = spawn('/usr/sbin/knotd', ['-c', join(dir, 'knot.conf')], { stdio: 'ignore' });
  const anchors: string[] = [];
  for (const name of ZONES) {
    let ds = '';
    for (let i = 0; i < 100 && ds === ''; i++) {
      await pause(50);
      try {
        ds = execFileSync('/usr/sbin/keymgr', ['-c', join(dir, 'knot.conf'), name, 'ds'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).split('\n').find((line) => / DS \d+ 13 2 /.test(line)) ?? '';
      } catch {
        ds = ''; // its keys are being made
      }
    }
    // What leads to another key leads nowhere: everything in the zone is bogus.
    anchors.push(name.startsWith('bogus') ? ds.replace(/[0-9a-f]{8}\s*$/i, '00000000') : ds);
  }
  writeFileSync(join(dir, 'unbound.conf'), `server:\n  interface: 127.0.0.1@${unboundPort}\n  port: ${unboundPort}\n  do-daemonize: no\n  username: ""\n  chroot: ""\n  directory: "${dir}"\n  pidfile: "${dir}/unbound.pid"\n  use-syslog: no\n  logfile: "${dir}/unbound.log"\n  do-not-query-localhost: no\n  module-config: "validator iterator"\n  access-control: 127.0.0.0/8 allow\n${anchors.map((ds) => `  trust-anchor: "${ds}"\n`).join('')}${ZONES.map((name) => `stub-zone:\n  name: "${name}"\n  stub-addr: 127.0.0.1@${knotPort}\n`).join('')}remote-control:\n  control-enable: no\n`);
  const unbound = spawn('/usr/sbin/unbound', ['-c', join(dir, 'unbound.conf')], { stdio: 'ignore' });
  await pause(300);
  return { resolver: unboundPort, stop: async () => { await Promise.all([stopped(knot), stopped(unbound)]); } };
}

async function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((done) => child.once('exit', done));
  child.kill();
  await gone;
}

t.test('secure, insecure, bogus: what DNSSEC says decides', { skip }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-dane-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const mx = await startMx({ tls: true });
  t.teardown(() => mx.close());
  const dns = await serve(dir, mx.port);
  t.teardown(() => dns.stop());
  const grounds: Grounds = await makeGrounds(mx.port);
  t.teardown(() => grounds.remove());
  grounds.edit('postern.yaml', (text) => `${text}resolver: { servers: ["127.0.0.1:${dns.resolver}"], trust_ad: true }\n`);
  grounds.edit('shaping.yaml', (text) => text.replace(/^routes:\n(?: .*\n)+/m, `routes: [{ domain: "*", loopback_mx: ${mx.port} }]\n`));
  await grounds.consent(Object.fromEntries(ZONES.map((name) => [`reader@${name}`, 'none'])));
  const daemon = await grounds.serve();
  t.teardown(() => daemon.stop());
  const send = async (name: string): Promise<{ readonly event: string; readonly tls?: string; readonly reason?: string; readonly class?: string }> => {
    const { id, reply } = await grounds.send({ from: 'news@demo.example', to: `reader@${name}.example`, subject: 'x', text: 'x' });
    return id === '' ? { event: reply } : grounds.event(id, ['delivered', 'deferred', 'failed']);
  };
  t.match(await send('kept'), { event: 'delivered', tls: / DANE$/ }, 'a promise, vouched for and kept');
  t.match(await send('plain'), { event: 'delivered', tls: /^TLSv1\.\d [^ ]+$/ }, 'no promise: opportunistic TLS');
  t.match(await send('alias'), { event: 'delivered', tls: / DANE$/ }, 'an MX host that is an alias');
  t.match(await send('bare'), { event: 'delivered', tls: / DANE$/ }, 'a domain without MX');
  const shown = async (name: string): Promise<unknown> => (await grounds.control('shaping.show', { domain: `${name}.example` }) as { tls: unknown }).tls;
  t.match(await shown('alias'), [{ host: 'mx.alias.example', must: 'DANE, 1 usable record at real.alias.example' }], 'and what is asked of a host is told');
  t.match(await shown('plain'), [{ must: 'as the lane says' }]);
  const before = mx.messages.length;
  for (const name of ['badalias', 'badbare']) t.match(await send(name), { event: 'deferred', class: 'tls', reason: /TLSA/ }, name);
  t.match(await send('broken'), { event: 'deferred', class: 'tls', reason: /TLSA/ }, 'a promise that is not kept');
  t.match(await send('bogus'), { event: 'deferred', class: 'dns' }, 'what was tampered with is no answer');
  t.equal(mx.messages.length, before, 'and nothing of it was sent');
  mx.script = {};
  mx.dropAll();
  t.match(await send('kept'), { event: 'deferred', class: 'tls' }, 'STARTTLS stripped on the way');
  t.equal(mx.messages.length, before);
});
