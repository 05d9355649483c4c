// Hits on pages: so many kept connections, each with one request open at a time, as fast as they are
// answered or at a rate given. A process of its own, so that its cost is not charged to what it asks;
// every answer must be of the length and the status of the first, or it ends. Prints one JSON line:
// {"hits","seconds","p50Ms","p99Ms"}.
import { createConnection } from 'node:net';

/** What to ask for where. */
export interface HitLoad {
  readonly port: number;
  readonly host: string;
  /** Used in turn. */
  readonly paths: readonly string[];
  readonly connections: number;
  readonly hits: number;
  /** Hits a second of all connections together; left out: as fast as they are answered. */
  readonly rate?: number;
  readonly status: number;
}

export interface HitResult {
  readonly hits: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** Sends the load. @throws Error for an answer of another kind, or none */
export async function hit(load: HitLoad): Promise<HitResult> {
  const times = new Float64Array(load.hits);
  const requests = load.paths.map((path) => Buffer.from(`GET ${path} HTTP/1.1\r\nHost: ${load.host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.5.0\r\nAccept: */*\r\n\r\n`));
  const begun = performance.now();
  let next = 0;
  await Promise.all(Array.from({ length: load.connections }, () => new Promise<void>((done, fail) => {
    const socket = createConnection({ host: '127.0.0.1', port: load.port });
    socket.setNoDelay(true);
    let asked = 0;
    let mine = 0;
    let length = 0;
    let heard = Buffer.alloc(0);
    const ask = (): void => {
      mine = next++;
      if (mine >= load.hits) return void socket.end(done);
      const waitMs = load.rate === undefined ? 0 : begun + (mine * 1_000) / load.rate - performance.now();
      if (waitMs > 1) setTimeout(send, waitMs);
      else send();
    };
    const send = (): void => {
      asked = performance.now();
      socket.write(requests[mine % requests.length] ?? '');
    };
    socket.on('connect', ask);
    socket.on('error', fail);
    socket.on('data', (chunk) => {
      heard = heard.length === 0 ? chunk : Buffer.concat([heard, chunk]);
      length ||= lengthOf(heard);
      if (length === 0 || heard.length < length) return;
      times[mine] = performance.now() - asked;
      if (heard.length !== length || !heard.subarray(9, 12).equals(Buffer.from(String(load.status)))) return void fail(new Error(`another answer: ${heard.toString('latin1', 0, 200)}`));
      heard = Buffer.alloc(0);
      ask();
    });
    socket.on('close', () => (next >= load.hits ? done() : fail(new Error('the connection was closed'))));
  })));
  const seconds = (performance.now() - begun) / 1_000;
  times.sort();
  const percentile = (p: number): number => Math.round((times[Math.floor(times.length * p)] ?? 0) * 100) / 100;
  return { hits: load.hits, seconds, p50Ms: percentile(0.5), p99Ms: percentile(0.99) };
}

/** Of a whole answer; 0 while its head has not come. */
function lengthOf(heard: Buffer): number {
  const head = heard.indexOf('\r\n\r\n');
  if (head < 0) return 0;
  return head + 4 + Number(/content-length: *(\d+)/i.exec(heard.toString('latin1', 0, head))?.[1] ?? 0);
}

if (import.meta.main) {
  let text = '';
  for await (const chunk of process.stdin) text += String(chunk);
  console.log(JSON.stringify(await hit(JSON.parse(text) as HitLoad)));
}
