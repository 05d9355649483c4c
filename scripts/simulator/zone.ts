// The simulator's DNS: the MX and A records of its receivers, over UDP and TCP on one port of loopback.
// Everything else does not exist. It answers as a resolver would and believes nobody: a query it cannot
// read gets no answer. RFC 1035.
import { createSocket } from 'node:dgram';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import dnsPacket, { type Packet, type Resource } from 'dns-packet';

/** Names in lower case. */
export interface Records {
  readonly mx: ReadonlyMap<string, readonly { readonly preference: number; readonly exchange: string }[]>;
  readonly a: ReadonlyMap<string, readonly string[]>;
}

export interface ZoneServer {
  readonly host: string;
  readonly port: number;
  close(): Promise<void>;
}

const HOST = '127.0.0.1';
const TTL_SECONDS = 300;
const NXDOMAIN = 3;
// UDP and TCP want the same number, and another program may have one of the two.
const TRIES = 20;

/** Serves the records; `port` 0 takes a free one. */
export async function serveZone(records: Records, port = 0): Promise<ZoneServer> {
  for (let tries = 1; ; tries++) {
    const open = new Set<Socket>();
    const tcp = createServer((socket) => {
      open.add(socket);
      socket.on('close', () => open.delete(socket));
      socket.on('error', () => socket.destroy());
      socket.on('data', (chunk) => {
        const reply = answer(chunk.subarray(2), records);
        if (reply === undefined) return socket.destroy();
        const length = Buffer.alloc(2);
        length.writeUInt16BE(reply.length);
        return socket.write(Buffer.concat([length, reply]));
      });
    });
    await new Promise<void>((ready, fail) => {
      tcp.once('error', fail);
      tcp.listen(port, HOST, ready);
    });
    const number = (tcp.address() as AddressInfo).port;
    const udp = createSocket('udp4');
    const bound = await new Promise<boolean>((done) => {
      udp.once('error', () => done(false));
      udp.bind(number, HOST, () => done(true));
    });
    const close = async (): Promise<void> => {
      for (const socket of open) socket.destroy();
      await Promise.all([new Promise((done) => tcp.close(done)), new Promise<void>((done) => (bound ? udp.close(done) : done()))]);
    };
    if (bound) {
      udp.on('message', (message, from) => {
        const reply = answer(message, records);
        if (reply !== undefined) udp.send(reply, from.port, from.address);
      });
      return { host: HOST, port: number, close };
    }
    await close();
    if (port !== 0 || tries === TRIES) throw new Error(`UDP port ${number} of ${HOST} is taken`);
  }
}

function answer(message: Buffer, records: Records): Buffer | undefined {
  let query: Packet;
  try {
    query = dnsPacket.decode(message);
  } catch {
    return undefined; // not a query: nobody to answer
  }
  const question = query.questions[0];
  if (question === undefined) return undefined;
  const name = question.name.toLowerCase();
  const mx = records.mx.get(name);
  const a = records.a.get(name);
  const data: readonly unknown[] = question.type === 'MX' ? mx ?? [] : question.type === 'A' ? a ?? [] : [];
  const answers: Resource[] = data.map((one) => ({ type: question.type, name: question.name, ttl: TTL_SECONDS, data: one }));
  const soa: Resource = { type: 'SOA', name: name.split('.').slice(-1)[0] ?? '.', ttl: TTL_SECONDS, data: { mname: 'ns.example', rname: 'hostmaster.example', serial: 1, refresh: 1, retry: 1, expire: 1, minimum: TTL_SECONDS } };
  return dnsPacket.encode({
    id: query.id ?? 0, type: 'response', questions: query.questions, answers, authorities: answers.length > 0 ? [] : [soa],
    flags: dnsPacket.RECURSION_DESIRED | dnsPacket.RECURSION_AVAILABLE | (mx === undefined && a === undefined ? NXDOMAIN : 0),
  });
}
