/**
 * A session: the streams between one edge process and one agent process, over one or more links. Both ends run this
 * code; they differ in `role` only, and only the edge opens streams.
 *
 * Pure: messages and `now` go in (`receive`, `tick`), frames and events come out (`poll`, `takeEvent`), `nextTimeout`
 * says when to come back. Frames are pulled by a link that has room, never pushed, so what is queued stays here, where
 * it is bounded by credit, and a control frame never waits behind megabytes of data.
 *
 * Streams are not bound to a link for life. When a link is lost, each of its streams takes another one and both ends
 * tell each other how far they got (RESUME); what had not arrived is sent again from the send buffer. Offsets are
 * absolute, so a byte that arrives twice is recognised and a byte that is missing is never skipped.
 */
import { Budget } from "./budget.ts";
import { LARGE_CHUNK_BYTES } from "./chunk-pool.ts";
import { CloseCode, ProtocolError, ResetCode } from "./codes.ts";
import { DATA_HEADER_BYTES, decodeFrame, encodeFrame, type Frame, type ResumeFrame, writeDataHeader } from "./frame.ts";
import type { FrameWriter } from "./frame-writer.ts";
import { LinkState } from "./link-state.ts";
import { MemoryBudget, MIN_DIRECTION_BYTES } from "./memory-budget.ts";
import { checkMessage, type Open } from "./messages.ts";
import { CreditExceeded, ReceiveBuffer } from "./receive-buffer.ts";
import { ReceiveWindow } from "./receive-window.ts";
import { SharedPath } from "./shared-path.ts";
import { Stream } from "./stream.ts";

export type SessionRole = "edge" | "agent";

export interface SessionOptions {
  readonly role: SessionRole;
  /** The most streams at once, as the agent's HELLO says; at least 1. */
  readonly maxStreams: number;
  /** Credit of each stream towards the agent before ACCEPT, in bytes, as the agent's HELLO says. */
  readonly initialCredit: number;
  /**
   * The memory that the streams share with those of all other sessions of the process: both of the following are bounded
   * by it. Default: 256 MiB for this session alone.
   */
  readonly memory?: MemoryBudget;
  /** Window of each stream for what this end receives, in bytes, at its start. Default 256 KiB. */
  readonly windowBytes?: number;
  /** The most that a window grows to, in bytes. Default 16 MiB, or `windowBytes` where that is given. */
  readonly maxWindowBytes?: number;
  /**
   * How much a stream holds for sending, in bytes, however much credit the peer gives; at least 128 KiB. One chunk may
   * go beyond it. Default 16 MiB.
   */
  readonly sendBufferBytes?: number;
  /** A link on which nothing was heard for this long is lost. Default 25,000. */
  readonly heartbeatTimeoutMs?: number;
  /** A PING goes out on each link this often. Default 10,000. */
  readonly heartbeatIntervalMs?: number;
  /** How long streams outlive the last link. Default 60,000. */
  readonly resumeTimeoutMs?: number;
  /**
   * A stream may send on several links at once, where its own has as much under way as it can take. The peer must have named
   * `STRIPE_FEATURE`. Default false.
   */
  readonly stripe?: boolean;
}

/** What an edge asks for when it opens a stream. */
export type OpenRequest = Omit<Open, "stream" | "limit">;

/** Why `open` did not open. */
export type OpenRefusal = "noLink" | "streamLimit" | "draining" | "idsExhausted";

export type SessionEvent =
  | ({ readonly type: "open" } & Open)
  | { readonly type: "accept"; readonly stream: number; readonly address: string }
  /** In order and without gap; `bytes` may be a view of the message that was given to `receive`. */
  | { readonly type: "data"; readonly stream: number; readonly bytes: Uint8Array }
  /** The peer's direction is complete; every byte of it was handed over before. */
  | { readonly type: "end"; readonly stream: number }
  /** There is credit again after `write` had said that there is none. */
  | { readonly type: "writable"; readonly stream: number }
  /** The stream is gone. `peer` tells who decided: the other end, or this one (session lost, violation). */
  | { readonly type: "reset"; readonly stream: number; readonly code: number; readonly by: "peer" | "session" }
  /** Both directions ended cleanly and the peer has everything; the stream is gone. */
  | { readonly type: "finished"; readonly stream: number }
  /** The caller closes the transport of this link; nothing that it still delivers is processed. */
  | { readonly type: "linkLost"; readonly link: number; readonly code: CloseCode; readonly reason: string }
  /** The last link is gone; streams wait for `resumeTimeoutMs`. */
  | { readonly type: "detached" }
  /** The peer takes no new streams. */
  | { readonly type: "goAway"; readonly code: number; readonly reason: string }
  /** The session is over; a reset event for every stream that was left precedes it. */
  | { readonly type: "ended"; readonly code: CloseCode; readonly reason: string };

/** What a link is doing. */
export interface LinkFigures {
  /** Its place in the session, 0 to 31; one that comes takes the lowest that is free. */
  readonly index: number;
  /** Smoothed, in milliseconds; undefined before it was measured. */
  readonly roundTripMs: number | undefined;
  readonly streams: number;
  /** DATA that was written and of which it is not known that the peer has read it. */
  readonly inFlightBytes: number;
}

const DEFAULT_WINDOW_BYTES = 262_144;
/** 1.3 Gbit/s at a round trip of 100 ms. */
const DEFAULT_MAX_WINDOW_BYTES = 16_777_216;
const DEFAULT_SEND_BUFFER_BYTES = 16_777_216;
/** Twice what a receiver leaves untold while bytes arrive (`MAX_UNTOLD_BYTES`); less would make a stream go in steps. */
const MIN_SEND_BUFFER_BYTES = 131_072;

/**
 * How long consumed bytes go untold that are too few for a CREDIT of their own. A sender that has little memory waits for
 * it with all it holds, and an idle stream holds nothing for longer than this.
 */
const TELL_DELAY_MS = 25;

/** What a stream reserves for large writes beyond what it may write in any case. */
const LARGE_WRITE_RESERVE = LARGE_CHUNK_BYTES - MIN_DIRECTION_BYTES;

/** Breaches of credit that a session survives within `CREDIT_BREACH_PERIOD_MS`; each costs its stream. */
const MAX_CREDIT_BREACHES = 2;
const CREDIT_BREACH_PERIOD_MS = 60_000;

/** Late DATA shorter than this counts against the budget; longer late DATA is what was in flight at a reset. */
const USELESS_DATA_BYTES = 256;

/** The honest late frames that the end of one stream may cause at this end: END, CREDIT, CLOSED, RESUME. */
const LATE_FRAMES_PER_STREAM = 4;

export class Session {
  readonly role: SessionRole;
  readonly #maxStreams: number;
  readonly #initialCredit: number;
  readonly #memory: MemoryBudget;
  readonly #windowBytes: number;
  readonly #maxWindowBytes: number;
  readonly #sendBufferBytes: number;
  readonly #heartbeatIntervalMs: number;
  readonly #heartbeatTimeoutMs: number;
  readonly #resumeTimeoutMs: number;
  readonly #stripe: boolean;

  /** Bounded by `maxStreams`; a stream whose RESET is not answered yet counts. */
  readonly #streams = new Map<number, Stream>();
  /** Bounded by the caller: at most 16, as HELLO says, and as many that are about to replace them. */
  readonly #links = new Map<number, LinkState>();
  readonly #path = new SharedPath();
  readonly #events: SessionEvent[] = [];
  #eventHead = 0;
  readonly #useless: Budget;

  #lastStream = 0;
  /** Agent: ids below `#lastStream` whose OPEN has not arrived yet, because another link was faster. */
  readonly #unseen = new Set<number>();
  #detachedAt: number | undefined;
  /** Streams that have consumed bytes and may not have told it; at most all of them. */
  readonly #untold = new Set<Stream>();
  /** When they tell it, if there are any. */
  #tellAt: number | undefined;
  /** The time as last heard of; late by at most as long as nothing happened. */
  #now = 0;
  #windowBytesInUse = 0;
  #queueBytes = 0;
  #stalledStreams = 0;
  #creditBreaches: number[] = [];
  /** What GO_AWAY says, once this end has said it. */
  #goAway: { readonly code: CloseCode; readonly reason: string } | undefined;
  #peerDraining = false;
  #ended = false;
  #nextPingToken = 1;

  /** Counters for metrics; plain numbers that only grow. */
  readonly counters = {
    retransmittedBytes: 0,
    stripedBytes: 0,
    resumptions: 0,
    uselessFrames: 0,
    linksLost: 0,
    stalls: 0,
  };

  constructor(options: SessionOptions) {
    this.role = options.role;
    this.#maxStreams = options.maxStreams;
    this.#initialCredit = options.initialCredit;
    this.#memory = options.memory ?? new MemoryBudget();
    this.#windowBytes = options.windowBytes ?? DEFAULT_WINDOW_BYTES;
    this.#maxWindowBytes = options.maxWindowBytes ?? options.windowBytes ?? DEFAULT_MAX_WINDOW_BYTES;
    this.#sendBufferBytes = Math.max(MIN_SEND_BUFFER_BYTES, options.sendBufferBytes ?? DEFAULT_SEND_BUFFER_BYTES);
    this.#heartbeatIntervalMs = options.heartbeatIntervalMs ?? 10_000;
    this.#heartbeatTimeoutMs = options.heartbeatTimeoutMs ?? 25_000;
    this.#resumeTimeoutMs = options.resumeTimeoutMs ?? 60_000;
    this.#stripe = options.stripe ?? false;
    // Resets that cross each other are honest and useless, and a lost link makes each of its streams ask; all streams
    // at once may do both.
    this.#useless = new Budget({ capacity: 2_000 + 2 * options.maxStreams, perSecond: 1_000 });
  }

  // ── what the application asks ──────────────────────────────────────────────────────────────────────────────────

  get streamCount(): number {
    return this.#streams.size;
  }

  /** Has as many streams as it may; one whose RESET is not answered yet counts. */
  get full(): boolean {
    return this.#streams.size >= this.#maxStreams;
  }

  get linkCount(): number {
    return this.#links.size;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** No new streams: this end or the peer is draining, or the session is over. */
  get draining(): boolean {
    return this.#goAway !== undefined || this.#peerDraining || this.#ended;
  }

  /** Bytes of all streams that are in memory at this end. Linear in the number of streams: for metrics only. */
  get heldBytes(): number {
    let bytes = 0;
    for (const stream of this.#streams.values()) bytes += stream.heldBytes;
    return bytes;
  }

  /** Bytes that peers may make this end hold: received and not consumed, or promised and still to come. */
  get windowBytes(): number {
    return this.#windowBytesInUse;
  }

  /** Bytes held for sending: not sent, or sent and not acknowledged. */
  get queueBytes(): number {
    return this.#queueBytes;
  }

  /** Streams that have bytes to send and no credit, now; `counters.stalls` counts how often that came about. */
  get stalledStreams(): number {
    return this.#stalledStreams;
  }

  /** The links now, in the order in which they came; for metrics. */
  get linkFigures(): LinkFigures[] {
    return [...this.#links.values()].map(({ index, roundTripMs, streams, pace }) => ({
      index,
      roundTripMs,
      streams,
      inFlightBytes: pace.inFlightBytes,
    }));
  }

  /** Smoothed round trip of a link in milliseconds, once measured. */
  roundTripMs(link: number): number | undefined {
    return this.#links.get(link)?.roundTripMs;
  }

  /**
   * Edge only: opens a stream on the least loaded link and returns its id, or says why not.
   *
   * @throws RangeError when the peer would refuse the request as malformed
   */
  open(request: OpenRequest): number | OpenRefusal {
    if (this.role !== "edge") throw new Error("only the edge opens streams");
    if (this.draining) return "draining";
    if (this.full) return "streamLimit";
    if (this.#lastStream >= 0xffff_ffff) return "idsExhausted";
    const link = this.#leastLoaded();
    if (link === undefined) return "noLink";
    const id = this.#lastStream + 1;
    const window = this.#newWindow();
    const limit = window.size(this.#memory, 0);
    const openFrame = encodeFrame({ type: "open", stream: id, ...request, limit });
    this.#lastStream = id;
    const stream = new Stream({
      id,
      sendLimit: this.#initialCredit,
      sendBufferBytes: this.#sendBufferBytes,
      receive: new ReceiveBuffer(limit, limit),
      window,
      memory: this.#memory,
      openFrame,
    });
    stream.owesOpen = true;
    this.#streams.set(id, stream);
    this.#account(stream);
    this.#assign(stream, link);
    this.#schedule(stream);
    return id;
  }

  /**
   * Agent only: the target is connected. Comes before everything else that the agent says on the stream, save `reset`.
   *
   * @throws RangeError when `address` is more than 64 printable characters
   */
  accept(id: number, address: string): void {
    if (this.role !== "agent") throw new Error("only the agent accepts streams");
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.phase !== "opening") return;
    checkMessage("accept", { stream: id, address, limit: 0 });
    stream.phase = "open";
    stream.acceptedAddress = address;
    stream.owesAccept = true;
    this.#schedule(stream);
  }

  /**
   * Queues a copy of `bytes`. Returns whether more may follow; after false a
   * `writable` event comes. Bytes for a stream that is gone are dropped: its `reset` event is on its way.
   */
  write(id: number, bytes: Uint8Array): boolean {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.phase === "resetting") return true;
    if (stream.ending) throw new Error("write after end");
    if (this.role === "agent" && stream.phase === "opening") throw new Error("write before accept");
    stream.send.append(bytes);
    this.#schedule(stream);
    this.#account(stream);
    stream.blocked = !stream.writable;
    if (stream.blocked) this.#account(stream);
    return !stream.blocked;
  }

  /**
   * Asks whether the next `write` may be of up to `LARGE_CHUNK_BYTES`; no more than `MIN_DIRECTION_BYTES` otherwise, or
   * `memory` could be exceeded by more than that. What it takes is reserved until the answer is no.
   */
  allowLargeWrites(id: number, wanted: boolean): boolean {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.phase === "resetting") return false;
    const allowed = wanted && (stream.largeWrites ? this.#memory.freeBytes > 0 : this.#memory.admitsLargeWrites);
    if (allowed !== stream.largeWrites) {
      stream.largeWrites = allowed;
      this.#account(stream);
    }
    return allowed;
  }

  /** Ends this end's direction after everything written. */
  end(id: number): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.ending || stream.phase === "resetting") return;
    if (this.role === "agent" && stream.phase === "opening") throw new Error("end before accept");
    this.allowLargeWrites(id, false);
    stream.ending = true;
    this.#schedule(stream);
  }

  /** Aborts both directions. No event follows; nothing that was not delivered yet is. */
  reset(id: number, code: ResetCode): void {
    const stream = this.#streams.get(id);
    if (stream !== undefined && stream.phase !== "resetting") this.#startReset(stream, code);
  }

  /** `count` bytes of `data` events have left the process. */
  consume(id: number, count: number): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.phase === "resetting") return;
    stream.receive.consume(count);
    this.#account(stream);
    stream.fitWindow();
    if (stream.receive.creditDue) {
      stream.owesCredit = true;
      this.#schedule(stream);
    } else if (stream.receive.untold > 0) {
      this.#untold.add(stream);
      this.#tellAt ??= this.#now + TELL_DELAY_MS;
    }
  }

  /**
   * The `end` event has been carried out: the destination has all bytes and the FIN.
   *
   * @throws RangeError when `consume` has not accounted for all bytes before
   */
  consumeEnd(id: number): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || !stream.endDelivered || stream.endConsumed || stream.phase === "resetting") return;
    if (stream.receive.unconsumed > 0) throw new RangeError("end consumed before its bytes");
    stream.endConsumed = true;
    stream.owesCredit = true;
    this.#schedule(stream);
  }

  /** What the peer has taken out of its process, for a stream's progress; 0 for an unknown one. */
  acknowledgedBytes(id: number): number {
    return this.#streams.get(id)?.send.acknowledged ?? 0;
  }

  /**
   * Takes no new streams from now on and tells the peer. Running streams go on.
   *
   * @throws RangeError when `reason` is more than 200 printable characters
   */
  goAway(code: CloseCode, reason: string): void {
    if (this.#goAway !== undefined || this.#ended) return;
    checkMessage("goAway", { code, reason });
    this.#goAway = { code, reason };
    for (const link of this.#links.values()) link.urgent.push(encodeFrame({ type: "goAway", code, reason }));
  }

  /** Ends the session now: every stream is reset here, and at the peer when it notices that its links are gone. */
  close(code: CloseCode, reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const stream of this.#streams.values()) {
      if (stream.phase !== "resetting") {
        this.#emit({ type: "reset", stream: stream.id, code: resetCodeOf(code), by: "session" });
      }
      stream.send.clear();
      this.#release(stream);
    }
    this.#streams.clear();
    for (const link of this.#links.values()) this.#emit({ type: "linkLost", link: link.id, code, reason });
    this.#links.clear();
    this.#unseen.clear();
    this.#detachedAt = undefined;
    this.#emit({ type: "ended", code, reason });
  }

  // ── links ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** A link is ready, its greetings exchanged. Streams that have none continue on it. */
  attach(id: number, now: number): void {
    if (this.#ended) throw new Error("the session has ended");
    if (this.#links.has(id)) throw new Error("the link is attached already");
    this.#now = now;
    const link = new LinkState({
      id,
      index: this.#freeIndex(),
      now,
      heartbeatIntervalMs: this.#heartbeatIntervalMs,
      path: this.#path,
    });
    this.#links.set(id, link);
    if (this.#detachedAt !== undefined) this.counters.resumptions += 1;
    this.#detachedAt = undefined;
    if (this.#goAway !== undefined) link.urgent.push(encodeFrame({ type: "goAway", ...this.#goAway }));
    for (const stream of this.#streams.values()) {
      if (stream.link === undefined) this.#move(stream, link);
    }
  }

  /** The transport of a link is gone. Its streams continue on another, or wait. */
  detach(id: number, now: number): void {
    const link = this.#links.get(id);
    if (link === undefined) return;
    this.#links.delete(id);
    this.#path.remove(link.pace);
    this.counters.linksLost += 1;
    // The peer has lost the link as well and asks for as many streams.
    this.#useless.give(this.#streams.size);
    for (const stream of this.#streams.values()) {
      if (stream.link === link) this.#move(stream, this.#leastLoaded());
      else if (concerns(stream, link) && stream.phase !== "resetting") this.#move(stream, stream.link);
      stream.stripes.delete(link);
    }
    if (this.#links.size === 0 && !this.#ended) {
      this.#detachedAt = now;
      this.#emit({ type: "detached" });
    }
  }

  /** Whether `poll` has frames for this link. */
  wantsWrite(id: number): boolean {
    const link = this.#links.get(id);
    return link !== undefined && (link.hasFrames || this.#stripeableOn(link) !== undefined);
  }

  /**
   * A message arrived. A violation ends the session: the events say so. Messages of links that are not attached are
   * ignored, so nothing behind a fatal frame is processed.
   */
  receive(id: number, message: Uint8Array, now: number): void {
    const link = this.#links.get(id);
    if (link === undefined) return;
    this.#now = now;
    link.lastReceivedAt = now;
    link.pace.received(message.length);
    let stream = 0;
    try {
      const frame = decodeFrame(message);
      if (frame.type === "data" || frame.type === "end") stream = frame.stream;
      this.#handle(link, frame, now);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      if (error instanceof CreditExceeded && this.#forgiveBreach(stream, now)) return;
      this.close(error.code, error.message);
    }
  }

  /** Writes as many frames for this link as the writer has room for. */
  poll(id: number, writer: FrameWriter, now: number): void {
    const link = this.#links.get(id);
    if (link === undefined) return;
    this.#now = now;
    if (!this.#writeControl(link, writer, now)) return;
    this.#writeData(link, writer);
    if (this.#stripe) this.#writeStripes(link, writer);
    if (link.pace.pingDue(now)) link.owesPing = true;
    if (link.owesPing) this.#writePing(link, writer, now);
  }

  /** When anything was heard last, on whatever link; 0 without links. */
  get lastReceivedAt(): number {
    let last = 0;
    for (const link of this.#links.values()) last = Math.max(last, link.lastReceivedAt);
    return last;
  }

  /** Asks the peer for a sign of life on every link, besides the heartbeats. */
  probe(): void {
    for (const link of this.#links.values()) link.owesPing = true;
  }

  // ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /** When `tick` is to be called next; undefined when nothing is waited for. */
  nextTimeout(): number | undefined {
    if (this.#ended) return undefined;
    if (this.#detachedAt !== undefined) return this.#detachedAt + this.#resumeTimeoutMs;
    let next = this.#tellAt;
    for (const link of this.#links.values()) {
      const due = Math.min(link.nextPingAt, link.lastReceivedAt + this.#heartbeatTimeoutMs);
      if (next === undefined || due < next) next = due;
    }
    return next;
  }

  tick(now: number): void {
    if (this.#ended) return;
    this.#now = now;
    if (this.#detachedAt !== undefined) {
      if (now >= this.#detachedAt + this.#resumeTimeoutMs) this.close(CloseCode.timeout, "not resumed in time");
      return;
    }
    if (this.#tellAt !== undefined && now >= this.#tellAt) this.#tell();
    for (const link of this.#links.values()) {
      if (now >= link.lastReceivedAt + this.#heartbeatTimeoutMs) {
        this.#emit({ type: "linkLost", link: link.id, code: CloseCode.timeout, reason: "nothing heard" });
        this.detach(link.id, now);
      } else if (now >= link.nextPingAt) {
        link.owesPing = true;
        link.nextPingAt = now + this.#heartbeatIntervalMs;
      }
    }
  }

  /** The next thing that happened, in order; undefined when there is none. */
  takeEvent(): SessionEvent | undefined {
    const event = this.#events[this.#eventHead];
    if (event === undefined) return undefined;
    this.#eventHead += 1;
    if (this.#eventHead === this.#events.length) {
      this.#events.length = 0;
      this.#eventHead = 0;
    }
    return event;
  }

  // ── receiving ──────────────────────────────────────────────────────────────────────────────────────────────────

  #handle(link: LinkState, frame: Frame, now: number): void {
    switch (frame.type) {
      case "data": {
        const stream = this.#known(frame.stream);
        if (stream === undefined || stream.phase === "resetting") {
          if (frame.bytes.length < USELESS_DATA_BYTES) this.#countUseless(now);
          return;
        }
        if (this.role === "edge" && stream.phase === "opening") throw new ProtocolError("data before accept");
        let bytes = stream.receive.receive(frame.offset, frame.bytes);
        while (bytes !== undefined) {
          this.#emit({ type: "data", stream: stream.id, bytes });
          bytes = stream.receive.takeHeld();
        }
        this.#deliverEnd(stream);
        return;
      }
      case "end": {
        const stream = this.#known(frame.stream);
        if (stream === undefined || stream.phase === "resetting") return this.#countUseless(now);
        if (this.role === "edge" && stream.phase === "opening") throw new ProtocolError("end before accept");
        stream.receive.end(frame.offset);
        this.#account(stream);
        this.#deliverEnd(stream);
        return;
      }
      case "credit": {
        const stream = this.#known(frame.stream);
        if (stream === undefined || stream.phase === "resetting") return this.#countUseless(now);
        if (!this.#acknowledge(stream, frame)) this.#countUseless(now);
        this.#removeIfFinished(stream);
        return;
      }
      case "resume":
        this.#handleResume(link, frame, now);
        return;
      case "reset": {
        // An edge that gives up before its OPEN went out sends RESET alone, and a lost OPEN is not repeated then.
        const unopened = this.role === "agent" && this.#firstSeen(frame.stream);
        const stream = this.#known(frame.stream);
        this.#pushClosed(link, frame.stream);
        if (stream === undefined) return unopened ? undefined : this.#countUseless(now);
        if (stream.phase !== "resetting") {
          this.#emit({ type: "reset", stream: stream.id, code: frame.code, by: "peer" });
        }
        this.#remove(stream);
        return;
      }
      case "closed": {
        const stream = this.#known(frame.stream);
        if (stream === undefined) return this.#countUseless(now);
        if (stream.phase === "resetting") {
          this.#remove(stream);
        } else if (stream.endEverSent && stream.endConsumed) {
          // The peer forgot the stream because it was through on both sides; only its last word had been lost. Had it
          // reset the stream, it would have waited for our CLOSED.
          stream.endAcknowledged = true;
          stream.endConsumedAnnounced = true;
          stream.owesAnswer = undefined;
          this.#removeIfFinished(stream);
        } else {
          this.#emit({ type: "reset", stream: stream.id, code: ResetCode.stateLost, by: "peer" });
          this.#remove(stream);
        }
        return;
      }
      case "open":
        this.#handleOpen(link, frame, now);
        return;
      case "accept": {
        if (this.role === "agent") throw new ProtocolError("accept at the agent");
        const stream = this.#known(frame.stream);
        if (stream === undefined || stream.phase === "resetting") return this.#countUseless(now);
        if (stream.phase === "open") return this.#countUseless(now);
        stream.phase = "open";
        stream.openFrame = undefined;
        stream.owesOpen = false;
        this.#emit({ type: "accept", stream: stream.id, address: frame.address });
        this.#raiseLimit(stream, frame.limit);
        return;
      }
      case "goAway":
        if (!this.#peerDraining) {
          this.#peerDraining = true;
          this.#emit({ type: "goAway", code: frame.code, reason: frame.reason });
        } else {
          this.#countUseless(now);
        }
        return;
      case "ping":
        if (!link.pinged(frame.token)) this.#countUseless(now);
        return;
      case "pong":
        if (!link.ponged(frame.token, now)) this.#countUseless(now);
        return;
      case "hello":
      case "welcome":
        throw new ProtocolError("greeting inside a session");
    }
  }

  #handleOpen(link: LinkState, frame: { readonly type: "open" } & Open, now: number): void {
    if (this.role === "edge") throw new ProtocolError("open at the edge");
    const { type: _, ...open } = frame;
    if (!this.#firstSeen(open.stream)) {
      // Repeated because its link was lost: the answer may have been lost with it.
      this.#charge(now);
      const stream = this.#streams.get(open.stream);
      if (stream === undefined) {
        this.counters.uselessFrames += 1;
        this.#pushClosed(link, open.stream);
      } else if (!sameOpen(stream.openMessage, open)) {
        throw new ProtocolError("stream id is used again");
      } else if (stream.phase === "open") {
        stream.acceptAsked = true;
      }
      return;
    }
    if (this.full || this.#goAway !== undefined) {
      // Refused without state; if this word is lost, the repeated OPEN is answered by CLOSED.
      const code = this.#goAway === undefined ? ResetCode.limit : ResetCode.shutdown;
      this.#pushUrgent(link, { type: "reset", stream: open.stream, offset: 0, code });
      return;
    }
    const stream = new Stream({
      id: open.stream,
      sendLimit: open.limit,
      sendBufferBytes: this.#sendBufferBytes,
      receive: new ReceiveBuffer(this.#initialCredit, this.#windowBytes),
      window: this.#newWindow(),
      memory: this.#memory,
      openMessage: open,
    });
    this.#streams.set(stream.id, stream);
    this.#account(stream);
    this.#assign(stream, link);
    this.#emit({ type: "open", ...open });
  }

  #handleResume(link: LinkState, frame: ResumeFrame, now: number): void {
    const request = frame.answers === 0;
    const stream = this.#known(frame.stream);
    if (stream === undefined) {
      this.#countUseless(now);
      if (request) this.#pushClosed(link, frame.stream);
      return;
    }
    if (!(request ? this.#takeRequest(stream, link, frame) : this.#takeAnswer(stream, frame))) {
      // Overtaken: where to continue is known from a newer frame. Its credit holds all the same, and is not told again.
      this.#countUseless(now);
      if (stream.phase === "resetting") return;
      this.#acknowledge(stream, frame);
      this.#removeIfFinished(stream);
      return;
    }
    if (request) this.#charge(now);
    if (stream.phase === "resetting") {
      if (request) stream.owesReset = true;
      this.#schedule(stream);
      return;
    }
    if (frame.consumed > frame.received) throw new ProtocolError("more consumed than received");
    if (frame.received > stream.highestSent) throw new ProtocolError("resume beyond what was sent");
    if (frame.endReceived && !stream.endEverSent) throw new ProtocolError("end received that was not sent");
    if (frame.received < stream.send.acknowledged) {
      // Its state is older than what it had acknowledged: the bytes in between are gone.
      this.#emit({ type: "reset", stream: stream.id, code: ResetCode.stateLost, by: "session" });
      this.#startReset(stream, ResetCode.stateLost);
      return;
    }
    this.#acknowledge(stream, frame);
    stream.awaitingResume = false;
    stream.cursor = frame.received;
    stream.endSent = frame.endReceived;
    if (stream.acceptAsked) {
      stream.acceptAsked = false;
      stream.owesAccept = true;
    }
    this.#schedule(stream);
    this.#removeIfFinished(stream);
  }

  /** False when a newer request, or an answer that tells as much, has arrived before. */
  #takeRequest(stream: Stream, link: LinkState, frame: ResumeFrame): boolean {
    if (frame.epoch <= stream.peerEpoch) return false;
    stream.peerEpoch = frame.epoch;
    // The peer has given up the link on which this stream ran, whether or not we have noticed.
    this.#assign(stream, link);
    if (stream.phase === "resetting") return true;
    // It tells all that an answer to a request of ours would, and the answer to it all that our request would.
    stream.owesResume = false;
    stream.owesAnswer = frame.epoch;
    if (stream.phase === "opening" && this.role === "edge") stream.owesOpen = true;
    return true;
  }

  /** False when the answer is to a request that is not waited for any more. */
  #takeAnswer(stream: Stream, frame: ResumeFrame): boolean {
    if (frame.answers > stream.epoch) throw new ProtocolError("answer to a request that was not made");
    // Requests of the peer that are still on their way, on a slower link, are older than this.
    if (frame.epoch > stream.peerEpoch) stream.peerEpoch = frame.epoch;
    return frame.answers === stream.epoch && stream.awaitingResume;
  }

  /**
   * Applies what CREDIT and RESUME have in common; says whether anything of it was new. Values that are older than what
   * is known change nothing.
   */
  #acknowledge(stream: Stream, frame: { consumed: number; limit: number; endConsumed: boolean }): boolean {
    if (frame.consumed > stream.highestSent) throw new ProtocolError("credit for bytes that were not sent");
    if (frame.limit < frame.consumed) throw new ProtocolError("limit below what was consumed");
    let isNew = frame.consumed > stream.send.acknowledged || frame.limit > stream.sendLimit;
    if (frame.endConsumed) {
      if (!stream.endEverSent) throw new ProtocolError("end acknowledged that was not sent");
      if (frame.consumed !== stream.send.queued) throw new ProtocolError("end acknowledged before its bytes");
      isNew ||= !stream.endAcknowledged;
      stream.endAcknowledged = true;
    }
    stream.send.acknowledge(frame.consumed);
    if (stream.cursor < stream.send.acknowledged) stream.cursor = stream.send.acknowledged;
    this.#raiseLimit(stream, frame.limit);
    return isNew;
  }

  #raiseLimit(stream: Stream, limit: number): void {
    if (limit > stream.sendLimit) stream.sendLimit = limit;
    this.#schedule(stream);
    this.#account(stream);
    this.#unblock(stream);
  }

  #unblock(stream: Stream): void {
    if (!stream.unblocked) return;
    stream.blocked = false;
    this.#account(stream);
    this.#emit({ type: "writable", stream: stream.id });
  }

  #newWindow(): ReceiveWindow {
    return new ReceiveWindow({ startBytes: this.#windowBytes, maxBytes: this.#maxWindowBytes });
  }

  /** Streams that consumed little have waited long enough: their peers may let go of it. */
  #tell(): void {
    this.#tellAt = undefined;
    for (const stream of this.#untold) {
      if (stream.receive.untold === 0) continue;
      stream.owesCredit = true;
      this.#schedule(stream);
    }
    this.#untold.clear();
  }

  // ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Follows every change of what a stream holds, has promised or lacks. A stream that is reset holds nothing more. */
  #account(stream: Stream): void {
    if (stream.phase === "resetting") return this.#release(stream);
    this.#setAccount(stream, stream.receive.promised, stream.send.size, stream.largeWrites ? LARGE_WRITE_RESERVE : 0);
    const { accounted } = stream;
    if (accounted.stalled === stream.stalled) return;
    accounted.stalled = stream.stalled;
    this.#stalledStreams += accounted.stalled ? 1 : -1;
    if (accounted.stalled) this.counters.stalls += 1;
  }

  #release(stream: Stream): void {
    this.#setAccount(stream, 0, 0, 0);
    if (stream.accounted.stalled) this.#stalledStreams -= 1;
    stream.accounted.stalled = false;
    this.#untold.delete(stream);
  }

  #setAccount({ accounted }: Stream, windowBytes: number, queueBytes: number, reservedBytes: number): void {
    const windowChange = windowBytes - accounted.windowBytes;
    const queueChange = queueBytes - accounted.queueBytes;
    const reservedChange = reservedBytes - accounted.reservedBytes;
    if (windowChange === 0 && queueChange === 0 && reservedChange === 0) return;
    accounted.windowBytes = windowBytes;
    accounted.queueBytes = queueBytes;
    accounted.reservedBytes = reservedBytes;
    this.#windowBytesInUse += windowChange;
    this.#queueBytes += queueChange;
    this.#memory.adjust(windowChange + queueChange + reservedChange);
  }

  #deliverEnd(stream: Stream): void {
    if (!stream.receive.complete || stream.endDelivered) return;
    stream.endDelivered = true;
    this.#emit({ type: "end", stream: stream.id });
  }

  /** More bytes than credit cost the stream; when it happens again and again, the answer is false. */
  #forgiveBreach(id: number, now: number): boolean {
    const stream = this.#streams.get(id);
    this.#creditBreaches = this.#creditBreaches.filter((at) => now - at < CREDIT_BREACH_PERIOD_MS);
    if (stream === undefined || this.#creditBreaches.length >= MAX_CREDIT_BREACHES) return false;
    this.#creditBreaches.push(now);
    this.#emit({ type: "reset", stream: stream.id, code: ResetCode.flowControl, by: "session" });
    this.#startReset(stream, ResetCode.flowControl);
    return true;
  }

  /** The stream of a frame that can only follow OPEN; undefined when it has ended here. */
  #known(id: number): Stream | undefined {
    const stream = this.#streams.get(id);
    if (stream === undefined && (id > this.#lastStream || this.#unseen.has(id))) {
      throw new ProtocolError("frame of a stream that was not opened");
    }
    return stream;
  }

  /** Agent: takes note of an id; true when it is seen for the first time. Lower ids are expected on other links. */
  #firstSeen(id: number): boolean {
    if (id <= this.#lastStream) return this.#unseen.delete(id);
    if (id - this.#lastStream + this.#unseen.size > this.#maxStreams + 1_024) {
      throw new ProtocolError("stream ids leap");
    }
    for (let skipped = this.#lastStream + 1; skipped < id; skipped += 1) this.#unseen.add(skipped);
    this.#lastStream = id;
    return true;
  }

  #countUseless(now: number): void {
    this.counters.uselessFrames += 1;
    this.#charge(now);
  }

  /** Accounts for a frame that costs this end more than it brings. */
  #charge(now: number): void {
    if (!this.#useless.take(now)) throw new ProtocolError("too many frames that carry nothing", CloseCode.budget);
  }

  // ── streams and links ──────────────────────────────────────────────────────────────────────────────────────────

  /** The lowest number that no link has. Links that replace others come before those go. */
  #freeIndex(): number {
    const taken = new Set([...this.#links.values()].map(({ index }) => index));
    let index = 0;
    while (taken.has(index)) index += 1;
    return index;
  }

  #leastLoaded(): LinkState | undefined {
    let best: LinkState | undefined;
    for (const link of this.#links.values()) {
      if (best === undefined || link.streams < best.streams) best = link;
    }
    return best;
  }

  #assign(stream: Stream, link: LinkState | undefined): void {
    if (stream.link === link) return;
    if (stream.link !== undefined) stream.link.streams -= 1;
    stream.link = link;
    stream.controlTurn.leave();
    stream.dataTurn.leave();
    if (link !== undefined) link.streams += 1;
  }

  /** A link of a stream is gone: what it carried may be lost, and both ends say how far they got. */
  #move(stream: Stream, link: LinkState | undefined): void {
    this.#assign(stream, link);
    stream.askedOn = undefined;
    if (stream.phase === "resetting") {
      stream.owesReset = true;
    } else {
      if (stream.phase === "opening" && this.role === "edge") stream.owesOpen = true;
      // Our request tells the peer what an answer to its own would.
      stream.owesAnswer = undefined;
      stream.epoch += 1;
      stream.owesResume = true;
      stream.awaitingResume = true;
    }
    this.#schedule(stream);
  }

  #startReset(stream: Stream, code: ResetCode): void {
    stream.phase = "resetting";
    stream.resetCode = code;
    stream.send.clear();
    stream.receive.clear();
    this.#release(stream);
    stream.owesReset = true;
    this.#schedule(stream);
  }

  #removeIfFinished(stream: Stream): void {
    if (!stream.finished) return;
    this.#remove(stream);
    this.#emit({ type: "finished", stream: stream.id });
  }

  #remove(stream: Stream): void {
    this.#streams.delete(stream.id);
    this.#useless.give(LATE_FRAMES_PER_STREAM);
    this.#assign(stream, undefined);
    stream.send.clear();
    this.#release(stream);
  }

  /** Puts a stream into the lists of its link that it belongs to. */
  #schedule(stream: Stream): void {
    const { link } = stream;
    if (link === undefined) return;
    if (!stream.controlTurn.waiting && stream.owesControl) link.control.push(stream.controlTurn);
    if (!stream.dataTurn.waiting && stream.sendable) link.fresh.push(stream.dataTurn);
  }

  #pushClosed(link: LinkState, stream: number): void {
    this.#pushUrgent(link, { type: "closed", stream });
  }

  #pushUrgent(link: LinkState, frame: Frame): void {
    if (link.urgent.length > this.#maxStreams + 1_024) throw new ProtocolError("too many resets", CloseCode.budget);
    link.urgent.push(encodeFrame(frame));
  }

  #emit(event: SessionEvent): void {
    this.#events.push(event);
  }

  // ── sending ────────────────────────────────────────────────────────────────────────────────────────────────────

  /** A control frame is built only when the largest of them fits, because building it pays the debt. */
  #writeControl(link: LinkState, writer: FrameWriter, now: number): boolean {
    if (link.owesPong !== undefined) {
      const frame = encodeFrame({ type: "pong", token: link.owesPong });
      if (!writer.fits(frame.length)) return false;
      link.owesPong = undefined;
      writer.put(frame);
    }
    if (link.owesPing && !this.#writePing(link, writer, now)) return false;
    while (link.urgent.length > 0) {
      if (!writer.fits(MAX_QUEUED_CONTROL_BYTES)) return false;
      const frame = link.urgent.shift();
      if (frame !== undefined) writer.put(frame);
    }
    while (!link.control.empty) {
      if (!writer.fits(MAX_QUEUED_CONTROL_BYTES)) return false;
      const stream = link.control.shift();
      if (stream === undefined) break;
      const frame = stream.nextControlFrame(now);
      if (frame !== undefined) writer.put(frame);
      this.#account(stream);
      this.#schedule(stream);
      this.#removeIfFinished(stream);
    }
    return true;
  }

  #writePing(link: LinkState, writer: FrameWriter, now: number): boolean {
    const frame = encodeFrame({ type: "ping", token: this.#nextPingToken });
    if (!writer.fits(frame.length)) return false;
    link.owesPing = false;
    link.pace.pinged(this.#nextPingToken, now);
    this.#nextPingToken += 1;
    writer.put(frame);
    return true;
  }

  /** The next stream whose turn it is, if the pace of the link lets it send. */
  #nextSender(link: LinkState): Stream | undefined {
    if (!link.fresh.empty) return link.pace.admits("fresh") ? link.fresh.shift() : undefined;
    if (!link.bulk.empty) return link.pace.admits("bulk") ? link.bulk.shift() : undefined;
    return undefined;
  }

  #putData(stream: Stream, length: number, writer: FrameWriter): void {
    this.#path.sends(stream.id, this.#now);
    const at = writer.begin(DATA_HEADER_BYTES + length);
    writeDataHeader(writer.bytes, at, { stream: stream.id, offset: stream.cursor });
    stream.send.read(stream.cursor, length, writer.bytes, at + DATA_HEADER_BYTES);
    const end = stream.cursor + length;
    if (stream.cursor < stream.highestSent) {
      this.counters.retransmittedBytes += Math.min(end, stream.highestSent) - stream.cursor;
    }
    stream.cursor = end;
    if (end > stream.highestSent) stream.highestSent = end;
    this.#account(stream);
    this.#unblock(stream);
  }

  /**
   * A stream whose own link is busy, and that may use this one: undefined unless this link has nothing of its own to do. A
   * stream keeps its turn on its own link.
   */
  #stripeableOn(link: LinkState): Stream | undefined {
    if (!this.#stripe || !link.bulk.empty || !link.fresh.empty || link.pace.limitBytes === Number.POSITIVE_INFINITY) {
      return undefined;
    }
    for (const other of this.#links.values()) {
      if (other === link || other.bulk.empty || !other.pace.isBusy) continue;
      let turn = other.bulk.first;
      for (let tries = 0; turn !== undefined && tries < MAX_STRIPE_TRIES; tries += 1) {
        if (turn.stream.stripeable) return turn.stream;
        turn = turn.next;
      }
    }
    return undefined;
  }

  #writeStripes(link: LinkState, writer: FrameWriter): void {
    for (;;) {
      const room = writer.room();
      if (room <= DATA_HEADER_BYTES) return;
      const stream = this.#stripeableOn(link);
      if (stream === undefined || !link.pace.admits("bulk")) return;
      const before = writer.used;
      this.#putData(stream, stream.nextDataBytes(room - DATA_HEADER_BYTES), writer);
      stream.stripes.set(link, stream.cursor);
      this.counters.stripedBytes += writer.used - before;
      link.pace.sent(writer.used - before);
    }
  }

  #writeData(link: LinkState, writer: FrameWriter): void {
    for (;;) {
      const room = writer.room();
      if (room <= DATA_HEADER_BYTES) return;
      const before = writer.used;
      const stream = this.#nextSender(link);
      if (stream === undefined) return;
      // It had its turn, and nothing more has come since: it leaves.
      if (!stream.sendable) continue;
      const length = stream.nextDataBytes(room - DATA_HEADER_BYTES);
      if (length > 0) this.#putData(stream, length, writer);
      if (stream.ending && !stream.endSent && stream.cursor === stream.send.queued && writer.fits(END_FRAME_BYTES)) {
        stream.endSent = true;
        stream.endEverSent = true;
        writer.put(encodeFrame({ type: "end", stream: stream.id, offset: stream.cursor }));
      }
      link.pace.sent(writer.used - before);
      if (stream.continuesTurn(length)) link.bulk.unshift(stream.dataTurn);
      else link.bulk.push(stream.dataTurn);
    }
  }
}

/**
 * OPEN is the longest control frame that is queued: its texts have at most 64 + 300 + 255 + 64 bytes, and those of the
 * PROXY header it asks for 64 + 64 + 255 + 255.
 */
const MAX_QUEUED_CONTROL_BYTES = 2_048;
const END_FRAME_BYTES = 13;
/** How many streams of a busy link are looked at for one that another link can help. */
const MAX_STRIPE_TRIES = 8;

/** Whether the loss of a link that does not carry a stream concerns it all the same. */
function concerns(stream: Stream, link: LinkState): boolean {
  return stream.askedOn === link || (stream.stripes.get(link) ?? 0) > stream.send.acknowledged;
}

function resetCodeOf(code: CloseCode): ResetCode {
  switch (code) {
    case CloseCode.drain:
      return ResetCode.shutdown;
    case CloseCode.protocol:
    case CloseCode.tooLarge:
    case CloseCode.budget:
      return ResetCode.protocolViolation;
    case CloseCode.replaced:
      return ResetCode.replaced;
    case CloseCode.authentication:
      return ResetCode.revoked;
    case CloseCode.sessionUnknown:
      return ResetCode.sessionUnknown;
    default:
      return ResetCode.sessionLost;
  }
}

function sameOpen(first: Open | undefined, repeated: Open): boolean {
  return (
    first !== undefined &&
    first.connection === repeated.connection &&
    first.target === repeated.target &&
    first.deployment === repeated.deployment &&
    first.partner === repeated.partner &&
    first.limit === repeated.limit &&
    first.proxy?.length === repeated.proxy?.length &&
    (first.proxy ?? []).every((value, at) => value === repeated.proxy?.[at])
  );
}
