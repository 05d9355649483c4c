// kill -9 amid submissions: what was answered 250 arrives after a restart, and nothing comes twice but
// what was on its way at the moment of the kill. POSTERN_CRASH_ROUNDS=10 POSTERN_CRASH_MESSAGES=2000 is
// the long run.
import t from 'tap';
import { connect, type TLSSocket } from 'node:tls';
import { startSink } from '../../scripts/sink.ts';
import { eventually, makeGrounds, pause, spawnDaemon } from '../lib/daemon.ts';

const ROUNDS = Number(process.env['POSTERN_CRASH_ROUNDS'] ?? 3);
const MESSAGES = Number(process.env['POSTERN_CRASH_MESSAGES'] ?? 200);
const SESSIONS = 4;
const LANE_CONNECTIONS = 20; // of the sandbox's shaping: what can be in flight at the kill
t.setTimeout(60_000 + ROUNDS * (MESSAGES * 20 + 30_000));

t.test(`${ROUNDS} rounds of ${MESSAGES} messages`, async (t) => {
  const arrived = new Map<string, number>();
  const sink = await startSink({ port: 0, keep: 1, onMessage: ({ raw }) => {
    const key = /^Subject: (\S+)/m.exec(raw.toString('latin1', 0, 8_000))?.[1] ?? '';
    arrived.set(key, (arrived.get(key) ?? 0) + 1);
  } });
  const grounds = await makeGrounds(sink.port);
  t.teardown(async () => { await sink.close(); grounds.remove(); });
  // In flight at the kill is deferred by nothing: the spool has no attempt on record and tries at once.
  await grounds.consent({ 'reader@example.com': 'none' });
  let daemon = await spawnDaemon(grounds.root);
  t.teardown(() => daemon.child.kill('SIGKILL'));
  for (let round = 0; round < ROUNDS; round++) {
    arrived.clear();
    const answered: string[] = [];
    const sessions = Array.from({ length: SESSIONS }, (_, s) => submitAll(grounds.ports.submissions, grounds.secret, s, MESSAGES / SESSIONS, (key) => answered.push(key)));
    const killAt = Math.ceil(MESSAGES * (0.1 + Math.random() * 0.8));
    await eventually(() => answered.length >= killAt, MESSAGES * 20 + 10_000);
    await pause(Math.random() * 5);
    await daemon.kill('SIGKILL');
    await Promise.all(sessions);
    const before = [...arrived.values()].reduce((sum, n) => sum + n, 0);
    const started = performance.now();
    daemon = await spawnDaemon(grounds.root);
    const startMs = Math.round(performance.now() - started);
    const missing = (): string[] => answered.filter((key) => !arrived.has(key));
    await eventually(() => missing().length === 0, MESSAGES * 10 + 10_000);
    await drained(grounds.control);
    const duplicates = [...arrived.values()].reduce((sum, n) => sum + n - 1, 0);
    const unanswered = [...arrived.keys()].filter((key) => !answered.includes(key)).length;
    t.comment(`round ${round + 1}: answered ${answered.length}, arrived before the kill ${before}, missing ${missing().length}, duplicates ${duplicates}, arrived though not answered ${unanswered}, restart ${startMs} ms`);
    t.same(missing(), [], 'every message answered 250 arrived');
    t.ok(duplicates <= LANE_CONNECTIONS, `${duplicates} duplicates, at most those in flight`);
    t.ok(unanswered <= SESSIONS, 'a message without its answer is at most the one each session was handing over');
  }
  await daemon.kill('SIGTERM');
});

async function drained(control: (op: string) => Promise<unknown>): Promise<void> {
  for (let i = 0; i < 400; i++) {
    const { recipients } = await control('status') as { recipients: number };
    if (recipients === 0) return;
    await pause(25);
  }
}

/** One session: message after message until done or the daemon is gone. */
function submitAll(port: number, secret: string, session: number, count: number, answered: (key: string) => void): Promise<void> {
  return new Promise((done) => {
    const socket: TLSSocket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
    const run = Math.random().toString(36).slice(2, 8);
    let n = 0;
    let step = 0;
    let rest = '';
    const auth = Buffer.from(`\0demo-app\0${secret}`).toString('base64');
    const say = (): string => {
      switch (step) {
        case 0: return 'EHLO client.example';
        case 1: return `AUTH PLAIN ${auth}`;
        case 2: return 'MAIL FROM:<news@demo.example>';
        case 3: return 'RCPT TO:<reader@example.com>';
        case 4: return 'DATA';
        default: return `From: news@demo.example\r\nTo: reader@example.com\r\nSubject: ${run}-${session}-${n}\r\n\r\nThe letter.\r\n.`;
      }
    };
    socket.on('error', () => socket.destroy()); // the kill
    socket.on('close', () => done());
    socket.on('data', (chunk) => {
      rest += chunk.toString('latin1');
      for (let end = rest.indexOf('\r\n'); end !== -1; end = rest.indexOf('\r\n')) {
        const line = rest.slice(0, end);
        rest = rest.slice(end + 2);
        if (line[3] === '-') continue;
        if (step === 6) {
          if (line.startsWith('250')) answered(`${run}-${session}-${n}`);
          n++;
          step = 2;
          if (n >= count) return void socket.end('QUIT\r\n');
        }
        socket.write(`${say()}\r\n`);
        step++;
      }
    });
  });
}
