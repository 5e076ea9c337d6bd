/**
 * One direction of a stream as its receiver sees it: puts frames in order, drops what came twice and accounts for
 * credit. Credit is absolute (as QUIC's MAX_STREAM_DATA, RFC 9000 §4.1) and grows when bytes are consumed, never when
 * they arrive.
 *
 * On one link frames arrive in order. Frames that overtake others (a stream that moves between two live links, or uses
 * several) are copied and held, within the window and within `MAX_GAPS`.
 */
import { CloseCode, ProtocolError } from "./codes.ts";

/**
 * The most gaps that may wait to be filled. A sender that uses several links leaves one for each of them, and one that
 * continues a stream elsewhere few more; the bound is for one that leaves a gap at every other byte.
 */
const MAX_GAPS = 1_024;

/** Held pieces that follow each other are joined up to so many bytes: those that come one by one do not cost an object each. */
const COLLECTED_BYTES = 1_024;
/** Where pieces are joined there is room for so many bytes at first, and for twice as many whenever it is full. */
const MIN_COLLECTED_BYTES = 32;

/**
 * The most bytes whose consumption goes untold while more arrive. A sender keeps what is not acknowledged and may have
 * less room for that than the window is wide; what is less is told after a while (`Session`).
 */
const MAX_UNTOLD_BYTES = 65_536;

interface Segment {
  readonly offset: number;
  /** Filled up to `length`. */
  bytes: Uint8Array;
  length: number;
}

/** The sender used more credit than it had; the stream is reset with `flowControl`. */
export class CreditExceeded extends ProtocolError {
  constructor() {
    super("more bytes than credit", CloseCode.budget);
    this.name = "CreditExceeded";
  }
}

export class ReceiveBuffer {
  #received = 0;
  #consumed = 0;
  #limit: number;
  #announcedConsumed = 0;
  #window: number;
  #finalOffset: number | undefined;
  /**
   * Limits that were told after the first, ascending, and that no DATA has reached. Any two that have one between them are
   * at least a quarter of a window or 64 KiB apart, so there are few hundred at the most.
   */
  #told: number[] = [];
  /** The last of them at which DATA ended; -1: none. */
  #reachedLimit = -1;
  #ranOut = false;
  /** Pieces beyond `#received`, in order, without overlap with each other. */
  readonly #segments: Segment[] = [];
  #segmentBytes = 0;
  /** Gaps before held pieces. */
  #gaps = 0;

  /**
   * @param limit credit that the sender has before the first CREDIT, in bytes
   * @param window bytes that may be on their way or unconsumed at once from then on
   */
  constructor(limit: number, window: number) {
    this.#limit = limit;
    this.#window = window;
  }

  /** All bytes below have arrived. */
  get received(): number {
    return this.#received;
  }

  /** All bytes below have left the process. */
  get consumed(): number {
    return this.#consumed;
  }

  /** Bytes below may be sent; what was last announced. */
  get limit(): number {
    return this.#limit;
  }

  get finalOffset(): number | undefined {
    return this.#finalOffset;
  }

  /** The END stands and every byte before it has arrived. */
  get complete(): boolean {
    return this.#finalOffset === this.#received;
  }

  /** Bytes that the sender may make this end hold: what has arrived and is not consumed, and what may still come. */
  get promised(): number {
    return (this.#finalOffset ?? this.#limit) - this.#consumed;
  }

  /** Bytes that were consumed and that the sender still keeps, because it was not told. */
  get untold(): number {
    return this.#consumed - this.#announcedConsumed;
  }

  /** Bytes held or delivered that are not consumed yet. */
  get unconsumed(): number {
    return this.#received - this.#consumed + this.#segmentBytes;
  }

  /**
   * Takes bytes at `offset` and returns those that are new and without a gap before them, as a view of `bytes`. Held
   * pieces that follow are then taken with `takeHeld`.
   *
   * @throws CreditExceeded beyond the limit; ProtocolError beyond the final offset
   */
  receive(offset: number, bytes: Uint8Array): Uint8Array | undefined {
    const end = offset + bytes.length;
    if (end > this.#limit) throw new CreditExceeded();
    if (this.#finalOffset !== undefined && end > this.#finalOffset) throw new ProtocolError("data behind the end");
    if (end <= this.#received) return undefined;
    if (end >= (this.#told[0] ?? Number.POSITIVE_INFINITY)) this.#reach(end);
    if (offset > this.#received) {
      this.#hold(offset, bytes);
      return undefined;
    }
    const fresh = offset === this.#received ? bytes : bytes.subarray(this.#received - offset);
    this.#received = end;
    return fresh;
  }

  /**
   * Whether, since this was asked last, everything had been consumed while the sender had no credit for more: DATA ended
   * where a limit was told, and nothing behind it came meanwhile. Limits that were told before are not asked about again.
   */
  takeRanOut(): boolean {
    if (!this.#ranOut) return false;
    this.#ranOut = false;
    this.#reachedLimit = -1;
    this.#told = [];
    return true;
  }

  /** The next held piece that has no gap before it any more. */
  takeHeld(): Uint8Array | undefined {
    for (;;) {
      const first = this.#segments[0];
      if (first === undefined || first.offset > this.#received) return undefined;
      this.#segments.shift();
      this.#segmentBytes -= first.length;
      const end = endOf(first);
      if (this.#segments[0]?.offset !== end) this.#gaps -= 1;
      if (end <= this.#received) continue;
      const fresh = first.bytes.subarray(this.#received - first.offset, first.length);
      this.#received = end;
      return fresh;
    }
  }

  /** Takes the END. @throws ProtocolError when it contradicts what arrived before */
  end(offset: number): void {
    const last = this.#segments.at(-1);
    const highest = last === undefined ? this.#received : endOf(last);
    if (offset < highest || (this.#finalOffset !== undefined && this.#finalOffset !== offset)) {
      throw new ProtocolError("final offset contradicts what was sent");
    }
    if (offset > this.#limit) throw new CreditExceeded();
    this.#finalOffset = offset;
  }

  /** The destination has taken `count` of the bytes that were handed over. */
  consume(count: number): void {
    if (count < 0 || this.#consumed + count > this.#received) throw new RangeError("consumed more than was delivered");
    this.#consumed += count;
    if (this.#consumed === this.#reachedLimit && this.#received === this.#reachedLimit) this.#ranOut = true;
  }

  /** Changes how much may be outstanding; takes effect with the next credit. Credit once given is never taken back. */
  setWindow(window: number): void {
    this.#window = window;
  }

  get window(): number {
    return this.#window;
  }

  /** Whether a CREDIT is worth a frame: a quarter of the window, or 64 KiB, was consumed since the last one. */
  get creditDue(): boolean {
    if (this.complete) return false;
    const due = this.#dueBytes;
    return this.#consumed + this.#window - this.#limit >= due || this.#consumed - this.#announcedConsumed >= due;
  }

  get #dueBytes(): number {
    return Math.min(this.#window / 4, MAX_UNTOLD_BYTES);
  }

  /** Moves the limit as far as the window allows; what it returns is sent to the peer. */
  announce(): { consumed: number; limit: number } {
    this.#announcedConsumed = this.#consumed;
    return { consumed: this.#consumed, limit: this.announceLimit() };
  }

  /** The same for a frame that says nothing of what was consumed. */
  announceLimit(): number {
    const limit = this.#consumed + this.#window;
    if (limit > this.#limit) {
      this.#limit = limit;
      // Of those that are close to each other the last counts, or a trickle would leave thousands.
      const near = this.#told.at(-2);
      if (near !== undefined && limit - near < this.#dueBytes) this.#told.pop();
      this.#told.push(limit);
    }
    return this.#limit;
  }

  /** Drops the held pieces, for a stream that was reset. */
  clear(): void {
    this.#segments.length = 0;
    this.#segmentBytes = 0;
  }

  /** DATA reaches limits that were told. Where it ends at one, the sender had no credit for more. */
  #reach(end: number): void {
    let passed = 0;
    while ((this.#told[passed] ?? Number.POSITIVE_INFINITY) <= end) passed += 1;
    if (this.#told[passed - 1] === end) this.#reachedLimit = end;
    this.#told.splice(0, passed);
  }

  #hold(offset: number, bytes: Uint8Array): void {
    let at = this.#segments.length;
    while (at > 0 && (this.#segments[at - 1]?.offset ?? 0) > offset) at -= 1;
    const before = this.#segments[at - 1];
    let start = before === undefined ? offset : Math.max(offset, endOf(before));
    const end = offset + bytes.length;
    // Where the new piece reaches over held ones, only its own parts between them are kept.
    while (start < end) {
      const next = this.#segments[at];
      const stop = next === undefined ? end : Math.min(end, next.offset);
      if (stop > start && this.#insert(at, start, bytes.subarray(start - offset, stop - offset))) at += 1;
      if (next === undefined) break;
      start = Math.max(start, endOf(next));
      at += 1;
    }
  }

  /** Holds bytes that overlap with nothing, before the piece at index `at`. False: the piece before took them. */
  #insert(at: number, offset: number, bytes: Uint8Array): boolean {
    const before = this.#segments[at - 1];
    const end = offset + bytes.length;
    const follows = before !== undefined && endOf(before) === offset;
    const closes = this.#segments[at]?.offset === end;
    const gaps = this.#gaps + 1 - (follows ? 1 : 0) - (closes ? 1 : 0);
    // Pieces of a run that come back to front cannot be joined; an honest sender has few of those.
    const maxSegments = MAX_GAPS + this.#segmentBytes / COLLECTED_BYTES;
    if (gaps > MAX_GAPS || this.#segments.length >= maxSegments) throw new CreditExceeded();
    this.#gaps = gaps;
    this.#segmentBytes += bytes.length;
    if (follows && before.length + bytes.length <= COLLECTED_BYTES) {
      const needed = before.length + bytes.length;
      if (before.bytes.length < needed) {
        const room = Math.max(MIN_COLLECTED_BYTES, needed, 2 * before.bytes.length);
        before.bytes = copied(before.bytes, Math.min(room, COLLECTED_BYTES));
      }
      before.bytes.set(bytes, before.length);
      before.length += bytes.length;
      return false;
    }
    // A copy of its own: a view would keep the whole message alive, and is valid for this call only.
    const copy = copied(bytes, bytes.length);
    this.#segments.splice(at, 0, { offset, bytes: copy, length: bytes.length });
    return true;
  }
}

function copied(bytes: Uint8Array, length: number): Uint8Array {
  const copy = new Uint8Array(length);
  copy.set(bytes);
  return copy;
}

function endOf({ offset, length }: Segment): number {
  return offset + length;
}
