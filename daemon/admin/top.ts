// What `postern top` shows: the queue, the disk and the rates of the last seconds in all, then the lanes,
// what matters first: those that stand still with mail waiting, then those that do most. Counting who is
// due is bounded, so that looking on costs the same whatever waits. It changes nothing.
import { statfs } from 'node:fs/promises';
import type { LaneView } from '../schedule/index.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { wrong, type Params } from './params.ts';
import { holdsOf, type Hold } from './shaping.ts';

/** Attempts that ended, a second over the last ten. */
export interface TopRates {
  readonly delivered: number;
  readonly deferred: number;
  readonly failed: number;
}

export interface TopLane extends TopRates {
  readonly lane: string;
  readonly active: number;
  readonly connections: number;
  /** Queues (tenant, domain, priority) with mail for it now. */
  readonly queues: number;
  /** Recipients who are due there, counted to `counted_to`; sources that lead to one site share them. */
  readonly due: number;
  readonly held?: Omit<Hold, 'lane'>;
}

export interface TopView {
  readonly at: number;
  readonly messages: number;
  readonly recipients: number;
  readonly segment_bytes: number;
  readonly live_bytes: number;
  readonly disk_free_bytes: number;
  /** `accepted`: messages a second. */
  readonly rates: TopRates & { readonly accepted: number };
  readonly active: number;
  /** Lanes there are; `lanes` has the first of them. */
  readonly lanes_in_all: number;
  readonly counted_to: number;
  readonly lanes: readonly TopLane[];
}

const LANES_DEFAULT = 50;
const LANES_MAX = 500;
// Entries of the index that one answer counts: some 10 ms.
const COUNTED = 10_000;
const COUNTED_OF_A_LANE = 1_000;

export function topOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return { top: (params) => view(desk, params) };
}

async function view(desk: Desk, params: Params): Promise<TopView> {
  const { flow, due, settings } = desk;
  if (flow === undefined || due === undefined) throw wrong('top needs a running daemon');
  const asked = params['lanes'];
  const most = typeof asked === 'number' && asked > 0 ? Math.min(Math.ceil(asked), LANES_MAX) : LANES_DEFAULT;
  const now = desk.clock.now();
  const all = desk.lanes();
  const shown = all.map((lane) => ({ ...lane, ...flow.rates(lane.lane) })).toSorted(mattersMore(now)).slice(0, most);
  const countedTo = Math.min(COUNTED_OF_A_LANE, Math.floor(COUNTED / Math.max(1, shown.length)));
  const { messages, recipients, segmentBytes, liveBytes } = desk.spool.counts();
  const { bavail, bsize } = await statfs(settings().server.dataDir);
  return {
    at: now, messages, recipients, segment_bytes: segmentBytes, live_bytes: liveBytes, disk_free_bytes: bavail * bsize, rates: flow.rates(),
    active: all.reduce((sum, { active }) => sum + active, 0), lanes_in_all: all.length, counted_to: countedTo,
    lanes: shown.map(({ lane, active, connections, queues, delivered, deferred, failed, ...rest }): TopLane => {
      const [hold] = holdsOf(desk, { lane, active, connections, queues, ...rest }, now);
      const held = hold === undefined ? {} : { held: { what: hold.what, since: hold.since, until: hold.until } };
      return { lane, active, connections, queues, due: due(lane, countedTo), delivered, deferred, failed, ...held };
    }),
  };
}

type Rated = LaneView & TopRates;

/** Stopped with mail waiting, then by what ends on it, then by what is at work and what waits. */
function mattersMore(now: number): (a: Rated, b: Rated) => number {
  const stopped = ({ queues, pausedUntil }: Rated): number => (queues > 0 && pausedUntil > now ? 1 : 0);
  const ends = ({ delivered, deferred, failed }: Rated): number => delivered + deferred + failed;
  return (a, b) => stopped(b) - stopped(a) || ends(b) - ends(a) || b.active - a.active || b.queues - a.queues || (a.lane < b.lane ? -1 : 1);
}
