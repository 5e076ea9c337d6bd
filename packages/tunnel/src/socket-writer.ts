/**
 * Writes to a socket from pooled buffers: pieces are copied and go out together, one write of up to 64 KiB at a time for
 * those that come while the socket is busy. What is in a buffer is confirmed when the socket has taken all of it.
 *
 * Bounded by whoever writes: a stream by its window, a relay by pausing its source.
 */
import type { Socket } from "node:net";
import { largeChunks, middleChunks } from "@sallyport/protocol";

/** So little gets a buffer that is not pooled. */
const SMALL_BYTES = 1_024;

export class SocketWriter {
  readonly #socket: Socket;
  readonly #onWritten: (bytes: number) => void;
  /** The buffer that is being filled. */
  #chunk: Uint8Array | undefined;
  #used = 0;
  /** Writes that the socket has not confirmed. */
  #inFlight = 0;

  /** `onWritten` hears of bytes that the socket has taken, not of those that were lost with it. */
  constructor(socket: Socket, onWritten: (bytes: number) => void) {
    this.#socket = socket;
    this.#onWritten = onWritten;
  }

  /** Nothing waits to be taken by the socket. */
  get idle(): boolean {
    return this.#inFlight === 0 && this.#used === 0;
  }

  /** Copies `bytes`, however many. Full buffers go out at once, the rest with `flush`. */
  write(bytes: Uint8Array): void {
    const { chunkBytes } = largeChunks;
    // A piece that is not larger than a buffer goes out in one. A read that was not into the shared buffer may be larger, as
    // what was collected before a target was connected.
    if (this.#used + bytes.length > chunkBytes) this.#submit();
    for (let from = 0; from < bytes.length; ) {
      const count = Math.min(bytes.length - from, chunkBytes - this.#used);
      this.#room(this.#used + count).set(
        from === 0 && count === bytes.length ? bytes : bytes.subarray(from, from + count),
        this.#used,
      );
      this.#used += count;
      from += count;
      if (from < bytes.length) this.#submit();
    }
  }

  /** Lets out what was written. While the socket is busy it waits for more, until the socket is ready or it fills a buffer. */
  flush(): void {
    if (this.#inFlight === 0) this.#submit();
  }

  /** Ends the socket's outgoing half after everything written. */
  end(): void {
    this.#submit();
    this.#socket.end();
  }

  /** The buffer that is being filled, with room for `bytes` in all. */
  #room(bytes: number): Uint8Array {
    const chunk = this.#chunk;
    if (chunk !== undefined && chunk.length >= bytes) return chunk;
    // What is written to a socket that is busy may wait for long; the rest goes out at the end of this turn.
    const larger = this.#inFlight === 0 ? largeChunks.take() : take(bytes);
    if (chunk !== undefined) {
      larger.set(chunk.subarray(0, this.#used));
      letGo(chunk);
    }
    this.#chunk = larger;
    return larger;
  }

  #submit(): void {
    const chunk = this.#chunk;
    const bytes = this.#used;
    if (chunk === undefined) return;
    this.#chunk = undefined;
    this.#used = 0;
    if (this.#socket.destroyed) return letGo(chunk);
    this.#inFlight += 1;
    const fitting = fit(chunk, bytes);
    this.#socket.write(fitting.subarray(0, bytes), (error) => {
      this.#inFlight -= 1;
      // Where a write failed the system may not be through with its memory: the buffer is not used again.
      if (error) return;
      letGo(fitting);
      this.#onWritten(bytes);
      if (this.#inFlight === 0) this.#submit();
    });
  }
}

/** A buffer of the smallest kind that holds `bytes`. */
function take(bytes: number): Uint8Array {
  if (bytes > middleChunks.chunkBytes) return largeChunks.take();
  return bytes > SMALL_BYTES ? middleChunks.take() : new Uint8Array(SMALL_BYTES);
}

function letGo(chunk: Uint8Array): void {
  largeChunks.give(chunk);
  middleChunks.give(chunk);
}

/** The smallest buffer for what a socket may hold on to for long: a reader that stalls costs little more than its bytes. */
function fit(chunk: Uint8Array, bytes: number): Uint8Array {
  if (bytes > middleChunks.chunkBytes || chunk.length <= SMALL_BYTES) return chunk;
  if (bytes > SMALL_BYTES && chunk.length === middleChunks.chunkBytes) return chunk;
  const smaller = bytes <= SMALL_BYTES ? new Uint8Array(bytes) : middleChunks.take();
  smaller.set(chunk.subarray(0, bytes));
  letGo(chunk);
  return smaller;
}
