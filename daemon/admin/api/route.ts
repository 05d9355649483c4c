// What a route is: data, and one function. server.ts makes each into a fastify route with its checks, and
// the OpenAPI document is made from the same shapes. Callers may rely on: when `run` is called the caller
// is known, holds the scope, is within its rate, and body, query and path have the shapes named here.
import type { Readable } from 'node:stream';
import type { z } from 'zod';
import { newEvent, type EventKind, type Journal } from '../../events/index.ts';
import type { Ledger } from '../../ledger/index.ts';
import type { AddressHashes } from '../../mail/index.ts';
import type { Clock, Keyring, Log } from '../../runtime/index.ts';
import type { ApiScope, Settings } from '../../settings/index.ts';
import type { Problem } from './problem.ts';
import type { Access } from './tokens.ts';

/** What routes work on. */
export interface ApiDesk {
  readonly settings: () => Settings;
  readonly ledger: Ledger;
  readonly journal: Pick<Journal, 'record' | 'trace' | 'person'>;
  readonly keyring: Pick<Keyring, 'tenant'>;
  readonly clock: Clock;
  readonly log: Log;
}

/** One request. */
export interface Call<Body = unknown, Query = unknown, Path = unknown> extends Access {
  readonly body: Body;
  readonly query: Query;
  readonly path: Path;
}

export interface Route<Body = unknown, Query = unknown, Path = unknown> {
  readonly method: 'GET' | 'POST';
  /** As fastify writes it, `/v1/receipts/:leaf`. */
  readonly url: string;
  /** undefined: any valid token. */
  readonly scope?: ApiScope;
  readonly summary: string;
  readonly body?: z.ZodType<Body>;
  readonly query?: z.ZodType<Query>;
  readonly path?: z.ZodType<Path>;
  /** Of the answer; of each line where the answer is a stream of them. */
  readonly answer: z.ZodType;
  readonly lines?: boolean;
  /** It changes something: an Idempotency-Key is heeded. */
  readonly changes?: boolean;
  /** How many things a body asks for, where it may be many. */
  items?(body: Body): number;
  run(desk: ApiDesk, call: Call<Body, Query, Path>): Promise<object | Problem | Readable>;
}

/** A route whose `run` knows what its shapes give. */
export function route<Body = unknown, Query = unknown, Path = unknown>(declared: Route<Body, Query, Path>): Route {
  return declared as Route;
}

/** Every change is an event, as the operator's are. */
export function record({ journal, clock }: ApiDesk, { tenant, by }: Access, kind: EventKind, hashes: AddressHashes | undefined, reason: string, evidence?: string): void {
  journal.record(newEvent(kind, clock, {
    tenant: tenant.id, reason, by, ...(hashes && { person: hashes.consent.toString('hex', 0, 6) }), ...(evidence !== undefined && { evidence }),
  }));
}

// The ledger holds the thread for some 40 microseconds an entry: mail in flight does not notice ten ms.
const SLICE = 250;

/** Hands entries to the ledger in durable transactions of a few; the results are in the order of the entries. */
export async function inSlices<Entry, Result>(entries: readonly Entry[], write: (slice: readonly Entry[]) => Promise<readonly Result[]>): Promise<readonly Result[]> {
  const results: Result[] = [];
  for (let from = 0; from < entries.length; from += SLICE) results.push(...await write(entries.slice(from, from + SLICE)));
  return results;
}
