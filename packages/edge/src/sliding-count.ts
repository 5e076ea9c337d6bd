/**
 * How many events there were within the last `windowMs`, in constant time and memory: two windows side by side, of which
 * the earlier counts by the share of it that the sliding window still covers (as HAProxy's freq_ctr does). Exact at the
 * edges of a window; in between it takes the earlier events for evenly spread.
 */
export class SlidingCount {
  #startedAt: number;
  #current = 0;
  #previous = 0;

  constructor(now: number) {
    this.#startedAt = now;
  }

  /** Counts one event and returns the estimate with it. The window must be the same at each call. */
  add(now: number, windowMs: number): number {
    this.#turn(now, windowMs);
    this.#current += 1;
    return this.#estimate(now, windowMs);
  }

  /** The estimate without counting. */
  value(now: number, windowMs: number): number {
    this.#turn(now, windowMs);
    return this.#estimate(now, windowMs);
  }

  /** Forgets everything. */
  clear(now: number): void {
    this.#startedAt = now;
    this.#current = 0;
    this.#previous = 0;
  }

  #turn(now: number, windowMs: number): void {
    const elapsed = now - this.#startedAt;
    if (elapsed < windowMs) return;
    this.#previous = elapsed < 2 * windowMs ? this.#current : 0;
    this.#current = 0;
    this.#startedAt = elapsed < 2 * windowMs ? this.#startedAt + windowMs : now;
  }

  #estimate(now: number, windowMs: number): number {
    return this.#current + this.#previous * (1 - (now - this.#startedAt) / windowMs);
  }
}
