import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";

/** `up` runs from the one that connected to the relay towards the target, `down` comes back. */
export type RelayDirection = "up" | "down";

export interface TcpRelayOptions {
  readonly targetPort: number;
  readonly targetHost?: string;
  /** Delay of each chunk in each direction. Default 0. */
  readonly latencyMs?: number;
  /** Rate of each direction of each connection. Default: unlimited. */
  readonly bytesPerSecond?: number;
  /** Once a connection has carried this much in this direction it is cut by RST, or stalls with its sockets kept. */
  readonly stopAfter?: {
    readonly bytes: number;
    readonly direction: RelayDirection;
    readonly how: "reset" | "blackHole";
  };
}

/** At most so much waits in the relay per direction; beyond it the relay stops reading, as a full network path would. */
const MAX_QUEUED_BYTES = 1024 * 1024;

/** One direction of one connection: what has been read waits here until its time has come. */
class Pump {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #latencyMs: number;
  readonly #bytesPerSecond: number;
  readonly #onBytes: (totalBytes: number) => void;
  readonly #queue: { readonly dueAt: number; readonly bytes: Buffer | null }[] = [];
  #queuedBytes = 0;
  #totalBytes = 0;
  #nextFreeAt = 0;
  #timer: NodeJS.Timeout | undefined;
  #held = false;

  constructor(from: Socket, to: Socket, options: TcpRelayOptions, onBytes: (totalBytes: number) => void) {
    this.#from = from;
    this.#to = to;
    this.#latencyMs = options.latencyMs ?? 0;
    this.#bytesPerSecond = options.bytesPerSecond ?? Number.POSITIVE_INFINITY;
    this.#onBytes = onBytes;
    from.on("data", (bytes: Buffer) => this.#enqueue(bytes));
    from.once("end", () => this.#enqueue(null));
    to.on("drain", () => this.#run());
  }

  hold(): void {
    this.#held = true;
    clearTimeout(this.#timer);
    this.#from.pause();
  }

  release(): void {
    this.#held = false;
    this.#run();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#queue.length = 0;
    this.#held = true;
  }

  #enqueue(bytes: Buffer | null): void {
    const now = performance.now();
    this.#nextFreeAt = Math.max(now, this.#nextFreeAt) + ((bytes?.length ?? 0) / this.#bytesPerSecond) * 1000;
    this.#queue.push({ dueAt: this.#nextFreeAt + this.#latencyMs, bytes });
    this.#queuedBytes += bytes?.length ?? 0;
    this.#run();
  }

  #run(): void {
    if (this.#held) return;
    clearTimeout(this.#timer);
    for (let head = this.#queue[0]; head !== undefined; head = this.#queue[0]) {
      const waitMs = head.dueAt - performance.now();
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.#run(), Math.ceil(waitMs));
        break;
      }
      if (this.#to.writableNeedDrain) break;
      this.#queue.shift();
      if (head.bytes === null) {
        this.#to.end();
        continue;
      }
      this.#queuedBytes -= head.bytes.length;
      this.#totalBytes += head.bytes.length;
      this.#to.write(head.bytes);
      this.#onBytes(this.#totalBytes);
      if (this.#held) return;
    }
    if (this.#queuedBytes < MAX_QUEUED_BYTES) this.#from.resume();
    else this.#from.pause();
  }
}

interface RelayedConnection {
  readonly sockets: readonly [Socket, Socket];
  readonly pumps: readonly [Pump, Pump];
}

/** A sick network between two programs. The caller closes it. */
export class TcpRelay {
  readonly port: number;
  readonly #server;
  readonly #options: TcpRelayOptions;
  /** Bounded by what the test itself opens. */
  readonly #connections = new Set<RelayedConnection>();
  #isBlackHole = false;
  #acceptedConnections = 0;

  private constructor(server: ReturnType<typeof createServer>, options: TcpRelayOptions) {
    this.#server = server;
    this.#options = options;
    this.port = (server.address() as AddressInfo).port;
    server.on("connection", (socket: Socket) => this.#accept(socket));
  }

  static async start(options: TcpRelayOptions): Promise<TcpRelay> {
    const server = createServer({ allowHalfOpen: true });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new TcpRelay(server, options);
  }

  get openConnections(): number {
    return this.#connections.size;
  }

  get acceptedConnections(): number {
    return this.#acceptedConnections;
  }

  /** Resets every connection, in both directions. New ones are relayed as before. */
  cut(): void {
    for (const connection of this.#connections) this.#reset(connection);
  }

  /** From now on nothing passes, old connections or new, and no socket learns of it. */
  blackHole(): void {
    this.#isBlackHole = true;
    for (const { pumps } of this.#connections) for (const pump of pumps) pump.hold();
  }

  /** Ends the black hole: what waited goes on, nothing is lost. */
  heal(): void {
    this.#isBlackHole = false;
    for (const { pumps } of this.#connections) for (const pump of pumps) pump.release();
  }

  async close(): Promise<void> {
    const closed = once(this.#server, "close");
    this.#server.close();
    this.cut();
    await closed;
  }

  #accept(near: Socket): void {
    this.#acceptedConnections++;
    const far = connect({
      port: this.#options.targetPort,
      host: this.#options.targetHost ?? "127.0.0.1",
      allowHalfOpen: true,
      noDelay: true,
    });
    near.setNoDelay(true);
    const stopAfter = this.#options.stopAfter;
    const watch = (direction: RelayDirection) => (totalBytes: number) => {
      if (stopAfter === undefined || stopAfter.direction !== direction || totalBytes < stopAfter.bytes) return;
      if (stopAfter.how === "reset") this.#reset(connection);
      else for (const pump of connection.pumps) pump.hold();
    };
    const connection: RelayedConnection = {
      sockets: [near, far],
      pumps: [new Pump(near, far, this.#options, watch("up")), new Pump(far, near, this.#options, watch("down"))],
    };
    this.#connections.add(connection);
    if (this.#isBlackHole) for (const pump of connection.pumps) pump.hold();
    for (const socket of connection.sockets) {
      socket.on("error", () => this.#reset(connection));
      socket.once("close", () => {
        if (near.destroyed && far.destroyed) this.#forget(connection);
      });
    }
  }

  #reset(connection: RelayedConnection): void {
    for (const socket of connection.sockets) socket.resetAndDestroy();
    this.#forget(connection);
  }

  #forget(connection: RelayedConnection): void {
    for (const pump of connection.pumps) pump.stop();
    this.#connections.delete(connection);
  }
}
