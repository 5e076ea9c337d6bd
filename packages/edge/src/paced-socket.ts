/**
 * A partner's socket that lets through no more than its token buckets give, in each direction. It stands in front of the
 * socket as a stream of its own, so that back-pressure is the only means: nothing is dropped, a sender that is too fast
 * waits. Without a byte rate there is none, and the data path does not know of it.
 */
import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { onConfirmedEnd, readInSmallPieces } from "@sallyport/tunnel";
import type { TokenBucket } from "./token-bucket.ts";

/** Taken at once at most, so that connections that share a bucket take turns. */
const PIECE_BYTES = 16_384;

export interface Pace {
  /** All of them have to give: that of the connection, that of the listener. */
  readonly in: readonly TokenBucket[];
  readonly out: readonly TokenBucket[];
}

/**
 * The socket must be paused and unread; it belongs to the paced one from now on. 'passed' is emitted for every piece that goes
 * out: what was written at once may take longer than an idle timeout.
 */
export function pacedSocket(socket: Socket, pace: Pace): Socket {
  // It has what is used of a partner's socket: the stream, and resetAndDestroy.
  return new PacedSocket(socket, pace) as unknown as Socket;
}

class PacedSocket extends Duplex {
  readonly #socket: Socket;
  readonly #pace: Pace;
  /** Read from the socket, not paid for yet. At most one chunk of the socket. */
  #arrived: Buffer | undefined;
  #wanted = false;
  /** The partner has ended its direction; what arrived before may still have to wait. */
  #socketEnded = false;
  #endPassed = false;
  #inTimer: NodeJS.Timeout | undefined;
  #outTimer: NodeJS.Timeout | undefined;

  constructor(socket: Socket, pace: Pace) {
    super({ allowHalfOpen: true, readableHighWaterMark: PIECE_BYTES, writableHighWaterMark: PIECE_BYTES });
    this.#socket = socket;
    this.#pace = pace;
    // Whoever joins it to a target adds its own; until then the partner's reset must not end the process.
    this.on("error", ignore);
    onConfirmedEnd(socket, () => {
      this.#socketEnded = true;
      this.#passIn();
    });
    // A stream that has little memory takes no more than such a piece.
    readInSmallPieces(socket);
    socket.on("data", (bytes: Buffer) => {
      socket.pause();
      this.#arrived = bytes;
      this.#passIn();
    });
    // `data` was added to a socket that was paused on purpose, which stays so until somebody wants to read.
    socket.on("error", (error: Error) => this.destroy(error));
    socket.on("close", () => {
      // Where both directions are through, what arrived before may still be waiting here.
      if (!this.#socketEnded || !socket.writableFinished) this.destroy();
    });
  }

  /** Resets the connection at once. */
  resetAndDestroy(): this {
    this.#socket.resetAndDestroy();
    return this.destroy();
  }

  override _read(): void {
    this.#wanted = true;
    if (this.#arrived === undefined) this.#socket.resume();
    else this.#passIn();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.#passOut(chunk, callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#socket.end(() => callback());
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    clearTimeout(this.#inTimer);
    clearTimeout(this.#outTimer);
    this.#arrived = undefined;
    // Its two directions may be through, or one is not and it was reset before.
    this.#socket.destroy();
    callback(error);
  }

  #passIn(): void {
    clearTimeout(this.#inTimer);
    while (this.#wanted && this.#arrived !== undefined) {
      const { length } = this.#arrived;
      const count = takeAll(this.#pace.in, Math.min(length, PIECE_BYTES));
      if (count === 0) {
        this.#inTimer = setTimeout(() => this.#passIn(), waitOf(this.#pace.in, length));
        return;
      }
      const piece = this.#arrived.subarray(0, count);
      this.#arrived = count === length ? undefined : this.#arrived.subarray(count);
      this.#wanted = false;
      // Where the reader is not full `_read` comes again, from within this push or after it.
      this.push(piece);
    }
    if (this.#socketEnded && this.#arrived === undefined && !this.#endPassed) {
      this.#endPassed = true;
      this.push(null);
    }
  }

  #passOut(bytes: Buffer, callback: (error?: Error | null) => void): void {
    const count = takeAll(this.#pace.out, Math.min(bytes.length, PIECE_BYTES));
    if (count === 0 && bytes.length > 0) {
      this.#outTimer = setTimeout(() => this.#passOut(bytes, callback), waitOf(this.#pace.out, bytes.length));
      return;
    }
    this.#socket.write(bytes.subarray(0, count), (error) => {
      if (!error) this.emit("passed");
      if (error || count === bytes.length) callback(error);
      else this.#passOut(bytes.subarray(count), callback);
    });
  }
}

function ignore(): void {}

/** Takes as much as every bucket gives. */
function takeAll(buckets: readonly TokenBucket[], wanted: number): number {
  const now = performance.now();
  let count = wanted;
  for (const [at, bucket] of buckets.entries()) {
    const given = bucket.take(count, now);
    for (const before of buckets.slice(0, at)) before.giveBack(count - given);
    count = given;
  }
  return count;
}

/** Until a piece can be taken, in whole milliseconds. */
function waitOf(buckets: readonly TokenBucket[], wanted: number): number {
  const now = performance.now();
  let longest = 1;
  for (const bucket of buckets) longest = Math.max(longest, bucket.waitMs(Math.min(wanted, PIECE_BYTES), now));
  return Math.ceil(longest);
}
