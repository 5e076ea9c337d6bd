import { startTcpServer } from "./tcp-server.ts";
import type { TcpServer } from "./tcp-server.ts";

/** A target that returns every byte, and its end after the partner's. The caller closes it. */
export function startEchoServer(): Promise<TcpServer> {
  return startTcpServer((socket) => {
    socket.pipe(socket);
  });
}
