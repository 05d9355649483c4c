// A binary heap of things that become due. Entries are never searched for: a queue whose time changes
// is pushed again and the stale entry is recognised and skipped when it comes up.

/** A value and the time it is due, ms since the epoch. */
export interface Timed<T> {
  readonly at: number;
  readonly value: T;
}

/** Earliest first. */
export class TimeHeap<T> {
  readonly #items: Timed<T>[] = [];

  get size(): number {
    return this.#items.length;
  }

  peek(): Timed<T> | undefined {
    return this.#items[0];
  }

  push(at: number, value: T): void {
    const items = this.#items;
    const item = { at, value };
    let i = items.length;
    items.push(item);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const above = items[parent];
      if (above === undefined || above.at <= at) break;
      items[i] = above;
      i = parent;
    }
    items[i] = item;
  }

  pop(): Timed<T> | undefined {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    if (top === undefined || last === undefined || items.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      let below = items[child];
      if (below === undefined) break;
      const right = items[child + 1];
      if (right !== undefined && right.at < below.at) {
        child += 1;
        below = right;
      }
      if (below.at >= last.at) break;
      items[i] = below;
      i = child;
    }
    items[i] = last;
    return top;
  }
}
