// What an operator's command is about, walked over page by page: a page is looked at, and changed in one
// transaction, while the mail goes on in between. A person is looked for in all that waits of the filter's
// queues and a campaign in all rows, so that a walk over millions takes its time but neither memory nor the
// event loop.
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
const CAMPAIGN_ROWS = 4_000;

/** What a filter means, from just behind `from`; a page may be empty. */
export async function *pages(index: QueueIndex, filter: Filter, from?: Buffer): AsyncGenerator<Found[]> {
  if (filter.campaign !== undefined && filter.id === undefined) return yield* campaignPages(index, filter, from);
  for (let after = from; ;) {
    const seen = take(index.scan(filter, after), PAGE_ROWS);
    after = seen.at(-1)?.cursor;
    if (after === undefined) return;
    yield seen.filter((one) => index.means(one, filter));
    await setImmediate();
  }
}

async function *campaignPages(index: QueueIndex, filter: Filter, from?: Buffer): AsyncGenerator<Found[]> {
  for (let at: Buffer = from === undefined ? Buffer.alloc(0) : Buffer.concat([from, Buffer.of(0)]); ;) {
    const { found, next } = index.campaignFrom(filter, at, CAMPAIGN_ROWS);
    const some = found.filter((one) => index.means(one, filter));
    for (let first = 0; first < some.length; first += PAGE_ROWS) yield some.slice(first, first + PAGE_ROWS);
    if (next === undefined) return;
    at = next;
    await setImmediate();
  }
}

/** Changes what a filter means; `say` hears of queues that may have become due sooner. Resolves with how many were changed. */
export async function alterEach(index: QueueIndex, committer: Committer, filter: Filter, alter: Alter, say: (head: QueueHead) => void): Promise<number> {
  let changed = 0;
  for await (const some of pages(index, filter)) {
    if (some.length === 0) continue;
    const ready = new Map<string, { readonly queue: Buffer; readonly at: Instant }>();
    changed += await committer.change(false, (draft) => {
      let count = 0;
      for (const { id, index: number } of some) {
        const row = draft.recipient(id, number);
        const altered = row === undefined ? undefined : alter(row);
        if (altered === undefined) continue;
        count++;
        if (altered === 'remove') {
          draft.removeRecipient(id, number);
          continue;
        }
        draft.putRecipient(id, number, altered, row);
        const queue = altered.queue.toString('hex');
        const at = Math.min(altered.nextAt, ready.get(queue)?.at ?? Infinity);
        if (!altered.held) ready.set(queue, { queue: Buffer.from(altered.queue), at });
      }
      return count;
    });
    for (const { queue, at } of ready.values()) {
      const head = index.head(queue, at);
      if (head !== undefined) say(head);
    }
  }
  return changed;
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
