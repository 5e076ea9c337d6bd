/**
 * Reads sockets without a buffer of its own for every read: all sockets of the process share one, since Node hands a read
 * over before it begins the next. What a reader keeps it copies.
 *
 * Node offers this for sockets that it dials (the `onread` option of `net.connect`) and not for those that a server
 * accepts or that TLS wraps. The option only sets three properties of the socket and tells its handle; the same is done
 * here to sockets that exist. Where a future Node keeps them elsewhere, sockets are read in the ordinary way.
 */
import { Socket } from "node:net";
import { LARGE_CHUNK_BYTES } from "@sallyport/protocol";

interface Internals {
  _handle: { useUserBuffer?: (buffer: Uint8Array) => void; reading?: boolean; readStop?: () => number } | null;
  [key: symbol]: unknown;
}

interface OnReadKeys {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generator: symbol;
}

/** Every read of every socket of this process lands here; valid until the reader returns. */
const shared = Buffer.allocUnsafeSlow(LARGE_CHUNK_BYTES);

const keys = findKeys();

/** Whether sockets are read into the shared buffer; otherwise each read has a buffer of its own. */
export const readsShared = keys !== undefined;

/**
 * Calls `onBytes` with everything that is read from now on, in order. The bytes are valid until it returns. The socket is
 * paused, resumed and ended as ever; what it has buffered already comes first.
 */
export function readSocket(socket: Socket, onBytes: (bytes: Buffer) => void): void {
  // What was buffered or given back (`unshift`) comes this way in any case.
  socket.on("data", onBytes);
  const internals = socket as unknown as Internals;
  const { _handle: handle } = internals;
  if (keys === undefined || typeof handle?.useUserBuffer !== "function") return;
  internals[keys.buffer] = shared;
  internals[keys.generator] = null;
  internals[keys.callback] = (count: number, buffer: Buffer) => {
    onBytes(buffer.subarray(0, count));
    return true;
  };
  handle.useUserBuffer(shared);
  // A socket that is paused in the ordinary way reads on until its buffer is full; now nothing would hold what it reads.
  if (socket.isPaused() && handle.reading === true) {
    handle.reading = false;
    handle.readStop?.();
  }
}

/** The properties that the `onread` option of this Node sets; undefined when they are not those that are known. */
function findKeys(): OnReadKeys | undefined {
  const buffer = Buffer.alloc(1);
  const callback = () => true;
  const probe = new Socket({ onread: { buffer, callback } } as ConstructorParameters<typeof Socket>[0]);
  const internals = probe as unknown as Internals;
  const found = (name: string) => Object.getOwnPropertySymbols(probe).find((key) => key.description === name);
  const [bufferKey, callbackKey, generatorKey] = [found("kBuffer"), found("kBufferCb"), found("kBufferGen")];
  probe.destroy();
  if (bufferKey === undefined || callbackKey === undefined || generatorKey === undefined) return undefined;
  const isKnown =
    internals[bufferKey] === buffer && internals[callbackKey] === callback && internals[generatorKey] === null;
  return isKnown ? { buffer: bufferKey, callback: callbackKey, generator: generatorKey } : undefined;
}
