// Plays SMTP conversations written as text against a real server. `C:` lines are sent with CRLF, lines
// that follow each other in one write; `S=` is the whole reply line, `S~` its beginning, `S:` a class
// such as 2..; `*` stands for anything in `S=`. `X:` sends a JavaScript string as it is, `TLS` starts
// TLS, `CLOSED` expects the end, `B64:` sends base64 of a JavaScript string.
import { connect as connectPlain, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';

/** A connection that gives whole replies, and keeps a transcript for the day a test fails. */
export class Client {
  #socket: Socket | TLSSocket;
  #buffer = '';
  #ended = false;
  #wake: (() => void) | undefined;
  readonly transcript: string[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#listen();
  }

  static async open(port: number, how: 'tls' | 'plain', host = '127.0.0.1'): Promise<Client> {
    const socket = how === 'tls' ? connectTls({ port, host, rejectUnauthorized: false }) : connectPlain({ port, host });
    const client = new Client(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once(how === 'tls' ? 'secureConnect' : 'connect', resolve);
      socket.once('error', reject);
    });
    return client;
  }

  get socket(): Socket {
    return this.#socket;
  }

  #listen(): void {
    this.#socket.on('data', (chunk: Buffer) => {
      this.#buffer += chunk.toString('utf8');
      this.#wake?.();
    });
    for (const event of ['end', 'close', 'error']) {
      this.#socket.on(event, () => {
        this.#ended = true;
        this.#wake?.();
      });
    }
  }

  send(text: string | Buffer): void {
    this.transcript.push(`C ${JSON.stringify(text.toString('utf8').slice(0, 200))}`);
    this.#socket.write(typeof text === 'string' ? Buffer.from(text, 'utf8') : text);
  }

  /** The next reply, its lines joined by LF; '' when the server has closed. */
  async reply(timeoutMs = 5_000): Promise<string> {
    const until = Date.now() + timeoutMs;
    for (;;) {
      const whole = /^(?:\d{3}-.*\r\n)*\d{3} .*\r\n/.exec(this.#buffer);
      if (whole !== null) {
        this.#buffer = this.#buffer.slice(whole[0].length);
        const text = whole[0].slice(0, -2).replaceAll('\r\n', '\n');
        this.transcript.push(`S ${text}`);
        return text;
      }
      if (this.#ended) return '';
      if (Date.now() > until) throw new Error(`no reply in ${timeoutMs} ms after:\n${this.transcript.join('\n')}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 50);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Sends a line and waits for its reply. */
  async say(line: string): Promise<string> {
    this.send(`${line}\r\n`);
    return this.reply();
  }

  /** Switches to TLS after a 220; what the server sent in clear before that is gone. */
  async startTls(): Promise<void> {
    this.#socket.removeAllListeners('data');
    const secured = connectTls({ socket: this.#socket, rejectUnauthorized: false });
    await new Promise<void>((resolve, reject) => {
      secured.once('secureConnect', resolve);
      secured.once('error', reject);
    });
    this.#socket = secured;
    this.#listen();
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Plays one dialog; the first line that is not as written throws with the conversation so far. */
export async function playDialog(text: string, client: Client): Promise<void> {
  const lines = text.split('\n');
  let outgoing = '';
  let heard: string[] = [];
  for (const [n, line] of lines.entries()) {
    const [, kind, rest = ''] = /^(C:|X:|B64:|S[=~:]|TLS|CLOSED)(?: (.*))?$/.exec(line) ?? [];
    if (kind === undefined) {
      if (line.trim() === '' || line.startsWith('#')) continue;
      throw new Error(`line ${n + 1} is no dialog line: ${line}`);
    }
    if (kind === 'C:') outgoing += `${rest}\r\n`;
    else if (kind === 'X:') outgoing += JSON.parse(rest) as string;
    else if (kind === 'B64:') outgoing += `${Buffer.from(JSON.parse(rest) as string).toString('base64')}\r\n`;
    if (/^(C|X|B64):/.test(kind)) continue;
    if (outgoing !== '') client.send(outgoing);
    outgoing = '';
    if (kind === 'TLS') {
      await client.startTls();
      continue;
    }
    if (heard.length === 0) heard = (await client.reply()).split('\n');
    const got = heard.shift() ?? '';
    if (!matches(kind, rest, got)) throw new Error(`line ${n + 1}: expected ${line}\n     heard ${got}\n${client.transcript.join('\n')}`);
    // `S~` and `S:` speak of a whole reply when the next line is not another expectation of it.
    if (!/^S[=~:]/.test(lines[n + 1] ?? '')) heard = [];
  }
  if (outgoing !== '') client.send(outgoing);
}

function matches(kind: string, expected: string, got: string): boolean {
  if (kind === 'CLOSED') return got === '';
  if (kind === 'S~') return got.startsWith(expected);
  if (kind === 'S:') return new RegExp(`^${expected}`).test(got);
  const pattern = expected.split('*').map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('.*');
  return new RegExp(`^${pattern}$`).test(got);
}
