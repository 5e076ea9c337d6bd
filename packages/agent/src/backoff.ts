/**
 * When to dial an edge again. Full jitter: a delay anywhere between nothing and a ceiling that doubles, so that agents
 * which lost the same edge do not come back in step ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
 */

/** A link that lived this long was a success; a shorter one is one more failure, or a crashing edge would be hammered. */
export const PROVEN_MS = 5_000;

export interface BackoffOptions {
  /** Ceiling of the first delay, in milliseconds. Default 200. */
  readonly minMs?: number;
  /** Ceiling of every delay, in milliseconds. Default 20,000. */
  readonly maxMs?: number;
  /** Between 0 and 1. Default `Math.random`. */
  readonly random?: () => number;
}

export class Backoff {
  readonly #minMs: number;
  readonly #maxMs: number;
  readonly #random: () => number;
  #ceilingMs: number;

  constructor(options: BackoffOptions = {}) {
    this.#minMs = options.minMs ?? 200;
    this.#maxMs = Math.max(this.#minMs, options.maxMs ?? 20_000);
    this.#random = options.random ?? Math.random;
    this.#ceilingMs = this.#minMs;
  }

  /** Milliseconds until the next attempt, `floorMs` at least; the jitter comes on top of the floor. */
  next(floorMs = 0): number {
    const delayMs = floorMs + this.#random() * this.#ceilingMs;
    this.#ceilingMs = Math.min(this.#maxMs, this.#ceilingMs * 2);
    return delayMs;
  }

  /** A link has ended that had been up for `livedMs`. */
  ended(livedMs: number): void {
    if (livedMs >= PROVEN_MS) this.#ceilingMs = this.#minMs;
  }
}
