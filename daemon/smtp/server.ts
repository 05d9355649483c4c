// The one adapter over smtp-server. It keeps the library's sockets, TLS, SASL and command loop, and
// replaces what an MTA may not leave to it; each override below has its test in test/smtp/server.test.ts:
// the fixed greeting delay, enhanced codes guessed from the basic code, AUTH offered in clear, addresses
// rewritten, unknown parameters accepted, SMTPUTF8 not enforced, and a DATA reader that passes bare CR
// and LF and pays a timer for each dotted line. RFC 5321, RFC 3207, RFC 4954, RFC 6409.
import type { Socket } from 'node:net';
import { createSecureContext, type TLSSocket } from 'node:tls';
import { SMTPServer } from 'smtp-server';
import { SMTPConnection } from 'smtp-server/lib/smtp-connection.js';
import { SMTPStream } from 'smtp-server/lib/smtp-stream.js';
import { REPLIES, type Reply } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { Door, Login, ServerSession } from './door.ts';
import { Intake } from './intake.ts';
import { parseMail, parseRcpt } from './path.ts';

/** What the server must know; everything else is the door's. */
export interface SmtpServerOptions<Auth extends object> {
  readonly hostname: string;
  readonly implicitTls: boolean;
  /** `none`: anybody may speak, with or without TLS, and the door decides by recipient alone; AUTH is not known then. */
  readonly login?: 'required' | 'none';
  readonly cert: Buffer;
  readonly key: Buffer;
  /** Sessions the door allows, all told and from one address; TLS handshakes under way are held to the same. */
  readonly connections: number;
  readonly connectionsPerAddress: number;
  readonly messageBytes: number;
  readonly recipientsPerMessage: number;
  readonly idleTimeoutMs: number;
  readonly dataTimeoutMs: number;
  readonly clock: Clock;
  readonly door: Door<Auth>;
}

// Mistakes a session may make: a client with a bug makes one or two, a scanner makes them all day.
const ERRORS = 10;
// RFC 5321 §4.5.3.1.4 asks for 512 and extensions for more; RFC 4954 §4.5.3 for 12288 with AUTH.
const COMMAND_OCTETS = 12_288;
// A handshake takes two round trips; half a minute is a very slow line.
const HANDSHAKE_MS = 30_000;
// Well within systemd's 90 s between the polite and the final signal.
const DRAIN_MS = 30_000;
const OLDEST_TLS = 'TLSv1.2'; // RFC 8996: nothing older

/** An SMTP server for submission, or with `login: 'none'` for mail from other hosts; listen() and close() come from smtp-server. */
export class DoorServer<Auth extends object> extends SMTPServer {
  readonly door: Door<Auth>;
  readonly limits: SmtpServerOptions<Auth>;
  #draining = false;

  constructor(options: SmtpServerOptions<Auth>) {
    super({
      name: options.hostname, secure: options.implicitTls, cert: options.cert, key: options.key,
      minVersion: OLDEST_TLS, maxClients: options.connections, authOptional: true, // asked for by handler_MAIL, after TLS
      authMethods: ['PLAIN', 'LOGIN'], size: options.messageBytes, maxCommandLength: COMMAND_OCTETS,
      disableReverseLookup: true, logger: false, socketTimeout: options.idleTimeoutMs, hideENHANCEDSTATUSCODES: false, hideDSN: false,
      disabledCommands: ['XCLIENT', 'XFORWARD', 'HELP', 'WIZ', 'SHELL', 'KILL'],
      onAuth: (auth, session, callback) => void this.#login(auth, session.id, callback),
    });
    this.door = options.door;
    this.limits = options;
    // A socket that breaks is the client's affair; the session's close tells the door.
    this.on('error', () => undefined);
  }

  override connect(socket: Socket | TLSSocket, socketOptions?: ConstructorParameters<typeof SMTPConnection>[2]): void {
    const connection = new DoorConnection<Auth>(this, socket, socketOptions);
    this.connections.add(connection);
    connection.on('error', () => connection.close());
    connection.init();
  }

  get draining(): boolean {
    return this.#draining;
  }

  // Handshakes are bounded like sessions: in number, from one address, and in time.
  override _acceptSocket(socket: Socket, handshake: boolean): false | (() => void) {
    if (handshake) {
      let sameAddress = 0;
      for (const pending of this._pendingSockets.keys()) if (pending.remoteAddress === socket.remoteAddress) sameAddress += 1;
      if (sameAddress >= this.limits.connectionsPerAddress) {
        socket.on('error', () => undefined); // it is being closed because we want it gone
        socket.destroy();
        return false;
      }
    }
    const release = super._acceptSocket(socket, handshake);
    if (!handshake || release === false) return release;
    const stop = this.limits.clock.after(HANDSHAKE_MS, () => this._pendingSockets.get(socket)?.destroy());
    return () => {
      stop();
      release();
    };
  }

  /** New handshakes get this certificate; sessions under way keep theirs. @throws when it cannot be used; the old one stays */
  setCertificate(pair: { readonly cert: Buffer; readonly key: Buffer }): void {
    // updateSecureContext forgets the old context before it has made the new one.
    createSecureContext({ ...pair, minVersion: OLDEST_TLS });
    this.updateSecureContext(pair);
  }

  /** Takes no new sessions; those open finish their transaction, for half a minute at most, and get 421. */
  async drain(): Promise<void> {
    this.#draining = true;
    const closed = new Promise<void>((resolve) => {
      this.server.close(() => resolve());
    });
    for (const pending of this._pendingSockets.values()) pending.destroy();
    for (const connection of this.connections) if (connection instanceof DoorConnection) connection.leaveWhenIdle();
    const stop = this.limits.clock.after(DRAIN_MS, () => {
      for (const connection of this.connections) if (connection instanceof DoorConnection) connection.expel(REPLIES.draining);
    });
    await closed;
    stop();
  }

  /** The library's callback takes an Error to refuse; its text is the reply's. */
  async #login(auth: { username?: string | undefined; password?: string | null | undefined }, id: string, answer: (error: Error | null, yes?: { user: unknown }) => void): Promise<void> {
    const connection = this.#connectionOf(id);
    const login = { username: auth.username ?? '', password: auth.password ?? '' };
    const refused = connection === undefined ? REPLIES.localError : await connection.login(login);
    if (refused === undefined) answer(null, { user: true });
    else answer(Object.assign(new Error(`${refused.enhanced} ${refused.lines.join(' ')}`), { responseCode: refused.code }));
  }

  #connectionOf(id: string): DoorConnection<Auth> | undefined {
    for (const connection of this.connections) if (connection.id === id && connection instanceof DoorConnection) return connection;
    return undefined;
  }
}

/** Reads commands as the library does, and DATA by our own intake. */
class DoorStream extends SMTPStream {
  #intake: Intake | undefined;
  #ended: (() => void) | undefined;
  #resume: (() => void) | undefined;

  /** Switches to DATA; `ended` is called when the message is complete, and commands wait for resume(). */
  collect(intake: Intake, ended: () => void): void {
    this.#intake = intake;
    this.#ended = ended;
    this._dataMode = true;
  }

  /** RFC 5321 §2.3.8: CR and LF occur only together. The library takes a bare LF for the end of a command. */
  #isStray(chunk: Buffer): boolean {
    if (this._remainder.endsWith('\r') && chunk[0] !== 0x0a) return true;
    for (let lf = chunk.indexOf(0x0a); lf >= 0; lf = chunk.indexOf(0x0a, lf + 1)) {
      if (lf === 0 ? !this._remainder.endsWith('\r') : chunk[lf - 1] !== 0x0d) return true;
    }
    for (let cr = chunk.indexOf(0x0d); cr >= 0; cr = chunk.indexOf(0x0d, cr + 1)) {
      if (cr + 1 < chunk.length && chunk[cr + 1] !== 0x0a) return true;
    }
    return false;
  }

  /** Back to commands: what was sent after the message is read now. */
  resume(): void {
    const go = this.#resume;
    this.#resume = undefined;
    go?.();
  }

  override _write(chunk: Buffer, encoding: BufferEncoding, next: (error?: Error | null) => void): void {
    if (this.#intake === undefined || this.isClosed) {
      if (!this.isClosed && this.#isStray(chunk)) return next(new Error('bare CR or LF'));
      return super._write(chunk, encoding, next);
    }
    const end = this.#intake.feed(chunk);
    if (end < 0) return next();
    this.#intake = undefined;
    this.#resume = () => {
      this._dataMode = false;
      this._write(chunk.subarray(end), encoding, next);
    };
    this.#ended?.();
  }
}

// What the library says by itself, and what we say instead: its own table of details calls a policy
// "no such mailbox".
const INSTEAD: Readonly<Record<string, Reply>> = {
  'Timeout - closing connection': REPLIES.idleTimeout,
  'Error: command not recognized': REPLIES.unknownCommand,
  'Error: too many unrecognized commands': REPLIES.tooManyErrors,
  'HTTP requests not allowed': REPLIES.earlyTalker,
  'Error: send HELO/EHLO first': REPLIES.ehloFirst,
  'Ready to start TLS': REPLIES.tlsReady,
  'Error: syntax: STARTTLS': REPLIES.badArguments,
  'Error: TLS already active': REPLIES.badSequence,
  'Authentication successful': REPLIES.authenticated,
  'Error: Unrecognized authentication type': REPLIES.unknownMechanism,
  'Authentication aborted': REPLIES.authAborted,
  'Error: invalid userdata': REPLIES.badSasl,
  'Error: missing username': REPLIES.badSasl,
  'Error: syntax: AUTH PLAIN token': REPLIES.badSasl,
  'Error: syntax: AUTH LOGIN': REPLIES.badSasl,
  'Error: internal server error': REPLIES.localError,
  Bye: REPLIES.bye,
};

// Faults of a client, not of its mail: a list with bad addresses in it may go on for as long as it is.
const MISTAKES: ReadonlySet<Reply> = new Set<Reply>([
  REPLIES.unknownCommand, REPLIES.badArguments, REPLIES.notImplemented, REPLIES.notVerified, REPLIES.badSequence, REPLIES.ehloFirst, REPLIES.unknownMechanism,
  REPLIES.authFirst, REPLIES.tlsFirst, REPLIES.authNeedsTls, REPLIES.unknownParameter, REPLIES.badSasl,
]);

class DoorConnection<Auth extends object> extends SMTPConnection implements ServerSession<Auth> {
  readonly #server: DoorServer<Auth>;
  #auth: Auth | undefined;
  /** `refused`: a client that pipelines sends RCPT and DATA all the same, and that is no mistake. */
  #mail: 'none' | 'refused' | 'open' = 'none';
  #utf8 = false;
  #declaredBytes = 0;
  #lastBytes = 0;
  #recipients = 0;
  #errors = 0;
  #stopDeadline: (() => void) | undefined;
  #busy = false;
  #gathering = false;

  constructor(server: DoorServer<Auth>, socket: Socket | TLSSocket, options?: ConstructorParameters<typeof SMTPConnection>[2]) {
    super(server, socket, options);
    this.#server = server;
    // smtp-server's own count allows ten commands before the login; ours counts mistakes instead.
    this._maxAllowedUnauthenticatedCommands = false;
  }

  get auth(): Auth | undefined {
    return this.#auth;
  }

  // RFC 3848 and RFC 6531 §4.3; who says HELO has no extension
  get protocol(): string {
    return `${this.#utf8 ? 'UTF8SMTP' : 'ESMTP'}${this.secure ? 'S' : ''}${this.#auth === undefined ? '' : 'A'}`;
  }

  #needsLogin(): boolean {
    return this.#server.limits.login !== 'none';
  }

  // The library waits 100 ms for early talkers; one turn of the loop catches those whose bytes are here already.
  override init(): void {
    this._setListeners(() => {
      setImmediate(() => {
        const refused = this.#server.draining ? REPLIES.draining : this.#server.door.connect(this);
        if (refused === undefined) this.connectionReady();
        else this.expel(refused);
      });
    });
  }

  override _createParser(): SMTPStream {
    const parser = new DoorStream({ maxCommandLength: COMMAND_OCTETS });
    parser.oncommand = (command, callback) => this._onCommand(command, callback);
    parser.on('error', () => this.expel(REPLIES.unreadableLine));
    return parser;
  }

  /**
   * RFC 2920 §3.2 SHOULD: the replies to commands that came together go out together. Under TLS each
   * write is a record and a system call; gathered, a pipelined MAIL, RCPT and DATA cost one.
   */
  #gather(): void {
    const socket = this._socket;
    if (!this.secure || this.#gathering || socket.destroyed) return;
    this.#gathering = true;
    socket.cork();
    setImmediate(() => {
      this.#gathering = false;
      socket.uncork();
    });
  }

  /** Says one of our replies as it is. */
  say(reply: Reply): void {
    this.#gather();
    super.send(reply.code, reply.lines.map((line) => (reply.enhanced === '' ? line : `${reply.enhanced} ${line}`)), false);
  }

  /** Says it and closes. */
  expel(reply: Reply): void {
    this.say(reply);
    this.close();
  }

  #sayAndCount(reply: Reply): void {
    this.say(reply);
    if (!MISTAKES.has(reply) || this._closing) return;
    this.#errors += 1;
    if (this.#errors >= ERRORS) this.expel(REPLIES.tooManyErrors);
  }

  override send(code: number, data?: string | string[] | null, _context?: string | false): void {
    const instead = typeof data !== 'string' ? undefined : data.endsWith('You talk too soon') ? REPLIES.earlyTalker : INSTEAD[data];
    if (instead === undefined) return super.send(code, data, false);
    if (code === 421) this.expel(instead);
    else this.#sayAndCount(instead);
  }

  // RFC 2034 §4: the code is part of the text here, chosen by whoever refuses.
  override _getEnhancedStatusCode(): string {
    return '';
  }

  override handler_EHLO(command: Buffer, callback: () => void): void {
    if (!this.#greeted(command)) return this.#answer(REPLIES.badArguments, callback);
    const { hostname, messageBytes } = this.#server.limits;
    // RFC 4954 §4: AUTH is offered where a password may be sent, which is under TLS.
    const login = this.#auth === undefined && this.#needsLogin() ? ['AUTH PLAIN LOGIN'] : [];
    // RFC 8689 §4: under TLS only; who comes with mail for us alone has nothing to be passed on.
    const offered = this.secure ? [...login, ...(this.#needsLogin() ? ['REQUIRETLS'] : [])] : ['STARTTLS'];
    super.send(250, [hostname, 'PIPELINING', '8BITMIME', 'SMTPUTF8', 'ENHANCEDSTATUSCODES', 'DSN', ...offered, `SIZE ${messageBytes}`], false);
    callback();
  }

  override handler_HELO(command: Buffer, callback: () => void): void {
    if (!this.#greeted(command)) return this.#answer(REPLIES.badArguments, callback);
    super.send(250, this.#server.limits.hostname, false);
    callback();
  }

  /** The client's name is used for nothing, so nearly anything will do. RFC 5321 §4.1.4: it resets. */
  #greeted(command: Buffer): boolean {
    const [, name, ...more] = command.toString('latin1').trim().split(/\s+/);
    if (name === undefined || more.length > 0 || name.length > 255 || /[\0-\x1f\x7f]/.test(name)) return false;
    this.hostNameAppearsAs = name;
    this._resetSession();
    return true;
  }

  override handler_AUTH(command: Buffer, callback: () => void): void {
    if (!this.#needsLogin()) return this.#answer(REPLIES.notImplemented, callback);
    if (!this.secure) return this.#answer(REPLIES.authNeedsTls, callback);
    // RFC 4954 §4: not within a transaction, and once a session.
    if (this.#mail === 'open' || this.#auth !== undefined) return this.#answer(REPLIES.badSequence, callback);
    super.handler_AUTH(command, callback);
  }

  /** Asked by the server's onAuth: undefined when the login worked. */
  async login(login: Login): Promise<Reply | undefined> {
    try {
      const answer = await this.#server.door.authenticate(this, login);
      if (!('auth' in answer)) return answer;
      this.#auth = answer.auth;
      return undefined;
    } catch (error) {
      this.#server.door.onBug(error);
      return REPLIES.localError;
    }
  }

  override handler_MAIL(command: Buffer, callback: () => void): void {
    if (this.#needsLogin() && !this.secure) return this.#answer(REPLIES.tlsFirst, callback);
    if (this.#needsLogin() && this.#auth === undefined) return this.#answer(REPLIES.authFirst, callback);
    if (this.#mail === 'open') return this.#answer(REPLIES.badSequence, callback);
    if (this.#server.draining) {
      this.expel(REPLIES.draining);
      return callback();
    }
    this.#mail = 'refused';
    const parsed = parseMail(command.toString('utf8'));
    if ('code' in parsed) return this.#answer(parsed, callback);
    if (parsed.requireTls === true && !this.#needsLogin()) return this.#answer(REPLIES.unknownParameter, callback);
    // RFC 1870 §6.1
    if (parsed.sizeBytes > this.#server.limits.messageBytes) return this.#answer(REPLIES.tooBig, callback);
    this.#utf8 = parsed.smtpUtf8;
    this.#declaredBytes = parsed.sizeBytes;
    this.#ask(this.#server.door.mail(this, parsed), callback, () => {
      this.#mail = 'open';
      this.#recipients = 0;
      return REPLIES.senderOk;
    });
  }

  override handler_RCPT(command: Buffer, callback: () => void): void {
    if (this.#mail !== 'open') return this.#outOfSequence(callback);
    const parsed = parseRcpt(command.toString('utf8'), this.#utf8);
    if ('code' in parsed) return this.#answer(parsed, callback);
    if (this.#recipients >= this.#server.limits.recipientsPerMessage) return this.#answer(REPLIES.tooManyRecipients, callback);
    this.#ask(this.#server.door.rcpt(this, parsed), callback, () => {
      this.#recipients += 1;
      return REPLIES.recipientOk;
    });
  }

  override handler_DATA(command: Buffer, callback: () => void): void {
    if (command.toString('latin1').trim().length > 4) return this.#answer(REPLIES.badArguments, callback);
    if (this.#mail !== 'open') return this.#outOfSequence(callback);
    // RFC 5321 §4.1.1.4
    if (this.#recipients === 0) return this.#answer(REPLIES.noRecipients, callback);
    const parser = this._parser;
    if (!(parser instanceof DoorStream)) return callback();
    // Who declares no size sends what the last one was like: room is made once.
    const intake = new Intake(this.#server.limits.messageBytes, Math.max(this.#declaredBytes, this.#lastBytes));
    this.#stopDeadline = this.#server.limits.clock.after(this.#server.limits.dataTimeoutMs, () => this.expel(REPLIES.dataTimeout));
    parser.collect(intake, () => this.#received(intake, parser));
    this.#gather();
    super.send(354, 'end data with <CR><LF>.<CR><LF>', false);
    callback();
  }

  #received(intake: Intake, parser: DoorStream): void {
    this.#stopDeadline?.();
    const collected = intake.collected();
    const finish = (): void => {
      this.#endTransaction();
      this._handlerPending = false;
      this._whenWritable(() => parser.resume());
    };
    // While the message is being stored the client waits for us: its silence is no idleness.
    this._handlerPending = true;
    if (collected.kind === 'refused') return this.#answer(collected.reply, finish);
    this.#lastBytes = collected.raw.length;
    this.#ask(this.#server.door.data(this, collected.raw), finish, () => REPLIES.localError);
  }

  override handler_RSET(_command: Buffer, callback: () => void): void {
    this._resetSession();
    this.#answer(REPLIES.flushed, callback);
  }

  override handler_NOOP(_command: Buffer, callback: () => void): void {
    this.#answer(REPLIES.noop, callback);
  }

  override handler_VRFY(_command: Buffer, callback: () => void): void {
    // RFC 5321 §3.5.3, §7.3: what exists here is told to nobody, and 252 is how that is said.
    this.#answer(REPLIES.notVerified, callback);
  }

  // EHLO, RSET and STARTTLS end a transaction.
  override _resetSession(): void {
    super._resetSession();
    // The library may call this before our fields exist.
    if (#server in this) this.#endTransaction();
  }

  override _onClose(): void {
    const first = !this._closed;
    super._onClose();
    if (!first) return;
    this.#stopDeadline?.();
    // While the door decides, its transaction stays: #ask ends it when the answer is there.
    if (!this.#busy) this.#endTransaction();
    this.#server.door.close(this);
  }

  /** Drain: a session between transactions goes at once, others after their message. */
  leaveWhenIdle(): void {
    if (this.#mail !== 'open' && !this.#busy && !this._closing) this.expel(REPLIES.draining);
  }

  #endTransaction(): void {
    const open = this.#mail === 'open';
    this.#mail = 'none';
    if (!open) return;
    this.#recipients = 0;
    this.#server.door.reset(this);
    if (this.#server.draining) setImmediate(() => this.leaveWhenIdle());
  }

  #outOfSequence(callback: () => void): void {
    if (this.#mail !== 'refused') return this.#answer(REPLIES.badSequence, callback);
    this.say(REPLIES.badSequence);
    callback();
  }

  #answer(reply: Reply, callback: () => void): void {
    this.#sayAndCount(reply);
    callback();
  }

  /** Waits for the door; undefined means what `otherwise` says. Every path calls back, so nothing is left to catch. */
  #ask(asked: Promise<Reply | undefined>, callback: () => void, otherwise: () => Reply): void {
    this.#busy = true;
    const answered = async (): Promise<void> => {
      let answer: Reply | undefined;
      try {
        answer = await asked;
      } catch (error) {
        this.#server.door.onBug(error);
        answer = REPLIES.localError;
      }
      this.#busy = false;
      this.#answer(answer ?? otherwise(), callback);
      if (this._closed) this.#endTransaction();
      else if (this.#server.draining) setImmediate(() => this.leaveWhenIdle());
    };
    void answered();
  }
}
