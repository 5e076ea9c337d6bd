import type { Socket } from "node:net";
import { resetSocket } from "./reset-socket.ts";

/**
 * Closes the socket of a connection that has timed out. The kernel may still hold much of what a slow receiver is to get:
 * where that is complete, FIN included, it goes on delivering, and a reset would throw it away. Where the socket's
 * direction is not complete it is reset, so that what came short never looks whole.
 */
export function abandon(socket: Socket): void {
  if (socket.writableFinished) socket.destroy();
  else resetSocket(socket);
}
