/**
 * How many log lines of one kind are written: a flood of events, which strangers can cause, must not become a flood of
 * lines. What is left out is counted and told with the next line.
 */
export class LineRate {
  readonly #burst: number;
  readonly #perMs: number;
  #tokens: number;
  #at = performance.now();
  #suppressed = 0;

  constructor(options: { burst: number; perSecond: number }) {
    this.#burst = options.burst;
    this.#perMs = options.perSecond / 1_000;
    this.#tokens = options.burst;
  }

  /** Undefined: do not write. Otherwise how many lines were left out since the last. */
  admit(): number | undefined {
    const now = performance.now();
    this.#tokens = Math.min(this.#burst, this.#tokens + (now - this.#at) * this.#perMs);
    this.#at = now;
    if (this.#tokens < 1) {
      this.#suppressed += 1;
      return undefined;
    }
    this.#tokens -= 1;
    const suppressed = this.#suppressed;
    this.#suppressed = 0;
    return suppressed;
  }
}
