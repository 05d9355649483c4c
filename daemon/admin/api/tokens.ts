// Who asks: the bearer token of a request, looked up by the hash of its secret. Callers may rely on: the
// tenant is the token's and nothing else's; a token of a tenant that is suspended, of none, a wrong one
// and none at all are answered alike; an address that brings too many wrong ones is not heard for a while,
// save with a token that has worked from there before; and a store that does not answer is never a yes.
// RFC 6750 §2.1.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { Ledger } from '../../ledger/index.ts';
import type { Clock, Metrics } from '../../runtime/index.ts';
import type { ApiToken, Settings, Tenant } from '../../settings/index.ts';
import { Counters } from './counters.ts';
import { Problem } from './problem.ts';

/** A request's standing. */
export interface Access {
  readonly tenant: Tenant;
  readonly token: ApiToken;
  /** How the ledger and the events name who asked. */
  readonly by: string;
}

export interface TokensParts {
  readonly settings: () => Settings;
  readonly ledger: Pick<Ledger, 'suspension'>;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

// As for SMTP logins: an attack from more addresses than this forgets the oldest.
const REMEMBERED = 50_000;
const FAILURES_MS = 600_000;
// RFC 6750 §2.1: b64token. The longest anybody makes is far shorter, and a hash is taken of all of it.
const BEARER = /^Bearer +([A-Za-z0-9._~+/-]{1,512}=*)$/i;
const NOBODY = Buffer.alloc(32);

export class Tokens {
  readonly #parts: TokensParts;
  readonly #failures = new Counters(FAILURES_MS, REMEMBERED);
  /** `address hash` of tokens that worked. */
  readonly #proven = new Set<string>();
  /** One table for each snapshot of the settings, gone with it. */
  readonly #tables = new WeakMap<Settings, ReadonlyMap<string, Access>>();

  constructor(parts: TokensParts) {
    this.#parts = parts;
  }

  /** @throws MailError E_STORE */
  async check(authorization: string | undefined, address: string): Promise<Access | Problem> {
    const { settings, ledger, clock, metrics } = this.#parts;
    const secret = BEARER.exec(authorization ?? '')?.[1];
    if (secret === undefined) return new Problem('unauthorized');
    const hash = createHash('sha256').update(secret).digest();
    // What is looked up is a hash, which nobody who guesses secrets can steer: its time tells nothing.
    const known = this.#tableOf(settings()).get(hash.toString('hex'));
    const matches = timingSafeEqual(hash, known?.token.secretHash ?? NOBODY);
    const pair = `${address} ${hash.toString('hex')}`;
    const { used, resetMs } = this.#failures.look(address, clock.now());
    if (used >= settings().server.limits.authFailures && !this.#proven.has(pair)) return new Problem('too-many-failures', { retryAfterS: Math.ceil(resetMs / 1_000) });
    if (known === undefined || !matches) {
      this.#failures.add(address, clock.now());
      metrics.authFailures.inc();
      return new Problem('unauthorized');
    }
    if (await ledger.suspension(known.tenant.id) !== undefined) return new Problem('unauthorized');
    this.#prove(pair);
    return known;
  }

  #prove(pair: string): void {
    this.#proven.add(pair);
    if (this.#proven.size <= REMEMBERED) return;
    const [oldest = ''] = this.#proven;
    this.#proven.delete(oldest);
  }

  #tableOf(settings: Settings): ReadonlyMap<string, Access> {
    let table = this.#tables.get(settings);
    if (table === undefined) {
      table = new Map([...settings.tenants.values()].flatMap((tenant) =>
        (tenant.apiTokens ?? []).map((token): [string, Access] => [token.secretHash.toString('hex'), { tenant, token, by: `api:${token.id}` }])));
      this.#tables.set(settings, table);
    }
    return table;
  }
}
