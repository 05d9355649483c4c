// What an operator's command is about, walked over page by page: a page is looked at, and changed in one
// transaction, while the mail goes on in between. What is in every queue is looked for in all rows, so that a
// walk over millions takes its time but neither memory nor the event loop.
import { setImmediate } from 'node:timers/promises';
import type { Instant } from '../mail/index.ts';
import type { Committer } from './draft.ts';
import type { Filter, Found, QueueHead, QueueIndex } from './queues.ts';
import type { RecipientRow } from './rows.ts';

/** What becomes of a row; undefined: it stays as it is. */
export type Alter = (row: RecipientRow) => RecipientRow | 'remove' | undefined;

// A page takes a few milliseconds, as long as a transaction may be drawn up.
const PAGE_ROWS = 1_000;
// Most of the rows a campaign is looked for in are passed over quickly.
const LOOKED_AT_ROWS = 4_000;
// Who has no more than this is found along the index, whatever else waits; who has more, sooner along the rows.
const FEW_ROWS = 10_000;

/** What a filter means, from just behind `from`; a page may be empty. */
export async function *pages(index: QueueIndex, filter: Filter, from?: Buffer): AsyncGenerator<Found[]> {
  if (filter.campaign !== undefined && filter.id === undefined) return yield* alongRows(index, filter, from);
  for (let after = from; ;) {
    const seen = take(index.scan(filter, after), PAGE_ROWS);
    after = seen.at(-1)?.cursor;
    if (after === undefined) return;
    yield seen.filter((one) => index.means(one, filter));
    await setImmediate();
  }
}

async function *alongRows(index: QueueIndex, filter: Filter, from?: Buffer): AsyncGenerator<Found[]> {
  for (let at: Buffer = from === undefined ? Buffer.alloc(0) : Buffer.concat([from, Buffer.of(0)]); ;) {
    const { found, next } = index.rowsFrom(filter, at, LOOKED_AT_ROWS);
    const some = found.filter((one) => index.means(one, filter));
    for (let first = 0; first < some.length; first += PAGE_ROWS) yield some.slice(first, first + PAGE_ROWS);
    if (next === undefined) return;
    at = next;
    await setImmediate();
  }
}

/** Hears after each commit how many recipients of a tenant were changed by it. */
export type Counted = (tenant: string, recipients: number) => void;

/** Whom a walk tells what. */
export interface Listeners {
  readonly counted: Counted;
  /** A queue may have become due sooner. */
  readonly ready: (head: QueueHead) => void;
}

/** Changes what a filter means, each row once. Resolves with how many were changed. */
export async function alterEach(index: QueueIndex, committer: Committer, filter: Filter, alter: Alter, tell: Listeners): Promise<number> {
  let changed = 0;
  let seen = 0;
  const each = async (some: readonly Found[]): Promise<void> => {
    seen += some.length;
    for (const [tenant, count] of await alterPage(index, committer, some, alter, tell.ready)) {
      changed += count;
      tell.counted(tenant, count);
    }
  };
  const broad = filter.id === undefined && filter.domain === undefined && filter.person === undefined;
  for await (const some of pages(index, filter)) {
    await each(some);
    if (!broad || seen < FEW_ROWS) continue;
    // In the order of the index each row lies on another page of the disk. What is done already stays as it is.
    for await (const others of alongRows(index, filter)) await each(others);
    break;
  }
  return changed;
}

/** One transaction. @returns how many rows of which tenant were changed */
async function alterPage(index: QueueIndex, committer: Committer, some: readonly Found[], alter: Alter, say: Listeners['ready']): Promise<ReadonlyMap<string, number>> {
  if (some.length === 0) return new Map();
  const ready = new Map<string, { readonly queue: Buffer; readonly at: Instant }>();
  const counts = await committer.change(false, (draft) => {
    const changed = new Map<string, number>();
    for (const { id, index: number } of some) {
      const row = draft.recipient(id, number);
      const altered = row === undefined ? undefined : alter(row);
      if (row === undefined || altered === undefined) continue;
      const tenant = index.name(row.queue)?.tenant ?? '';
      changed.set(tenant, (changed.get(tenant) ?? 0) + 1);
      if (altered === 'remove') {
        draft.removeRecipient(id, number);
        continue;
      }
      draft.putRecipient(id, number, altered, row);
      const queue = altered.queue.toString('hex');
      const at = Math.min(altered.nextAt, ready.get(queue)?.at ?? Infinity);
      if (!altered.held) ready.set(queue, { queue: Buffer.from(altered.queue), at });
    }
    return changed;
  });
  for (const { queue, at } of ready.values()) {
    const head = index.head(queue, at);
    if (head !== undefined) say(head);
  }
  return counts;
}

/** The first `limit`, or fewer. */
export function take(found: Iterable<Found>, limit: number): Found[] {
  const some: Found[] = [];
  if (limit <= 0) return some;
  for (const one of found) {
    some.push(one);
    if (some.length >= limit) break;
  }
  return some;
}
