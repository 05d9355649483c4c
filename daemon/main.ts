// The composition root: opens the rooms left to right, closes them right to left. The order of a stop
// matters: no new mail first, then no new attempts, then what is under way settles, then the stores.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { openApi, openObserve, operationsOf, serveControl, openTlsReports, watchPolicies, type Desk } from './admin/index.ts';
import { openDeliverer, type Deliverer, type RouteResult } from './deliver/index.ts';
import { openResolver } from './dns/index.ts';
import { newEvent, openJournal, type Journal } from './events/index.ts';
import { openFeedback, openSentCopies } from './feedback/index.ts';
import { openLedger, type Ledger } from './ledger/index.ts';
import { openPipeline, type House, type Pipeline } from './pipeline.ts';
import { MailError, type Due } from './mail/index.ts';
import { Metrics, notify, openKept, openKeyring, openLog, readMasterKey, systemClock, type Kept, type Keyring, type Log } from './runtime/index.ts';
import { Automation, Flow, FLOWS, Schedule, WarmUp, type AutomationState, type LaneName, type LaneRules, type Routed, type Source, type WarmUpState } from './schedule/index.ts';
import { formatProblem, laneLimits, openSettings, policyProblem, sharedLimits, sourcesOf, type EgressSource, type LaneLimits, type LaneParts, type LiveSettings, type Problem, type Settings } from './settings/index.ts';
import { openSigner } from './sign/index.ts';
import { openSpool, type Spool } from './spool/index.ts';
import { openLedgerStore } from './store/index.ts';
import { openSubmission } from './submission/index.ts';
import { openPages } from './web/index.ts';

/** What the daemon and the CLI both work on: keys, ledger, spool and journal of one data directory. */
export interface Stores {
  readonly live: LiveSettings;
  readonly keyring: Keyring;
  readonly ledger: Ledger;
  readonly spool: Spool;
  readonly journal: Journal;
  close(): Promise<void>;
}

/** A running daemon. */
export interface Daemon {
  readonly live: LiveSettings;
  /** Stops taking mail, lets what is under way finish, closes everything. */
  stop(): Promise<void>;
}

// How long the start waits for new policy pages: our own answer in milliseconds.
const POLICY_LOOK_MS = 2_000;
// Evidence kept after an erasure is kept for years: an hour more is nothing.
const SWEEP_MS = 3_600_000;

export const controlSocket = (settings: { readonly server: Pick<Settings['server'], 'dataDir'> }): string => join(settings.server.dataDir, 'control.sock');

/** Opens settings, keys and stores. @throws MailError E_CONFIG, E_KEY_UNREADABLE, E_KEY_WRONG, E_STORE, E_STORE_LOCKED */
export async function openStores(root: string, log: Log, metrics = new Metrics(), onReloaded: () => void = () => undefined): Promise<Stores> {
  const clock = systemClock;
  let journal: Journal | undefined;
  let ledger: Ledger | undefined;
  const live = openSettings(root, {
    clock, log,
    check: (settings) => (ledger === undefined ? [] : policyProblems(root, ledger, settings)),
    onReload: (settings) => {
      metrics.reloadOk.set(1);
      metrics.reloadAt.set(clock.now() / 1000);
      journal?.record(newEvent('reloaded', clock, { by: 'reload', reason: settings.hash.slice(0, 16) }));
      keyring?.load(settings.tenants.keys());
      if (ledger !== undefined) registerPolicies(ledger, settings).then(onReloaded, (error: unknown) => log.error({ error: String(error) }, 'new policy versions could not be recorded; they are not in force'));
    },
    onFailed: (problems) => {
      metrics.reloadOk.set(0);
      journal?.record(newEvent('reload-failed', clock, { by: 'reload', reason: `${problems.length} problems; the old configuration stays in force` }));
    },
  });
  const { server, tenants } = live.current();
  let keyring: Keyring | undefined;
  // The database makes its files with what the umask leaves: nothing for others, whatever started us.
  process.umask(0o077);
  mkdirSync(server.dataDir, { recursive: true, mode: 0o700 });
  keyring = openKeyring(join(server.dataDir, 'keys'), readMasterKey(server.masterKeyFile));
  keyring.load(tenants.keys());
  metrics.reloadOk.set(1);
  metrics.reloadAt.set(clock.now() / 1000);
  const spool = await openSpool({ dir: join(server.dataDir, 'spool'), keyring, clock, log, reserveBytes: server.limits.diskReserveBytes });
  const store = openLedgerStore(server.dataDir);
  ledger = openLedger({ store, keyring, clock, hostname: server.hostname });
  const opened = { live, keyring, ledger, spool, journal: openJournal({
    dir: join(server.dataDir, 'events'), clock, keepMs: server.limits.keepEventsMs, log,
    onSealed: async ({ segment, tenants: parts }) => {
      for (const { tenant, lines, sha256 } of parts) if (live.current().tenants.has(tenant)) await opened.ledger.note(tenant, 'journal', 'postern', { segment, lines, sha256 });
    },
  }) };
  journal = opened.journal;
  const close = async (): Promise<void> => {
    live.close();
    await opened.spool.close();
    await opened.journal.close(); // its last file becomes a leaf
    await opened.ledger.close();
    await store.close();
  };
  try {
    await ledger.recover();
    const problems = policyProblems(root, ledger, live.current());
    if (problems.length > 0) throw new MailError('E_CONFIG', problems.map(formatProblem).join('\n'));
    await registerPolicies(ledger, live.current());
    await ledger.sweep();
  } catch (error) {
    await close();
    throw error;
  }
  return { ...opened, close };
}

/** Policy versions that contradict what people consented under. */
function policyProblems(root: string, ledger: Ledger, { tenants }: Settings): readonly Problem[] {
  return [...tenants.values()].flatMap(({ id, policies }) => ledger.policyConflicts(id, policies).map(({ version, reason }) => policyProblem(root, id, version, reason)));
}

async function registerPolicies(ledger: Ledger, { tenants }: Settings): Promise<void> {
  for (const { id, policies } of tenants.values()) await ledger.register(id, policies);
}

/** Runs the relay on the tree in `root` until stop(). What was opened before a failure is closed again. */
export async function serve(root: string, options: { readonly log?: Log } = {}): Promise<Daemon> {
  const closers: (() => Promise<void> | void)[] = [];
  const close = async (): Promise<void> => {
    for (const step of closers.splice(0).toReversed()) await step();
  };
  try {
    const live = await open(root, closers, options.log);
    return { live, stop: close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Opens the rooms left to right; `closers` gets one entry for each, to be run from the last to the first. */
async function open(root: string, closers: (() => Promise<void> | void)[], givenLog: Log | undefined): Promise<LiveSettings> {
  const clock = systemClock;
  const metrics = new Metrics();
  const stores = await openStores(root, givenLog ?? openLog('info'), metrics, () => {
    schedule.reroute();
    void policies.look();
  });
  closers.push(() => stores.close());
  const { live, keyring, ledger, spool, journal } = stores;
  const settings = (): Settings => live.current();
  const log = givenLog ?? openLog(settings().server.log.level);
  const signer = openSigner({ clock });
  // Every key is read before the first message is taken: no keys, no start (design §4).
  for (const tenant of settings().tenants.values()) for (const domain of tenant.domains) signer.load(domain);
  const resolver = openResolver(settings().server.resolver, clock);
  closers.push(() => resolver.close());
  const lanes = startLanes({ settings, keyring, clock, log, metrics, journal }, (lane) => schedule.refresh(lane));
  closers.push(() => lanes.keep());
  const reports = openTlsReports({ settings, keyring, ledger, spool, resolver, clock, log });
  closers.push(() => reports.close());
  const keptIn = <State>(name: string): Kept<State> => openKept(join(settings().server.dataDir, name), keyring.house, log);
  const deliverer = openDeliverer({ settings, resolver, clock, log, metrics, limits: lanes.limits, tlsSeen: reports.seen, policies: keptIn('mta-sts'), spokeTls: keptIn('spoke-tls') });
  closers.push(() => deliverer.close());
  const sent = openSentCopies(settings().server.dataDir, { clock, log });
  closers.push(() => sent.close());
  const house: House = { settings, clock, log, metrics, keyring, ledger, spool, signer, deliverer, journal, sent };
  const pipeline = openPipeline(house);
  const schedule = new Schedule<RouteResult>({
    spool, clock, log, metrics,
    route: async (_tenant, domain) => laneOf(await deliverer.siteOf(domain)),
    rules: lanes.rules,
    sources: (lane, tenant, stream) => lanesOf(settings(), lane, tenant, stream),
    tenantPausedUntil: (lane, tenant) => lanes.automation.tenantSuspended(lane, tenant),
    total: (tenant) => settings().shaping.tenants.get(tenant),
    started: lanes.started,
    ended: pipeline.ended,
    run: (due, lane, route) => observed(pipeline.attempt(due, lane, route), lane, due, lanes, clock.now()),
  });
  closers.push(() => stopSending(schedule, deliverer));
  const feedback = await openFeedback({ settings, keyring, ledger, sent, clock, log, metrics, record: (event) => journal.record(event) });
  closers.push(() => feedback.close());
  const pages = await openPages({ settings, keyring, ledger, clock, log, metrics, record: (event, sealed) => journal.record(event, sealed) });
  closers.push(() => pages.close());
  const api = await openApi({ settings, ledger, journal, keyring, clock, log, metrics });
  closers.push(() => api.close());
  const policies = watchPolicies({ settings, ledger, clock, log, record: (event) => journal.record(event) });
  closers.push(() => policies.close());
  let ready = false;
  const observe = await openObserve({ settings, metrics, ready: () => ({ ok: ready, why: ready ? '' : 'starting or stopping' }) });
  closers.push(() => observe.close());
  const submission = await openSubmission({ settings, clock, log, metrics, hooks: noted(pipeline, lanes.flow) });
  closers.push(() => submission.drain());
  const desk: Desk = { settings, ledger, keyring, spool, journal, clock, lanes: () => schedule.lanes(), route: (domain) => deliverer.siteOf(domain), automation: lanes.automation, flow: lanes.flow, due: (lane, most) => schedule.due(lane, most), waits: deliverer.waits, expel: (tenant) => submission.expel(tenant) };
  const reload = (): Promise<unknown> => reloadWith(live, () => {
    submission.renewCertificate();
    for (const room of [feedback, pages, api]) room.renewTls();
  });
  const control = await serveControl({ socketPath: controlSocket(settings()), operations: { ...operationsOf(desk), reload }, log });
  closers.push(() => control.close());
  onSignal('SIGHUP', () => void reload(), closers);
  live.watch();
  schedule.start();
  every(5_000, () => {
    lanes.keep();
    gauge(metrics, spool, lanes.automation);
  }, closers);
  every(SWEEP_MS, () => void ledger.sweep().catch((error: unknown) => log.error({ error: String(error) }, 'kept evidence could not be swept')), closers);
  journal.record(newEvent('started', clock, {}));
  closers.push(async () => {
    ready = false;
    journal.record(newEvent('stopped', clock, {}));
    await notify('STOPPING=1');
  });
  // A page that does not answer must not keep everybody else's mail waiting.
  await Promise.race([policies.look(), new Promise<void>((done) => clock.after(POLICY_LOOK_MS, () => done()))]);
  ready = true;
  await notify('READY=1');
  log.info({ hostname: settings().server.hostname, hash: settings().hash.slice(0, 16) }, 'postern is ready');
  return live;
}

/** Reads the tree and the certificates again; answers what was wrong with the tree. */
async function reloadWith(live: LiveSettings, renew: () => void): Promise<unknown> {
  await notify('RELOADING=1');
  const result = await live.reload();
  renew();
  await notify('READY=1', result.ok ? 'STATUS=configuration reloaded' : 'STATUS=the configuration on disk has errors, the old one stays in force');
  return result;
}

/** What receivers' replies bring about, kept over restarts and told of in the journal. */
function startLanes({ settings, keyring, clock, log, metrics, journal }: Pick<House, 'settings' | 'keyring' | 'clock' | 'log' | 'metrics' | 'journal'>, refresh: (lane: string) => void): Lanes {
  const kept = openKept<AutomationState>(join(settings().server.dataDir, 'automation'), keyring.house, log);
  const automation: Automation = new Automation({
    shaping: () => settings().shaping, clock, ...(kept.state !== undefined && { state: kept.state }),
    onChange(change, action, by, label) {
      if (change === 'began') metrics.automation.inc({ rule: action.rule, action: action.action, lane: label });
      const { lane, rule, tenant, until, action: what } = action;
      // A tenant is told of what concerns it alone; a lane is everybody's, and its line names nobody.
      journal.record(newEvent(change === 'began' ? 'automation-began' : 'automation-ended', clock, { lane, rule, by, reason: what, next_at: until, ...(tenant !== '' && { tenant }) }));
      kept.keep(automation.state());
      refresh(lane);
    },
  });
  const warmed = openKept<WarmUpState>(join(settings().server.dataDir, 'warm-up'), keyring.house, log);
  const warmUp = new WarmUp(clock, warmed.state);
  const limits = (lane: string, parts: LaneParts): LaneLimits => automation.limits(lane, laneLimits(settings().shaping, parts));
  return {
    automation, limits, flow: new Flow(clock),
    rules: (lane) => ({ limits: limits(lane.id, lane), shared: sharedLimits(settings().shaping, lane), ...pausedOf(lane, settings(), automation, warmUp) }),
    started: (lane) => warmUp.count(lane.id, sourceOf(settings(), lane)),
    keep() {
      automation.sweep();
      if (warmUp.changed) warmed.keep(warmUp.state());
    },
  };
}

/** What holds for lanes at a moment, whoever asks. */
interface Lanes {
  readonly automation: Automation;
  readonly flow: Flow;
  readonly limits: (lane: string, parts: LaneParts) => LaneLimits;
  readonly rules: (lane: LaneName) => LaneRules;
  readonly started: (lane: LaneName) => void;
  /** Tells of what has ended, and writes down what must outlive a restart. */
  keep(): void;
}

/** An attempt, of whose end note is taken. */
async function observed(attempt: ReturnType<Pipeline['attempt']>, lane: LaneName, due: Due, { automation, flow }: Lanes, beganAt: number): ReturnType<Pipeline['attempt']> {
  const ended = await attempt;
  const kind = FLOWS.find((one) => one === ended.outcome.kind);
  if (kind !== undefined) flow.note(lane.id, kind);
  automation.observe(lane, due.message.origin.tenant, ended.outcome, beganAt);
  return ended;
}

/** The pipeline, with note taken of what it accepts. */
function noted(pipeline: Pipeline, flow: Flow): Pipeline {
  return {
    ...pipeline,
    async message(submitted) {
      const said = await pipeline.message(submitted);
      if (said.code === 250) flow.note('', 'accepted');
      return said;
    },
  };
}

/** Nothing more is begun, and what waits for leave is given up: a rate may be one an hour, and no stop waits for that. */
function stopSending(schedule: Schedule<RouteResult>, deliverer: Deliverer): Promise<void> {
  const stopped = schedule.stop();
  deliverer.giveUpWaiting?.();
  return stopped;
}

function every(ms: number, run: () => void, closers: (() => void)[]): void {
  const timer = setInterval(run, ms);
  closers.push(() => clearInterval(timer));
}

function onSignal(signal: NodeJS.Signals, run: () => void, closers: (() => void)[]): void {
  process.on(signal, run);
  closers.push(() => void process.off(signal, run));
}

/** The source a lane leaves by; none where nothing leaves. */
const sourceOf = ({ shaping }: Settings, { id: lane, egress }: LaneName): EgressSource | undefined => (lane.endsWith('/unrouted') ? undefined : shaping.egress.find(({ id }) => id === egress));

/** What keeps a whole lane waiting: a rule, or an address that has had its share of the day. */
function pausedOf(lane: LaneName, settings: Settings, automation: Automation, warmUp: WarmUp): Pick<LaneRules, 'pausedUntil' | 'pausedFor'> {
  const suspended = automation.suspended(lane.id);
  const until = warmUp.pausedUntil(lane.id, sourceOf(settings, lane));
  return until > suspended.pausedUntil ? { pausedUntil: until, pausedFor: `warm-up: source ${lane.egress} has sent its share of the day` } : suspended;
}

/** The way of a route: everything that cannot be routed shares one, where it is settled quickly. */
function laneOf(route: RouteResult): Routed<RouteResult> {
  const { site, label, provider } = route.kind === 'hosts' ? route : { site: 'unrouted', label: 'unrouted', provider: '' };
  return { lane: laneFrom('default', site, label, provider), route };
}

const laneFrom = (egress: string, site: string, label: string, provider: string): LaneName => ({ id: `${egress}/${site}`, label: `${egress}/${label}`, egress, provider });

/** The lanes to where one leads, by the sources a tenant's stream may leave by. */
function lanesOf({ shaping }: Settings, { id, label, provider, egress }: LaneName, tenant: string, stream: string | undefined): readonly Source[] {
  return sourcesOf(shaping, provider, tenant, stream).map((source) => ({
    lane: laneFrom(source.id, id.slice(egress.length + 1), label.slice(egress.length + 1), provider), weight: source.weight,
  }));
}

function gauge(metrics: Metrics, spool: Spool, automation: Automation): void {
  metrics.automationHeld.reset();
  for (const { action } of automation.list()) metrics.automationHeld.inc({ action });
  const { recipients, segmentBytes, liveBytes } = spool.counts();
  metrics.queued.set(recipients);
  metrics.spoolBytes.set({ what: 'segments' }, segmentBytes);
  metrics.spoolBytes.set({ what: 'live' }, liveBytes);
}
