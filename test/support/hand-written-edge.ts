import { randomBytes } from "node:crypto";
import { CloseCode, type Hello, type OpenRefusal, resetReason, Session } from "../../packages/protocol/src/index.ts";
import {
  awaitHello,
  createToken,
  deriveVerifier,
  Link,
  SessionDriver,
  sendWelcome,
  type TunnelPeer,
  TunnelServer,
  type TunnelStream,
} from "../../packages/tunnel/src/index.ts";
import { pollUntil, withDeadline } from "./deadline.ts";
import { testCertificate } from "./tunnel-ends.ts";

/** One session as this edge sees it. */
export interface EdgeSide {
  readonly id: string;
  readonly hello: Hello;
  readonly driver: SessionDriver;
  /** What GO_AWAY of the agent said. */
  readonly goneAway: string[];
  readonly ended: Promise<{ code: number; reason: string }>;
}

/** One stream that was opened towards the agent. */
export interface OpenedStream {
  readonly stream: TunnelStream;
  /** The address that the agent dialled, or why it did not: `reset forbidden`. */
  readonly answer: Promise<string>;
  /** How the stream ended: `finished`, or `reset` with the reason and who decided. */
  readonly end: Promise<string>;
  /** Bytes from the agent so far; credit for them goes back at once. */
  readonly received: () => Buffer;
}

export interface HandWrittenEdgeOptions {
  /** Default: a free port. */
  readonly port?: number;
  /** Takes a link over instead of the edge when it returns true. */
  readonly onHello?: (link: Link, hello: Hello) => boolean;
  readonly versions?: readonly number[];
  readonly resumeTimeoutMs?: number;
}

/**
 * An edge by hand, on a real tunnel port with TLS and authentication, which does what a test tells it and may lie. The
 * caller awaits `stop()`.
 */
export class HandWrittenEdge {
  readonly token = createToken();
  readonly certificate = testCertificate();
  readonly hellos: Hello[] = [];
  /** The edge's ends of all links that were ever greeted, oldest first. */
  readonly links: Link[] = [];
  readonly sessions: EdgeSide[] = [];
  onHello: ((link: Link, hello: Hello) => boolean) | undefined;
  port = 0;
  readonly #options: HandWrittenEdgeOptions;
  readonly #known = new Map<string, EdgeSide>();
  #server: TunnelServer;

  private constructor(options: HandWrittenEdgeOptions) {
    this.#options = options;
    this.onHello = options.onHello;
    this.#server = this.#makeServer(options.port ?? 0);
  }

  static async start(options: HandWrittenEdgeOptions = {}): Promise<HandWrittenEdge> {
    const edge = new HandWrittenEdge(options);
    ({ port: edge.port } = await edge.#server.listen());
    return edge;
  }

  /** The latest session. */
  get session(): EdgeSide {
    const session = this.sessions.at(-1);
    if (session === undefined) throw new Error("no agent has connected");
    return session;
  }

  /** Once the latest of `sessions` sessions has `links` links. */
  async connected({ links = 1, sessions = 1 } = {}): Promise<EdgeSide> {
    return pollUntil(
      () =>
        this.sessions.length >= sessions && this.session.driver.session.linkCount === links ? this.session : undefined,
      { what: `${links} links of session ${sessions}` },
    );
  }

  /** Opens a stream on the latest session. */
  open(target: string): OpenedStream {
    let answer: (text: string) => void = () => undefined;
    let end: (text: string) => void = () => undefined;
    const chunks: Buffer[] = [];
    const answered = new Promise<string>((resolve) => {
      answer = resolve;
    });
    const ended = new Promise<string>((resolve) => {
      end = resolve;
    });
    const connection = randomBytes(6).toString("hex");
    const stream = this.session.driver.open(
      { connection, target, deployment: "test", partner: "192.0.2.1:5000" },
      (opened) => ({
        onAccept: (address) => answer(address),
        onData: (bytes) => {
          chunks.push(Buffer.from(bytes));
          opened.consume(bytes.length);
        },
        onEnd: () => opened.consumeEnd(),
        onWritable: () => undefined,
        onReset: (code, by) => {
          answer(`reset ${resetReason(code)}`);
          end(`reset ${resetReason(code)} by ${by}`);
        },
        onFinished: () => end("finished"),
      }),
    );
    if (typeof stream === "string") throw new Error(`not opened: ${stream satisfies OpenRefusal}`);
    return {
      stream,
      answer: withDeadline(answered, { what: `answer to OPEN of ${target}` }),
      end: ended,
      received: () => Buffer.concat(chunks),
    };
  }

  /** Cuts every link, without a close frame. */
  cutLinks(): void {
    for (const link of this.links) if (!link.dead) link.destroy();
  }

  /** Does not know any session from now on; links stay. */
  forgetSessions(): void {
    this.#known.clear();
  }

  /** Frees the port and cuts all links; sessions stay known. */
  async goDown(): Promise<void> {
    await this.#server.close();
    this.cutLinks();
  }

  /** Listens again where it did. */
  async comeBack(): Promise<void> {
    this.#server = this.#makeServer(this.port);
    await this.#server.listen();
  }

  async stop(): Promise<void> {
    for (const { driver } of this.sessions) driver.close(CloseCode.drain, "test is over");
    await this.goDown();
  }

  #makeServer(port: number): TunnelServer {
    return new TunnelServer({
      listen: { host: "127.0.0.1", port },
      tls: this.certificate,
      credentials: (client) => (client === "lan" ? [deriveVerifier(this.token, "lan")] : []),
      onPeer: (peer) => this.#greet(peer),
      onEvent: () => undefined,
      ...(this.#options.versions === undefined ? {} : { versions: this.#options.versions }),
    });
  }

  #greet(peer: TunnelPeer): void {
    const link = new Link(peer, "edge");
    this.links.push(link);
    awaitHello(link, {
      timeoutMs: 5_000,
      onGreeting: (hello) => {
        this.hellos.push(hello);
        if (this.onHello?.(link, hello) !== true) this.take(link, hello);
      },
      onFailed: () => undefined,
    });
  }

  /** What an honest edge does with a HELLO. */
  take(link: Link, hello: Hello): void {
    const known = this.#known.get(hello.session);
    if (hello.session !== "" && known === undefined) return link.close(CloseCode.sessionUnknown, "session unknown");
    const side = known ?? this.#begin(hello);
    sendWelcome(link, {
      edge: "edge-by-hand",
      session: side.id,
      resumed: known !== undefined,
      features: [],
      resumeTimeoutMs: this.#options.resumeTimeoutMs ?? 10_000,
    });
    side.driver.attach(link);
  }

  #begin(hello: Hello): EdgeSide {
    const id = randomBytes(16).toString("hex");
    const goneAway: string[] = [];
    let end: (how: { code: number; reason: string }) => void = () => undefined;
    const ended = new Promise<{ code: number; reason: string }>((resolve) => {
      end = resolve;
    });
    const driver = new SessionDriver(
      new Session({
        role: "edge",
        maxStreams: hello.maxStreams,
        initialCredit: hello.initialCredit,
        resumeTimeoutMs: this.#options.resumeTimeoutMs ?? 10_000,
      }),
      {
        onOpen: () => undefined,
        onGoAway: (_code, reason) => goneAway.push(reason),
        onDetached: () => undefined,
        onLinkClosed: () => undefined,
        onEnded: (code, reason) => {
          this.#known.delete(id);
          end({ code, reason });
        },
      },
    );
    const side: EdgeSide = { id, hello, driver, goneAway, ended };
    this.sessions.push(side);
    this.#known.set(id, side);
    return side;
  }
}
