// A stub resolver in front of the operator's own: answers with their TTL and, where the operator says that
// the resolver and the way to it are to be trusted, with its word on DNSSEC. Callers may rely on: nothing
// here throws or rejects; "none" is said only when a server said so, everything else is "failed"; one
// question is on its way once, however many ask; an answer is not used past its TTL. RFC 1034 §5.3.1.
import type { Clock } from '../runtime/index.ts';
import { isHostName, readAnswer, type Answer, type MxRecord, type Read, type RecordType, type TlsaRecord } from './answer.ts';
import { AnswerCache } from './cache.ts';
import { exchange, type Server } from './exchange.ts';

export interface Resolver {
  mx(domain: string): Promise<Answer<MxRecord>>;
  /** IPv4 addresses, then IPv6. One family that cannot be asked about does not hide the other. */
  addresses(host: string): Promise<Answer<string>>;
  /** Each record as one string. */
  txt(name: string): Promise<Answer<string>>;
  /** As published; the caller decides which are usable. */
  tlsa(name: string): Promise<Answer<TlsaRecord>>;
  /** Ends what is under way, as failed. */
  close(): void;
}

export interface ResolverOptions {
  /** Asked in this order. */
  readonly servers: readonly Server[];
  /** For one server and one try, ms. */
  readonly timeoutMs: number;
  /** The AD bit may be believed: a validating resolver on this machine or behind a secured path (RFC 4035 §4.9.3). */
  readonly trustAd: boolean;
}

// Datagrams get lost: every server is asked twice before a domain has to wait.
const ROUNDS = 2;
// Each holds a socket; a resolver on this machine answers thousands a second with far fewer.
const IN_FLIGHT = 256;

/** Opens a resolver; nothing is sent until somebody asks. */
export function openResolver(options: ResolverOptions, clock: Clock): Resolver {
  const cache = new AnswerCache(clock);
  const pending = new Map<string, Promise<Answer<unknown>>>();
  const closing = new AbortController();
  const waiting: (() => void)[] = [];
  let busy = 0;

  async function ask(name: string, type: RecordType): Promise<Answer<unknown>> {
    if (!isHostName(name)) return { kind: 'failed', reason: 'not a domain name' };
    const key = `${type} ${name.toLowerCase()}`;
    const cached = cache.get(key);
    if (cached !== undefined) return cached;
    const running = pending.get(key);
    if (running !== undefined) return running;
    const started = look(key, name, type).finally(() => pending.delete(key));
    pending.set(key, started);
    return started;
  }

  async function look(key: string, name: string, type: RecordType): Promise<Answer<unknown>> {
    if (busy >= IN_FLIGHT) await new Promise<void>((go) => waiting.push(go));
    else busy++;
    try {
      return await askServers(key, name, type);
    } finally {
      // The place goes to whoever waits; only when nobody does is it given back.
      const next = waiting.shift();
      if (next === undefined) busy--;
      else next();
    }
  }

  async function askServers(key: string, name: string, type: RecordType): Promise<Answer<unknown>> {
    let reason = 'no resolver is configured';
    // A server that answered, if only with a failure, has been heard: asking at once again helps nobody.
    let heard = false;
    for (let round = 0; round < ROUNDS && !heard; round++) {
      for (const server of options.servers) {
        if (closing.signal.aborted) return { kind: 'failed', reason: 'resolver closed' };
        let read: Read;
        let sizeBytes: number;
        try {
          const reply = await exchange({ server, name, type, timeoutMs: options.timeoutMs, dnssec: options.trustAd, signal: closing.signal }, clock);
          read = readAnswer(reply.packet, name, type, options.trustAd);
          sizeBytes = reply.sizeBytes;
        } catch (error) {
          reason = error instanceof Error ? error.message : String(error);
          continue;
        }
        if (read.answer.kind !== 'failed') return cache.keep(key, read, sizeBytes);
        reason = read.answer.reason;
        heard = true;
      }
    }
    const answer = { kind: 'failed', reason } as const;
    return closing.signal.aborted ? answer : cache.keep(key, { answer, cacheSeconds: undefined }, 0);
  }

  return {
    mx: (domain) => ask(domain, 'MX') as Promise<Answer<MxRecord>>,
    txt: (name) => ask(name, 'TXT') as Promise<Answer<string>>,
    tlsa: (name) => ask(name, 'TLSA') as Promise<Answer<TlsaRecord>>,
    async addresses(host) {
      const asked = ask(host, 'AAAA') as Promise<Answer<string>>;
      const four = await ask(host, 'A') as Answer<string>;
      return joined(four, await (four.kind === 'found' ? soon(asked, clock) : asked));
    },
    close() {
      closing.abort();
    },
  };
}

// RFC 8305 §3 lets an address in hand wait for the other family; mail has more time than its 50 ms.
const SIX_MS = 1_000;

/** The answer, or after a second that there is none yet; it is kept when it comes. */
async function soon(asked: Promise<Answer<string>>, clock: Clock): Promise<Answer<string>> {
  let cancel = (): void => undefined;
  const late = new Promise<Answer<string>>((resolve) => {
    cancel = clock.after(SIX_MS, () => resolve({ kind: 'failed', reason: `no answer within ${SIX_MS} ms` }));
  });
  const answer = await Promise.race([asked, late]);
  cancel();
  return answer;
}

function joined(four: Answer<string>, six: Answer<string>): Answer<string> {
  if (four.kind === 'found' && six.kind === 'found') {
    return {
      kind: 'found',
      records: [...four.records, ...six.records],
      ttlSeconds: Math.min(four.ttlSeconds, six.ttlSeconds),
      authentic: four.authentic && six.authentic,
      ...(four.canonical !== undefined && { canonical: four.canonical }),
    };
  }
  // Servers that fail on AAAA are common; an address in hand is used.
  if (four.kind === 'found') return four;
  if (six.kind === 'found') return six;
  return four.kind === 'failed' ? four : six;
}
