/**
 * A token bucket for frames that carry nothing: honest ends send few of them, so many of them are an attack or a bug
 * (docs/protocol.md §9). Pure; the caller passes the time.
 */
export class Budget {
  readonly #capacity: number;
  readonly #perMs: number;
  #tokens: number;
  #at = 0;

  constructor(options: { capacity: number; perSecond: number }) {
    this.#capacity = options.capacity;
    this.#perMs = options.perSecond / 1_000;
    this.#tokens = options.capacity;
  }

  /** Takes one token; false when there is none left. */
  take(now: number): boolean {
    if (now > this.#at) {
      this.#tokens = Math.min(this.#capacity, this.#tokens + (now - this.#at) * this.#perMs);
      this.#at = now;
    }
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  /** Adds tokens, up to the capacity, for something that makes the peer send such frames honestly. */
  give(tokens: number): void {
    this.#tokens = Math.min(this.#capacity, this.#tokens + tokens);
  }
}
