// What the simulator has seen, from the receiver's side: how many connections were open at once, when each
// connection and each message came, how many messages one connection carried, and what was refused. Tests
// and benches judge a sender by it. Times are kept for the whole run (16 octets a message), so that any
// window can be asked about afterwards.
import type { Cap } from './providers.ts';

/** One receiver's record; counts are exact. */
export class SiteRecord {
  readonly connectTimes: number[] = [];
  /** When each transaction began (MAIL), refused ones too. */
  readonly mailTimes: number[] = [];
  readonly refusals = new Map<string, number>();
  /** Messages by the domain of their sender. */
  readonly senders = new Map<string, number>();
  open = 0;
  mostOpen = 0;
  accepted = 0;
  inClear = 0;
  mostPerConnection = 0;
  /** Messages by the address they came from. */
  readonly messagesFrom = new Map<string, number>();
  /** Connections by the address they came from. */
  readonly sources = new Map<string, number>();

  connected(at: number, from: string): void {
    this.connectTimes.push(at);
    this.open++;
    this.mostOpen = Math.max(this.mostOpen, this.open);
    this.sources.set(from, (this.sources.get(from) ?? 0) + 1);
  }

  ended(): void {
    this.open--;
  }

  refused(why: string): void {
    this.refusals.set(why, (this.refusals.get(why) ?? 0) + 1);
  }

  took(sender: string, onThisConnection: number, secure: boolean, from: string): void {
    this.messagesFrom.set(from, (this.messagesFrom.get(from) ?? 0) + 1);
    this.accepted++;
    if (!secure) this.inClear++;
    this.mostPerConnection = Math.max(this.mostPerConnection, onThisConnection);
    const domain = sender.slice(sender.lastIndexOf('@') + 1);
    this.senders.set(domain, (this.senders.get(domain) ?? 0) + 1);
  }
}

/** What a site's record comes to. */
export interface Peaks {
  readonly site: string;
  readonly accepted: number;
  readonly transactions: number;
  readonly connections: number;
  readonly connections_at_once: number;
  readonly messages_in_a_second: number;
  readonly messages_in_a_minute: number;
  readonly connections_in_a_minute: number;
  readonly messages_on_a_connection: number;
  readonly in_clear: number;
  readonly refused: Readonly<Record<string, number>>;
}

export function peaksOf(site: string, record: SiteRecord): Peaks {
  return {
    site,
    accepted: record.accepted,
    transactions: record.mailTimes.length,
    connections: record.connectTimes.length,
    connections_at_once: record.mostOpen,
    messages_in_a_second: mostWithin(record.mailTimes, 1_000),
    messages_in_a_minute: mostWithin(record.mailTimes, 60_000),
    connections_in_a_minute: mostWithin(record.connectTimes, 60_000),
    messages_on_a_connection: record.mostPerConnection,
    in_clear: record.inClear,
    refused: Object.fromEntries(record.refusals),
  };
}

/** The most of `times` (ascending) in any stretch shorter than `perMs`. */
export function mostWithin(times: readonly number[], perMs: number): number {
  let most = 0;
  let first = 0;
  for (const [last, at] of times.entries()) {
    while ((times[first] ?? at) <= at - perMs) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

/** How many of `times` came while their window, which ends with them, had its `count` already. */
export function overLimit(times: readonly number[], { count, perMs }: Cap): number {
  let over = 0;
  let first = 0;
  for (const [last, at] of times.entries()) {
    while ((times[first] ?? at) <= at - perMs) first++;
    if (last - first + 1 > count) over++;
  }
  return over;
}
