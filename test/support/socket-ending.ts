import { setImmediate as nextTurn } from "node:timers/promises";
import type { Socket } from "node:net";
import { withDeadline } from "./deadline.ts";

/** How the incoming half of a socket's life ended, seen from its own side. */
export interface SocketEnding {
  /** `end`: a FIN arrived after all bytes. `error`: the connection failed. `close`: this side closed it itself. */
  readonly how: "end" | "error" | "close";
  /** The system's code of an error, such as ECONNRESET. */
  readonly code: string | undefined;
  readonly receivedBytes: number;
}

/** The parts of Node's socket that no public interface reaches. */
interface SocketInternals {
  readonly _handle: { readStart(): number } | null;
  readonly _readableState: { autoDestroy: boolean };
}

/**
 * Reads the socket until its incoming half ends, at most `timeoutMs` (default 20 s), and tells how. The outgoing half is
 * left alone; once both halves have ended the socket is destroyed. A caller that wants to hold the socket back pauses it
 * and calls this later.
 *
 * On Node 20 (libuv 1.46) a reset that is pending behind unread data arrives as a clean end, and only the next read from
 * the system returns ECONNRESET. So an 'end' counts only after such a read, which after a true end returns another end
 * that the socket ignores. The socket must not destroy itself in between, as it would when its outgoing half has ended.
 */
export async function socketEnding(socket: Socket, timeoutMs = 20_000): Promise<SocketEnding> {
  const internals = socket as unknown as SocketInternals;
  internals._readableState.autoDestroy = false;
  const settled = new Promise<Pick<SocketEnding, "how" | "code">>((resolve) => {
    const fail = (error: NodeJS.ErrnoException): void => resolve({ how: "error", code: error.code });
    if (socket.errored !== null) fail(socket.errored);
    else if (socket.destroyed) resolve({ how: "close", code: undefined });
    socket.once("error", fail);
    socket.once("close", () => resolve({ how: "close", code: undefined }));
    socket.once("end", () => {
      internals._handle?.readStart();
      // Where this side closed it meanwhile, nobody will know.
      void twoTurns().then(() => resolve({ how: socket.destroyed ? "close" : "end", code: undefined }));
    });
  });
  socket.resume();
  const ending = await withDeadline(settled, { what: "the end of the connection", timeoutMs });
  if (socket.writableFinished) socket.destroy();
  return { ...ending, receivedBytes: socket.bytesRead };
}

/** Two turns of the event loop hold one poll of every socket for certain. */
async function twoTurns(): Promise<void> {
  await nextTurn();
  await nextTurn();
}
