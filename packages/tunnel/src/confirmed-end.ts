/**
 * The end of a socket's incoming half, told from a reset that looks like one.
 *
 * On Node 20 (libuv 1.46; fixed in the libuv of Node 24) a reset that is pending behind unread data is reported as a
 * clean end: after a short read libuv takes the hang-up for an end of file and leaves ECONNRESET with the kernel. Reading
 * once more fetches it. After a true end that read returns another end, which the socket ignores.
 */
import type { Socket } from "node:net";
import { leaveHandle } from "./socket-reading.ts";

/** The parts of Node's socket that no public interface reaches. */
interface SocketInternals {
  readonly _handle: { readStart(): number } | null;
  readonly _readableState: { autoDestroy: boolean };
}

/**
 * Calls `listener` once, when the peer has ended its direction for certain. When it was a reset the socket emits 'error'
 * and 'close' instead. Must be called before the last byte of the socket is read; an end without bytes may have been.
 */
export function onConfirmedEnd(socket: Socket, listener: () => void): void {
  const internals = socket as unknown as SocketInternals;
  // A socket whose outgoing half has ended already would destroy itself at 'end', before the kernel could be asked.
  internals._readableState.autoDestroy = false;
  const onEnd = () => {
    // The socket may be paused now: its end can have waited behind the bytes at which it was.
    leaveHandle(socket);
    internals._handle?.readStart();
    // Two turns of the event loop hold one poll of the socket for certain.
    setImmediate(() =>
      setImmediate(() => {
        if (socket.destroyed) return;
        internals._readableState.autoDestroy = true;
        listener();
        if (socket.writableFinished) socket.destroy();
      }),
    );
  };
  if (socket.readableEnded) onEnd();
  else socket.once("end", onEnd);
}
