import { createHash } from "node:crypto";
import type { Hash } from "node:crypto";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { withDeadline } from "./deadline.ts";
import { PseudoRandomBytes } from "./prng.ts";
import { startTcpServer } from "./tcp-server.ts";
import type { TcpServer } from "./tcp-server.ts";

/** How one direction of one stream arrived. */
export interface Arrival {
  readonly sentBytes: number;
  readonly receivedBytes: number;
  readonly sentDigest: string;
  readonly receivedDigest: string;
}

const CHUNK_BYTES = 64 * 1024;
/** The number of the stream, with which each partner begins, so that both ends make the same bytes from it. */
const PREFACE_BYTES = 4;

/** One end of one stream: sends its seed's bytes and hashes what comes. */
class Endpoint {
  readonly sent: PseudoRandomBytes;
  readonly received: Hash = createHash("sha256");
  receivedBytes = 0;
  readonly #socket: Socket;
  readonly done: Promise<void>;

  constructor(socket: Socket, seed: string, sizeBytes: number, onBytes: (count: number) => void) {
    this.#socket = socket;
    this.sent = new PseudoRandomBytes(seed);
    this.done = new Promise((resolve, reject) => {
      socket.on("error", (error: NodeJS.ErrnoException) => reject(new Error(`${seed}: ${error.code}`)));
      socket.on("close", () => {
        if (!socket.readableEnded || !socket.writableFinished) reject(new Error(`${seed}: closed before its end`));
      });
      socket.on("end", () => {
        if (socket.writableFinished) resolve();
        else socket.once("finish", resolve);
      });
    });
    // Whoever awaits it comes later.
    this.done.catch(() => undefined);
    socket.on("data", (bytes: Buffer) => {
      this.received.update(bytes);
      this.receivedBytes += bytes.length;
      onBytes(bytes.length);
    });
    socket.on("drain", () => this.#send(sizeBytes));
    this.#send(sizeBytes);
  }

  #send(sizeBytes: number): void {
    while (this.sent.totalBytes < sizeBytes) {
      const chunk = this.sent.next(Math.min(CHUNK_BYTES, sizeBytes - this.sent.totalBytes));
      if (!this.#socket.write(chunk) && this.sent.totalBytes < sizeBytes) return;
    }
    this.#socket.end();
  }
}

/** Streams that carry pseudo-random bytes both ways at once. The caller closes it. */
export class TwoWayTransfer {
  /** Bytes that have arrived, of all streams and both directions. */
  arrivedBytes = 0;
  readonly #sizeBytes: number;
  readonly #seed: string;
  readonly #target: TcpServer;
  readonly #atTarget = new Map<number, Endpoint>();
  readonly #atPartner: Endpoint[] = [];
  readonly #partners: Socket[] = [];
  #onArrival: () => void = () => undefined;

  private constructor(target: TcpServer, seed: string, sizeBytes: number) {
    this.#target = target;
    this.#seed = seed;
    this.#sizeBytes = sizeBytes;
  }

  /** Starts the target; `sizeBytes` go each way on each stream. */
  static async prepare(seed: string, sizeBytes: number): Promise<TwoWayTransfer> {
    const target = await startTcpServer((socket) => transfer.#accept(socket));
    const transfer = new TwoWayTransfer(target, seed, sizeBytes);
    return transfer;
  }

  get targetPort(): number {
    return this.#target.port;
  }

  /** Connections that the target has seen. */
  get acceptedConnections(): number {
    return this.#target.acceptedConnections;
  }

  /** Connects one more partner and lets it send. */
  addPartner(port: number): void {
    const index = this.#atPartner.length;
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    const preface = Buffer.alloc(PREFACE_BYTES);
    preface.writeUInt32BE(index);
    socket.write(preface);
    this.#partners.push(socket);
    this.#atPartner.push(new Endpoint(socket, `${this.#seed} up ${index}`, this.#sizeBytes, this.#count));
  }

  /** Resolves once so many bytes, of all streams and both directions, have arrived; rejects when a stream fails first. */
  async arrived(bytes: number, timeoutMs: number): Promise<void> {
    const reached = new Promise<void>((resolve) => {
      this.#onArrival = () => {
        if (this.arrivedBytes >= bytes) resolve();
      };
      this.#onArrival();
    });
    const what = `arrival of ${bytes} bytes; ${this.arrivedBytes} were there at the start of the wait`;
    await withDeadline(Promise.race([reached, this.#finished()]), { what, timeoutMs });
  }

  /** Resolves when every stream has ended cleanly at both ends; rejects at the first one that did not. */
  async end(timeoutMs: number): Promise<readonly Arrival[]> {
    await withDeadline(this.#finished(), { what: "the end of all streams", timeoutMs });
    return this.#atPartner.flatMap((partner, index) => {
      const target = this.#atTarget.get(index)!;
      return [arrival(partner, target), arrival(target, partner)];
    });
  }

  async close(): Promise<void> {
    for (const socket of this.#partners) socket.destroy();
    await this.#target.close();
  }

  readonly #count = (count: number): void => {
    this.arrivedBytes += count;
    this.#onArrival();
  };

  async #finished(): Promise<void> {
    await Promise.all(this.#atPartner.map(({ done }) => done));
    await Promise.all([...this.#atTarget.values()].map(({ done }) => done));
  }

  #accept(socket: Socket): void {
    socket.on("readable", function onReadable() {
      // It comes in one piece, however small the pieces of the network are: Node waits for all of them.
      const preface = socket.read(PREFACE_BYTES) as Buffer | null;
      if (preface === null) return;
      socket.off("readable", onReadable);
      begin(preface.readUInt32BE());
    });
    const begin = (index: number): void => {
      this.#atTarget.set(index, new Endpoint(socket, `${this.#seed} down ${index}`, this.#sizeBytes, this.#count));
      socket.resume();
    };
  }
}

function arrival(from: Endpoint, to: Endpoint): Arrival {
  return {
    sentBytes: from.sent.totalBytes,
    receivedBytes: to.receivedBytes,
    sentDigest: from.sent.digest(),
    receivedDigest: to.received.digest("hex"),
  };
}
