// Whose turn it is: tenants take turns, within a tenant what matters more goes first, and queues of one
// priority take turns, so that a newcomer's first message waits for at most one message of each other
// tenant, however much they have and whatever they call urgent. One turn is one transaction (round robin;
// with equal costs that is what deficit round robin comes to).
import { PRIORITIES, type Priority } from '../mail/index.ts';

/** Of so many turns of a priority one goes to those below it, so that nothing starves: three full ones share 56, 7 and 1 of 64. */
const SHARE = 8;

interface Ring<Queue> {
  readonly tenant: string;
  /** Highest first; a queue that had its turn goes to the end of its set. */
  readonly classes: readonly { readonly priority: Priority; readonly queues: Set<Queue>; turns: number }[];
}

const NONE: ReadonlySet<never> = new Set();

/** A ring of tenants, each with rings of queues. Adding what is already there changes nothing. */
export class Turns<Queue extends { readonly tenant: string; readonly priority: Priority }> {
  readonly #tenants: Ring<Queue>[] = [];
  #size = 0;

  /** Queues in it. */
  get size(): number {
    return this.#size;
  }

  get empty(): boolean {
    return this.#size === 0;
  }

  /** Puts a queue at the end of those of its tenant and priority. */
  add(queue: Queue): void {
    let ring = this.#tenants.find((entry) => entry.tenant === queue.tenant);
    if (ring === undefined) {
      ring = { tenant: queue.tenant, classes: PRIORITIES.map((priority) => ({ priority, queues: new Set(), turns: 0 })) };
      this.#tenants.push(ring);
    }
    const queues = queuesOf(ring, queue);
    if (queues?.has(queue) === false) {
      queues.add(queue);
      this.#size++;
    }
  }

  /** The queue whose turn it is; it and its tenant go to the end. Tenants that may not go now keep their place, and so do queues in `except`. */
  next(mayGo: (tenant: string) => boolean = () => true, except: ReadonlySet<Queue> = NONE): Queue | undefined {
    for (const [at, ring] of this.#tenants.entries()) {
      const queue = mayGo(ring.tenant) ? pick(ring, except) : undefined;
      if (queue === undefined) continue;
      const queues = queuesOf(ring, queue);
      queues?.delete(queue);
      queues?.add(queue);
      this.#tenants.splice(at, 1);
      this.#tenants.push(ring);
      return queue;
    }
    return undefined;
  }

  /** Everything in it. */
  all(): readonly Queue[] {
    return this.#tenants.flatMap(({ classes }) => classes.flatMap(({ queues }) => [...queues]));
  }

  /** Takes a queue out, for it has nothing to send. */
  remove(queue: Queue): void {
    const at = this.#tenants.findIndex((entry) => entry.tenant === queue.tenant);
    const ring = this.#tenants[at];
    if (ring === undefined || queuesOf(ring, queue)?.delete(queue) !== true) return;
    this.#size--;
    if (ring.classes.every(({ queues }) => queues.size === 0)) this.#tenants.splice(at, 1);
  }
}

function queuesOf<Queue extends { readonly priority: Priority }>({ classes }: Ring<Queue>, { priority }: Queue): Set<Queue> | undefined {
  return classes.find((one) => one.priority === priority)?.queues;
}

function pick<Queue>({ classes }: Ring<Queue>, except: ReadonlySet<Queue>): Queue | undefined {
  let picked: Queue | undefined;
  for (const one of classes) {
    const queue = first(one.queues, except);
    if (queue === undefined) continue;
    picked = queue;
    one.turns = (one.turns + 1) % SHARE;
    // The eighth time it steps back for those below; where there are none it goes all the same.
    if (one.turns !== 0) return queue;
  }
  return picked;
}

function first<Queue>(queues: ReadonlySet<Queue>, except: ReadonlySet<Queue>): Queue | undefined {
  for (const queue of queues) if (!except.has(queue)) return queue;
  return undefined;
}
