import { once } from "node:events";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { withDeadline } from "./deadline.ts";

/** A connection to an echo target whose round trips are measured one after the other. The caller closes it. */
export class EchoProbe {
  readonly socket: Socket;
  readonly #failed: Promise<never>;
  #expected = 0;
  #onEcho: () => void = () => undefined;

  private constructor(socket: Socket) {
    this.socket = socket;
    this.#failed = new Promise<never>((_resolve, reject) => {
      socket.on("error", (error: NodeJS.ErrnoException) => reject(new Error(`echo probe: ${error.code}`)));
      socket.once("end", () => reject(new Error("echo probe: the target ended")));
    });
    this.#failed.catch(() => undefined);
    socket.on("data", (bytes: Buffer) => {
      this.#expected -= bytes.length;
      if (this.#expected === 0) this.#onEcho();
    });
  }

  static async connect(port: number): Promise<EchoProbe> {
    const socket = connect({ port, host: "127.0.0.1", noDelay: true, allowHalfOpen: true });
    const probe = new EchoProbe(socket);
    await withDeadline(once(socket, "connect"), { what: "the probe's connection" });
    await probe.roundTrip(1, 10_000);
    return probe;
  }

  /** Milliseconds until all of `sizeBytes` are back. */
  async roundTrip(sizeBytes: number, timeoutMs: number): Promise<number> {
    const sentAt = performance.now();
    const back = new Promise<void>((resolve) => {
      this.#onEcho = resolve;
    });
    this.#expected = sizeBytes;
    this.socket.write(Buffer.alloc(sizeBytes, 0x65));
    await withDeadline(Promise.race([back, this.#failed]), { what: `an echo of ${sizeBytes} bytes`, timeoutMs });
    return performance.now() - sentAt;
  }

  close(): void {
    this.socket.destroy();
  }
}
