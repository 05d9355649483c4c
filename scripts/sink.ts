// A receiving MX for trying things out: accepts mail for anybody, on loopback only, and delivers it to
// nobody. It keeps the newest messages as .eml files, or in memory, and says what came. The local part
// of a recipient can ask for another answer: `450-x@` is deferred, `550-x@` refused, at RCPT; so are
// `data450-x@` and `data550-x@` after the message. Callers may rely on: it never listens on an address
// that others can reach, and a message is on disk before its 250.
// With --providers it is the simulator of scripts/simulator/: many receivers with limits.
//   scripts/sink --port 2525 --dir /tmp/sink
import { mkdirSync, readFileSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { SMTPServer, type SMTPServerDataStream, type SMTPServerSession } from 'smtp-server';
import { newId } from '../daemon/runtime/index.ts';
import { cast, PHASES, startSimulator } from './simulator/simulator.ts';

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

const HELP = `scripts/sink [--port 2525] [--host 127.0.0.1] [--dir FOLDER] [--keep 1000]
  A receiving MX for trying things out, on loopback only: it takes mail for anybody and keeps the newest messages.
  Recipients such as 450-x@, 550-x@, data450-x@ get that answer.

scripts/sink --providers [--port 2525] [--dns 2553] [--domains 100] [--hosters 10] [--tls-cert FILE --tls-key FILE] [--json]
  The provider simulator: Gmail, Outlook, Yahoo, Apple, Orange, GMX and a hosted long tail (d0.example, d1.example, ...) on
  addresses of 127.77.0.0/16, with a zone of their own, their limits and their replies. It keeps no message. SIGUSR1 prints
  what each has seen (peaks); so does Ctrl-C before it ends. --json prints peaks as JSON.
  A sandbox sends there with   resolver: { servers: ["127.0.0.1:2553"] }   in postern.yaml
  and                          routes: [{ domain: "*", loopback_mx: 2525 }] in shaping.yaml.
  --fault PROVIDER:PHASE:WHAT[:SHARE] (more than once): PHASE is ${PHASES.join(', ')};
  WHAT is close, reset, stall, trickle or a reply such as "451 4.7.1 later"; SHARE is 0 to 1.`;

if (import.meta.main) {
  const { values } = parseArgs({ options: {
    port: { type: 'string', default: '2525' }, host: { type: 'string', default: '127.0.0.1' }, dir: { type: 'string' }, keep: { type: 'string', default: '1000' },
    providers: { type: 'boolean', default: false }, dns: { type: 'string', default: '2553' }, domains: { type: 'string', default: '100' }, hosters: { type: 'string', default: '10' },
    'tls-cert': { type: 'string' }, 'tls-key': { type: 'string' }, fault: { type: 'string', multiple: true, default: [] }, json: { type: 'boolean', default: false }, help: { type: 'boolean', default: false },
  } });
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  if (values.providers) {
    const { 'tls-cert': cert, 'tls-key': key } = values;
    const simulator = await startSimulator({
      port: Number(values.port), dnsPort: Number(values.dns), providers: cast({ domains: Number(values.domains), hosters: Number(values.hosters) }),
      ...(cert !== undefined && key !== undefined && { tls: { cert: readFileSync(cert), key: readFileSync(key) } }),
    });
    for (const text of values.fault) {
      const [, provider = '', phase = '', what = '', share = '1'] = /^([^:]+):([^:]+):(.*?)(?::([01](?:\.\d+)?))?$/.exec(text) ?? [];
      const at = PHASES.find((one) => one === phase);
      if (at === undefined) throw new RangeError(`--fault ${text}: the phase is one of ${PHASES.join(', ')}`);
      const does = what === 'close' || what === 'reset' || what === 'stall' || what === 'trickle' ? what : { reply: what };
      simulator.fault(provider, [{ phase: at, does, share: Number(share) }]);
    }
    const tell = (): void => (values.json ? console.log(JSON.stringify(simulator.peaks())) : console.table(simulator.peaks().filter(({ connections }) => connections > 0)));
    process.on('SIGUSR1', tell);
    console.log(`the simulator takes mail on port ${simulator.port} of ${simulator.providers.flatMap(({ mx }) => mx).length} addresses; its DNS answers on ${simulator.dns.host}:${simulator.dns.port}`);
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => {
        tell();
        void simulator.close().then(() => process.exit(0)); // exits whatever clients still hold open
      });
    }
  } else {
    const sink = await startSink({
      port: Number(values.port), host: values.host, keep: Number(values.keep), ...(values.dir === undefined ? {} : { dir: values.dir }),
      onMessage: (message) => console.log(`${message.id} ${message.raw.length} octets for ${message.to.join(', ')}`),
    });
    console.log(`the sink takes mail on ${sink.host}:${sink.port}${values.dir === undefined ? '' : ` and keeps it in ${values.dir}`}`);
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => void sink.close().then(() => process.exit(0))); // exits whatever clients still hold open
  }
}
