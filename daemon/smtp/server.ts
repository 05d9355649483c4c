// The one adapter over smtp-server. It keeps the library's sockets, TLS, SASL and command loop, and
// replaces what an MTA may not leave to it; each override below has its test in test/smtp/server.test.ts:
// the fixed greeting delay, enhanced codes guessed from the basic code, AUTH offered in clear, addresses
// rewritten, unknown parameters accepted, SMTPUTF8 not enforced, and a DATA reader that passes bare CR
// and LF and pays a timer for each dotted line. RFC 5321, RFC 3207, RFC 4954, RFC 6409.
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { SMTPServer } from 'smtp-server';
import { SMTPConnection } from 'smtp-server/lib/smtp-connection.js';
import { SMTPStream } from 'smtp-server/lib/smtp-stream.js';
import { REPLIES, type Reply } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { Door, ServerSession } from './door.ts';
import { Intake } from './intake.ts';
import { parseMail, parseRcpt } from './path.ts';

/** What the server must know; everything else is the door's. */
export interface SmtpServerOptions<Auth extends object> {
  readonly hostname: string;
  readonly implicitTls: boolean;
  readonly cert: Buffer;
  readonly key: Buffer;
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

/** An SMTP server for submission; listen() and close() come from smtp-server. */
export class DoorServer<Auth extends object> extends SMTPServer {
  readonly door: Door<Auth>;
  readonly limits: SmtpServerOptions<Auth>;
  #draining = false;

  constructor(options: SmtpServerOptions<Auth>) {
    super({
      name: options.hostname, secure: options.implicitTls, cert: options.cert, key: options.key,
      minVersion: 'TLSv1.2', // RFC 8996: nothing older
      authMethods: ['PLAIN', 'LOGIN'], size: options.messageBytes, maxCommandLength: COMMAND_OCTETS,
      disableReverseLookup: true, logger: false, socketTimeout: options.idleTimeoutMs, hideENHANCEDSTATUSCODES: false, hideDSN: false,
      disabledCommands: ['XCLIENT', 'XFORWARD', 'HELP', 'WIZ', 'SHELL', 'KILL'],
      heloResponse: '%s',
      onAuth: (auth, session, callback) => {
        const connection = this.#connectionOf(session.id);
        if (connection === undefined) return callback(new Error('the session is gone'));
        connection.login({ username: auth.username ?? '', password: auth.password ?? '' }, callback);
      },
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

  /** New handshakes get this certificate; sessions under way keep theirs. */
  setCertificate(pair: { readonly cert: Buffer; readonly key: Buffer }): void {
    this.updateSecureContext(pair);
  }

  /** Takes no new sessions; those open finish their transaction and get 421 at the next MAIL. */
  async drain(): Promise<void> {
    this.#draining = true;
    const closed = new Promise<void>((resolve) => {
      this.server.close(() => resolve());
    });
    for (const connection of this.connections) if (connection instanceof DoorConnection) connection.leaveWhenIdle();
    await closed;
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

  #hasBareLf(chunk: Buffer): boolean {
    for (let lf = chunk.indexOf(0x0a); lf >= 0; lf = chunk.indexOf(0x0a, lf + 1)) {
      if (lf === 0 ? !this._remainder.endsWith('\r') : chunk[lf - 1] !== 0x0d) return true;
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
      // RFC 5321 §2.3.8: a command ends with CRLF; the library takes a bare LF too.
      if (!this.isClosed && this.#hasBareLf(chunk)) return next(new Error('bare LF'));
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

// RFC 3463 details for what the library itself says; its own table gives 550 "no such mailbox" to a policy.
const LIBRARY_DETAILS: Readonly<Record<number, string>> = {
  221: '2.0.0', 235: '2.7.0', 250: '2.0.0', 252: '2.5.0', 421: '4.3.2', 451: '4.3.0', 454: '4.7.0', 500: '5.5.2', 501: '5.5.4', 502: '5.5.1',
  503: '5.5.1', 504: '5.5.4', 530: '5.7.0', 535: '5.7.8', 538: '5.7.11', 554: '5.0.0',
};

class DoorConnection<Auth extends object> extends SMTPConnection {
  readonly #server: DoorServer<Auth>;
  readonly #face: ServerSession<Auth>;
  #auth: Auth | undefined;
  #mail: 'none' | 'open' = 'none';
  #utf8 = false;
  #recipients = 0;
  #errors = 0;
  #stopDeadline: (() => void) | undefined;
  #busy = false;

  constructor(server: DoorServer<Auth>, socket: Socket | TLSSocket, options?: ConstructorParameters<typeof SMTPConnection>[2]) {
    super(server, socket, options);
    this.#server = server;
    // smtp-server's own count allows ten commands before the login; ours counts mistakes instead.
    this._maxAllowedUnauthenticatedCommands = false;
    const connection = this;
    this.#face = {
      id: this.id,
      get remoteAddress() {
        return connection.remoteAddress;
      },
      get secure() {
        return connection.secure;
      },
      get auth() {
        return connection.#auth;
      },
      // RFC 3848 and RFC 6531 §4.3
      get protocol() {
        return `${connection.#utf8 ? 'UTF8SMTP' : connection.openingCommand === 'EHLO' ? 'ESMTP' : 'SMTP'}${connection.secure ? 'S' : ''}${connection.#auth === undefined ? '' : 'A'}`;
      },
      expel(reply) {
        connection.say(reply);
        connection.close();
      },
    };
  }

  // The library waits 100 ms for early talkers; one turn of the loop catches those whose bytes are here already.
  override init(): void {
    this._setListeners(() => {
      setImmediate(() => {
        const refused = this.#server.draining ? REPLIES.draining : this.#server.door.connect(this.#face);
        if (refused === undefined) this.connectionReady();
        else this.#face.expel(refused);
      });
    });
  }

  override _createParser(): SMTPStream {
    const parser = new DoorStream({ maxCommandLength: COMMAND_OCTETS });
    parser.oncommand = (command, callback) => this._onCommand(command, callback);
    parser.on('error', () => this.#face.expel(REPLIES.unreadableLine));
    return parser;
  }

  /** Says one of our replies as it is. */
  say(reply: Reply): void {
    super.send(reply.code, reply.lines.map((line) => (reply.enhanced === '' ? line : `${reply.enhanced} ${line}`)), false);
    if (reply.code >= 500 && reply.code !== 550 && reply.code !== 535) this.#mistake();
  }

  #mistake(): void {
    this.#errors += 1;
    if (this.#errors < ERRORS || this._closing) return;
    this.#errors = 0;
    this.say(REPLIES.tooManyErrors);
    this.close();
  }

  // The library's replies keep their text and get a detail that fits what it says.
  override send(code: number, data?: string | string[] | null, context?: string | false): void {
    const detail = context === false ? undefined : LIBRARY_DETAILS[code];
    if (detail === undefined || typeof data !== 'string') return super.send(code, data, context === false || Array.isArray(data) ? false : context);
    const text = data.replace(/^Error: /, '').toLowerCase();
    super.send(code, /^[245]\.\d+\.\d+ /.test(text) ? text : `${detail} ${text}`, false);
    if (code === 500 || code === 501 || code === 503 || code === 504) this.#mistake();
  }

  // RFC 2034 §4: the code is part of the text here, chosen by whoever refuses.
  override _getEnhancedStatusCode(): string {
    return '';
  }

  override handler_EHLO(command: Buffer, callback: () => void): void {
    const name = command.toString('latin1').trim().split(/\s+/);
    if (name.length !== 2 || !/^[\w.:[\]-]{1,255}$/.test(name[1] ?? '')) return this.#answer(REPLIES.badArguments, callback);
    this.hostNameAppearsAs = (name[1] ?? '').toLowerCase();
    this._resetSession();
    const { hostname, messageBytes } = this.#server.limits;
    // RFC 4954 §4: AUTH is offered where a password may be sent, which is under TLS.
    const offered = this.secure ? [...(this.#auth === undefined ? ['AUTH PLAIN LOGIN'] : [])] : ['STARTTLS'];
    super.send(250, [hostname, 'PIPELINING', '8BITMIME', 'SMTPUTF8', 'ENHANCEDSTATUSCODES', 'DSN', ...offered, `SIZE ${messageBytes}`], false);
    callback();
  }

  override handler_AUTH(command: Buffer, callback: () => void): void {
    if (!this.secure) return this.#answer(REPLIES.authNeedsTls, callback);
    // RFC 4954 §4: not within a transaction, and once a session.
    if (this.#mail !== 'none' || this.#auth !== undefined) return this.#answer(REPLIES.badSequence, callback);
    super.handler_AUTH(command, callback);
  }

  /** Called by the server's onAuth. */
  login(login: { readonly username: string; readonly password: string }, callback: (error: Error | null | undefined, answer?: { user?: unknown }) => void): void {
    this.#server.door.authenticate(this.#face, login).then((answer) => {
      if ('auth' in answer) {
        this.#auth = answer.auth;
        callback(null, { user: true });
      } else {
        callback(Object.assign(new Error(`${answer.enhanced} ${answer.lines.join(' ')}`), { responseCode: answer.code }));
      }
    }, (error: unknown) => {
      this.#server.door.onBug(error);
      callback(Object.assign(new Error(`${REPLIES.localError.enhanced} ${REPLIES.localError.lines.join(' ')}`), { responseCode: 451 }));
    });
  }

  override handler_MAIL(command: Buffer, callback: () => void): void {
    if (!this.secure) return this.#answer(REPLIES.tlsFirst, callback);
    if (this.#auth === undefined) return this.#answer(REPLIES.authFirst, callback);
    if (this.#mail !== 'none') return this.#answer(REPLIES.badSequence, callback);
    if (this.#server.draining) {
      this.#face.expel(REPLIES.draining);
      return callback();
    }
    const parsed = parseMail(command.toString('utf8'));
    if ('code' in parsed) return this.#answer(parsed, callback);
    // RFC 1870 §6.1
    if (parsed.sizeBytes > this.#server.limits.messageBytes) return this.#answer(REPLIES.tooBig, callback);
    this.#utf8 = parsed.smtpUtf8;
    this.#ask(this.#server.door.mail(this.#face, parsed), callback, () => {
      this.#mail = 'open';
      this.#recipients = 0;
      return REPLIES.senderOk;
    });
  }

  override handler_RCPT(command: Buffer, callback: () => void): void {
    if (this.#mail !== 'open') return this.#answer(REPLIES.badSequence, callback);
    const parsed = parseRcpt(command.toString('utf8'), this.#utf8);
    if ('code' in parsed) return this.#answer(parsed, callback);
    if (this.#recipients >= this.#server.limits.recipientsPerMessage) return this.#answer(REPLIES.tooManyRecipients, callback);
    this.#ask(this.#server.door.rcpt(this.#face, parsed), callback, () => {
      this.#recipients += 1;
      return REPLIES.recipientOk;
    });
  }

  override handler_DATA(command: Buffer, callback: () => void): void {
    if (command.toString('latin1').trim().length > 4) return this.#answer(REPLIES.badArguments, callback);
    if (this.#mail !== 'open') return this.#answer(REPLIES.badSequence, callback);
    // RFC 5321 §4.1.1.4
    if (this.#recipients === 0) return this.#answer(REPLIES.noRecipients, callback);
    const parser = this._parser;
    if (!(parser instanceof DoorStream)) return callback();
    const intake = new Intake(this.#server.limits.messageBytes);
    this.#stopDeadline = this.#server.limits.clock.after(this.#server.limits.dataTimeoutMs, () => this.#face.expel(REPLIES.dataTimeout));
    parser.collect(intake, () => this.#received(intake, parser));
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
    this.#ask(this.#server.door.data(this.#face, collected.raw), finish, () => REPLIES.localError);
  }

  override handler_RSET(_command: Buffer, callback: () => void): void {
    this._resetSession();
    this.#answer(REPLIES.flushed, callback);
  }

  override handler_NOOP(_command: Buffer, callback: () => void): void {
    this.#answer(REPLIES.noop, callback);
  }

  override handler_VRFY(_command: Buffer, callback: () => void): void {
    // RFC 5321 §7.3: what exists here is told to nobody.
    this.#answer(REPLIES.notImplemented, callback);
  }

  // EHLO, RSET and STARTTLS end a transaction.
  override _resetSession(): void {
    super._resetSession();
    // The library may call this before our fields exist.
    if (#face in this) this.#endTransaction();
  }

  override _onClose(): void {
    const first = !this._closed;
    super._onClose();
    if (!first) return;
    this.#stopDeadline?.();
    this.#endTransaction();
    this.#server.door.close(this.#face);
  }

  /** Drain: a session between transactions goes at once, others after their message. */
  leaveWhenIdle(): void {
    if (this.#mail === 'none' && !this.#busy) this.#face.expel(REPLIES.draining);
  }

  #endTransaction(): void {
    if (this.#mail === 'none') return;
    this.#mail = 'none';
    this.#recipients = 0;
    this.#server.door.reset(this.#face);
    if (this.#server.draining && !this._closing) setImmediate(() => this.leaveWhenIdle());
  }

  #answer(reply: Reply, callback: () => void): void {
    this.say(reply);
    callback();
  }

  /** Waits for the door; undefined means what `otherwise` says. */
  #ask(asked: Promise<Reply | undefined>, callback: () => void, otherwise: () => Reply): void {
    this.#busy = true;
    asked.catch((error: unknown) => {
      this.#server.door.onBug(error);
      return REPLIES.localError;
    }).then((answer) => {
      this.#busy = false;
      this.#answer(answer ?? otherwise(), callback);
    }).catch((error: unknown) => this.#server.door.onBug(error));
  }
}
