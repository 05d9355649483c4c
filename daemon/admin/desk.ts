// What the operator's operations work on, and what they all leave behind: an event in the journal, and for
// acts the ledger does not log of its own accord a leaf in the tenant's log. No leaf of that kind ever
// names a person: it outlives everybody's erasure.
import { newEvent, type EventKind, type Journal } from '../events/index.ts';
import type { Ledger } from '../ledger/index.ts';
import type { AddressHashes } from '../mail/index.ts';
import type { Clock, Keyring } from '../runtime/index.ts';
import type { Deliverer, RouteResult } from '../deliver/index.ts';
import type { Automation, Flow, LaneView, Schedule } from '../schedule/index.ts';
import type { Settings, Tenant } from '../settings/index.ts';
import type { Spool } from '../spool/index.ts';

/** What the operations work on; main.ts or the CLI opens it. */
export interface Desk {
  readonly settings: () => Settings;
  readonly ledger: Ledger;
  readonly keyring: Keyring;
  readonly spool: Spool;
  readonly journal: Journal;
  readonly clock: Clock;
  /** Ends a tenant's open sessions. */
  readonly expel: (tenant: string) => void;
  /** Empty when no daemon runs. */
  readonly lanes: () => readonly LaneView[];
  /** What receivers' replies have brought about; absent when no daemon runs. */
  readonly automation?: Pick<Automation, 'list' | 'lift'>;
  /** Until when attempts of a lane wait for leave to connect or to send; absent when no daemon runs. */
  readonly waits?: Deliverer['waits'];
  /** What went through lately, and who is due on the way to a lane; absent when no daemon runs. */
  readonly flow?: Pick<Flow, 'rates'>;
  readonly due?: Schedule<RouteResult>['due'];
  /** Where a domain's mail goes, as the daemon remembers it; absent when none runs. */
  readonly route?: (domain: string) => Promise<RouteResult>;
}

/** Records an event of the operator's. */
export function record(desk: Desk, kind: EventKind, tenant: Tenant, hashes: AddressHashes | undefined, reason: string, evidence?: string): void {
  desk.journal.record(newEvent(kind, desk.clock, {
    tenant: tenant.id, reason, by: 'cli', ...(hashes && { person: pseudonymOf(hashes) }), ...(evidence !== undefined && { evidence }),
  }));
}

/** Puts an act into the tenant's log. */
export async function noteAct(desk: Desk, tenant: string, act: string, fields: Readonly<Record<string, unknown>> = {}): Promise<void> {
  await desk.ledger.note(tenant, 'admin', 'cli', { act, ...fields });
}

/** How events call a person: the first 12 hex digits of the consent hash. */
export function pseudonymOf({ consent }: AddressHashes): string {
  return consent.toString('hex', 0, 6);
}
