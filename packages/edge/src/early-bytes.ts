/**
 * What a partner sends before its target is connected. It goes to the agent at once, so that a protocol in which the
 * partner speaks first loses no round trip, and is kept until the agent has accepted: when this try fails, the next one
 * gets the same bytes from the beginning, each once.
 *
 * Not more is read than the stream takes before ACCEPT (the initial credit) or `MAX_EARLY_BYTES`, and one small
 * read. The rest waits in the kernel, and with the partner.
 */
import type { Socket } from "node:net";
import { onConfirmedEnd, readSocket } from "@sallyport/tunnel";

/** Where the bytes go: the stream of the current try. */
export interface EarlySink {
  /** False: no more until `resume` is called. */
  write(bytes: Uint8Array): boolean;
  end(): void;
}

/** What whoever reads the socket next has to know. */
export interface EarlyAccount {
  readonly bytes: number;
  /** When the first came, by `performance.now()`. */
  readonly firstByteAt: number | undefined;
  /** Calls `listener` once, when the partner has ended its direction: at once if it has already. */
  readonly onceEnded: (listener: () => void) => void;
}

/** However much credit an agent gives before ACCEPT. */
const MAX_EARLY_BYTES = 65_536;

export class EarlyBytes {
  readonly #socket: Socket;
  /** One buffer, however small the pieces. */
  #kept = Buffer.alloc(0);
  #bytes = 0;
  #firstByteAt: number | undefined;
  #sink: EarlySink | undefined;
  #ended = false;
  #onEnded: (() => void) | undefined;

  /** The socket is paused; nothing is read before `flowTo`. */
  constructor(socket: Socket) {
    this.#socket = socket;
    readSocket(socket, this.#onData, { isLarge: false });
    onConfirmedEnd(socket, () => {
      this.#ended = true;
      this.#sink?.end();
      this.#onEnded?.();
    });
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Gives all that is kept, and then what comes, to the stream of a new try. */
  flowTo(sink: EarlySink): void {
    this.#sink = sink;
    const mayFollow = this.#bytes === 0 || sink.write(this.#kept.subarray(0, this.#bytes));
    if (this.#ended) sink.end();
    else if (mayFollow) this.resume();
  }

  /** The stream takes bytes again. */
  resume(): void {
    if (this.#bytes < MAX_EARLY_BYTES) this.#socket.resume();
  }

  /** The try has failed: nothing is read until there is another. */
  hold(): void {
    this.#sink = undefined;
    this.#socket.pause();
  }

  /** The target is connected: what is kept is on its way, and whoever asked reads the socket from now on. */
  handOver(): EarlyAccount {
    this.#socket.removeListener("data", this.#onData);
    this.#sink = undefined;
    this.#kept = Buffer.alloc(0);
    return {
      bytes: this.#bytes,
      firstByteAt: this.#firstByteAt,
      onceEnded: (listener) => {
        if (this.#ended) listener();
        else this.#onEnded = listener;
      },
    };
  }

  /** `bytes` are valid until this returns: both the copy here and the stream make their own. */
  readonly #onData = (bytes: Buffer): void => {
    this.#firstByteAt ??= performance.now();
    const needed = this.#bytes + bytes.length;
    if (needed > this.#kept.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.#kept.length));
      larger.set(this.#kept.subarray(0, this.#bytes));
      this.#kept = larger;
    }
    this.#kept.set(bytes, this.#bytes);
    this.#bytes = needed;
    const mayFollow = this.#sink?.write(bytes) ?? false;
    if (!mayFollow || this.#bytes >= MAX_EARLY_BYTES) this.#socket.pause();
  };
}
