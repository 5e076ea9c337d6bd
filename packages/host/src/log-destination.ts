/**
 * Where log lines go: a sink (a file descriptor, or a file that rotates), written without ever blocking, throwing or ending
 * the process. A full disk, a reader that left and one that does not read cost lines, which are counted, and nothing else. The
 * destinations that come with the logger end the process on ENOSPC and wait for ever at exit when the descriptor no longer
 * takes anything.
 */
import { write, writeSync } from "node:fs";
import { errorFacts } from "./failure.ts";

/** Lines are kept up to this many bytes while the descriptor is slow; later ones are dropped. */
const MAX_QUEUED_BYTES = 16 * 1024 * 1024;

/** One write takes at most about so much. */
const BATCH_BYTES = 64 * 1024;

/**
 * Lines that come within so many milliseconds of the last write go out together: a write is a trip to another thread and
 * back, which on a busy edge cost more than the lines.
 */
const GATHER_MS = 10;

/** How long a non-blocking descriptor that is full is left alone. */
const RETRY_MS = 50;

/** How long the process may take at its exit to write what is left. */
const EXIT_FLUSH_MS = 500;
const EXIT_RETRY_MS = 5;

/** What takes the lines in the end. One write is in flight at a time. */
export interface LineSink {
  /** Takes as much of `batch` as it can, and says how much; with an error, what it took before it. Calls `done` once, later. */
  write(batch: Buffer, done: (error: unknown, written: number) => void): void;
  /** The last batch is with the kernel, which carries it out whatever becomes of the process. */
  readonly handedOver: boolean;
  /** The same in this very turn, at the exit of the process. @throws the system's error */
  writeSync(batch: Buffer): number;
  /** After how many milliseconds a batch that met this error is tried again. Undefined: its lines are lost. */
  retryAfterMs(error: unknown): number | undefined;
}

export interface LogDestinationOptions {
  /** Default 1, standard output. The descriptor is not closed. */
  readonly fd?: number;
  /** Instead of a descriptor. */
  readonly sink?: LineSink;
  /** Default 16 MiB. */
  readonly maxQueuedBytes?: number;
}

interface Line {
  readonly text: string;
  readonly bytes: number;
}

/** A bounded queue of lines before a sink. It lives as long as the process, or until `close`, and flushes at its exit. */
export class LogDestination {
  readonly #sink: LineSink;
  readonly #maxQueuedBytes: number;
  #queue: Line[] = [];
  #queuedBytes = 0;
  #droppedLines = 0;
  /** What is being written. */
  #batch: Buffer | undefined;
  /** The batch is not being written: the sink was full, and this timer will try again. */
  #retry: NodeJS.Timeout | undefined;
  /** Nothing is being written: this timer will, with all that has come until then. */
  #gathering: NodeJS.Timeout | undefined;
  #wroteAt = Number.NEGATIVE_INFINITY;
  /** A write failed in the middle of a line: the next one must not continue it. */
  #torn = false;
  /** The batch begins with an end of line for that, which is still to be written. */
  #prefixed = false;
  #idle: (() => void)[] = [];

  constructor({ fd = 1, sink, maxQueuedBytes = MAX_QUEUED_BYTES }: LogDestinationOptions = {}) {
    this.#sink = sink ?? new DescriptorSink(fd);
    this.#maxQueuedBytes = maxQueuedBytes;
    process.once("exit", this.#flushAtExit);
  }

  /** Lines that were lost, because the queue was full or the write failed. */
  get droppedLines(): number {
    return this.#droppedLines;
  }

  /** Bytes that wait for the sink. */
  get queuedBytes(): number {
    return this.#queuedBytes;
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
    if (this.#batch !== undefined) return;
    if (this.#gathering === undefined) this.#writeSoon();
    else if (this.#queuedBytes >= BATCH_BYTES) this.#writeNext();
  }

  /** Resolves when everything was written or dropped. */
  flush(): Promise<void> {
    if (this.#batch === undefined && this.#queue.length === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#idle.push(resolve);
      if (this.#gathering !== undefined) this.#writeNext();
    });
  }

  /** Waits at most `timeoutMs` for the sink; what it has not taken then is lost. Nothing may be written afterwards. */
  async close(timeoutMs: number): Promise<void> {
    const late = setTimeout(() => {
      this.#droppedLines += this.#queue.length + countLines(this.#batch ?? Buffer.alloc(0)) - (this.#prefixed ? 1 : 0);
      this.#queue = [];
      this.#queuedBytes = 0;
      clearTimeout(this.#retry);
      this.#batch = undefined;
      this.#writeNext();
    }, timeoutMs);
    await this.flush();
    clearTimeout(late);
    process.removeListener("exit", this.#flushAtExit);
  }

  /** At once, or when the lines of a moment have been gathered; whoever waits for a flush, or much, is not kept waiting. */
  #writeSoon(): void {
    const restMs = this.#wroteAt + GATHER_MS - performance.now();
    if (restMs <= 0 || this.#idle.length > 0 || this.#queuedBytes >= BATCH_BYTES) return this.#writeNext();
    this.#gathering = setTimeout(() => this.#writeNext(), Math.ceil(restMs)).unref();
  }

  #writeNext(): void {
    clearTimeout(this.#gathering);
    this.#gathering = undefined;
    if (this.#queue.length === 0) {
      for (const resolve of this.#idle.splice(0)) {
        resolve();
      }
      return;
    }
    this.#wroteAt = performance.now();
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
    this.#prefixed = this.#torn;
    return Buffer.from((this.#torn ? "\n" : "") + lines.map(({ text }) => text).join(""));
  }

  #writeBatch(): void {
    this.#retry = undefined;
    const batch = this.#batch ?? Buffer.alloc(0);
    this.#sink.write(batch, (error, written) => this.#onWritten(batch, error, written));
  }

  #onWritten(batch: Buffer, error: unknown, written: number): void {
    // `close` has given it up.
    if (batch !== this.#batch) {
      return;
    }
    if (written > 0) {
      this.#torn = batch[written - 1] !== LINE_END;
      this.#prefixed = false;
    }
    const rest = batch.subarray(written);
    if (error !== null && error !== undefined) {
      const retryMs = this.#sink.retryAfterMs(error);
      if (retryMs !== undefined) {
        // The queue is bounded, so waiting costs lines at worst. A program that is done does not wait.
        this.#batch = rest;
        this.#retry = setTimeout(() => this.#writeBatch(), retryMs).unref();
        return;
      }
      this.#droppedLines += countLines(rest) - (this.#prefixed ? 1 : 0);
    } else if (rest.length > 0) {
      this.#batch = rest;
      this.#writeBatch();
      return;
    }
    this.#batch = undefined;
    if (this.#queue.length === 0) this.#writeNext();
    else this.#writeSoon();
  }

  /** What is being written in the background will be; what is behind it is written here, for a bounded time. */
  readonly #flushAtExit = (): void => {
    const deadline = performance.now() + EXIT_FLUSH_MS;
    const isOnItsWay = this.#retry === undefined && this.#sink.handedOver;
    let rest = isOnItsWay || this.#batch === undefined ? Buffer.alloc(0) : this.#batch;
    while (rest.length > 0 || this.#queue.length > 0) {
      rest = rest.length > 0 ? rest : this.#takeBatch();
      try {
        rest = rest.subarray(this.#sink.writeSync(rest));
      } catch (error) {
        if (errorFacts(error).code !== "EAGAIN" || performance.now() > deadline) {
          return;
        }
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, EXIT_RETRY_MS);
      }
    }
  };
}

/** A descriptor of somebody else. */
class DescriptorSink implements LineSink {
  readonly handedOver = true;
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(batch: Buffer, done: (error: unknown, written: number) => void): void {
    try {
      write(this.#fd, batch, done);
    } catch (error) {
      // A descriptor that is no number at all; the same as any other failure.
      queueMicrotask(() => done(error, 0));
    }
  }

  writeSync(batch: Buffer): number {
    return writeSync(this.#fd, batch);
  }

  retryAfterMs(error: unknown): number | undefined {
    const { code } = errorFacts(error);
    return code === "EAGAIN" || code === "EBUSY" || code === "EINTR" ? RETRY_MS : undefined;
  }
}

const LINE_END = 10;

function countLines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(LINE_END); at !== -1; at = bytes.indexOf(LINE_END, at + 1)) {
    count += 1;
  }
  return count;
}
