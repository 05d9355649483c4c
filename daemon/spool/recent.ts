// What was stored or read a moment ago, so that a fresh message is neither read back nor unsealed again
// before its first attempt. Bounded by weight; the oldest goes first.

export class Recent<T> {
  readonly #limit: number;
  readonly #held = new Map<string, { readonly value: T; readonly weight: number }>();
  #weight = 0;

  /** `limit` in the unit of the weights given to set(). */
  constructor(limit: number) {
    this.#limit = limit;
  }

  get(key: string): T | undefined {
    return this.#held.get(key)?.value;
  }

  set(key: string, value: T, weight: number): void {
    this.delete(key);
    if (weight > this.#limit) return;
    this.#held.set(key, { value, weight });
    this.#weight += weight;
    for (const oldest of this.#held.keys()) {
      if (this.#weight <= this.#limit) break;
      this.delete(oldest);
    }
  }

  delete(key: string): void {
    const held = this.#held.get(key);
    if (held === undefined) return;
    this.#held.delete(key);
    this.#weight -= held.weight;
  }
}
