// MTA-STS: which hosts may take a domain's mail, as the domain publishes it over HTTPS, so that who forges its
// DNS or strips STARTTLS gets nothing. Callers may rely on: a policy once fetched holds for its max_age,
// whatever becomes of the record or the page meanwhile; a page counts only over a verified certificate,
// without redirects, from a public address and within its limits; a failed fetch is not repeated for a while.
// Policies outlive a restart, but for those of the last minute, or who blocks the page would have it forgotten. RFC 8461.
import { request } from 'node:https';
import { isIP, type LookupFunction } from 'node:net';
import type { Resolver } from '../dns/index.ts';
import type { StsUnread } from './tls-results.ts';
import type { Clock, Kept, Log } from '../runtime/index.ts';

export interface StsPolicy {
  readonly mode: 'enforce' | 'testing' | 'none';
  /** Host names, or `*.` and a name for one label more; lower case. */
  readonly mx: readonly string[];
  readonly maxAgeMs: number;
}

export interface StsOptions {
  readonly resolver: Pick<Resolver, 'txt' | 'addresses'>;
  readonly clock: Clock;
  readonly log: Log;
  readonly allowed: (address: string) => boolean;
  /** Told of each policy that was announced and could not be had; the next is told after a while. */
  readonly failed?: (failed: StsUnread) => void;
  /** Where policies outlive a restart; without it they do not. */
  readonly kept?: Kept<StsState>;
  /** For tests. */
  readonly port?: number;
  readonly ca?: Buffer;
}

// RFC 8461 §3.3: 64 KiB is the least a sender should take, and a policy of ten hosts is a thousandth of it.
const MAX_OCTETS = 65_536;
// RFC 8461 §3.3 suggests a minute; mail waits for it, and a page that is slower is not there.
const FETCH_MS = 15_000;
// RFC 8461 §3.2: at most a year.
const MAX_AGE_S = 31_557_600;
const FAILED_MS = 300_000;
const DAY_MS = 86_400_000;
// A file of megabytes at the most, written whole.
const WRITE_MS = 60_000;
// Two hundred octets each; beyond it the longest unused goes.
const KEPT = 20_000;

/** Policies by domain, the longest unused first. */
export type StsState = readonly (readonly [domain: string, known: Known])[];

interface Known {
  readonly id: string;
  readonly policy: StsPolicy | undefined;
  readonly until: number;
  /** From here on it is fetched anew beside the mail, so that who cuts us off at its end gains nothing. */
  readonly staleAt: number;
}

export class MtaSts {
  readonly #options: StsOptions;
  readonly #known = new Map<string, Known>();
  readonly #failed = new Map<string, number>();
  readonly #running = new Map<string, Promise<StsPolicy | undefined>>();
  /** Something has changed and is not written yet. */
  #stopTimer: (() => void) | undefined;

  constructor(options: StsOptions) {
    this.#options = options;
    for (const [domain, known] of options.kept?.state ?? []) if (known.until > options.clock.now()) this.#known.set(domain, known);
  }

  /** Writes down what has changed. */
  close(): void {
    this.#stopTimer?.();
    if (this.#stopTimer !== undefined) this.#write();
  }

  /** The policy that holds for this domain now; undefined: none does. Never rejects. */
  async policyFor(domain: string): Promise<StsPolicy | undefined> {
    const { resolver, clock } = this.#options;
    const kept = this.#known.get(domain);
    const held = kept !== undefined && kept.until > clock.now() ? kept : undefined;
    const id = idIn(await resolver.txt(`_mta-sts.${domain}`));
    // RFC 8461 §5.1: what was promised stays promised, though the record be gone.
    if (id === undefined || (this.#failed.get(domain) ?? 0) > clock.now()) return held?.policy;
    if (id !== held?.id) return (await this.#renew(domain, id)) ?? held?.policy;
    // Nobody waits for it, and it does not reject.
    if (held.staleAt <= clock.now()) void this.#renew(domain, id);
    return held.policy;
  }

  /** Fetches the policy and keeps it, once for all who ask meanwhile; undefined when it does not come, which is remembered for a while. */
  #renew(domain: string, id: string): Promise<StsPolicy | undefined> {
    const running = this.#running.get(domain);
    if (running !== undefined) return running;
    const started = this.#fetchAndKeep(domain, id).finally(() => this.#running.delete(domain));
    this.#running.set(domain, started);
    return started;
  }

  async #fetchAndKeep(domain: string, id: string): Promise<StsPolicy | undefined> {
    const { clock, log } = this.#options;
    let page: string | undefined;
    try {
      page = await this.#fetch(domain);
      const policy = parsePolicy(page);
      // RFC 8461 §10.2 suggests a fetch a day.
      this.#keep(domain, { id, policy, until: clock.now() + policy.maxAgeMs, staleAt: clock.now() + Math.min(DAY_MS, policy.maxAgeMs / 2) });
      return policy;
    } catch (error) {
      log.info({ reason: error instanceof Error ? error.message : String(error) }, 'an MTA-STS policy could not be fetched');
      this.#options.failed?.({ domain, unread: page !== undefined ? 'sts-policy-invalid' : isAboutCertificate(error) ? 'sts-webpki-invalid' : 'sts-policy-fetch-error' });
      if (this.#failed.size >= KEPT) this.#failed.clear();
      this.#failed.set(domain, clock.now() + FAILED_MS);
      return undefined;
    }
  }

  #keep(domain: string, known: Known): void {
    this.#known.delete(domain);
    this.#known.set(domain, known);
    const [oldest] = this.#known.keys();
    if (this.#known.size > KEPT && oldest !== undefined) this.#known.delete(oldest);
    this.#stopTimer ??= this.#options.clock.after(WRITE_MS, () => this.#write());
  }

  #write(): void {
    this.#stopTimer = undefined;
    this.#options.kept?.keep([...this.#known]);
  }

  async #fetch(domain: string): Promise<string> {
    const { resolver, allowed, port = 443, ca } = this.#options;
    const host = `mta-sts.${domain}`;
    const found = await resolver.addresses(host);
    const address = found.kind === 'found' ? found.records.find(allowed) : undefined;
    if (address === undefined) throw new Error('the policy host has no address');
    const lookup: LookupFunction = (_name, options, done) => (options.all === true ? done(null, [{ address, family: isIP(address) }]) : done(null, address, isIP(address)));
    return new Promise((resolve, reject) => {
      const call = request({ host, port, path: '/.well-known/mta-sts.txt', servername: host, lookup, agent: false, signal: AbortSignal.timeout(FETCH_MS), ...(ca && { ca }), headers: { Accept: 'text/plain' } }, (answer) => {
        // RFC 8461 §3.3: redirects are not followed, and other types are no policy.
        if (answer.statusCode !== 200 || !/^text\/plain\s*(?:;|$)/i.test(answer.headers['content-type'] ?? '')) return void call.destroy(new Error(`the policy host answered ${answer.statusCode} ${answer.headers['content-type'] ?? ''}`));
        const parts: Buffer[] = [];
        let octets = 0;
        answer.on('data', (part: Buffer) => {
          parts.push(part);
          if ((octets += part.length) > MAX_OCTETS) call.destroy(new Error('the policy is too long'));
        });
        answer.on('error', reject);
        answer.on('end', () => resolve(Buffer.concat(parts).toString('utf8')));
        return undefined;
      });
      call.on('error', reject);
      call.end();
    });
  }
}

/** Node's and OpenSSL's names of what is wrong with a certificate. */
function isAboutCertificate(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /ALTNAME|CERT_|SELF_SIGNED|UNABLE_TO|INVALID_CA/.test(String(error.code));
}

/** The policy's id; undefined unless exactly one record is of this kind (RFC 8461 §3.1). */
function idIn(answer: Awaited<ReturnType<Resolver['txt']>>): string | undefined {
  if (answer.kind !== 'found') return undefined;
  const records = answer.records.filter((record) => /^v=STSv1[ \t]*(?:;|$)/.test(record));
  return records.length === 1 ? /;[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*(?:;|$)/.exec(records[0] ?? '')?.[1] : undefined;
}

/** A policy page. @throws Error for what is none (RFC 8461 §3.2) */
export function parsePolicy(text: string): StsPolicy {
  const fields = new Map<string, string[]>();
  for (const line of text.split(/\r?\n/)) {
    const [, name = '', value = ''] = /^([A-Za-z0-9_.-]{1,32}):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
    if (name !== '') fields.set(name, [...fields.get(name) ?? [], value]);
  }
  // The first of a name counts, but for mx.
  const [version] = fields.get('version') ?? [];
  const [mode] = fields.get('mode') ?? [];
  const [age = ''] = fields.get('max_age') ?? [];
  const mx = (fields.get('mx') ?? []).map((pattern) => pattern.toLowerCase().replace(/\.$/, ''));
  if (version !== 'STSv1') throw new Error('the policy is not of version STSv1');
  if (mode !== 'enforce' && mode !== 'testing' && mode !== 'none') throw new Error('the policy has no mode');
  if (!/^\d{1,10}$/.test(age)) throw new Error('the policy has no max_age');
  if (mode !== 'none' && mx.length === 0) throw new Error('the policy names no host');
  return { mode, mx, maxAgeMs: Math.min(Number(age), MAX_AGE_S) * 1_000 };
}

/** May this host take the mail? `*` stands for one label (RFC 8461 §4.1). */
export function isInPolicy({ mx }: StsPolicy, host: string): boolean {
  return mx.some((pattern) => pattern === host || (pattern.startsWith('*.') && host.indexOf('.') > 0 && host.slice(host.indexOf('.')) === pattern.slice(1)));
}
