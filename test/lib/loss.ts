// Rounds of kill -9 amid submissions, for the test and the bench: so many messages from a few sessions, a kill
// somewhere in the midst, a new start, and the count of what arrived.
import { connect, type TLSSocket } from 'node:tls';
import { startSink } from '../../scripts/sink.ts';
import { eventually, makeGrounds, pause, spawnDaemon } from './daemon.ts';

export interface LossRound {
  /** Messages answered 250, before the kill. */
  readonly answered: number;
  readonly arrivedBefore: number;
  /** Answered and never arrived. */
  readonly missing: readonly string[];
  /** Arrived once more than once. */
  readonly duplicates: number;
  /** Arrived though the answer was cut off. */
  readonly unanswered: number;
  readonly restartMs: number;
}

/** The connections a lane of the sandbox may have: what can be in flight at the kill. */
export const LANE_CONNECTIONS = 20;
export const SESSIONS = 4;

/** Carries out the rounds one after the other on one data directory; each is told as it ends. */
export async function lossRounds(rounds: number, messages: number, told: (round: LossRound) => void): Promise<void> {
  const arrived = new Map<string, number>();
  const sink = await startSink({ port: 0, keep: 1, onMessage: ({ raw }) => {
    const key = /^Subject: (\S+)/m.exec(raw.toString('latin1', 0, 8_000))?.[1] ?? '';
    arrived.set(key, (arrived.get(key) ?? 0) + 1);
  } });
  const grounds = await makeGrounds(sink.port);
  await grounds.consent({ 'reader@example.com': 'none' });
  let daemon = await spawnDaemon(grounds.root);
  try {
    for (let round = 0; round < rounds; round++) {
      arrived.clear();
      const answered: string[] = [];
      const sessions = Array.from({ length: SESSIONS }, (_, s) => submitAll(grounds.ports.submissions, grounds.secret, s, messages / SESSIONS, (key) => answered.push(key)));
      const killAt = Math.ceil(messages * (0.1 + Math.random() * 0.8));
      await eventually(() => answered.length >= killAt, messages * 20 + 10_000);
      await pause(Math.random() * 5);
      await daemon.kill('SIGKILL');
      await Promise.all(sessions);
      const arrivedBefore = [...arrived.values()].reduce((sum, n) => sum + n, 0);
      const started = performance.now();
      daemon = await spawnDaemon(grounds.root);
      const restartMs = Math.round(performance.now() - started);
      const missing = (): string[] => answered.filter((key) => !arrived.has(key));
      await eventually(() => missing().length === 0, messages * 10 + 10_000);
      await drained(grounds.control);
      const duplicates = [...arrived.values()].reduce((sum, n) => sum + n - 1, 0);
      const unanswered = [...arrived.keys()].filter((key) => !answered.includes(key)).length;
      told({ answered: answered.length, arrivedBefore, missing: missing(), duplicates, unanswered, restartMs });
    }
    await daemon.kill('SIGTERM');
  } finally {
    daemon.child.kill('SIGKILL');
    await sink.close();
    grounds.remove();
  }
}

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
