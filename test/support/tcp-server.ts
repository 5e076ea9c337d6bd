import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";

export interface TcpServer {
  readonly port: number;
  /** Connections accepted so far, whether they still live or not. */
  readonly acceptedConnections: number;
  /** Sockets that live now, in the order of their arrival. */
  readonly sockets: ReadonlySet<Socket>;
  /** Stops listening and destroys what is open. */
  close(): Promise<void>;
}

/**
 * A server on a free loopback port whose behaviour is `onConnection`. Its sockets are half-open capable and have an
 * 'error' listener, so that a handler only listens to what its test is about.
 */
export async function startTcpServer(onConnection: (socket: Socket) => void): Promise<TcpServer> {
  const sockets = new Set<Socket>();
  let acceptedConnections = 0;
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    acceptedConnections++;
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.once("close", () => sockets.delete(socket));
    onConnection(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    port,
    get acceptedConnections() {
      return acceptedConnections;
    },
    sockets,
    async close() {
      const closed = once(server, "close");
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}
