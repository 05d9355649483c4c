// The operator's hand on the queue, and what the journal tells of a message. A change to the queue says
// what it is for; everything at once has to be asked for by name. What was asked for is an event and, for
// each tenant it met, a leaf of its log: how many recipients, never whose nor which domain.
import { isTracking, newEvent, type Event, type EventKind } from '../events/index.ts';
import type { AddressHashes } from '../mail/index.ts';
import type { QueueFilter } from '../spool/index.ts';
import type { Operation } from './control.ts';
import { noteAct, type Desk } from './desk.ts';
import { limitOf, messageId, text, wrong, type Params } from './params.ts';
import { show, table } from './show.ts';

export function queueOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    'queue.list': async (params) => {
      const rows = await desk.spool.list({ ...await filterOf(desk, params), limit: limitOf(params), ...(typeof params['after'] === 'string' && { after: params['after'] }) });
      return { counts: desk.spool.counts(), rows: rows.map(({ recipient, ...row }) => ({ ...row, ...visible(recipient) })), lanes: desk.lanes() };
    },
    'queue.show': async (params) => {
      const shown = desk.spool.show(messageId(params));
      if (shown === undefined) throw wrong('no such message waits; `postern trace ID` tells what became of it');
      return { meta: shown.meta, recipients: shown.recipients.map((row) => visible(row)) };
    },
    'queue.retry': async (params, progress) => {
      let done = 0;
      return { changed: await desk.spool.retry(await someFilter(desk, params), (_tenant, count) => progress({ recipients: done += count })) };
    },
    'queue.hold': (params, progress) => changeQueue(desk, params, 'held', (filter, counted) => desk.spool.hold(filter, counted), progress),
    'queue.release': (params, progress) => changeQueue(desk, params, 'released', (filter, counted) => desk.spool.release(filter, counted), progress),
    'queue.drop': (params, progress) => changeQueue(desk, params, 'dropped', (filter, counted) => desk.spool.drop(filter, counted), progress),
    trace: async (params) => {
      const events: Event[] = [];
      // What people opened and followed is not the operator's to see.
      for await (const event of desk.journal.trace(messageId(params))) if (!isTracking(event)) events.push(event);
      return { events };
    },
  };
}

type Change = (filter: QueueFilter, counted: (tenant: string, recipients: number) => void) => Promise<number>;

async function changeQueue(desk: Desk, params: Params, kind: EventKind, change: Change, progress: (p: object) => void): Promise<unknown> {
  const filter = await someFilter(desk, params);
  const counts = new Map<string, number>();
  let done = 0;
  const changed = await change(filter, (tenant, count) => {
    counts.set(tenant, (counts.get(tenant) ?? 0) + count);
    progress({ recipients: done += count });
  });
  // Each tenant is told its own number; the logs of those who have left the configuration rest.
  for (const [tenant, recipients] of counts) if (desk.settings().tenants.has(tenant)) await noteAct(desk, tenant, `queue-${kind}`, { recipients });
  desk.journal.record(newEvent(kind, desk.clock, {
    by: 'cli', recipients: changed, ...(filter.id !== undefined && { message_id: filter.id }), ...(filter.tenant !== undefined && { tenant: filter.tenant }),
  }));
  return { changed };
}

async function filterOf(desk: Desk, params: Params): Promise<QueueFilter> {
  const [domain, campaign] = [text(params, 'domain').toLowerCase(), text(params, 'campaign')];
  const tenants = [...desk.settings().tenants.keys()];
  // A campaign is its tenant's: two may use one name.
  const tenant = text(params, 'tenant') || (campaign !== '' && tenants.length === 1 ? tenants[0] ?? '' : '');
  if (campaign !== '' && tenant === '') throw wrong(`say whose campaign, with --tenant; there are: ${tenants.join(', ')}`);
  // Mail of a tenant who has left the configuration can be seen to; a name nobody has is a slip. Asked for
  // with a domain or a campaign it would be given keys.
  if (tenant !== '' && !desk.settings().tenants.has(tenant) && (domain !== '' || campaign !== '' || (await desk.spool.list({ tenant, limit: 1 })).length === 0)) {
    throw wrong(`no tenant ${JSON.stringify(tenant)}; there are: ${tenants.join(', ')}`);
  }
  return { ...(text(params, 'id') !== '' && { id: messageId(params) }), ...(tenant !== '' && { tenant }), ...(domain !== '' && { domain }), ...(campaign !== '' && { campaign: desk.spool.campaign(tenant, campaign) }) };
}

async function someFilter(desk: Desk, params: Params): Promise<QueueFilter> {
  const filter = await filterOf(desk, params);
  if (Object.keys(filter).length === 0 && params['all'] !== true) throw wrong('say which: a message id, --tenant, --domain, --campaign, or --all');
  return filter;
}

function visible<T extends { readonly hashes: AddressHashes }>({ hashes, ...row }: T): Omit<T, 'hashes'> & { person: string } {
  return { ...row, person: hashes.consent.toString('hex', 0, 6) };
}

// What a person looks for in a line; --json has the rest.
const COLUMNS = ['id', 'index', 'tenant', 'wire', 'attempts', 'nextAt', 'held', 'lastReply'] as const;

/** `queue list` for people: counts, rows, and how to see more of them. */
export function queueText(listed: unknown): string {
  const { rows, lanes: _lanes, ...rest } = listed as { readonly rows: readonly Readonly<Record<string, unknown>>[]; readonly lanes: unknown; readonly [key: string]: unknown };
  const last = rows.at(-1)?.['cursor'];
  return [
    show(rest), '', table(rows.map((row) => Object.fromEntries(COLUMNS.map((key) => [key, key === 'held' && row[key] !== true ? '' : row[key]])))),
    ...(last === undefined ? [] : ['', `what comes behind: --after ${String(last)}`]),
  ].join('\n');
}
