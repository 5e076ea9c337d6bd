/**
 * One link of a session: which streams have something to send on it, and whether its peer still lives.
 *
 * Scheduling is deficit round robin with a quantum of one frame; since a frame takes all that a stream has up to the
 * quantum, a turn is a frame. A stream that had nothing to send and now has something (a keystroke, a request) is
 * served before those that never stop, at most once before each of them had its turn (as the "new flows" of FQ-CoDel,
 * RFC 8290 §4.2): bulk streams cannot delay it and it cannot starve them.
 */
import type { Stream } from "./stream.ts";

/** A first-in first-out list on an array, without a shift per element. */
export class Queue<T> {
  #items: T[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  push(item: T): void {
    this.#items.push(item);
  }

  shift(): T | undefined {
    const item = this.#items[this.#head];
    if (item === undefined) return undefined;
    this.#head += 1;
    if (this.#head > 64 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  clear(): void {
    this.#items = [];
    this.#head = 0;
  }
}

export class LinkState {
  readonly id: number;
  /** Takes no new streams; its own move away as soon as there is another link. */
  draining = false;
  lastReceivedAt: number;
  nextPingAt: number;
  /** The token and the time of the last PING that has no PONG yet. */
  pingToken = 0;
  pingSentAt: number | undefined;
  /** Smoothed round trip in milliseconds (RFC 6298 §2: 7/8 old, 1/8 new); undefined before the first PONG. */
  roundTripMs: number | undefined;
  owesPing = false;
  owesPong: number | undefined;
  /** Frames of the link itself that go first: GO_AWAY, CLOSED. Bounded: one CLOSED for each frame received, and a read of
   * the transport stops while the link cannot be written. */
  readonly urgent = new Queue<Uint8Array>();
  /** Streams with control frames. Bounded by the streams of the session (each stands in it at most once). */
  readonly control = new Queue<Stream>();
  /** Streams that had nothing to send until now; each at most once. */
  readonly fresh = new Queue<Stream>();
  /** Streams that take turns; each at most once. */
  readonly bulk = new Queue<Stream>();
  /** Fresh streams served since a bulk stream had its turn. */
  freshServed = 0;
  /** Streams that this link carries; the measure of load when a stream chooses its link. */
  streams = 0;

  constructor(id: number, now: number, heartbeatIntervalMs: number) {
    this.id = id;
    this.lastReceivedAt = now;
    this.nextPingAt = now + heartbeatIntervalMs;
  }

  get hasFrames(): boolean {
    return (
      this.owesPing ||
      this.owesPong !== undefined ||
      this.urgent.length > 0 ||
      this.control.length > 0 ||
      this.fresh.length > 0 ||
      this.bulk.length > 0
    );
  }
}
