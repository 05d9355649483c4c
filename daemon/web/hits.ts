// Clicks and opens. The answer never waits for the ledger and never depends on it: a click leads to its
// sealed target and an open gets the one GIF, whatever became of the person's consent. What may be recorded
// is asked afterwards, of the gate, as of now: no, cannot tell, or a ceiling of none leaves no trace at all.
// `individual` is an event of the journal, the link in it sealed for the tenant; `lastOpenDate` one date
// of the person and `aggregate` a counter, which the ledger keeps (ledger/tracking.ts). Hits of machines are
// classed apart and never move a date. Everything is durable within a second or counted as lost; no
// network address, user agent or time of day beyond the event's own is kept of anybody.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { OPEN_MODES, type AddressHashes, type OpenMode } from '../mail/index.ts';
import { newEvent } from '../events/index.ts';
import { NO_MESSAGE, NOBODY } from '../compose/index.ts';
import type { OpenCount, OpenDate, Opener } from '../ledger/index.ts';
import { seal } from '../runtime/index.ts';
import { machineOf, type MachineRule } from './machines.ts';
import { personOf, touchOf, trackingNow, type PagesOptions, type Touch } from './touch.ts';

const GIF = Buffer.from('R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==', 'base64');
const DAY_MS = 86_400_000;
// Hits that are answered and not yet looked at: two seconds' worth at the rate the bench asks for. Beyond
// it they are answered and not recorded, so that a storm of prefetches costs no memory.
const WAITING = 16_000;
// Looked at between two turns of the event loop: a millisecond, which no answer notices.
const SLICE = 32;
// Counters and dates written together: some four milliseconds of one transaction.
const ROWS = 200;
// A crash takes at most this much and the time of one sync: well below the second that is promised.
const WRITE_MS = 250;

/** Says nothing to the target about where the reader came from, and is asked again each time. */
const QUIET = ['Referrer-Policy', 'no-referrer', 'Cache-Control', 'no-store'] as const;
const GIF_HEADERS = [...QUIET, 'Content-Type', 'image/gif', 'Content-Length', String(GIF.length), 'X-Content-Type-Options', 'nosniff'];

/** What the sealed part of a click is bound to. */
export const LINK_BOUND = 'clicked/link';
// Links remembered with their sealed form: those of some dozens of campaigns, at most two MiB.
const LINKS = 1_000;

type Page = 'click' | 'open';

/** A hit that has been answered. */
interface Hit {
  readonly page: Page;
  /** A click's has been opened to be answered; an open's waits, so that its time tells nothing. */
  readonly touch?: Touch;
  readonly token: string;
  readonly host: string | undefined;
  readonly machine: MachineRule | undefined;
}

/** What one tenant's hits come to until it is written. */
interface Gathered {
  readonly counts: Map<string, OpenCount>;
  readonly dates: Map<string, OpenDate>;
}

export class Hits {
  readonly #options: PagesOptions;
  readonly #links = new Map<string, Buffer>();
  readonly #counters = new Map<string, { inc(): void }>();
  #waiting: Hit[] = [];
  #looking: Promise<void> | undefined;
  #gathered = new Map<string, Gathered>();
  #cancelTimer: (() => void) | undefined;
  #writing: Promise<void> = Promise.resolve();

  constructor(options: PagesOptions) {
    this.#options = options;
  }

  /** True when it was a click of ours and has been answered. */
  click(token: string, request: IncomingMessage, response: ServerResponse): boolean {
    return this.#lead(touchOf(this.#options, 'click', token, request.headers.host), 302, (target) => target, token, request, response);
  }

  /** The same of a form: its fields go on to where they were meant to go, and are not looked at. */
  form(token: string, request: IncomingMessage, response: ServerResponse): boolean {
    const touch = touchOf(this.#options, 'form', token, request.headers.host);
    // RFC 9110 §15.4.8: 307 keeps method and body, which the reader's browser sends again.
    return this.#lead(touch, request.method === 'POST' ? 307 : 302, (target) => withFields(target, request), token, request, response);
  }

  #lead(touch: Touch | undefined, status: 302 | 307, goal: (target: string) => string, token: string, request: IncomingMessage, response: ServerResponse): boolean {
    const target = touch?.claim.target;
    if (touch === undefined || target === undefined || !mayRedirectTo(target)) {
      this.#count('click', 'invalid');
      return false;
    }
    response.writeHead(status, [...QUIET, 'Location', octetsOf(goal(target)), 'Content-Length', '0', ...(status === 307 ? ['Connection', 'close'] : [])]);
    response.end();
    this.#later('click', token, request, touch);
    return true;
  }

  /** The same answer for every token there is or could be. */
  open(token: string, request: IncomingMessage, response: ServerResponse): void {
    response.writeHead(200, GIF_HEADERS);
    response.end(request.method === 'HEAD' ? undefined : GIF);
    this.#later('open', token, request);
  }

  /** Resolves when every hit so far is recorded, durably, or left. */
  async settled(): Promise<void> {
    while (this.#looking !== undefined) await this.#looking;
    await this.#write();
  }

  #later(page: Page, token: string, request: IncomingMessage, touch?: Touch): void {
    if (this.#waiting.length >= WAITING) return this.#count(page, 'overload');
    this.#waiting.push({ page, token, host: request.headers.host, machine: machineOf(request), ...(touch !== undefined && { touch }) });
    this.#looking ??= this.#lookAll();
    return undefined;
  }

  async #lookAll(): Promise<void> {
    for (;;) {
      await new Promise(setImmediate); // the answers go first
      const hits = this.#waiting.splice(0, SLICE);
      if (hits.length === 0) break;
      for (const hit of hits) await this.#look(hit);
    }
    this.#looking = undefined;
  }

  async #look({ page, touch: known, token, host, machine }: Hit): Promise<void> {
    try {
      const touch = known ?? touchOf(this.#options, page, token, host);
      if (touch === undefined) return this.#count(page, 'invalid');
      const tracking = await trackingNow(this.#options, touch);
      const mode = page === 'click' ? tracking.clicks : lesser(tracking.opens, touch.claim.mode ?? 'none');
      if (mode === 'none') return this.#count(page, 'unrecorded');
      if (mode === 'individual') this.#tell(page, touch, machine);
      else if (mode === 'aggregate') this.#addCount(touch, machine);
      else if (machine === undefined) this.#addDate(touch);
      return this.#count(page, machine === undefined ? mode : 'machine');
    } catch (error) {
      this.#count(page, 'unknown');
      return this.#options.log.warn({ error: String(error) }, 'a hit was not recorded: consent could not be asked');
    }
  }

  #tell(page: Page, touch: Touch, machine: MachineRule | undefined): void {
    const { clock, record } = this.#options;
    const { claim, tenant } = touch;
    const event = newEvent(page === 'click' ? 'clicked' : 'opened', clock, {
      tenant, stream: claim.stream, message_id: claim.message, recipient: claim.recipient, person: personOf(touch), class: machine?.id ?? 'person',
    });
    if (claim.target === undefined) record(event);
    else record(event, this.#sealedLink(tenant, claim.target));
  }

  /** A link is sealed once and not for each click: that two people followed the same one may be seen, which one may not. */
  #sealedLink(tenant: string, target: string): Buffer {
    const name = `${tenant} ${target}`;
    let sealed = this.#links.get(name);
    if (sealed === undefined) {
      if (this.#links.size >= LINKS) this.#links.clear();
      this.#links.set(name, sealed = seal(this.#options.keyring.tenant(tenant).payload, Buffer.from(target), LINK_BOUND));
    }
    return sealed;
  }

  #addCount(touch: Touch, machine: MachineRule | undefined): void {
    const { stream, message: id, recipient } = touch.claim;
    // A pixel made for one person (their choice has narrowed since) is counted with the whole stream.
    const message = recipient === NOBODY && id !== NO_MESSAGE ? id : '';
    const day = this.#day();
    const key = `${message}/${day}/${stream}`;
    const { counts } = this.#of(touch.tenant);
    const { people, proxies, machines } = counts.get(key)?.opens ?? { people: 0, proxies: 0, machines: 0 };
    const opener: Opener = machine === undefined ? 'people' : machine.kind === 'proxy' ? 'proxies' : 'machines';
    const opens = { people, proxies, machines, [opener]: { people, proxies, machines }[opener] + 1 };
    counts.set(key, { stream, message, day, opens });
  }

  #addDate({ tenant, claim }: Touch): void {
    const hashes: Pick<AddressHashes, 'consent'> = { consent: claim.hashes.consent };
    this.#of(tenant).dates.set(`${claim.hashes.consent.toString('latin1')}${claim.purpose}`, { hashes, purpose: claim.purpose, day: this.#day() });
  }

  #day(): number {
    return Math.floor(this.#options.clock.now() / DAY_MS);
  }

  #of(tenant: string): Gathered {
    const known = this.#gathered.get(tenant);
    if (known !== undefined) return known;
    const made: Gathered = { counts: new Map(), dates: new Map() };
    this.#gathered.set(tenant, made);
    // The chain of writes never rejects.
    this.#cancelTimer ??= this.#options.clock.after(WRITE_MS, () => void this.#write());
    return made;
  }

  /** Writes what is gathered, behind what is being written. */
  #write(): Promise<void> {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    const gathered = this.#gathered;
    this.#gathered = new Map();
    this.#writing = this.#writing.then(() => this.#writeAll(gathered));
    return this.#writing;
  }

  async #writeAll(gathered: ReadonlyMap<string, Gathered>): Promise<void> {
    for (const [tenant, { counts, dates }] of gathered) await this.#writeOne(tenant, [...counts.values()], [...dates.values()]);
  }

  async #writeOne(tenant: string, counts: OpenCount[], dates: OpenDate[]): Promise<void> {
    const { ledger, log } = this.#options;
    try {
      while (counts.length + dates.length > 0) await ledger.tracking.record(tenant, counts.splice(0, ROWS), dates.splice(0, ROWS));
    } catch (error) {
      this.#count('open', 'lost');
      log.error({ error: String(error), tenant, rows: counts.length + dates.length }, 'opens could not be stored; they are lost');
    }
  }

  #count(page: Page, result: string): void {
    const name = `${page} ${result}`;
    let counter = this.#counters.get(name);
    if (counter === undefined) this.#counters.set(name, counter = this.#options.metrics.hits.labels({ page, result }));
    counter.inc();
  }
}

function lesser(a: OpenMode, b: OpenMode): OpenMode {
  return OPEN_MODES.indexOf(a) < OPEN_MODES.indexOf(b) ? a : b;
}

// Node refuses longer request lines anyway.
const MAX_FIELDS_CHARS = 8_000;

/** What a form of method GET adds takes the place of the target's own query (WHATWG HTML, form submission). */
function withFields(target: string, { method, url = '' }: IncomingMessage): string {
  const at = url.indexOf('?');
  if (method === 'POST' || at === -1) return target;
  const fields = url.slice(at, at + MAX_FIELDS_CHARS);
  const [, before = '', fragment = ''] = /^([^?#]*)(?:\?[^#]*)?(#.*)?$/.exec(target) ?? [];
  return /^[\x21-\x7e]+$/.test(fields) ? `${before}${fields}${fragment}` : target;
}

/** A header is written octet by octet: the target in UTF-8, as it stood in the mail. */
function octetsOf(target: string): string {
  return /^[\x20-\x7e]*$/.test(target) ? target : Buffer.from(target).toString('latin1');
}

/** http or https, and nothing that could end the header line. */
function mayRedirectTo(target: string): boolean {
  return /^https?:\/\/[^\0-\x1f\x7f]+$/i.test(target);
}
