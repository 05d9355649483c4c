// The types a message wears on its way through the house, and nothing else. A message is a value
// that changes type as it moves; a room is a function from one type to the next. Each branded type
// is made only in its own room (the cast stands there, once), so that skipping a stage does not
// compile: Submitted -> Admitted -> Composed -> Stored on the way in, and
// Due -> Cleared -> Rendered -> Signed -> Outcome on each attempt.
import type { Reply } from './reply.ts';

declare const stage: unique symbol;
type Stage<Name extends string, Shape> = Shape & { readonly [stage]: Name };

/** Milliseconds since the Unix epoch. */
export type Instant = number;

/** What goes before what within one tenant; tenants take turns whatever they say. The first goes first. */
export const PRIORITIES = ['high', 'normal', 'low'] as const;
export type Priority = (typeof PRIORITIES)[number];

/** 26 characters of Crockford base32: 48 bits of time, 80 random bits; sorts by time, reveals no count. */
export type MessageId = string;

/** Octets [start, end) of the submitted message. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** Keyed hashes of one address under one tenant's address key, 16 octets each (design §4). */
export interface AddressHashes {
  readonly consent: Buffer;
  readonly suppression: Buffer;
  readonly family: Buffer;
}

/** RFC 3461 parameters of one recipient. */
export interface RecipientDsn {
  /** Empty means that none was given. */
  readonly notify: readonly ('NEVER' | 'SUCCESS' | 'FAILURE' | 'DELAY')[];
  /** `rfc822;address`, xtext already decoded. */
  readonly orcpt?: string;
}

export interface EnvelopeRecipient {
  /** Exactly as the application wrote it, without angle brackets; this is what the MX is told. */
  readonly wire: string;
  readonly dsn?: RecipientDsn;
}

export interface Envelope {
  /** '' is the null reverse-path. */
  readonly mailFrom: string;
  readonly recipients: readonly EnvelopeRecipient[];
  readonly smtpUtf8: boolean;
  readonly body: '7BIT' | '8BITMIME';
  readonly ret?: 'FULL' | 'HDRS';
  readonly envid?: string;
  /** REQUIRETLS (RFC 8689): to hosts that prove themselves and promise the same, or to nobody. */
  readonly requireTls?: true;
}

/** Where a message came from: always an authenticated credential, or Postern itself (a notice to a tenant). */
export interface Origin {
  readonly tenant: string;
  readonly stream: string;
  /** The credential's username; '' for a notice. */
  readonly credential: string;
  /**
   * `notice`: mail Postern itself writes to the tenant (a DSN). It needs no consent and is never tracked.
   * `invitation`: Postern asks a person to confirm a consent that waits for it; never tracked either.
   */
  readonly kind: 'relay' | 'notice' | 'invitation';
}

/** One inbound transaction, complete: DATA has ended and the bytes are canonical (CRLF only, dots unstuffed). */
export type Submitted = Stage<'submitted', {
  readonly id: MessageId;
  readonly origin: Origin;
  readonly envelope: Envelope;
  readonly raw: Buffer;
  readonly receivedAt: Instant;
  /** `ESMTPSA` and friends (RFC 3848), for the Received field. */
  readonly protocol: string;
}>;

/** How much may be learned of a person's opens; each includes less than the next. */
export const OPEN_MODES = ['none', 'aggregate', 'lastOpenDate', 'individual'] as const;
export type OpenMode = (typeof OPEN_MODES)[number];
export const CLICK_MODES = ['none', 'individual'] as const;
export type ClickMode = (typeof CLICK_MODES)[number];
export interface Tracking {
  readonly opens: OpenMode;
  readonly clicks: ClickMode;
}
export const NO_TRACKING: Tracking = Object.freeze({ opens: 'none', clicks: 'none' });

/** One admitted recipient: the address, its keys and the evidence the gate relied on. */
export interface AdmittedRecipient extends EnvelopeRecipient {
  /** Lower-cased A-label domain the MX look-up starts from. */
  readonly domain: string;
  readonly hashes: AddressHashes;
  /** The consent record relied on; '' where the stream needs none. */
  readonly evidence: string;
}

/** Every recipient has passed the gate at RCPT and the message has passed it at end of DATA. */
export type Admitted = Stage<'admitted', Omit<Submitted, typeof stage | 'envelope'> & {
  readonly envelope: Omit<Envelope, 'recipients'>;
  readonly recipients: readonly AdmittedRecipient[];
}>;

/** Parsed once; `plan` says where every later edit goes. Made by compose, opaque to everyone else. */
export type Composed = Stage<'composed', Omit<Admitted, typeof stage> & {
  readonly plan: Plan;
}>;

/** Byte offsets are into the submitted message. Plain JSON, so that it can be stored as it is. */
export interface Plan {
  readonly version: 1;
  /** The sending domain (its name) the message was accepted under: its links, return path and signature. */
  readonly domain: string;
  /** Offset of the first octet of the body (just past the empty line). */
  readonly bodyStart: number;
  /** Header fields that do not leave the house (Bcc, Return-Path, our own), whole lines with CRLF. */
  readonly removed: readonly Range[];
  /** Complete header lines (CRLF at the end) put before the submitted header, the same for every recipient. */
  readonly added: string;
  readonly parts: readonly PlannedPart[];
  /** The message already carried List-Unsubscribe: it is replaced, not doubled. */
  readonly subscribed: boolean;
  /** The application's own List-Unsubscribe stays (a transactional stream): ours is not added beside it. */
  readonly keepsUnsubscribe?: boolean;
  /** `TLS-Required: No` (RFC 8689 §3): what receivers promise of TLS need not be kept for this message. */
  readonly tlsOptional?: true;
  /** Several people get this very message: what they share in it names none of them. */
  readonly shared?: boolean;
  /** A placeholder of ours that does not exist: its message is refused. */
  readonly unknown?: string;
  /** Where a placeholder stands that nothing fills in, and why, `2: it is signed`: its message is refused. */
  readonly unfilled?: string;
  /** Text parts left untouched because they could not be read safely, with why; counted. */
  readonly untouched: readonly { readonly part: number; readonly why: string }[];
}

/** A text part in which something may change for a recipient who allows it. */
export interface PlannedPart {
  readonly range: Range;
  readonly encoding: 'identity' | 'quoted-printable' | 'base64';
  readonly charset: string;
  readonly edits: readonly PlannedEdit[];
}

/**
 * `start`/`end`: octets of the message, in base64 those of whole groups of four characters. An edit
 * replaces its range; a pixel has nothing to replace but what its groups hold.
 */
export interface PlannedEdit {
  /** `form`: where a form's fields go; `tracker`: somebody else's picture that counts opens; `placeholder`: the author asked for a link of ours. */
  readonly kind: 'link' | 'form' | 'pixel' | 'tracker' | 'placeholder';
  readonly start: number;
  readonly end: number;
  /** In base64: how many decoded octets at the start and at the end of the range stay. */
  readonly keep?: readonly [number, number];
  /** Where the link leads, character references decoded; the name of a placeholder; else ''. */
  readonly target: string;
}

/** On disk: both the body segment and the rows are durable. Only now may a 250 be said. */
export type Stored = Stage<'stored', { readonly id: MessageId; readonly storedAt: Instant }>;

/** One recipient of one stored message whose time has come. */
export type Due = Stage<'due', {
  readonly id: MessageId;
  /** Which recipient of the message: 0, 1, ... */
  readonly index: number;
  readonly message: MessageMeta;
  readonly recipient: QueuedRecipient;
}>;

/** What is stored of a message beside its body. */
export interface MessageMeta {
  readonly origin: Origin;
  readonly envelope: Omit<Envelope, 'recipients'>;
  readonly plan: Plan;
  readonly sizeBytes: number;
  readonly receivedAt: Instant;
  /** What the application calls the mailing (campaign.ts). */
  readonly campaign?: string;
}

/** What is stored of a recipient who waits. */
export interface QueuedRecipient extends AdmittedRecipient {
  /** Attempts already made. */
  readonly attempts: number;
  readonly nextAt: Instant;
  readonly expiresAt: Instant;
  readonly held: boolean;
  /** The last attempt's outcome in one line, '' before the first. */
  readonly lastReply: string;
}

/** The gate said yes again, now; `tracking` is this person's ceiling at this moment. */
export type Cleared = Stage<'cleared', Omit<Due, typeof stage> & {
  readonly tracking: Tracking;
  readonly evidence: string;
  readonly policy: string;
  readonly unsubscribable: boolean;
}>;

/** This recipient's bytes, not yet signed. `header` ends with CRLF and lacks the empty line; `body` is canonical. */
export type Rendered = Stage<'rendered', Omit<Cleared, typeof stage> & {
  readonly header: Buffer;
  /** In order; together the octets after the empty line. */
  readonly body: readonly Buffer[];
  /** The reverse-path of this attempt: an authenticated VERP token, '' for a notice. */
  readonly returnPath: string;
  /** How many links were rewritten, whether the pixel was added and how many trackers of others were there, for the event. */
  readonly links: number;
  readonly pixel: boolean;
  readonly trackers: number;
}>;

/** Complete: `head` is signatures + header + empty line. What is sent is head followed by body, nothing else. */
export type Signed = Stage<'signed', Omit<Rendered, typeof stage | 'header'> & {
  readonly head: Buffer;
  readonly signatures: readonly string[];
}>;

/** The phase an attempt ended in (design §5, RFC 5321 §4.5.3.2). */
export const PHASES = ['gate', 'dns', 'connect', 'tls', 'greet', 'mail', 'rcpt', 'data', 'final'] as const;
export type Phase = (typeof PHASES)[number];

interface OutcomeDetail {
  readonly phase: Phase;
  /** The MX that answered, '' where none did. */
  readonly host: string;
  /** What it said, where it said something. */
  readonly reply?: Reply;
  /** Enhanced status where we found out ourselves, such as 5.1.10 for a null MX. */
  readonly status?: string;
  /** One plain sentence. Never an address. */
  readonly reason: string;
  /** Bounce class (`config/bounces.yaml`), e.g. `bad-mailbox`, `quota`, `policy`, `dns`. */
  readonly class: string;
  readonly tls?: string;
  readonly delaysMs?: { readonly queue: number; readonly connect: number; readonly tls: number; readonly send: number };
}

/**
 * What one attempt came to. `suppressed` is the gate's no at the attempt: no connection was made.
 * `deadAddress` says that the mailbox does not exist: it becomes a hard-bounce suppression.
 */
export type Outcome =
  | ({ readonly kind: 'delivered' } & OutcomeDetail)
  | ({ readonly kind: 'deferred'; readonly retryAfterMs?: number } & OutcomeDetail)
  | ({ readonly kind: 'failed'; readonly deadAddress: boolean } & OutcomeDetail)
  | ({ readonly kind: 'suppressed'; readonly rule: string } & OutcomeDetail);
