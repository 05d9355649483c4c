// Clicks and opens. The answer never waits for the ledger and never depends on it: a click leads to
// its sealed target and an open gets the one GIF, whatever became of the person's consent. Whether the
// hit is recorded is asked afterwards, of the gate, as of now: no, cannot tell, or a ceiling of none
// leaves no trace at all. `aggregate` and `lastOpenDate` leave an event with tenant, stream and day and
// nothing of the person or the message: an append-only journal could not overwrite a date, as
// lastOpenDate asks, so it records the less that it allows. No address, user agent or URL is kept.
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import { OPEN_MODES, type OpenMode } from '../mail/index.ts';
import { newEvent } from '../events/index.ts';
import { personOf, touchOf, trackingNow, type PagesOptions, type Touch } from './touch.ts';

const GIF = Buffer.from('R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==', 'base64');
const DAY_MS = 86_400_000;
// Look-ups under way at once; beyond it hits are answered but not recorded, so that a storm of
// prefetches costs no memory.
const LOOKING = 1_000;

/** Says nothing to the target about where the reader came from, and is asked again each time. */
const QUIET = { 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store' } as const;

export class Hits {
  readonly #options: PagesOptions;
  readonly #looking = new Set<Promise<void>>();

  constructor(options: PagesOptions) {
    this.#options = options;
  }

  /** True when it was a click of ours and has been answered. */
  click(token: string, request: IncomingMessage, response: ServerResponse): boolean {
    const touch = touchOf(this.#options, 'click', token, request.headers.host);
    const target = touch?.claim.target;
    if (touch === undefined || target === undefined || !mayRedirectTo(target)) {
      this.#count('click', 'invalid');
      return false;
    }
    // A header is written octet by octet: this is the target in UTF-8, as it stood in the mail.
    response.writeHead(302, { ...QUIET, Location: Buffer.from(target).toString('latin1'), 'Content-Length': 0 });
    response.end();
    this.#later(touch, request, 'click');
    return true;
  }

  open(token: string, request: IncomingMessage, response: ServerResponse): void {
    response.writeHead(200, { ...QUIET, 'Content-Type': 'image/gif', 'Content-Length': GIF.length, 'X-Content-Type-Options': 'nosniff' });
    response.end(request.method === 'HEAD' ? undefined : GIF);
    // The answer has gone before the token is looked at: its time tells nothing either.
    setImmediate(() => {
      const touch = touchOf(this.#options, 'open', token, request.headers.host);
      if (touch === undefined) this.#count('open', 'invalid');
      else this.#later(touch, request, 'open');
    });
  }

  /** Resolves when every hit so far is recorded or left. */
  async settled(): Promise<void> {
    await new Promise(setImmediate);
    await Promise.all(this.#looking);
  }

  #later(touch: Touch, request: IncomingMessage, page: 'click' | 'open'): void {
    if (request.method === 'HEAD' || this.#looking.size >= LOOKING) {
      this.#count(page, request.method === 'HEAD' ? 'machine' : 'overload');
      return;
    }
    const machine = isMachine(request.headers);
    const work = this.#record(touch, page, machine)
      .catch((error: unknown) => {
        this.#count(page, 'unknown');
        this.#options.log.warn({ error: String(error) }, 'a hit was not recorded: consent could not be asked');
      })
      .finally(() => this.#looking.delete(work));
    this.#looking.add(work);
  }

  async #record(touch: Touch, page: 'click' | 'open', machine: boolean): Promise<void> {
    const { record, clock } = this.#options;
    const { claim, tenant } = touch;
    const tracking = await trackingNow(this.#options, touch);
    const mode = page === 'click' ? tracking.clicks : lesser(tracking.opens, claim.mode ?? 'none');
    if (mode === 'none') {
      this.#count(page, 'unrecorded');
    } else if (mode === 'individual') {
      record(newEvent(page === 'click' ? 'clicked' : 'opened', clock, {
        tenant, stream: claim.stream, message_id: claim.message, recipient: claim.recipient,
        person: personOf(touch), class: machine ? 'machine' : 'person',
      }));
      this.#count(page, machine ? 'machine' : 'recorded');
    } else {
      const day = Math.floor(clock.now() / DAY_MS) * DAY_MS;
      record(newEvent('opened', { ...clock, now: () => day }, { tenant, stream: claim.stream, class: machine ? 'machine' : 'person' }));
      this.#count(page, machine ? 'machine' : 'aggregate');
    }
  }

  #count(page: string, result: string): void {
    this.#options.metrics.hits.inc({ page, result });
  }
}

function lesser(a: OpenMode, b: OpenMode): OpenMode {
  return OPEN_MODES.indexOf(a) < OPEN_MODES.indexOf(b) ? a : b;
}

/** http or https, and nothing that could end the header line. */
function mayRedirectTo(target: string): boolean {
  return /^https?:\/\/[^\0-\x1f\x7f]+$/i.test(target);
}

/** Prefetchers that say so, and programs that name themselves. A guess, used only to class hits apart. */
function isMachine(headers: IncomingHttpHeaders): boolean {
  const purpose = `${String(headers['sec-purpose'] ?? '')} ${String(headers['purpose'] ?? '')} ${String(headers['x-moz'] ?? '')}`;
  const agent = headers['user-agent'] ?? '';
  return /prefetch|preview/i.test(purpose) || agent === '' || /bot\b|crawl|spider|scan|preview|curl|wget|python|java\/|go-http|headless/i.test(agent);
}
