// The load both sides of a benchmark get: so many kept SMTP sessions, each sending its share of the
// messages one after the other, as fast as the relay answers. Run as a process of its own
// (`generator.ts '{"port":…}'`), so that its cost is not charged to the relay. Prints one JSON line:
// {"seconds","sent","refused","p99Ms"}: from the first connection to the last 250, and what the end of DATA took.
import { createConnection, type Socket } from 'node:net';
import { connect as tlsConnect } from 'node:tls';

/** What to send where. */
export interface Load {
  readonly port: number;
  readonly messages: number;
  readonly sessions: number;
  /** Messages a second of all sessions together; left out: as fast as they are taken. */
  readonly rate?: number;
  /** Implicit TLS and AUTH PLAIN where given. */
  readonly login?: { readonly username: string; readonly secret: string };
  readonly from: string;
  /** Recipients are used in turn. */
  readonly recipients: readonly string[];
  /** The message with CRLF, dots stuffed, without the final dot. `@@` is replaced by a running number. */
  readonly message: string;
}

export interface Sent {
  readonly seconds: number;
  readonly sent: number;
  readonly refused: number;
  /** From the final dot to its answer, the slowest but one in a hundred. */
  readonly p99Ms: number;
}

/** Sends the load. @throws Error when a session breaks or a command is answered out of order */
export async function generate(load: Load): Promise<Sent> {
  let next = 0;
  let sent = 0;
  let refused = 0;
  const took: number[] = [];
  const started = performance.now();
  await Promise.all(Array.from({ length: load.sessions }, async () => {
    const session = new Client(await open(load));
    await session.greet(load.login);
    for (let i = next++; i < load.messages; i = next++) {
      const waitMs = load.rate === undefined ? 0 : started + (i * 1_000) / load.rate - performance.now();
      if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs));
      const to = load.recipients[i % load.recipients.length] ?? '';
      const text = load.message.replaceAll('@@', String(i));
      session.write(`MAIL FROM:<${load.from}>\r\nRCPT TO:<${to}>\r\nDATA\r\n`);
      const replies = [await session.reply(), await session.reply(), await session.reply()];
      if (replies.some((code) => code >= 400)) {
        refused += 1;
        session.write('RSET\r\n');
        await session.reply();
        continue;
      }
      const dotAt = performance.now();
      session.write(`${text}\r\n.\r\n`);
      const code = await session.reply();
      took.push(performance.now() - dotAt);
      if (code === 250) sent += 1;
      else refused += 1;
    }
    session.write('QUIT\r\n');
    await session.reply();
    session.end();
  }));
  took.sort((a, b) => a - b);
  return { seconds: (performance.now() - started) / 1000, sent, refused, p99Ms: Math.round((took[Math.floor(took.length * 0.99)] ?? 0) * 10) / 10 };
}

function open(load: Load): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const at = { host: '127.0.0.1', port: load.port };
    const socket: Socket = load.login === undefined
      ? createConnection(at, () => resolve(socket))
      : tlsConnect({ ...at, rejectUnauthorized: false }, () => resolve(socket));
    socket.setNoDelay(true);
    socket.once('error', reject);
  });
}

class Client {
  readonly #socket: Socket;
  readonly #codes: number[] = [];
  #text = '';
  #wake: (() => void) | undefined;
  #ended = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#read(chunk.toString('latin1')));
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    socket.on('close', end);
    socket.on('error', end);
  }

  #read(chunk: string): void {
    this.#text += chunk;
    for (let end = this.#text.indexOf('\r\n'); end >= 0; end = this.#text.indexOf('\r\n')) {
      if (this.#text[3] !== '-') this.#codes.push(Number(this.#text.slice(0, 3)));
      this.#text = this.#text.slice(end + 2);
    }
    this.#wake?.();
  }

  async reply(): Promise<number> {
    for (;;) {
      const code = this.#codes.shift();
      if (code !== undefined) return code;
      if (this.#ended) throw new Error('the session was closed by the relay');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  async greet(login: Load['login']): Promise<void> {
    await this.reply();
    this.write('EHLO generator.example\r\n');
    await this.reply();
    if (login === undefined) return;
    this.write(`AUTH PLAIN ${Buffer.from(`\0${login.username}\0${login.secret}`).toString('base64')}\r\n`);
    const code = await this.reply();
    if (code !== 235) throw new Error(`AUTH was answered ${code}`);
  }

  write(text: string): void {
    this.#socket.write(text, 'latin1');
  }

  end(): void {
    this.#socket.destroy();
  }
}

if (import.meta.main) {
  let text = '';
  for await (const chunk of process.stdin) text += String(chunk);
  console.log(JSON.stringify(await generate(JSON.parse(text) as Load)));
}
