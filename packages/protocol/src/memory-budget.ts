/**
 * The memory that all streams of a process share: what they hold for sending, and what their peers may send without
 * asking again. Credit once given cannot be taken back, so it counts from the moment it is promised, whether or not the
 * bytes ever come.
 *
 * Nobody owns a part of it. What one direction of a stream may hold is a fraction of what is free at that moment (the
 * dynamic thresholds of shared-memory switches, Choudhury and Hahne 1998): with n busy directions each ends at about
 * 1/(n + 8) of the whole, some always stays free for the next, and nothing needs to be told when streams come and go.
 *
 * When nothing is free, each direction still has half a frame, so that every stream goes on: a receiver gives credit for so
 * much, and a sender that holds nothing takes one write of so much. A sender that writes more at a time takes memory for
 * it before (`Session.allowLargeWrites`). The total is therefore never above the limit by more than one frame for each
 * stream.
 */
import { LARGE_CHUNK_BYTES } from "./chunk-pool.ts";

/** What one direction of a stream has when nothing is free, in bytes: half a frame with its headers. */
export const MIN_DIRECTION_BYTES = 8_192;

export class MemoryBudget {
  /** In bytes. May be changed at any time; streams shrink to a smaller one as their bytes move on. */
  limitBytes: number;
  #usedBytes = 0;

  /** @param limitBytes default 256 MiB */
  constructor(limitBytes = 268_435_456) {
    this.limitBytes = limitBytes;
  }

  /** Bytes promised or held by the streams of all sessions. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  get freeBytes(): number {
    return Math.max(0, this.limitBytes - this.#usedBytes);
  }

  /** Takes bytes, or with a negative number gives them back. */
  adjust(bytes: number): void {
    this.#usedBytes += bytes;
  }

  /**
   * The most that a new stream is promised before it has shown that it uses it. Idle streams keep this for life, so they
   * may have half of the budget among them, and less each the more there are.
   */
  get startBytes(): number {
    return Math.max(MIN_DIRECTION_BYTES, Math.floor((this.freeBytes - this.limitBytes / 2) / 256));
  }

  /** The most that one direction of a stream may be promised or hold now. */
  get shareBytes(): number {
    return Math.max(MIN_DIRECTION_BYTES, Math.floor(this.freeBytes / 8));
  }

  /** Whether a sender that holds `heldBytes` may take another write. */
  admits(heldBytes: number): boolean {
    return heldBytes === 0 || heldBytes < this.freeBytes / 8;
  }

  /** Whether there is memory for writes of up to `LARGE_CHUNK_BYTES` of a stream. */
  get admitsLargeWrites(): boolean {
    return this.freeBytes / 8 >= LARGE_CHUNK_BYTES;
  }
}
