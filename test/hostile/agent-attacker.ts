/** A hostile edge to which a real agent comes back again and again, for one attack each time; see `hostile-frames.ts`. */
import { randomBytes } from "node:crypto";
import { createServer as createTlsServer, type Server, type TLSSocket } from "node:tls";
import type { AddressInfo } from "node:net";
import { decodeFrame } from "../../packages/protocol/src/index.ts";
import { type TunnelPeer, TunnelServer, type Verifier } from "../../packages/tunnel/src/index.ts";
import { withDeadline } from "../support/deadline.ts";
import { drainedOrClosed } from "../support/socket-drain.ts";
import { type Attack, type Result, unlinkedBytes } from "./attack.ts";
import { edgeAnswer } from "./handshakes.ts";
import type { Position, Variant } from "./hostile-frames.ts";
import type { MarkedTarget } from "./marked-target.ts";
import { validFrames } from "./malformed-frames.ts";
import { RawLink } from "./raw-edge.ts";

export interface HostileEdgeOptions {
  readonly tls: { readonly key: string; readonly cert: string };
  readonly verifier: Verifier;
  /** Stands behind the agent as the service `echo`. */
  readonly target: MarkedTarget;
}

const TRANSFER_BYTES = 5_000;
const FAR_SIDE_BYTES = 2 * 1_048_576;
const PATIENCE_MS = 9_000;
/** An agent that was refused waits for up to five seconds. */
const RETURN_MS = 20_000;

/** Authenticates and greets as an edge does, and then attacks. The caller awaits `close()`. */
export class AgentAttacker {
  port = 0;
  readonly #options: HostileEdgeOptions;
  readonly #server: TunnelServer;
  /** Links of new sessions that wait for an attack; those that have died are skipped. At most a few. */
  readonly #arrived: RawLink[] = [];
  #onArrival: () => void = () => undefined;

  private constructor(options: HostileEdgeOptions) {
    this.#options = options;
    this.#server = new TunnelServer({
      listen: { host: "127.0.0.1", port: 0 },
      tls: options.tls,
      credentials: () => [options.verifier],
      onPeer: (peer) => this.#take(peer),
      onEvent: () => undefined,
    });
  }

  static async start(options: HostileEdgeOptions): Promise<AgentAttacker> {
    const attacker = new AgentAttacker(options);
    attacker.port = (await attacker.#server.listen()).port;
    return attacker;
  }

  async run(attack: Attack): Promise<Result> {
    const { variant } = attack;
    if (variant === undefined) throw new Error("an attack of nothing");
    const link = await withDeadline(this.#next(), { what: "the agent comes back", timeoutMs: RETURN_MS });
    const marker = randomBytes(8).toString("hex");
    try {
      if (attack.state !== "before greeting") link.welcome(randomBytes(16).toString("hex"));
      if (attack.state === "mid-transfer") await this.#transfer(link, marker);
      return { outcome: await this.#attack(link, variant, { attack, marker }), source: `127.0.0.1:${this.port}` };
    } finally {
      link.webSocket.terminate();
    }
  }

  async close(): Promise<void> {
    for (const link of this.#arrived) link.webSocket.terminate();
    await this.#server.close();
  }

  async #attack(link: RawLink, variant: Variant, context: { attack: Attack; marker: string }): Promise<string> {
    const { attack, marker } = context;
    const closed = link.ended.then(({ code }) => (code === 1006 ? "cut" : `closed ${code}`));
    const patience = (what: string) => withDeadline(closed, { what, timeoutMs: PATIENCE_MS });
    if (attack.state !== "before greeting") await this.#synchronise(link, 0);
    if (variant.farSideWrites === true) this.#options.target.write(marker, FAR_SIDE_BYTES);
    const at = this.#position(link);
    const seenBefore = this.#options.target.received(marker);
    if (variant.deaf === true) {
      link.socket.pause();
      const bytes = variant.bytes(at, 0);
      const endsAt = performance.now() + PATIENCE_MS;
      while (!link.socket.destroyed && performance.now() < endsAt) {
        if (!link.socket.write(bytes)) await drainedOrClosed(link.socket);
      }
      return link.socket.destroyed ? "cut" : "nothing";
    }
    link.answersPings = variant.silent !== true;
    for (let round = 0; round < (variant.rounds ?? 1) - 1; round += 1) {
      link.sendRaw(variant.bytes(at, round));
      const isThere = await Promise.race([closed.then(() => false), this.#synchronise(link, round + 1)]);
      if (!isThere) return closed;
    }
    link.sendRaw(variant.bytes(at, (variant.rounds ?? 1) - 1));
    if (variant.silent === true || attack.state === "before greeting") return patience("the agent ends the link");
    const stream = variant.stream?.(at) ?? at.stream;
    if (attack.expect.is === "reset") {
      const reset = link.awaitFrame((one) => one.type === "reset" && one.stream === stream, "a reset");
      return Promise.race([closed, reset.then((frame) => (frame.type === "reset" ? `reset ${frame.code}` : ""))]);
    }
    const answered = this.#synchronise(link, 1_000).then(() => {
      const frame = link.frames.find((one) => one.type === "reset" && one.stream === stream);
      return frame?.type === "reset" ? `reset ${frame.code}` : "ignored";
    });
    answered.catch(() => undefined);
    const outcome = await Promise.race([closed, answered]);
    const isLeaking = variant.inert === true && this.#options.target.received(marker) > seenBefore;
    return isLeaking ? `${outcome}, and bytes` : outcome;
  }

  async #synchronise(link: RawLink, token: number): Promise<true> {
    link.send({ type: "ping", token: 8_000_000 + token });
    await link.awaitFrame((frame) => frame.type === "pong" && frame.token === 8_000_000 + token, "a pong");
    return true;
  }

  #position(link: RawLink): Position {
    let limit = 0;
    for (const frame of link.frames) {
      if (frame.type === "accept" || frame.type === "credit" || frame.type === "resume")
        limit = Math.max(limit, frame.limit);
    }
    const { maxStreams } = link.hello;
    return {
      victim: "agent",
      stream: 1,
      sent: TRANSFER_BYTES,
      received: TRANSFER_BYTES,
      limit,
      maxStreams,
      foreignSession: "0".repeat(32),
    };
  }

  /** One stream is accepted and bytes have gone both ways. */
  async #transfer(link: RawLink, marker: string): Promise<void> {
    link.send({ ...validFrames.open, target: "echo", connection: "c-1" });
    await link.awaitFrame(({ type }) => type === "accept", "the agent's ACCEPT");
    link.send({ ...validFrames.data, bytes: Buffer.alloc(TRANSFER_BYTES, marker) });
    let received = 0;
    await link.awaitFrame((frame) => {
      if (frame.type !== "data") return false;
      received = frame.offset + frame.bytes.length;
      return received >= TRANSFER_BYTES;
    }, "the echo");
    await link.awaitFrame((frame) => frame.type === "credit" && frame.consumed >= TRANSFER_BYTES, "credit for it");
  }

  /** The agent's next link that asks for a new session. */
  async #next(): Promise<RawLink> {
    for (;;) {
      const link = this.#arrived.pop();
      if (link === undefined) {
        await new Promise<void>((resolve) => {
          this.#onArrival = resolve;
        });
      } else if (link.webSocket.readyState === link.webSocket.OPEN) return link;
    }
  }

  #take(peer: TunnelPeer): void {
    let link: RawLink | undefined;
    peer.webSocket.binaryType = "nodebuffer";
    peer.webSocket.on("error", () => undefined);
    peer.webSocket.on("message", (data) => {
      if (link !== undefined) return link.take(data as Buffer);
      const frame = decodeFrame(data as Buffer);
      if (frame.type !== "hello") throw new Error("the agent does not say HELLO first");
      // What an attack has left: the agent begins anew.
      if (frame.session !== "") return peer.webSocket.close(4404);
      link = new RawLink(peer, frame);
      this.#arrived.push(link);
      this.#onArrival();
    });
  }
}

/** Holds the right certificate and never becomes an edge: it answers the agent's request with what an attack sends. */
export class HandshakeAttacker {
  port = 0;
  readonly #verifier: Verifier;
  readonly #server: Server;
  readonly #sockets = new Set<TLSSocket>();
  #attack:
    | { readonly attack: Attack; readonly before: () => Promise<void>; readonly answered: (socket: TLSSocket) => void }
    | undefined;
  #earlier = "";
  #count = 0;

  private constructor({ tls, verifier }: Omit<HostileEdgeOptions, "target">) {
    this.#verifier = verifier;
    this.#server = createTlsServer({ ...tls, minVersion: "TLSv1.3", ALPNProtocols: ["http/1.1"] }, (socket) =>
      this.#serve(socket),
    );
  }

  static async start(options: Omit<HostileEdgeOptions, "target">): Promise<HandshakeAttacker> {
    const attacker = new HandshakeAttacker(options);
    await new Promise<void>((resolve) => attacker.#server.listen(0, "127.0.0.1", resolve));
    attacker.port = (attacker.#server.address() as AddressInfo).port;
    return attacker;
  }

  /** Resolves when the agent has hung up; its reason is in its metrics. `before` comes right before the answer. */
  async run(attack: Attack, before: () => Promise<void>): Promise<Result> {
    const answered = new Promise<TLSSocket>((resolve) => {
      this.#attack = { attack, before, answered: resolve };
    });
    const socket = await withDeadline(answered, { what: "the agent comes back", timeoutMs: 45_000 });
    await withDeadline(
      new Promise<void>((resolve) => (socket.closed ? resolve() : socket.once("close", () => resolve()))),
      {
        what: "the agent hangs up",
        timeoutMs: 15_000,
      },
    );
    return { outcome: "hung up", source: `127.0.0.1:${this.port}` };
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #serve(socket: TLSSocket): void {
    this.#sockets.add(socket);
    socket.once("close", () => this.#sockets.delete(socket));
    socket.on("error", () => undefined);
    let request = "";
    socket.on("data", (chunk: Buffer) => {
      request += chunk.toString("latin1");
      if (!request.endsWith("\r\n\r\n")) return;
      const next = this.#attack;
      this.#attack = undefined;
      if (next === undefined) return void socket.destroy();
      void next.before().then(() => {
        next.answered(socket);
        this.#answer(next.attack, socket, request);
      });
    });
  }

  #answer({ handshake, variant }: Attack, socket: TLSSocket, request: string): void {
    if (handshake === "stalled") return;
    const context = { request, socket, key: this.#verifier.key, earlier: this.#earlier };
    if (handshake !== undefined) {
      const { answer, proof } = edgeAnswer(handshake, context);
      this.#earlier = proof;
      socket.write(answer);
      return;
    }
    this.#count += 1;
    // Most in the place of an answer; some behind one that proves nothing, in the same chunk.
    const { answer } = edgeAnswer("wrong MAC", context);
    const bytes = unlinkedBytes(variant!, "agent");
    socket.write(this.#count % 8 === 0 ? Buffer.concat([Buffer.from(answer, "latin1"), bytes]) : bytes);
  }
}
