// What the ledger keeps of a person, and how it stands on disk. A consent row takes about 90 octets of
// value and 40 of key. It holds what a decision needs, veiled under the person's own secret; how the
// consent came about stands in the log (log.ts), under the person's evidence secret. No row holds an
// address, only keyed hashes. Field names follow ISO/IEC TS 27560 where it has one. A record that cannot
// be read is E_STORE: the gate then cannot tell, which is never a yes.
import { BASIS_FACTS, CLICK_MODES, MailError, OPEN_MODES, type BasisFact, type Instant, type Tracking } from '../mail/index.ts';
import { keyStream, veil } from './veil.ts';

export const CONSENT_STATES = ['pending', 'given', 'withdrawn', 'refused', 'expired'] as const;
export type ConsentState = (typeof CONSENT_STATES)[number];

/** Where a consent comes from: what is shown when somebody asks "why do you mail me?". */
export interface Evidence {
  /** Form, file or system, in the tenant's words. */
  readonly source: string;
  readonly time: Instant;
  /** SHA-256 of the form as it was shown, hex. */
  readonly formHash?: string;
  /** Keyed pseudonym of the address the form was sent from. */
  readonly ipPseudonym?: string;
  readonly doubleOptIn?: { readonly requestedAt: Instant; readonly confirmedAt?: Instant };
}

/** What a decision needs of a consent. */
export interface ConsentRecord {
  /** The evidence id that verdicts, events and receipts quote: the leaf of the tenant's log that recorded it. */
  readonly id: string;
  readonly purpose: string;
  readonly state: ConsentState;
  /** `gdpr_6_1_a`, `eprivacy_13_2`, ... */
  readonly legalBasis: string;
  /** SHA-256 of the policy version in force when it was collected, hex. */
  readonly policyHash: string;
  /** When the person said it: the time of the evidence. */
  readonly givenAt: Instant;
  /** Absent: until withdrawn. */
  readonly expiresAt?: Instant;
  /** What the person allowed; the policies may allow less. */
  readonly tracking: Tracking;
  /** What is known of how it was collected. */
  readonly facts?: readonly BasisFact[];
  /** Profile id the person was collected under, such as `de`; absent or '' when nobody said. */
  readonly jurisdiction?: string;
  /** The last change of state. */
  readonly changedAt: Instant;
}

/** A consent with how it came about, read from the log. */
export interface ConsentStatement extends ConsentRecord {
  /** `form`, `import`, `paper`, ...; '' where the evidence was destroyed. */
  readonly method: string;
  readonly evidence: Evidence;
  /** Who changed it last (`cli`, `import`, `recipient`, ...). */
  readonly changedBy: string;
}

export const SUPPRESSION_CAUSES = ['hard-bounce', 'complaint', 'unsubscribe', 'objection', 'erasure', 'manual', 'restriction', 'pause'] as const;
export type SuppressionCause = (typeof SUPPRESSION_CAUSES)[number];

export type SuppressionScope = 'all' | `purpose:${string}` | `stream:${string}`;

export interface Suppression {
  readonly id: string;
  readonly scope: SuppressionScope;
  readonly cause: SuppressionCause;
  readonly since: Instant;
  /** Absent: for ever. */
  readonly until?: Instant;
  readonly by: string;
}

export interface Suspension {
  readonly id: string;
  readonly cause: string;
  readonly since: Instant;
  readonly by: string;
}

// The first octet of every value; a reader refuses what it does not know.
const VERSION = 1;
const TEXT_OCTETS = 255;

/** Fields one after the other: times take 6 octets, texts one for their length. */
class Writer {
  readonly #parts: Buffer[] = [];

  octets(...values: number[]): this {
    this.#parts.push(Buffer.from(values));
    return this;
  }

  time(at: Instant | undefined): this {
    const octets = Buffer.alloc(6);
    octets.writeUIntBE(at ?? 0, 0, 6);
    this.#parts.push(octets);
    return this;
  }

  text(text: string): this {
    const octets = Buffer.from(text);
    if (octets.length > TEXT_OCTETS) throw new MailError('E_CONTROL', `a field of a suppression is longer than ${TEXT_OCTETS} octets`);
    this.#parts.push(Buffer.of(octets.length), octets);
    return this;
  }


  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

class Reader {
  readonly #octets: Buffer;
  #at = 0;

  constructor(octets: Buffer) {
    this.#octets = octets;
    if (this.octet() !== VERSION) throw new MailError('E_STORE', 'a ledger record is of a version this program does not know');
  }

  get more(): boolean {
    return this.#at < this.#octets.length;
  }

  octet(): number {
    const value = this.#octets[this.#at++];
    if (value === undefined) throw new MailError('E_STORE', 'a ledger record is cut short');
    return value;
  }

  time(): Instant {
    this.#at += 6;
    if (this.#at > this.#octets.length) throw new MailError('E_STORE', 'a ledger record is cut short');
    return this.#octets.readUIntBE(this.#at - 6, 6);
  }

  text(): string {
    const [from, to] = this.#span();
    return this.#octets.toString('utf8', from, to);
  }

  one<T>(list: readonly T[]): T {
    const value = list[this.octet()];
    if (value === undefined) throw new MailError('E_STORE', 'a ledger record has a value this program does not know');
    return value;
  }

  #span(): [number, number] {
    const length = this.octet();
    const from = this.#at;
    this.#at += length;
    if (this.#at > this.#octets.length) throw new MailError('E_STORE', 'a ledger record is cut short');
    return [from, this.#at];
  }
}

/** A consent row: the record, the slot of the person's secrets and the leaf that wrote it last. */
export interface ConsentRow {
  readonly record: ConsentRecord;
  readonly slot: number;
  readonly leaf: number;
}

// version (1) · slot (5) · leaf (6), in clear: without them the rest cannot be read.
const CLEAR_OCTETS = 12;

/** Where a row's secrets lie, without reading the rest. @throws MailError E_STORE */
export function slotOf(octets: Buffer): number {
  if (octets[0] !== VERSION || octets.length <= CLEAR_OCTETS) throw new MailError('E_STORE', 'a consent row is of a version this program does not know');
  return octets.readUIntBE(1, 5);
}

/** @throws MailError E_CONTROL when a field is too long to be stored */
export function encodeConsent({ record: r, slot, leaf }: ConsentRow, key: Buffer, secret: Buffer): Buffer {
  if (!/^[0-9a-f]{64}$/.test(r.policyHash)) throw new MailError('E_CONTROL', 'a policy hash is not 64 hex digits');
  const basis = Buffer.byteLength(r.legalBasis);
  const place = Buffer.byteLength(r.jurisdiction ?? '');
  const purpose = Buffer.byteLength(r.purpose);
  if (Math.max(basis, place, purpose) > TEXT_OCTETS) throw new MailError('E_CONTROL', `a field of a consent is longer than ${TEXT_OCTETS} octets`);
  const octets = Buffer.allocUnsafe(CLEAR_OCTETS + 61 + basis + place);
  octets[0] = VERSION;
  octets.writeUIntBE(slot, 1, 5);
  octets.writeUIntBE(leaf, 6, 6);
  let at = CLEAR_OCTETS;
  octets[at++] = CONSENT_STATES.indexOf(r.state);
  octets[at++] = OPEN_MODES.indexOf(r.tracking.opens) * 16 + CLICK_MODES.indexOf(r.tracking.clicks);
  octets[at++] = (r.facts ?? []).reduce((bits, fact) => bits | (1 << BASIS_FACTS.indexOf(fact)), 0);
  at += octets.write(r.policyHash, at, 'hex');
  for (const time of [Number(r.id), r.givenAt, r.changedAt, r.expiresAt ?? 0]) at = octets.writeUIntBE(time, at, 6);
  octets[at++] = basis;
  at += octets.write(r.legalBasis, at);
  octets[at++] = place;
  octets.write(r.jurisdiction ?? '', at);
  veil(octets.subarray(CLEAR_OCTETS), keyStream(key, secret, leaf, octets.length - CLEAR_OCTETS));
  return octets;
}

/** Reads a row. @throws MailError E_STORE when they are not a row of ours */
export function decodeConsent(octets: Buffer, purpose: string, key: Buffer, secret: Buffer): ConsentRow {
  const slot = slotOf(octets);
  const leaf = octets.readUIntBE(6, 6);
  const clear = veil(Buffer.from(octets.subarray(CLEAR_OCTETS)), keyStream(key, secret, leaf, octets.length - CLEAR_OCTETS));
  const basisOctets = clear[59] ?? 0;
  const state = CONSENT_STATES[clear[0] ?? 255];
  const opens = OPEN_MODES[(clear[1] ?? 255) >> 4];
  const clicks = CLICK_MODES[(clear[1] ?? 255) & 15];
  if (clear.length < 61 || clear.length !== 61 + basisOctets + (clear[60 + basisOctets] ?? 255) || state === undefined || opens === undefined || clicks === undefined) {
    throw new MailError('E_STORE', 'a consent row does not open with its keys, or is damaged');
  }
  const expiresAt = clear.readUIntBE(53, 6);
  const bits = clear[2] ?? 0;
  const record: { -readonly [Key in keyof ConsentRecord]: ConsentRecord[Key] } = {
    id: String(clear.readUIntBE(35, 6)), purpose, state, legalBasis: clear.toString('utf8', 60, 60 + basisOctets), policyHash: clear.toString('hex', 3, 35),
    givenAt: clear.readUIntBE(41, 6), changedAt: clear.readUIntBE(47, 6), tracking: TRACKING[clear[1] ?? 255] ?? { opens, clicks },
  };
  if (expiresAt !== 0) record.expiresAt = expiresAt;
  if (bits !== 0) record.facts = BASIS_FACTS.filter((_, i) => (bits & (1 << i)) !== 0);
  if (clear.length > 61 + basisOctets) record.jurisdiction = clear.toString('utf8', 61 + basisOctets);
  return { slot, leaf, record };
}

// Of the few there are, one object each: a decision makes none.
const TRACKING: readonly Tracking[] = OPEN_MODES.reduce<Tracking[]>((table, opens, i) => {
  for (const [j, clicks] of CLICK_MODES.entries()) table[i * 16 + j] = Object.freeze({ opens, clicks });
  return table;
}, []);

/** All suppressions of one hash, in one value: two reads tell everything about a person. */
export function encodeSuppressions(list: readonly Suppression[]): Buffer {
  const w = new Writer().octets(VERSION);
  for (const s of list) {
    w.octets(SUPPRESSION_CAUSES.indexOf(s.cause)).text(s.id).text(s.scope).time(s.since).time(s.until).text(s.by);
  }
  return w.done();
}

/** @throws MailError E_STORE when the octets are not a record of ours */
export function decodeSuppressions(octets: Buffer): Suppression[] {
  const r = new Reader(octets);
  const list: Suppression[] = [];
  while (r.more) {
    const cause = r.one(SUPPRESSION_CAUSES);
    const id = r.text();
    const scope = parseScope(r.text());
    if (scope === undefined) throw new MailError('E_STORE', 'a suppression has a scope this program does not know');
    const since = r.time();
    const until = r.time();
    list.push({ id, scope, cause, since, ...(until === 0 ? {} : { until }), by: r.text() });
  }
  return list;
}

/** `all`, `purpose:<name>` or `stream:<name>`; undefined for anything else. */
export function parseScope(text: string): SuppressionScope | undefined {
  if (text === 'all') return 'all';
  const m = /^(purpose|stream):([^\s:]{1,100})$/.exec(text);
  if (m === null) return undefined;
  return m[1] === 'purpose' ? `purpose:${m[2] ?? ''}` : `stream:${m[2] ?? ''}`;
}

/** @throws MailError E_CONTROL when a field is too long to be stored */
export function encodeSuspension(s: Suspension): Buffer {
  return new Writer().octets(VERSION).text(s.id).text(s.cause).time(s.since).text(s.by).done();
}

/** @throws MailError E_STORE when the octets are not a record of ours */
export function decodeSuspension(octets: Buffer): Suspension {
  const r = new Reader(octets);
  const id = r.text();
  const cause = r.text();
  return { id, cause, since: r.time(), by: r.text() };
}
