/**
 * Durations counted in buckets, for Prometheus. To observe one costs a comparison for each bucket and allocates nothing; texts
 * are made when somebody asks.
 */

/** Upper bounds in seconds: from a target in the next rack to the longest connect timeout, and from a probe to a day. */
export const CONNECT_BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30] as const;
export const SESSION_BOUNDS = [0.01, 0.1, 1, 10, 60, 300, 1_800, 3_600, 14_400, 86_400] as const;

export class DurationHistogram {
  readonly bounds: readonly number[];
  sum = 0;
  /** Of each bucket alone; the last one has no bound. */
  readonly #counts: Float64Array;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
  }

  /** Milliseconds; undefined, what did not happen, is not counted. */
  observeMs(ms: number | undefined): void {
    if (ms === undefined) return;
    const seconds = ms / 1_000;
    let at = 0;
    while (at < this.bounds.length && seconds > (this.bounds[at] ?? 0)) at += 1;
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.sum += seconds;
  }

  /** How many were as long as each bound at most; the last is all. */
  get cumulative(): number[] {
    let sum = 0;
    return Array.from(this.#counts, (count) => (sum += count));
  }
}
