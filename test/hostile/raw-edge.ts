import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { WebSocket } from "ws";
import { decodeFrame, encodeFrame, type Frame, type Hello, ProtocolError } from "../../packages/protocol/src/index.ts";
import {
  certificatePin,
  createToken,
  deriveVerifier,
  encodeToken,
  formatPairingLine,
  type TunnelPeer,
  TunnelServer,
} from "../../packages/tunnel/src/index.ts";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";
import { testCertificate } from "../support/tunnel-ends.ts";

const agentProgram = fileURLToPath(new URL("../../packages/agent/bin/sallyport-agent.js", import.meta.url));

/** One link of the agent as the hostile edge sees it; nothing is answered by itself. */
export class RawLink {
  readonly webSocket: WebSocket;
  readonly socket: TunnelPeer["socket"];
  readonly hello: Hello;
  /** Everything from the agent after HELLO, oldest first. */
  readonly frames: Frame[] = [];
  /** An edge that is to be believed for longer than a heartbeat has to. */
  answersPings = true;
  readonly ended: Promise<{ readonly code: number; readonly reason: string }>;
  /** Look at the frames again. */
  readonly #waiters = new Set<() => void>();

  constructor(peer: TunnelPeer, hello: Hello) {
    this.webSocket = peer.webSocket;
    this.socket = peer.socket;
    this.hello = hello;
    this.ended = new Promise((resolve) => {
      peer.webSocket.once("close", (code, reason) => resolve({ code, reason: reason.toString("latin1") }));
    });
  }

  take(message: Uint8Array): void {
    try {
      const frame = decodeFrame(message);
      this.frames.push(frame);
      if (frame.type === "ping" && this.answersPings) this.send({ type: "pong", token: frame.token });
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
    }
    for (const look of this.#waiters) look();
  }

  send(...messages: (Frame | Uint8Array)[]): void {
    for (const message of messages) {
      this.webSocket.send(message instanceof Uint8Array ? message : encodeFrame(message), () => undefined);
    }
  }

  /** As a friendly edge would. */
  welcome(newSession = "5e".repeat(16)): void {
    const session = this.hello.session === "" ? newSession : this.hello.session;
    const resumed = this.hello.session !== "";
    this.send({ type: "welcome", edge: "hostile", session, resumed, features: [], resumeTimeoutMs: 1_000 });
  }

  /** Bytes below WebSocket, straight into TLS. */
  sendRaw(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** The first frame that matches. */
  async awaitFrame(matches: (frame: Frame) => boolean, what = "a frame of the agent"): Promise<Frame> {
    let look: () => void = () => undefined;
    const found = new Promise<Frame>((resolve) => {
      look = () => {
        const frame = this.frames.find(matches);
        if (frame !== undefined) resolve(frame);
      };
    });
    this.#waiters.add(look);
    look();
    try {
      return await withDeadline(found, { what, timeoutMs: 20_000 });
    } finally {
      this.#waiters.delete(look);
    }
  }

  async closeCode(): Promise<number> {
    return (await withDeadline(this.ended, { what: "the agent closes the link", timeoutMs: 8_000 })).code;
  }
}

/** The most that an agent's configuration, its files and its program need to be told. */
export interface VictimOptions {
  readonly config: Readonly<Record<string, unknown>>;
  /** Command in front of the program, such as one that gives it name spaces of its own. */
  readonly launcher?: readonly string[];
}

/**
 * An edge by hand that holds the right key and lies, and a real agent process that was paired with it. The caller awaits
 * `stop()`.
 */
export class RawEdge {
  readonly links: RawLink[] = [];
  /** Called for each HELLO instead of `welcome`, while set. */
  onHello: ((link: RawLink) => void) | undefined;
  readonly #token = createToken();
  readonly #certificate = testCertificate();
  readonly #server: TunnelServer;
  #directory: TempDir | undefined;
  #agent: TestProcess | undefined;
  #metricsPort = 0;

  private constructor() {
    this.#server = new TunnelServer({
      listen: { host: "127.0.0.1", port: 0 },
      tls: this.#certificate,
      credentials: () => [deriveVerifier(this.#token, "lan")],
      onPeer: (peer) => this.#greet(peer),
      onEvent: () => undefined,
    });
  }

  static async start({ config, launcher = [] }: VictimOptions): Promise<RawEdge> {
    const edge = new RawEdge();
    const { port } = await edge.#server.listen();
    edge.#directory = await makeTempDir();
    const { path } = edge.#directory;
    edge.#metricsPort = await findFreePort();
    const der = Buffer.from(edge.#certificate.cert.replaceAll(/-----[A-Z ]+-----|\s/g, ""), "base64");
    const line = formatPairingLine({
      address: `127.0.0.1:${port}`,
      client: "lan",
      token: encodeToken(edge.#token),
      pin: certificatePin(der),
      certificate: der.toString("base64"),
    });
    const credentialsFile = join(path, "edge.credentials");
    await runSuccessfully({
      command: process.execPath,
      args: [agentProgram, "join", "--out", credentialsFile],
      input: `${line}\n`,
    });
    await mkdir(join(path, "state"), { mode: 0o700 });
    const configPath = join(path, "agent.yaml");
    await writeFile(
      configPath,
      JSON.stringify({
        name: "victim",
        stateDir: join(path, "state"),
        edges: [{ credentialsFile }],
        links: 1,
        reconnect: { min: "10ms", max: "100ms" },
        metrics: { listen: `127.0.0.1:${edge.#metricsPort}` },
        ...config,
      }),
    );
    const [command, ...args] = [...launcher, process.execPath, agentProgram, "run", "--config", configPath];
    edge.#agent = await TestProcess.start({
      command: command!,
      args,
      maxOutputBytes: 16 * 1_048_576,
      stopSignal: "SIGKILL",
    });
    await edge.link(1);
    return edge;
  }

  get agent(): TestProcess {
    if (this.#agent === undefined) throw new Error("not started");
    return this.#agent;
  }

  /** The newest link, once there were at least `count`. */
  link(count = 1): Promise<RawLink> {
    return pollUntil(() => (this.links.length >= count ? this.links.at(-1) : undefined), {
      what: `link ${count} of the agent`,
    });
  }

  /** The sum of all series of one of the agent's metrics. */
  async metric(name: string): Promise<number> {
    const response = await fetch(`http://127.0.0.1:${this.#metricsPort}/metrics`, {
      headers: { connection: "close" },
    });
    const lines = (await response.text()).split("\n").filter((line) => line.startsWith(name));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  /** The lines of the agent's log with this message. */
  said(message: string): Record<string, unknown>[] {
    return this.agent.stdout
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ msg }) => msg === message);
  }

  /** As `said`, once there are `count` of them. */
  heard(message: string, count: number): Promise<Record<string, unknown>[]> {
    return pollUntil(
      () => {
        const lines = this.said(message);
        return lines.length >= count ? lines : undefined;
      },
      { what: `${count} lines "${message}"` },
    );
  }

  async stop(): Promise<void> {
    await this.#agent?.stop();
    for (const { webSocket } of this.links) webSocket.terminate();
    await this.#server.close();
    await this.#directory?.remove();
  }

  #greet(peer: TunnelPeer): void {
    let link: RawLink | undefined;
    peer.webSocket.binaryType = "nodebuffer";
    peer.webSocket.on("error", () => undefined);
    peer.webSocket.on("message", (data) => {
      const message = data as Buffer;
      if (link !== undefined) return link.take(message);
      const frame = decodeFrame(message);
      if (frame.type !== "hello") throw new Error("the agent does not say HELLO first");
      link = new RawLink(peer, frame);
      this.links.push(link);
      if (this.onHello === undefined) link.welcome();
      else this.onHello(link);
    });
  }
}
