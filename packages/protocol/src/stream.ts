/**
 * One stream at one end: two independent directions and what this end still owes the peer.
 *
 * ```
 *            OPEN sent / received                ACCEPT
 *   (none) ─────────────────────► opening ─────────────────► open ──┐ both directions ended and consumed
 *                                    │                        │     ├──────────────────────────────────► (none)
 *                                    └──────── reset() ───────┴─► resetting ──── CLOSED received ──────► (none)
 *                                    └──── RESET received: CLOSED is owed ─────────────────────────────► (none)
 * ```
 *
 * What is owed is kept as flags, not as queued frames: a frame is built when a link has room for it, from the state of
 * that moment, so a stream that moves to another link simply owes it there.
 */
import type { ResetCode } from "./codes.ts";
import { encodeFrame, MAX_DATA_BYTES, type ResumeFrame } from "./frame.ts";
import type { LinkState } from "./link-state.ts";
import type { MemoryBudget } from "./memory-budget.ts";
import type { Open } from "./messages.ts";
import type { ReceiveBuffer } from "./receive-buffer.ts";
import type { ReceiveWindow } from "./receive-window.ts";
import { SendBuffer } from "./send-buffer.ts";
import { Turn } from "./turn-list.ts";

/** What a stream may send in one turn. */
const TURN_BYTES = MAX_DATA_BYTES;

/**
 * How much of what the application wrote waits for its turn on the link, in bytes; a chunk may go beyond it. More would not
 * make the stream faster: what is under way is bounded by credit and by the pace of the link.
 */
const MAX_UNSENT_BYTES = 262_144;

export type StreamPhase = "opening" | "open" | "resetting";

export class Stream {
  readonly id: number;
  /** Edge: the encoded OPEN, kept until the peer accepts, because it is repeated when the link that carried it dies. */
  openFrame: Uint8Array | undefined;
  /** Agent: the OPEN as it came first; a repeated one says the same. */
  readonly openMessage: Open | undefined;
  phase: StreamPhase = "opening";
  /** The link that carries this stream; undefined while the session has none. */
  link: LinkState | undefined;
  /**
   * The link on which our latest RESUME request went out. Requests of both ends may cross on two links and each end then
   * follows the other's, so that the peer speaks on this link and we on another: its loss concerns the stream, too.
   */
  askedOn: LinkState | undefined;

  readonly send = new SendBuffer();
  /** Next offset to put into a DATA frame; goes back when the stream is resumed. */
  cursor = 0;
  /** Highest offset ever put into a DATA frame; the difference to `cursor` is what is sent again. */
  highestSent = 0;
  /** The peer's absolute credit. */
  sendLimit: number;
  /** The application has ended its direction: END follows the last byte. */
  ending = false;
  /** END needs not be sent (again), as far as we know. */
  endSent = false;
  /** END went out at least once: the peer may speak of it. */
  endEverSent = false;
  /** The peer has carried the END out. */
  endAcknowledged = false;
  /** `write` said that there is no room; `writable` is owed to the application. */
  blocked = false;

  readonly receive: ReceiveBuffer;
  /** How far `receive` lets the peer go. */
  readonly window: ReceiveWindow;
  /** The `end` event was handed to the application. */
  endDelivered = false;
  /** The application has carried the peer's END out. */
  endConsumed = false;
  endConsumedAnnounced = false;

  owesOpen = false;
  owesAccept = false;
  /** Agent: the edge repeated its OPEN, so ACCEPT is repeated with the RESUME that follows and says on which link. */
  acceptAsked = false;
  /** Agent: the address that was dialled, for ACCEPT, which may have to be repeated. */
  acceptedAddress = "";
  owesReset = false;
  owesCredit = false;
  /** A RESUME is owed: as a request with an epoch of ours, or as the answer to one of theirs. */
  owesResume = false;
  owesAnswer: number | undefined;
  resetCode: ResetCode = 0;

  /** Our last request's number; the answer must carry it. */
  epoch = 0;
  /** The peer's highest request number; an older one was overtaken and is ignored. */
  peerEpoch = 0;
  /** No DATA until the peer has said from where. */
  awaitingResume = false;

  /**
   * Up to which offset links other than `link` carry DATA of this stream, where it was striped over them. A loss of theirs
   * concerns the stream as long as that is not acknowledged. Bounded by the links of the session.
   */
  readonly stripes = new Map<LinkState, number>();

  /** The places among the streams with control frames, and among those with data, of `link`. */
  readonly controlTurn = new Turn(this);
  readonly dataTurn = new Turn(this);

  /** What is left of its turn among the streams with data, in bytes: the end of a write may cut it short. */
  turnBytes = TURN_BYTES;

  /** What the session has accounted for this stream so far; see `Session`. */
  readonly accounted = { windowBytes: 0, queueBytes: 0, reservedBytes: 0, stalled: false };

  /** Its writes may be of `LARGE_CHUNK_BYTES`: memory for that is reserved. */
  largeWrites = false;

  readonly #memory: MemoryBudget;
  readonly #sendBufferBytes: number;

  constructor(options: {
    id: number;
    sendLimit: number;
    sendBufferBytes: number;
    receive: ReceiveBuffer;
    window: ReceiveWindow;
    memory: MemoryBudget;
    openFrame?: Uint8Array;
    openMessage?: Open;
  }) {
    this.id = options.id;
    this.openFrame = options.openFrame;
    this.openMessage = options.openMessage;
    this.sendLimit = options.sendLimit;
    this.#sendBufferBytes = options.sendBufferBytes;
    this.receive = options.receive;
    this.window = options.window;
    this.#memory = options.memory;
  }

  /** DATA or END can go out now. */
  get sendable(): boolean {
    if (this.phase === "resetting" || this.awaitingResume || this.owesOpen) return false;
    return this.dataSendable > 0 || (this.ending && !this.endSent && this.cursor === this.send.queued);
  }

  /**
   * DATA may go out on other links than its own: there is a whole frame of it, and the peer has shown that it knows the
   * stream, so that nothing arrives before its OPEN or ACCEPT.
   */
  get stripeable(): boolean {
    return (
      this.phase === "open" && !this.awaitingResume && this.send.acknowledged > 0 && this.dataSendable >= MAX_DATA_BYTES
    );
  }

  /** Bytes that may go out now. */
  get dataSendable(): number {
    return Math.min(this.send.queued, this.sendLimit) - this.cursor;
  }

  /** There are bytes, or an application that has some, and the peer gives no credit for them. */
  get stalled(): boolean {
    return this.cursor >= this.sendLimit && (this.send.queued > this.cursor || this.blocked);
  }

  /**
   * Whether the application may write: less is held than the peer has given credit for, and the process has memory. The
   * peer's word alone does not bound what is held, since it may give credit without end and acknowledge nothing.
   */
  get writable(): boolean {
    return (
      !this.ending &&
      this.phase !== "resetting" &&
      this.send.queued < this.sendLimit &&
      this.send.size < this.#sendBufferBytes &&
      this.send.queued - this.cursor < MAX_UNSENT_BYTES &&
      this.#memory.admits(this.send.size)
    );
  }

  /** Whether an application that was told to wait may write again; a little later than it could, to come less often. */
  get unblocked(): boolean {
    return this.blocked && this.send.queued - this.cursor <= MAX_UNSENT_BYTES / 2 && this.writable;
  }

  get owesControl(): boolean {
    return (
      this.owesOpen ||
      this.owesAccept ||
      this.owesReset ||
      this.owesCredit ||
      this.owesResume ||
      this.owesAnswer !== undefined
    );
  }

  /**
   * Both directions are through and the peer knows: nothing of this stream is needed any more. What was announced may
   * have been lost with its link; a peer that asks gets its answer first.
   */
  get finished(): boolean {
    return (
      this.endAcknowledged &&
      this.endConsumed &&
      this.endConsumedAnnounced &&
      this.owesAnswer === undefined &&
      this.phase === "open"
    );
  }

  /** Bytes that this stream keeps in memory at this end. */
  get heldBytes(): number {
    return this.phase === "resetting" ? 0 : this.send.size + this.receive.unconsumed;
  }

  /**
   * The next control frame that is owed, and the debt paid; undefined when there is none. The order matters: OPEN
   * before anything else, RESUME before the credit that refers to it. What it tells of credit is that of `now`.
   */
  nextControlFrame(now: number): Uint8Array | undefined {
    if (this.owesCredit) this.window.adapt(this.receive.consumed, now, this.receive.takeRanOut());
    this.fitWindow();
    if (this.owesReset) {
      this.owesReset = false;
      this.owesOpen = false;
      this.owesAccept = false;
      this.owesCredit = false;
      this.owesResume = false;
      this.owesAnswer = undefined;
      return encodeFrame({ type: "reset", stream: this.id, offset: this.highestSent, code: this.resetCode });
    }
    if (this.owesOpen) {
      this.owesOpen = false;
      if (this.openFrame !== undefined) return this.openFrame;
    }
    if (this.owesAccept) {
      this.owesAccept = false;
      const limit = this.receive.announceLimit();
      return encodeFrame({ type: "accept", stream: this.id, address: this.acceptedAddress, limit });
    }
    if (this.owesResume) {
      this.owesResume = false;
      this.askedOn = this.link;
      return encodeFrame(this.#resumeFrame(0));
    }
    if (this.owesAnswer !== undefined) {
      const answers = this.owesAnswer;
      this.owesAnswer = undefined;
      return encodeFrame(this.#resumeFrame(answers));
    }
    if (this.owesCredit) {
      this.owesCredit = false;
      const endConsumed = this.endConsumed;
      if (endConsumed) this.endConsumedAnnounced = true;
      return encodeFrame({ type: "credit", stream: this.id, ...this.receive.announce(), endConsumed });
    }
    return undefined;
  }

  /** Bounds the credit that is announced next by the memory of this moment. */
  fitWindow(): void {
    this.receive.setWindow(this.window.size(this.#memory, this.receive.consumed));
  }

  /** Payload of the next DATA frame in `max` bytes of frame payload. */
  nextDataBytes(max: number): number {
    return Math.min(this.dataSendable, max, MAX_DATA_BYTES);
  }

  /** A frame of `bytes` went out. Whether the turn goes on, because the frame was cut short and not for want of bytes. */
  continuesTurn(bytes: number): boolean {
    this.turnBytes -= bytes;
    if (this.turnBytes >= TURN_BYTES / 4 && this.dataSendable > 0) return true;
    this.turnBytes = TURN_BYTES;
    return false;
  }

  #resumeFrame(answers: number): ResumeFrame {
    const { consumed, limit } = this.receive.announce();
    return {
      type: "resume",
      stream: this.id,
      epoch: this.epoch,
      answers,
      received: this.receive.received,
      consumed,
      limit,
      endReceived: this.receive.finalOffset !== undefined,
      endConsumed: this.endConsumed,
    };
  }
}
