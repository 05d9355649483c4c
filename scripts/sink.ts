// A receiving MX for trying things out: accepts mail for anybody, on loopback only, and delivers it to
// nobody. It keeps the newest messages as .eml files, or in memory, and says what came. The local part
// of a recipient can ask for another answer: `450-x@` is deferred, `550-x@` refused, at RCPT; so are
// `data450-x@` and `data550-x@` after the message. Callers may rely on: it never listens on an address
// that others can reach, and a message is on disk before its 250.
//   scripts/node scripts/sink.ts --port 2525 --dir /tmp/sink
import { mkdirSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { SMTPServer, type SMTPServerDataStream, type SMTPServerSession } from 'smtp-server';
import { newId } from '../daemon/runtime/index.ts';

export interface SunkMessage {
  readonly id: string;
  readonly from: string;
  readonly to: readonly string[];
  readonly raw: Buffer;
  readonly tls: boolean;
  readonly at: number;
}

export interface SinkOptions {
  /** 0 picks a free one. */
  readonly port: number;
  /** Any address of 127.0.0.0/8 or ::1. */
  readonly host?: string;
  /** Where messages are written as `<id>.eml`; without it they are kept in memory. */
  readonly dir?: string;
  /** How many messages are kept. */
  readonly keep?: number;
  /** Offers STARTTLS with this pair, PEM. */
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer };
  readonly onMessage?: (message: SunkMessage) => void;
  /** The answer at RCPT, before the local part is looked at: a code with text, or undefined for the usual. */
  readonly script?: (recipient: string) => { readonly code: number; readonly text: string } | undefined;
}

export interface Sink {
  readonly host: string;
  readonly port: number;
  /** The newest messages, oldest first. */
  readonly messages: readonly SunkMessage[];
  readonly received: number;
  close(): Promise<void>;
}

type Refusal = Error & { responseCode: number };

/** Starts a sink. @throws RangeError for an address others can reach. */
export async function startSink(options: SinkOptions): Promise<Sink> {
  const host = options.host ?? '127.0.0.1';
  if (!/^(127\.\d+\.\d+\.\d+|::1)$/.test(host)) throw new RangeError(`the sink listens on loopback only, not on ${host}`);
  const keep = options.keep ?? 1_000;
  const messages: SunkMessage[] = [];
  let received = 0;
  const files: string[] = [];
  if (options.dir !== undefined) {
    mkdirSync(options.dir, { recursive: true });
    files.push(...readdirSync(options.dir).filter((name) => name.endsWith('.eml')).sort());
  }

  const store = (raw: Buffer, session: SMTPServerSession): SunkMessage => {
    const { mailFrom, rcptTo } = session.envelope;
    const message = { id: newId(Date.now()), from: mailFrom === false ? '' : mailFrom.address, to: rcptTo.map((to) => to.address), raw, tls: session.secure, at: Date.now() };
    received++;
    messages.push(message);
    if (messages.length > (options.dir === undefined ? keep : Math.min(keep, 100))) messages.shift();
    if (options.dir !== undefined) {
      writeFileSync(join(options.dir, `${message.id}.eml`), raw, { flag: 'wx' });
      files.push(`${message.id}.eml`);
      while (files.length > keep) unlinkSync(join(options.dir, files.shift() ?? ''));
    }
    return message;
  };

  const server = new SMTPServer({
    name: 'sink.postern.example', banner: 'postern sink', authOptional: true, disableReverseLookup: true, logger: false,
    disabledCommands: options.tls === undefined ? ['AUTH', 'STARTTLS'] : ['AUTH'],
    ...(options.tls === undefined ? {} : { cert: options.tls.cert, key: options.tls.key }),
    size: 52_428_800,
    onRcptTo(address, _session, done) {
      done(refusal(options.script?.(address.address) ?? asked(address.address, '')));
    },
    onData(stream: SMTPServerDataStream, session, done) {
      const parts: Buffer[] = [];
      stream.on('data', (part: Buffer) => parts.push(part));
      stream.on('error', done);
      stream.on('end', () => {
        const refused = refusal(session.envelope.rcptTo.map((to) => asked(to.address, 'data')).find((answer) => answer !== undefined));
        if (refused !== undefined) return done(refused);
        const message = store(Buffer.concat(parts), session);
        options.onMessage?.(message);
        return done(null, `kept as ${message.id}`);
      });
    },
  });
  await new Promise<void>((listening, fail) => {
    server.once('error', fail);
    server.listen(options.port, host, () => {
      server.off('error', fail);
      // A client that breaks off is no reason for a sink to stop.
      server.on('error', () => undefined);
      listening();
    });
  });
  return {
    host, port: (server.server.address() as AddressInfo).port, messages,
    get received() { return received; },
    close: () => new Promise((done) => { server.close(() => done()); }),
  };
}

/** The answer a local part asks for: `<when>450-...` or `<when>550-...`. */
function asked(recipient: string, when: '' | 'data'): { code: number; text: string } | undefined {
  const code = new RegExp(`^${when}([45]\\d\\d)-`).exec(recipient)?.[1];
  if (code === undefined) return undefined;
  const enhanced = code.startsWith('4') ? '4.2.0' : when === 'data' ? '5.7.1' : '5.1.1';
  return { code: Number(code), text: `${enhanced} the sink was asked for this answer` };
}

function refusal(answer: { readonly code: number; readonly text: string } | undefined): Refusal | undefined {
  return answer === undefined ? undefined : Object.assign(new Error(answer.text), { responseCode: answer.code });
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { port: { type: 'string', default: '2525' }, host: { type: 'string', default: '127.0.0.1' }, dir: { type: 'string' }, keep: { type: 'string', default: '1000' }, help: { type: 'boolean', default: false } } });
  if (values.help) {
    console.log(`scripts/node scripts/sink.ts [--port 2525] [--host 127.0.0.1] [--dir FOLDER] [--keep 1000]\nA receiving MX for trying things out, on loopback only: it takes mail for anybody and keeps the newest messages.\nRecipients such as 450-x@, 550-x@, data450-x@ get that answer.`);
    process.exit(0);
  }
  const sink = await startSink({
    port: Number(values.port), host: values.host, keep: Number(values.keep), ...(values.dir === undefined ? {} : { dir: values.dir }),
    onMessage: (message) => console.log(`${message.id} ${message.raw.length} octets for ${message.to.join(', ')}`),
  });
  console.log(`the sink takes mail on ${sink.host}:${sink.port}${values.dir === undefined ? '' : ` and keeps it in ${values.dir}`}`);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => void sink.close().then(() => process.exit(0))); // exits whatever clients still hold open
}
