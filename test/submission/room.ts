// A submission door on loopback ports, with one tenant of two credentials, and hooks that write down what
// they are asked: refusals are asked for by the recipient's name.
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { reply, type EnvelopeRecipient, type Reply, type Submitted } from '../../daemon/mail/index.ts';
import { Metrics, systemClock, type Clock, type Log } from '../../daemon/runtime/index.ts';
import type { Credential, Server, Settings } from '../../daemon/settings/index.ts';
import { openSubmission, type Submission, type SubmissionContext, type SubmissionHooks } from '../../daemon/submission/index.ts';
import { testCertificate } from '../lib/mx.ts';

export const SECRET = 'a-secret-of-enough-bits';
export type Limits = Partial<Server['limits']>;

export class Hooks implements SubmissionHooks {
  readonly contexts: SubmissionContext[] = [];
  readonly senders: string[] = [];
  readonly submitted: Submitted[] = [];
  resets = 0;
  readonly suspendedTenants = new Set<string>();
  async sender(context: SubmissionContext, mailFrom: string): Promise<Reply | undefined> {
    this.contexts.push(context);
    this.senders.push(mailFrom);
    return mailFrom.startsWith('not-mine') ? reply(550, '7.1', 'not an address this credential may send from') : undefined;
  }
  async recipient(_context: SubmissionContext, { wire }: EnvelopeRecipient): Promise<Reply | undefined> {
    if (wire.startsWith('bug')) throw new Error('a bug');
    return wire.startsWith('no') ? reply(550, '7.1', 'no consent on record') : undefined;
  }
  async message(submitted: Submitted): Promise<Reply> {
    this.submitted.push(submitted);
    return reply(250, '0.0', `queued as ${submitted.id}`);
  }
  reset(): void {
    this.resets += 1;
  }
  async suspended(tenant: string): Promise<boolean> {
    return this.suspendedTenants.has(tenant);
  }
}

export interface Room {
  readonly submission: Submission;
  readonly hooks: Hooks;
  readonly metrics: Metrics;
  readonly tls: number;
  readonly starttls: number;
  /** Delays that were asked of the clock for failed logins, ms; they pass at once. */
  readonly delays: number[];
  readonly logged: string[];
  readonly certificateFile: string;
  readonly keyFile: string;
  /** Moves time, and fires the check of the certificate. */
  advance(ms: number): void;
  change(credentials: readonly Credential[]): void;
  close(): Promise<void>;
}

export function credential(changes: Partial<Credential> = {}): Credential {
  return {
    username: 'acme-news', tenant: 'acme', secretHash: createHash('sha256').update(SECRET).digest(), stream: 'news',
    from: ['acme.example'], rate: undefined, ...changes,
  };
}

export async function openRoom(limits: Limits = {}, credentials: readonly Credential[] = [credential(), credential({ username: 'other', tenant: 'other' })], listeners?: Partial<Server['listeners']>): Promise<Room> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-submission-'));
  const [certificateFile, keyFile] = [join(dir, 'cert.pem'), join(dir, 'key.pem')];
  writeFileSync(certificateFile, testCertificate().cert);
  writeFileSync(keyFile, testCertificate().key);
  const here = [{ host: '127.0.0.1', port: 0 }];
  const server = {
    hostname: 'mx.acme.example', tls: { certificateFile, keyFile },
    listeners: { submissions: here, submission: here, inbound: [], pages: [], pagesTls: false, api: [], metrics: [], ...listeners },
    limits: {
      messageBytes: 1_000_000, recipientsPerMessage: 100, connections: 50, connectionsPerAddress: 40, dataTimeoutMs: 20_000, idleTimeoutMs: 20_000,
      authFailures: 5, diskReserveBytes: 0, keepEventsMs: 0, ...limits,
    },
  } as unknown as Server;
  const settings = { server, credentials: new Map(credentials.map((one) => [one.username, one])) } as unknown as Settings;
  const live = { settings };
  const delays: number[] = [];
  const logged: string[] = [];
  let offset = 0;
  const checks: (() => void)[] = [];
  const clock: Clock = {
    now: () => Date.now() + offset,
    after(ms, run) {
      if (ms === 30_000 && checks.length === 0) {
        checks.push(run);
        return () => void checks.splice(0);
      }
      const isDelay = [500, 1_000, 2_000, 4_000, 8_000].includes(ms);
      if (isDelay) delays.push(ms);
      return systemClock.after(isDelay ? 1 : ms, run);
    },
  };
  const note = (fields: object, text: string): void => void logged.push(`${text} ${JSON.stringify(fields)}`);
  const log: Log = { debug: note, info: note, warn: note, error: note };
  const hooks = new Hooks();
  const metrics = new Metrics();
  let submission: Submission;
  try {
    submission = await openSubmission({ settings: () => live.settings, clock, log, metrics, hooks });
  } catch (error) {
    rmSync(dir, { recursive: true });
    throw error;
  }
  return {
    submission, hooks, metrics, delays, logged, certificateFile, keyFile, tls: submission.ports.submissions[0] ?? 0, starttls: submission.ports.submission[0] ?? 0,
    advance(ms) {
      offset += ms;
      for (const run of checks.splice(0)) run();
    },
    change(next) {
      live.settings = { ...settings, credentials: new Map(next.map((one) => [one.username, one])) };
    },
    async close() {
      await submission.drain();
      rmSync(dir, { recursive: true });
    },
  };
}
