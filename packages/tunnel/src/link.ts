/**
 * A link: one WebSocket over TLS that carries whole frames. It knows nothing of sessions and streams.
 *
 * Once a link is closed from this side it is dead: `ws` still hands over messages of the same chunk after `close`,
 * `terminate` and `pause`, and none of them may have an effect.
 */
import type { TLSSocket } from "node:tls";
import { CloseCode, FrameWriter } from "@sallyport/protocol";
import type { WebSocket } from "ws";
import { unmapAddress } from "./source-prefix.ts";
import { agentFraming, edgeFraming } from "./web-socket-framing.ts";

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

/** The frames of one write: four TLS records. More saves nothing, less costs a system call per record. */
const WRITE_BYTES = 65_536;

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
  /** The last write is through: the next may start. */
  onWritable: () => void = () => undefined;
  /** Bytes on the WebSocket, frames and their headers. */
  bytesReceived = 0;
  bytesSent = 0;

  readonly #webSocket: WebSocket;
  readonly #socket: TLSSocket;
  readonly #writer: FrameWriter;
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
    // The buffer is reused: the next write starts when the socket has finished with the last.
    this.#writer = new FrameWriter(Buffer.allocUnsafeSlow(WRITE_BYTES), role === "edge" ? edgeFraming : agentFraming);
    this.#webSocket.binaryType = "nodebuffer";
    this.#webSocket.on("message", (data, isBinary) => this.#receive(data, isBinary));
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
    this.#socket.write(bytes, () => {
      this.#writing = false;
      if (!this.#dead) this.onWritable();
    });
  }

  /** Says why and closes; the peer has `closeTimeout` (see the options of `ws`) to answer before it is cut. */
  close(code: CloseCode, reason: string): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#own = { code, reason };
    // A close frame holds at most 123 bytes of reason (RFC 6455 §5.5).
    this.#webSocket.close(code, reason.slice(0, 120));
  }

  /** Cuts the connection. */
  destroy(): void {
    this.#dead = true;
    this.#webSocket.terminate();
  }

  #receive(data: unknown, isBinary: boolean): void {
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
    this.#failure ??= typeof code === "string" ? code : "WebSocket error";
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
