// Finding out where queues lead: so many look-ups at once, because a start with 10,000 queues must not
// flood the resolver. Tenants take turns here too, so that one who has many domains keeps nobody waiting.
import type { Priority } from '../mail/index.ts';
import { Turns } from './turns.ts';

const AT_ONCE = 64;

export interface LookUpOptions<Queue, Found> {
  readonly look: (queue: Queue) => Promise<Found>;
  readonly found: (queue: Queue, found: Found) => void;
  readonly failed: (queue: Queue, error: unknown) => void;
}

/** One for all queues. */
export class LookUps<Queue extends { readonly tenant: string; readonly priority: Priority }, Found> {
  readonly #options: LookUpOptions<Queue, Found>;
  readonly #waiting = new Turns<Queue>();
  #active = 0;
  #stopped = false;

  constructor(options: LookUpOptions<Queue, Found>) {
    this.#options = options;
  }

  add(queue: Queue): void {
    this.#waiting.add(queue);
    this.#more();
  }

  /** No more are begun. */
  stop(): void {
    this.#stopped = true;
  }

  #more(): void {
    while (this.#active < AT_ONCE && !this.#stopped) {
      const queue = this.#waiting.next();
      if (queue === undefined) return;
      this.#waiting.remove(queue);
      this.#active += 1;
      const { look, found, failed } = this.#options;
      look(queue).then((result) => found(queue, result), (error: unknown) => failed(queue, error)).finally(() => {
        this.#active -= 1;
        this.#more();
      });
    }
  }
}
