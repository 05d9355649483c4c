// A relay before the provider simulator: the limits of shaping.yaml hold as the receivers count, to the
// connection and the second; what they say changes how we send, and a change of the file is felt at once.
import t from 'tap';
import { generate } from '../../scripts/load/generator.ts';
import { mostWithin, PROVIDERS, startSimulator, type ProviderModel, type Simulator } from '../../scripts/simulator/simulator.ts';
import { testCertificate } from '../lib/mx.ts';
import { eventually, makeGrounds, pause, type Grounds } from '../lib/daemon.ts';

t.setTimeout(60_000);

// What the receivers bear is out of the way here: the sender's own limits are what is judged, by the receiver's record.
const generous = (id: string): ProviderModel => {
  const model = PROVIDERS.find((one) => one.id === id);
  if (model === undefined) throw new Error(id);
  return { ...model, connections: 1_000, connectionRate: undefined, messageRate: undefined, messagesPerConnection: 1_000, greylistMs: 0 };
};

async function stage(shaping: string, providers: readonly ProviderModel[], t: { teardown(run: () => Promise<void>): void }): Promise<{ grounds: Grounds; simulator: Simulator; send: (messages: number, domain: string) => Promise<number> }> {
  const simulator = await startSimulator({ providers, tls: testCertificate() });
  const grounds = await makeGrounds(simulator.port);
  grounds.edit('postern.yaml', (text) => `${text}resolver: { servers: ["${simulator.dns.host}:${simulator.dns.port}"] }\n`);
  grounds.edit('shaping.yaml', () => shapingYaml(simulator, shaping));
  const daemon = await grounds.serve();
  t.teardown(async () => {
    await daemon.stop();
    await simulator.close();
    grounds.remove();
  });
  return {
    grounds, simulator,
    async send(messages, domain) {
      const { sent } = await generate({
        port: grounds.ports.submissions, messages, sessions: 4, login: { username: 'demo-receipts', secret: grounds.secret }, from: 'shop@demo.example',
        recipients: Array.from({ length: messages }, (_, i) => `reader${i}@${domain}`), message: 'From: shop@demo.example\r\nTo: you\r\nSubject: @@\r\n\r\nhello',
      });
      return sent;
    },
  };
}

const shapingYaml = ({ port }: Simulator, text: string): string => `${text}\nroutes: [{ domain: "*", loopback_mx: ${port} }]\nretry: { first: 1s, max: 2s }\n`;

t.test('limits hold as the receivers count', async (t) => {
  const { simulator, send, grounds } = await stage(`
defaults: { connections: 3, connection_rate: unset, message_rate: unset, deliveries_per_connection: 7 }
providers:
  - { id: google, match: [.google.com], connections: 4, message_rate: 40/s, tls: required }
  - { id: apple, match: [.icloud.com], connections: 2, connection_rate: 10/s, deliveries_per_connection: 2 }
  - { id: yahoo, match: [.yahoodns.net], sites: apart, connections: 3, total: { connections: 2 } }`, ['google', 'apple', 'yahoo', 'orange'].map(generous), t);
  t.equal((await Promise.all([send(120, 'gmail.com'), send(40, 'icloud.com'), send(40, 'yahoo.com'), send(40, 'orange.fr')])).reduce((a, b) => a + b), 240);
  t.ok(await eventually(() => simulator.accepted === 240, 30_000), `${simulator.accepted} arrived`);
  const [google, apple, yahoo, orange] = ['google', 'apple', 'yahoo', 'orange'].map((id) => simulator.record(id));
  t.ok((google?.mostOpen ?? 9) <= 4, `google: ${google?.mostOpen} at once`);
  // All three run in this process: what it stalls is no fault of the sender's.
  t.ok(mostWithin(google?.mailTimes ?? [], 950) <= 40, `google: ${mostWithin(google?.mailTimes ?? [], 950)} in a second`);
  t.equal(google?.inClear, 0);
  t.equal(google?.mostPerConnection, 7, 'inherited from the defaults');
  t.ok((apple?.mostOpen ?? 9) <= 2, `apple: ${apple?.mostOpen} at once`);
  t.equal(apple?.mostPerConnection, 2);
  t.ok(mostWithin(apple?.connectTimes ?? [], 950) <= 10, `apple: ${mostWithin(apple?.connectTimes ?? [], 950)} connections in a second`);
  t.equal(yahoo?.mostOpen, 2, 'what lanes share holds too');
  t.equal(orange?.mostOpen, 3, 'the defaults');
  const shown = await grounds.control('shaping.show', { domain: 'aol.com' }) as { provider: string; lanes: { limits: { key: string; value: string; from: string }[] }[] };
  t.equal(shown.provider, 'yahoo');
  t.match(shown.lanes[0]?.limits.map(({ key, value, from }) => `${key} ${value} (${from})`), [/^connections 3 \(provider yahoo\)/, /^connection_rate unset \(defaults\)/]);
  t.match(shown.lanes[0]?.limits.at(-1), { key: 'connections', value: '2', from: 'total of provider yahoo' });
});

t.test('a change of shaping.yaml is felt by what waits already', async (t) => {
  const { simulator, send, grounds } = await stage('defaults: { connections: 2, message_rate: 1/min }', [generous('orange')], t);
  await send(20, 'orange.fr');
  t.ok(await eventually(() => simulator.accepted === 1));
  await pause(100);
  t.equal(simulator.accepted, 1);
  const why = await grounds.control('shaping.why', { domain: 'orange.fr' }) as { holds: { what: string; until: number }[]; waiting: number };
  t.match(why.holds[0]?.what, /message rate of the lane/);
  t.ok((why.holds[0]?.until ?? 0) > Date.now() + 30_000, 'and says until when');
  t.equal(why.waiting, 19);
  grounds.edit('shaping.yaml', () => shapingYaml(simulator, 'defaults: { connections: 2, message_rate: unset }'));
  t.ok(await eventually(() => simulator.accepted === 20), 'without a restart');
  grounds.edit('shaping.yaml', () => shapingYaml(simulator, 'defaults: { connections: 2, connection_rate: 1/min, deliveries_per_connection: 1, message_rate: unset }'));
  await pause(400);
  await send(5, 'orange.fr'); // the connections of before count for the new rate
  const holds = async (): Promise<string[]> => (await grounds.control('shaping.why', { domain: 'orange.fr' }) as { holds: { what: string }[] }).holds.map(({ what }) => what);
  for (const end = Date.now() + 5_000; !(await holds()).some((what) => what.includes('connection_rate')) && Date.now() < end; await pause(50));
  t.ok((await holds()).some((what) => what.includes('connection_rate')), 'what attempts wait for inside their place is told too');
});

t.test('a receiver that says slow down is heard, the lane comes back gently, and a suspension can be lifted', async (t) => {
  const orange = generous('orange');
  const { simulator, send, grounds } = await stage(`
defaults: { connections: 8, message_rate: 200/s, connection_rate: unset }
providers: [{ id: orange, match: [.orange.fr] }]
automation:
  - { id: pressed, reply: '^421|^4\\d\\d 4\\.7\\.', after: 3/min, action: halve, for: 1s, fixtures: ["451 4.7.1 slow down"] }
  - { id: refused, reply: 'service refuse', after: 2/min, action: suspend, for: 1h, fixtures: ["421 Service refuse"] }
recovery: { add: 25%, every: 1s }`, [orange], t);
  const lane = async (): Promise<{ connections: number }> => (await grounds.control('status') as { lanes: { connections: number }[] }).lanes[0] ?? { connections: 0 };
  simulator.fault('orange', [{ phase: 'mail', does: { reply: '451 4.7.1 slow down' }, share: 1 }]);
  await send(30, 'orange.fr');
  const listed = async (): Promise<{ rule: string; action: string; lane: string }[]> => (await grounds.control('automation.list') as { actions: { rule: string; action: string; lane: string }[] }).actions;
  let few = 8;
  for (const end = Date.now() + 10_000; few === 8 && Date.now() < end; await pause(20)) few = Math.min(few, (await lane()).connections || 8);
  t.ok(few < 8, `${few} connections once it had been told`);
  t.match(await listed(), [{ rule: 'pressed', action: 'halve', lane: 'default/orange' }]);
  simulator.fault('orange', []);
  t.ok(await eventually(() => simulator.accepted === 30, 20_000), 'all arrive in the end');
  for (const end = Date.now() + 10_000; (await listed()).length > 0 && Date.now() < end; await pause(50));
  t.same(await listed(), [], 'and the lane has come back by itself');

  simulator.fault('orange', [{ phase: 'mail', does: { reply: '421 4.7.0 Service refuse. Veuillez essayer plus tard' }, share: 1 }]);
  await send(10, 'orange.fr');
  const suspended = async (): Promise<boolean> => (await listed()).some(({ action }) => action === 'suspend');
  for (const end = Date.now() + 10_000; !(await suspended()) && Date.now() < end; await pause(20));
  await pause(300); // what was under way ends
  simulator.fault('orange', []);
  await pause(2_500); // longer than any wait for the next try
  t.equal(simulator.accepted, 30, 'a suspended lane sends nothing');
  const why = await grounds.control('shaping.why', { domain: 'orange.fr' }) as { holds: { what: string; since: number; until: number }[]; automation: object[] };
  t.match(why.holds[0], { what: 'suspended by rule refused' });
  t.match(why.automation, [{ rule: 'refused', action: 'suspend', lane: 'default/orange' }], 'and what can be lifted');
  t.ok((why.holds[0]?.since ?? 0) > Date.now() - 60_000 && (why.holds[0]?.until ?? 0) > Date.now() + 3_000_000, 'since and until are told');
  t.ok((await grounds.control('automation.lift', { domain: 'orange.fr' }) as { lifted: number }).lifted >= 1);
  t.same(await listed(), []);
  t.ok(await eventually(() => simulator.accepted === 40, 20_000), 'it goes on at once');
});

t.test('mail leaves by the source that is chosen for it', async (t) => {
  const { simulator, send, grounds } = await stage(`
defaults: { connections: 4, message_rate: unset, connection_rate: unset }
providers: [{ id: google, match: [.google.com] }, { id: orange, match: [.orange.fr], egress: [{ id: quiet, connections: 1 }] }]
egress:
  - { id: one, address: 127.0.0.31, helo: one.demo.example }
  - { id: two, address: 127.0.0.32, helo: two.demo.example }
  - { id: quiet, address: 127.0.0.33, helo: quiet.demo.example }
  - { id: new, address: 127.0.0.34, helo: new.demo.example, warmup: { since: ${new Date().toISOString().slice(0, 10)}, per_day: [5] } }
pools:
  - { id: default, sources: [{ id: one, weight: 3 }, { id: two }] }
  - { id: quiet, sources: [{ id: quiet }] }
  - { id: warming, sources: [{ id: new }, { id: two }] }
use: [{ provider: orange, stream: receipts, pool: quiet }, { tenant: demo, provider: apple-like, pool: warming }]`.replace('apple-like', 'google').replace('{ tenant: demo, provider: google, pool: warming }', '{ tenant: demo, stream: newsletter, pool: warming }'),
  ['google', 'orange', 'yahoo'].map(generous), t);
  await Promise.all([send(80, 'gmail.com'), send(10, 'orange.fr')]);
  t.ok(await eventually(() => simulator.accepted === 90, 20_000));
  const from = (provider: string): Record<string, number> => Object.fromEntries([...simulator.record(provider).messagesFrom].map(([address, count]) => [address.replace('::ffff:', ''), count]));
  const { '127.0.0.31': one = 0, '127.0.0.32': two = 0 } = from('google');
  t.equal(one + two, 80);
  // Whoever is quickest at the beginning gets a few more: the shares themselves are test/schedule's.
  t.ok(one >= 45 && one <= 70, `weights 3 and 1: ${one} and ${two}`);
  t.same(from('orange'), { '127.0.0.33': 10 });
  t.equal(simulator.record('orange').mostOpen, 1, 'the provider from that source');
  grounds.edit('shaping.yaml', (text) => text.replace('stream: newsletter, pool: warming', 'pool: warming'));
  await pause(400);
  await send(20, 'yahoo.com');
  t.ok(await eventually(() => simulator.accepted === 110, 20_000));
  t.same(from('yahoo'), { '127.0.0.34': 5, '127.0.0.32': 15 }, 'a new source has its share of the day, the rest goes by the other');
});
