/**
 * The bytes of one direction of a stream between what the peer has consumed and what the application has written. It
 * is the queue of what is still to be sent and the replay buffer at once, so that a stream can be continued on another
 * link from any offset that the peer may ask for.
 *
 * Bounded by the credit of the peer and by a size of this end's own: the application stops writing when either is
 * reached (see `Stream.writable`), so at most that and one chunk are held.
 */
interface Chunk {
  readonly start: number;
  bytes: Uint8Array;
  /** How much of `bytes` is filled; less than its length only in a chunk that collects small writes. */
  length: number;
}

/** Writes shorter than this are collected: a chunk of its own would cost more than its bytes. */
const SMALL_BYTES = 1_024;
const COLLECTOR_BYTES = 4_096;

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

  /** Takes `bytes` over: the caller does not change them afterwards. */
  append(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const last = this.#chunks.length > this.#head ? this.#chunks[this.#chunks.length - 1] : undefined;
    if (last !== undefined && last.length + bytes.length <= last.bytes.length) {
      last.bytes.set(bytes, last.length);
      last.length += bytes.length;
    } else if (bytes.length < SMALL_BYTES) {
      const collector = new Uint8Array(
        last !== undefined && last.length < SMALL_BYTES * 4 ? COLLECTOR_BYTES : SMALL_BYTES,
      );
      collector.set(bytes);
      this.#chunks.push({ start: this.#queued, bytes: collector, length: bytes.length });
    } else {
      this.#chunks.push({ start: this.#queued, bytes, length: bytes.length });
    }
    this.#queued += bytes.length;
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
      head += 1;
    }
    this.#head = head;
    if (head === this.#chunks.length) {
      this.#chunks = [];
      this.#head = 0;
      this.#cursor = 0;
    } else if (head > 32 && head * 2 > this.#chunks.length) {
      this.#chunks.splice(0, head);
      this.#cursor = Math.max(0, this.#cursor - head);
      this.#head = 0;
    } else {
      for (let index = head - 1; index >= 0 && this.#chunks[index]?.bytes.length !== 0; index -= 1) {
        this.#chunks[index] = EMPTY;
      }
    }
  }

  /** Drops everything held, for a stream that was reset. */
  clear(): void {
    this.#chunks = [];
    this.#head = 0;
    this.#cursor = 0;
    this.#acknowledged = this.#queued;
  }

  #indexOf(offset: number): number {
    // The chunk before the cursor is a collector that has grown since it was read to its end.
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

/** Stands in for a chunk that is let go before the array is compacted, so that its bytes can be collected at once. */
const EMPTY: Chunk = { start: -1, bytes: new Uint8Array(0), length: 0 };
