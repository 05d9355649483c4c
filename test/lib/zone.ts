// A DNS server for tests: UDP and TCP on one port of 127.0.0.1, answering from a plain object as a
// validating resolver would. The object is read at every query, so a test may change it as it goes.
// Names are looked up as they are, then as `*.parent` for each parent, then as `*`. A name that is not
// there is NXDOMAIN; a type that is not there is an empty answer; both carry an SOA unless told otherwise.
import { createSocket } from 'node:dgram';
import { createServer, type Socket } from 'node:net';
import dnsPacket, { type Packet, type Question, type Resource } from 'dns-packet';

export interface ZoneEntry {
  /** `[10, 'mx.example']` or `{preference, exchange}`; exchange '.' is the null MX. */
  readonly MX?: readonly (readonly [number, string] | { readonly preference: number; readonly exchange: string })[];
  readonly A?: readonly string[];
  readonly AAAA?: readonly string[];
  /** Each record is one string, or its parts. */
  readonly TXT?: readonly (string | readonly string[])[];
  readonly TLSA?: readonly { readonly usage: number; readonly selector: number; readonly matchingType: number; readonly certificate: Buffer }[];
  readonly PTR?: readonly string[];
  /** Followed inside the zone, as a resolver does. */
  readonly CNAME?: string;
  readonly fault?: Fault;
  /** Only these types have the fault; all when missing. */
  readonly faultTypes?: readonly string[];
  readonly ad?: boolean;
  readonly ttl?: number;
}

/** `timeout`: silence. `truncate`: TC and nothing else over UDP; `tcp-*`: and then this over TCP. `wrong-*`: an answer to something else. `lame`: a referral. */
export type Fault = 'servfail' | 'refused' | 'timeout' | 'truncate' | 'wrong-id' | 'wrong-question' | 'garbage' | 'pointer-loop' | 'lame' | 'no-soa' | 'spoofed-first' | 'tcp-silent' | 'tcp-wrong' | 'tcp-garbage' | 'strangers';

export type Zone = Record<string, ZoneEntry>;

export interface ZoneServer {
  readonly host: string;
  readonly port: number;
  readonly queries: { readonly name: string; readonly type: string; readonly transport: 'udp' | 'tcp'; readonly dnssec: boolean }[];
  close(): Promise<void>;
}

export interface ZoneOptions {
  readonly ad?: boolean;
  readonly ttl?: number;
  readonly negativeTtl?: number;
  /** Answers wait this long, ms. */
  readonly delayMs?: number;
}

/** Starts a server for `zone` on a free port. */
export async function startZone(zone: Zone, options: ZoneOptions = {}): Promise<ZoneServer> {
  const queries: ZoneServer['queries'] = [];
  const open = new Set<Socket>();

  /** The messages to send back, none for silence. */
  function replies(message: Buffer, transport: 'udp' | 'tcp'): Buffer[] {
    const query = dnsPacket.decode(message);
    const question = query.questions[0];
    if (question === undefined) return [];
    const name = question.name.toLowerCase();
    const opt = query.additionals?.find((record) => record.type === 'OPT');
    queries.push({ name, type: question.type, transport, dnssec: ((opt?.flags ?? 0) & dnsPacket.DNSSEC_OK) !== 0 });
    const entry = entryOf(zone, name);
    const faulty = entry?.fault !== undefined && (entry.faultTypes?.includes(question.type) ?? true);
    return faulty ? faultyReplies(entry.fault, query, question, transport, zone, options) : [dnsPacket.encode(honest(query, question, zone, options))];
  }
  const later = (send: () => void): void => {
    if (options.delayMs === undefined) send();
    else setTimeout(send, options.delayMs).unref();
  };

  for (;;) {
    const tcp = createServer((socket) => {
      open.add(socket);
      socket.on('close', () => open.delete(socket));
      socket.on('error', () => socket.destroy());
      socket.on('data', (chunk) => later(() => {
        for (const reply of replies(chunk.subarray(2), 'tcp')) {
          const length = Buffer.alloc(2);
          length.writeUInt16BE(reply.length);
          // In two writes: a reader must not count on a message coming in one piece.
          socket.write(length);
          setImmediate(() => socket.write(reply));
        }
      }));
    });
    await new Promise<void>((ready) => {
      tcp.listen(0, '127.0.0.1', ready);
    });
    const port = (tcp.address() as { port: number }).port;
    const udp = createSocket('udp4');
    let closed = false;
    udp.on('message', (message, from) => later(() => {
      if (closed) return;
      for (const reply of replies(message, 'udp')) udp.send(reply, from.port, from.address);
    }));
    const bound = await new Promise<boolean>((done) => {
      udp.once('error', () => done(false)); // another program has the UDP port of this number: take another pair
      udp.bind(port, '127.0.0.1', () => done(true));
    });
    const close = async (): Promise<void> => {
      closed = true;
      for (const socket of open) socket.destroy();
      await Promise.all([new Promise((done) => tcp.close(done)), new Promise<void>((done) => udp.close(done))]);
    };
    if (bound) return { host: '127.0.0.1', port, queries, close };
    await close();
  }
}

function entryOf(zone: Zone, name: string): ZoneEntry | undefined {
  const exact = zone[name];
  if (exact !== undefined) return exact;
  for (let dot = name.indexOf('.'); dot !== -1; dot = name.indexOf('.', dot + 1)) {
    const wild = zone[`*${name.slice(dot)}`];
    if (wild !== undefined) return wild;
  }
  return zone['*'];
}

function honest(query: Packet, question: Question, zone: Zone, options: ZoneOptions): Packet {
  const answers: Resource[] = [];
  let name = question.name;
  let entry = entryOf(zone, name.toLowerCase());
  const ad = entry?.ad ?? options.ad ?? false;
  for (let steps = 0; entry?.CNAME !== undefined && steps < 20; steps++) {
    answers.push({ type: 'CNAME', name, ttl: entry.ttl ?? options.ttl ?? 300, data: entry.CNAME });
    name = entry.CNAME;
    entry = entryOf(zone, name.toLowerCase());
  }
  for (const data of dataOf(entry, question.type)) answers.push({ type: question.type, name, ttl: entry?.ttl ?? options.ttl ?? 300, data });
  const found = answers.some((record) => record.type === question.type);
  return {
    id: query.id ?? 0,
    type: 'response',
    flags: dnsPacket.RECURSION_DESIRED | dnsPacket.RECURSION_AVAILABLE | (ad ? dnsPacket.AUTHENTIC_DATA : 0) | (entry === undefined ? 3 : 0),
    questions: query.questions,
    answers,
    authorities: found ? [] : [soa(options.negativeTtl ?? 60)],
  };
}

function dataOf(entry: ZoneEntry | undefined, type: string): readonly unknown[] {
  if (entry === undefined) return [];
  switch (type) {
    case 'MX': return (entry.MX ?? []).map((mx) => ('exchange' in mx ? mx : { preference: mx[0], exchange: mx[1] }));
    case 'TXT': return (entry.TXT ?? []).map((text) => (typeof text === 'string' ? (text.match(/.{1,255}/gs) ?? ['']) : [...text]));
    case 'A': return entry.A ?? [];
    case 'AAAA': return entry.AAAA ?? [];
    case 'TLSA': return entry.TLSA ?? [];
    case 'PTR': return entry.PTR ?? [];
    default: return [];
  }
}

function soa(minimum: number): Resource {
  return { type: 'SOA', name: 'example', ttl: 3_600, data: { mname: 'ns.example', rname: 'hostmaster.example', serial: 1, refresh: 1, retry: 1, expire: 1, minimum } };
}

function faultyReplies(fault: Fault, query: Packet, question: Question, transport: 'udp' | 'tcp', zone: Zone, options: ZoneOptions): Buffer[] {
  const id = query.id ?? 0;
  const good = honest(query, question, zone, options);
  const empty = { ...good, answers: [], authorities: [] };
  const plain = dnsPacket.RECURSION_AVAILABLE;
  switch (fault) {
    case 'servfail': return [dnsPacket.encode({ ...empty, flags: plain | 2 })];
    case 'refused': return [dnsPacket.encode({ ...empty, flags: plain | 5 })];
    case 'timeout': return [];
    case 'truncate': return [dnsPacket.encode(transport === 'udp' ? { ...empty, flags: plain | dnsPacket.TRUNCATED_RESPONSE } : good)];
    case 'tcp-silent':
    case 'tcp-wrong':
    case 'tcp-garbage':
      if (transport === 'udp') return [dnsPacket.encode({ ...empty, flags: plain | dnsPacket.TRUNCATED_RESPONSE })];
      return fault === 'tcp-silent' ? [] : fault === 'tcp-garbage' ? [Buffer.alloc(40, 0xff)] : [dnsPacket.encode({ ...good, questions: [{ ...question, name: `not-${question.name}` }] })];
    // Records nobody asked for, about somebody else (a cache's poison).
    case 'strangers': return [dnsPacket.encode({ ...empty, answers: [{ type: 'A', name: 'victim.example', ttl: 300, data: '192.0.2.66' }], additionals: [{ type: 'A', name: question.name, ttl: 300, data: '192.0.2.66' }] })];
    case 'wrong-id': return [dnsPacket.encode({ ...good, id: (id + 1) & 0xffff })];
    case 'wrong-question': return [dnsPacket.encode({ ...good, questions: [{ ...question, name: `not-${question.name}` }] })];
    case 'garbage': {
      const octets = Buffer.alloc(40, 0xff);
      octets.writeUInt16BE(id);
      return [octets];
    }
    case 'pointer-loop': {
      // The question section counts one name, which points at itself.
      const octets = Buffer.from('000081800001000000000000c00c00010001', 'hex');
      octets.writeUInt16BE(id);
      return [octets];
    }
    case 'lame': return [dnsPacket.encode({ ...empty, authorities: [{ type: 'NS', name: 'example', ttl: 300, data: 'ns.example' }] })];
    case 'no-soa': return [dnsPacket.encode({ ...empty, flags: plain })];
    case 'spoofed-first': return [dnsPacket.encode({ ...good, id: (id + 1) & 0xffff, answers: [] }), dnsPacket.encode(good)];
    default: throw new Error(`unknown fault ${fault satisfies never}`);
  }
}
