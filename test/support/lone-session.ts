/** One session whose peer is the test: it says what arrives, frame by frame, and reads what goes out. */
import {
  decodeFrame,
  encodeFrame,
  type Frame,
  FrameWriter,
  Session,
  type SessionEvent,
  type SessionOptions,
} from "@sallyport/protocol";
import { describeFrame } from "./pair.ts";

export class LoneSession {
  readonly session: Session;
  /** Every event, oldest first. */
  readonly events: SessionEvent[] = [];
  now = 1_000;
  /** Links whose first PING went out. */
  readonly #measured = new Set<number>();

  constructor(role: "edge" | "agent", options: Partial<SessionOptions> & { readonly links?: number } = {}) {
    this.session = new Session({ role, maxStreams: 100, initialCredit: 65_536, ...options });
    for (let link = 1; link <= (options.links ?? 1); link += 1) this.session.attach(link, this.now);
  }

  /** Edge: opens a stream. */
  open(): number {
    const id = this.session.open({ connection: "c-1", target: "sftp", deployment: "d", partner: "192.0.2.1:40000" });
    if (typeof id === "string") throw new Error(`not opened: ${id}`);
    return id;
  }

  receive(message: Frame | Uint8Array, link = 1): this {
    this.session.receive(link, message instanceof Uint8Array ? message : encodeFrame(message), this.now);
    this.#takeEvents();
    return this;
  }

  /** What goes out now, one line a frame, with the link when there are several. */
  sent(link = 1): string[] {
    return this.sentFrames(link).map(describeFrame);
  }

  /** Without the PING that every new link sends at once to measure its round trip. */
  sentFrames(link = 1): Frame[] {
    const frames: Frame[] = [];
    const lengths: { at: number; length: number }[] = [];
    const writer = new FrameWriter(new Uint8Array(65_536), {
      headerBytes: () => 0,
      writeHeader: (_, at, length) => lengths.push({ at, length }),
    });
    while (this.session.wantsWrite(link)) {
      this.session.poll(link, writer, this.now);
      if (lengths.length === 0) break;
      for (const { at, length } of lengths) {
        const frame = decodeFrame(writer.bytes.slice(at, at + length));
        if (frame.type === "ping" && !this.#measured.has(link)) this.#measured.add(link);
        else frames.push(frame);
      }
      lengths.length = 0;
      writer.clear();
    }
    this.#takeEvents();
    return frames;
  }

  /** The types of the events so far, with what matters of them. */
  lines(): string[] {
    this.#takeEvents();
    return this.events.map((event) => {
      switch (event.type) {
        case "data":
          return `data ${event.stream} ${event.bytes.length}`;
        case "reset":
          return `reset ${event.stream} code ${event.code} by ${event.by}`;
        case "ended":
          return `ended ${event.code}: ${event.reason}`;
        case "linkLost":
          return `linkLost ${event.link} ${event.code}`;
        case "goAway":
        case "detached":
          return event.type;
        default:
          return `${event.type} ${event.stream}`;
      }
    });
  }

  #takeEvents(): void {
    for (let event = this.session.takeEvent(); event !== undefined; event = this.session.takeEvent()) {
      this.events.push(event);
    }
  }
}
