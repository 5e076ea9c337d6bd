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
import type { Open } from "./messages.ts";
import type { ReceiveBuffer } from "./receive-buffer.ts";
import { SendBuffer } from "./send-buffer.ts";

export type StreamPhase = "opening" | "open" | "resetting";

export class Stream {
  readonly id: number;
  /** Kept until the peer accepts, because OPEN is repeated when the link that carried it dies. */
  openMessage: Open | undefined;
  phase: StreamPhase = "opening";
  /** The link that carries this stream; undefined while the session has none. */
  link: LinkState | undefined;

  readonly send = new SendBuffer();
  /** Next offset to put into a DATA frame; goes back when the stream is resumed. */
  cursor = 0;
  /** Highest offset ever put into a DATA frame; the difference to `cursor` is what is sent again. */
  highestSent = 0;
  /** The peer's absolute credit. */
  sendLimit: number;
  /** The application has ended its direction: END follows the last byte. */
  ending = false;
  endSent = false;
  /** The peer has carried the END out. */
  endAcknowledged = false;
  /** `write` said that there is no room; `writable` is owed to the application. */
  blocked = false;

  readonly receive: ReceiveBuffer;
  /** The `end` event was handed to the application. */
  endDelivered = false;
  /** The application has carried the peer's END out. */
  endConsumed = false;
  endConsumedAnnounced = false;

  owesOpen = false;
  owesAccept = false;
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

  /** In the list of streams with control frames to send, and in one of the lists with data, of `link`. */
  inControlQueue = false;
  inDataQueue = false;

  constructor(options: { id: number; sendLimit: number; receive: ReceiveBuffer; open?: Open }) {
    this.id = options.id;
    this.openMessage = options.open;
    this.sendLimit = options.sendLimit;
    this.receive = options.receive;
  }

  /** DATA or END can go out now. */
  get sendable(): boolean {
    if (this.phase === "resetting" || this.awaitingResume || this.owesOpen) return false;
    return this.dataSendable > 0 || (this.ending && !this.endSent && this.cursor === this.send.queued);
  }

  /** Bytes that may go out now. */
  get dataSendable(): number {
    return Math.min(this.send.queued, this.sendLimit) - this.cursor;
  }

  /** Whether the application may write: less is held than the peer has given credit for. */
  get writable(): boolean {
    return !this.ending && this.phase !== "resetting" && this.send.queued < this.sendLimit;
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

  /** Both directions are through and the peer knows: nothing of this stream is needed any more. */
  get finished(): boolean {
    return this.endAcknowledged && this.endConsumed && this.endConsumedAnnounced && this.phase === "open";
  }

  /** Bytes that this stream keeps in memory at this end. */
  get heldBytes(): number {
    return this.send.size + this.receive.unconsumed;
  }

  /**
   * The next control frame that is owed, and the debt paid; undefined when there is none. The order matters: OPEN
   * before anything else, RESUME before the credit that refers to it.
   */
  nextControlFrame(): Uint8Array | undefined {
    if (this.owesReset) {
      this.owesReset = false;
      this.owesOpen = false;
      this.owesAccept = false;
      this.owesCredit = false;
      this.owesResume = false;
      this.owesAnswer = undefined;
      return encodeFrame({ type: "reset", stream: this.id, offset: this.highestSent, code: this.resetCode });
    }
    if (this.owesOpen && this.openMessage !== undefined) {
      this.owesOpen = false;
      return encodeFrame({ type: "open", ...this.openMessage });
    }
    if (this.owesAccept) {
      this.owesAccept = false;
      const { limit } = this.receive.announce();
      return encodeFrame({ type: "accept", stream: this.id, address: this.acceptedAddress, limit });
    }
    if (this.owesResume) {
      this.owesResume = false;
      return encodeFrame(this.#resumeFrame(this.epoch, true));
    }
    if (this.owesAnswer !== undefined) {
      const epoch = this.owesAnswer;
      this.owesAnswer = undefined;
      return encodeFrame(this.#resumeFrame(epoch, false));
    }
    if (this.owesCredit) {
      this.owesCredit = false;
      const endConsumed = this.endConsumed;
      if (endConsumed) this.endConsumedAnnounced = true;
      return encodeFrame({ type: "credit", stream: this.id, ...this.receive.announce(), endConsumed });
    }
    return undefined;
  }

  /** Payload of the next DATA frame in `max` bytes of frame payload. */
  nextDataBytes(max: number): number {
    return Math.min(this.dataSendable, max, MAX_DATA_BYTES);
  }

  #resumeFrame(epoch: number, request: boolean): ResumeFrame {
    const { consumed, limit } = this.receive.announce();
    return {
      type: "resume",
      stream: this.id,
      epoch,
      received: this.receive.received,
      consumed,
      limit,
      request,
      endReceived: this.receive.finalOffset !== undefined,
      endConsumed: this.endConsumed,
    };
  }
}
