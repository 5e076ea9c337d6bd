/**
 * A bound TCP address, apart from what is done with its connections: a reload may hand it on to another listener. It hands sockets over as the kernel accepted them: paused, half-open allowed, nothing read.
 */
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";

export interface ListeningSocketOptions {
  readonly host: string;
  readonly port: number;
  /** Accepting failed (for example EMFILE); the socket goes on. */
  readonly onError: (code: string) => void;
}

/** Connections that the kernel completes before they are accepted; it takes the smaller of this and its own bound. */
const BACKLOG = 4_096;

/** Set by us: the default differs between Node 20 (16 KiB) and later (64 KiB). */
export const SOCKET_BUFFER_BYTES = 65_536;

export class ListeningSocket {
  /** Hears of every connection and owns its socket, which has an 'error' listener already. A reload may change it. */
  onSocket: (socket: Socket) => void = (socket) => socket.destroy();
  readonly #options: ListeningSocketOptions;
  readonly #server: Server;

  constructor(options: ListeningSocketOptions) {
    this.#options = options;
    this.#server = createServer({
      allowHalfOpen: true,
      pauseOnConnect: true,
      highWaterMark: SOCKET_BUFFER_BYTES,
    });
    this.#server.on("connection", (socket: Socket) => {
      socket.on("error", ignore);
      this.onSocket(socket);
    });
  }

  /** Where it listens, with the port that the kernel chose for port 0; undefined before and after. */
  get address(): AddressInfo | undefined {
    const address = this.#server.address();
    return address === null || typeof address === "string" ? undefined : address;
  }

  /** @throws the system's error (EADDRINUSE, EACCES, EADDRNOTAVAIL) when the address cannot be bound */
  async bind(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen({ host: this.#options.host, port: this.#options.port, backlog: BACKLOG }, () => {
        this.#server.removeListener("error", reject);
        this.#server.on("error", (error: NodeJS.ErrnoException) => this.#options.onError(error.code ?? "EUNKNOWN"));
        resolve();
      });
    });
  }

  /** Accepts no more; the address is free when this returns. Sockets that were handed over are not touched. */
  close(): void {
    this.#server.close();
  }
}

/** Whoever takes the socket over adds its own; this one keeps an early error from ending the process. */
function ignore(): void {}
