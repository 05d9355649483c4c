// The end of a message's time where no attempt can be made: its lane is suspended, held or too busy. Who
// can be attempted has a last attempt at that very time and ends with it; who could not be half a minute
// later ends here, so that its sender hears of it then and not when the lane opens. What is held by hand
// has no end. The spool knows who it is without looking through what waits.
import type { MessageId } from '../mail/index.ts';
import type { Clock } from '../runtime/index.ts';
import type { QueueId, Spool, Waiting } from '../spool/index.ts';

/** The last attempt goes first. */
const GRACE_MS = 30_000;
const LOOK_EVERY_MS = 15_000;
/** After a stop that took long everybody has some time for a last attempt. */
const AFTER_START_MS = 300_000;
// A notice each: composed and stored, as quick as accepting mail.
const AT_ONCE = 32;

export interface EndsOptions {
  readonly spool: Pick<Spool, 'ended'>;
  readonly clock: Clock;
  /** Names recipients that are under way or rest after a bug. */
  readonly skip: (id: MessageId, index: number) => boolean;
  /** Ends one for good; never rejects. A recipient that is still there afterwards is skipped or comes again. */
  readonly end: (row: Waiting & { readonly queue: QueueId }) => Promise<void>;
}

/** Looks every quarter of a minute until stop(). */
export class Ends {
  readonly #options: EndsOptions;
  readonly #firstAt: number;
  #cancel: () => void = () => undefined;
  #round: Promise<void> | undefined;
  #stopped = false;

  constructor(options: EndsOptions) {
    this.#options = options;
    this.#firstAt = options.clock.now() + AFTER_START_MS;
  }

  start(): void {
    this.#cancel = this.#options.clock.after(LOOK_EVERY_MS, () => {
      this.#round = this.#look().finally(() => {
        this.#round = undefined;
        if (!this.#stopped) this.start();
      });
    });
  }

  /** Resolves when nothing is being ended any more. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancel();
    await this.#round;
  }

  async #look(): Promise<void> {
    const { spool, clock, skip, end } = this.#options;
    const now = clock.now();
    while (now >= this.#firstAt && !this.#stopped) {
      const rows = spool.ended(now - GRACE_MS, AT_ONCE, skip);
      await Promise.all(rows.map(end));
      if (rows.length < AT_ONCE) return;
    }
  }
}
