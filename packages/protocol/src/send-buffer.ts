/**
 * The bytes of one direction of a stream between what the peer has consumed and what the application has written. It
 * is the queue of what is still to be sent and the replay buffer at once, so that a stream can be continued on another
 * link from any offset that the peer may ask for.
 *
 * Bytes are copied in: whoever reads a socket reads all sockets into the same few cache-hot pages, and what has to be kept
 * goes into pooled chunks. Bounded by the credit of the peer and by a size of this end's own: the application stops writing
 * when either is reached (see `Stream.writable`), so at most that and one write are held.
 */
import { LARGE_CHUNK_BYTES, largeChunks, MIDDLE_CHUNK_BYTES, middleChunks } from "./chunk-pool.ts";

interface Chunk {
  readonly start: number;
  bytes: Uint8Array;
  /** How much of `bytes` is filled. */
  length: number;
}

/**
 * The chunks collect what is written: one of its own for each write would cost more than its bytes, and a large one would be
 * wasted on a stream that says a word now and then. What is allocated is at most a middle chunk more than what is held.
 */
const SMALL_CHUNK_BYTES = 1_024;
/** A write that fills less of a large chunk goes into middle ones. */
const MIN_LARGE_BYTES = LARGE_CHUNK_BYTES - MIDDLE_CHUNK_BYTES;

export class SendBuffer {
  #chunks: Chunk[] = [];
  /** Index of the first chunk that is still held; the array is compacted when half of it is behind. */
  #head = 0;
  /** Where the last `read` stopped: the next one mostly starts there. */
  #cursor = 0;
  #acknowledged = 0;
  #queued = 0;

  /** Everything below this offset has been consumed by the peer and is no longer held. */
  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** The offset behind the last byte written. */
  get queued(): number {
    return this.#queued;
  }

  /** Bytes held. */
  get size(): number {
    return this.#queued - this.#acknowledged;
  }

  /** Copies `bytes`; the caller may use their memory again. */
  append(bytes: Uint8Array): void {
    let from = 0;
    const last = this.#chunks.length > this.#head ? this.#chunks[this.#chunks.length - 1] : undefined;
    if (last !== undefined && last.length < last.bytes.length) {
      const count = Math.min(bytes.length, last.bytes.length - last.length);
      last.bytes.set(count === bytes.length ? bytes : bytes.subarray(0, count), last.length);
      last.length += count;
      this.#queued += count;
      from = count;
    }
    while (from < bytes.length) {
      const rest = bytes.length - from;
      const chunk = newChunk(rest, this.size);
      const count = Math.min(rest, chunk.length);
      chunk.set(from === 0 && count === bytes.length ? bytes : bytes.subarray(from, from + count));
      this.#chunks.push({ start: this.#queued, bytes: chunk, length: count });
      this.#queued += count;
      from += count;
    }
  }

  /** Copies up to `max` bytes from offset `from` into `out` at `at`; returns how many there were. */
  read(from: number, max: number, out: Uint8Array, at: number): number {
    let index = this.#indexOf(from);
    let offset = from;
    let copied = 0;
    while (copied < max) {
      const chunk = this.#chunks[index];
      if (chunk === undefined) break;
      const skip = offset - chunk.start;
      const count = Math.min(chunk.length - skip, max - copied);
      out.set(
        skip === 0 && count === chunk.bytes.length ? chunk.bytes : chunk.bytes.subarray(skip, skip + count),
        at + copied,
      );
      copied += count;
      offset += count;
      if (offset === chunk.start + chunk.length) index += 1;
    }
    this.#cursor = index;
    return copied;
  }

  /** Lets go of everything below `offset`, which lies between `acknowledged` and `queued`. */
  acknowledge(offset: number): void {
    if (offset <= this.#acknowledged) return;
    this.#acknowledged = offset;
    let head = this.#head;
    for (;;) {
      const chunk = this.#chunks[head];
      if (chunk === undefined || chunk.start + chunk.length > offset) break;
      letGo(chunk);
      this.#chunks[head] = EMPTY;
      head += 1;
    }
    this.#head = head;
    if (head === this.#chunks.length) {
      this.#chunks.length = 0;
      this.#head = 0;
      this.#cursor = 0;
    } else if (head > 32 && head * 2 > this.#chunks.length) {
      this.#chunks.splice(0, head);
      this.#cursor = Math.max(0, this.#cursor - head);
      this.#head = 0;
    }
  }

  /** Drops everything held, for a stream that was reset. */
  clear(): void {
    for (const chunk of this.#chunks) letGo(chunk);
    this.#chunks = [];
    this.#head = 0;
    this.#cursor = 0;
    this.#acknowledged = this.#queued;
  }

  #indexOf(offset: number): number {
    // The chunk before the cursor is one that has grown since it was read to its end.
    for (let index = Math.max(this.#head, this.#cursor - 1); index <= this.#cursor; index += 1) {
      const chunk = this.#chunks[index];
      if (chunk !== undefined && offset >= chunk.start && offset < chunk.start + chunk.length) return index;
    }
    // Only after a move to another link, or at the end of what is queued.
    for (let index = this.#head; index < this.#chunks.length; index += 1) {
      const chunk = this.#chunks[index];
      if (chunk !== undefined && offset < chunk.start + chunk.length) return index;
    }
    return this.#chunks.length;
  }
}

/** A chunk for `bytes` that are to come; a stream that holds much already will go on. */
function newChunk(bytes: number, held: number): Uint8Array {
  if (bytes >= MIN_LARGE_BYTES) return largeChunks.take();
  if (bytes >= SMALL_CHUNK_BYTES || held >= SMALL_CHUNK_BYTES) return middleChunks.take();
  return new Uint8Array(SMALL_CHUNK_BYTES);
}

function letGo({ bytes }: Chunk): void {
  largeChunks.give(bytes);
  middleChunks.give(bytes);
}

/** Stands in for a chunk that was let go before the array is compacted. */
const EMPTY: Chunk = { start: -1, bytes: new Uint8Array(0), length: 0 };
