// T32: random lives of people and their mail, through the real pipeline, ledger, gate, spool and signer;
// only the MX is a function that writes down what would have been DATA. A model of a few lines knows who
// may be mailed at each moment; it and the house must agree at every RCPT and at every DATA, and in the
// end everybody who may be mailed has got what was accepted for them. Seeded: POSTERN_MODEL_SEED repeats
// a run; POSTERN_MODEL_RUNS=10000 is the long one, which .ci/run asks for.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { openJournal } from '../../daemon/events/index.ts';
import { importConsents, importSuppressions, openLedger, type Ledger, type SuppressionCause } from '../../daemon/ledger/index.ts';
import { parseAddress, type AddressHashes, type Due, type Outcome, type Signed } from '../../daemon/mail/index.ts';
import { openPipeline, type House } from '../../daemon/pipeline.ts';
import { Metrics, newId, openKeyring, openLog, readMasterKey } from '../../daemon/runtime/index.ts';
import { loadSettings, type Policy, type Settings, type Tenant } from '../../daemon/settings/index.ts';
import { openSigner } from '../../daemon/sign/index.ts';
import { openSpool } from '../../daemon/spool/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';
import { makeSubmitted } from '../../daemon/submission/submitted.ts';
import { makeSandbox } from '../../scripts/sandbox.ts';

const RUNS = Number(process.env['POSTERN_MODEL_RUNS'] ?? 1_000);
const SEED = Number(process.env['POSTERN_MODEL_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const HOUR = 3_600_000;
const START = Date.now();
const LONG_AGO = START - 30 * 24 * HOUR;
const MODES = ['none', 'individual'] as const;
const ACTS = [
  'give', 'give', 'give', 'giveOld', 'import', 'pending', 'withdraw', 'expiring', 'unsubscribe', 'object', 'bounce', 'importSuppression', 'restrict', 'lift', 'erase',
  'suspend', 'resume', 'narrow', 'untracked', 'back', 'restart', 'submit', 'submit', 'submit', 'lost', 'send', 'send', 'wait',
] as const;
type Act = (typeof ACTS)[number];

/** A generator whose whole run can be repeated. */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) % below;
  };
}

interface Person {
  readonly address: string;
  readonly family: string;
  record: { readonly kind: 'given' | 'other'; readonly until: number; readonly mode: (typeof MODES)[number]; readonly old?: boolean } | undefined;
  /** What stands against this spelling alone, and is it an unsubscribe? */
  own: ('unsubscribe' | 'bounce')[];
  waiting: number;
  delivered: number;
}

t.test(`T32: never DATA without a permission at that attempt; ${RUNS} sequences, seed ${SEED}`, { timeout: 600_000 }, async (t) => {
  // Syncs to a memory disk cost nothing: this is about what is decided, test/crash about what is on disk.
  const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'postern-model-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const world = await openWorld(dir);
  const next = random(SEED);
  const counts = { rcpt: 0, refused: 0, data: 0, delivered: 0, ended: 0, restarts: 0 };
  for (let run = 0; run < RUNS; run++) {
    const made = (act: Act, who: number): { act: Act; who: number; mode: (typeof MODES)[number] } => ({ act, who, mode: MODES[next(2)] ?? 'none' });
    // Most lives begin with a yes and some mail, or there would be little to take back.
    const first = [0, 1, 2].flatMap((who) => [...(next(3) > 0 ? [made('give', who)] : []), ...(next(2) > 0 ? [made('submit', who)] : [])]);
    const acts = [...first, ...Array.from({ length: 3 + next(8) }, () => made(ACTS[next(ACTS.length)] ?? 'wait', next(3)))];
    // Opening everything anew costs as much as fifty other acts.
    const fault = await world.live(run, acts.filter(({ act }) => act !== 'restart' || run % 20 === 0), next, counts);
    if (fault !== undefined) {
      t.fail(`sequence ${run}: ${fault}\n${acts.map(({ act, who, mode }) => `${act} ${who} ${mode}`).join('\n')}`);
      break;
    }
  }
  t.comment(JSON.stringify(counts));
  t.ok(counts.refused > RUNS / 10 && counts.data > RUNS / 10 && counts.delivered > RUNS / 10, 'all kinds of answers were seen');
  t.ok(counts.ended > RUNS / 50, 'and mail that was accepted and then had to stop');
  await world.close();
});

async function openWorld(dir: string): Promise<{ live: typeof live; close: () => Promise<void> }> {
  const made = await makeSandbox(dir, { submissions: 1, submission: 2, pages: 3, metrics: 4, sink: 5 });
  const loaded = loadSettings(made.root);
  if (!loaded.ok) throw new Error('the sandbox does not load');
  const [demo] = loaded.settings.tenants.values();
  const v1 = demo?.policies[0];
  const credential = demo?.credentials[0];
  if (demo === undefined || v1 === undefined || credential === undefined) throw new Error('the sandbox has no tenant');
  // The Ed25519 key alone: an RSA signature takes as long as all the rest of a sequence.
  const slim: Tenant = { ...demo, domains: demo.domains.map((domain) => ({ ...domain, dkim: domain.dkim.filter(({ selector }) => selector.includes('ed25519')) })) };
  const withPolicy = (over?: Partial<Policy>): Settings => {
    const policies = over === undefined ? [v1] : [v1, { ...v1, version: '2', hash: 'f'.repeat(64), effectiveAt: START, ...over }];
    return { ...loaded.settings, tenants: new Map([['demo', { ...slim, policies }]]) };
  };
  const forms = { base: withPolicy(), narrow: withPolicy({ purposes: ['receipts'] }), untracked: withPolicy({ tracking: { opens: 'none', clicks: 'none' } }) };
  const clock = { at: START, now: () => clock.at, after: () => () => undefined };
  const log = openLog('silent');
  const keyring = openKeyring(join(made.dataDir, 'keys'), readMasterKey(loaded.settings.server.masterKeyFile));
  const journal = openJournal({ dir: join(dir, 'events'), clock, keepMs: HOUR, log });
  const signer = openSigner({ clock });
  let form: keyof typeof forms = 'base';
  let suspended = false;
  let people: Person[] = [];
  let answer: () => boolean = () => true;
  let fault: string | undefined;
  let counts = { rcpt: 0, refused: 0, data: 0, delivered: 0, ended: 0, restarts: 0 };

  const families = new Map<string, Set<string>>();
  const against = (person: Person): boolean => person.own.length > 0 || (families.get(person.family)?.size ?? 0) > 0;
  const may = (person: Person): boolean => !suspended && form !== 'narrow' && person.record?.kind === 'given' && person.record.until > clock.at && !against(person);

  const deliverer = {
    siteOf: () => Promise.reject(new Error('nobody asks')),
    async attempt(signed: Signed): Promise<Outcome> {
      counts.data++;
      const person = people.find(({ address }) => address === signed.recipient.wire);
      if (person === undefined) throw new Error(`DATA for ${signed.recipient.wire}, whose life is over`);
      const ceiling = form === 'untracked' ? 'none' : person.record?.mode ?? 'none';
      if (!may(person)) fault ??= `DATA for ${person.address} without permission`;
      if ((signed.pixel || signed.links > 0) !== (ceiling === 'individual')) fault ??= `${person.address} allows ${ceiling}, the copy has ${signed.links} links and ${signed.pixel ? 'a' : 'no'} pixel`;
      const detail = { phase: 'rcpt', host: 'mx.example', reason: 'the model says so', class: 'other' } as const;
      if (!answer()) return { kind: 'deferred', ...detail };
      person.waiting--;
      person.delivered++;
      counts.delivered++;
      return { kind: 'delivered', ...detail };
    },
    closeIdle: () => Promise.resolve(),
    close: () => undefined,
  };
  const openHouse = async (): Promise<House & { readonly closeAll: () => Promise<void> }> => {
    const store = openLedgerStore(made.dataDir);
    const ledger = openLedger({ store, keyring, clock });
    await ledger.recover();
    const spool = await openSpool({ dir: join(made.dataDir, 'spool'), keyring, clock, log, reserveBytes: 0 });
    return { settings: () => forms[form], clock, log, metrics: new Metrics(), keyring, ledger, spool, signer, deliverer, journal, async closeAll() {
      await spool.close();
      await ledger.close();
      await store.close();
    } };
  };
  let house = await openHouse();
  let pipeline = openPipeline(house);

  async function restart(): Promise<void> {
    counts.restarts++;
    await house.closeAll();
    house = await openHouse();
    pipeline = openPipeline(house);
  }

  /** `lost`: everything in memory goes between RCPT and the end of DATA. */
  async function submit(person: Person, lost: boolean): Promise<void> {
    const context = { id: newId(clock.at), credential: credential ?? failed() };
    const recipient = { wire: person.address, dsn: { notify: ['NEVER' as const] } };
    const expected = may(person);
    counts.rcpt++;
    const said = (await pipeline.sender(context, 'news@demo.example')) ?? (await pipeline.recipient(context, recipient));
    if ((said === undefined) !== expected) fault ??= `RCPT for ${person.address}: ${said === undefined ? 'yes' : said.lines.join(' ')}, the model says ${expected ? 'yes' : 'no'}`;
    if (said !== undefined) {
      counts.refused++;
      return;
    }
    if (lost) pipeline = openPipeline(house);
    const raw = Buffer.from(`From: news@demo.example\r\nTo: ${person.address}\r\nSubject: x\r\nContent-Type: text/html\r\n\r\n<html><body><a href="https://demo.example/a">a</a></body></html>\r\n`);
    const envelope = { mailFrom: 'news@demo.example', recipients: [recipient], smtpUtf8: false, body: '7BIT' as const };
    const { code } = await pipeline.message(makeSubmitted({ id: context.id, credential: context.credential, envelope, raw, at: clock.at, protocol: 'ESMTPSA' }));
    if (code === 250 && !lost) person.waiting++;
    else if (code === 250) fault ??= 'a message nobody had admitted was accepted';
    else if (lost ? code !== 451 : true) fault ??= `the message was answered ${code}`;
  }

  async function send(): Promise<void> {
    for (const { queue } of Array.from(house.spool.queues())) {
      for (const due of house.spool.due(queue, clock.at, 100)) {
        const person = people.find(({ address }) => address === due.recipient.wire);
        const ends = person !== undefined && !suspended && !may(person);
        await pipeline.attempt(due as unknown as Due, { id: 'lane', label: 'lane', egress: 'default', provider: '' }, { kind: 'hosts', provider: '', site: 's', label: 's', hosts: [], tls: 'off', viaRoute: true });
        if (!ends) continue;
        person.waiting--; // the gate's no at the attempt ends it
        counts.ended++;
      }
    }
  }

  async function act(name: Act, person: Person, mode: (typeof MODES)[number]): Promise<void> {
    const { ledger } = house;
    const hashes = ledger.hashes('demo', parseAddress(person.address));
    const give = (time: number, more: object = {}): Promise<unknown> => ledger.give('demo', {
      hashes, purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: v1?.hash ?? '', method: 'm', by: 't', evidence: { source: 's', time }, tracking: { opens: mode, clicks: mode }, ...more,
    });
    const given = (until: number): void => {
      person.record = { kind: 'given', until, mode };
      person.own = person.own.filter((cause) => cause !== 'unsubscribe');
    };
    const wall = (cause: string): void => void families.set(person.family, (families.get(person.family) ?? new Set()).add(cause));
    switch (name) {
      case 'give': await give(clock.at); given(Number.POSITIVE_INFINITY); break;
      case 'expiring': await give(clock.at, { expiresAt: clock.at + 2 * HOUR }); given(clock.at + 2 * HOUR); break;
      case 'giveOld':
        await give(LONG_AGO);
        // Told twice of one moment, the lesser choice holds.
        if (person.record === undefined) person.record = { kind: 'given', until: Number.POSITIVE_INFINITY, mode, old: true };
        else if (person.record.old === true && mode === 'none') person.record = { ...person.record, mode };
        break;
      case 'import':
        await importRow(ledger, forms.base, `email,purpose,source,time,policy,opens,clicks\n${person.address},newsletter,s,${clock.at},${v1?.version ?? ''},${mode},${mode}\n`, clock.at);
        given(Number.POSITIVE_INFINITY);
        break;
      case 'pending':
        await give(clock.at, { state: 'pending' });
        if (!(person.record?.kind === 'given' && person.record.until > clock.at)) person.record = { kind: 'other', until: 0, mode };
        break;
      case 'withdraw':
        await ledger.withdraw('demo', 'newsletter', hashes, 't');
        if (person.record !== undefined) person.record = { ...person.record, kind: 'other' };
        break;
      case 'unsubscribe': await suppress(ledger, hashes, 'unsubscribe', 'purpose:newsletter'); person.own.push('unsubscribe'); break;
      case 'bounce': await suppress(ledger, hashes, 'hard-bounce'); person.own.push('bounce'); break;
      case 'object': await suppress(ledger, hashes, 'objection'); wall('objection'); break;
      case 'restrict': await suppress(ledger, hashes, 'restriction'); wall('restriction'); break;
      case 'importSuppression':
        await importSuppressions(ledger, tenantOf(forms.base), rows(`email,cause\n${person.address},complaint\n`), { format: 'csv', now: clock.at, by: 't' });
        wall('complaint');
        break;
      case 'lift': await ledger.lift('demo', hashes, 't'); person.own = []; families.delete(person.family); break;
      case 'erase': await ledger.erase('demo', hashes, 't'); person.record = undefined; wall('erasure'); break;
      case 'suspend': await ledger.suspend('demo', 'x', 't'); suspended = true; break;
      case 'resume': await ledger.resume('demo', 't'); suspended = false; break;
      case 'narrow': form = 'narrow'; break;
      case 'untracked': form = 'untracked'; break;
      case 'back': form = 'base'; break;
      case 'restart': await restart(); break;
      case 'submit': await submit(person, false); break;
      case 'lost': await submit(person, true); break;
      case 'send': await send(); break;
      case 'wait': clock.at += 3 * HOUR; break;
      default: name satisfies never;
    }
  }

  async function live(run: number, acts: readonly { act: Act; who: number; mode: (typeof MODES)[number] }[], next: (below: number) => number, total: typeof counts): Promise<string | undefined> {
    counts = total;
    fault = undefined;
    answer = () => next(2) === 0;
    people = [[`a.b${run}@gmail.com`, `g${run}`], [`ab${run}+x@googlemail.com`, `g${run}`], [`p${run}@x.example`, `p${run}`]]
      .map(([address = '', family = '']) => ({ address, family, record: undefined, own: [], waiting: 0, delivered: 0 }));
    for (const { act: name, who, mode } of acts) {
      clock.at += 10;
      await act(name, people[who] ?? failed(), mode);
      if (fault !== undefined) return fault;
    }
    // The end: nothing stands in the way but people's own will, and the MX takes everything.
    if (suspended) await act('resume', people[0] ?? failed(), 'none');
    form = 'base';
    answer = () => true;
    clock.at += 5 * HOUR;
    await send();
    const left = people.find(({ waiting }) => waiting !== 0);
    if (left !== undefined) fault ??= `${left.waiting} of ${left.address} neither delivered nor ended`;
    if (house.spool.counts().recipients !== 0) fault ??= `${house.spool.counts().recipients} left in the spool`;
    return fault;
  }
  return { live, close: async () => {
    await house.closeAll();
    await journal.close();
  } };
}

async function* rows(text: string): AsyncGenerator<string> {
  yield text;
}

const tenantOf = (settings: Settings): Tenant => settings.tenants.get('demo') ?? failed();

async function importRow(ledger: Ledger, settings: Settings, text: string, now: number): Promise<void> {
  const { recorded, kept } = await importConsents(ledger, tenantOf(settings), rows(text), { format: 'csv', now, by: 't' });
  if (recorded + kept !== 1) throw new Error('the row was refused');
}

async function suppress(ledger: Ledger, hashes: AddressHashes, cause: SuppressionCause, scope: 'all' | 'purpose:newsletter' = 'all'): Promise<void> {
  await ledger.suppress('demo', { hashes, scope, cause, by: 't' });
}

function failed(): never {
  throw new Error('the test has no such thing');
}
