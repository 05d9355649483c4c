// What stands between the SMTP server and whoever decides: the server speaks the protocol and asks the
// door; the door answers with replies and knows no bytes. A handler that rejects is a bug: the client
// gets 451 4.3.0 and onBug is told.
import type { EnvelopeRecipient, Reply } from '../mail/index.ts';
import type { MailCommand } from './path.ts';

/** One connection, as far as a door may know it. `Auth` is what authenticate() returned. */
export interface ServerSession<Auth> {
  readonly id: string;
  readonly remoteAddress: string;
  readonly secure: boolean;
  /** undefined until the login. */
  readonly auth: Auth | undefined;
  /** RFC 3848: `ESMTPSA` and friends, `UTF8SMTPSA` with SMTPUTF8 (RFC 6531 §4.3). */
  readonly protocol: string;
  /** Says this reply and closes, whatever the client is doing. */
  expel(reply: Reply): void;
}

export interface Login {
  readonly username: string;
  readonly password: string;
}

/** Undefined means yes; a Reply means what it says. */
export interface Door<Auth extends object> {
  connect(session: ServerSession<Auth>): Reply | undefined;
  authenticate(session: ServerSession<Auth>, login: Login): Promise<{ readonly auth: Auth } | Reply>;
  mail(session: ServerSession<Auth>, command: MailCommand): Promise<Reply | undefined>;
  rcpt(session: ServerSession<Auth>, recipient: EnvelopeRecipient): Promise<Reply | undefined>;
  /** The message is canonical: CRLF only, unstuffed, within its limits. The answer may be a 250. */
  data(session: ServerSession<Auth>, raw: Buffer): Promise<Reply>;
  /** The transaction is gone: RSET, EHLO, or the end of a message. */
  reset(session: ServerSession<Auth>): void;
  close(session: ServerSession<Auth>): void;
  onBug(error: unknown): void;
}
