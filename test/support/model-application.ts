/**
 * What stands behind a session in a simulated pair: writes bytes that follow from stream, direction and offset, checks
 * the bytes it gets, and keeps account of what happened to each stream. It throws where an application could not go on.
 */
import { MIN_DIRECTION_BYTES } from "@sallyport/protocol";
import type { Open, OpenRefusal, ResetCode, Session, SessionEvent } from "@sallyport/protocol";

export type Side = "edge" | "agent";

/** Prime, so that no power of two maps a shifted stream onto itself. */
const PATTERN_BYTES = 65_521;
const pattern = new Uint8Array(PATTERN_BYTES * 2);
for (let index = 0, state = 1; index < PATTERN_BYTES; index += 1) {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  pattern[index] = state >>> 24;
  pattern[index + PATTERN_BYTES] = state >>> 24;
}

/** The bytes that `side` sends on `stream` from `offset` on: at most 65,521, as a view. */
export function expectedBytes(position: { side: Side; stream: number; offset: number }, count: number): Uint8Array {
  const { side, stream, offset } = position;
  const start = (stream * 7_919 + offset + (side === "edge" ? 0 : 32_003)) % PATTERN_BYTES;
  return pattern.subarray(start, start + Math.min(count, PATTERN_BYTES));
}

/** One stream as the application at one end sees it. */
export class ModelStream {
  readonly id: number;
  accepted = false;
  /** How many bytes are to be written in all, and how many were. */
  wanted = 0;
  written = 0;
  blocked = false;
  wantsEnd = false;
  ended = false;
  received = 0;
  consumed = 0;
  /** Consumes what arrives at once; otherwise `consume` of the application decides. */
  autoConsume: boolean;
  endSeen = false;
  endConsumed = false;
  /** How it ended here; `local` is a reset by this application. */
  outcome: "finished" | "local" | { readonly code: number; readonly by: "peer" | "session" } | undefined;

  constructor(id: number, autoConsume: boolean) {
    this.id = id;
    this.autoConsume = autoConsume;
  }

  get over(): boolean {
    return this.outcome !== undefined;
  }
}

export class ModelApplication {
  readonly side: Side;
  readonly session: Session;
  readonly streams = new Map<number, ModelStream>();
  /** Every event but data, oldest first. */
  readonly events: SessionEvent[] = [];
  readonly opens: Open[] = [];
  chunkBytes = 16_384;
  /** Writes more than `MIN_DIRECTION_BYTES` at a time only where it is allowed, as whoever reads a socket does. */
  asksForLargeWrites = false;
  /** Agent: accepts every stream as soon as it is opened. */
  autoAccept = true;
  autoConsume = true;
  /** The application at the other end; set by the pair. */
  peer: ModelApplication | undefined;

  constructor(side: Side, session: Session) {
    this.side = side;
    this.session = session;
  }

  stream(id: number): ModelStream {
    const stream = this.streams.get(id);
    if (stream === undefined) throw new Error(`${this.side} knows no stream ${id}`);
    return stream;
  }

  tryOpen(): number | OpenRefusal {
    const id = this.session.open({ connection: "c-1", target: "sftp", deployment: "d", partner: "192.0.2.1:40000" });
    if (typeof id === "number") this.streams.set(id, new ModelStream(id, this.autoConsume));
    return id;
  }

  open(): number {
    const id = this.tryOpen();
    if (typeof id === "string") throw new Error(`not opened: ${id}`);
    return id;
  }

  accept(id: number): void {
    this.stream(id).accepted = true;
    this.session.accept(id, "10.0.0.1:22");
    this.#pump(this.stream(id));
  }

  send(id: number, bytes: number): void {
    const stream = this.stream(id);
    if (stream.wantsEnd) throw new Error("send after end");
    stream.wanted += bytes;
    this.#pump(stream);
  }

  end(id: number): void {
    const stream = this.stream(id);
    stream.wantsEnd = true;
    this.#pump(stream);
  }

  reset(id: number, code: ResetCode): void {
    const stream = this.stream(id);
    if (stream.over) return;
    stream.outcome = "local";
    this.session.reset(id, code);
  }

  /** Consumes up to `bytes` of what has arrived, and the end when there is nothing before it any more. */
  consume(id: number, bytes = Number.POSITIVE_INFINITY): void {
    const stream = this.stream(id);
    if (stream.over) return;
    const count = Math.min(bytes, stream.received - stream.consumed);
    stream.consumed += count;
    this.session.consume(id, count);
    if (stream.endSeen && !stream.endConsumed && stream.consumed === stream.received) {
      stream.endConsumed = true;
      this.session.consumeEnd(id);
    }
  }

  handle(event: SessionEvent): void {
    if (event.type !== "data") this.events.push(event);
    switch (event.type) {
      case "open": {
        if (this.streams.has(event.stream)) this.#fail(event, "opened twice");
        this.streams.set(event.stream, new ModelStream(event.stream, this.autoConsume));
        const { type: _, ...open } = event;
        this.opens.push(open);
        if (this.autoAccept) this.accept(event.stream);
        return;
      }
      case "accept": {
        const stream = this.#live(event);
        if (stream.accepted) this.#fail(event, "accepted twice");
        stream.accepted = true;
        return;
      }
      case "data":
        this.#take(event);
        return;
      case "end": {
        const stream = this.#live(event);
        if (stream.endSeen) this.#fail(event, "ended twice");
        const sender = this.peer?.streams.get(event.stream);
        // Truncation must never look like success.
        if (this.peer !== undefined && (sender?.ended !== true || sender.written !== stream.received)) {
          this.#fail(event, `ended after ${stream.received} of ${sender?.written} bytes`);
        }
        stream.endSeen = true;
        if (stream.autoConsume) this.consume(event.stream);
        return;
      }
      case "writable": {
        const stream = this.#live(event);
        stream.blocked = false;
        this.#pump(stream);
        return;
      }
      case "reset": {
        const stream = this.#live(event);
        stream.outcome = { code: event.code, by: event.by };
        return;
      }
      case "finished": {
        const stream = this.#live(event);
        const sender = this.peer?.streams.get(event.stream);
        if (!stream.ended || !stream.endConsumed) this.#fail(event, "finished before both ends");
        if (this.peer !== undefined && sender?.endConsumed !== true) this.#fail(event, "finished before the peer");
        stream.outcome = "finished";
        return;
      }
      default:
        return;
    }
  }

  #take(event: SessionEvent & { readonly type: "data" }): void {
    const { stream: id, bytes } = event;
    const stream = this.#live(event);
    if (stream.endSeen) this.#fail(event, "data behind the end");
    if (bytes.length === 0) this.#fail(event, "empty data");
    if (this.side === "edge" && !stream.accepted) this.#fail(event, "data before accept");
    const from = this.side === "edge" ? "agent" : "edge";
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.subarray(done, done + 32_768);
      const expected = expectedBytes({ side: from, stream: id, offset: stream.received + done }, part.length);
      if (Buffer.compare(part, expected) !== 0) this.#fail(event, `wrong bytes at ${stream.received + done}`);
      done += part.length;
    }
    stream.received += bytes.length;
    if (stream.autoConsume) this.consume(id);
  }

  #pump(stream: ModelStream): void {
    if (stream.over || (this.side === "agent" && !stream.accepted)) return;
    while (!stream.blocked && stream.written < stream.wanted) {
      const isLarge = !this.asksForLargeWrites || this.session.allowLargeWrites(stream.id, true);
      const mostBytes = isLarge ? this.chunkBytes : Math.min(this.chunkBytes, MIN_DIRECTION_BYTES);
      const count = Math.min(mostBytes, stream.wanted - stream.written);
      const bytes = expectedBytes({ side: this.side, stream: stream.id, offset: stream.written }, count);
      stream.written += bytes.length;
      stream.blocked = !this.session.write(stream.id, bytes);
    }
    if (stream.wantsEnd && !stream.ended && stream.written === stream.wanted) {
      stream.ended = true;
      this.session.end(stream.id);
    }
  }

  #live(event: SessionEvent & { readonly stream: number }): ModelStream {
    const stream = this.streams.get(event.stream);
    if (stream === undefined) this.#fail(event, "unknown stream");
    else if (stream.over) this.#fail(event, "event after the last");
    return stream as ModelStream;
  }

  #fail(event: SessionEvent, why: string): void {
    const stream = "stream" in event ? ` of stream ${event.stream}` : "";
    throw new Error(`${this.side}: ${event.type}${stream}: ${why}`);
  }
}
