// The end of a message's time, to the minute, through the real pipeline, schedule, spool, signer and
// deliverer to an MX on loopback; only the clock is the test's. Who can be attempted has the last attempt at
// the very end; who cannot (a suspended lane, a rate, a lane shut for hours) is over then all the same, and
// the sender is told each time.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { openDeliverer, type RouteResult } from '../../daemon/deliver/index.ts';
import { openResolver } from '../../daemon/dns/index.ts';
import type { Event, Journal } from '../../daemon/events/index.ts';
import { openLedger } from '../../daemon/ledger/index.ts';
import type { Reply } from '../../daemon/mail/index.ts';
import { openPipeline, type House } from '../../daemon/pipeline.ts';
import { Metrics, newId, openKeyring, openLog, readMasterKey, type Clock } from '../../daemon/runtime/index.ts';
import { Schedule, type LaneName } from '../../daemon/schedule/index.ts';
import { laneLimits, loadSettings, type LaneLimits, type Settings, type Tenant } from '../../daemon/settings/index.ts';
import { openSigner } from '../../daemon/sign/index.ts';
import { openSpool } from '../../daemon/spool/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';
import { makeSubmitted } from '../../daemon/submission/submitted.ts';
import { makeSandbox } from '../../scripts/sandbox.ts';
import { pause } from '../lib/daemon.ts';
import { startMx, type Mx, type MxScript } from '../lib/mx.ts';

// On a busy machine it takes longer than the usual half minute.
t.setTimeout(120_000);

const MINUTE = 60_000;
const RETRY_FOR = 60 * MINUTE;

interface Stage {
  readonly events: Event[];
  readonly mx: Mx;
  readonly clock: Clock;
  /** What holds on the lane; changed by the test. */
  readonly lane: { limits: Partial<LaneLimits>; pausedUntil: number };
  submit(to: string): Promise<string>;
  /** Moves the clock by quarters of a minute, and lets everything settle at each. */
  move(minutes: number): Promise<void>;
  refresh(): void;
}

async function stage(script: MxScript, t: { teardown(run: () => Promise<void>): void }): Promise<Stage> {
  const mx = await startMx(script);
  const dir = mkdtempSync(join(tmpdir(), 'postern-ends-'));
  const made = await makeSandbox(dir, { submissions: 1, submission: 2, pages: 3, metrics: 4, sink: mx.port });
  const loaded = loadSettings(made.root);
  if (!loaded.ok) throw new Error('the sandbox does not load');
  const settings = within(loaded.settings, RETRY_FOR);
  let now = Date.now();
  const timers = new Set<{ at: number; run: () => void }>();
  const clock: Clock = {
    now: () => now,
    after(ms, run) {
      const timer = { at: now + ms, run };
      timers.add(timer);
      return () => void timers.delete(timer);
    },
  };
  const [log, metrics, events] = [openLog('silent'), new Metrics(), [] as Event[]];
  const keyring = openKeyring(join(made.dataDir, 'keys'), readMasterKey(settings.server.masterKeyFile));
  const spool = await openSpool({ dir: join(made.dataDir, 'spool'), keyring, clock, log, reserveBytes: 0 });
  const store = openLedgerStore(made.dataDir);
  const ledger = openLedger({ store, keyring, clock });
  await ledger.recover();
  const resolver = openResolver(settings.server.resolver, clock);
  const lane: Stage['lane'] = { limits: {}, pausedUntil: 0 };
  const deliverer = openDeliverer({ settings: () => settings, resolver, clock, log, metrics, limits: (_lane, parts) => laneLimits(settings.shaping, parts) });
  const journal = { record: (event: Event) => void events.push(event) } as unknown as Journal;
  const house: House = { settings: () => settings, clock, log, metrics, keyring, ledger, spool, signer: openSigner({ clock }), deliverer, journal };
  const pipeline = openPipeline(house);
  const nameOf = (route: RouteResult): LaneName => (route.kind === 'hosts' ? { id: `default/${route.site}`, label: 'default/other', egress: 'default', provider: route.provider } : { id: 'default/unrouted', label: 'default/unrouted', egress: 'default', provider: '' });
  const schedule = new Schedule<RouteResult>({
    spool, clock, log, metrics,
    route: async (_tenant, domain) => {
      const route = await deliverer.siteOf(domain);
      return { lane: nameOf(route), route };
    },
    rules: ({ egress, provider }) => ({ limits: { ...laneLimits(settings.shaping, { egress, provider }), messageRate: undefined, connectionRate: undefined, ...lane.limits }, shared: [], pausedUntil: lane.pausedUntil, pausedFor: 'suspended' }),
    ended: (due, name) => pipeline.ended(due, name),
    run: (due, name, route) => pipeline.attempt(due, name, route),
  });
  schedule.start();
  t.teardown(async () => {
    const stopped = schedule.stop();
    deliverer.giveUpWaiting?.();
    await stopped;
    await deliverer.close();
    await spool.close();
    await ledger.close();
    await store.close();
    await resolver.close();
    await mx.close();
    rmSync(dir, { recursive: true, force: true });
  });
  const credential = settings.credentials.get('demo-receipts');
  return {
    events, mx, clock, lane,
    refresh: () => schedule.refresh(),
    async submit(to) {
      if (credential === undefined) throw new Error('the sandbox has no credential for receipts');
      const context = { id: newId(now), credential };
      const recipient = { wire: to };
      const raw = Buffer.from(`From: shop@demo.example\r\nTo: ${to}\r\nSubject: x\r\n\r\nhello\r\n`);
      const envelope = { mailFrom: 'shop@demo.example', recipients: [recipient], smtpUtf8: false, body: '7BIT' as const };
      const refused: Reply | undefined = (await pipeline.sender(context, 'shop@demo.example')) ?? (await pipeline.recipient(context, recipient));
      const { code, lines } = refused ?? await pipeline.message(makeSubmitted({ id: context.id, credential, envelope, raw, at: now, protocol: 'ESMTPSA' }));
      if (code !== 250) throw new Error(`${code} ${lines.join(' ')}`);
      await settled();
      return context.id;
    },
    async move(minutes) {
      for (let step = 0; step < minutes * 4; step++) {
        now += MINUTE / 4;
        for (const timer of [...timers].toSorted((a, b) => a.at - b.at)) {
          if (timer.at > now || !timers.delete(timer)) continue;
          timer.run();
        }
        await settled();
      }
    },
  };
  /** Until no attempt is under way and the timers have had their effect. */
  async function settled(): Promise<void> {
    for (let i = 0; i < 400; i++) {
      await pause(i === 0 ? 15 : 5);
      if (schedule.lanes().every(({ active }) => active === 0)) return;
    }
  }
}

/** Every stream gives up after so long. */
function within(settings: Settings, retryForMs: number): Settings {
  const tenants = new Map([...settings.tenants].map(([id, tenant]): [string, Tenant] =>
    [id, { ...tenant, streams: new Map([...tenant.streams].map(([name, stream]) => [name, { ...stream, retryForMs }])) }]));
  return { ...settings, tenants, shaping: { ...settings.shaping, retry: { firstMs: 7 * MINUTE, maxMs: 50 * MINUTE } } };
}

/** Events of a message, as `minute kind`. */
const told = (events: readonly Event[], id: string, from: number): string[] =>
  events.filter((event) => event.message_id === id && event.event !== 'accepted').map(({ at, event }) => `${Math.floor((at - from) / MINUTE)} ${event}`);

/** Notices that went to the sender, as what they say of the recipient. */
const notices = (mx: Mx): string[] => mx.messages.filter(({ to }) => to.includes('shop@demo.example')).map(({ body }) => /^Final-Recipient:\s*rfc822;\s*(\S+)/im.exec(body.toString())?.[1] ?? '');

t.test('the last attempt is at the very end, and the message ends with it', async (t) => {
  const { events, mx, clock, submit, move } = await stage({ answers: { rcpt: (_n, line) => (line.includes('later@') ? '451 4.3.0 not now' : undefined) } }, t);
  const from = clock.now();
  const id = await submit('later@d.example');
  await move(59.5);
  const before = told(events, id, from);
  t.ok(before.length >= 3 && before.every((line) => line.endsWith('deferred')), before.join(', '));
  await move(1);
  t.equal(told(events, id, from).at(-1), '60 expired');
  t.match(events.find(({ event }) => event === 'expired'), { attempts: before.length + 1, code: 451 }, 'by an attempt');
  await move(1);
  t.same(notices(mx), ['later@d.example']);
});

t.test('a lane that is suspended, held by its rate or shut for hours keeps nobody beyond their time', async (t) => {
  const { events, mx, clock, lane, submit, move, refresh } = await stage({ answers: { rcpt: (_n, line) => (line.includes('later@') ? '451 4.3.0 not now' : undefined) } }, t);
  const from = clock.now();
  const deferred = await submit('later@d.example');
  lane.pausedUntil = from + 10 * 60 * MINUTE;
  const untouched = await submit('first@d.example');
  await move(59.75);
  t.same([told(events, deferred, from), told(events, untouched, from)], [['0 deferred'], []]);
  await move(1.25);
  t.same([told(events, deferred, from), told(events, untouched, from)], [['0 deferred', '60 expired'], ['60 expired']], 'within the minute');
  const ends = events.filter(({ event }) => event === 'expired');
  t.ok(ends.every(({ at }) => at - from <= 61 * MINUTE));
  t.match(ends.find(({ message_id: id }) => id === deferred), { attempts: 1, class: 'expired', reason: /over before it could be tried again; last it was told: 451 4\.3\.0 not now/, lane: /^default\// });
  t.match(ends.find(({ message_id: id }) => id === untouched), { attempts: 0 });
  lane.pausedUntil = 0;
  lane.limits = { messageRate: { count: 1, perMs: 40 * MINUTE, burst: 1 } };
  refresh();
  const late = clock.now();
  const some = [await submit('a@d.example'), await submit('b@d.example'), await submit('c@d.example'), await submit('d@d.example')];
  await move(61);
  const kinds = some.map((id) => events.findLast((event) => event.message_id === id)?.event);
  t.ok(kinds.includes('expired'), 'a rate that is too low for all');
  t.equal(mx.messages.filter(({ to }) => some.length > 0 && /[abcd]@d\.example/.test(to)).length, kinds.filter((kind) => kind === 'delivered').length, 'nothing that is over was sent');
  t.ok(events.filter(({ event, at }) => event === 'expired' && at > late).every(({ at }) => at - late <= 61 * MINUTE));
  lane.limits = {};
  refresh();
  await move(2);
  const over = events.filter(({ event }) => event === 'expired').length;
  t.equal(notices(mx).length, over, 'of each the sender is told when mail can go again');
  t.notOk(mx.messages.some(({ to }) => to === 'first@d.example'));
});
