// One outbound TCP connection as the SMTP client sees it: commands out, replies in, one timer at a time.
// Callers may rely on: read() always settles, with a reply or with undefined, and after undefined `fault`
// says why and the socket is gone. Nothing is thrown for what a peer or the network does.
// RFC 5321 §4.5.3.2, RFC 3207.
import { connect as tcpConnect, isIP, type Socket } from 'node:net';
import { connect as tlsConnect, type DetailedPeerCertificate, type TLSSocket } from 'node:tls';
import type { Reply } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import { ReplyReader } from './reply-reader.ts';

/** Why a session broke: `reason` is one plain sentence without a full stop. */
export interface SessionFault {
  readonly fault: 'timeout' | 'closed' | 'protocol' | 'tls';
  readonly reason: string;
}

// A block small enough that its write completing proves progress, large enough that most mail is one write.
const BLOCK_OCTETS = 256 * 1_024;
// No group of commands is longer than RSET, MAIL, RCPT and DATA; what else comes is a flood.
const MOST_REPLIES = 8;

export class Channel {
  /** Set once, by whatever broke the connection first. */
  fault: SessionFault | undefined;
  /** While false, anything the peer says breaks the channel. */
  expecting = true;
  /** What public authorities would say against the peer's certificate, as Node's code; '' when nothing, or without TLS. */
  distrust = '';
  #socket: Socket;
  readonly #clock: Clock;
  #reader = new ReplyReader();
  #replies: Reply[] = [];
  #wake: (() => void) | undefined;
  #stopTimer: (() => void) | undefined;
  readonly #onClosed: (() => void)[] = [];

  constructor(socket: Socket, clock: Clock) {
    this.#socket = socket;
    this.#clock = clock;
    this.#listen(socket);
  }

  #listen(socket: Socket): void {
    // Once TLS has taken over, the plain socket's events are no news.
    const mine = (run: () => void) => (): void => {
      if (socket === this.#socket) run();
    };
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (error) => mine(() => this.break('closed', `the connection broke (${errorWord(error)})`))());
    socket.on('end', mine(() => this.break('closed', 'the peer closed the connection')));
    socket.on('close', mine(() => this.break('closed', 'the connection was closed')));
  }

  #take(chunk: Buffer): void {
    if (this.fault !== undefined) return;
    // An idle receiver may only say 421, on its way out; half a word of it would become the next message's.
    if (!this.expecting) return this.break('closed', 'the peer spoke between transactions');
    const wrong = this.#reader.push(chunk, (reply) => {
      this.#replies.push(reply);
    });
    if (this.#replies.length > 0) this.#wake?.();
    if (this.#replies.length > MOST_REPLIES) this.break('protocol', 'the peer sent more replies than it was asked for');
    if (wrong !== undefined) this.break('protocol', `the peer sent ${wrong}`);
  }

  /** Ends the connection at once, for this reason; the first reason stands. */
  break(fault: SessionFault['fault'], reason: string): void {
    if (this.fault !== undefined) return;
    this.fault = { fault, reason };
    this.#socket.destroy();
    this.#wake?.();
    for (const run of this.#onClosed.splice(0)) run();
  }

  /** Calls `run` once, when the connection is gone. */
  onClosed(run: () => void): void {
    if (this.fault === undefined) this.#onClosed.push(run);
    else run();
  }

  /** Breaks the channel when something of a reply has come that nobody asked for. */
  mustBeSilent(): void {
    if (this.#replies.length === 0 && !this.#reader.midReply) return;
    this.#replies = [];
    this.break('protocol', 'the peer sent more replies than it was asked for');
  }

  /** The next reply, or undefined once the channel is broken; `timeoutMs` without one breaks it. */
  async read(timeoutMs: number): Promise<Reply | undefined> {
    if (this.#replies.length === 0 && this.fault === undefined) {
      await this.#sleep(timeoutMs, `no reply within ${Math.ceil(timeoutMs / 1_000)} s`);
    }
    return this.#replies.shift();
  }

  /** Sleeps until a reply, a break, `until` or the time limit, which is a break. */
  #sleep(timeoutMs: number, late: string, until?: (done: () => void) => void): Promise<void> {
    // Already broken: nothing will ever wake the sleeper.
    if (this.fault !== undefined) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        this.#stopTimer?.();
        this.#stopTimer = undefined;
        this.#wake = undefined;
        resolve();
      };
      this.#wake = done;
      this.#stopTimer = this.#clock.after(timeoutMs, () => this.break('timeout', late));
      until?.(done);
    });
  }

  /** Sends a command line or several, CRLF included. */
  write(text: string): void {
    if (this.fault === undefined) this.#socket.write(Buffer.from(text, 'utf8'));
  }

  /**
   * Sends buffers as they are; `timeoutMs` is for each block of 256 KiB to leave.
   * @returns false when it stopped early: the channel broke, or the peer replied before the end.
   */
  async writeAll(buffers: readonly Buffer[], timeoutMs: number): Promise<boolean> {
    const all = blocks(buffers);
    for (const [i, block] of all.entries()) {
      if (this.fault !== undefined || this.#replies.length > 0) return false;
      const last = block.length - 1;
      // The last block's wait is the wait for the reply to it.
      if (i === all.length - 1) this.#writeBlock(block, last);
      else {
        // RFC 5321 §4.5.3.2.5
        await this.#sleep(timeoutMs, `the peer stopped reading for ${Math.ceil(timeoutMs / 1_000)} s`, (done) => {
          this.#writeBlock(block, last, done);
        });
      }
    }
    return true;
  }

  #writeBlock(block: readonly Buffer[], last: number, done?: () => void): void {
    this.#socket.cork();
    for (const [j, buffer] of block.entries()) {
      if (j === last && done !== undefined) this.#socket.write(buffer, done);
      else this.#socket.write(buffer);
    }
    this.#socket.uncork();
  }

  /**
   * Wraps the connection in TLS. Replies in clear that came after the 220 are dropped unread.
   * `fault` judges the certificates (DER, the peer's own first): anything but '' ends the connection.
   * @returns `TLSv1.3 TLS_AES_256_GCM_SHA384`, or undefined after a failed handshake.
   */
  async startTls(options: { readonly servername: string; readonly rejectUnauthorized: boolean; readonly fault?: CertificateJudge }, timeoutMs: number): Promise<string | undefined> {
    if (this.fault !== undefined) return undefined;
    // RFC 3207 §4.2 MUST: nothing learned or sent in the clear is kept.
    this.#replies = [];
    this.#reader = new ReplyReader();
    const plain = this.#socket;
    const secure: TLSSocket = tlsConnect({
      socket: plain,
      rejectUnauthorized: options.rejectUnauthorized,
      // RFC 6066 §3: a literal address is no server name, but what the certificate is held against.
      host: options.servername,
      ...(isIP(options.servername) === 0 && options.servername !== '' ? { servername: options.servername } : {}),
    });
    this.#socket = secure;
    let ready = false;
    secure.on('error', (error) => {
      this.break(ready ? 'closed' : 'tls', ready ? `the connection broke (${errorWord(error)})` : `the TLS handshake failed (${errorWord(error)})`);
    });
    secure.on('end', () => this.break(ready ? 'closed' : 'tls', ready ? 'the peer closed the connection' : 'the peer closed the connection in the TLS handshake'));
    secure.on('close', () => this.break(ready ? 'closed' : 'tls', ready ? 'the connection was closed' : 'the connection was closed in the TLS handshake'));
    secure.on('data', (chunk: Buffer) => this.#take(chunk));
    await this.#sleep(timeoutMs, `the TLS handshake took longer than ${Math.ceil(timeoutMs / 1_000)} s`, (done) => {
      secure.once('secureConnect', () => {
        ready = true;
        this.distrust = secure.authorized ? '' : String(secure.authorizationError);
        done();
      });
    });
    const wrong = this.fault === undefined ? judged(options.fault, chainOf(secure)) : '';
    if (wrong !== '') this.break('tls', wrong);
    return this.fault === undefined ? `${secure.getProtocol() ?? 'TLS'} ${secure.getCipher().name}` : undefined;
  }

  /** Says QUIT and goes; settles when the connection is gone, after `waitMs` at most. */
  async quit(waitMs: number): Promise<void> {
    if (this.fault !== undefined) return;
    this.expecting = true;
    this.#socket.write('QUIT\r\n');
    // RFC 5321 §4.1.1.10 SHOULD: wait for the 221, but not for long.
    await this.read(waitMs);
    this.break('closed', 'we said goodbye');
  }
}

/** Certificates in DER, the peer's own first -> '' or what is wrong with them. */
export type CertificateJudge = (chain: readonly Buffer[]) => string;

function judged(fault: CertificateJudge | undefined, chain: readonly Buffer[]): string {
  try {
    return fault?.(chain) ?? '';
  } catch (error) {
    // A key or certificate of a kind nobody here can read is a stranger's doing, and proves nothing.
    return `the certificates cannot be judged (${errorWord(error instanceof Error ? error : new Error(String(error)))})`;
  }
}

// Real chains have three or four.
const MAX_CHAIN = 10;

function chainOf(socket: TLSSocket): readonly Buffer[] {
  const chain: Buffer[] = [];
  let certificate: DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
  while (certificate?.raw !== undefined && chain.length < MAX_CHAIN) {
    chain.push(certificate.raw);
    // A root names itself.
    certificate = certificate.issuerCertificate === certificate ? undefined : certificate.issuerCertificate;
  }
  return chain;
}

// RFC 8305 §5 leaves it at 250 ms to 2 s. A second is when a lost SYN is sent again (RFC 6298 §2): a receiver
// that is merely slow does not see two connections, and mail has the time.
const OTHER_AFTER_MS = 1_000;

/** Opens the TCP connection to an address, or to the other beside it; the time limit covers the TCP handshakes alone. */
export function openChannel(
  to: { readonly host: string; readonly other?: string; readonly port: number; readonly localAddress?: string },
  clock: Clock,
  timeoutMs: number,
): Promise<{ readonly channel: Channel } | { readonly fault: SessionFault }> {
  return new Promise((resolve) => {
    const untried = to.other === undefined ? [to.host] : [to.host, to.other];
    const trying = new Set<Socket>();
    let stopNext = (): void => undefined;
    const end = (result: { readonly channel: Channel } | { readonly fault: SessionFault }): void => {
      stopTimer();
      stopNext();
      untried.length = 0;
      for (const socket of trying) socket.destroy();
      resolve(result);
    };
    const next = (): void => {
      stopNext();
      const host = untried.shift();
      if (host === undefined) return;
      const socket = tcpConnect({ host, port: to.port, noDelay: true, autoSelectFamily: false, ...(to.localAddress === undefined ? {} : { localAddress: to.localAddress }) });
      trying.add(socket);
      socket.once('connect', () => {
        trying.delete(socket);
        socket.removeAllListeners('error');
        end({ channel: new Channel(socket, clock) });
      });
      socket.once('error', (error) => {
        trying.delete(socket);
        if (trying.size === 0 && untried.length === 0) end({ fault: { fault: 'closed', reason: `no connection (${errorWord(error)})` } });
        else next();
      });
      if (untried.length > 0) stopNext = clock.after(OTHER_AFTER_MS, next);
    };
    const stopTimer = clock.after(timeoutMs, () => end({ fault: { fault: 'timeout', reason: `no connection within ${Math.ceil(timeoutMs / 1_000)} s` } }));
    next();
  });
}

function blocks(buffers: readonly Buffer[]): (readonly Buffer[])[] {
  let total = 0;
  for (const buffer of buffers) total += buffer.length;
  if (total <= BLOCK_OCTETS) return [buffers];
  const all: Buffer[][] = [];
  let block: Buffer[] = [];
  let room = BLOCK_OCTETS;
  for (const buffer of buffers) {
    let from = 0;
    while (from < buffer.length) {
      const part = buffer.subarray(from, from + room);
      block.push(part);
      from += part.length;
      room -= part.length;
      if (room === 0) {
        all.push(block);
        block = [];
        room = BLOCK_OCTETS;
      }
    }
  }
  if (block.length > 0) all.push(block);
  return all;
}

// Only the code: the text names addresses and ports.
function errorWord(error: Error): string {
  return 'code' in error && typeof error.code === 'string' ? error.code : 'no code';
}
