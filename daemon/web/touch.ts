// What a hit means, asked of the rooms that know: the token (compose), the ledger, the gate. Callers may
// rely on: the tenant is the one whose key opened the token, never one that the request names; consent is
// asked as of now; and what cannot be told throws, so that the caller decides what an unknown means.
import { judgeRecipient, policyInForce } from '../gate/index.ts';
import { NOBODY, openToken, type Claim } from '../compose/index.ts';
import type { Event } from '../events/index.ts';
import type { Ledger } from '../ledger/index.ts';
import { NO_TRACKING, type Tracking } from '../mail/index.ts';
import type { Clock, Keyring, Log, Metrics } from '../runtime/index.ts';
import type { Settings } from '../settings/index.ts';

export interface PagesOptions {
  readonly settings: () => Settings;
  readonly keyring: Keyring;
  readonly ledger: Pick<Ledger, 'facts' | 'give' | 'withdraw' | 'suppress' | 'lift' | 'erase' | 'unpublished' | 'tracking'>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  /** `sealed` is what only the tenant may read, already encrypted. */
  readonly record: (event: Event, sealed?: Buffer) => void;
}

/** A token that opened, and the tenant whose key opened it. */
export interface Touch {
  readonly tenant: string;
  readonly claim: Claim;
}

/** The touch of this kind that a token stands for; undefined for anything else, such as one tenant's token under another's host. */
export function touchOf(options: PagesOptions, kind: Claim['kind'], token: string, host: string | undefined): Touch | undefined {
  const touch = openToken(options.keyring, token);
  if (touch?.claim.kind !== kind) return undefined;
  // A host nobody has is let pass: a tenant's old mail still leads to the address it had.
  const owners = hostsOf(options.settings()).get(host?.toLowerCase() ?? '');
  return owners === undefined || owners.has(touch.tenant) ? touch : undefined;
}

const HOSTS = new WeakMap<Settings, ReadonlyMap<string, ReadonlySet<string>>>();

/** Whose pages stand under which host; one table for each snapshot. */
export function hostsOf(settings: Settings): ReadonlyMap<string, ReadonlySet<string>> {
  let hosts = HOSTS.get(settings);
  if (hosts === undefined) {
    const made = new Map<string, Set<string>>();
    for (const { id, domains } of settings.tenants.values()) {
      for (const { pages } of domains) {
        const { host } = new URL(pages);
        made.set(host, (made.get(host) ?? new Set()).add(id));
      }
    }
    hosts = made;
    HOSTS.set(settings, hosts);
  }
  return hosts;
}

/** What may be learned from this touch now; NO_TRACKING for a person who may not be mailed. @throws MailError E_STORE */
export async function trackingNow(options: PagesOptions, { tenant: id, claim }: Touch): Promise<Tracking> {
  const settings = options.settings();
  const tenant = settings.tenants.get(id);
  const stream = tenant?.streams.get(claim.stream);
  // A stream that has been renamed or re-purposed since is not the one the person agreed to.
  if (tenant === undefined || stream === undefined || stream.purpose !== claim.purpose) return NO_TRACKING;
  const now = options.clock.now();
  if (claim.recipient === NOBODY) {
    // The pixel that is the same in every copy: there is no person to ask about, only the policy.
    const policy = policyInForce(tenant, now, options.ledger.unpublished(id));
    return policy === undefined || policy.tracking.opens === 'none' ? NO_TRACKING : { opens: 'aggregate', clicks: 'none' };
  }
  const facts = await options.ledger.facts(id, claim.purpose, claim.stream, claim.hashes);
  // Of the domain the mail went to the token says nothing; what its profile allowed then is the token's own ceiling.
  const verdict = judgeRecipient({ tenant, stream, now, facts, ...(facts.consent?.jurisdiction !== undefined && { profiles: settings }) });
  return verdict.answer === 'yes' ? verdict.tracking : NO_TRACKING;
}

/** Withdraws consent for the touch's purpose and suppresses it; both are durable when it resolves. @throws MailError E_STORE */
export async function withdraw({ ledger }: PagesOptions, { tenant, claim }: Touch): Promise<void> {
  // Suppression first: it alone stops the mail, should the second step fail and nobody ask again.
  await ledger.suppress(tenant, { hashes: claim.hashes, scope: `purpose:${claim.purpose}`, cause: 'unsubscribe', by: 'recipient' });
  await ledger.withdraw(tenant, claim.purpose, claim.hashes, 'recipient');
}

/** The pseudonym of the person in events. */
export function personOf({ claim }: Touch): string {
  return claim.hashes.consent.toString('hex').slice(0, 12);
}
