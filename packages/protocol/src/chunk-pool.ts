/**
 * Buffers of one size that are used again and again. Memory outside the heap that is allocated and dropped for every read
 * makes the collector run: at hundreds of megabytes a second it marks the whole heap several times a second, and that
 * costs more than carrying the bytes.
 *
 * Whoever takes a buffer gives it back, once, when nobody reads it any more; one that is not given back is collected as
 * any other. What is kept for the next is bounded.
 */
import { MAX_DATA_BYTES } from "./frame.ts";

export class ChunkPool {
  readonly chunkBytes: number;
  readonly #maxKept: number;
  readonly #free: Uint8Array[] = [];

  /**
   * @param chunkBytes size of each buffer
   * @param maxKept buffers that are kept while nobody uses them
   */
  constructor(chunkBytes: number, maxKept: number) {
    this.chunkBytes = chunkBytes;
    this.#maxKept = maxKept;
  }

  /** A buffer, with whatever its last user left in it. */
  take(): Uint8Array {
    return this.#free.pop() ?? new Uint8Array(this.chunkBytes);
  }

  /** Takes a buffer of this pool back; one of another size is ignored. */
  give(chunk: Uint8Array): void {
    if (this.#free.length < this.#maxKept && chunk.length === this.chunkBytes) this.#free.push(chunk);
  }

  /** Buffers that wait for their next user. */
  get kept(): number {
    return this.#free.length;
  }
}

/** What one read from a socket brings at the most, in bytes: four full frames, so that none of them has to be cut. */
export const LARGE_CHUNK_BYTES = 4 * MAX_DATA_BYTES;
/** The payload of one full frame, in bytes. */
export const MIDDLE_CHUNK_BYTES = MAX_DATA_BYTES;

/** The pools of this process; each keeps 8 MiB. */
export const largeChunks = new ChunkPool(LARGE_CHUNK_BYTES, 128);
export const middleChunks = new ChunkPool(MIDDLE_CHUNK_BYTES, 512);
