import { once } from "node:events";
import { execFileSync } from "node:child_process";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Session } from "../../packages/protocol/src/index.ts";
import {
  connectTunnel,
  createToken,
  deriveVerifier,
  Link,
  SessionDriver,
  Splice,
  type SpliceEnd,
  type StreamHandler,
  type TunnelPeer,
  TunnelServer,
  type TunnelStream,
} from "../../packages/tunnel/src/index.ts";
import { withDeadline } from "./deadline.ts";

/** A self-signed certificate for loopback, made by openssl. */
export function testCertificate(): { key: string; cert: string } {
  const folder = mkdtempSync(join(tmpdir(), "sallyport-certificate-"));
  try {
    const [keyFile, certFile] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "10"];
    execFileSync("openssl", ["req", "-x509", ...curve, ...subject, "-keyout", keyFile, "-out", certFile], {
      stdio: "ignore",
    });
    return { key: readFileSync(keyFile, "utf8"), cert: readFileSync(certFile, "utf8") };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** How both ends of one partner connection ended, each by its splice. */
export interface SplicedConnection {
  readonly edgeEnd: Promise<SpliceEnd>;
  readonly agentEnd: Promise<SpliceEnd>;
}

/**
 * Both ends of a tunnel in one process over real sockets and TLS: a listener whose connections are spliced to streams, and
 * an agent that connects them to `targetPort`. Resumption waits `resumeTimeoutMs`.
 */
export class TunnelEnds {
  readonly edge: SessionDriver;
  readonly agent: SessionDriver;
  port = 0;
  readonly connections: SplicedConnection[] = [];
  readonly #closers: (() => Promise<unknown> | void)[] = [];
  readonly #options: TunnelEndsOptions;
  #server: TunnelServer | undefined;
  #connectLink: (() => Promise<Link>) | undefined;
  #agentEnds: ((end: SpliceEnd) => void)[] = [];

  private constructor(options: TunnelEndsOptions) {
    this.#options = options;
    const session = { maxStreams: 10_000, initialCredit: 16_384, resumeTimeoutMs: options.resumeTimeoutMs ?? 5_000 };
    const ignore = { onGoAway: noop, onDetached: noop, onLinkClosed: noop, onEnded: noop };
    this.edge = new SessionDriver(new Session({ role: "edge", ...session }), { ...ignore, onOpen: () => undefined });
    this.agent = new SessionDriver(new Session({ role: "agent", ...session }), {
      ...ignore,
      onOpen: (_open, stream) => this.#dial(stream),
    });
  }

  static async start(options: TunnelEndsOptions): Promise<TunnelEnds> {
    const ends = new TunnelEnds(options);
    const certificate = testCertificate();
    const token = createToken();
    const verifier = deriveVerifier(token, "lan");
    const peers: ((peer: TunnelPeer) => void)[] = [];
    const server = new TunnelServer({
      listen: { host: "127.0.0.1", port: 0 },
      tls: certificate,
      credentials: () => [verifier],
      onPeer: (peer) => peers.shift()?.(peer),
      onEvent: noop,
    });
    ends.#server = server;
    const { port } = await server.listen();
    ends.#connectLink = async () => {
      const accepted = new Promise<void>((resolve) => {
        peers.push((peer) => {
          ends.edge.attach(new Link(peer, "edge"));
          resolve();
        });
      });
      const connection = await connectTunnel({
        address: { host: "127.0.0.1", port },
        certificate: certificate.cert,
        client: "lan",
        token,
      });
      const link = new Link(connection, "agent");
      ends.agent.attach(link);
      await accepted;
      return link;
    };
    await ends.addLink();
    const listener = createServer({ allowHalfOpen: true, pauseOnConnect: true, highWaterMark: 65_536 }, (socket) =>
      ends.#accept(socket),
    );
    listener.listen(0, "127.0.0.1");
    await once(listener, "listening");
    ends.port = (listener.address() as AddressInfo).port;
    ends.#closers.push(() => void listener.close());
    return ends;
  }

  /** One more link of the session; returns the agent's end of it. */
  async addLink(): Promise<Link> {
    if (this.#connectLink === undefined) throw new Error("not started");
    return withDeadline(this.#connectLink(), { what: "link" });
  }

  /** A partner's connection to the listener. */
  async connectPartner(): Promise<Socket> {
    const socket = connect({ port: this.port, host: "127.0.0.1", allowHalfOpen: true });
    socket.on("error", noop);
    await withDeadline(once(socket, "connect"), { what: "partner connected" });
    return socket;
  }

  async stop(): Promise<void> {
    this.edge.close(4000, "test is over");
    this.agent.close(4000, "test is over");
    for (const close of this.#closers) await close();
    await this.#server?.close();
  }

  #accept(socket: Socket): void {
    socket.on("error", noop);
    const edgeEnd = resolvers<SpliceEnd>();
    const agentEnd = resolvers<SpliceEnd>();
    this.connections.push({ edgeEnd: edgeEnd.promise, agentEnd: agentEnd.promise });
    this.#agentEnds.push(agentEnd.resolve);
    const request = { connection: "c", target: "t", deployment: "d", partner: "p" };
    const opened = this.edge.open(request, (stream) => {
      const splice = new Splice(socket, stream, this.#spliceOptions(edgeEnd.resolve));
      queueMicrotask(() => splice.start());
      return splice;
    });
    if (typeof opened === "string") socket.resetAndDestroy();
  }

  #dial(stream: TunnelStream): StreamHandler {
    const onEnd = this.#agentEnds.shift() ?? noop;
    const socket = connect({ port: this.#options.targetPort, host: "127.0.0.1", allowHalfOpen: true });
    socket.on("error", noop);
    socket.pause();
    const early: Uint8Array[] = [];
    let ended = false;
    socket.once("connect", () => {
      stream.accept("127.0.0.1:1");
      const splice = new Splice(socket, stream, this.#spliceOptions(onEnd));
      stream.handOver(splice);
      for (const bytes of early) splice.onData(bytes);
      if (ended) splice.onEnd();
      splice.start();
    });
    return {
      onAccept: noop,
      onData: (bytes) => void early.push(new Uint8Array(bytes)),
      onEnd: () => {
        ended = true;
      },
      onWritable: noop,
      onReset: () => void socket.destroy(),
      onFinished: noop,
    };
  }

  #spliceOptions(onEnd: (end: SpliceEnd) => void) {
    const { idleTimeoutMs = 0, halfCloseTimeoutMs = 0 } = this.#options;
    return { idleTimeoutMs, halfCloseTimeoutMs, onEnd };
  }
}

export interface TunnelEndsOptions {
  readonly targetPort: number;
  readonly resumeTimeoutMs?: number;
  readonly idleTimeoutMs?: number;
  readonly halfCloseTimeoutMs?: number;
}

/** `Promise.withResolvers`, which Node 20 does not have. */
function resolvers<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = noop;
  const promise = new Promise<T>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

function noop(): void {}
