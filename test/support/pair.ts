/**
 * An edge's and an agent's session, joined by simulated links under a simulated clock. Nothing here waits: time is a
 * number that `settle` and `run` advance from one delivery to the next, in an order that follows from the calls alone.
 */
import { decodeFrame, type Frame, type Framing, FrameWriter, Session, type SessionOptions } from "@sallyport/protocol";
import { ModelApplication, type Side } from "./model-application.ts";

export interface PairOptions {
  readonly maxStreams?: number;
  readonly initialCredit?: number;
  readonly edge?: Partial<SessionOptions>;
  readonly agent?: Partial<SessionOptions>;
  /** Links at the start. Default 1. */
  readonly links?: number;
  /** One way, of each link. Default 10. */
  readonly latencyMs?: number;
  /** What a link takes in each direction before it is delivered, in bytes. Default 128 KiB. */
  readonly linkBytes?: number;
  /** Keeps every frame that is sent in `transcript`. Default false. */
  readonly capture?: boolean;
  /** Hears of every frame when it is sent, and again when it has arrived and before it is handled. */
  readonly observe?: (what: "sent" | "arrived", frame: SentFrame) => void;
}

export interface LinkLoss {
  /** When each end notices, counted from now; undefined: by its heartbeat only. Default 0. */
  readonly edgeNoticesMs?: number | undefined;
  readonly agentNoticesMs?: number | undefined;
  /** What was sent before still arrives at an end that has not noticed. Default false. */
  readonly deliverInFlight?: boolean;
}

export interface SentFrame {
  readonly from: Side;
  readonly link: number;
  readonly frame: Frame;
}

interface Message {
  readonly at: number;
  readonly order: number;
  readonly to: Side;
  readonly link: SimulatedLink;
  readonly bytes: Uint8Array;
}

interface SimulatedLink {
  readonly id: number;
  /** One way, towards each end. */
  readonly latencyMs: Record<Side, number>;
  readonly attached: Record<Side, boolean>;
  /** When an end is to notice the loss; infinite when only its heartbeat tells. */
  readonly noticeAt: Record<Side, number>;
  /** Nothing is taken from this end's session, as from one whose socket is full. */
  readonly stalled: Record<Side, boolean>;
  inFlightBytes: Record<Side, number>;
  lost: boolean;
}

/** Some TLS records, as a socket buffer would. */
const DEFAULT_LINK_BYTES = 131_072;

/** Four bytes of length, so that what a poll has written can be taken apart again. */
const lengthFraming: Framing = {
  headerBytes: () => 4,
  writeHeader: (out, at, length) => new DataView(out.buffer, out.byteOffset).setUint32(at, length),
};

export function otherSide(side: Side): Side {
  return side === "edge" ? "agent" : "edge";
}

export class Pair {
  now = 1_000;
  readonly edge: ModelApplication;
  readonly agent: ModelApplication;
  /** With `capture`: every frame, in the order of sending. */
  readonly transcript: SentFrame[] = [];
  /** Called for every frame when it is sent; true loses its link before the frame arrives. */
  loseAt: ((sent: SentFrame) => boolean) | undefined;
  readonly #capture: boolean;
  readonly #observe: PairOptions["observe"];
  readonly #latencyMs: number;
  readonly #linkBytes: number;
  readonly #writer = new FrameWriter(new Uint8Array(65_536), lengthFraming);
  readonly #links = new Map<number, SimulatedLink>();
  /** A binary heap is not worth it: some dozens of messages are in flight. Kept in order of delivery. */
  #inFlight: Message[] = [];
  #order = 0;
  #nextLink = 1;

  constructor(options: PairOptions = {}) {
    const { maxStreams = 1_000, initialCredit = 65_536 } = options;
    const session = (role: Side) => new Session({ role, maxStreams, initialCredit, ...options[role] });
    this.edge = new ModelApplication("edge", session("edge"));
    this.agent = new ModelApplication("agent", session("agent"));
    this.edge.peer = this.agent;
    this.agent.peer = this.edge;
    this.#capture = options.capture ?? false;
    this.#observe = options.observe;
    this.#latencyMs = options.latencyMs ?? 10;
    this.#linkBytes = options.linkBytes ?? DEFAULT_LINK_BYTES;
    for (let count = options.links ?? 1; count > 0; count -= 1) this.addLink();
  }

  /** The links that both ends still have. */
  get liveLinks(): number[] {
    return [...this.#links.values()].filter((link) => !link.lost).map((link) => link.id);
  }

  end(side: Side): ModelApplication {
    return side === "edge" ? this.edge : this.agent;
  }

  addLink(
    latencyMs: { toEdge: number; toAgent: number } = { toEdge: this.#latencyMs, toAgent: this.#latencyMs },
  ): number {
    const link: SimulatedLink = {
      id: this.#nextLink,
      latencyMs: { edge: latencyMs.toEdge, agent: latencyMs.toAgent },
      attached: { edge: true, agent: true },
      noticeAt: { edge: Number.POSITIVE_INFINITY, agent: Number.POSITIVE_INFINITY },
      stalled: { edge: false, agent: false },
      inFlightBytes: { edge: 0, agent: 0 },
      lost: false,
    };
    this.#nextLink += 1;
    this.#links.set(link.id, link);
    this.edge.session.attach(link.id, this.now);
    this.agent.session.attach(link.id, this.now);
    return link.id;
  }

  /** The link carries nothing any more. */
  loseLink(id: number, loss: LinkLoss = {}): void {
    const link = this.#link(id);
    const { edgeNoticesMs, agentNoticesMs } = { edgeNoticesMs: 0, agentNoticesMs: 0, ...loss };
    link.lost = true;
    if (edgeNoticesMs !== undefined) link.noticeAt.edge = this.now + edgeNoticesMs;
    if (agentNoticesMs !== undefined) link.noticeAt.agent = this.now + agentNoticesMs;
    if (loss.deliverInFlight !== true) this.#inFlight = this.#inFlight.filter((message) => message.link !== link);
    this.#notice();
  }

  /** The socket of `side` takes nothing until `unstall`. */
  stall(id: number, side: Side): void {
    this.#link(id).stalled[side] = true;
  }

  unstall(id: number, side: Side): void {
    this.#link(id).stalled[side] = false;
  }

  /** Hands bytes to a session as if its peer had sent them. */
  inject(to: Side, message: Uint8Array, link = 1): void {
    this.end(to).session.receive(link, message, this.now);
    this.#dispatch();
  }

  /** Delivers everything until both ends have nothing to send and nothing is under way. Heartbeats rest meanwhile. */
  settle(): void {
    for (let steps = 0; ; steps += 1) {
      if (steps > 2_000_000) throw new Error("the pair does not come to rest");
      this.#pull();
      const next = this.#nextHappening();
      if (next === undefined) return;
      this.#advance(next);
    }
  }

  /** Lets `ms` pass, heartbeats included. */
  run(ms: number): void {
    const until = this.now + ms;
    for (;;) {
      this.#pull();
      const next = Math.min(
        this.#nextHappening() ?? Number.POSITIVE_INFINITY,
        this.edge.session.nextTimeout() ?? Number.POSITIVE_INFINITY,
        this.agent.session.nextTimeout() ?? Number.POSITIVE_INFINITY,
      );
      if (next > until) break;
      this.#advance(next);
      this.#tick();
    }
    this.now = until;
    this.#pull();
  }

  /** The frames sent so far but signs of life, one line each, for a test that reads like a conversation. */
  lines(): string[] {
    const said = this.transcript.filter(({ frame }) => frame.type !== "ping" && frame.type !== "pong");
    return said.map(({ from, link, frame }) => {
      const arrow = from === "edge" ? "edge → agent" : "agent → edge";
      return `${arrow} ${link}: ${describeFrame(frame)}`;
    });
  }

  #link(id: number): SimulatedLink {
    const link = this.#links.get(id);
    if (link === undefined) throw new Error(`no link ${id}`);
    return link;
  }

  #nextHappening(): number | undefined {
    let next = this.#inFlight[0]?.at;
    for (const link of this.#links.values()) {
      for (const side of ["edge", "agent"] as const) {
        const at = link.attached[side] ? link.noticeAt[side] : Number.POSITIVE_INFINITY;
        if (at < (next ?? Number.POSITIVE_INFINITY)) next = at;
      }
    }
    return next;
  }

  #advance(to: number): void {
    this.now = Math.max(this.now, to);
    this.#notice();
    for (
      let message = this.#inFlight[0];
      message !== undefined && message.at <= this.now;
      message = this.#inFlight[0]
    ) {
      this.#inFlight.shift();
      message.link.inFlightBytes[message.to] -= message.bytes.length;
      if (message.link.attached[message.to]) {
        this.#observe?.("arrived", {
          from: otherSide(message.to),
          link: message.link.id,
          frame: decodeFrame(message.bytes),
        });
        this.end(message.to).session.receive(message.link.id, message.bytes, this.now);
        this.#dispatch();
      }
    }
  }

  #tick(): void {
    for (const { session } of [this.edge, this.agent]) {
      const due = session.nextTimeout();
      if (due !== undefined && due <= this.now) session.tick(this.now);
    }
    this.#dispatch();
  }

  #notice(): void {
    for (const link of this.#links.values()) {
      for (const side of ["edge", "agent"] as const) {
        if (!link.attached[side] || link.noticeAt[side] > this.now) continue;
        link.attached[side] = false;
        this.end(side).session.detach(link.id, this.now);
      }
      if (!link.attached.edge && !link.attached.agent) this.#links.delete(link.id);
    }
    this.#dispatch();
  }

  #dispatch(): void {
    for (const application of [this.edge, this.agent]) {
      const { session, side } = application;
      for (let event = session.takeEvent(); event !== undefined; event = session.takeEvent()) {
        if (event.type === "linkLost") this.#closedBy(side, event.link);
        application.handle(event);
      }
    }
  }

  /** An end has given a link up: the other end hears of it when the close arrives, unless the link is dead. */
  #closedBy(side: Side, id: number): void {
    const link = this.#links.get(id);
    if (link === undefined) return;
    link.attached[side] = false;
    if (!link.lost) link.noticeAt[otherSide(side)] = this.now + link.latencyMs[otherSide(side)];
    link.lost = true;
  }

  #pull(): void {
    this.#dispatch();
    for (const application of [this.edge, this.agent]) {
      for (const link of this.#links.values()) this.#pullLink(application, link);
    }
  }

  #pullLink({ session, side }: ModelApplication, link: SimulatedLink): void {
    const to = otherSide(side);
    const writer = this.#writer;
    while (
      link.attached[side] &&
      !link.stalled[side] &&
      link.inFlightBytes[to] < this.#linkBytes &&
      session.wantsWrite(link.id)
    ) {
      writer.clear();
      session.poll(link.id, writer, this.now);
      // What a poll finishes is told at once.
      this.#dispatch();
      if (writer.used === 0) return;
      const view = new DataView(writer.bytes.buffer);
      for (let at = 0; at < writer.used; ) {
        const length = view.getUint32(at);
        this.#sent(side, link, writer.bytes.slice(at + 4, at + 4 + length));
        at += 4 + length;
      }
    }
  }

  #sent(from: Side, link: SimulatedLink, bytes: Uint8Array): void {
    const to = otherSide(from);
    if (this.#capture || this.loseAt !== undefined || this.#observe !== undefined) {
      const sent: SentFrame = { from, link: link.id, frame: decodeFrame(bytes) };
      this.#observe?.("sent", sent);
      if (this.#capture) this.transcript.push(sent);
      if (!link.lost && this.loseAt?.(sent) === true) this.loseLink(link.id);
    }
    if (link.lost) return;
    const message: Message = { at: this.now + link.latencyMs[to], order: this.#order, to, link, bytes };
    this.#order += 1;
    link.inFlightBytes[to] += bytes.length;
    let index = this.#inFlight.length;
    while (index > 0 && (this.#inFlight[index - 1]?.at ?? 0) > message.at) index -= 1;
    this.#inFlight.splice(index, 0, message);
  }
}

/** A frame in one line: what a reader of a conversation wants to know of it. */
export function describeFrame(frame: Frame): string {
  switch (frame.type) {
    case "hello":
    case "welcome":
    case "goAway":
      return frame.type;
    case "ping":
    case "pong":
      return `${frame.type} ${frame.token}`;
    case "open":
      return `open ${frame.stream} ${frame.target}`;
    case "accept":
      return `accept ${frame.stream}`;
    case "data":
      return `data ${frame.stream} ${frame.offset}+${frame.bytes.length}`;
    case "end":
      return `end ${frame.stream} ${frame.offset}`;
    case "reset":
      return `reset ${frame.stream} code ${frame.code}`;
    case "closed":
      return `closed ${frame.stream}`;
    case "credit":
      return `credit ${frame.stream} ${frame.consumed}/${frame.limit}${frame.endConsumed ? " end" : ""}`;
    case "resume": {
      const kind = frame.answers === 0 ? `request ${frame.epoch}` : `answer ${frame.answers}`;
      return `resume ${frame.stream} ${kind} from ${frame.received}${frame.endReceived ? " end" : ""}`;
    }
  }
}
