// One MX host of the simulator: an SMTP listener on an address of 127.0.0.0/8 that keeps its receiver's
// limits. It reads and answers by itself (a library would cost more than the sender under test), keeps no
// message, and never trusts order: replies go out in the order of the commands. A session counts as over
// when it has been told so (221, 421) or has gone, as receivers count.
import { createServer, type Server, type Socket } from 'node:net';
import { createSecureContext, TLSSocket, type SecureContext } from 'node:tls';
import type { Cap, ProviderModel } from './providers.ts';
import type { SiteRecord } from './record.ts';

/** Where a fault can strike. */
export const PHASES = ['connect', 'ehlo', 'starttls', 'mail', 'rcpt', 'data', 'final', 'quit'] as const;
export type SmtpPhase = (typeof PHASES)[number];

/** Something that goes wrong at a phase, for a share of those who come to it. */
export interface Fault {
  readonly phase: SmtpPhase;
  /** `close` hangs up, `reset` sends RST, `stall` says nothing, `trickle` sends an octet a second; else a reply. */
  readonly does: 'close' | 'reset' | 'stall' | 'trickle' | { readonly reply: string };
  /** 0 to 1; 1: everybody. */
  readonly share: number;
}

/** One receiver while it runs: shared by its hosts, changed by tests as they go. */
export interface Receiver {
  model: ProviderModel;
  faults: readonly Fault[];
  readonly record: SiteRecord;
  /** Greylisting: sender and recipient -> when they first came. */
  readonly strangers: Map<string, number>;
  /** When the mail that was let through came, for the message rate. */
  readonly passed: number[];
  readonly onMessage: ((from: string, to: readonly string[], sizeBytes: number) => void) | undefined;
}

export interface MxHost {
  readonly address: string;
  readonly port: number;
  close(): Promise<void>;
}

/** Starts a host. @throws RangeError for an address others can reach */
export async function serveHost(name: string, address: string, port: number, receiver: Receiver, tls: { readonly cert: string | Buffer; readonly key: string | Buffer } | undefined): Promise<MxHost> {
  if (!/^127\.\d+\.\d+\.\d+$/.test(address)) throw new RangeError(`the simulator listens on 127.0.0.0/8 only, not on ${address}`);
  const secure = tls === undefined ? undefined : createSecureContext(tls);
  const sockets = new Set<Socket>();
  const server: Server = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    new Conversation(name, socket, receiver, secure).begin();
  });
  await new Promise<void>((ready, fail) => {
    server.once('error', fail);
    server.listen(port, address, 4_096, ready);
  });
  const at = server.address();
  return {
    address, port: typeof at === 'object' && at !== null ? at.port : port,
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise((done) => server.close(done));
    },
  };
}

/** Whether one more fits, and it is counted if so. */
function within(times: number[], now: number, cap: Cap | undefined): boolean {
  if (cap === undefined) return true;
  while ((times[0] ?? now) <= now - cap.perMs) times.shift();
  if (times.length >= cap.count) return false;
  times.push(now);
  return true;
}

class Conversation {
  readonly #name: string;
  readonly #plain: Socket;
  readonly #receiver: Receiver;
  readonly #secure: SecureContext | undefined;
  #socket: Socket;
  #buffered: Buffer = Buffer.alloc(0);
  #encrypted = false;
  #over = false;
  #inData = false;
  #from = '';
  #to: string[] = [];
  /** MAIL was taken. */
  #begun = false;
  #mailed = 0;
  #sizeBytes = 0;

  constructor(name: string, socket: Socket, receiver: Receiver, secure: SecureContext | undefined) {
    this.#name = name;
    this.#plain = socket;
    this.#socket = socket;
    this.#receiver = receiver;
    this.#secure = secure;
  }

  begin(): void {
    const { model, record } = this.#receiver;
    const now = performance.now();
    record.connected(now, this.#plain.remoteAddress ?? '');
    this.#plain.once('close', () => this.#end());
    this.#listen(this.#plain);
    if (this.#struck('connect')) return;
    if (record.open > model.connections) return this.#refuse('connections', model.refusals.connections);
    if (!within(this.#connects(), now, model.connectionRate)) return this.#refuse('connection-rate', model.refusals.connectionRate);
    this.#say(`220 ${this.#name} ESMTP`);
  }

  /** Connections that were let in, by receiver. */
  #connects(): number[] {
    const known = admitted.get(this.#receiver) ?? [];
    admitted.set(this.#receiver, known);
    return known;
  }

  #listen(socket: Socket): void {
    socket.on('error', () => socket.destroy());
    socket.on('end', () => socket.end());
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
  }

  #take(chunk: Buffer): void {
    if (this.#over) return;
    this.#buffered = this.#buffered.length === 0 ? chunk : Buffer.concat([this.#buffered, chunk]);
    while (!this.#over) {
      if (this.#inData) {
        if (!this.#takeData()) return;
        continue;
      }
      const end = this.#buffered.indexOf('\r\n');
      if (end === -1) return;
      const line = this.#buffered.toString('latin1', 0, end);
      this.#buffered = this.#buffered.subarray(end + 2);
      this.#command(line);
    }
  }

  /** False while the message has not ended. */
  #takeData(): boolean {
    const empty = this.#sizeBytes === 0 && this.#buffered.length >= 3 && this.#buffered.toString('latin1', 0, 3) === '.\r\n';
    const end = empty ? 0 : this.#buffered.indexOf('\r\n.\r\n');
    if (end === -1) {
      // The end may be split over two reads: four octets of it are kept.
      const keep = Math.min(4, this.#buffered.length);
      this.#sizeBytes += this.#buffered.length - keep;
      this.#buffered = this.#buffered.subarray(this.#buffered.length - keep);
      return false;
    }
    this.#sizeBytes += end;
    this.#buffered = this.#buffered.subarray(end + (empty ? 3 : 5));
    this.#inData = false;
    if (this.#struck('final')) return true;
    this.#mailed++;
    this.#begun = false;
    this.#receiver.record.took(this.#from, this.#mailed, this.#encrypted, this.#plain.remoteAddress ?? '');
    this.#receiver.onMessage?.(this.#from, this.#to, this.#sizeBytes);
    this.#say('250 2.0.0 taken');
    return true;
  }

  #command(line: string): void {
    switch (line.slice(0, 4).toUpperCase()) {
      case 'EHLO': return this.#struck('ehlo') ? undefined : this.#ehlo();
      case 'HELO': return this.#struck('ehlo') ? undefined : this.#say(`250 ${this.#name}`);
      case 'STAR': return this.#startTls();
      case 'MAIL': return this.#mail(line);
      case 'RCPT': return this.#rcpt(line);
      case 'DATA': return this.#data();
      case 'RSET':
        this.#to = [];
        this.#begun = false;
        return this.#say('250 2.0.0 ok');
      case 'NOOP': return this.#say('250 2.0.0 ok');
      case 'QUIT':
        if (this.#struck('quit')) return undefined;
        return this.#bye('221 2.0.0 bye');
      default: return this.#say('502 5.5.1 what?');
    }
  }

  #ehlo(): void {
    const tls = this.#secure !== undefined && !this.#encrypted ? ['STARTTLS'] : [];
    const lines = [this.#name, 'PIPELINING', '8BITMIME', 'SMTPUTF8', 'DSN', 'ENHANCEDSTATUSCODES', 'SIZE 36700160', ...tls];
    this.#say(lines.map((text, i) => `250${i === lines.length - 1 ? ' ' : '-'}${text}`).join('\r\n'));
  }

  #startTls(): void {
    if (this.#struck('starttls')) return;
    if (this.#secure === undefined || this.#encrypted) return this.#say('503 5.5.1 no');
    this.#say('220 2.0.0 go ahead');
    this.#plain.removeAllListeners('data');
    this.#plain.removeAllListeners('end');
    const tls = new TLSSocket(this.#plain, { isServer: true, secureContext: this.#secure });
    this.#socket = tls;
    this.#encrypted = true;
    this.#buffered = Buffer.alloc(0);
    this.#listen(tls);
  }

  #mail(line: string): void {
    const { model, record, passed } = this.#receiver;
    const now = performance.now();
    record.mailTimes.push(now);
    this.#from = /<(.*?)>/.exec(line)?.[1] ?? '';
    this.#to = [];
    this.#begun = false;
    if (this.#struck('mail')) return;
    if (model.tls && !this.#encrypted) return this.#no('tls', '530 5.7.0 Must issue a STARTTLS command first');
    if (this.#mailed >= model.messagesPerConnection) return this.#refuse('per-connection', model.refusals.perConnection);
    if (!within(passed, now, model.messageRate)) return this.#no('message-rate', model.refusals.messageRate);
    this.#begun = true;
    this.#say('250 2.1.0 ok');
  }

  #rcpt(line: string): void {
    const to = /<(.*?)>/.exec(line)?.[1] ?? '';
    if (!this.#begun) return this.#say('503 5.5.1 no sender');
    if (this.#struck('rcpt')) return;
    const asked = /^([45]\d\d)-/.exec(to)?.[1];
    if (asked !== undefined) return this.#no('asked', asked.startsWith('4') ? `${asked} 4.2.0 the simulator was asked for this answer` : `${asked} 5.1.1 the simulator was asked for this answer`);
    const { model, strangers } = this.#receiver;
    if (model.greylistMs > 0) {
      const now = performance.now();
      const key = `${this.#from.slice(this.#from.lastIndexOf('@') + 1)} ${to}`;
      const since = strangers.get(key);
      if (since === undefined) strangers.set(key, now);
      if (since === undefined || now - since < model.greylistMs) return this.#no('greylist', model.refusals.greylist);
    }
    this.#to.push(to);
    this.#say('250 2.1.5 ok');
  }

  #data(): void {
    if (this.#struck('data')) return;
    if (this.#to.length === 0) return this.#say('503 5.5.1 no recipient');
    this.#inData = true;
    this.#sizeBytes = 0;
    this.#say('354 go on');
  }

  /** Carries a fault out if one strikes here. */
  #struck(phase: SmtpPhase): boolean {
    const fault = this.#receiver.faults.find((one) => one.phase === phase && (one.share >= 1 || Math.random() < one.share));
    if (fault === undefined) return false;
    this.#receiver.record.refused(`fault-${phase}`);
    const { does } = fault;
    if (typeof does === 'object') {
      if (does.reply.startsWith('421')) this.#bye(does.reply);
      else this.#say(does.reply);
      return true;
    }
    this.#over = true;
    if (does === 'close') this.#socket.destroy();
    if (does === 'reset') this.#plain.resetAndDestroy();
    if (does === 'trickle') this.#trickle();
    return true;
  }

  #trickle(): void {
    const text = '250 2.0.0 this takes its time\r\n';
    let at = 0;
    const timer = setInterval(() => {
      if (at >= text.length || this.#socket.destroyed) clearInterval(timer);
      else this.#socket.write(text[at++] ?? '');
    }, 1_000);
    timer.unref();
  }

  #no(why: string, text: string): void {
    this.#receiver.record.refused(why);
    if (text.startsWith('421')) this.#bye(text);
    else this.#say(text);
  }

  #refuse(why: string, text: string): void {
    this.#receiver.record.refused(why);
    this.#bye(text);
  }

  #bye(text: string): void {
    this.#say(text);
    this.#end();
    this.#socket.end();
  }

  #end(): void {
    if (!this.#ended) this.#receiver.record.ended();
    this.#ended = true;
    this.#over = true;
  }

  #ended = false;

  #say(text: string): void {
    if (!this.#socket.destroyed) this.#socket.write(`${text}\r\n`, 'latin1');
  }
}

const admitted = new WeakMap<Receiver, number[]>();
