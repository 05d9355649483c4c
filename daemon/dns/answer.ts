// From the octets a resolver sent to an answer the house can use. Whatever a stranger's zone may hold,
// what leaves here is checked: host names are letters, digits, hyphens (and underscores, which real MX
// hosts have), CNAME chains are short and lead somewhere, TXT strings are joined. What cannot be read
// is a failure, never "there is nothing". RFC 1035, RFC 2181 §8, RFC 2308, RFC 7505, RFC 6698.
import { Buffer } from 'node:buffer';
import dnsPacket, { type Packet, type Resource } from 'dns-packet';

export type RecordType = 'MX' | 'A' | 'AAAA' | 'TXT' | 'TLSA';

/** `found`: at least one record. `none`: the name or the type does not exist. `failed`: cannot tell; ask again later. */
export type Answer<T> =
  | {
      readonly kind: 'found';
      readonly records: readonly T[];
      /** How much longer this may be used, in seconds. */
      readonly ttlSeconds: number;
      /** A resolver we trust has validated it with DNSSEC. */
      readonly authentic: boolean;
      /** Where the aliases of the name led; missing where it has none. */
      readonly canonical?: string;
    }
  /** `authentic`: that there is nothing has been validated. */
  | { readonly kind: 'none'; readonly authentic?: boolean }
  | { readonly kind: 'failed'; readonly reason: string };

export interface MxRecord {
  /** Lower case, without the final dot; '' is the null MX (RFC 7505): this domain takes no mail. */
  readonly exchange: string;
  readonly preference: number;
}

export interface TlsaRecord {
  readonly usage: number;
  readonly selector: number;
  readonly matchingType: number;
  readonly certificate: Buffer;
}

/** A message that carries an answer, read; `cacheSeconds` undefined means that it must not be kept. */
export interface Read {
  readonly answer: Answer<unknown>;
  readonly cacheSeconds: number | undefined;
}

// More aliases than anybody needs; resolvers themselves give up between 8 and 16.
const CNAME_LIMIT = 8;

/** True for a host name: 1 to 253 octets, labels of 1 to 63 letters, digits, `-` or `_`, the last not all digits. */
export function isHostName(name: string): boolean {
  // RFC 1123 §2.1: an all-numeric last label would be an address, not a name.
  return name.length <= 253 && /^(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?!\d+$)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/i.test(name);
}

/** Reads a reply to the question (name, type), the id and question of which have been checked. */
export function readAnswer(packet: Packet, name: string, type: RecordType, trustAd: boolean): Read {
  // dns-packet keeps the four bits of the header in `rcode`; the extended ones are all failures to us.
  const authentic = trustAd && packet.flag_ad === true;
  if (packet.rcode === 'NXDOMAIN') return { answer: { kind: 'none', authentic }, cacheSeconds: negativeTtl(packet) };
  if (packet.rcode !== 'NOERROR') return failed(`resolver says ${packet.rcode}`);
  const answers = packet.answers ?? [];
  const chase = followAliases(answers, name);
  if (typeof chase !== 'object') return failed(chase);
  const found = answers.filter((record) => record.type === type && lower(record.name) === chase.name);
  if (found.length === 0) {
    const authorities = packet.authorities ?? [];
    // A referral: this server neither knows nor asks for us, which says nothing about the name.
    const lame = authorities.some((r) => r.type === 'NS') && !authorities.some((r) => r.type === 'SOA');
    return lame ? failed('lame: the resolver answers with a referral') : { answer: { kind: 'none', authentic }, cacheSeconds: negativeTtl(packet) };
  }
  const records = found.map((record) => readRecord(record, type)).filter((record) => record !== undefined);
  if (records.length === 0) return failed(`no usable ${type} record among ${found.length}`);
  const ttlSeconds = Math.min(chase.ttlSeconds, ...found.map(ttlOf));
  return { answer: { kind: 'found', records, ttlSeconds, authentic, ...(chase.name !== lower(name) && { canonical: chase.name }) }, cacheSeconds: ttlSeconds };
}

/** The name at the end of the aliases in an answer, or why there is none. */
function followAliases(answers: readonly Resource[], name: string): { readonly name: string; readonly ttlSeconds: number } | string {
  let at = lower(name);
  let ttlSeconds = Number.MAX_SAFE_INTEGER;
  for (let steps = 0; steps <= CNAME_LIMIT; steps++) {
    const alias = answers.find((record) => record.type === 'CNAME' && lower(record.name) === at);
    if (alias === undefined) return { name: at, ttlSeconds };
    const target = lower(String(alias.data));
    if (!isHostName(target)) return 'an alias leads to what is no host name';
    ttlSeconds = Math.min(ttlSeconds, ttlOf(alias));
    at = target;
  }
  return `more than ${CNAME_LIMIT} aliases, or aliases in a circle`;
}

function readRecord(record: Resource, type: RecordType): unknown {
  const data = record.data;
  switch (type) {
    case 'A':
    case 'AAAA':
      return typeof data === 'string' ? data : undefined;
    case 'TXT':
      // RFC 7208 §3.3: strings of one record are joined without anything between them.
      return Array.isArray(data) ? Buffer.concat(data.filter((part) => Buffer.isBuffer(part))).toString('utf8') : undefined;
    case 'MX': {
      const { exchange, preference } = data as { exchange: string; preference: number };
      // RFC 7505 §3
      const host = exchange === '.' ? '' : lower(exchange);
      return host === '' || isHostName(host) ? { exchange: host, preference: preference ?? 0 } : undefined;
    }
    case 'TLSA':
      return data;
    default:
      return type satisfies never;
  }
}

function negativeTtl(packet: Packet): number | undefined {
  // RFC 2308 §5: without an SOA a denial is not to be kept.
  const soa = (packet.authorities ?? []).find((record) => record.type === 'SOA');
  if (soa === undefined) return undefined;
  return Math.min(ttlOf(soa), (soa.data as { minimum?: number }).minimum ?? 0);
}

function ttlOf(record: Resource): number {
  // RFC 2181 §8: a TTL with its top bit set counts as zero.
  const ttl = record.ttl ?? 0;
  return ttl > 0x7fff_ffff ? 0 : ttl;
}

function failed(reason: string): Read {
  return { answer: { kind: 'failed', reason }, cacheSeconds: undefined };
}

function lower(name: string): string {
  const end = name.endsWith('.') ? name.length - 1 : name.length;
  return name.slice(0, end).toLowerCase();
}

/** The packet when `octets` answer this very question; undefined for what has another id; throws on what cannot be read. */
export function decodeReply(octets: Buffer, id: number, name: string, type: RecordType): Packet | undefined {
  if (octets.length < 12 || octets.readUInt16BE(0) !== id) return undefined;
  const packet = dnsPacket.decode(octets);
  const question = packet.questions[0];
  // RFC 5452 §9.1: the question must match as well as the id.
  const ours = packet.type === 'response' && packet.questions.length === 1 && question?.type === type && lower(question.name) === lower(name);
  return ours ? packet : undefined;
}
