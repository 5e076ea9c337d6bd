/**
 * Drives a session of the protocol over links: hands messages to it, carries out its events, fills links that have
 * room, and keeps its one timer. It knows no rule of the protocol.
 *
 * Work is batched per turn of the event loop: all that arrived in one poll is handled before links are filled and
 * sockets are written, so that many small pieces become few system calls.
 */
import {
  CloseCode,
  type Open,
  type OpenRefusal,
  type OpenRequest,
  type ResetCode,
  type Session,
  type SessionEvent,
} from "@sallyport/protocol";
import type { Link, LinkEnd } from "./link.ts";

/** What happens to one stream; called by the driver, in order. Exactly one of `onReset` and `onFinished` comes last. */
export interface StreamHandler {
  onAccept(address: string): void;
  /** `bytes` are valid until this returns; `consume` is called when they have left the process. */
  onData(bytes: Uint8Array): void;
  onEnd(): void;
  onWritable(): void;
  onReset(code: number, by: "peer" | "session"): void;
  onFinished(): void;
}

export interface SessionDriverEvents {
  /** Agent: the edge opens a stream; its handler is returned, or undefined when the stream was reset at once. */
  onOpen(open: Open, stream: TunnelStream): StreamHandler | undefined;
  onGoAway(code: number, reason: string): void;
  /** All links are gone; the session waits for one. */
  onDetached(): void;
  onLinkClosed(link: Link, end: LinkEnd): void;
  /** Nothing of the session is left. */
  onEnded(code: CloseCode, reason: string): void;
}

/** One stream as its user sees it. Valid until its handler heard `onReset` or `onFinished`; later calls do nothing. */
export class TunnelStream {
  readonly id: number;
  readonly #driver: SessionDriver;

  constructor(driver: SessionDriver, id: number) {
    this.#driver = driver;
    this.id = id;
  }

  accept(address: string): void {
    this.#driver.session.accept(this.id, address);
    this.#driver.wake();
  }

  /** Queues a copy of `bytes`; false: wait for `onWritable`. */
  write(bytes: Uint8Array): boolean {
    const more = this.#driver.session.write(this.id, bytes);
    this.#driver.wake();
    return more;
  }

  /** Whether the next write may be of up to `LARGE_CHUNK_BYTES`, and not `MIN_DIRECTION_BYTES` at the most. */
  allowLargeWrites(wanted: boolean): boolean {
    return this.#driver.session.allowLargeWrites(this.id, wanted);
  }

  end(): void {
    this.#driver.session.end(this.id);
    this.#driver.wake();
  }

  /** Aborts; no further call of the handler. */
  reset(code: ResetCode): void {
    this.#driver.forget(this.id);
    this.#driver.session.reset(this.id, code);
    this.#driver.wake();
  }

  consume(count: number): void {
    this.#driver.session.consume(this.id, count);
    this.#driver.wake();
  }

  consumeEnd(): void {
    this.#driver.session.consumeEnd(this.id);
    this.#driver.wake();
  }

  /** Bytes that the peer has taken out of its process so far. */
  get acknowledgedBytes(): number {
    return this.#driver.session.acknowledgedBytes(this.id);
  }

  /** Another handler hears what follows. */
  handOver(handler: StreamHandler): void {
    this.#driver.handOver(this.id, handler);
  }

  /** Flushes `writer` when the messages at hand have been handled. */
  flushLater(writer: { flush(): void }): void {
    this.#driver.flushLater(writer);
  }
}

export class SessionDriver {
  readonly session: Session;
  readonly #events: SessionDriverEvents;
  /** Bounded by the streams of the session. */
  readonly #handlers = new Map<number, StreamHandler>();
  readonly #links = new Map<number, Link>();
  /** Who has collected bytes for a socket in this turn of the event loop. */
  #unflushed: { flush(): void }[] = [];
  #wakeScheduled = false;
  #dispatching = false;
  #timer: NodeJS.Timeout | undefined;
  #timerAt = Number.POSITIVE_INFINITY;

  constructor(session: Session, events: SessionDriverEvents) {
    this.session = session;
    this.#events = events;
  }

  get links(): Iterable<Link> {
    return this.#links.values();
  }

  /** Takes a link over whose greetings are exchanged. The driver closes it. */
  attach(link: Link): void {
    this.#links.set(link.id, link);
    link.onMessage = (message) => {
      this.session.receive(link.id, message, performance.now());
      this.#dispatch();
      this.wake();
    };
    link.onWritable = () => this.#fill(link);
    link.onClosed = (end) => {
      this.#links.delete(link.id);
      this.session.detach(link.id, performance.now());
      this.#events.onLinkClosed(link, end);
      this.#dispatch();
      this.wake();
      this.#arm();
    };
    this.session.attach(link.id, performance.now());
    this.#dispatch();
    this.wake();
    this.#arm();
  }

  /** Closes a link of this end's own accord; its streams continue on the others, so there should be another. */
  retire(link: Link): void {
    if (!this.#links.delete(link.id)) return;
    this.session.detach(link.id, performance.now());
    link.close(CloseCode.renewed, "link renewed");
    this.#dispatch();
    this.wake();
  }

  /** Sends a sign of life on every link and resolves with whether anything was heard within `timeoutMs`. */
  async probe(timeoutMs: number): Promise<boolean> {
    const before = this.session.lastReceivedAt;
    this.session.probe();
    this.wake();
    await new Promise((resolve) => setTimeout(resolve, timeoutMs));
    return !this.session.ended && this.session.lastReceivedAt > before;
  }

  /** Edge: opens a stream. The handler hears of everything that follows. */
  open(request: OpenRequest, handler: (stream: TunnelStream) => StreamHandler): TunnelStream | OpenRefusal {
    const id = this.session.open(request);
    if (typeof id === "string") return id;
    const stream = new TunnelStream(this, id);
    this.#handlers.set(id, handler(stream));
    this.wake();
    return stream;
  }

  /** Takes no new streams; running ones go on. */
  goAway(code: CloseCode, reason: string): void {
    this.session.goAway(code, reason);
    this.wake();
  }

  /** Ends the session and its links now; streams that are left are reset. */
  close(code: CloseCode, reason: string): void {
    this.session.close(code, reason);
    this.#dispatch();
  }

  handOver(stream: number, handler: StreamHandler): void {
    if (this.#handlers.has(stream)) this.#handlers.set(stream, handler);
  }

  /** No more calls for this stream. */
  forget(stream: number): void {
    this.#handlers.delete(stream);
  }

  flushLater(writer: { flush(): void }): void {
    this.#unflushed.push(writer);
    this.wake();
  }

  /** Something may be there to send: fills the links at the end of this turn of the event loop. */
  wake(): void {
    if (this.#wakeScheduled) return;
    this.#wakeScheduled = true;
    setImmediate(this.#onWake);
  }

  readonly #onWake = (): void => {
    this.#wakeScheduled = false;
    if (this.#unflushed.length > 0) {
      const unflushed = this.#unflushed;
      this.#unflushed = [];
      for (const writer of unflushed) writer.flush();
    }
    this.#dispatch();
    for (const link of this.#links.values()) this.#fill(link);
    // What was done may have brought the next time-out forward.
    this.#arm();
  };

  #fill(link: Link): void {
    if (link.dead || link.writing || !this.session.wantsWrite(link.id)) return;
    link.write((writer) => this.session.poll(link.id, writer, performance.now()));
    // Polling a stream's last frame can finish it.
    this.#dispatch();
  }

  #dispatch(): void {
    // A handler's own calls may add events; they are carried out by the loop that is already running.
    if (this.#dispatching) return;
    this.#dispatching = true;
    try {
      for (let event = this.session.takeEvent(); event !== undefined; event = this.session.takeEvent()) {
        this.#carryOut(event);
      }
    } finally {
      this.#dispatching = false;
    }
  }

  #carryOut(event: SessionEvent): void {
    switch (event.type) {
      case "data":
        this.#handlers.get(event.stream)?.onData(event.bytes);
        return;
      case "end":
        this.#handlers.get(event.stream)?.onEnd();
        return;
      case "writable":
        this.#handlers.get(event.stream)?.onWritable();
        return;
      case "accept":
        this.#handlers.get(event.stream)?.onAccept(event.address);
        return;
      case "open": {
        const { type: _, ...open } = event;
        const stream = new TunnelStream(this, open.stream);
        const handler = this.#events.onOpen(open, stream);
        if (handler !== undefined) this.#handlers.set(open.stream, handler);
        return;
      }
      case "reset": {
        const handler = this.#handlers.get(event.stream);
        this.#handlers.delete(event.stream);
        handler?.onReset(event.code, event.by);
        return;
      }
      case "finished": {
        const handler = this.#handlers.get(event.stream);
        this.#handlers.delete(event.stream);
        handler?.onFinished();
        return;
      }
      case "linkLost": {
        const link = this.#links.get(event.link);
        if (link === undefined) return;
        this.#links.delete(event.link);
        // A peer that is silent would not answer a close frame either.
        if (event.code === CloseCode.timeout) link.destroy();
        else link.close(event.code, event.reason);
        return;
      }
      case "goAway":
        this.#events.onGoAway(event.code, event.reason);
        return;
      case "detached":
        this.#events.onDetached();
        return;
      case "ended":
        this.#disarm();
        this.#events.onEnded(event.code, event.reason);
        return;
    }
  }

  #arm(): void {
    const at = this.session.nextTimeout();
    if (at === undefined) return this.#disarm();
    // A timer that fires early is harmless: it finds nothing to do and is set again.
    if (this.#timer !== undefined && this.#timerAt <= at) return;
    this.#disarm();
    this.#timerAt = at;
    this.#timer = setTimeout(this.#onTimer, Math.max(1, Math.ceil(at - performance.now())));
  }

  #disarm(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerAt = Number.POSITIVE_INFINITY;
  }

  readonly #onTimer = (): void => {
    this.#timer = undefined;
    this.#timerAt = Number.POSITIVE_INFINITY;
    this.session.tick(performance.now());
    this.#dispatch();
    this.wake();
    this.#arm();
  };
}
