/**
 * How much credit one direction of a stream is worth, by what it has used so far. A window that is consumed within two
 * round trips is what limits the stream, and doubles; so it ends at two to four times the bandwidth-delay product of a
 * stream that something else limits. One that is not needed for a while halves, back to the size at which it began.
 *
 * The size is a wish: what is really promised is also bounded by the memory that the process has left.
 */
import type { MemoryBudget } from "./memory-budget.ts";

/** A window consumed in fewer round trips limits the stream. One is the least that is possible. */
const GROW_ROUND_TRIPS = 2;
/** A window of which a quarter would do is not needed. */
const NEEDED_ROUND_TRIPS = 8;
/** How long a window is kept that is not needed. */
const IDLE_PERIOD_MS = 10_000;

export class ReceiveWindow {
  readonly #startBytes: number;
  readonly #maxBytes: number;
  #wantedBytes: number;
  /** Where and when the window began that is being timed. */
  #markConsumed = 0;
  #markAt: number | undefined;
  #lastAt = 0;
  /** A whole window was used up quickly since `#periodAt`. */
  #needed = false;
  #periodAt = 0;

  /** Sizes in bytes; with both the same the window is fixed. */
  constructor(options: { startBytes: number; maxBytes: number }) {
    this.#startBytes = options.startBytes;
    this.#maxBytes = Math.max(options.startBytes, options.maxBytes);
    this.#wantedBytes = options.startBytes;
  }

  get wantedBytes(): number {
    return this.#wantedBytes;
  }

  /** What may be promised beyond `consumed` now, in bytes. A stream that has consumed nothing yet gets little. */
  size(memory: MemoryBudget, consumed: number): number {
    return Math.min(this.#wantedBytes, consumed === 0 ? memory.startBytes : memory.shareBytes);
  }

  /** Credit is about to be told at `now`; `roundTripMs` is that of the stream's link, undefined before it is measured. */
  adapt(consumed: number, now: number, roundTripMs: number | undefined): void {
    if (roundTripMs === undefined) return;
    if (this.#markAt === undefined || now - this.#lastAt > GROW_ROUND_TRIPS * roundTripMs) {
      // A sender that was limited by credit goes on within a round trip; this one paused, which is no measure of speed.
      if (this.#markAt === undefined) this.#periodAt = now;
      this.#mark(consumed, now);
    } else if (consumed - this.#markConsumed >= this.#wantedBytes) {
      const elapsedMs = now - this.#markAt;
      if (elapsedMs <= NEEDED_ROUND_TRIPS * roundTripMs) this.#needed = true;
      if (elapsedMs <= GROW_ROUND_TRIPS * roundTripMs) {
        this.#wantedBytes = Math.min(this.#maxBytes, this.#wantedBytes * 2);
      }
      this.#mark(consumed, now);
    }
    this.#lastAt = now;
    const periods = Math.floor((now - this.#periodAt) / IDLE_PERIOD_MS);
    if (periods === 0) return;
    if (!this.#needed) {
      this.#wantedBytes = Math.max(this.#startBytes, Math.floor(this.#wantedBytes / 2 ** periods));
    }
    this.#needed = false;
    this.#periodAt = now;
  }

  #mark(consumed: number, now: number): void {
    this.#markConsumed = consumed;
    this.#markAt = now;
  }
}
