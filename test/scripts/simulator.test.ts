// The provider simulator itself: its zone, its limits and replies, greylisting, faults at every phase, and
// the record that other tests judge by.
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { openResolver } from '../../daemon/dns/index.ts';
import { systemClock } from '../../daemon/runtime/index.ts';
import { cast, mix, mostWithin, overLimit, PHASES, PROVIDERS, startSimulator, type Simulator } from '../../scripts/simulator/simulator.ts';

let simulator: Simulator;
const addresses = new Map<string, string>();

t.before(async () => {
  simulator = await startSimulator({ providers: cast({ domains: 10, hosters: 5 }) });
  const resolver = openResolver({ servers: [simulator.dns], timeoutMs: 2_000, trustAd: false }, systemClock);
  for (const { id, domains } of simulator.providers) {
    const mx = await resolver.mx(domains[0] ?? '');
    const found = mx.kind === 'found' ? await resolver.addresses(mx.records[0]?.exchange ?? '') : undefined;
    if (found?.kind === 'found') addresses.set(id, found.records[0] ?? '');
  }
  t.equal((await resolver.mx('nowhere.example')).kind, 'none');
  resolver.close();
});
t.teardown(() => simulator.close());

/** A session: each line waits for its reply; '' is the greeting. The text of a reply, or `closed`. */
class Client {
  readonly #socket: Socket;
  #heard = '';
  #wake: () => void = () => undefined;

  constructor(provider: string) {
    this.#socket = connect(simulator.port, addresses.get(provider) ?? '');
    this.#socket.on('data', (chunk: Buffer) => { this.#heard += chunk.toString('latin1'); this.#wake(); });
    this.#socket.on('error', () => undefined);
    this.#socket.on('close', () => { this.#heard += 'closed'; this.#wake(); });
  }

  async say(line: string): Promise<string> {
    if (line !== '') this.#socket.write(`${line}\r\n`);
    while (!/(?:^|\r\n)\d{3} [^\r\n]*\r\n$|closed$/.test(this.#heard)) await new Promise<void>((wake) => (this.#wake = wake));
    const reply = this.#heard;
    this.#heard = '';
    return reply;
  }

  async mail(to = 'a@gmail.com'): Promise<string> {
    for (const line of ['MAIL FROM:<news@acme.example>', `RCPT TO:<${to}>`, 'DATA']) {
      const reply = await this.say(line);
      if (!/^[23]/.test(reply)) return reply;
    }
    return this.say('Subject: x\r\n\r\nhello\r\n.');
  }

  end(): void {
    this.#socket.destroy();
  }
}

const session = async (provider: string): Promise<Client> => {
  const client = new Client(provider);
  await client.say('');
  await client.say('EHLO test.example');
  return client;
};

t.test('everybody has an address of their own', async (t) => {
  t.equal(addresses.size, PROVIDERS.length + 5);
  for (const address of addresses.values()) t.match(address, /^127\.77\.\d+\.\d+$/);
  t.equal(new Set(addresses.values()).size, addresses.size);
});

t.test('limits: at once, on a connection, in a time', async (t) => {
  const [one, two] = [await session('orange'), await session('orange')];
  const third = new Client('orange');
  t.match(await third.say(''), /^421 .*Trop de connexions/);
  one.end();
  two.end();
  simulator.change('apple', { messagesPerConnection: 2, messageRate: { count: 3, perMs: 60_000 } });
  const client = await session('apple');
  t.match([await client.mail(), await client.mail(), await client.mail()], [/^250/, /^250/, /^421 .*too many messages over this connection/]);
  const next = await session('apple');
  t.match([await next.mail(), await next.mail()], [/^250/, /^450 4\.7\.0 \[HCM1\]/], 'what was refused does not count');
  next.end();
  const record = simulator.peaks().find(({ site }) => site === 'apple');
  t.match(record, { accepted: 3, transactions: 5, messages_on_a_connection: 2, refused: { 'per-connection': 1, 'message-rate': 1 } });
  t.match(simulator.peaks().find(({ site }) => site === 'orange'), { connections_at_once: 3, refused: { connections: 1 } });
  t.same(simulator.overLimits('apple'), { messages: 2, connections: 0, atOnce: 0 });
});

t.test('strangers come back later, and recipients ask for answers', async (t) => {
  simulator.change('gmx', { greylistMs: 40 });
  const client = await session('gmx');
  t.match(await client.mail('a@gmx.net'), /^450 4\.2\.0/);
  await new Promise((done) => setTimeout(done, 60));
  t.match(await client.mail('a@gmx.net'), /^250/);
  t.match(await client.mail('550-x@gmx.net'), /^550 5\.1\.1/);
  t.match(await client.mail('451-x@gmx.net'), /^451 4\.2\.0/);
  client.end();
});

t.test('faults at every phase', async (t) => {
  for (const phase of PHASES.filter((one) => one !== 'starttls')) {
    simulator.fault('google', [{ phase, does: { reply: '421 4.3.2 not now' }, share: 1 }]);
    const client = new Client('google');
    const replies = [await client.say('')];
    for (const line of ['EHLO x', 'MAIL FROM:<a@b.example>', 'RCPT TO:<c@gmail.com>', 'DATA', '.', 'QUIT']) if (!replies.at(-1)?.startsWith('421')) replies.push(await client.say(line));
    t.equal(replies.length - 1, ['connect', 'ehlo', 'mail', 'rcpt', 'data', 'final', 'quit'].indexOf(phase), phase);
    t.match(replies.at(-1), /^421 4\.3\.2/);
    client.end();
    for (const does of ['close', 'reset'] as const) {
      simulator.fault('google', [{ phase, does, share: 1 }]);
      const broken = new Client('google');
      let last = await broken.say('');
      for (const line of ['EHLO x', 'MAIL FROM:<a@b.example>', 'RCPT TO:<c@gmail.com>', 'DATA', '.', 'QUIT']) if (last !== 'closed') last = await broken.say(line);
      t.equal(last, 'closed', `${does} at ${phase}`);
    }
  }
  simulator.fault('google', [{ phase: 'mail', does: 'close', share: 0 }]);
  const client = await session('google');
  t.match(await client.mail(), /^250/, 'a share of nobody');
  t.match(await client.say('QUIT'), /^221/);
  t.throws(() => simulator.fault('gogle', []), /no provider gogle; there are: google/);
});

t.test('the mix is drawn by weight, and windows are counted', async (t) => {
  const providers = cast({ domains: 10, hosters: 5 });
  const draw = (seed: number): string[] => { const lots = mix(providers, seed); return Array.from({ length: 2_000 }, () => lots.next().value?.provider ?? ''); };
  t.same(draw(1), draw(1));
  t.notSame(draw(1), draw(2));
  const google = draw(1).filter((one) => one === 'google').length;
  t.ok(google > 800 && google < 1_000, `${google} of 2000`);
  t.equal(mostWithin([0, 1, 2, 1_000, 1_001], 1_000), 3);
  t.equal(mostWithin([], 1_000), 0);
  t.equal(overLimit([0, 500, 999, 1_000, 1_400], { count: 2, perMs: 1_000 }), 3);
  await t.rejects(startSimulator({ providers: PROVIDERS, port: simulator.port }), { code: 'EADDRINUSE' });
});
