// The inbound door: mail from any host, without a login, for addresses that only we can have made, and for
// postmaster and abuse. Callers may rely on: it relays nothing; every other address gets the same refusal
// at RCPT, forged, expired or invented alike; what is answered 250 has been carried out durably. Clients are
// held to a rate by network, /64 for IPv6, and who guesses addresses is not heard for a while.
// RFC 5321, RFC 2142, RFC 3207; it is no submission door (RFC 6409).
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { openMailto, openReturnPath } from '../compose/index.ts';
import { Gcra, MailError, REPLIES, networkOf, reply, type EnvelopeRecipient, type Reply } from '../mail/index.ts';
import type { Keyring } from '../runtime/index.ts';
import type { Listen, Settings } from '../settings/index.ts';
import { DoorServer, type Door, type MailCommand, type ServerSession } from '../smtp/index.ts';
import { openCases, type Cases } from './cases.ts';
import { takeBack, takeComplaint, type FeedbackOptions, type Mailbox } from './returned.ts';

export interface Feedback {
  /** The ports it listens on, in the order of the settings. */
  readonly ports: readonly number[];
  /** Reads the certificate files again; a pair that cannot be used leaves the old one. */
  renewTls(): void;
  /** No new sessions; those open finish their transaction. */
  close(): Promise<void>;
}

// Reports return at most the mail they are about, mostly its header; sessions hold a message in memory each.
const MESSAGE_BYTES = 10 * 1_048_576;
const CASE_BYTES = 1_048_576;
const SESSIONS = 50;
const SESSIONS_PER_ADDRESS = 10;
// A report names one copy; somebody who writes to postmaster and abuse at once needs two.
const RECIPIENTS = 5;
// A provider that bounces a campaign comes from many addresses, ten a second from each; it gets 421 and comes again.
const CONNECTION_RATE = { count: 600, perMs: 60_000, burst: 100 };
// Mistyped addresses come one by one; lists of invented ones by the hundred.
const UNKNOWN_RATE = { count: 20, perMs: 600_000, burst: 20 };
// Cases are written by people.
const CASE_RATE = { count: 10, perMs: 600_000, burst: 10 };
const NETWORKS = 50_000;
const OLDEST_TLS = 'TLSv1.2'; // RFC 8996

const UNKNOWN = reply(550, '1.1', 'no such mailbox here');
const TOO_OFTEN = reply(421, '7.0', 'too many connections from your network, try again later');
const TOO_MANY_UNKNOWN = reply(421, '7.0', 'too many unknown mailboxes asked for from your network, try again later');
const TOO_MANY_CASES = reply(451, '7.1', 'too much mail to this mailbox from your network, try again later');
const CASES_FULL = reply(452, '3.1', 'the mailbox is full, try again later');
const CASE_TOO_BIG = reply(552, '3.4', 'this mailbox takes messages of at most 1 MiB');
const FILED = reply(250, '0.0', 'filed, a person will read it');

/** Opens the listeners; none where none is configured. @throws MailError E_IN_USE, E_KEY_UNREADABLE */
export async function openFeedback(options: FeedbackOptions): Promise<Feedback> {
  const { server } = options.settings();
  const { limits, listeners } = server;
  if (listeners.inbound.length === 0) return { ports: [], renewTls: () => undefined, close: async () => undefined };
  const door = new InboundDoor(options, openCases(server.dataDir, options));
  const servers: DoorServer<Stranger>[] = [];
  const ports: number[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(servers.map((smtp) => smtp.drain()));
  };
  try {
    const pair = readPair(server.tls);
    for (const at of listeners.inbound) {
      const smtp = new DoorServer<Stranger>({
        hostname: server.hostname, implicitTls: false, login: 'none', ...pair, connections: SESSIONS, connectionsPerAddress: SESSIONS_PER_ADDRESS,
        messageBytes: MESSAGE_BYTES, recipientsPerMessage: RECIPIENTS, idleTimeoutMs: limits.idleTimeoutMs, dataTimeoutMs: limits.dataTimeoutMs, clock: options.clock, door,
      });
      ports.push(await listen(smtp, at));
      servers.push(smtp);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    ports, close,
    renewTls() {
      try {
        const pair = readPair(options.settings().server.tls);
        for (const smtp of servers) smtp.setCertificate(pair);
      } catch (error) {
        options.log.error({ err: String(error) }, 'the certificate cannot be used; the old one stays');
      }
    },
  };
}

function readPair({ certificateFile, keyFile }: Settings['server']['tls']): { readonly cert: Buffer; readonly key: Buffer } {
  try {
    const pair = { cert: readFileSync(certificateFile), key: readFileSync(keyFile), minVersion: OLDEST_TLS } as const;
    createSecureContext(pair); // throws when the two do not fit
    return pair;
  } catch (cause) {
    throw new MailError('E_KEY_UNREADABLE', `TLS certificate: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function listen(smtp: DoorServer<Stranger>, at: Listen): Promise<number> {
  return new Promise((done, fail) => {
    smtp.server.once('error', (cause: Error & { code?: string }) => {
      fail(new MailError('E_IN_USE', `cannot listen on ${at.host}:${at.port} (${cause.code ?? cause.message}); change listeners.inbound in postern.yaml`, { cause }));
    });
    smtp.listen(at.port, at.host, () => {
      const address = smtp.server.address();
      done(typeof address === 'object' && address !== null ? address.port : at.port);
    });
  });
}

/** Whom an address means; undefined for every address that is not ours. */
export function mailboxOf(settings: Settings, keyring: Keyring, address: string): Mailbox | undefined {
  const at = address.lastIndexOf('@');
  // RFC 5321 §4.5.1 MUST: postmaster without a domain, in any case
  if (at < 0) return address.toLowerCase() === 'postmaster' ? { kind: 'role', role: 'postmaster', tenant: undefined } : undefined;
  const local = address.slice(0, at).toLowerCase();
  const domain = address.slice(at + 1).toLowerCase();
  const place = placesOf(settings).get(domain);
  if (place === undefined) return undefined;
  if (local === 'postmaster' || local === 'abuse') return { kind: 'role', role: local, tenant: place.tenant };
  if (!place.returnsFor.size) return undefined;
  const bounce = openReturnPath(keyring, local);
  const token = bounce ?? openMailto(keyring, local);
  // One tenant's token at another tenant's domain is no token.
  if (token === undefined || !place.returnsFor.has(token.tenant)) return undefined;
  return { kind: bounce === undefined ? 'unsubscribe' : 'bounce', token };
}

interface Place {
  /** Whose domain it is; undefined for our host name. */
  readonly tenant: string | undefined;
  /** Tenants whose reverse-paths end in it. */
  readonly returnsFor: Set<string>;
}

const PLACES = new WeakMap<Settings, ReadonlyMap<string, Place>>();

/** The domains mail may come to; one table for each snapshot. */
function placesOf(settings: Settings): ReadonlyMap<string, Place> {
  const known = PLACES.get(settings);
  if (known !== undefined) return known;
  const places = new Map<string, Place>();
  const place = (name: string, tenant: string | undefined): Place => {
    const found = places.get(name.toLowerCase()) ?? { tenant, returnsFor: new Set<string>() };
    places.set(name.toLowerCase(), found);
    return found;
  };
  place(settings.server.hostname, undefined);
  for (const { id, domains } of settings.tenants.values()) {
    for (const { name, returnPath } of domains) {
      place(name, id);
      place(returnPath, id).returnsFor.add(id);
    }
  }
  PLACES.set(settings, places);
  return places;
}

/** Nobody logs in here. */
type Stranger = Readonly<Record<string, never>>;

interface Transaction {
  readonly mailFrom: string;
  readonly mailboxes: Mailbox[];
}

class InboundDoor implements Door<Stranger> {
  readonly #options: FeedbackOptions;
  readonly #cases: Cases;
  readonly #sessions = new Map<string, string>();
  readonly #transactions = new Map<string, Transaction>();
  readonly #connections = new Rates(CONNECTION_RATE);
  readonly #unknown = new Rates(UNKNOWN_RATE);
  readonly #filed = new Rates(CASE_RATE);
  /** One message is read at a time: reading hostile MIME must not crowd out the mail that goes out. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: FeedbackOptions, cases: Cases) {
    this.#options = options;
    this.#cases = cases;
  }

  connect(session: ServerSession<Stranger>): Reply | undefined {
    const network = networkOf(session.remoteAddress);
    const now = this.#options.clock.now();
    let sameNetwork = 0;
    for (const known of this.#sessions.values()) if (known === network) sameNetwork += 1;
    if (this.#sessions.size >= SESSIONS) return this.#refuse('sessions', REPLIES.tooManySessions);
    if (sameNetwork >= SESSIONS_PER_ADDRESS) return this.#refuse('sessions', REPLIES.tooManyFromAddress);
    if (this.#unknown.spent(network, now)) return this.#refuse('guessing', TOO_MANY_UNKNOWN);
    if (!this.#connections.take(network, now)) return this.#refuse('rate', TOO_OFTEN);
    this.#sessions.set(session.id, network);
    return undefined;
  }

  async authenticate(): Promise<Reply> {
    return REPLIES.notImplemented;
  }

  async mail(session: ServerSession<Stranger>, command: MailCommand): Promise<Reply | undefined> {
    this.#transactions.set(session.id, { mailFrom: command.from, mailboxes: [] });
    return undefined;
  }

  async rcpt(session: ServerSession<Stranger>, { wire }: EnvelopeRecipient): Promise<Reply | undefined> {
    const { settings, keyring, clock } = this.#options;
    const network = networkOf(session.remoteAddress);
    const mailbox = mailboxOf(settings(), keyring, wire);
    if (mailbox === undefined) {
      this.#refuse('unknown', UNKNOWN);
      if (this.#unknown.take(network, clock.now())) return UNKNOWN;
      session.expel(TOO_MANY_UNKNOWN);
      return TOO_MANY_UNKNOWN;
    }
    if (mailbox.kind === 'role' && !this.#filed.take(network, clock.now())) return this.#refuse('rate', TOO_MANY_CASES);
    this.#transactions.get(session.id)?.mailboxes.push(mailbox);
    return undefined;
  }

  async data(session: ServerSession<Stranger>, raw: Buffer): Promise<Reply> {
    const transaction = this.#transactions.get(session.id);
    if (transaction === undefined) return REPLIES.noRecipients;
    const work = this.#turn.then(() => this.#takeAll(session, transaction, raw));
    // Whoever waits for this turn does not care how it went; the one whose turn it is gets `work`.
    this.#turn = work.catch(() => undefined);
    return work;
  }

  /** Every mailbox in turn; the first that cannot answers for all, and what was done is done again harmlessly. */
  async #takeAll(session: ServerSession<Stranger>, { mailFrom, mailboxes }: Transaction, raw: Buffer): Promise<Reply> {
    let answer: Reply = REPLIES.noRecipients;
    for (const mailbox of mailboxes) {
      answer = mailbox.kind === 'role' ? await this.#file(mailbox, session, mailFrom, raw) : await takeBack(this.#options, mailbox, raw);
      if (answer.code !== 250) return answer;
    }
    return answer;
  }

  async #file({ role, tenant }: Extract<Mailbox, { kind: 'role' }>, session: ServerSession<Stranger>, mailFrom: string, raw: Buffer): Promise<Reply> {
    const { clock, log, metrics } = this.#options;
    if (raw.length > CASE_BYTES) return this.#refuse('size', CASE_TOO_BIG);
    try {
      if (role === 'abuse' && await takeComplaint(this.#options, raw)) return FILED;
      const id = await this.#cases.file({ at: clock.now(), role, tenant: tenant ?? '', from: session.remoteAddress, mailFrom, raw });
      if (id === undefined) return this.#refuse('cases-full', CASES_FULL);
    } catch (error) {
      log.error({ err: String(error) }, 'a case could not be filed; the sender will repeat it');
      return REPLIES.localError;
    }
    metrics.returned.inc({ tenant: tenant ?? '', kind: role, result: 'filed' });
    return FILED;
  }

  reset(session: ServerSession<Stranger>): void {
    this.#transactions.delete(session.id);
  }

  close(session: ServerSession<Stranger>): void {
    this.#sessions.delete(session.id);
    this.#transactions.delete(session.id);
  }

  onBug(error: unknown): void {
    this.#options.metrics.bugs.inc({ room: 'feedback' });
    this.#options.log.error({ err: error instanceof Error ? (error.stack ?? error.message) : String(error) }, 'bug in the inbound door');
  }

  #refuse(reason: 'sessions' | 'guessing' | 'rate' | 'unknown' | 'size' | 'cases-full', said: Reply): Reply {
    this.#options.metrics.inboundRefused.inc({ reason });
    return said;
  }
}

/** One limit for each network. */
class Rates {
  readonly #rate: { readonly count: number; readonly perMs: number; readonly burst: number };
  readonly #known = new Map<string, Gcra>();
  readonly #spentUntil = new Map<string, number>();

  constructor(rate: typeof CASE_RATE) {
    this.#rate = rate;
  }

  /** False when the network has had its share. */
  take(network: string, now: number): boolean {
    const gcra = this.#known.get(network) ?? new Gcra(this.#rate);
    this.#known.set(network, gcra);
    forgetOldest(this.#known);
    const waitMs = gcra.take(now);
    if (waitMs > 0) this.#spentUntil.set(network, now + waitMs);
    forgetOldest(this.#spentUntil);
    return waitMs === 0;
  }

  /** Whether its last one was refused and it is still too soon. */
  spent(network: string, now: number): boolean {
    return (this.#spentUntil.get(network) ?? 0) > now;
  }
}

function forgetOldest(known: Map<string, unknown>): void {
  if (known.size <= NETWORKS) return;
  const oldest = known.keys().next().value;
  if (oldest !== undefined) known.delete(oldest);
}
