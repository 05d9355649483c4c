// What the ledger keeps of a person, and how it stands on disk. A consent record takes about 130 octets
// of value and 40 of key; no record holds an address, only keyed hashes and what was agreed. Field names
// follow ISO/IEC TS 27560 where it has one. A record that cannot be read is E_STORE: the gate then
// cannot tell, which is never a yes.
import { CLICK_MODES, MailError, OPEN_MODES, type BasisFact, type Instant, type Tracking } from '../mail/index.ts';

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

export interface ConsentRecord {
  /** The evidence id that verdicts, events and receipts quote. */
  readonly id: string;
  readonly purpose: string;
  readonly state: ConsentState;
  /** `gdpr_6_1_a`, `eprivacy_13_2`, ... */
  readonly legalBasis: string;
  /** SHA-256 of the policy version in force when it was collected, hex. */
  readonly policyHash: string;
  /** `form`, `import`, `paper`, ... */
  readonly method: string;
  readonly evidence: Evidence;
  readonly givenAt: Instant;
  /** Absent: until withdrawn. */
  readonly expiresAt?: Instant;
  /** What the person allowed; the policies may allow less. */
  readonly tracking: Tracking;
  /** What is known of how it was collected. */
  readonly facts?: readonly BasisFact[];
  /** Profile id the person was collected under, such as `de`; absent or '' when nobody said. */
  readonly jurisdiction?: string;
  /** The last change of state, and by whom (`cli`, `import`, `recipient`, ...). */
  readonly changedAt: Instant;
  readonly changedBy: string;
}

export const SUPPRESSION_CAUSES = ['hard-bounce', 'complaint', 'unsubscribe', 'objection', 'erasure', 'manual'] as const;
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
    return this.bytes(Buffer.from(text));
  }

  bytes(octets: Buffer): this {
    if (octets.length > TEXT_OCTETS) throw new MailError('E_CONTROL', `a field of a consent or suppression is longer than ${TEXT_OCTETS} octets`);
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

  hex(): string {
    const [from, to] = this.#span();
    return this.#octets.toString('hex', from, to);
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

const HAS = { expiry: 1, form: 2, ip: 4, optIn: 8 } as const;

/** @throws MailError E_CONTROL when a field is too long to be stored */
export function encodeConsent(r: ConsentRecord): Buffer {
  const { evidence } = r;
  const has =
    (r.expiresAt === undefined ? 0 : HAS.expiry) |
    (evidence.formHash === undefined ? 0 : HAS.form) |
    (evidence.ipPseudonym === undefined ? 0 : HAS.ip) |
    (evidence.doubleOptIn === undefined ? 0 : HAS.optIn);
  const w = new Writer()
    .octets(VERSION, has, CONSENT_STATES.indexOf(r.state), OPEN_MODES.indexOf(r.tracking.opens), CLICK_MODES.indexOf(r.tracking.clicks))
    .text(r.id).text(r.purpose).text(r.legalBasis).bytes(hashOctets(r.policyHash)).text(r.method)
    .text(evidence.source).time(evidence.time).time(r.givenAt).time(r.changedAt).text(r.changedBy);
  if (r.expiresAt !== undefined) w.time(r.expiresAt);
  if (evidence.formHash !== undefined) w.bytes(hashOctets(evidence.formHash));
  if (evidence.ipPseudonym !== undefined) w.text(evidence.ipPseudonym);
  if (evidence.doubleOptIn !== undefined) w.time(evidence.doubleOptIn.requestedAt).time(evidence.doubleOptIn.confirmedAt);
  return w.done();
}

function hashOctets(hex: string): Buffer {
  if (!/^[0-9a-f]{64}$/.test(hex)) throw new MailError('E_CONTROL', 'a policy or form hash is not 64 hex digits');
  return Buffer.from(hex, 'hex');
}

/** @throws MailError E_STORE when the octets are not a record of ours */
export function decodeConsent(octets: Buffer): ConsentRecord {
  const r = new Reader(octets);
  const has = r.octet();
  const state = r.one(CONSENT_STATES);
  const tracking = { opens: r.one(OPEN_MODES), clicks: r.one(CLICK_MODES) };
  const id = r.text();
  const purpose = r.text();
  const legalBasis = r.text();
  const policyHash = r.hex();
  const method = r.text();
  const source = r.text();
  const time = r.time();
  const givenAt = r.time();
  const changedAt = r.time();
  const changedBy = r.text();
  const expiry = (has & HAS.expiry) === 0 ? {} : { expiresAt: r.time() };
  const form = (has & HAS.form) === 0 ? {} : { formHash: r.hex() };
  const ip = (has & HAS.ip) === 0 ? {} : { ipPseudonym: r.text() };
  const optIn = (has & HAS.optIn) === 0 ? {} : { doubleOptIn: readOptIn(r) };
  return { id, purpose, state, legalBasis, policyHash, method, evidence: { source, time, ...form, ...ip, ...optIn }, givenAt, ...expiry, tracking, changedAt, changedBy };
}

function readOptIn(r: Reader): { requestedAt: Instant; confirmedAt?: Instant } {
  const requestedAt = r.time();
  const confirmedAt = r.time();
  return confirmedAt === 0 ? { requestedAt } : { requestedAt, confirmedAt };
}

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
