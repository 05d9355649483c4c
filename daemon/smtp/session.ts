// The outbound session: we are the client, a receiver's MX the server. It connects, greets, upgrades to
// TLS and runs any number of transactions with one recipient each. Callers may rely on: what the peer does
// is a value, never an exception; a result names the phase and, where the session broke, whether the final
// dot had been sent (then the outcome is unknown). No policy lives here. Replies are never re-worded.
// 8-bit bodies go out as they are to a peer without 8BITMIME: RFC 6152 §3 asks for conversion, which breaks
// signatures; every such peer met in practice is 8-bit clean, and a mailed letter serves better than a bounce.
// A message that needs SMTPUTF8 is not sent to a peer without it (RFC 6531 §3.5).
// RFC 5321, RFC 1870, RFC 2920, RFC 3207, RFC 3461, RFC 6152, RFC 6531.
import { isAscii } from 'node:buffer';
import { systemClock, type Clock } from '../runtime/index.ts';
import type { Reply } from '../mail/index.ts';
import { openChannel, type Channel, type SessionFault, type CertificateJudge } from './channel.ts';
import { stuffDots } from './dots.ts';
import { formatUtf8Address } from './path.ts';

/** Milliseconds for each phase of a session. */
export interface SessionTimeouts {
  readonly connectMs: number;
  readonly tlsMs: number;
  readonly greetMs: number;
  readonly mailMs: number;
  readonly rcptMs: number;
  readonly dataMs: number;
  readonly blockMs: number;
  readonly finalMs: number;
  readonly quitMs: number;
}

/** What RFC 5321 asks for; connect and TLS, which it leaves open, are Postfix' 30 s and as much again. */
export const DEFAULT_TIMEOUTS: SessionTimeouts = Object.freeze({
  connectMs: 30_000,
  tlsMs: 60_000,
  // RFC 5321 §4.5.3.2.1
  greetMs: 300_000,
  // RFC 5321 §4.5.3.2.2
  mailMs: 300_000,
  // RFC 5321 §4.5.3.2.3
  rcptMs: 300_000,
  // RFC 5321 §4.5.3.2.4
  dataMs: 120_000,
  // RFC 5321 §4.5.3.2.5
  blockMs: 180_000,
  // RFC 5321 §4.5.3.2.6
  finalMs: 600_000,
  // Nothing depends on the 221.
  quitMs: 2_000,
});

export interface ConnectOptions {
  /** An address, not a name. */
  readonly host: string;
  /** Another of the same host, of the other family: whichever takes the connection first. */
  readonly other?: string;
  readonly port: number;
  readonly localAddress?: string;
  readonly helo: string;
  readonly tls: {
    readonly mode: 'opportunistic' | 'required' | 'off';
    readonly servername: string;
    /** True only where a policy says against what to verify; default false. */
    readonly rejectUnauthorized?: boolean;
    /** Judges the peer's certificates by another policy. */
    readonly fault?: CertificateJudge;
  };
  readonly timeouts?: Partial<SessionTimeouts>;
  readonly clock?: Clock;
  readonly signal?: AbortSignal;
}

/** `broken` at phase `tls` means that the same host may do without TLS, if the policy allows that. */
export type Connected =
  | { readonly kind: 'session'; readonly session: OutboundSession }
  | { readonly kind: 'refused'; readonly phase: 'greet' | 'tls'; readonly reply: Reply }
  | ({ readonly kind: 'broken'; readonly phase: 'connect' | 'tls' | 'greet' } & SessionFault);

/** RFC 3461 parameters; sent only to a peer that offers DSN. */
export interface DsnParameters {
  readonly ret?: 'FULL' | 'HDRS';
  readonly envid?: string;
  readonly notify: readonly string[];
  /** `rfc822;address`, not encoded. */
  readonly orcpt?: string;
}

export interface Letter {
  /** '' is the null reverse-path. */
  readonly from: string;
  readonly recipient: string;
  readonly dsn?: DsnParameters;
  /** True when header or addresses need RFC 6531. */
  readonly smtpUtf8: boolean;
  readonly body8bit: boolean;
  /** Only to a peer that proved itself and offers REQUIRETLS (RFC 8689); the first is the caller's to see to. */
  readonly requireTls?: boolean;
  /** Octets of `chunks` together. */
  readonly size: number;
  readonly chunks: readonly Buffer[];
}

export type SendPhase = 'mail' | 'rcpt' | 'data' | 'final';
export type SendResult =
  /** Delivered when phase is `final` and the code is 2yz, else refused. */
  | { readonly kind: 'reply'; readonly phase: SendPhase; readonly reply: Reply }
  /** `afterDot`: the peer may have taken the message. */
  | ({ readonly kind: 'broken'; readonly phase: SendPhase; readonly afterDot: boolean } & SessionFault)
  /** Nothing was sent: this letter cannot be said to this peer. */
  | { readonly kind: 'unsendable'; readonly status: '5.1.3' | '5.6.7' | '5.7.30'; readonly reason: string };

interface Step {
  readonly phase: 'mail' | 'rcpt' | 'data';
  readonly line: string;
  readonly timeoutMs: number;
  readonly reset?: boolean;
}

/** Connects and greets. Settles with a value whatever the peer does; an abort is `broken`, fault `closed`. */
export async function connectSession(options: ConnectOptions): Promise<Connected> {
  const clock = options.clock ?? systemClock;
  const timeouts = { ...DEFAULT_TIMEOUTS, ...options.timeouts };
  if (isAborted(options.signal)) return { kind: 'broken', phase: 'connect', fault: 'closed', reason: 'we are shutting down' };
  const startedAt = clock.now();
  const opened = await openChannel(options, clock, timeouts.connectMs);
  if ('fault' in opened) return { kind: 'broken', phase: 'connect', ...opened.fault };
  const { channel } = opened;
  const abort = (): void => channel.break('closed', 'we are shutting down');
  options.signal?.addEventListener('abort', abort, { once: true });
  channel.onClosed(() => options.signal?.removeEventListener('abort', abort));
  // It may have come while we connected, when nobody listened.
  if (isAborted(options.signal)) abort();
  const connected = await greet(channel, options, timeouts, clock, startedAt);
  if (connected.kind !== 'session' && channel.fault === undefined) {
    // Nobody waits for a goodbye to a host that will not talk to us; quit() never rejects.
    void channel.quit(timeouts.quitMs);
  }
  return connected;
}

async function greet(channel: Channel, options: ConnectOptions, timeouts: SessionTimeouts, clock: Clock, startedAt: number): Promise<Connected> {
  const banner = await channel.read(timeouts.greetMs);
  if (banner === undefined) return broken(channel, 'greet');
  // RFC 5321 §4.3.2: of positive replies only this one greets.
  if (banner.code !== 220) return refusal(channel, 'greet', banner);
  let hello = await sayHello(channel, options.helo, timeouts.greetMs);
  if ('kind' in hello) return hello;
  const connectMs = clock.now() - startedAt;
  let tls = '';
  const { mode, servername, rejectUnauthorized = false, fault } = options.tls;
  if (mode === 'required' && !hello.extensions.has('STARTTLS')) {
    return { kind: 'broken', phase: 'tls', fault: 'tls', reason: 'the peer offers no STARTTLS and TLS is required' };
  }
  if (mode !== 'off' && hello.extensions.has('STARTTLS')) {
    const go = await ask(channel, 'STARTTLS', timeouts.dataMs);
    if (go === undefined) return broken(channel, 'tls');
    if (go.code === 220) {
      const secured = await channel.startTls({ servername, rejectUnauthorized, ...(fault && { fault }) }, timeouts.tlsMs);
      if (secured === undefined) return broken(channel, 'tls');
      tls = secured;
      // A TLS 1.3 peer that rejects the handshake does so only now: still a matter of TLS.
      hello = await sayHello(channel, options.helo, timeouts.greetMs);
      if ('kind' in hello) return hello.kind === 'broken' ? { ...hello, phase: 'tls' } : hello;
    } else if (mode === 'required' || go.code === 421 || go.code < 400) return refusal(channel, 'tls', go);
  }
  const tlsMs = clock.now() - startedAt - connectMs;
  return { kind: 'session', session: new OutboundSession(channel, { extensions: hello.extensions, tls, timeouts, connectMs, tlsMs }) };
}

/** One command alone and its reply; a peer that has spoken before it was asked is out of step. */
async function ask(channel: Channel, command: string, timeoutMs: number): Promise<Reply | undefined> {
  channel.mustBeSilent();
  channel.write(`${command}\r\n`);
  return channel.read(timeoutMs);
}

type Hello = { readonly extensions: ReadonlyMap<string, string> };

async function sayHello(channel: Channel, name: string, timeoutMs: number): Promise<Hello | Exclude<Connected, { kind: 'session' }>> {
  const ehlo = await ask(channel, `EHLO ${name}`, timeoutMs);
  if (ehlo === undefined) return broken(channel, 'greet');
  if (ehlo.code === 250) return { extensions: parseExtensions(ehlo) };
  if (ehlo.code < 500) return refusal(channel, 'greet', ehlo);
  // RFC 5321 §3.2
  const helo = await ask(channel, `HELO ${name}`, timeoutMs);
  if (helo === undefined) return broken(channel, 'greet');
  return helo.code === 250 ? { extensions: new Map() } : refusal(channel, 'greet', helo);
}

/** Keyword -> parameters. The first line is the peer's name, whatever it looks like (RFC 5321 §4.1.1.1). */
export function parseExtensions(ehlo: Reply): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  for (const line of ehlo.lines.slice(1)) {
    const m = /^([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?$/.exec(line.trimEnd());
    if (m?.[1] !== undefined) found.set(m[1].toUpperCase(), m[2] ?? '');
  }
  return found;
}

function broken(channel: Channel, phase: 'tls' | 'greet'): Connected & { kind: 'broken' } {
  return { kind: 'broken', phase, ...(channel.fault ?? { fault: 'closed', reason: 'the connection was closed' }) };
}

function refusal(channel: Channel, phase: 'tls' | 'greet', reply: Reply): Exclude<Connected, { kind: 'session' }> {
  if (reply.code >= 400) return { kind: 'refused', phase, reply };
  channel.break('protocol', `the peer answered ${reply.code} out of turn`);
  return broken(channel, phase);
}

// A limit of messages a session, told at MAIL with 452: OpenSMTPD after a hundred, and Exim and qmail-based hosts in words like these.
const FULL = /too many (?:messages|mails|transactions)|(?:messages|mails|transactions) (?:per|in|on) (?:this |one |a )?(?:session|connection)/i;

/** One greeted connection; made by connectSession only. One send at a time. */
export class OutboundSession {
  /** `TLSv1.3 TLS_AES_256_GCM_SHA384`, or '' in clear. */
  readonly tls: string;
  readonly connectMs: number;
  readonly tlsMs: number;
  readonly extensions: ReadonlyMap<string, string>;
  readonly #channel: Channel;
  readonly #timeouts: SessionTimeouts;
  readonly #pipelining: boolean;
  #deliveries = 0;
  #sending = false;
  #openTransaction = false;
  #full = false;

  constructor(channel: Channel, greeted: Hello & { readonly tls: string; readonly timeouts: SessionTimeouts; readonly connectMs: number; readonly tlsMs: number }) {
    this.#channel = channel;
    this.tls = greeted.tls;
    this.#timeouts = greeted.timeouts;
    this.connectMs = greeted.connectMs;
    this.tlsMs = greeted.tlsMs;
    this.extensions = greeted.extensions;
    this.#pipelining = greeted.extensions.has('PIPELINING');
    this.#rest();
  }

  /** What public authorities would say against the peer's certificate, as Node's code; '' when nothing, or without TLS. */
  get distrust(): string {
    return this.#channel.distrust;
  }

  /** Transactions begun on this connection. */
  get deliveries(): number {
    return this.#deliveries;
  }

  /** True when the peer takes no more on this connection, by its own words and without closing: the next message asks for a new one. */
  get full(): boolean {
    return this.#full;
  }

  /** True when it is whole and no transaction is running: the next send may begin. */
  get usable(): boolean {
    return this.#channel.fault === undefined && !this.#sending;
  }

  /** Calls `run` once, when the connection is gone for whatever reason. */
  onClosed(run: () => void): void {
    this.#channel.onClosed(run);
  }

  /** One transaction for one recipient; an address that would break the command line is `unsendable`. */
  async send(letter: Letter): Promise<SendResult> {
    if (this.#sending) throw new Error('a transaction is already running on this session');
    for (const address of [letter.from, letter.recipient]) {
      // oxlint-disable-next-line no-control-regex
      if (/[\x00-\x1f\x7f]/.test(address)) return { kind: 'unsendable', status: '5.1.3', reason: 'an address holds a control character' };
    }
    // RFC 6531 §3.5
    if (needsUtf8(letter) && !this.extensions.has('SMTPUTF8')) {
      return { kind: 'unsendable', status: '5.6.7', reason: 'the receiver does not take internationalised mail (SMTPUTF8)' };
    }
    // RFC 8689 §4.2.1, and its registered status
    if (letter.requireTls === true && (this.tls === '' || !this.extensions.has('REQUIRETLS'))) {
      return { kind: 'unsendable', status: '5.7.30', reason: 'the receiver does not promise to keep the message under TLS (REQUIRETLS)' };
    }
    if (this.#channel.fault !== undefined) return this.#broken('mail', false);
    this.#sending = true;
    this.#channel.expecting = true;
    this.#deliveries++;
    const result = await this.#transact(letter);
    this.#sending = false;
    this.#rest();
    return result;
  }

  /** QUIT; settles when the connection is gone, soon in any case. */
  quit(): Promise<void> {
    return this.#channel.quit(this.#timeouts.quitMs);
  }

  /** Ends the connection at once; a running send settles as `broken`. */
  close(): void {
    this.#channel.break('closed', 'we closed the connection');
  }

  /** Between transactions a peer has nothing to say: a stray reply means that the two are out of step. */
  #rest(): void {
    this.#channel.mustBeSilent();
    this.#channel.expecting = false;
  }

  async #transact(letter: Letter): Promise<SendResult> {
    const steps = this.#steps(letter);
    this.#openTransaction = false;
    // RFC 2920 §3.1: DATA may end a pipelined group.
    if (this.#pipelining) this.#channel.write(steps.map((step) => `${step.line}\r\n`).join(''));
    let verdict: SendResult | undefined;
    let go = false;
    for (const step of steps) {
      const reply = await (this.#pipelining ? this.#channel.read(step.timeoutMs) : ask(this.#channel, step.line, step.timeoutMs));
      if (reply === undefined) return verdict ?? this.#broken(step.phase, false);
      const positive = step.phase === 'data' ? reply.code === 354 : isPositive(reply);
      if (positive) {
        if (step.phase === 'data') go = true;
        if (step.phase === 'mail' && step.reset !== true) this.#openTransaction = true;
        continue;
      }
      if (reply.code < 400 || (step.reset === true && reply.code !== 421)) {
        // Who cannot take back what was begun has nothing against this message: it goes on a new connection.
        if (step.reset === true) this.#channel.break('closed', `the peer answered ${reply.code} to RSET`);
        this.#channel.break('protocol', `the peer answered ${reply.code} out of turn`);
        return verdict ?? this.#broken(step.phase, false);
      }
      verdict ??= { kind: 'reply', phase: step.phase, reply };
      if (step.phase === 'mail' && reply.code < 500 && FULL.test(reply.lines.join(' '))) this.#full = true;
      // RFC 5321 §3.8: 421 says that the peer closes.
      if (reply.code === 421) {
        this.#channel.break('closed', 'the peer said 421');
        return verdict;
      }
      if (!this.#pipelining) return verdict;
    }
    if (verdict === undefined) return this.#content(letter.chunks);
    if (go) await this.#emptyContent(verdict);
    return verdict;
  }

  // RFC 2920 §3.1: DATA went through although nobody is left to mail: a lone dot takes it back. Not where the
  // recipient was let through without a sender: they would get an empty letter.
  async #emptyContent(refused: SendResult): Promise<void> {
    if (refused.kind === 'reply' && refused.phase !== 'rcpt') return this.#channel.break('closed', 'the peer said 354 after it had refused the sender');
    this.#openTransaction = false;
    this.#channel.write('.\r\n');
    const reply = await this.#channel.read(this.#timeouts.dataMs);
    if (reply?.code === 421) this.#channel.break('closed', 'the peer said 421');
  }

  async #content(chunks: readonly Buffer[]): Promise<SendResult> {
    const whole = await this.#channel.writeAll(stuffDots(chunks), this.#timeouts.blockMs);
    const reply = await this.#channel.read(this.#timeouts.finalMs);
    if (reply === undefined) return this.#broken(whole ? 'final' : 'data', whole);
    this.#openTransaction = false;
    // A reply in the midst of the content: the peer has had enough, and what we say next would be content to it.
    if (!whole || reply.code === 421) this.#channel.break('closed', whole ? 'the peer said 421' : 'the peer replied before the end of the content');
    if (reply.code >= 400 || (whole && isPositive(reply))) return { kind: 'reply', phase: whole ? 'final' : 'data', reply };
    this.#channel.break('protocol', `the peer answered ${reply.code} to the content`);
    return { kind: 'broken', phase: whole ? 'final' : 'data', fault: 'protocol', reason: `the peer answered ${reply.code} to the content`, afterDot: whole };
  }

  #broken(phase: SendPhase, afterDot: boolean): SendResult {
    return { kind: 'broken', phase, ...(this.#channel.fault ?? { fault: 'closed', reason: 'the connection was closed' }), afterDot };
  }

  #steps(letter: Letter): readonly Step[] {
    const t = this.#timeouts;
    const steps: Step[] = [
      { phase: 'mail', line: `MAIL FROM:<${letter.from}>${this.#mailParameters(letter)}`, timeoutMs: t.mailMs },
      { phase: 'rcpt', line: `RCPT TO:<${letter.recipient}>${this.#rcptParameters(letter)}`, timeoutMs: t.rcptMs },
      { phase: 'data', line: 'DATA', timeoutMs: t.dataMs },
    ];
    if (this.#openTransaction) steps.unshift({ phase: 'mail', line: 'RSET', timeoutMs: t.mailMs, reset: true });
    return steps;
  }

  #mailParameters(letter: Letter): string {
    let text = '';
    if (this.extensions.has('SIZE')) text += ` SIZE=${letter.size}`;
    if (letter.body8bit && this.extensions.has('8BITMIME')) text += ' BODY=8BITMIME';
    if (needsUtf8(letter)) text += ' SMTPUTF8';
    if (letter.requireTls === true) text += ' REQUIRETLS';
    if (letter.dsn !== undefined && this.extensions.has('DSN')) {
      if (letter.dsn.ret !== undefined) text += ` RET=${letter.dsn.ret}`;
      if (letter.dsn.envid !== undefined) text += ` ENVID=${xtext(letter.dsn.envid)}`;
    }
    return text;
  }

  #rcptParameters(letter: Letter): string {
    const { dsn } = letter;
    if (dsn === undefined || !this.extensions.has('DSN')) return '';
    let text = dsn.notify.length > 0 ? ` NOTIFY=${dsn.notify.join(',')}` : '';
    const [, type, address] = /^([A-Za-z0-9-]+);(.+)$/su.exec(dsn.orcpt ?? '') ?? [];
    if (type === undefined || address === undefined) return text;
    // RFC 6533 §3
    if (type === 'utf-8') text += ` ORCPT=utf-8;${formatUtf8Address(address, needsUtf8(letter))}`;
    // Other types are ASCII; what is not is left out, as RFC 3461 §4.2 allows.
    else if (/^[\x20-\x7e]+$/.test(address)) text += ` ORCPT=${type};${xtext(address)}`;
    return text;
  }
}

function needsUtf8(letter: Letter): boolean {
  return letter.smtpUtf8 || !isAscii(Buffer.from(letter.from + letter.recipient));
}

// RFC 3461 §4
function xtext(text: string): string {
  return text.replace(/[^!-*,-<>-~]/g, (c) => `+${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);
}

function isAborted(signal: AbortSignal | undefined): boolean {
  return signal?.aborted === true;
}

function isPositive(reply: Reply): boolean {
  return reply.code >= 200 && reply.code < 300;
}
