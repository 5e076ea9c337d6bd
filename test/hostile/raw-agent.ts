import { randomBytes } from "node:crypto";
import { Agent } from "node:https";
import type { Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { WebSocket } from "ws";
import { readCredentials } from "../../packages/agent/src/credentials-file.ts";
import { decodeFrame, encodeFrame, type Frame, type Hello, ProtocolError } from "../../packages/protocol/src/index.ts";
import {
  connectTunnel,
  decodeToken,
  pairingCertificate,
  parsePairingLine,
  splitAddress,
} from "../../packages/tunnel/src/index.ts";
import { withDeadline } from "../support/deadline.ts";

/** What an agent needs to be let in, as `connectTunnel` takes it. */
export type AgentCredentials = Awaited<ReturnType<typeof readCredentials>>;

/** The credentials that a pairing line carries. */
export function credentialsOf(pairingLine: string): AgentCredentials {
  const pairing = parsePairingLine(pairingLine.trim());
  const certificate = pairingCertificate(pairing);
  return {
    address: splitAddress(pairing.address),
    client: pairing.client,
    token: decodeToken(pairing.token)!,
    ...(certificate === undefined ? {} : { certificate }),
  };
}

/** How the WebSocket ended: the code of the close frame, or 1006 where none came. */
export interface WebSocketEnd {
  readonly code: number;
  readonly reason: string;
  /** Since the upgrade. */
  readonly livedMs: number;
}

/** All agents of a test file, so that its hooks can end what a failing test left. */
const living = new Set<RawAgent>();

let lastSource = 0;

/** A loopback address that nobody has connected from: what one agent does wrong is held against its source. */
export function freshSource(): string {
  lastSource += 1;
  return `127.77.${lastSource >> 8}.${lastSource & 0xff}`;
}

/** The reasons of a connection that the edge resets before TLS, seen by an agent that chooses its source. */
export const RESET_BEFORE_TLS = /^(?:refused|proxy)$/;

/** Ends every agent that still lives. */
export function destroyRawAgents(): void {
  for (const agent of living) agent.destroy();
}

/**
 * An agent by hand behind a real authentication, which says what a test tells it, byte by byte. It answers nothing by itself
 * but WebSocket pings and closes. The caller calls `destroy()`.
 */
export class RawAgent {
  readonly webSocket: WebSocket;
  readonly socket: TLSSocket;
  readonly process = randomBytes(16).toString("hex");
  /** Everything from the edge, oldest first. */
  readonly frames: Frame[] = [];
  readonly ended: Promise<WebSocketEnd>;
  readonly #connectedAt = performance.now();
  /** Look at the frames again; each leaves when it has found its own or given up. */
  readonly #waiters = new Set<() => void>();

  private constructor(webSocket: WebSocket, socket: TLSSocket) {
    this.webSocket = webSocket;
    this.socket = socket;
    living.add(this);
    webSocket.binaryType = "nodebuffer";
    webSocket.on("error", () => undefined);
    socket.on("error", () => undefined);
    this.ended = new Promise((resolve) => {
      webSocket.once("close", (code, reason) => {
        living.delete(this);
        resolve({ code, reason: reason.toString("latin1"), livedMs: performance.now() - this.#connectedAt });
      });
    });
    webSocket.on("message", (message) => {
      try {
        this.frames.push(decodeFrame(message as Buffer));
        for (const look of this.#waiters) look();
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
      }
    });
  }

  /** Connects from `localAddress`, by default one of its own. */
  static async connect(credentials: AgentCredentials, localAddress = freshSource()): Promise<RawAgent> {
    const agent = new Agent({ localAddress, maxCachedSessions: 0 } as object);
    const { webSocket, socket } = await connectTunnel({ ...credentials, agent, timeoutMs: 5_000 });
    return new RawAgent(webSocket, socket);
  }

  /** Connects, says HELLO and waits for WELCOME. */
  static async greeted(credentials: AgentCredentials, hello: Partial<Hello> = {}): Promise<RawAgent> {
    const agent = await RawAgent.connect(credentials);
    agent.hello(hello);
    await agent.awaitFrame("welcome");
    return agent;
  }

  /** One whole WebSocket message. */
  send(...messages: (Frame | Uint8Array)[]): void {
    for (const message of messages) {
      this.webSocket.send(message instanceof Uint8Array ? message : encodeFrame(message), () => undefined);
    }
  }

  hello(changes: Partial<Hello> = {}): void {
    this.send({ ...validHello(this.process), ...changes });
  }

  /** Bytes below WebSocket, straight into TLS. */
  sendRaw(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** The latest frame of this type that matches, waiting for it if there is none yet. */
  async awaitFrame<Type extends Frame["type"]>(
    type: Type,
    matches: (frame: Extract<Frame, { type: Type }>) => boolean = () => true,
    timeoutMs = 5_000,
  ): Promise<Extract<Frame, { type: Type }>> {
    type Wanted = Extract<Frame, { type: Type }>;
    let look: () => void = () => undefined;
    const found = new Promise<Wanted>((resolve) => {
      look = () => {
        const frame = this.frames.findLast((one): one is Wanted => one.type === type && matches(one as Wanted));
        if (frame !== undefined) resolve(frame);
      };
    });
    this.#waiters.add(look);
    look();
    try {
      return await withDeadline(found, { what: `frame ${type}`, timeoutMs });
    } finally {
      this.#waiters.delete(look);
    }
  }

  /** The code with which the edge ends the link. */
  async closeCode(timeoutMs = 8_000): Promise<number> {
    return (await withDeadline(this.ended, { what: "the edge closes the link", timeoutMs })).code;
  }

  destroy(): void {
    this.webSocket.terminate();
    (this.socket as Socket).destroy();
  }
}

export function validHello(process: string): { readonly type: "hello" } & Hello {
  return {
    type: "hello",
    agent: "agent-by-hand",
    process,
    session: "",
    features: [],
    initialCredit: 65_536,
    maxStreams: 100,
    links: 2,
  };
}
