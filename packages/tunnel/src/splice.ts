/**
 * Joins a TCP socket and a stream of the tunnel, the same at both ends: at the edge the socket is the partner's
 * connection, at the agent the target's.
 *
 * - Bytes from the socket are handed over as they are; reading pauses while the stream has no credit.
 * - Bytes from the stream return their credit in the write callback of the socket, never on arrival.
 * - Each direction ends on its own: FIN becomes END, END becomes FIN after every byte before it.
 * - An abort of one side is an abort of the other: RESET becomes RST, a broken socket becomes RESET. A transfer that
 *   was cut short never looks complete.
 *
 * The splice closes the socket; whoever made the splice hears once how it ended.
 */
import type { Socket } from "node:net";
import { LARGE_CHUNK_BYTES, MIN_DIRECTION_BYTES, ResetCode } from "@sallyport/protocol";
import { onConfirmedEnd } from "./confirmed-end.ts";
import { abandon } from "./abandon.ts";
import { ActivityTimer } from "./activity-timer.ts";
import { flowPauses } from "./flow-pauses.ts";
import { resetSocket } from "./reset-socket.ts";
import type { StreamHandler, TunnelStream } from "./session-driver.ts";
import { readSocket } from "./socket-reading.ts";
import { SocketWriter } from "./socket-writer.ts";

export type SpliceEnd = {
  /** Which directions had ended in order by then: the one from the socket, and the one from the stream. */
  readonly ended?: { readonly fromSocket: boolean; readonly fromStream: boolean };
} & SpliceEndKind;

type SpliceEndKind =
  /** Both directions ended after their last byte. */
  | { readonly type: "finished" }
  /** The socket broke or was reset by its peer; `error` is the system's code, such as ECONNRESET. */
  | { readonly type: "socketReset"; readonly error: string }
  /** The other end of the tunnel aborted, or the session did (`by`). */
  | { readonly type: "streamReset"; readonly code: number; readonly by: "peer" | "session" }
  | { readonly type: "timeout"; readonly kind: "idle" | "halfClose" }
  /** `abort` was called. */
  | { readonly type: "aborted"; readonly code: ResetCode };

export interface SpliceOptions {
  /** No byte in either direction for this long aborts both; 0: never. */
  readonly idleTimeoutMs: number;
  /** The same once one direction has ended; 0: `idleTimeoutMs` goes on to hold. */
  readonly halfCloseTimeoutMs: number;
  /** What was read from the socket and written to the stream before. */
  readonly before?: {
    readonly bytes: number;
    readonly firstByteAt: number | undefined;
    /** Calls `listener` once, when the peer of the socket has ended its direction: at once if it has already. */
    readonly onceEnded: (listener: () => void) => void;
  };
  /** Called once, when the stream is settled and the socket is closed or being closed. */
  readonly onEnd: (end: SpliceEnd) => void;
}

export class Splice implements StreamHandler {
  /** Bytes read from the socket. */
  bytesFromSocket = 0;
  /** Bytes that the socket has taken. */
  bytesToSocket = 0;
  /** When the first byte of each direction came, by `performance.now()`. */
  firstByteFromSocketAt: number | undefined;
  firstByteToSocketAt: number | undefined;

  readonly #socket: Socket;
  readonly #stream: TunnelStream;
  readonly #options: SpliceOptions;
  readonly #timer: ActivityTimer;
  readonly #writer: SocketWriter;
  readonly #readSize = { isLarge: false };
  /** The writer is to be flushed at the end of this turn. */
  #flushing = false;
  #ended = false;
  #endedFromSocket = false;
  #endedFromStream = false;

  /** The socket was made with `allowHalfOpen` and is paused; the splice owns it from now on. */
  constructor(socket: Socket, stream: TunnelStream, options: SpliceOptions) {
    this.#socket = socket;
    this.#stream = stream;
    this.#options = options;
    this.#timer = new ActivityTimer({
      idleTimeoutMs: options.idleTimeoutMs,
      halfCloseTimeoutMs: options.halfCloseTimeoutMs,
      progress: () => stream.acknowledgedBytes,
      delivered: () =>
        (!socket.readableEnded || stream.acknowledgedBytes === this.bytesFromSocket) &&
        (!socket.writableEnded || socket.writableFinished),
      onIdle: (kind) => {
        this.#abort(kind === "idle" ? ResetCode.idleTimeout : ResetCode.halfCloseTimeout, { type: "timeout", kind });
      },
    });
    this.#writer = new SocketWriter(socket, this.#onWritten);
    const { before } = options;
    this.bytesFromSocket = before?.bytes ?? 0;
    this.firstByteFromSocketAt = before?.firstByteAt;
    readSocket(socket, this.#onSocketData, this.#readSize);
    if (before === undefined) onConfirmedEnd(socket, this.#onSocketEnd);
    else before.onceEnded(this.#onSocketEnd);
    socket.on("finish", this.#onSocketFinish);
    // Of a socket with a byte rate, for each piece of what was written.
    socket.on("passed", () => this.#timer.touch());
    socket.on("error", this.#onSocketError);
    socket.on("close", this.#onSocketClose);
    // The error may have come before there was a listener of ours.
    if (socket.destroyed) this.#onSocketClose();
  }

  /** Lets bytes flow from the socket. */
  start(): void {
    this.#socket.resume();
  }

  /** Resets both sides. */
  abort(code: ResetCode): void {
    this.#abort(code, { type: "aborted", code });
  }

  // ── socket → stream ──

  readonly #onSocketData = (bytes: Buffer): void => {
    if (this.#ended) return;
    this.firstByteFromSocketAt ??= performance.now();
    this.bytesFromSocket += bytes.length;
    this.#timer.touch();
    const mayFollow = this.#stream.write(bytes);
    // What does not fill a read is the last of a burst: the next one begins small, so that an idle stream reserves nothing.
    const isFilled = bytes.length === (this.#readSize.isLarge ? LARGE_CHUNK_BYTES : MIN_DIRECTION_BYTES);
    if (isFilled || this.#readSize.isLarge) this.#readSize.isLarge = this.#stream.allowLargeWrites(isFilled);
    if (mayFollow) return;
    flowPauses.total += 1;
    this.#socket.pause();
  };

  onWritable(): void {
    if (!this.#ended) this.#socket.resume();
  }

  readonly #onSocketEnd = (): void => {
    if (this.#ended) return;
    this.#endedFromSocket = true;
    this.#timer.halfClose();
    this.#stream.end();
  };

  // ── stream → socket ──

  onAccept(): void {
    // The target is connected before there is a splice.
  }

  onData(bytes: Uint8Array): void {
    if (this.#ended) return;
    this.firstByteToSocketAt ??= performance.now();
    this.#timer.touch();
    this.#writer.write(bytes);
    if (this.#flushing) return;
    this.#flushing = true;
    this.#stream.flushLater(this);
  }

  /** Called by the driver when all messages at hand have been handled. */
  flush(): void {
    this.#flushing = false;
    this.#writer.flush();
  }

  readonly #onWritten = (count: number): void => {
    if (this.#ended) return;
    this.bytesToSocket += count;
    this.#timer.touch();
    this.#stream.consume(count);
  };

  onEnd(): void {
    if (this.#ended) return;
    this.#endedFromStream = true;
    this.#timer.halfClose();
    this.#writer.end();
  }

  readonly #onSocketFinish = (): void => {
    // Every byte and the FIN are with the kernel.
    if (!this.#ended) this.#stream.consumeEnd();
  };

  // ── ends ──

  onReset(code: number, by: "peer" | "session"): void {
    this.#finish({ type: "streamReset", code, by });
    if (code === ResetCode.idleTimeout || code === ResetCode.halfCloseTimeout) abandon(this.#socket);
    else resetSocket(this.#socket);
  }

  onFinished(): void {
    this.#finish({ type: "finished" });
    // Both FINs are out; the socket closes by itself. Destroying it now could cut bytes that the kernel still holds.
  }

  readonly #onSocketError = (error: NodeJS.ErrnoException): void => {
    if (this.#ended) return;
    this.#stream.reset(ResetCode.connectionReset);
    this.#finish({ type: "socketReset", error: error.code ?? "EUNKNOWN" });
  };

  readonly #onSocketClose = (): void => {
    // A socket that closed with both directions through reports nothing else; the stream finishes in its own time.
    if (this.#ended || (this.#socket.readableEnded && this.#socket.writableFinished)) return;
    this.#stream.reset(ResetCode.connectionReset);
    this.#finish({ type: "socketReset", error: "ECONNRESET" });
  };

  #abort(code: ResetCode, end: SpliceEnd): void {
    if (this.#ended) return;
    this.#stream.reset(code);
    this.#finish(end);
    if (end.type === "timeout") abandon(this.#socket);
    else resetSocket(this.#socket);
  }

  #finish(end: SpliceEnd): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#timer.stop();
    this.#options.onEnd({
      ...end,
      ended: { fromSocket: this.#endedFromSocket, fromStream: this.#endedFromStream },
    });
  }
}
