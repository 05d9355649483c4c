// Who got which copy, for as long as reports about it come back. A reverse-path has room for a message id
// and a number; this table leads from them to the person's keyed hashes after the spool has forgotten the
// row. It lies in an LMDB environment of its own in <data>/sent, its keys sort by time, so that it grows at
// one end and is cut at the other, and it is written in batches, off the path of the mail: what a crash
// loses is a second of it, and of those copies a bounce is then counted and suppresses nobody. No address
// is in it. What an LMDB cannot store is logged and the mail goes on.
import { join } from 'node:path';
import type { RootDatabase } from 'lmdb';
import { MailError, type AddressHashes, type Instant, type MessageId } from '../mail/index.ts';
import { idTime, newId, type Clock, type Log } from '../runtime/index.ts';
import { openLmdb } from '../store/index.ts';

/** One delivered copy. */
export interface SentCopy {
  readonly tenant: string;
  readonly message: MessageId;
  readonly recipient: number;
  readonly stream: string;
  readonly purpose: string;
  readonly hashes: AddressHashes;
}

export interface SentCopies {
  /** Remembers a copy; durable within a second or two. */
  note(copy: SentCopy): void;
  /** The copy; undefined when it is none of this tenant's or is forgotten. @throws MailError E_STORE */
  find(tenant: string, message: MessageId, recipient: number): SentCopy | undefined;
  close(): Promise<void>;
}

// RFC 5321 §4.5.4.1: senders give up after four or five days; a report of that and a slow way back fit twice.
const KEEP_MS = 14 * 86_400_000;
const WRITE_EVERY_MS = 1_000;
// One batch is one commit and, in it, a few milliseconds of the loop.
const BATCH = 1_000;
const SWEEP_MS = 600_000;
const SWEEP_ROWS = 5_000;
const HASH_OCTETS = 16;

/** @throws MailError E_STORE */
export function openSentCopies(dataDir: string, { clock, log }: { readonly clock: Clock; readonly log: Log }): SentCopies {
  const db = openLmdb(join(dataDir, 'sent'));
  // What is not on disk yet is found here; `batch` is what no write has taken up.
  const waiting = new Map<string, Buffer>();
  let batch: (readonly [string, Buffer])[] = [];
  let stopWrite: (() => void) | undefined;
  let writing: Promise<void> = Promise.resolve();
  const put = async (rows: typeof batch): Promise<void> => {
    if (rows.length === 0) return;
    try {
      await db.transaction(() => {
        for (const [key, value] of rows) void db.put(Buffer.from(key), value); // settles with the transaction that is awaited
      });
    } catch (error) {
      log.error({ error: String(error) }, 'copies sent could not be noted; their bounces will suppress nobody');
    }
    for (const [key, value] of rows) if (waiting.get(key) === value) waiting.delete(key);
  };
  const write = (): void => {
    stopWrite?.();
    stopWrite = undefined;
    const rows = batch;
    batch = [];
    writing = writing.then(() => put(rows));
  };
  let stopSweep = (): void => undefined;
  const sweep = (): void => {
    stopSweep = clock.after(SWEEP_MS, sweep);
    writing = writing.then(() => forget(db, clock.now() - KEEP_MS)).catch((error: unknown) => log.error({ error: String(error) }, 'copies of long ago could not be forgotten'));
  };
  sweep();
  return {
    note(copy) {
      const row = [keyOf(copy.message, copy.recipient), encode(copy)] as const;
      waiting.set(...row);
      batch.push(row);
      if (batch.length >= BATCH) write();
      else stopWrite ??= clock.after(WRITE_EVERY_MS, write);
    },
    find(tenant, message, recipient) {
      const key = keyOf(message, recipient);
      try {
        const value = waiting.get(key) ?? db.get(Buffer.from(key));
        const copy = value === undefined ? undefined : decode(value, message, recipient);
        return copy?.tenant === tenant && idTime(message) >= clock.now() - KEEP_MS ? copy : undefined;
      } catch (cause) {
        throw new MailError('E_STORE', `copies sent: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
      }
    },
    async close() {
      stopSweep();
      write();
      await writing;
      await db.close();
    },
  };
}

/** Removes what was accepted before then, a bounded number at a time. */
async function forget(db: RootDatabase<Buffer, Buffer>, before: Instant): Promise<void> {
  // An id's first ten characters are its time.
  const end = Buffer.from(newId(Math.max(before, 0)).slice(0, 10));
  for (;;) {
    const keys = [...db.getKeys({ end, limit: SWEEP_ROWS })].map((key) => Buffer.from(key));
    if (keys.length > 0) {
      await db.transaction(() => {
        for (const key of keys) void db.remove(key);
      });
    }
    if (keys.length < SWEEP_ROWS) return;
  }
}

const keyOf = (message: MessageId, recipient: number): string => `${message}${String(recipient).padStart(6, '0')}`;

function encode({ tenant, stream, purpose, hashes }: SentCopy): Buffer {
  const names = `${tenant}\0${stream}\0${purpose}`;
  const octets = Buffer.allocUnsafe(3 * HASH_OCTETS + Buffer.byteLength(names));
  hashes.consent.copy(octets, 0);
  hashes.suppression.copy(octets, HASH_OCTETS);
  hashes.family.copy(octets, 2 * HASH_OCTETS);
  octets.write(names, 3 * HASH_OCTETS);
  return octets;
}

function decode(value: Buffer, message: MessageId, recipient: number): SentCopy {
  const octets = Buffer.from(value);
  const hash = (n: number): Buffer => octets.subarray(n * HASH_OCTETS, (n + 1) * HASH_OCTETS);
  const [tenant = '', stream = '', purpose = ''] = octets.toString('utf8', 3 * HASH_OCTETS).split('\0');
  return { tenant, message, recipient, stream, purpose, hashes: { consent: hash(0), suppression: hash(1), family: hash(2) } };
}
