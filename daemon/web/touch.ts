// What the pages need of the other rooms, as narrow shapes: a token that has been opened, the ledger's
// three calls, and the gate's answer. main passes the real ones in; what they do is theirs.
import type { AddressHashes, MessageId, OpenMode, Tracking } from '../mail/index.ts';
import type { Clock, Log, Metrics } from '../runtime/index.ts';
import type { Event } from '../events/index.ts';
import type { Settings } from '../settings/index.ts';

/** What a link of ours carries, sealed. */
export interface Claim {
  readonly kind: 'click' | 'open' | 'unsubscribe';
  readonly message: MessageId;
  readonly recipient: number;
  readonly stream: string;
  readonly purpose: string;
  readonly hashes: AddressHashes;
  /** Where a click leads. */
  readonly target?: string | undefined;
  /** What was allowed for opens when the message was rendered. */
  readonly mode?: OpenMode | undefined;
}

/** A token that opened, and the tenant whose key opened it. */
export interface Touch {
  readonly tenant: string;
  readonly claim: Claim;
}

export interface PagesOptions {
  readonly settings: () => Settings;
  /** Opens a token; undefined for anything that is not one of ours. */
  readonly readToken: (text: string) => Touch | undefined;
  /** What may be learned of this person now; undefined when they may not be mailed, or when it cannot be told. */
  readonly mayTrack: (touch: Touch) => Promise<Tracking | undefined>;
  /** Withdraws consent for the claim's purpose and suppresses it; resolves when both are durable. Repeating it is harmless. */
  readonly unsubscribe: (touch: Touch) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly record: (event: Event) => void;
}
