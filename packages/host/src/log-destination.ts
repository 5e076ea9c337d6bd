/**
 * Where log lines go: a file descriptor, written without ever blocking, throwing or ending the process. A full disk, a reader
 * that left and one that does not read cost lines, which are counted, and nothing else. The destinations that come with the
 * logger end the process on ENOSPC and wait for ever at exit when the descriptor no longer takes anything.
 */
import { write, writeSync } from "node:fs";
import { errorFacts } from "./failure.ts";

/** Lines are kept up to this many bytes while the descriptor is slow; later ones are dropped. */
const MAX_QUEUED_BYTES = 16 * 1024 * 1024;

/** One write takes at most about so much. */
const BATCH_BYTES = 64 * 1024;

/** How long a non-blocking descriptor that is full is left alone. */
const RETRY_MS = 50;

/** How long the process may take at its exit to write what is left. */
const EXIT_FLUSH_MS = 500;
const EXIT_RETRY_MS = 5;

export interface LogDestinationOptions {
  /** Default 1, standard output. The descriptor is not closed. */
  readonly fd?: number;
  /** Default 16 MiB. */
  readonly maxQueuedBytes?: number;
}

interface Line {
  readonly text: string;
  readonly bytes: number;
}

/** A bounded queue of lines before a file descriptor. It lives as long as the process and flushes at its exit. */
export class LogDestination {
  readonly #fd: number;
  readonly #maxQueuedBytes: number;
  #queue: Line[] = [];
  #queuedBytes = 0;
  #droppedLines = 0;
  /** What is being written, and the lines in it. */
  #batch: Buffer | undefined;
  #batchLines = 0;
  /** The batch is not being written: the descriptor was full, and a timer will try again. */
  #waiting = false;
  /** A write failed in the middle of a line: the next one must not continue it. */
  #torn = false;
  #idle: (() => void)[] = [];

  constructor({ fd = 1, maxQueuedBytes = MAX_QUEUED_BYTES }: LogDestinationOptions = {}) {
    this.#fd = fd;
    this.#maxQueuedBytes = maxQueuedBytes;
    process.once("exit", () => this.#flushAtExit());
  }

  /** Lines that were lost, because the queue was full or the write failed. */
  get droppedLines(): number {
    return this.#droppedLines;
  }

  /** Takes one line with its end. Never throws. */
  write(text: string): void {
    const bytes = Buffer.byteLength(text);
    if (this.#queuedBytes + bytes > this.#maxQueuedBytes) {
      this.#droppedLines += 1;
      return;
    }
    this.#queue.push({ text, bytes });
    this.#queuedBytes += bytes;
    if (this.#batch === undefined) {
      this.#writeNext();
    }
  }

  /** Resolves when everything was written or dropped. */
  flush(): Promise<void> {
    return this.#batch === undefined ? Promise.resolve() : new Promise((resolve) => this.#idle.push(resolve));
  }

  #writeNext(): void {
    if (this.#queue.length === 0) {
      for (const resolve of this.#idle.splice(0)) {
        resolve();
      }
      return;
    }
    this.#batch = this.#takeBatch();
    this.#writeBatch();
  }

  #takeBatch(): Buffer {
    let count = 0;
    let bytes = 0;
    for (const line of this.#queue) {
      if (count > 0 && bytes + line.bytes > BATCH_BYTES) {
        break;
      }
      count += 1;
      bytes += line.bytes;
    }
    const lines = this.#queue.splice(0, count);
    this.#queuedBytes -= bytes;
    this.#batchLines = count;
    const start = this.#torn ? "\n" : "";
    this.#torn = false;
    return Buffer.from(start + lines.map(({ text }) => text).join(""));
  }

  #writeBatch(): void {
    const batch = this.#batch ?? Buffer.alloc(0);
    try {
      write(this.#fd, batch, (error, written) => this.#onWritten(batch, error, written));
    } catch (error) {
      // A descriptor that is no number at all; the same as any other failure.
      queueMicrotask(() => this.#onWritten(batch, error, 0));
    }
  }

  #onWritten(batch: Buffer, error: unknown, written: number): void {
    if (error !== null && error !== undefined) {
      const { code } = errorFacts(error);
      if (code === "EAGAIN" || code === "EBUSY" || code === "EINTR") {
        // The queue is bounded, so waiting costs lines at worst. A program that is done does not wait.
        this.#waiting = true;
        setTimeout(() => {
          this.#waiting = false;
          this.#writeBatch();
        }, RETRY_MS).unref();
        return;
      }
      this.#droppedLines += this.#batchLines;
    } else if (written < batch.length) {
      this.#batch = batch.subarray(written);
      this.#torn = true;
      this.#writeBatch();
      return;
    } else {
      this.#torn = false;
    }
    this.#batch = undefined;
    this.#writeNext();
  }

  /** What is being written in the background will be; what is behind it is written here, for a bounded time. */
  #flushAtExit(): void {
    const deadline = performance.now() + EXIT_FLUSH_MS;
    let rest = this.#waiting && this.#batch !== undefined ? this.#batch : Buffer.alloc(0);
    while (rest.length > 0 || this.#queue.length > 0) {
      rest = rest.length > 0 ? rest : this.#takeBatch();
      try {
        rest = rest.subarray(writeSync(this.#fd, rest));
      } catch (error) {
        if (errorFacts(error).code !== "EAGAIN" || performance.now() > deadline) {
          return;
        }
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, EXIT_RETRY_MS);
      }
    }
  }
}
