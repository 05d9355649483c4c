// A privacy policy holds only once people can read it: this looks whether the page of each version that
// is not yet known to be published answers with that very text, under one of the tenant's own page
// addresses, and tells the ledger. At start, after each reload, and every few minutes while one is
// missing. Until then the version is not in force; where none is, mail waits with a 451.
import type { Event, EventKind } from '../events/index.ts';
import { newEvent } from '../events/index.ts';
import type { Ledger } from '../ledger/index.ts';
import type { Clock, Log } from '../runtime/index.ts';
import type { Policy, Settings, Tenant } from '../settings/index.ts';

export interface PolicyWatchOptions {
  readonly settings: () => Settings;
  readonly ledger: Ledger;
  readonly clock: Clock;
  readonly log: Log;
  readonly record: (event: Event) => void;
}

export interface PolicyWatch {
  /** Looks now; resolves when every page that is missing was asked for once. */
  look(): Promise<void>;
  close(): Promise<void>;
}

// The page is our own in most houses, and a proxy is put right within minutes.
const AGAIN_MS = 5 * 60_000;
// A page of text on a healthy server answers within a second.
const PAGE_MS = 10_000;
// settings/source.ts takes no larger file either.
const PAGE_OCTETS = 4 * 1_048_576;
const SEEN: EventKind = 'policy-published';

export function watchPolicies(options: PolicyWatchOptions): PolicyWatch {
  let looking: Promise<void> = Promise.resolve();
  let cancel: (() => void) | undefined;
  let closed = false;
  const after = async (before: Promise<void>): Promise<void> => {
    await before;
    cancel?.();
    const missing = closed ? 0 : await lookOnce(options);
    if (missing > 0 && !closed) cancel = options.clock.after(AGAIN_MS, () => void look());
  };
  const look = (): Promise<void> => (looking = after(looking));
  return {
    look,
    async close() {
      closed = true;
      cancel?.();
      await looking;
    },
  };
}

async function lookOnce({ settings, ledger, clock, log, record }: PolicyWatchOptions): Promise<number> {
  let missing = 0;
  for (const tenant of settings().tenants.values()) {
    const waiting = ledger.unpublished(tenant.id);
    for (const policy of tenant.policies.filter(({ hash }) => waiting.has(hash))) {
      try {
        const faults = await faultsOf(tenant, policy);
        if (faults === undefined) {
          await ledger.published(tenant.id, policy.hash, 'postern');
          record(newEvent(SEEN, clock, { tenant: tenant.id, policy: policy.hash, by: 'postern', reason: `version ${policy.version} can be read` }));
          continue;
        }
        log.warn({ tenant: tenant.id, version: policy.version, tried: faults }, 'a policy version is not in force: its page does not show its text; put the page right, or say `postern policy publish` when it is published elsewhere');
      } catch (error) {
        log.warn({ tenant: tenant.id, error: String(error) }, 'a published policy could not be recorded; it is tried again');
      }
      missing++;
    }
  }
  return missing;
}

/** undefined: one of the tenant's pages shows this very text. */
async function faultsOf(tenant: Tenant, { hash, text }: Policy): Promise<readonly string[] | undefined> {
  const faults: string[] = [];
  for (const base of new Set(tenant.domains.map(({ pages }) => pages))) {
    const url = `${base}/policy/${hash}`;
    try {
      const answer = await fetch(url, { redirect: 'error', signal: AbortSignal.timeout(PAGE_MS) });
      const body = answer.status === 200 ? await readBounded(answer) : '';
      if (body === text) return undefined;
      faults.push(`${url}: ${answer.status === 200 ? 'another text' : `status ${answer.status}`}`);
    } catch (error) {
      const { cause } = error as { readonly cause?: unknown };
      faults.push(`${url}: ${cause instanceof Error ? cause.message : String(error)}`);
    }
  }
  return faults;
}

async function readBounded(answer: globalThis.Response): Promise<string> {
  const parts: Uint8Array[] = [];
  let octets = 0;
  for await (const part of answer.body ?? []) {
    octets += part.length;
    if (octets > PAGE_OCTETS) return '';
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}
