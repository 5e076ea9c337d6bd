/**
 * One link of a session: which streams have something to send on it, and whether its peer still lives.
 *
 * Scheduling is deficit round robin with a quantum of one frame; a frame takes all that a stream has up to the quantum, and
 * where the end of a write cuts it short the stream goes on with what is left. A stream that had nothing to send and now has something (a keystroke, a request) is
 * fresh and served before those that never stop. After that turn it stands behind them like any other, even when it
 * has nothing more to send, and can be fresh again only when its turn among them has come (as the "new flows" of
 * FQ-CoDel, RFC 8290 §4.2): bulk streams cannot delay it and it cannot starve them.
 */
import { LinkPace } from "./link-pace.ts";
import type { SharedPath } from "./shared-path.ts";
import { Queue } from "./queue.ts";
import { TurnList } from "./turn-list.ts";

/**
 * A PING behind so many bytes measures how they are read. A peer that paces its link sends one behind 32 KiB at the least, as
 * it counts them, with what its transport adds to each message.
 */
const MEASURED_BYTES = 16_384;

export class LinkState {
  readonly id: number;
  /** Its place among the links of the session, the lowest that was free; for metrics, whose labels have to be few. */
  readonly index: number;
  lastReceivedAt: number;
  nextPingAt: number;
  /** Smoothed round trip in milliseconds (RFC 6298 §2: 7/8 old, 1/8 new); undefined before the first PONG. */
  roundTripMs: number | undefined;
  /** How much may be under way, and the PINGs that measure it. */
  readonly pace: LinkPace;
  /** The first PING goes out at once: nothing is paced before the round trip is known. */
  owesPing = true;
  /** What had been received when the last PING came. */
  #receivedBeforePing = 0;
  /** The token of the last PING that is not answered yet; an older one needs no answer any more. */
  owesPong: number | undefined;
  /**
   * Frames that go first and belong to no stream with state: GO_AWAY, CLOSED, the RESET of a refused OPEN. Bounded by
   * the session: a peer that asks for more of them than it reads breaks the protocol.
   */
  readonly urgent = new Queue<Uint8Array>();
  /** Streams with control frames. */
  readonly control = new TurnList();
  /** Streams that had nothing to send until now. */
  readonly fresh = new TurnList();
  /** Streams that take turns; one that has nothing to send leaves when its turn comes. */
  readonly bulk = new TurnList();
  /** Streams that this link carries; the measure of load when a stream chooses its link. */
  streams = 0;

  constructor(options: { id: number; index: number; now: number; heartbeatIntervalMs: number; path: SharedPath }) {
    this.pace = new LinkPace(options.path);
    this.id = options.id;
    this.index = options.index;
    this.lastReceivedAt = options.now;
    this.nextPingAt = options.now + options.heartbeatIntervalMs;
  }

  /** A PONG came; false when it was not asked for. */
  ponged(token: number, now: number): boolean {
    const sampleMs = this.pace.ponged(token, now);
    if (sampleMs === undefined) return false;
    this.roundTripMs = this.roundTripMs === undefined ? sampleMs : this.roundTripMs * 0.875 + sampleMs * 0.125;
    return true;
  }

  /** A PING came that is to be answered; whether enough came before it since the last to be measured by it. */
  pinged(token: number): boolean {
    this.owesPong = token;
    const bytes = this.pace.receivedBytes - this.#receivedBeforePing;
    this.#receivedBeforePing = this.pace.receivedBytes;
    return bytes >= MEASURED_BYTES;
  }

  get hasFrames(): boolean {
    return (
      this.owesPing ||
      this.owesPong !== undefined ||
      this.urgent.length > 0 ||
      !this.control.empty ||
      !this.fresh.empty ||
      !this.bulk.empty
    );
  }
}
