/**
 * Reads the first bytes of a connection until something is known of them, and leaves the socket as if it had not been read:
 * paused, with everything that does not belong to what was known still in front of it, an end of the peer's direction
 * included. Only the end of a connection that has brought no byte is read already; `onConfirmedEnd` knows of it.
 */
import type { Socket } from "node:net";
import { readInSmallPieces, stopReading } from "@sallyport/tunnel";

export interface PeekOptions<T> {
  /** Gets all bytes that came so far. `length` of them are taken away; undefined: more are needed. */
  readonly parse: (bytes: Buffer) => { readonly value: T; readonly length: number } | undefined;
  /** `parse` needs no more than this. */
  readonly maxBytes: number;
  readonly timeoutMs: number;
  /** Once, never before `peek` has returned; not after `cancel`. */
  readonly onDone: (result: PeekResult<T>) => void;
}

export type PeekResult<T> =
  | { readonly type: "known"; readonly value: T }
  /** Nothing more comes, and `parse` wanted more of these bytes. */
  | { readonly type: "ended"; readonly bytes: number }
  | { readonly type: "timeout"; readonly bytes: number }
  /** The peer is gone; `value`: just after something was known. */
  | { readonly type: "closed"; readonly bytes: number; readonly value?: T };

/** What no public interface tells: that the peer's direction has ended, while its end has not been read. */
interface SocketInternals {
  readonly _readableState: { readonly ended: boolean };
}

/** The socket is paused and has an 'error' listener. Returns what ends it without a result. */
export function peek<T>(socket: Socket, options: PeekOptions<T>): { readonly cancel: () => void } {
  let bytes: Buffer = Buffer.alloc(0);
  let isOver = false;

  const stop = (): boolean => {
    if (isOver) return false;
    isOver = true;
    clearTimeout(timer);
    socket.removeListener("readable", onReadable);
    return true;
  };
  const finish = (result: PeekResult<T>, taken = 0): void => {
    if (!stop()) return;
    if (bytes.length > taken && !socket.destroyed) socket.unshift(bytes.subarray(taken));
    stopReading(socket);
    // The stream notes a turn later that nobody waits for 'readable' any more, and would flow by itself after that.
    process.nextTick(() => {
      socket.removeListener("close", onClose);
      socket.pause();
      if (isCancelled) return;
      if (!socket.destroyed) return options.onDone(result);
      const value = result.type === "known" ? { value: result.value } : {};
      options.onDone({ type: "closed", bytes: bytes.length, ...value });
    });
  };
  const onReadable = (): void => {
    const available = socket.readableLength;
    // Exactly what is there: a read for more would make the stream emit 'end', behind which nothing can be put back.
    const chunk = available === 0 ? null : (socket.read(available) as Buffer | null);
    if (chunk !== null) {
      bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
      const parsed = options.parse(bytes);
      if (parsed !== undefined) return finish({ type: "known", value: parsed.value }, parsed.length);
      if (bytes.length > options.maxBytes) throw new Error("a parser waits beyond its own bound");
    }
    const { ended } = (socket as unknown as SocketInternals)._readableState;
    if (ended) finish({ type: "ended", bytes: bytes.length });
  };
  const onClose = (): void => finish({ type: "closed", bytes: bytes.length });
  let isCancelled = false;
  const timer = setTimeout(() => finish({ type: "timeout", bytes: bytes.length }), options.timeoutMs);

  if (socket.destroyed) {
    onClose();
  } else {
    readInSmallPieces(socket);
    socket.on("readable", onReadable);
    socket.once("close", onClose);
    // One that was looked at before was told to stop while its stream waits for bytes: it does not start again by itself.
    socket.read(0);
  }
  return {
    cancel: () => {
      isCancelled = true;
      stop();
      socket.removeListener("close", onClose);
    },
  };
}
