// One question to one server: UDP first, TCP when the answer did not fit. Every question has a random id
// and a socket of its own, connected to the server, so that the kernel chooses a fresh port and drops what
// comes from elsewhere. Datagrams with another id or question are ignored until the time is up. Rejects
// with a plain Error that says what happened. RFC 1035 §4.2, RFC 5452, RFC 6891, RFC 7766.
import { createSocket } from 'node:dgram';
import { connect, isIPv6 } from 'node:net';
import dnsPacket, { type Packet } from 'dns-packet';
import { randomOctets, type Clock } from '../runtime/index.ts';
import { decodeReply, type RecordType } from './answer.ts';

export interface Server {
  readonly host: string;
  readonly port: number;
}

export interface Exchange {
  readonly server: Server;
  readonly name: string;
  readonly type: RecordType;
  readonly timeoutMs: number;
  /** Ask for DNSSEC validation. */
  readonly dnssec: boolean;
  readonly signal: AbortSignal;
}

// DNS flag day 2020: what passes through practically every path unfragmented.
const UDP_PAYLOAD_OCTETS = 1_232;

/** A reply and how many octets it took. */
export interface Reply {
  readonly packet: Packet;
  readonly sizeBytes: number;
}

/** Asks and waits at most `timeoutMs` for each of UDP and TCP. */
export async function exchange(ask: Exchange, clock: Clock): Promise<Reply> {
  const reply = await overUdp(ask, clock);
  return reply.packet.flag_tc === true ? overTcp(ask, clock) : reply;
}

function query(ask: Exchange): { readonly id: number; readonly octets: Buffer } {
  const id = randomOctets(2).readUInt16BE(0);
  const octets = dnsPacket.encode({
    id,
    type: 'query',
    // RFC 6840 §5.7: AD in a question asks for AD in the answer.
    flags: dnsPacket.RECURSION_DESIRED | (ask.dnssec ? dnsPacket.AUTHENTIC_DATA : 0),
    questions: [{ name: ask.name, type: ask.type }],
    additionals: [{ name: '.', type: 'OPT', udpPayloadSize: UDP_PAYLOAD_OCTETS, flags: ask.dnssec ? dnsPacket.DNSSEC_OK : 0 }],
  });
  return { id, octets };
}

function overUdp(ask: Exchange, clock: Clock): Promise<Reply> {
  const { id, octets } = query(ask);
  return settle(ask, clock, (done, fail) => {
    const socket = createSocket(isIPv6(ask.server.host) ? 'udp6' : 'udp4');
    socket.on('error', fail);
    socket.on('message', (message) => {
      try {
        const packet = decodeReply(message, id, ask.name, ask.type);
        if (packet !== undefined) done({ packet, sizeBytes: message.length });
      } catch (error) {
        fail(error);
      }
    });
    // A callback would take connect errors away from 'error'.
    socket.on('connect', () => socket.send(octets));
    socket.connect(ask.server.port, ask.server.host);
    return () => socket.close();
  });
}

function overTcp(ask: Exchange, clock: Clock): Promise<Reply> {
  const { id, octets } = query(ask);
  return settle(ask, clock, (done, fail) => {
    const socket = connect(ask.server.port, ask.server.host);
    let received = Buffer.alloc(0);
    socket.on('error', fail);
    socket.on('end', () => fail(new Error('connection closed')));
    socket.on('connect', () => {
      // RFC 7766 §8: length and message in one write.
      const length = Buffer.alloc(2);
      length.writeUInt16BE(octets.length);
      socket.write(Buffer.concat([length, octets]));
    });
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      if (received.length < 2 || received.length < 2 + received.readUInt16BE(0)) return;
      try {
        const message = received.subarray(2, 2 + received.readUInt16BE(0));
        const packet = decodeReply(message, id, ask.name, ask.type);
        if (packet === undefined) fail(new Error('answer to another question'));
        else done({ packet, sizeBytes: message.length });
      } catch (error) {
        fail(error);
      }
    });
    return () => socket.destroy();
  });
}

/** Runs one attempt that ends once: by its reply, its error, the time-out or the signal. */
function settle(
  ask: Exchange,
  clock: Clock,
  start: (done: (reply: Reply) => void, fail: (error: unknown) => void) => () => void,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    let ended = false;
    let stop = (): void => undefined;
    const end = (then: () => void): void => {
      if (ended) return;
      ended = true;
      cancelTimer();
      ask.signal.removeEventListener('abort', aborted);
      stop();
      then();
    };
    const fail = (error: unknown): void => end(() => reject(error instanceof Error ? error : new Error(String(error))));
    const aborted = (): void => fail(new Error('resolver closed'));
    const cancelTimer = clock.after(ask.timeoutMs, () => fail(new Error(`no answer within ${ask.timeoutMs} ms`)));
    ask.signal.addEventListener('abort', aborted, { once: true });
    stop = start((reply) => end(() => resolve(reply)), fail);
    if (ask.signal.aborted) aborted();
  });
}
