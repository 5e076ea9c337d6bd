/**
 * Where a session writes its outgoing frames: one buffer that holds several frames, each behind the header that its
 * transport needs, so that a link is written with one call. The buffer belongs to the caller and is reused after the
 * write has finished.
 */
import { MAX_FRAME_BYTES } from "./frame.ts";

/** How a transport delimits a frame of `length` bytes: for WebSocket, its header. */
export interface Framing {
  headerBytes(length: number): number;
  writeHeader(out: Uint8Array, at: number, length: number): void;
}

/**
 * The bytes of the longest frame with its header. A TLS record that holds no more (RFC 8446 §5.1 allows 2^14) brings frames
 * that end on its boundary to the peer's decoder in one piece.
 */
export function recordBytes(framing: Framing): number {
  return MAX_FRAME_BYTES + framing.headerBytes(MAX_FRAME_BYTES);
}

/** A DATA frame shorter than this is not cut just to end on a record boundary. */
const MIN_ALIGNED_BYTES = 1_024;

export class FrameWriter {
  readonly bytes: Uint8Array;
  readonly #framing: Framing;
  readonly #recordBytes: number;
  #used = 0;

  constructor(bytes: Uint8Array, framing: Framing) {
    this.bytes = bytes;
    this.#framing = framing;
    this.#recordBytes = recordBytes(framing);
  }

  /** Bytes written since the last `clear`. */
  get used(): number {
    return this.#used;
  }

  clear(): void {
    this.#used = 0;
  }

  /** Whether a frame of `length` bytes fits behind what is written. */
  fits(length: number): boolean {
    return this.#used + this.#framing.headerBytes(length) + length <= this.bytes.length;
  }

  /**
   * The largest frame that is worth starting here: it ends where a TLS record ends. Where that would leave it tiny it
   * ends in the middle of the next record, so that the frame after it can end on the boundary again. 0 when what is left
   * is not worth a frame.
   */
  room(): number {
    const header = this.#framing.headerBytes(MAX_FRAME_BYTES);
    const record = this.#recordBytes;
    const toBoundary = record - (this.#used % record);
    const target = toBoundary < MIN_ALIGNED_BYTES + header ? toBoundary + Math.floor(record / 2) : toBoundary;
    const length = Math.min(this.bytes.length - this.#used, target) - header;
    if (length < MIN_ALIGNED_BYTES && this.#used > 0) return 0;
    return Math.max(0, Math.min(length, MAX_FRAME_BYTES));
  }

  /** Starts a frame of exactly `length` bytes and returns where they are to be written. */
  begin(length: number): number {
    this.#framing.writeHeader(this.bytes, this.#used, length);
    const at = this.#used + this.#framing.headerBytes(length);
    this.#used = at + length;
    return at;
  }

  /** Writes a whole frame; the caller has asked `fits`. */
  put(frame: Uint8Array): void {
    this.bytes.set(frame, this.begin(frame.length));
  }
}
