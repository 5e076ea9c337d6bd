import type { Socket } from "node:net";

/**
 * Resets a connection. In the turn in which the FIN of a socket is on its way to the kernel that is refused (libuv: EINVAL):
 * Node would report an error, never close the socket, and the peer would see an end. The reset follows the FIN then.
 */
export function resetSocket(socket: Socket): void {
  const isEnding = socket.writableEnded && !socket.writableFinished && socket.writableLength === 0;
  if (isEnding) setImmediate(() => socket.resetAndDestroy());
  else socket.resetAndDestroy();
}
