/**
 * A link: one WebSocket over TLS that carries whole frames. It knows nothing of sessions and streams.
 *
 * `ws` has made the WebSocket, and closes it. Messages of ours bypass it in both directions: they are written as one
 * buffer of several frames, and taken out of what is read where they stand. All else that a peer may send (control frames,
 * fragments, what is not allowed) is handed to `ws`, which answers it as the RFC says; when it is through with it, reading
 * goes on here.
 *
 * Once a link is closed from this side it is dead: what still arrives, even in the same chunk, has no effect.
 */
import type { TLSSocket } from "node:tls";
import { CloseCode, FrameWriter, recordBytes } from "@sallyport/protocol";
import type { WebSocket } from "ws";
import { MessageReader } from "./message-reader.ts";
import { readSocket } from "./socket-reading.ts";
import { unmapAddress } from "./source-prefix.ts";
import { agentFraming, edgeFraming } from "./web-socket-framing.ts";
import { webSocketOptions } from "./web-socket-options.ts";

/** What a link is made of; both sockets belong to the link from then on. */
export interface LinkTransport {
  readonly webSocket: WebSocket;
  readonly socket: TLSSocket;
}

export interface LinkEnd {
  /** A `CloseCode`, a code of RFC 6455 §7.4.1 (1006: the connection broke), or undefined when `destroy` was called. */
  readonly code: number | undefined;
  /** In words fit for a log. */
  readonly reason: string;
  /** This end closed because of what the peer sent: it broke the protocol, or WebSocket (RFC 6455). */
  readonly breach: boolean;
}

/** Closing with one of these blames the peer. */
const breaches: ReadonlySet<number> = new Set([CloseCode.protocol, CloseCode.tooLarge, CloseCode.budget]);

/** With which `ws` closes for what it calls by these names (RFC 6455 §7.4.1); for all others with `PROTOCOL_ERROR`. */
const webSocketCodes: Readonly<Record<string, number>> = {
  WS_ERR_INVALID_UTF8: 1007,
  WS_ERR_TOO_MANY_BUFFERED_PARTS: 1008,
  WS_ERR_UNSUPPORTED_DATA_PAYLOAD_LENGTH: 1009,
  WS_ERR_UNSUPPORTED_MESSAGE_LENGTH: 1009,
};
const PROTOCOL_ERROR = 1002;

/** The TLS records of one write. More saves nothing, less costs a system call for each. */
const WRITE_RECORDS = 4;

let nextId = 1;

export class Link {
  /** Unique in the process. */
  readonly id: number;
  readonly openedAt: number;
  /** As the kernel named it when the link began; an IPv4 address mapped into IPv6 is shown as IPv4. */
  readonly remoteAddress: string;
  /** Every whole message, until the link is dead. Replaced by whoever takes the link over. */
  onMessage: (message: Uint8Array) => void = () => undefined;
  /** Once, when the transport is gone. */
  onClosed: (end: LinkEnd) => void = () => undefined;
  /** At once, when this end closes because of what the peer sent; `onClosed` follows when the peer has answered or was cut. */
  onBreach: () => void = () => undefined;
  /** The last write is through: the next may start. */
  onWritable: () => void = () => undefined;
  /** Bytes on the WebSocket, frames and their headers. */
  bytesReceived = 0;
  bytesSent = 0;

  readonly #webSocket: WebSocket;
  readonly #socket: TLSSocket;
  readonly #writer: FrameWriter;
  readonly #reader: MessageReader;
  /** Hands bytes to `ws`. */
  readonly #judge: (bytes: Buffer) => void;
  /** `ws` is in the middle of something. */
  #judging = false;
  #writing = false;
  #dead = false;
  #closed = false;
  #failure: string | undefined;
  /** What this end said when it closed. A peer that answers with another code, or not at all, does not change the reason. */
  #own: { readonly code: CloseCode; readonly reason: string } | undefined;

  constructor(transport: LinkTransport, role: "edge" | "agent") {
    this.id = nextId;
    nextId += 1;
    this.openedAt = performance.now();
    this.remoteAddress = unmapAddress(transport.socket.remoteAddress ?? "");
    this.#webSocket = transport.webSocket;
    this.#socket = transport.socket;
    const framing = role === "edge" ? edgeFraming : agentFraming;
    // A frame for a record: the peer reads record by record, and has nothing to put together.
    this.#socket.setMaxSendFragment(recordBytes(framing));
    // The buffer is reused: the next write starts when the socket has finished with the last.
    this.#writer = new FrameWriter(Buffer.allocUnsafeSlow(WRITE_RECORDS * recordBytes(framing)), framing);
    this.#reader = new MessageReader({
      masked: role === "edge",
      maxPieces: webSocketOptions.maxBufferedChunks,
      onMessage: (message) => this.#receive(message),
    });
    const judge = this.#socket.listeners("data").at(-1);
    if (judge === undefined) throw new Error("the WebSocket does not read its socket");
    this.#judge = judge.bind(this.#socket);
    readSocket(this.#socket, (bytes) => this.#read(bytes));
    this.#socket.removeListener("data", judge as (bytes: Buffer) => void);
    this.#webSocket.binaryType = "nodebuffer";
    this.#webSocket.on("message", (data, isBinary) => this.#receiveJudged(data, isBinary));
    this.#webSocket.on("error", (error) => this.#fail(error));
    this.#webSocket.on("close", (code, reason) => this.#end(code, reason.toString("latin1")));
  }

  /** Nothing is received or sent any more. */
  get dead(): boolean {
    return this.#dead;
  }

  /** A write is under way; frames wait where they are until it is through. */
  get writing(): boolean {
    return this.#writing;
  }

  /**
   * Lets `fill` write frames into the buffer and sends them with one write; `onWritable` is called when the socket is
   * ready for the next. Does nothing while a write is under way.
   */
  write(fill: (writer: FrameWriter) => void): void {
    // Behind a close frame of the peer nothing may follow; what is left goes out on another link.
    if (this.#dead || this.#writing || this.#webSocket.readyState !== this.#webSocket.OPEN) return;
    const writer = this.#writer;
    writer.clear();
    fill(writer);
    if (writer.used === 0) return;
    this.#writing = true;
    this.bytesSent += writer.used;
    const bytes = writer.bytes.subarray(0, writer.used);
    this.#socket.write(bytes, (error) => {
      // The link is lost, which is told when its socket has closed. What was written now would only be sent again elsewhere.
      if (error) return;
      this.#writing = false;
      if (!this.#dead) this.onWritable();
    });
  }

  /** Says why and closes; the peer has `closeTimeout` (see the options of `ws`) to answer before it is cut. */
  close(code: CloseCode, reason: string): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#own = { code, reason };
    if (breaches.has(code)) this.onBreach();
    // `ws` says nothing to a peer that has ended its half, and waits without bound for it to take what was written before.
    if (this.#socket.readableEnded) {
      this.#webSocket.terminate();
      return;
    }
    // A close frame holds at most 123 bytes of reason (RFC 6455 §5.5).
    this.#webSocket.close(code, reason.slice(0, 120));
  }

  /** Cuts the connection. */
  destroy(): void {
    this.#dead = true;
    this.#webSocket.terminate();
  }

  #read(bytes: Buffer): void {
    // All that concerns a dead link is the peer's close frame, which is for `ws`.
    if (this.#dead) this.#reader.stop();
    if (this.#judging) {
      this.#hand(bytes);
      return;
    }
    const foreign = this.#reader.read(bytes);
    if (foreign !== undefined) this.#hand(foreign);
  }

  /** Bytes that begin, or go on, with what is none of our messages. `ws` may keep them, so they are copied. */
  #hand(bytes: Uint8Array): void {
    // What follows an error is read, so that the peer's end is seen, and means nothing.
    if (this.#closed || this.#failure !== undefined || this.#socket.destroyed) return;
    this.#judge(Buffer.from(bytes));
    this.#judging = !atBoundary(this.#webSocket);
  }

  #receive(message: Uint8Array): void {
    this.bytesReceived += message.length;
    this.onMessage(message);
    if (this.#dead) this.#reader.stop();
  }

  /** A message that `ws` has read. */
  #receiveJudged(data: unknown, isBinary: boolean): void {
    if (this.#dead) return;
    if (!isBinary || !(data instanceof Uint8Array)) {
      this.close(CloseCode.protocol, "text message");
      return;
    }
    this.bytesReceived += data.length;
    this.onMessage(data);
  }

  #fail(error: Error): void {
    // `ws` closes by itself after an error; only the kind of error is kept, never its text.
    const code = (error as NodeJS.ErrnoException).code;
    const isFirst = this.#failure === undefined && !this.#dead;
    this.#failure ??= typeof code === "string" ? code : "WebSocket error";
    if (isFirst && this.#failure.startsWith("WS_ERR_")) this.onBreach();
  }

  #end(code: number, reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#dead = true;
    if (this.#own !== undefined) {
      this.onClosed({ ...this.#own, breach: breaches.has(this.#own.code) });
      return;
    }
    const failure = this.#failure;
    if (failure?.startsWith("WS_ERR_") === true) {
      this.onClosed({ code: webSocketCodes[failure] ?? PROTOCOL_ERROR, reason: failure, breach: true });
      return;
    }
    const printable = reason.replace(/[^\x20-\x7e]/g, "?").slice(0, 123);
    this.onClosed({ code, reason: failure ?? (printable === "" ? "connection lost" : printable), breach: false });
  }
}

/** The part of `ws` that no public interface reaches. */
interface WebSocketInternals {
  readonly _receiver?: { readonly _state: number; readonly _bufferedBytes: number; readonly _fragmented: number };
}

/**
 * Whether `ws` has read whole messages only, so that the next byte begins one. Where that cannot be told it reads on, which is
 * slower and as right.
 */
function atBoundary(webSocket: WebSocket): boolean {
  const receiver = (webSocket as unknown as WebSocketInternals)._receiver;
  return (
    webSocket.readyState === webSocket.OPEN &&
    receiver?._state === 0 &&
    receiver._bufferedBytes === 0 &&
    receiver._fragmented === 0
  );
}
