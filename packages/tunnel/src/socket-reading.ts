/**
 * Reads sockets without a buffer of its own for every read: all sockets of the process share two, a large and a small one,
 * since Node hands a read over before it begins the next. What a reader keeps it copies.
 *
 * Node offers this for sockets that it dials (the `onread` option of `net.connect`) and not for those that a server
 * accepts or that TLS wraps. The option only sets three properties of the socket and tells its handle; the same is done
 * here to sockets that exist. Where a future Node keeps them elsewhere, sockets are read in the ordinary way.
 */
import { Socket } from "node:net";
import { LARGE_CHUNK_BYTES, MIN_DIRECTION_BYTES } from "@sallyport/protocol";

interface Internals {
  _handle: { useUserBuffer?: (buffer: Uint8Array) => void; reading?: boolean; readStop?: () => number } | null;
  [key: symbol]: unknown;
}

interface OnReadKeys {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generator: symbol;
}

/** Every read of every socket of this process lands in one of these; valid until the reader returns. */
const large = Buffer.allocUnsafeSlow(LARGE_CHUNK_BYTES);
const small = Buffer.allocUnsafeSlow(MIN_DIRECTION_BYTES);

const keys = findKeys();

/** Whether sockets are read into the shared buffer; otherwise each read has a buffer of its own. */
export const readsShared = keys !== undefined;

/** How much a socket may bring at a time, asked after each read. */
export interface ReadSize {
  /** The next read may be of `LARGE_CHUNK_BYTES`, and not of `MIN_DIRECTION_BYTES` at the most. */
  readonly isLarge: boolean;
}

const ALWAYS_LARGE: ReadSize = { isLarge: true };

/**
 * Calls `onBytes` with everything that is read from now on, in order. The bytes are valid until it returns. The socket is
 * paused, resumed and ended as ever; what it has buffered already comes first. With a `size` the first read is small. Of a
 * socket that has ended already nothing is read, and its handle is left alone (`leaveHandle`).
 */
export function readSocket(socket: Socket, onBytes: (bytes: Buffer) => void, size = ALWAYS_LARGE): void {
  // What was buffered or given back (`unshift`) comes this way in any case.
  socket.on("data", onBytes);
  const internals = socket as unknown as Internals;
  const { _handle: handle } = internals;
  if (keys === undefined || typeof handle?.useUserBuffer !== "function" || socket.readableEnded) return;
  const { buffer: bufferKey } = keys;
  const first = size === ALWAYS_LARGE ? large : small;
  // Each of these calls leaves an object with the handle.
  if (internals[bufferKey] !== first) handle.useUserBuffer(first);
  internals[bufferKey] = first;
  internals[keys.generator] =
    size === ALWAYS_LARGE
      ? null
      : () => {
          const next = size.isLarge ? large : small;
          return next === internals[bufferKey] ? undefined : next;
        };
  internals[keys.callback] = (count: number, buffer: Buffer) => {
    const bytes = buffer.subarray(0, count);
    // A stream that is resumed and paused at once may start a read even so; that overtakes nothing of what it holds.
    if (socket.readableLength > 0) return socket.push(Buffer.from(bytes));
    onBytes(bytes);
    return true;
  };
  // A socket that is paused in the ordinary way reads on until its buffer is full; now nothing would hold what it reads.
  if (socket.isPaused()) stopReading(socket);
}

/**
 * Reads a socket that nobody has read yet in the ordinary way of streams, in small pieces: what comes is kept by the socket,
 * until it is taken or `readSocket` is called.
 */
export function readInSmallPieces(socket: Socket): void {
  const internals = socket as unknown as Internals;
  const { _handle: handle } = internals;
  if (keys === undefined || typeof handle?.useUserBuffer !== "function" || socket.readableEnded) return;
  if (internals[keys.buffer] === small) return;
  internals[keys.buffer] = small;
  internals[keys.generator] = null;
  internals[keys.callback] = (count: number, buffer: Buffer) => socket.push(Buffer.from(buffer.subarray(0, count)));
  handle.useUserBuffer(small);
}

/**
 * Reads nothing more of a socket that is paused, until it is resumed; by itself it would read on until its buffer is full. One
 * that is read in the ordinary way does so: nothing would start it again.
 */
export function stopReading(socket: Socket): void {
  const internals = socket as unknown as Internals;
  const { _handle: handle } = internals;
  if (keys === undefined || !internals[keys.buffer] || handle?.reading !== true) return;
  handle.reading = false;
  handle.readStop?.();
}

/**
 * For a socket whose incoming half has ended: to pause, resume or read it does no more to its handle. A read that somebody
 * else has started there goes on, where a second start would be an error that destroys the socket.
 */
export function leaveHandle(socket: Socket): void {
  if (keys !== undefined) (socket as unknown as Internals)[keys.buffer] = null;
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
