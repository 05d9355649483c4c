// What the time of a RCPT reply tells one tenant of another's list: Welch's t over three kinds of strangers (I-2)
//
// Two tenants on a running daemon. acme asks for people it has never heard of: on nobody's list, on
// bravo's, and suppressed by bravo; each address once, drawn by lot, in random order over kept sessions,
// one question at a time. The slowest hundredth is left out (dudect's cropping: what another process
// costs says nothing of a class). A |t| of 4.5 or more in any pair is a leak. The control are people on
// acme's own list, whose different answer takes a different time: it shows what a difference looks like.
//   npm run bench -- isolation [--json] [--rcpts 10000]
import { randomBytes, randomInt } from 'node:crypto';
import { connect, type TLSSocket } from 'node:tls';
import { parseArgs } from 'node:util';
import { spawnDaemon } from '../test/lib/daemon.ts';
import { makeTwoTenants, type Side } from '../test/lib/two-tenants.ts';

const THRESHOLD = 4.5;
const CROP = 0.99;
const SESSIONS = 4;
// A minute is what the whole may take; a machine too slow for it asks for fewer, and says so.
const LONGEST_MS = 50_000;
const WARM_UP = 500;
// A transaction may have 1,000 recipients, and these are taken: the lot gives each session about 500.
const CONTROLS = 2_000;

const CLASSES = ['nowhere', 'on_other_list', 'suppressed_by_other'] as const;
type Class = (typeof CLASSES)[number] | 'control' | 'warm-up';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, rcpts: { type: 'string', default: '10000' } } });
const rcpts = Number(values.rcpts);
if (!Number.isSafeInteger(rcpts) || rcpts < 100) {
  console.error('--rcpts takes how many of each kind are asked for, at least 100');
  process.exit(2);
}

// All addresses look alike; the lot says which class one belongs to.
const draw = (count: number): string[] => Array.from({ length: count }, () => `r${randomBytes(6).toString('hex')}@d${randomInt(10, 100)}.example`);
const of: Readonly<Record<Class, readonly string[]>> = {
  nowhere: draw(rcpts), on_other_list: draw(rcpts), suppressed_by_other: draw(rcpts), control: draw(Math.min(CONTROLS, rcpts)), 'warm-up': draw(WARM_UP),
};
const started = performance.now();

/** Microseconds of each reply, by class. */
async function measure(): Promise<Map<Class, number[]>> {
  const sessions = await Promise.all(Array.from({ length: SESSIONS }, () => Session.open(two.ports.submissions, two.acme)));
  const times = new Map<Class, number[]>();
  const questions = shuffled((['control', ...CLASSES] as const).flatMap((kind) => of[kind].map((address) => ({ kind, address }))));
  for (const { kind, address } of [...of['warm-up'].map((address) => ({ kind: 'warm-up' as const, address })), ...questions]) {
    const session = sessions[randomInt(SESSIONS)];
    if (session === undefined || performance.now() - started > LONGEST_MS) break;
    const line = Buffer.from(`RCPT TO:<${address}>\r\n`);
    const before = process.hrtime.bigint();
    const reply = await session.ask(line);
    const us = Number(process.hrtime.bigint() - before) / 1_000;
    if (reply.startsWith('250') !== (kind === 'control')) throw new Error(`${kind}: ${reply}`);
    const known = times.get(kind);
    if (known === undefined) times.set(kind, [us]);
    else known.push(us);
  }
  for (const session of sessions) session.close();
  return times;
}

function report(times: ReadonlyMap<Class, readonly number[]>): void {
  const strangers = CLASSES.flatMap((kind) => times.get(kind) ?? []).sort((a, b) => a - b);
  const crop = strangers[Math.floor(strangers.length * CROP)] ?? Number.POSITIVE_INFINITY;
  const kept = (kind: Class): readonly number[] => (times.get(kind) ?? []).filter((us) => us < crop);
  const t = (one: Class, other: Class): number => Math.round(welch(kept(one), kept(other)) * 100) / 100;
  const pairs = {
    t_on_other_list: t('on_other_list', 'nowhere'),
    t_suppressed_by_other: t('suppressed_by_other', 'nowhere'),
    t_list_or_suppressed: t('on_other_list', 'suppressed_by_other'),
  };
  const least = Math.min(...CLASSES.map((kind) => times.get(kind)?.length ?? 0));
  const figures = {
    welch_t_max: Math.max(...Object.values(pairs).map(Math.abs)), ...pairs, t_control: t('control', 'nowhere'),
    mean_us: Math.round(mean(kept('nowhere'))), rcpts_per_class: least, seconds: Math.round((performance.now() - started) / 1_000),
  };
  if (values.json) {
    console.log(JSON.stringify({ name: 'isolation', ran: `${least} RCPT of each class on ${SESSIONS} kept sessions, random order, cropped at the 99th percentile`, figures, targets: { welch_t_max: THRESHOLD } }));
  } else {
    console.table(figures);
    console.log(figures.welch_t_max < THRESHOLD ? `below ${THRESHOLD}: the time tells nothing` : `${THRESHOLD} or more: the time tells which list somebody is on`);
    if (least < rcpts) console.log(`cut short after ${LONGEST_MS / 1_000} s: ${least} of ${rcpts} were asked for`);
  }
  if (!(figures.welch_t_max < THRESHOLD)) process.exitCode = 1;
}

const mean = (all: readonly number[]): number => all.reduce((sum, one) => sum + one, 0) / all.length;

/** Welch's t: how many standard errors apart two means are, their variances not being equal. */
function welch(a: readonly number[], b: readonly number[]): number {
  const [ma, mb] = [mean(a), mean(b)];
  const error = (all: readonly number[], m: number): number => all.reduce((sum, one) => sum + (one - m) ** 2, 0) / (all.length - 1) / all.length;
  return (ma - mb) / Math.sqrt(error(a, ma) + error(b, mb));
}

function shuffled<T>(all: T[]): T[] {
  for (let at = all.length - 1; at > 0; at--) {
    const other = randomInt(at + 1);
    const [one, two] = [all[at], all[other]];
    if (one !== undefined && two !== undefined) [all[at], all[other]] = [two, one];
  }
  return all;
}

/** A kept session past MAIL FROM, with one question open at a time: as little of our own time as can be. */
class Session {
  readonly #socket: TLSSocket;
  #heard = '';
  #answer: (reply: string) => void = () => undefined;

  private constructor(socket: TLSSocket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => {
      this.#heard += chunk.toString('latin1');
      if (!/(?:^|\r\n)\d{3} [^\r\n]*\r\n$/.test(this.#heard)) return;
      const reply = this.#heard;
      this.#heard = '';
      this.#answer(reply);
    });
    socket.on('close', () => this.#answer('the relay hung up'));
  }

  static async open(port: number, side: Side): Promise<Session> {
    const session = new Session(connect({ host: '127.0.0.1', port, rejectUnauthorized: false }));
    const login = Buffer.from(`\0${side.username}\0${side.secret}`).toString('base64');
    for (const line of ['', 'EHLO bench.example\r\n', `AUTH PLAIN ${login}\r\n`, `MAIL FROM:<${side.from}>\r\n`]) {
      const reply = await session.ask(Buffer.from(line));
      if (!reply.startsWith('2')) throw new Error(`${line.slice(0, 10)}: ${reply}`);
    }
    return session;
  }

  ask(line: Buffer): Promise<string> {
    return new Promise((done) => {
      this.#answer = done;
      if (line.length > 0) this.#socket.write(line);
    });
  }

  close(): void {
    this.#socket.destroy();
  }
}

// Nothing is delivered: no DATA is ever sent, and port 9 takes no mail.
const two = await makeTwoTenants(9);
try {
  await two.record({
    acme: { yes: of.control },
    bravo: { yes: of.on_other_list, no: Object.fromEntries(of.suppressed_by_other.map((address) => [address, 'complaint'])) },
  });
  const daemon = await spawnDaemon(two.root);
  try {
    report(await measure());
  } finally {
    await daemon.kill('SIGTERM');
  }
} finally {
  two.remove();
}
