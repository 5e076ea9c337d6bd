/**
 * A map that never holds more than `maxSize` entries: beyond, the one whose last use is oldest goes. Every operation is
 * O(1); a flood of sources costs memory up to the bound and no time.
 */
export class BoundedTable<Value> {
  readonly #maxSize: number;
  /** In the order of the last use. */
  readonly #entries = new Map<string, Value>();
  /** Entries that had to go for others. */
  evicted = 0;

  constructor(maxSize: number) {
    this.#maxSize = maxSize;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** The value, which becomes the one used last. */
  use(key: string): Value | undefined {
    const value = this.#entries.get(key);
    if (value === undefined) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, value);
    return value;
  }

  /** The value; the order stays as it is. */
  peek(key: string): Value | undefined {
    return this.#entries.get(key);
  }

  set(key: string, value: Value): void {
    this.#entries.delete(key);
    this.#entries.set(key, value);
    if (this.#entries.size <= this.#maxSize) return;
    const oldest = this.#entries.keys().next();
    if (oldest.done === true) return;
    this.#entries.delete(oldest.value);
    this.evicted += 1;
  }

  delete(key: string): boolean {
    return this.#entries.delete(key);
  }

  clear(): void {
    this.#entries.clear();
  }

  /** The least recently used first. */
  entries(): IterableIterator<[string, Value]> {
    return this.#entries.entries();
  }
}
