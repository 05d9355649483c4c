// What replies bring about, on a clock that the test moves: thresholds, actions, the way back, and what is
// told to whom. Every shipped rule is driven by its own examples.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { parseReply, type Outcome } from '../../daemon/mail/index.ts';
import { Automation, type Action, type AutomationState } from '../../daemon/schedule/index.ts';
import { laneLimits, loadSettings, type AutomationRule, type LaneLimits, type Shaping } from '../../daemon/settings/index.ts';
import { copyTree, REPOSITORY } from '../settings/tree.ts';

const BASE: LaneLimits = { connections: 10, connectionRate: { count: 100, perMs: 60_000, burst: 1 }, messageRate: { count: 50, perMs: 1_000, burst: 1 }, deliveriesPerConnection: 100, tls: 'opportunistic', idleMs: 1, tenantConnections: undefined, tenantMessageRate: undefined };
const MINUTE = 60_000;
const LANE = { id: 'main/google', label: 'main/google', provider: 'google', egress: 'main' };
const said = (line: string): Outcome => ({ kind: line.startsWith('5') ? 'failed' : 'deferred', phase: 'mail', host: 'mx', reason: '', class: 'rate', deadAddress: false, reply: parseReply(line.split('\n')) } as unknown as Outcome);
const delivered = { kind: 'delivered', phase: 'final', host: 'mx', reason: '', class: 'none', reply: parseReply(['250 2.0.0 ok']) } as unknown as Outcome;

interface Bench {
  readonly automation: Automation;
  readonly told: { readonly change: string; readonly by: string; readonly action: Action }[];
  now: number;
  hear(line: string, tenant?: string): void;
}

function bench(rules: readonly AutomationRule[], state?: AutomationState): Bench {
  const told: Bench['told'] = [];
  const shaping = { defaults: BASE, providers: [], egress: [], automation: rules, recovery: { add: 0.1, everyMs: MINUTE, holdMs: 1_440 * MINUTE } } as unknown as Shaping;
  const made: Bench = {
    now: 1_000_000, told,
    automation: new Automation({ shaping: () => shaping, clock: { now: () => made.now, after: () => () => undefined }, onChange: (change, action, by) => void told.push({ change, by, action }), ...(state !== undefined && { state }) }),
    hear: (line, tenant = 'acme') => made.automation.observe(LANE, tenant, said(line), ++made.now),
  };
  return made;
}

const rule = (more: Partial<AutomationRule>): AutomationRule => ({ id: 'r', reply: { pattern: /unusual/iu, count: 1, perMs: MINUTE }, action: 'suspend', forMs: 10 * MINUTE, ...more });

t.test('so many within the time, and not the echoes of what was on its way', async (t) => {
  const b = bench([rule({ reply: { pattern: /unusual rate/iu, count: 3, perMs: 60 * MINUTE } })]);
  b.hear('421 4.7.28 Unusual Rate of mail');
  b.hear('421 4.7.28 unusual rate of mail');
  b.hear('450 4.2.0 greylisted');
  b.now += 61 * MINUTE;
  b.hear('421 4.7.28 unusual rate of mail');
  t.same(b.told, [], 'the first two are too old by now');
  b.hear('421 4.7.28 unusual rate of mail');
  const before = b.now;
  b.hear('421-4.7.28 first line\n421 4.7.28 unusual rate of mail');
  t.match(b.told, [{ change: 'began', action: { rule: 'r', lane: LANE.id, tenant: '' } }]);
  t.match(b.automation.suspended(LANE.id), { pausedFor: 'suspended by rule r' });
  for (let i = 0; i < 5; i++) b.automation.observe(LANE, 'acme', said('421 unusual rate'), before);
  t.equal(b.told.length, 1, 'attempts from before it acted');
  t.equal(b.automation.suspended('main/other').pausedUntil, 0);
  b.automation.observe({ ...LANE, id: 'main/x', provider: 'x' }, 'acme', delivered, b.now);
  t.equal(b.told.length, 1);
});

t.test('each action, and the way back in steps', async (t) => {
  const connections = (b: Bench): number => b.automation.limits(LANE.id, BASE).connections;
  const rate = (b: Bench): number => { const { messageRate: of } = b.automation.limits(LANE.id, BASE); return of === undefined ? 0 : of.count * MINUTE / of.perMs; };
  const suspend = bench([rule({})]);
  t.equal(suspend.automation.limits(LANE.id, BASE), BASE, 'nothing said, nothing changed');
  suspend.hear('421 unusual');
  suspend.now += 10 * MINUTE;
  t.equal(suspend.automation.suspended(LANE.id).pausedUntil, 0);
  t.equal(connections(suspend), 1, 'it begins with one connection');
  const way: number[] = [];
  for (let i = 0; i < 11; i++, suspend.now += MINUTE) way.push(connections(suspend));
  t.same(way, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  t.equal(suspend.automation.limits(LANE.id, BASE), BASE);

  const slow = bench([rule({ action: 'slow', rate: { count: 10, perMs: MINUTE, burst: 1 } })]);
  slow.hear('421 unusual');
  t.equal(rate(slow), 10);
  t.equal(connections(slow), 10);
  slow.now += 10 * MINUTE;
  t.ok(rate(slow) > 10 && rate(slow) <= 0.05 * 3_000, `${rate(slow)} a minute`);
  slow.now += 10 * MINUTE;
  t.equal(rate(slow), 3_000);

  const halve = bench([rule({ action: 'halve' })]);
  halve.hear('421 unusual');
  t.same([connections(halve), rate(halve)], [5, 1_500]);
  halve.hear('421 unusual');
  t.same([connections(halve), rate(halve)], [2, 720]);
  for (let i = 0; i < 9; i++) halve.hear('421 unusual');
  t.equal(connections(halve), 1);
  halve.now += 12 * MINUTE;
  t.equal(connections(halve), 2, 'back by a tenth a minute, once it has ended');

  const single = bench([rule({ action: 'single' })]);
  single.hear('421 unusual');
  t.same([connections(single), rate(single)], [1, 3_000]);
  single.now += 12 * MINUTE;
  t.same([connections(single), rate(single)], [3, 3_000]);

  const tenant = bench([rule({ action: 'suspend-tenant' })]);
  tenant.hear('421 unusual', 'loud');
  t.ok(tenant.automation.tenantSuspended(LANE.id, 'loud') > tenant.now);
  t.equal(tenant.automation.tenantSuspended(LANE.id, 'quiet'), 0);
  t.equal(tenant.automation.suspended(LANE.id).pausedUntil, 0);
  t.equal(connections(tenant), 10);
});

t.test('what is said to mail leaves the rate of connections as it is, what is said to a connection does not', async (t) => {
  const opening = ({ automation }: Bench): number => automation.limits(LANE.id, BASE).connectionRate?.count ?? 0;
  const b = bench([rule({ action: 'halve' })]);
  b.hear('451 4.7.1 unusual');
  t.match(b.automation.limits(LANE.id, BASE), { connections: 5, messageRate: { count: 25 } });
  t.equal(opening(b), 100, 'or a few connections a minute would be what a lane of short sessions waits for');
  b.automation.observe(LANE, 'acme', { ...said('421 4.7.0 unusual'), phase: 'greet' }, ++b.now);
  t.equal(opening(b), 25);
  b.hear('451 4.7.1 unusual');
  t.equal(opening(b), 12, 'it stays so until the lane is back');
});

t.test('told off on its way back: a ceiling for a day, then on from there', async (t) => {
  const percent = (of: Automation): number => Math.round(of.shareOf(LANE.id) * 100);
  const b = bench([rule({})]);
  b.hear('421 unusual');
  t.equal(b.automation.shareOf(LANE.id), 1, 'the first time only says that the whole is too much');
  b.now += 14 * MINUTE;
  t.equal(percent(b.automation), 45);
  b.hear('421 unusual');
  b.now += 20 * MINUTE;
  t.equal(percent(b.automation), 36, 'four fifths of what it had');
  t.equal(b.automation.limits(LANE.id, BASE).connections, 3);
  t.match(b.automation.list().find(({ action }) => action === 'recover'), { rule: 'r', share: 0.45 * 0.8 });
  const restarted = bench([rule({})], b.automation.state());
  const again = restarted.automation;
  restarted.now = b.now + 1_419 * MINUTE;
  t.equal(percent(again), 36, 'all day, and over a restart');
  restarted.now += 14 * MINUTE;
  t.ok(percent(again) > 50 && percent(again) < 100, 'then step by step');
  restarted.now += 10 * MINUTE;
  t.equal(again.shareOf(LANE.id), 1);
  for (let i = 0; i < 40; i++) {
    b.now += 12 * MINUTE;
    b.hear('421 unusual');
  }
  t.ok(b.automation.shareOf(LANE.id) >= 0.05, 'never to nothing');
});

t.test('a share of attempts', async (t) => {
  const { reply: _reply, ...bare } = rule({ action: 'halve' });
  const b = bench([{ ...bare, share: { of: 'deferred', above: 0.5, least: 10, withinMs: 10 * MINUTE } }]);
  for (let i = 0; i < 5; i++) b.hear('450 4.2.0 later');
  t.equal(b.told.length, 0, 'too few to say anything');
  for (let i = 0; i < 5; i++) b.automation.observe(LANE, 'acme', delivered, ++b.now);
  t.equal(b.told.length, 0, 'a half is not more than a half');
  b.hear('450 4.2.0 later');
  t.equal(b.told.length, 1);
});

t.test('a receiver that greylists every stranger is not slowed down for', async (t) => {
  const loaded = loadSettings(copyTree(join(REPOSITORY, 'config')));
  if (!loaded.ok) throw new Error('config');
  const b = bench(loaded.settings.shaping.automation.filter(({ provider }) => provider === undefined));
  for (const line of ['450 4.2.0 greylisted, come back later', '451 4.7.1 Greylisting in action, please come back later']) {
    for (let i = 0; i < 150; i++) b.automation.observe(LANE, 'acme', { ...said(line), class: 'greylisted' }, ++b.now);
  }
  t.same(b.told, [], 'it says no to all of them once and means none of them');
  for (let i = 0; i < 99; i++) b.automation.observe(LANE, 'acme', said('450 4.2.0 later'), ++b.now);
  t.same(b.told, [], 'nor do they make up the number from which a share says something');
  b.hear('450 4.2.0 later');
  t.match(b.told, [{ action: { rule: 'mostly-deferred' } }]);
});

t.test('lifted, kept over a restart, and ended by time', async (t) => {
  const rules = [rule({}), rule({ id: 'q', action: 'suspend-tenant', reply: { pattern: /loud/u, count: 1, perMs: MINUTE } })];
  const b = bench(rules);
  b.hear('421 unusual');
  b.hear('421 loud', 'acme');
  const again = bench(rules, JSON.parse(JSON.stringify(b.automation.state())) as AutomationState);
  t.ok(again.automation.suspended(LANE.id).pausedUntil > again.now);
  t.ok(again.automation.tenantSuspended(LANE.id, 'acme') > again.now);
  t.equal(again.automation.lift((one) => one.rule === 'r', 'cli'), 1);
  t.match(again.told, [{ change: 'ended', by: 'cli', action: { rule: 'r' } }]);
  t.equal(again.automation.suspended(LANE.id).pausedUntil, 0);
  again.now += 11 * MINUTE;
  again.automation.sweep();
  t.match(again.told.at(-1), { change: 'ended', by: 'time', action: { rule: 'q', tenant: 'acme' } });
  t.notMatch(JSON.stringify(b.told.filter(({ action }) => action.action === 'suspend')), /acme/, 'a lane is everybody\'s: no name');
});

t.test('every shipped rule acts on its examples', async (t) => {
  const loaded = loadSettings(copyTree(join(REPOSITORY, 'config')));
  if (!loaded.ok) throw new Error('config');
  const { shaping } = loaded.settings;
  const written = parse(readFileSync(join(REPOSITORY, 'config/shaping.yaml'), 'utf8')) as { automation: { id: string; fixtures: string[] }[] };
  t.ok(shaping.automation.length >= 30);
  t.equal(laneLimits(shaping, { egress: 'default', provider: 'orange' }).connections, 2);
  for (const one of shaping.automation) {
    const examples = written.automation.find(({ id }) => id === one.id)?.fixtures ?? [];
    t.ok(examples.length > 0, one.id);
    for (const example of examples) {
      const b = bench([one]);
      const lane = { ...LANE, provider: one.provider ?? 'any' };
      const times = one.reply?.count ?? one.share?.least ?? 0;
      for (let i = 0; i < times; i++, b.now++) b.automation.observe(lane, 'a', said(one.reply === undefined ? '450 4.2.0 later' : example), b.now);
      t.match(b.automation.list()[0], { rule: one.id, action: one.action }, `${one.id}: ${example}`);
    }
  }
});
