// What a person gets from a tenant, as the preference page shows it: one line for each purpose of the policy
// in force, told from the same facts the gate decides by. Callers may rely on: nothing is shown as stopped
// that would be sent, for a state is read from the ledger at each request; what cannot be read throws.
import { policyInForce } from '../gate/index.ts';
import type { ConsentRecord, Suppression } from '../ledger/index.ts';
import type { Policy, Stream, Tenant } from '../settings/index.ts';
import type { PagesOptions, Touch } from './touch.ts';

/** `needed`: mail that rests on no consent and is not marketing. */
export type PurposeState = 'on' | 'off' | 'pending' | 'paused' | 'stopped' | 'needed';

export interface PurposeLine {
  readonly purpose: string;
  readonly state: PurposeState;
  readonly consent: ConsentRecord | undefined;
  /** Ends a pause. */
  readonly until?: number;
}

export interface Standing {
  readonly tenant: Tenant;
  /** undefined: none is in force, so that nothing can be agreed to. */
  readonly policy: Policy | undefined;
  readonly lines: readonly PurposeLine[];
  readonly erased: boolean;
  /** Until when what the person can choose is paused. */
  readonly pausedUntil: number | undefined;
}

/** @throws MailError E_STORE */
export async function standingOf({ ledger, clock }: PagesOptions, tenant: Tenant, { claim }: Touch): Promise<Standing> {
  const now = clock.now();
  const policy = policyInForce(tenant, now, ledger.unpublished(tenant.id));
  const streams = [...tenant.streams.values()];
  const lines: PurposeLine[] = [];
  let erased = false;
  let pausedUntil: number | undefined;
  for (const purpose of policy?.purposes ?? []) {
    const mine = streams.filter((stream) => stream.purpose === purpose);
    const { consent, suppressions } = await ledger.facts(tenant.id, purpose, mine[0]?.id ?? '', claim.hashes);
    const held = suppressions.filter(({ until }) => until === undefined || until > now);
    erased ||= held.some(({ cause }) => cause === 'erasure');
    const pause = held.find(({ cause }) => cause === 'pause');
    if (pause?.until !== undefined && isChoice(mine)) pausedUntil = Math.max(pause.until, pausedUntil ?? 0);
    if (mine.length > 0) lines.push({ purpose, consent, state: stateOf(mine, consent, held, now), ...(pause?.until !== undefined && { until: pause.until }) });
  }
  return { tenant, policy, lines, erased, pausedUntil };
}

/** Whether a person may take this mail or leave it, here. */
export const isChoice = (streams: readonly Stream[]): boolean => streams.some((stream) => stream.consentRequired || stream.class === 'marketing');

function stateOf(streams: readonly Stream[], consent: ConsentRecord | undefined, held: readonly Suppression[], now: number): PurposeState {
  // Only an unsubscribe gives way to a later yes, and a pause ends; the rest is not the page's to lift.
  if (held.some(({ cause }) => cause !== 'unsubscribe' && cause !== 'pause')) return 'stopped';
  if (!isChoice(streams)) return 'needed';
  const state = consent?.expiresAt !== undefined && consent.expiresAt <= now ? 'expired' : consent?.state;
  if (state === 'pending') return 'pending';
  if (held.some(({ cause }) => cause === 'unsubscribe') || state === 'withdrawn' || state === 'refused') return 'off';
  if (state !== 'given' && streams.every((stream) => stream.consentRequired)) return 'off';
  return held.some(({ cause }) => cause === 'pause') ? 'paused' : 'on';
}
