/** A target that echoes, and knows its connections by the first bytes that come on them. */
import type { Socket } from "node:net";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

const MARKER_BYTES = 16;

/** The caller awaits `close()`. */
export class MarkedTarget {
  readonly #byMarker = new Map<string, { readonly socket: Socket; received: number }>();
  #server: TcpServer | undefined;

  private constructor() {}

  static async start(): Promise<MarkedTarget> {
    const target = new MarkedTarget();
    target.#server = await startTcpServer((socket) => target.#serve(socket));
    return target;
  }

  get port(): number {
    return this.#server?.port ?? 0;
  }

  /** Bytes that came on the connection that began with this marker of 16 characters. */
  received(marker: string): number {
    return this.#byMarker.get(marker)?.received ?? 0;
  }

  /** Sends this much on it. */
  write(marker: string, bytes: number): void {
    this.#byMarker.get(marker)?.socket.write(Buffer.alloc(bytes));
  }

  async close(): Promise<void> {
    await this.#server?.close();
  }

  #serve(socket: Socket): void {
    let entry: { readonly socket: Socket; received: number } | undefined;
    socket.on("data", (chunk: Buffer) => {
      const marker = chunk.subarray(0, MARKER_BYTES).toString("latin1");
      if (entry === undefined && /^[0-9a-f]{16}$/.test(marker)) {
        entry = { socket, received: 0 };
        this.#byMarker.set(marker, entry);
        socket.once("close", () => this.#byMarker.delete(marker));
      }
      if (entry !== undefined) entry.received += chunk.length;
      socket.write(chunk);
    });
    socket.on("end", () => socket.end());
  }
}
