// What the spool's tests share: a spool in a folder of its own, with real keys, files and LMDB.
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Composed } from '../../daemon/mail/index.ts';
import { newId, openKeyring, systemClock, type Clock, type Keyring, type Log } from '../../daemon/runtime/index.ts';
import { openSpool, type Spool } from '../../daemon/spool/index.ts';

export const silent: Log = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };

export function folder(): string {
  return mkdtempSync(join(tmpdir(), 'postern-spool-'));
}

export function keysIn(dir: string, master = Buffer.alloc(32, 7)): Keyring {
  return openKeyring(join(dir, 'keys'), createSecretKey(master));
}

export function openIn(dir: string, more: { clock?: Clock; log?: Log; reserveBytes?: number } = {}): Promise<Spool> {
  return openSpool({ dir: join(dir, 'spool'), keyring: keysIn(dir), clock: systemClock, log: silent, reserveBytes: 0, ...more });
}

/** A composed message to these addresses; the brand stands in for the rooms before. */
export function composed(to: readonly string[], body: Buffer | number = 500, tenant = 'acme', now = Date.now()): Composed {
  const raw = typeof body === 'number' ? randomBytes(body) : body;
  const message = {
    id: newId(now),
    origin: { tenant, stream: 'news', credential: 'app', kind: 'relay' },
    envelope: { mailFrom: 'news@sender.example', smtpUtf8: false, body: '8BITMIME' },
    raw,
    receivedAt: now,
    protocol: 'ESMTPSA',
    recipients: to.map((wire) => ({
      wire, domain: wire.slice(wire.lastIndexOf('@') + 1), evidence: 'consent-1', dsn: { notify: ['FAILURE'], orcpt: `rfc822;${wire}` },
      hashes: { consent: randomBytes(16), suppression: randomBytes(16), family: randomBytes(16) },
    })),
    plan: { version: 1, bodyStart: 10, removed: [], added: 'Received: by here\r\n', parts: [], subscribed: false, untouched: [] },
  };
  return message as unknown as Composed;
}
