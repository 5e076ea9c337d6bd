/**
 * Waits until a partner has sent something, without taking it: the bytes stay in the socket for whoever reads it next.
 * Nothing is opened or dialled for a partner that sends nothing.
 */
import type { Socket } from "node:net";
import { readInSmallPieces, stopReading } from "@sallyport/tunnel";

/** `closed`: the partner went, or ended its direction, without a byte. */
export type FirstByteOutcome = "arrived" | "closed" | "timeout";

/**
 * Calls `onOutcome` once, unless it is cancelled by the function that this returns. The socket is paused and unread, and
 * is left paused; when it was `closed` the caller still has to destroy it.
 */
export function awaitFirstByte(
  socket: Socket,
  options: { readonly timeoutMs: number; readonly onOutcome: (outcome: FirstByteOutcome) => void },
): () => void {
  const settle = (outcome: FirstByteOutcome) => {
    cancel();
    stopReading(socket);
    // A listener for 'readable' is only gone in the next tick: whoever adds one for 'data' must come after that.
    setImmediate(() => {
      socket.pause();
      options.onOutcome(outcome);
    });
  };
  const onReadable = () => settle(socket.readableLength > 0 ? "arrived" : "closed");
  const onClose = () => settle("closed");
  const timer = setTimeout(() => settle("timeout"), options.timeoutMs);
  const cancel = () => {
    clearTimeout(timer);
    socket.off("readable", onReadable);
    socket.off("close", onClose);
  };
  readInSmallPieces(socket);
  socket.on("readable", onReadable);
  socket.on("close", onClose);
  // One of which a header was read was told to stop while its stream waits for bytes: it does not start again by itself.
  socket.read(0);
  return cancel;
}
