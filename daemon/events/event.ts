// What happens to mail, as facts in the past tense. The same object is the journal line, the metric and
// (later) the webhook. It holds no address, subject or URL: the person is `person`, a keyed pseudonym
// that only the tenant's key can make, and what the remote host said stands in it with addresses masked.
// What must be known in full for the tenant (`sealed`) is under the tenant's payload key.
import type { Instant, MessageId, Phase } from '../mail/index.ts';

/** Closed list; each kind is documented in daemon/README.md. */
export const EVENT_KINDS = [
  'accepted', 'refused', 'delivered', 'deferred', 'failed', 'suppressed', 'expired', 'dropped', 'held', 'released',
  'opened', 'clicked', 'unsubscribed', 'bounced', 'complained',
  'consent', 'suppression', 'erased', 'restricted', 'policy-published', 'suspended', 'resumed', 'reloaded', 'reload-failed', 'soft-refused', 'automation-began', 'automation-ended', 'started', 'stopped',
] as const;
export type EventKind = (typeof EVENT_KINDS)[number];

/** What a person touched: the tenant's to read, for a purpose of its policy, and not the operator's. */
export function isTracking({ event }: Pick<Event, 'event'>): boolean {
  return event === 'opened' || event === 'clicked';
}

/** One fact. `id` is quoted in replies as `ref`. */
export interface Event {
  readonly id: string;
  readonly at: Instant;
  readonly event: EventKind;
  readonly tenant?: string;
  readonly stream?: string;
  readonly message_id?: MessageId;
  readonly recipient?: number;
  /** The first 12 hex digits of the recipient's consent hash. */
  readonly person?: string;
  readonly lane?: string;
  readonly host?: string;
  readonly phase?: Phase;
  readonly code?: number;
  readonly status?: string;
  readonly reply?: string;
  readonly class?: string;
  readonly rule?: string;
  readonly reason?: string;
  readonly policy?: string;
  readonly evidence?: string;
  readonly links?: number;
  readonly pixel?: boolean;
  /** Trackers of others in a copy of who does not allow them. */
  readonly trackers?: number;
  readonly signatures?: readonly string[];
  readonly size_bytes?: number;
  readonly recipients?: number;
  readonly attempts?: number;
  readonly next_at?: Instant;
  readonly tls?: string;
  readonly delays_ms?: { readonly queue: number; readonly connect: number; readonly tls: number; readonly send: number };
  /** Who did it, for admin events: `cli`, `reload`, `recipient`, `bounce`. */
  readonly by?: string;
}
