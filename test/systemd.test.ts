// The unit as systemd itself sees it: it loads without a complaint, and its exposure score stays low.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { notify } from '../daemon/runtime/index.ts';

const unit = join(import.meta.dirname, '../systemd/postern.service');
const here = spawnSync('systemd-analyze', ['--version']).status === 0;
const skip = here ? false : 'needs systemd-analyze';
if (!here) t.comment('systemd-analyze is not installed: the unit is not checked');

t.test('systemd-analyze verify is silent', { skip }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-unit-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  // verify asks for an executable that is there; everything else is the unit as shipped.
  const text = readFileSync(unit, 'utf8').replace('/usr/lib/postern/scripts/postern', '/bin/true');
  writeFileSync(join(dir, 'postern.service'), text);
  const run = spawnSync('systemd-analyze', ['verify', '--man=no', join(dir, 'postern.service')], { encoding: 'utf8' });
  t.equal(run.status, 0);
  const ours = `${run.stdout}${run.stderr}`.split('\n').filter((line) => line.includes('postern'));
  t.same(ours, []);
});

t.test('systemd-analyze security is below 3.0', { skip }, async (t) => {
  const run = spawnSync('systemd-analyze', ['security', '--offline=true', '--no-pager', unit], { encoding: 'utf8' });
  const score = Number(/exposure level for \S+: ([\d.]+)/.exec(run.stdout)?.[1] ?? Number.NaN);
  t.ok(score < 3, `exposure ${score}`);
});

t.test('sysusers and tmpfiles', async (t) => {
  t.match(readFileSync(join(unit, '../sysusers.d/postern.conf'), 'utf8'), /^u postern /m);
  t.match(readFileSync(join(unit, '../tmpfiles.d/postern.conf'), 'utf8'), /^d \/etc\/postern\/keys +0700 root root/m);
});

t.test('notify does nothing without a supervisor and reports one that is not there', async (t) => {
  const before = process.env['NOTIFY_SOCKET'];
  t.teardown(() => {
    if (before === undefined) delete process.env['NOTIFY_SOCKET'];
    else process.env['NOTIFY_SOCKET'] = before;
  });
  delete process.env['NOTIFY_SOCKET'];
  t.equal(await notify('READY=1'), undefined);
  process.env['NOTIFY_SOCKET'] = '/nonexistent/socket';
  t.type(await notify('READY=1', 'STATUS=one\ntwo'), 'string');
});

const python = spawnSync('python3', ['-c', 'pass']).status === 0 && spawnSync('systemd-notify', ['--version']).status === 0;
t.test('notify reaches a supervisor', { skip: python ? false : 'needs python3 and systemd-notify' }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-notify-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const { spawn } = await import('node:child_process');
  const listener = spawn('python3', ['-c', 'import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM);s.settimeout(10);s.bind(sys.argv[1]);print("up",flush=True)\nprint(repr(s.recv(4096)),flush=True)\n# then the barrier: systemd-notify waits until its descriptor is closed, which not taking it does\ns.recv(4096)', join(dir, 's')]);
  t.teardown(() => listener.kill());
  let said = '';
  listener.stdout.on('data', (part) => { said += String(part); });
  const ended = new Promise((done) => { listener.stdout.on('end', done); });
  while (!said.includes('up')) await new Promise((done) => setTimeout(done, 20));
  process.env['NOTIFY_SOCKET'] = join(dir, 's');
  t.teardown(() => delete process.env['NOTIFY_SOCKET']);
  t.equal(await notify('READY=1', 'STATUS=taking mail'), undefined);
  await ended;
  t.match(said, /READY=1\\nSTATUS=taking mail/);
});
