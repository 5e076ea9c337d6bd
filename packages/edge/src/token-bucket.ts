/**
 * A token bucket for bytes. Pure: the caller passes the time, in milliseconds of a clock that only goes forward.
 *
 * What is taken in any span of t seconds is never more than `burst + perSecond * t`.
 */
export interface TokenBucketSettings {
  /** Bytes a second. */
  readonly perSecond: number;
  /** The most bytes that can be saved up. */
  readonly burst: number;
}

export class TokenBucket {
  readonly #perSecond: number;
  readonly #burst: number;
  #tokens: number;
  #at: number;

  /** It begins full. */
  constructor({ perSecond, burst }: TokenBucketSettings, now: number) {
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#tokens = burst;
    this.#at = now;
  }

  /** Takes up to `wanted` bytes and returns how many; 0 when there is none. */
  take(wanted: number, now: number): number {
    this.#fill(now);
    const taken = Math.min(wanted, Math.floor(this.#tokens));
    this.#tokens -= taken;
    return taken;
  }

  /** Gives back what was taken and not used. */
  giveBack(count: number): void {
    this.#tokens = Math.min(this.#burst, this.#tokens + count);
  }

  /** Milliseconds until `wanted` bytes (at most the burst) can be taken. */
  waitMs(wanted: number, now: number): number {
    this.#fill(now);
    const missing = Math.min(wanted, this.#burst) - this.#tokens;
    return missing <= 0 ? 0 : (missing * 1_000) / this.#perSecond;
  }

  #fill(now: number): void {
    const elapsedMs = now - this.#at;
    if (elapsedMs <= 0) return;
    this.#at = now;
    this.#tokens = Math.min(this.#burst, this.#tokens + (elapsedMs * this.#perSecond) / 1_000);
  }
}
