/** One hostile agent after the other, each with a session of its own, against a real edge; see `hostile-frames.ts`. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { deriveVerifier, exportChannelBinding } from "../../packages/tunnel/src/index.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { drainedOrClosed } from "../support/socket-drain.ts";
import { type Attack, describeOutcome, type Result, unlinkedBytes } from "./attack.ts";
import { agentAuthorization, upgradeRequest } from "./handshakes.ts";
import type { Handshake, Position, Variant } from "./hostile-frames.ts";
import { validFrames } from "./malformed-frames.ts";
import { type AgentCredentials, freshSource, RawAgent } from "./raw-agent.ts";

export interface EdgeAttackerOptions {
  readonly credentials: AgentCredentials;
  /** Of a deployment whose client is that of the credentials, and nobody else's. */
  readonly partnerPort: number;
  /** Of a session of another client that lives all the time. */
  readonly foreignSession: string;
}

const MAX_STREAMS = 10;
const FROM_PARTNER = "from the partner";
const TO_PARTNER = "to the partner";
const FAR_SIDE_BYTES = 2 * 1_048_576;
/** Longer than the edge waits for a greeting or a request. */
const PATIENCE_MS = 9_000;

export class EdgeAttacker {
  readonly #options: EdgeAttackerOptions;
  #count = 0;

  constructor(options: EdgeAttackerOptions) {
    this.#options = options;
  }

  async run(attack: Attack): Promise<Result> {
    const source = freshSource();
    if (attack.handshake !== undefined) return { outcome: await this.#handshake(attack.handshake, source), source };
    const { variant } = attack;
    if (variant === undefined) throw new Error("an attack of nothing");
    if (attack.state === "before authentication") {
      const socket = await this.#tls(source);
      socket.write(unlinkedBytes(variant, "edge"));
      return { outcome: statusOf(await readAll(socket)), source };
    }
    const agent = await RawAgent.connect(this.#options.credentials, source);
    const opened: Socket[] = [];
    const steady = attack.id === "M38" ? await this.#steady() : undefined;
    try {
      this.#count += 1;
      const name = `agent-${this.#count}-${this.#options.credentials.client}`;
      if (attack.state !== "before greeting") {
        agent.hello({ agent: name, maxStreams: MAX_STREAMS });
        await agent.awaitFrame("welcome");
      }
      const partner = attack.state === "mid-transfer" ? await this.#transfer(agent) : undefined;
      if (partner !== undefined) opened.push(partner);
      return { outcome: await this.#attack(agent, variant, { attack, partner }), source };
    } finally {
      for (const socket of opened) socket.destroy();
      agent.destroy();
      steady?.();
    }
  }

  async #attack(
    agent: RawAgent,
    variant: Variant,
    { attack, partner }: { attack: Attack; partner: Socket | undefined },
  ): Promise<string> {
    const closed = agent.ended.then(({ code }) => (code === 1006 ? "cut" : `closed ${code}`));
    const patience = (what: string) => withDeadline(closed, { what, timeoutMs: PATIENCE_MS });
    if (attack.state !== "before greeting") await this.#synchronise(agent, 0);
    if (variant.farSideWrites === true) partner?.write(Buffer.alloc(FAR_SIDE_BYTES));
    const at = this.#position(agent);
    const seenBefore = partner?.bytesRead ?? 0;
    if (variant.deaf === true) {
      agent.socket.pause();
      const bytes = variant.bytes(at, 0);
      const endsAt = performance.now() + PATIENCE_MS;
      while (!agent.socket.destroyed && performance.now() < endsAt) {
        if (!agent.socket.write(bytes)) await drainedOrClosed(agent.socket);
      }
      return agent.socket.destroyed ? "cut" : "nothing";
    }
    for (let round = 0; round < (variant.rounds ?? 1) - 1; round += 1) {
      agent.sendRaw(variant.bytes(at, round));
      const isThere = await Promise.race([closed.then(() => false), this.#synchronise(agent, round + 1)]);
      if (!isThere) return closed;
    }
    agent.sendRaw(variant.bytes(at, (variant.rounds ?? 1) - 1));
    if (variant.silent === true || attack.state === "before greeting") return patience("the edge ends the link");
    const stream = variant.stream?.(at) ?? at.stream;
    const reset = (timeoutMs: number) =>
      agent.awaitFrame("reset", (frame) => frame.stream === stream, timeoutMs).then(({ code }) => `reset ${code}`);
    if (attack.expect.is === "reset") return Promise.race([closed, reset(PATIENCE_MS)]);
    const answered = this.#synchronise(agent, 1_000).then(() => {
      const frame = agent.frames.find((one) => one.type === "reset" && one.stream === stream);
      return frame?.type === "reset" ? `reset ${frame.code}` : "ignored";
    });
    answered.catch(() => undefined);
    const outcome = await Promise.race([closed, answered]);
    if (variant.inert === true && partner !== undefined && partner.bytesRead > seenBefore)
      return `${outcome}, and bytes`;
    return outcome;
  }

  /** Resolves when the edge has handled everything that was sent. */
  async #synchronise(agent: RawAgent, token: number): Promise<true> {
    agent.send({ type: "ping", token: 8_000_000 + token });
    await agent.awaitFrame("pong", ({ token: its }) => its === 8_000_000 + token);
    return true;
  }

  #position(agent: RawAgent): Position {
    const open = agent.frames.findLast((frame) => frame.type === "open");
    let limit = 0;
    for (const frame of agent.frames) {
      if (frame.type === "open" || frame.type === "credit" || frame.type === "resume")
        limit = Math.max(limit, frame.limit);
    }
    return {
      victim: "edge",
      stream: open?.type === "open" ? open.stream : 1,
      sent: TO_PARTNER.length,
      received: FROM_PARTNER.length,
      limit,
      maxStreams: MAX_STREAMS,
      foreignSession: this.#options.foreignSession,
    };
  }

  /** One stream is accepted and bytes have gone both ways. */
  async #transfer(agent: RawAgent): Promise<Socket> {
    const partner = connect({ port: this.#options.partnerPort, host: "127.0.0.1", allowHalfOpen: true });
    partner.on("error", () => undefined);
    partner.write(FROM_PARTNER);
    const { stream } = await agent.awaitFrame("open");
    agent.send({ ...validFrames.accept, stream }, { ...validFrames.data, stream, bytes: Buffer.from(TO_PARTNER) });
    await withDeadline(once(partner, "data"), { what: "bytes of the hostile agent" });
    partner.resume();
    await agent.awaitFrame("data");
    // Credit for them follows a little later; what may be sent stands still from then on.
    await agent.awaitFrame("credit", ({ consumed }) => consumed >= TO_PARTNER.length);
    return partner;
  }

  /** An honest agent of the same client, which answers; the caller ends it. */
  async #steady(): Promise<() => void> {
    const agent = await RawAgent.greeted(this.#options.credentials, { agent: "steady" });
    const timer = setInterval(() => agent.send({ type: "pong", token: 0 }), 100);
    return () => {
      clearInterval(timer);
      agent.destroy();
    };
  }

  // ── before authentication ──

  async #tls(localAddress: string): Promise<TLSSocket> {
    const { host, port } = this.#options.credentials.address;
    const raw = connect({ host, port, localAddress });
    raw.on("error", () => undefined);
    const socket = connectTls({ socket: raw, rejectUnauthorized: false });
    socket.on("error", () => undefined);
    await withDeadline(once(socket, "secureConnect"), { what: "TLS" });
    return socket;
  }

  async #handshake(kind: Handshake, source: string): Promise<string> {
    const { client, token } = this.#options.credentials;
    const { key } = deriveVerifier(token, client);
    const socket = await this.#tls(source);
    if (kind === "stalled") {
      socket.write("GET /sallyport/v1 HTTP/1.1\r\nHost: edge\r\nAuthori");
      return statusOf(await readAll(socket));
    }
    const other = await this.#tls(freshSource());
    const exporter = exportChannelBinding(other);
    const right = agentAuthorization(socket, { client, key });
    const authorization = {
      "wrong MAC": () => agentAuthorization(socket, { client, key: Buffer.alloc(32, 1) }),
      replayed: () => agentAuthorization(other, { client, key }),
      reflected: () => agentAuthorization(socket, { client, key, asEdge: true }),
      "through a relay": () => agentAuthorization(socket, { client, key, exporter }),
      "unknown version": () => agentAuthorization(socket, { client, key, versions: [99] }),
      "with compression": () => right,
    }[kind]();
    if (kind === "replayed") {
      // Where it belongs, it opens the door.
      other.write(upgradeRequest([`Authorization: ${authorization}`]));
      const [answer] = (await withDeadline(once(other, "data"), { what: "an answer" })) as [Buffer];
      if (!answer.toString("latin1").startsWith("HTTP/1.1 101 ")) return "the right connection is refused";
    }
    const extension = kind === "with compression" ? ["Sec-WebSocket-Extensions: permessage-deflate"] : [];
    socket.write(upgradeRequest([`Authorization: ${authorization}`, ...extension]));
    try {
      if (kind !== "with compression") return statusOf(await readAll(socket));
      const [answer] = (await withDeadline(once(socket, "data"), { what: "an answer" })) as [Buffer];
      const text = answer.toString("latin1");
      return text.startsWith("HTTP/1.1 101 ") && !/extensions/i.test(text) ? "served" : statusOf(text);
    } finally {
      socket.destroy();
      other.destroy();
    }
  }
}

/** Everything that the edge says until the connection is gone. */
async function readAll(socket: Socket): Promise<string> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await pollUntil(() => (socket.closed ? true : undefined), { what: "the connection ends", timeoutMs: PATIENCE_MS });
  return Buffer.concat(chunks).toString("latin1");
}

function statusOf(answer: string): string {
  return describeOutcome({ is: "refused", status: Number(/^HTTP\/1\.1 (\d{3}) /.exec(answer)?.[1] ?? 0) });
}
