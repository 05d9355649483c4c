// The submission door: listeners, logins, rates and transactions. It decides nothing about recipients or
// content (the hooks do), but nobody passes it without TLS, a login and a reverse-path the credential
// may use. Callers may rely on: hooks are called in the order of RFC 5321 §4.1.4 within a transaction,
// message() only when every octet has arrived and is clean, and reset() once a transaction is over.
// When it cannot tell, it says 451. RFC 6409, RFC 8314.
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import {
  Gcra, MailError, REPLIES, isMailError, networkOf, parseAddress, reply,
  type EnvelopeRecipient, type MessageId, type Reply, type Submitted,
} from '../mail/index.ts';
import { newId, type Clock, type Log, type Metrics } from '../runtime/index.ts';
import type { Credential, Listen, Rate, Settings } from '../settings/index.ts';
import { DoorServer, type Door, type Login, type MailCommand, type ServerSession } from '../smtp/index.ts';
import { Logins, secretMatches } from './logins.ts';
import { makeSubmitted } from './submitted.ts';

/** One transaction, as the hooks see it. */
export interface SubmissionContext {
  /** The id the message will have. */
  readonly id: MessageId;
  readonly credential: Credential;
}

/** What the pipeline answers. undefined means yes. */
export interface SubmissionHooks {
  sender(context: SubmissionContext, mailFrom: string): Promise<Reply | undefined>;
  recipient(context: SubmissionContext, recipient: EnvelopeRecipient): Promise<Reply | undefined>;
  message(submitted: Submitted): Promise<Reply>;
  reset(context: SubmissionContext): void;
  suspended(tenant: string): Promise<boolean>;
}

export interface SubmissionOptions {
  readonly settings: () => Settings;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly hooks: SubmissionHooks;
}

/** An open door. */
export interface Submission {
  /** Where it listens, in the order of the settings. */
  readonly ports: { readonly submissions: readonly number[]; readonly submission: readonly number[] };
  /** Reads the certificate files again; a pair that cannot be used leaves the old one. */
  renewCertificate(): void;
  /** Ends every session of a tenant with 421 (suspension). */
  expel(tenant: string): void;
  /** No new sessions; those open finish their transaction. */
  drain(): Promise<void>;
}

// Certificates are renewed every few weeks; half a minute after the file is soon enough.
const CERTIFICATE_CHECK_MS = 30_000;

/** Opens the listeners. @throws MailError E_IN_USE, E_KEY_UNREADABLE */
export async function openSubmission(options: SubmissionOptions): Promise<Submission> {
  const { settings, clock, log } = options;
  const { server } = settings();
  const pair = readPair(server.tls);
  const door = new SubmissionDoor(options);
  const servers: DoorServer<Credential>[] = [];
  const open = async (at: Listen, implicitTls: boolean, key: string): Promise<number> => {
    const smtp = new DoorServer<Credential>({
      hostname: server.hostname, implicitTls, ...pair, connections: server.limits.connections, connectionsPerAddress: server.limits.connectionsPerAddress,
      messageBytes: server.limits.messageBytes, recipientsPerMessage: server.limits.recipientsPerMessage,
      idleTimeoutMs: server.limits.idleTimeoutMs, dataTimeoutMs: server.limits.dataTimeoutMs, clock, door,
    });
    servers.push(smtp);
    return listen(smtp, at, key);
  };
  const ports = { submissions: [] as number[], submission: [] as number[] };
  try {
    for (const at of server.listeners.submissions) ports.submissions.push(await open(at, true, 'listeners.submissions'));
    for (const at of server.listeners.submission) ports.submission.push(await open(at, false, 'listeners.submission'));
  } catch (error) {
    await Promise.all(servers.map((smtp) => smtp.drain()));
    throw error;
  }
  let changed = pairChanged(server.tls);
  const renew = (): void => {
    try {
      const fresh = readPair(server.tls);
      for (const smtp of servers) smtp.setCertificate(fresh);
      log.info({}, 'certificate read again');
    } catch (error) {
      log.error({ err: String(error) }, 'the certificate cannot be used; the old one stays');
    }
  };
  let stopLooking = (): void => undefined;
  const look = (): void => {
    stopLooking = clock.after(CERTIFICATE_CHECK_MS, () => {
      const now = pairChanged(server.tls);
      if (now !== changed) renew();
      changed = now;
      look();
    });
  };
  look();
  return {
    ports, renewCertificate: renew, expel: (tenant) => door.expel(tenant),
    async drain() {
      stopLooking();
      await Promise.all(servers.map((smtp) => smtp.drain()));
    },
  };
}

function listen(smtp: DoorServer<Credential>, at: Listen, key: string): Promise<number> {
  return new Promise((resolve, reject) => {
    smtp.server.once('error', (cause: Error & { code?: string }) => {
      const text = cause.code === 'EADDRINUSE' ? `port ${at.port} on ${at.host} is taken; change ${key} in postern.yaml` : `${key} ${at.host}:${at.port}: ${cause.message}`;
      reject(new MailError('E_IN_USE', text, { cause }));
    });
    smtp.listen(at.port, at.host, () => {
      const address = smtp.server.address();
      resolve(typeof address === 'object' && address !== null ? address.port : at.port);
    });
  });
}

interface PairFiles {
  readonly certificateFile: string;
  readonly keyFile: string;
}

function readPair({ certificateFile, keyFile }: PairFiles): { readonly cert: Buffer; readonly key: Buffer } {
  try {
    const pair = { cert: readFileSync(certificateFile), key: readFileSync(keyFile) };
    createSecureContext(pair); // throws when the two do not fit
    return pair;
  } catch (cause) {
    throw new MailError('E_KEY_UNREADABLE', `TLS certificate: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function pairChanged({ certificateFile, keyFile }: PairFiles): string {
  return [certificateFile, keyFile].map((file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0).join(' ');
}

interface Transaction {
  readonly context: SubmissionContext;
  readonly command: MailCommand;
  readonly recipients: EnvelopeRecipient[];
}

class SubmissionDoor implements Door<Credential> {
  readonly #options: SubmissionOptions;
  readonly #logins: Logins;
  readonly #sessions = new Map<string, ServerSession<Credential>>();
  readonly #perAddress = new Map<string, number>();
  readonly #transactions = new Map<string, Transaction>();
  readonly #rates = new Map<string, { readonly rate: Rate; readonly gcra: Gcra }>();

  constructor(options: SubmissionOptions) {
    this.#options = options;
    this.#logins = new Logins(options.clock);
  }

  connect(session: ServerSession<Credential>): Reply | undefined {
    const { connections, connectionsPerAddress } = this.#options.settings().server.limits;
    const known = this.#perAddress.get(session.remoteAddress) ?? 0;
    if (this.#sessions.size >= connections) return REPLIES.tooManySessions;
    if (known >= connectionsPerAddress) return REPLIES.tooManyFromAddress;
    this.#sessions.set(session.id, session);
    this.#perAddress.set(session.remoteAddress, known + 1);
    this.#options.metrics.sessions.set(this.#sessions.size);
    return undefined;
  }

  async authenticate(session: ServerSession<Credential>, { username, password }: Login): Promise<{ readonly auth: Credential } | Reply> {
    const { settings, clock, metrics, hooks } = this.#options;
    const { server, credentials } = settings();
    const network = networkOf(session.remoteAddress);
    if (this.#logins.blocked(network, username, server.limits.authFailures)) return REPLIES.authSlow;
    const credential = credentials.get(username);
    if (secretMatches(credential, password) && credential !== undefined && !(await hooks.suspended(credential.tenant))) {
      this.#logins.succeeded(network, username);
      return { auth: credential };
    }
    metrics.authFailures.inc();
    const delayMs = this.#logins.failed(network, username);
    await new Promise<void>((resolve) => void clock.after(delayMs, resolve));
    return REPLIES.badCredentials;
  }

  async mail(session: ServerSession<Credential>, command: MailCommand): Promise<Reply | undefined> {
    const credential = this.#current(session);
    if (credential === undefined) return REPLIES.suspended;
    const { clock, hooks } = this.#options;
    const waitMs = this.#gcra(credential)?.take(clock.now()) ?? 0;
    if (waitMs > 0) return reply(451, '7.1', `this credential may send again in ${Math.ceil(waitMs / 1000)} s`);
    if (command.from !== '') {
      try {
        parseAddress(command.from);
      } catch (error) {
        if (!isMailError(error, 'E_ADDRESS')) throw error;
        return REPLIES.badSender;
      }
    }
    const context = { id: newId(clock.now()), credential };
    const refused = await hooks.sender(context, command.from);
    if (refused === undefined) this.#transactions.set(session.id, { context, command, recipients: [] });
    return refused;
  }

  async rcpt(session: ServerSession<Credential>, recipient: EnvelopeRecipient): Promise<Reply | undefined> {
    const transaction = this.#transactions.get(session.id);
    if (transaction === undefined) return REPLIES.badSequence;
    const refused = await this.#options.hooks.recipient(transaction.context, recipient);
    if (refused === undefined) transaction.recipients.push(recipient);
    return refused;
  }

  async data(session: ServerSession<Credential>, raw: Buffer): Promise<Reply> {
    const transaction = this.#transactions.get(session.id);
    if (transaction === undefined || transaction.recipients.length === 0) return REPLIES.noRecipients;
    const { context, command, recipients } = transaction;
    const { clock, hooks } = this.#options;
    return hooks.message(makeSubmitted({
      id: context.id, credential: context.credential, raw, at: clock.now(), protocol: session.protocol,
      envelope: {
        mailFrom: command.from, recipients, smtpUtf8: command.smtpUtf8, body: command.body,
        ...(command.ret !== undefined && { ret: command.ret }), ...(command.envid !== undefined && { envid: command.envid }), ...(command.requireTls === true && { requireTls: true as const }),
      },
    }));
  }

  reset(session: ServerSession<Credential>): void {
    const transaction = this.#transactions.get(session.id);
    if (transaction === undefined) return;
    this.#transactions.delete(session.id);
    this.#options.hooks.reset(transaction.context);
  }

  close(session: ServerSession<Credential>): void {
    if (!this.#sessions.delete(session.id)) return;
    const left = (this.#perAddress.get(session.remoteAddress) ?? 1) - 1;
    if (left > 0) this.#perAddress.set(session.remoteAddress, left);
    else this.#perAddress.delete(session.remoteAddress);
    this.#options.metrics.sessions.set(this.#sessions.size);
  }

  onBug(error: unknown): void {
    this.#options.metrics.bugs.inc({ room: 'submission' });
    this.#options.log.error({ err: error instanceof Error ? error.stack : String(error) }, 'unexpected exception; answered 451');
  }

  expel(tenant: string): void {
    for (const session of this.#sessions.values()) if (session.auth?.tenant === tenant) session.expel(REPLIES.suspended);
  }

  /** The credential as it stands now: a reload may have changed it, or taken it away. */
  #current(session: ServerSession<Credential>): Credential | undefined {
    const was = session.auth;
    const now = was === undefined ? undefined : this.#options.settings().credentials.get(was.username);
    return now !== undefined && was !== undefined && now.secretHash.equals(was.secretHash) && now.tenant === was.tenant ? now : undefined;
  }

  #gcra({ username, rate }: Credential): Gcra | undefined {
    if (rate === undefined) return undefined;
    const known = this.#rates.get(username);
    if (known !== undefined && known.rate.count === rate.count && known.rate.perMs === rate.perMs && known.rate.burst === rate.burst) return known.gcra;
    const gcra = new Gcra(rate);
    this.#rates.set(username, { rate, gcra });
    return gcra;
  }
}
