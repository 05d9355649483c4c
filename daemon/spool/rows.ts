// The rows of the queue in an LMDB environment of their own, and how they are written as octets. Keys
// and scheduling fields stand in clear; whatever names a person (address, domain, last reply) is sealed
// under the tenant's payload key. A row is small and of nearly constant size, so that LMDB only ever
// frees and takes single pages (a table whose values need runs of pages slows down for ever).
//   message   <id 26>                                     segment, offset, lengths, recipients left, tenant, campaign's hash
//   recipient <id 26><index 4>                            attempts, times, held, queue, hashes, sealed rest
//   due       <queue 16><time 6><id 26><index 4>          empty; written late, see later.ts
//             <ff x 16><end 6><id 26><index 4>            the same by the end of its time, for what nobody can attempt
//   queue     <queue 16>                                  tenant, sealed domain and priority
//   segment   <number 4>                                  live octets, absolute
//             <0>                                         recipients, floor (see later.ts)
// Message and recipient rows share one table, so that a message and its recipients lie on one page: a
// commit costs what the pages it touches cost. A held recipient stands in the due index at HELD_AT, past
// every real time, and has no end.
import { createHmac, type KeyObject } from 'node:crypto';
import type { Database, RootDatabase } from 'lmdb';
import type { AdmittedRecipient, Instant, MessageId, Priority, QueuedRecipient } from '../mail/index.ts';
import { MailError } from '../mail/index.ts';
import { seal, unseal } from '../runtime/index.ts';
import { openLmdb } from '../store/index.ts';

/** 32 hex digits: a keyed hash of (tenant, domain, priority); says none of them. */
export type QueueId = string;

export const QUEUE_OCTETS = 16;
const HASH_OCTETS = 16;
export const ID_OCTETS = 26;
export const HELD_AT = 2 ** 48 - 1;
/** Above every queue: the entries by the end of their time. */
export const ENDS = Buffer.alloc(QUEUE_OCTETS, 255);

export type Table = Database<Buffer, Uint8Array>;

export interface Tables {
  readonly root: RootDatabase<Buffer, Uint8Array>;
  readonly messages: Table;
  readonly recipients: Table;
  readonly due: Table;
  readonly queues: Table;
  readonly segments: Table;
}

/** Opens the environment. @throws MailError E_STORE */
export function openTables(path: string): Tables {
  const root: RootDatabase<Buffer, Uint8Array> = openLmdb(path, { databases: 8 });
  const table = (name: string): Table => root.openDB<Buffer, Uint8Array>({ name, keyEncoding: 'binary', encoding: 'binary' });
  const waiting = table('waiting');
  return { root, messages: waiting, recipients: waiting, due: table('due'), queues: table('queues'), segments: table('segments') };
}

/** Rows of a table, without counting them. */
export function sizeOf(table: Table): number {
  const stats: unknown = table.getStats();
  if (typeof stats === 'object' && stats !== null && 'entryCount' in stats) return Number(stats.entryCount);
  throw new TypeError('lmdb statistics without entryCount');
}

/** lmdb hands keys out as plain Uint8Arrays. */
export const asBuffer = (octets: Uint8Array): Buffer => Buffer.from(octets.buffer, octets.byteOffset, octets.byteLength);

export function messageKey(id: MessageId): Buffer {
  if (id.length !== ID_OCTETS) throw new RangeError(`message id of ${id.length} characters`);
  return Buffer.from(id, 'latin1');
}

export function recipientKey(id: MessageId, index: number): Buffer {
  const key = Buffer.allocUnsafe(ID_OCTETS + 4);
  key.write(id, 0, 'latin1');
  key.writeUInt32BE(index, ID_OCTETS);
  return key;
}

export function readRecipientKey(key: Buffer): { readonly id: MessageId; readonly index: number } {
  return { id: key.toString('latin1', 0, ID_OCTETS), index: key.readUInt32BE(ID_OCTETS) };
}

export function dueKey(queue: Buffer, at: Instant, id: MessageId, index: number): Buffer {
  const key = Buffer.allocUnsafe(QUEUE_OCTETS + 6 + ID_OCTETS + 4);
  queue.copy(key, 0);
  key.writeUIntBE(at, QUEUE_OCTETS, 6);
  key.write(id, QUEUE_OCTETS + 6, 'latin1');
  key.writeUInt32BE(index, QUEUE_OCTETS + 6 + ID_OCTETS);
  return key;
}

export function readDueKey(key: Buffer): { readonly queue: Buffer; readonly at: Instant; readonly id: MessageId; readonly index: number } {
  const rest = QUEUE_OCTETS + 6;
  return {
    queue: key.subarray(0, QUEUE_OCTETS),
    at: key.readUIntBE(QUEUE_OCTETS, 6),
    id: key.toString('latin1', rest, rest + ID_OCTETS),
    index: key.readUInt32BE(rest + ID_OCTETS),
  };
}

/** Start of the due range of a queue from this time on. */
export function dueFrom(queue: Buffer, at: Instant): Buffer {
  const key = Buffer.allocUnsafe(QUEUE_OCTETS + 6);
  queue.copy(key, 0);
  key.writeUIntBE(Math.max(0, Math.min(at, HELD_AT)), QUEUE_OCTETS, 6);
  return key;
}

/** The least queue id above this one; undefined above the last. */
export function nextQueue(queue: Buffer): Buffer | undefined {
  const next = Buffer.from(queue);
  for (let i = QUEUE_OCTETS - 1; i >= 0; i--) {
    const octet = next[i] ?? 0;
    next[i] = (octet + 1) & 255;
    if (octet !== 255) return next;
  }
  return undefined;
}

/** The queue of a domain and priority under its tenant's address key. */
export function queueOf(addressKey: KeyObject, domain: string, priority: Priority): Buffer {
  // Queues were all of one kind once: what waits in them is normal.
  return createHmac('sha256', addressKey).update(`queue\0${domain}${priority === 'normal' ? '' : `\0${priority}`}`).digest().subarray(0, QUEUE_OCTETS);
}

/** What a message row says of its campaign, 16 octets. */
export function campaignHash(addressKey: KeyObject, campaign: string): Buffer {
  return createHmac('sha256', addressKey).update(`campaign\0${campaign}`).digest().subarray(0, HASH_OCTETS);
}

export interface MessageRow {
  readonly segment: number;
  readonly offset: number;
  readonly metaLength: number;
  readonly bodyLength: number;
  /** Recipients who still wait. */
  readonly waiting: number;
  readonly tenant: string;
  /** campaignHash() of its campaign, where it has one. */
  readonly campaign?: Buffer;
}

export function formatMessageRow(row: MessageRow): Buffer {
  const octets = Buffer.allocUnsafe(20 + row.tenant.length);
  octets.writeUInt32BE(row.segment, 0);
  octets.writeUInt32BE(row.offset, 4);
  octets.writeUInt32BE(row.metaLength, 8);
  octets.writeUInt32BE(row.bodyLength, 12);
  octets.writeUInt32BE(row.waiting, 16);
  octets.write(row.tenant, 20, 'latin1');
  // No tenant's id has a NUL in it.
  return row.campaign === undefined ? octets : Buffer.concat([octets, Buffer.of(0), row.campaign]);
}

export function parseMessageRow(octets: Buffer): MessageRow {
  const nul = octets.indexOf(0, 20);
  return {
    segment: octets.readUInt32BE(0),
    offset: octets.readUInt32BE(4),
    metaLength: octets.readUInt32BE(8),
    bodyLength: octets.readUInt32BE(12),
    waiting: octets.readUInt32BE(16),
    tenant: octets.toString('latin1', 20, nul === -1 ? octets.length : nul),
    ...(nul !== -1 && { campaign: octets.subarray(nul + 1) }),
  };
}

/** The fields of a recipient row that stand in clear, and the sealed rest. */
export interface RecipientRow {
  readonly attempts: number;
  readonly nextAt: Instant;
  readonly expiresAt: Instant;
  readonly held: boolean;
  readonly queue: Buffer;
  /** consent, suppression, family: 16 octets each. */
  readonly hashes: Buffer;
  readonly sealed: Buffer;
}

const QUEUE_AT = 17;
const HASHES_AT = QUEUE_AT + QUEUE_OCTETS;
const SEALED_AT = HASHES_AT + 3 * HASH_OCTETS;

export function formatRecipientRow(row: RecipientRow): Buffer {
  const octets = Buffer.allocUnsafe(SEALED_AT + row.sealed.length);
  octets.writeUInt32BE(row.attempts, 0);
  octets.writeUIntBE(row.nextAt, 4, 6);
  octets.writeUIntBE(row.expiresAt, 10, 6);
  octets[16] = row.held ? 1 : 0;
  row.queue.copy(octets, QUEUE_AT);
  row.hashes.copy(octets, HASHES_AT);
  row.sealed.copy(octets, SEALED_AT);
  return octets;
}

export function parseRecipientRow(octets: Buffer): RecipientRow {
  return {
    attempts: octets.readUInt32BE(0),
    nextAt: octets.readUIntBE(4, 6),
    expiresAt: octets.readUIntBE(10, 6),
    held: octets[16] === 1,
    queue: octets.subarray(QUEUE_AT, HASHES_AT),
    hashes: octets.subarray(HASHES_AT, SEALED_AT),
    sealed: octets.subarray(SEALED_AT),
  };
}

/** The three hashes side by side. */
export function packHashes(recipient: AdmittedRecipient): Buffer {
  const { consent, suppression, family } = recipient.hashes;
  for (const hash of [consent, suppression, family]) if (hash.length !== HASH_OCTETS) throw new RangeError(`address hash of ${hash.length} octets`);
  return Buffer.concat([consent, suppression, family]);
}

/** consent, suppression and family, as packHashes() laid them. */
export const hashesOf = ({ hashes }: RecipientRow): readonly Buffer[] => [0, 1, 2].map((i) => hashes.subarray(i * HASH_OCTETS, (i + 1) * HASH_OCTETS));

/** Seals what names the person; bound to its key, so that rows cannot be swapped. */
export function sealRecipient(key: KeyObject, rowKey: Buffer, recipient: AdmittedRecipient, lastReply: string): Buffer {
  const { wire, domain, evidence, dsn } = recipient;
  return seal(key, Buffer.from(JSON.stringify([wire, domain, evidence, lastReply, dsn])), rowKey);
}

/** The recipient as the scheduler sees it. @throws MailError E_SPOOL_CORRUPT */
export function openRecipient(key: KeyObject, rowKey: Buffer, row: RecipientRow): QueuedRecipient {
  const clear = unseal(key, row.sealed, rowKey);
  if (clear === undefined) throw new MailError('E_SPOOL_CORRUPT', 'a recipient row does not match its seal');
  const [wire, domain, evidence, lastReply, dsn] = JSON.parse(clear.toString()) as [string, string, string, string, QueuedRecipient['dsn'] | null];
  const { attempts, nextAt, expiresAt, held, hashes } = row;
  return {
    wire, domain, evidence, lastReply, attempts, nextAt, expiresAt, held,
    ...(dsn ? { dsn } : {}),
    hashes: { consent: hashes.subarray(0, 16), suppression: hashes.subarray(16, 32), family: hashes.subarray(32, 48) },
  };
}

/** Where a recipient row stands in the due index. */
export function dueKeysOf(id: MessageId, index: number, row: RecipientRow): readonly Buffer[] {
  if (row.held) return [dueKey(row.queue, HELD_AT, id, index)];
  return [dueKey(row.queue, row.nextAt, id, index), dueKey(ENDS, row.expiresAt, id, index)];
}

/** What a queue is for. */
export interface QueueName {
  readonly tenant: string;
  readonly domain: string;
  readonly priority: Priority;
}

export function formatQueueRow(key: KeyObject, queue: Buffer, { tenant, domain, priority }: QueueName): Buffer {
  return Buffer.concat([Buffer.from([tenant.length]), Buffer.from(tenant, 'latin1'), seal(key, Buffer.from(priority === 'normal' ? domain : `${domain} ${priority}`), queue)]);
}

/** The clear and the sealed half of a queue row. */
export function splitQueueRow(octets: Buffer): { readonly tenant: string; readonly sealed: Buffer } {
  const end = 1 + (octets[0] ?? 0);
  return { tenant: octets.toString('latin1', 1, end), sealed: octets.subarray(end) };
}
