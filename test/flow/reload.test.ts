// Configuration changes under a running relay, and the commands an operator gives it, with and without it.
import t from 'tap';
import { execFile } from 'node:child_process';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { CHECKOUT, makeGrounds, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx } from '../lib/mx.ts';

// Each command is a process of its own, some thirty of them.
t.setTimeout(120_000);

let mx: Mx;
let grounds: Grounds;
t.before(async () => {
  mx = await startMx({ answers: { rcpt: '450 4.2.0 later' } });
  grounds = await makeGrounds(mx.port);
  await grounds.consent({ 'reader@example.com': 'none' });
});
t.teardown(async () => {
  await mx.close();
  grounds.remove();
});
const gauge = async (): Promise<string> => /^postern_config_last_reload_successful ([01])/m.exec(await (await fetch(`http://127.0.0.1:${grounds.ports.metrics}/metrics`)).text())?.[1] ?? 'none';
const letter = { from: 'news@demo.example', to: 'reader@example.com', subject: 'x', text: 'x' };

/** The postern command. */
const cli = (...args: string[]): Promise<{ status: number; out: string }> => new Promise((done) => {
  execFile(join(CHECKOUT, 'scripts/postern'), [...args, '--config', grounds.root, '--json'], (error, stdout, stderr) => done({ status: error === null ? 0 : Number(error.code), out: stdout + stderr }));
});

t.test('a broken file changes nothing, a mended one comes into force', async (t) => {
  const daemon = await grounds.serve();
  const reload = async (): Promise<unknown> => grounds.control('reload');
  let good = '';
  grounds.edit('tenants/demo.yaml', (text) => { good = text; return `${text}  - { oops: [\n`; });
  t.match(JSON.stringify(await reload()), /demo\.yaml.*"line":\d+/);
  t.equal(await gauge(), '0');
  t.match((await grounds.send(letter)).reply, /^250/, 'the old one is in force');
  grounds.edit('tenants/demo.yaml', () => good.replace('class: marketing }', 'class: marketing }\n  - { id: brief, purpose: newsletter, class: marketing }')
    .replace('credentials:', `credentials:\n  - username: brief-app\n    secret: "${/sha256:[0-9a-f]+/.exec(good)?.[0] ?? ''}"\n    stream: brief\n    from: [demo.example]`));
  t.match(await reload(), { ok: true });
  t.equal(await gauge(), '1');
  t.match((await grounds.send(letter, 'brief-app')).reply, /^250/, 'a new stream without a restart');
  await daemon.stop();
});

t.test('a port that is taken is named', async (t) => {
  const taker = createServer();
  await new Promise<void>((ready) => taker.listen(grounds.ports.submissions, '127.0.0.1', ready));
  await t.rejects(grounds.serve(), { message: new RegExp(`submissions.*${grounds.ports.submissions}|${grounds.ports.submissions}.*submissions`) });
  await new Promise((done) => taker.close(done));
});

for (const running of [true, false]) {
  t.test(`commands ${running ? 'to a running daemon' : 'without one'}`, async (t) => {
    const daemon = running ? await grounds.serve() : undefined;
    const who = ['--tenant', 'demo', '--rcpt', `person${String(running)}@example.com`];
    const explain = (): Promise<{ status: number; out: string }> => cli('explain', ...who, '--stream', 'newsletter');
    t.match((await explain()).out, /consent-missing/);
    t.equal((await cli('consent', 'add', ...who, '--purpose', 'newsletter', '--source', 'form')).status, 0);
    t.match((await explain()).out, /ok-consent/);
    t.equal((await cli('consent', 'withdraw', ...who)).status, 0);
    t.match((await explain()).out, /consent-withdrawn/);
    t.equal((await cli('suppress', 'add', ...who)).status, 0);
    t.match((await explain()).out, /suppressed-manual/);
    t.match((await cli('status')).out, /"recipients":/);
    const listed = JSON.parse((await cli('queue', 'list')).out) as { rows: { id: string }[] };
    const id = listed.rows[0]?.id ?? '';
    t.not(id, '');
    for (const verb of ['hold', 'release', 'drop']) t.match((await cli('queue', verb, id)).out, /"changed":1/, verb);
    t.match((await cli('trace', id)).out, /accepted/);
    await daemon?.stop();
  });
}
