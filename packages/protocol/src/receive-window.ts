/**
 * How much credit one direction of a stream is worth, by what it has used so far. A window doubles when all was consumed
 * while the sender had no credit for more: then it is the way that is longer than the window, and not the destination that
 * is slower. So it ends where the path, the pace of the links or the sender is the limit, whatever time the way takes by
 * itself, by repeating what it lost, or by the queues on it. One that is not used any more halves, back to the size at
 * which it began.
 *
 * The size is a wish: what is really promised is also bounded by the memory that the process has left.
 */
import type { MemoryBudget } from "./memory-budget.ts";

/** How long a window is kept that is not used. */
const IDLE_PERIOD_MS = 10_000;
/** A stream that consumes fewer windows in that time does with half of it. */
const USED_WINDOWS = 4;

export class ReceiveWindow {
  readonly #startBytes: number;
  readonly #maxBytes: number;
  #wantedBytes: number;
  /** Where and when the period began that is being judged; undefined before anything was consumed. */
  #periodAt: number | undefined;
  #periodConsumed = 0;

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

  /** Credit is about to be told at `now`; `wasShort`: it was the window that the sender had to wait for. */
  adapt(consumed: number, now: number, wasShort: boolean): void {
    if (wasShort) this.#wantedBytes = Math.min(this.#maxBytes, this.#wantedBytes * 2);
    if (wasShort || this.#periodAt === undefined) return this.#beginPeriod(consumed, now);
    const periods = Math.floor((now - this.#periodAt) / IDLE_PERIOD_MS);
    if (periods === 0) return;
    if (consumed - this.#periodConsumed < USED_WINDOWS * this.#wantedBytes) {
      this.#wantedBytes = Math.max(this.#startBytes, Math.floor(this.#wantedBytes / 2 ** periods));
    }
    this.#beginPeriod(consumed, now);
  }

  #beginPeriod(consumed: number, now: number): void {
    this.#periodAt = now;
    this.#periodConsumed = consumed;
  }
}
