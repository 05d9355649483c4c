// Whose turn it is inside a lane: tenants take turns, and within a tenant its queues take turns, so that
// a newcomer's first message waits for at most one message of each other tenant, however much they have.
// One turn is one transaction (round robin; with equal costs that is what deficit round robin comes to).

/** A ring of tenants, each a ring of queues. Adding what is already there changes nothing. */
export class Turns<Queue extends { readonly tenant: string }> {
  readonly #tenants: { readonly tenant: string; readonly queues: Queue[] }[] = [];

  /** Queues in it. */
  get size(): number {
    return this.#tenants.reduce((sum, { queues }) => sum + queues.length, 0);
  }

  get empty(): boolean {
    return this.#tenants.length === 0;
  }

  /** Puts a queue at the end of its tenant's ring. */
  add(queue: Queue): void {
    const ring = this.#tenants.find((entry) => entry.tenant === queue.tenant);
    if (ring === undefined) this.#tenants.push({ tenant: queue.tenant, queues: [queue] });
    else if (!ring.queues.includes(queue)) ring.queues.push(queue);
  }

  /** The queue whose turn it is; it and its tenant go to the end. Tenants that may not go now keep their place. */
  next(mayGo: (tenant: string) => boolean = () => true): Queue | undefined {
    const at = this.#tenants.findIndex(({ tenant }) => mayGo(tenant));
    const [ring] = at === -1 ? [] : this.#tenants.splice(at, 1);
    const queue = ring?.queues.shift();
    if (ring === undefined || queue === undefined) return undefined;
    ring.queues.push(queue);
    this.#tenants.push(ring);
    return queue;
  }

  /** Everything in it. */
  all(): readonly Queue[] {
    return this.#tenants.flatMap(({ queues }) => queues);
  }

  /** Takes a queue out, for it has nothing to send. */
  remove(queue: Queue): void {
    const at = this.#tenants.findIndex((entry) => entry.tenant === queue.tenant);
    const ring = this.#tenants[at];
    if (ring === undefined) return;
    const place = ring.queues.indexOf(queue);
    if (place >= 0) ring.queues.splice(place, 1);
    if (ring.queues.length === 0) this.#tenants.splice(at, 1);
  }
}
