// What opens leave behind where nobody may be singled out, in rows that cannot hold more than the mode
// allows. `aggregate`: three counters for each message and UTC day, of no person. `lastOpenDate`: one date
// for each person and purpose, three octets under a veil of the person's own secret, overwritten by the next
// one; a time, a number of opens or a message have no room there. Callers may rely on: what record() was
// given is durable when it resolves; whether a person still allows a date is asked again inside the
// transaction, so that a withdrawal before it wins; a date whose person was erased reads as absent. Nothing
// here enters the log: what is overwritten must be gone. CNIL 2026-042, Garante 284/2026.
import { createHash } from 'node:crypto';
import { MailError, OPEN_MODES, type AddressHashes } from '../mail/index.ts';
import { randomOctets, type Keyring } from '../runtime/index.ts';
import type { LedgerStore, StoreSnapshot } from '../store/index.ts';
import type { PersonKeys } from './person-keys.ts';
import { decodeConsent, slotOf, type ConsentRecord } from './records.ts';
import { HASH_AT, REST_AT, TABLE, consentKey, namedKey, rowKey } from './row-keys.ts';
import type { Turn } from './stored-ledger.ts';
import { keyStream, veil } from './veil.ts';

/** Who fetched a pixel: a person's program, an image proxy in its place, or another machine. */
export const OPENERS = ['people', 'proxies', 'machines'] as const;
export type Opener = (typeof OPENERS)[number];

/** Opens of one message on one day; or, where a message had one reader only, of one stream. */
export interface OpenCount {
  readonly stream: string;
  /** A message id, or '' for all messages of the stream that are not counted apart. */
  readonly message: string;
  /** Days since 1970 (UTC). */
  readonly day: number;
  readonly opens: Readonly<Record<Opener, number>>;
}

/** That somebody opened mail of this purpose on a day. */
export interface OpenDate {
  readonly hashes: Pick<AddressHashes, 'consent'>;
  readonly purpose: string;
  readonly day: number;
}

export interface LastOpen {
  readonly purpose: string;
  /** Days since 1970 (UTC). */
  readonly day: number;
}

/** All promises reject with MailError E_STORE when the store fails. */
export interface TrackingRows {
  /** Adds to the counters and moves the dates; durable when it resolves. */
  record(tenant: string, counts: readonly OpenCount[], dates: readonly OpenDate[]): Promise<void>;
  /** The counters of one message, or of all, by message and day. */
  counts(tenant: string, message?: string): AsyncIterable<OpenCount>;
  /** The last open of this person, by purpose. */
  lastOpens(tenant: string, hashes: AddressHashes): Promise<readonly LastOpen[]>;
}

interface Parts {
  readonly store: LedgerStore;
  readonly keyring: Keyring;
  readonly people: PersonKeys;
  readonly change: (tenant: string, keys: readonly Buffer[], decide: (turn: Turn) => void) => Promise<void>;
}

export function openTracking(parts: Parts): TrackingRows {
  return {
    record: (tenant, counts, dates) => record(parts, tenant, counts, dates),
    counts: (tenant, message) => listCounts(parts.store, tenant, message),
    lastOpens: (tenant, hashes) => lastOpens(parts, tenant, hashes),
  };
}

async function record({ keyring, people, change }: Parts, tenant: string, counts: readonly OpenCount[], dates: readonly OpenDate[]): Promise<void> {
  const countKeys = counts.map((count) => countKey(tenant, count));
  const consentKeys = dates.map(({ hashes, purpose }) => rowKey(TABLE.consent, tenant, hashes.consent, purpose));
  const dateKeys = consentKeys.map(lastOpenKeyOf);
  const keys = keyring.tenant(tenant);
  await change(tenant, [...countKeys, ...consentKeys, ...dateKeys], (turn) => {
    for (const [i, { opens }] of counts.entries()) {
      const key = countKeys[i] ?? Buffer.of();
      const before = turn.get(key);
      turn.put(key, encodeCounts(before === undefined ? opens : sum(decodeCounts(before), opens)));
    }
    for (const [i, { purpose, day }] of dates.entries()) {
      const [consent, key] = [turn.get(consentKeys[i] ?? Buffer.of()), dateKeys[i] ?? Buffer.of()];
      const slot = consent === undefined ? undefined : slotOf(consent);
      const secret = slot === undefined ? undefined : people.person(tenant, slot);
      if (consent === undefined || slot === undefined || secret === undefined) continue;
      if (!mayKeepLastOpen(decodeConsent(consent, purpose, keys.people, secret).record)) continue;
      const before = turn.get(key);
      // Written once a day and person, however often it is opened.
      if (before === undefined || decodeDate(before, keys.people, secret) !== day) turn.put(key, encodeDate(day, slot, keys.people, secret));
    }
  });
}

/** Whether the person's own choice leaves room for a date. */
export function mayKeepLastOpen({ state, tracking }: ConsentRecord): boolean {
  return state === 'given' && OPEN_MODES.indexOf(tracking.opens) >= OPEN_MODES.indexOf('lastOpenDate');
}

/** Where the last open of the person and purpose of a consent row stands: the same key in another table. */
export function lastOpenKeyOf(consent: Buffer): Buffer {
  const key = Buffer.from(consent);
  key[0] = TABLE.lastOpen;
  return key;
}

async function lastOpens({ store, keyring, people }: Parts, tenant: string, hashes: AddressHashes): Promise<readonly LastOpen[]> {
  const found: LastOpen[] = [];
  for await (const { key, value } of store.scan(lastOpenKeyOf(consentKey(tenant, hashes)))) {
    const secret = people.person(tenant, slotOfDate(value));
    if (secret !== undefined) found.push({ purpose: key.toString('utf8', REST_AT), day: decodeDate(value, keyring.tenant(tenant).people, secret) });
  }
  return found;
}

/** The counters that stand in a store, or stood in a snapshot of one. */
export async function* listCounts(store: Pick<StoreSnapshot, 'scan'>, tenant: string, message?: string): AsyncGenerator<OpenCount> {
  for await (const { key, value } of store.scan(namedKey(TABLE.opens, tenant, message === undefined ? '' : `${message}/`))) {
    yield { ...readCountName(key.toString('utf8', HASH_AT)), opens: decodeCounts(value) };
  }
}

// ---- how they stand on disk ----------------------------------------------------------------------

const VERSION = 1;
// version (1) · slot (5) · nonce (6), in clear; day (3), veiled.
const NONCE_AT = 6;
const DAY_AT = 12;
export const DATE_OCTETS = 15;
const NONCE_OCTETS = 6;
const DAY_OCTETS = 3;

const veils = new WeakMap<Buffer, Buffer>();

/** The consent rows' key streams are numbered by leaf; these have a key of their own, so that none is ever used twice. */
function veilKey(people: Buffer): Buffer {
  const known = veils.get(people);
  if (known !== undefined) return known;
  const made = createHash('sha256').update('last-open\0').update(people).digest();
  veils.set(people, made);
  return made;
}

function encodeDate(day: number, slot: number, people: Buffer, secret: Buffer): Buffer {
  const octets = Buffer.alloc(DATE_OCTETS);
  octets[0] = VERSION;
  octets.writeUIntBE(slot, 1, 5);
  // Old pages of the database keep what was overwritten: two dates never share a key stream.
  randomOctets(NONCE_OCTETS).copy(octets, NONCE_AT);
  octets.writeUIntBE(day, DAY_AT, DAY_OCTETS);
  veil(octets.subarray(DAY_AT), keyStream(veilKey(people), secret, octets.readUIntBE(NONCE_AT, NONCE_OCTETS), DAY_OCTETS));
  return octets;
}

function decodeDate(octets: Buffer, people: Buffer, secret: Buffer): number {
  slotOfDate(octets);
  const clear = veil(Buffer.from(octets.subarray(DAY_AT)), keyStream(veilKey(people), secret, octets.readUIntBE(NONCE_AT, NONCE_OCTETS), DAY_OCTETS));
  return clear.readUIntBE(0, DAY_OCTETS);
}

/** @throws MailError E_STORE when the octets are not a date of ours */
export function slotOfDate(octets: Buffer): number {
  if (octets[0] !== VERSION || octets.length !== DATE_OCTETS) throw new MailError('E_STORE', 'a date of a last open is of a version this program does not know');
  return octets.readUIntBE(1, 5);
}

const COUNT_OCTETS = 6;

export function encodeCounts(opens: OpenCount['opens']): Buffer {
  const octets = Buffer.alloc(1 + OPENERS.length * COUNT_OCTETS);
  octets[0] = VERSION;
  for (const [i, opener] of OPENERS.entries()) octets.writeUIntBE(opens[opener], 1 + i * COUNT_OCTETS, COUNT_OCTETS);
  return octets;
}

function decodeCounts(octets: Buffer): OpenCount['opens'] {
  if (octets[0] !== VERSION || octets.length !== 1 + OPENERS.length * COUNT_OCTETS) throw new MailError('E_STORE', 'a counter of opens is of a version this program does not know');
  const [people, proxies, machines] = OPENERS.map((_, i) => octets.readUIntBE(1 + i * COUNT_OCTETS, COUNT_OCTETS));
  return { people: people ?? 0, proxies: proxies ?? 0, machines: machines ?? 0 };
}

function sum(a: OpenCount['opens'], b: OpenCount['opens']): OpenCount['opens'] {
  return { people: a.people + b.people, proxies: a.proxies + b.proxies, machines: a.machines + b.machines };
}

/** @throws RangeError for a stream whose name a settings file could not have */
export function countKey(tenant: string, { message, stream, day }: Omit<OpenCount, 'opens'>): Buffer {
  if (!Number.isSafeInteger(day) || day < 0 || day >= 100_000) throw new RangeError(`day ${day}`);
  return namedKey(TABLE.opens, tenant, `${message}/${String(day).padStart(5, '0')}/${stream}`);
}

function readCountName(name: string): Omit<OpenCount, 'opens'> {
  const [, message, day, stream] = /^([^/]*)\/(\d{5})\/(.*)$/s.exec(name) ?? [];
  if (message === undefined || stream === undefined) throw new MailError('E_STORE', 'a counter of opens has a key that is not ours');
  return { message, day: Number(day), stream };
}
