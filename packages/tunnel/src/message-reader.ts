/**
 * Finds the messages of the protocol in the byte stream of a WebSocket (RFC 6455 §5.2). Every message of ours is one
 * unfragmented binary frame of at most `MAX_FRAME_BYTES`; those are taken out where they stand, without a copy where a frame
 * lies whole in what was read, which is the rule since frames end where TLS records do.
 *
 * It knows no more than that. At anything else (a control frame, a fragment, a length or a mask that is not allowed) it
 * stops, and what follows is for a complete implementation to judge: see `Link`.
 */
import { MAX_FRAME_BYTES } from "@sallyport/protocol";

const FIN_BINARY = 0x82;
const MASKED = 0x80;
const LENGTH_16 = 126;
/** 2 bytes, 2 of length, 4 of mask. */
const MAX_HEADER_BYTES = 8;

export class MessageReader {
  readonly #masked: boolean;
  readonly #maxPieces: number;
  readonly #onMessage: (message: Uint8Array) => void;
  /** A frame of which a part has arrived; made when it is needed for the first time. */
  #partial: Uint8Array | undefined;
  #partialBytes = 0;
  #pieces = 0;
  /** What has begun is no frame of ours. */
  #foreign = false;
  #stopped = false;

  /**
   * `masked`: whether the peer masks its frames, as it must towards a server. `maxPieces`: the most reads in which one frame
   * may come. `onMessage` hears of each message; its bytes are valid until it returns, and it may call `stop`.
   */
  constructor(options: { masked: boolean; maxPieces: number; onMessage: (message: Uint8Array) => void }) {
    this.#masked = options.masked;
    this.#maxPieces = options.maxPieces;
    this.#onMessage = options.onMessage;
  }

  /** Delivers no message any more: all that was read and is not delivered yet is for another. */
  stop(): void {
    this.#stopped = true;
  }

  /**
   * Delivers the messages in `bytes`. Returns what another has to judge, beginning at the start of a frame: a copy, or a
   * view of `bytes`; undefined when there is nothing.
   */
  read(bytes: Uint8Array): Uint8Array | undefined {
    if (this.#stopped) return this.#giveUp(bytes);
    let at = 0;
    if (this.#partialBytes > 0) {
      this.#pieces += 1;
      at = this.#complete(bytes);
      if (this.#foreign) return this.#giveUp(bytes.subarray(at));
      if (this.#partialBytes > 0) return undefined;
    }
    while (at < bytes.length) {
      if (this.#stopped) return bytes.subarray(at);
      const length = this.#frameLength(bytes, at, bytes.length - at);
      if (length === "foreign") return bytes.subarray(at);
      if (length === undefined || at + length > bytes.length) {
        this.#keep(bytes.subarray(at));
        this.#pieces = 1;
        return undefined;
      }
      this.#deliver(bytes, at, length);
      at += length;
    }
    return undefined;
  }

  /** Fills the frame that has begun and delivers it when it is whole; returns how much of `bytes` it has taken. */
  #complete(bytes: Uint8Array): number {
    let taken = 0;
    for (;;) {
      const partial = this.#partial;
      const length = partial === undefined ? "foreign" : this.#frameLength(partial, 0, this.#partialBytes);
      if (partial === undefined || length === "foreign" || this.#pieces > this.#maxPieces) {
        this.#foreign = true;
        return taken;
      }
      if (length === this.#partialBytes) {
        this.#partialBytes = 0;
        this.#deliver(partial, 0, length);
        return taken;
      }
      // Byte by byte until the length is known, so that nothing of the next frame is taken.
      const count = Math.min(length === undefined ? 1 : length - this.#partialBytes, bytes.length - taken);
      if (count === 0) return taken;
      this.#keep(bytes.subarray(taken, taken + count));
      taken += count;
    }
  }

  /** The frame that has begun, and what comes behind it, are for another. */
  #giveUp(rest: Uint8Array): Uint8Array {
    const all = new Uint8Array(this.#partialBytes + rest.length);
    all.set(this.#partial?.subarray(0, this.#partialBytes) ?? rest.subarray(0, 0));
    all.set(rest, this.#partialBytes);
    this.#partialBytes = 0;
    this.#foreign = false;
    return all;
  }

  #keep(bytes: Uint8Array): void {
    this.#partial ??= new Uint8Array(MAX_HEADER_BYTES + MAX_FRAME_BYTES);
    this.#partial.set(bytes, this.#partialBytes);
    this.#partialBytes += bytes.length;
  }

  /** Bytes of the frame at `at`, of which `available` are there: undefined while its header is not complete. */
  #frameLength(bytes: Uint8Array, at: number, available: number): number | "foreign" | undefined {
    if (bytes[at] !== FIN_BINARY) return "foreign";
    if (available < 2) return undefined;
    const second = bytes[at + 1] ?? 0;
    if ((second & MASKED) !== (this.#masked ? MASKED : 0)) return "foreign";
    const header = this.#masked ? 6 : 2;
    const short = second & ~MASKED;
    if (short < LENGTH_16) return header + short;
    if (short > LENGTH_16) return "foreign";
    if (available < 4) return undefined;
    const length = ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0);
    return length > MAX_FRAME_BYTES ? "foreign" : header + 2 + length;
  }

  #deliver(bytes: Uint8Array, at: number, length: number): void {
    const short = (bytes[at + 1] ?? 0) & ~MASKED;
    let payload = at + (short === LENGTH_16 ? 4 : 2);
    if (this.#masked) {
      unmask(bytes, payload, at + length);
      payload += 4;
    }
    this.#onMessage(bytes.subarray(payload, at + length));
  }
}

/** The key stands at `from`, what it masks behind it (RFC 6455 §5.3). A key of zeros, which ours is, changes nothing. */
function unmask(bytes: Uint8Array, from: number, end: number): void {
  const [a = 0, b = 0, c = 0, d = 0] = bytes.subarray(from, from + 4);
  if ((a | b | c | d) === 0) return;
  const key = [a, b, c, d];
  for (let at = from + 4; at < end; at += 1) bytes[at] = (bytes[at] ?? 0) ^ (key[(at - from) & 3] ?? 0);
}
