// A door for the server's tests: says yes, or what the test wants said, and remembers what it was asked.
import { REPLIES, reply, type EnvelopeRecipient, type Reply } from '../../daemon/mail/index.ts';
import type { Door, MailCommand, ServerSession } from '../../daemon/smtp/index.ts';

export interface User { readonly name: string }

export class Desk implements Door<User> {
  readonly messages: Buffer[] = [];
  readonly senders: MailCommand[] = [];
  readonly recipients: EnvelopeRecipient[] = [];
  readonly bugs: unknown[] = [];
  readonly protocols: string[] = [];
  resets = 0;
  opened = 0;
  closed = 0;
  onData: (raw: Buffer) => Promise<Reply> = async () => reply(250, '0.0', 'taken');
  onMail: () => Promise<Reply | undefined> = async () => undefined;
  connect(): Reply | undefined {
    this.opened += 1;
    return undefined;
  }
  async authenticate(_session: ServerSession<User>, { username, password }: { username: string; password: string }): Promise<{ auth: User } | Reply> {
    if (username === 'broken') throw new Error('the store is gone');
    return password === 'secret' ? { auth: { name: username } } : REPLIES.badCredentials;
  }
  async mail(_session: ServerSession<User>, command: MailCommand): Promise<Reply | undefined> {
    this.senders.push(command);
    return this.onMail();
  }
  async rcpt(_session: ServerSession<User>, recipient: EnvelopeRecipient): Promise<Reply | undefined> {
    if (recipient.wire.startsWith('bug')) throw new Error('a bug');
    if (recipient.wire.startsWith('no')) return reply(550, '7.1', 'no consent on record');
    this.recipients.push(recipient);
    return undefined;
  }
  async data(session: ServerSession<User>, raw: Buffer): Promise<Reply> {
    this.protocols.push(session.protocol);
    const answer = await this.onData(raw);
    if (answer.code === 250) this.messages.push(raw);
    return answer;
  }
  reset(): void {
    this.resets += 1;
  }
  close(): void {
    this.closed += 1;
  }
  onBug(error: unknown): void {
    this.bugs.push(error);
  }
}
