/**
 * An agent that was taken over, against a real edge: it holds a valid token and says whatever it likes. Each case ends its
 * own session or costs it a stream; the partner of another client, who keeps asking throughout, notices nothing.
 */
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { encodeFrame, type Frame } from "../../packages/protocol/src/index.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { findFreePort } from "../support/free-port.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { drainedOrClosed } from "../support/socket-drain.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { TcpServer } from "../support/tcp-server.ts";
import { HonestPartner } from "./honest-partner.ts";
import { malformedFrames, validFrames } from "./malformed-frames.ts";
import {
  type AgentCredentials,
  credentialsOf,
  destroyRawAgents,
  freshSource,
  RawAgent,
  RESET_BEFORE_TLS,
} from "./raw-agent.ts";

let target: TcpServer;
let pair: SallyportPair;
let evil: AgentCredentials;
let other: AgentCredentials;
let evilPort: number;
let honest: HonestPartner;
let edgePid: number;
const sockets: Socket[] = [];

async function addClients(names: readonly string[]): Promise<string[]> {
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8"));
  for (const name of names) config.clients.push({ name });
  config.listeners.push({ name: "evil", listen: `127.0.0.1:${evilPort}` });
  config.deployments.push({
    name: "evil",
    listener: "evil",
    target: "echo",
    via: { tunnel: "dmz", client: "evil" },
  });
  await writeFile(pair.edge.configPath, JSON.stringify(config));
  const flags = ["--config", pair.edge.configPath];
  await pair.command("edge", ["reload", ...flags]);
  const lines: string[] = [];
  for (const name of names) lines.push(await pair.command("edge", ["pair", name, ...flags]));
  return lines;
}

/** The least that can be configured: bounds that follow from it are soon reached. */
const MEMORY_BYTES = 16 * 1_048_576;

beforeAll(async () => {
  target = await startEchoServer();
  pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "honest", target: "echo" }],
    edgeConfig: {
      heartbeat: { interval: "500ms", timeout: "2s" },
      resumeTimeout: "1s",
      // One direction of a stream takes an eighth of what is free at the most.
      memory: `${MEMORY_BYTES / 1_048_576}MiB`,
    },
    agentConfig: { heartbeat: { interval: "500ms", timeout: "2s" } },
  });
  evilPort = await findFreePort();
  [evil, other] = (await addClients(["evil", "other"])).map(credentialsOf) as [AgentCredentials, AgentCredentials];
  edgePid = pair.edge.process.pid;
  honest = await HonestPartner.start(pair.listenerPort("honest"));
});

afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  destroyRawAgents();
});

afterAll(async () => {
  destroyRawAgents();
  await honest?.stop();
  await pair?.stop();
  await target?.close();
});

/** A partner of the hostile agent's deployment, and the OPEN that it causes. */
async function openThrough(agent: RawAgent, text = ""): Promise<{ partner: Socket; stream: number }> {
  const before = Math.max(0, ...agent.frames.map((frame) => (frame.type === "open" ? frame.stream : 0)));
  const partner = connect({ port: evilPort, host: "127.0.0.1", allowHalfOpen: true });
  partner.on("error", () => undefined);
  sockets.push(partner);
  if (text !== "") partner.write(text);
  const { stream } = await agent.awaitFrame("open", (open) => open.stream > before);
  return { partner, stream };
}

/** In the middle of a transfer: one stream is accepted and bytes have gone both ways. */
async function transferring(agent: RawAgent): Promise<{ partner: Socket; stream: number }> {
  const opened = await openThrough(agent, "from the partner");
  agent.send(
    { ...validFrames.accept, stream: opened.stream },
    { ...validFrames.data, stream: opened.stream, bytes: Buffer.from("to the partner") },
  );
  await withDeadline(once(opened.partner, "data"), { what: "bytes of the hostile agent" });
  await agent.awaitFrame("data");
  return opened;
}

async function expectHonestService(): Promise<void> {
  expect(await honest.stop()).toBeUndefined();
  honest = await HonestPartner.start(pair.listenerPort("honest"));
  expect(pair.edge.process.hasEnded).toBe(false);
  expect(pair.edge.process.pid).toBe(edgePid);
}

async function edgeMetric(pattern: RegExp): Promise<number> {
  const line = (await pair.edgeMetrics()).split("\n").find((text) => pattern.test(text));
  return Number(line?.split(" ").at(-1));
}

async function residentBytes(): Promise<number> {
  const status = await readFile(`/proc/${edgePid}/status`, "latin1");
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) * 1_024;
}

const states = ["before HELLO", "idle", "in the middle of a transfer"] as const;

async function inState(state: (typeof states)[number]): Promise<RawAgent> {
  if (state === "before HELLO") return RawAgent.connect(evil);
  const agent = await RawAgent.greeted(evil);
  if (state === "in the middle of a transfer") await transferring(agent);
  return agent;
}

describe.each(states)("%s", (state) => {
  test("no malformed frame is taken: each ends the link with its code", async () => {
    const cases = malformedFrames();
    expect(cases.length).toBeGreaterThan(80);
    const wrong: string[] = [];
    for (const [name, bytes, code] of cases) {
      const agent = await inState(state);
      agent.send(bytes);
      const closedWith = await agent.closeCode().catch(() => "nothing");
      if (closedWith !== code) wrong.push(`${name}: ${closedWith} instead of ${code}`);
      agent.destroy();
    }
    expect(wrong).toEqual([]);
    await expectHonestService();
  }, 90_000);

  /** RFC 6455: FIN and opcode, mask bit and length, masking key of zeros, payload. */
  const header = (first: number, length: number) => Buffer.from([first, 0x80 | length, 0, 0, 0, 0]);
  const webSocketBreaches: [string, Buffer, number][] = [
    ["an unmasked message", Buffer.from([0x82, 1, 0x20]), 1002],
    ["reserved bit 1 without an extension", Buffer.concat([header(0xc2, 1), Buffer.of(0x20)]), 1002],
    ["reserved bit 3", Buffer.concat([header(0x92, 1), Buffer.of(0x20)]), 1002],
    ["reserved opcode 3", Buffer.concat([header(0x83, 1), Buffer.of(0x20)]), 1002],
    ["reserved control opcode 11", header(0x8b, 0), 1002],
    ["a continuation of nothing", Buffer.concat([header(0x80, 1), Buffer.of(0x20)]), 1002],
    ["a fragmented ping", Buffer.concat([header(0x09, 1), Buffer.of(1)]), 1002],
    ["a ping of 126 bytes", Buffer.concat([Buffer.from([0x89, 0xfe, 0, 126, 0, 0, 0, 0]), Buffer.alloc(126)]), 1002],
    [
      "a message in two fragments",
      Buffer.concat([header(0x02, 1), Buffer.of(0x20), header(0x80, 8), Buffer.alloc(8)]),
      1008,
    ],
    ["a declared length of 2^63", Buffer.from([0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 1009],
    ["a declared length of 1 GiB", Buffer.from([0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]), 1009],
    ["a close frame of one byte", Buffer.concat([header(0x88, 1), Buffer.of(3)]), 1002],
    ["a close frame with code 1005", Buffer.concat([header(0x88, 2), Buffer.of(3, 0xed)]), 1002],
    ["a text message", Buffer.concat([header(0x81, 2), Buffer.from("hi")]), 4400],
  ];

  test("no breach of WebSocket itself is taken", async () => {
    const wrong: string[] = [];
    for (const [name, bytes, code] of webSocketBreaches) {
      const agent = await inState(state);
      agent.sendRaw(bytes);
      const closedWith = await agent.closeCode().catch(() => "nothing");
      if (closedWith !== code) wrong.push(`${name}: ${closedWith} instead of ${code}`);
      agent.destroy();
    }
    expect(wrong).toEqual([]);
    await expectHonestService();
  }, 30_000);
});

describe("out of turn", () => {
  const outOfTurn: [string, (stream: number) => Frame[], number][] = [
    ["OPEN at the edge", () => [validFrames.open], 4400],
    ["OPEN at the edge with a fresh id", (stream) => [{ ...validFrames.open, stream: stream + 1 }], 4400],
    ["a second HELLO", () => [validFrames.hello], 4400],
    ["WELCOME from an agent", () => [validFrames.welcome], 4400],
    ["data on a stream that was not opened", (s) => [{ ...validFrames.data, stream: s + 1 }], 4400],
    ["end of a stream that was not opened", (s) => [{ ...validFrames.end, stream: s + 1 }], 4400],
    ["reset of a stream that was not opened", (s) => [{ ...validFrames.reset, stream: s + 1 }], 4400],
    ["closed for a stream that was not opened", (s) => [{ ...validFrames.closed, stream: s + 1 }], 4400],
    ["credit for a stream that was not opened", (s) => [{ ...validFrames.credit, stream: s + 1 }], 4400],
    ["accept of a stream that was not opened", (s) => [{ ...validFrames.accept, stream: s + 1 }], 4400],
    ["resume of a stream that was not opened", (s) => [{ ...validFrames.resume, stream: s + 1 }], 4400],
    ["data on the last stream id", () => [{ ...validFrames.data, stream: 0xffff_ffff }], 4400],
    [
      "credit for bytes that were not sent",
      (stream) => [{ ...validFrames.credit, stream, consumed: 1_000_000, limit: 2_000_000 }],
      4400,
    ],
    ["a limit below what was consumed", (stream) => [{ ...validFrames.credit, stream, consumed: 10, limit: 5 }], 4400],
    [
      "an acknowledged end that was not sent",
      (stream) => [{ ...validFrames.credit, stream, consumed: 16, limit: 65_536, endConsumed: true }],
      4400,
    ],
    [
      "an answer to a request that was not made",
      (stream) => [{ ...validFrames.resume, stream, epoch: 0, answers: 9 }],
      4400,
    ],
    [
      "resuming beyond what was sent",
      (stream) => [{ ...validFrames.resume, stream, received: 1_000_000, limit: 2_000_000 }],
      4400,
    ],
    [
      "resuming with more consumed than received",
      (stream) => [{ ...validFrames.resume, stream, received: 1, consumed: 9, limit: 65_536 }],
      4400,
    ],
    ["an end before bytes that were sent", (stream) => [{ ...validFrames.end, stream, offset: 3 }], 4400],
  ];

  test.each(outOfTurn)("%s ends the session, its partner is reset", async (_name, frames, code) => {
    const agent = await RawAgent.greeted(evil);
    const { partner, stream } = await transferring(agent);
    agent.send(...frames(stream));
    expect(await agent.closeCode()).toBe(code);
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET" });
  });

  test.each([
    ["data behind its end", (stream: number): Frame => ({ ...validFrames.data, stream, offset: 14 })],
    ["a second end at another offset", (stream: number): Frame => ({ ...validFrames.end, stream, offset: 13 })],
  ])("%s ends the session", async (_name, frame) => {
    const agent = await RawAgent.greeted(evil);
    const { stream } = await transferring(agent);
    agent.send({ ...validFrames.end, stream, offset: 14 }, frame(stream));
    expect(await agent.closeCode()).toBe(4400);
  });

  test("data before ACCEPT ends the session and none of it reaches the partner", async () => {
    const agent = await RawAgent.greeted(evil);
    const { partner, stream } = await openThrough(agent);
    agent.send({ ...validFrames.data, stream });
    expect(await agent.closeCode()).toBe(4400);
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET", receivedBytes: 0 });
  });

  test("nothing behind a fatal frame in the same chunk is processed", async () => {
    const agent = await RawAgent.greeted(evil);
    const { partner, stream } = await openThrough(agent);
    agent.socket.cork();
    agent.send(new Uint8Array([0xff]), { ...validFrames.accept, stream });
    for (let count = 0; count < 999; count++) agent.send({ ...validFrames.data, stream, offset: count });
    agent.socket.uncork();
    expect(await agent.closeCode()).toBe(4400);
    expect((await socketEnding(partner)).receivedBytes).toBe(0);
  });

  test("the honest partner was served all the time", expectHonestService);
});

describe("credit", () => {
  test("one byte more than was granted costs the stream; the third time within a minute, the session", async () => {
    const agent = await RawAgent.greeted(evil);
    const breach = async () => {
      const { partner, stream } = await openThrough(agent);
      const { limit } = await agent.awaitFrame("open", (open) => open.stream === stream);
      partner.pause();
      agent.send({ ...validFrames.accept, stream }, { ...validFrames.data, stream, offset: limit });
      return { partner, stream };
    };
    for (let forgiven = 0; forgiven < 2; forgiven++) {
      const { partner, stream } = await breach();
      expect((await agent.awaitFrame("reset", (reset) => reset.stream === stream)).code).toBe(13);
      agent.send({ ...validFrames.closed, stream });
      expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET", receivedBytes: 0 });
    }
    await breach();
    expect(await agent.closeCode()).toBe(4429);
  });

  test("without bound makes the edge hold no more than a stream's share of its memory", async () => {
    const agent = await RawAgent.greeted(evil);
    const { partner, stream } = await openThrough(agent, "first");
    agent.send({ ...validFrames.accept, stream, limit: Number.MAX_SAFE_INTEGER });
    agent.webSocket.pause();
    let offered = 0;
    const chunk = Buffer.alloc(65_536);
    while (offered < 64 * 1_048_576 && partner.write(chunk)) offered += chunk.length;
    const pump = () => {
      while (offered < 64 * 1_048_576 && partner.write(chunk)) offered += chunk.length;
    };
    partner.on("drain", pump);
    // The edge takes what it can and then leaves the rest to the partner's own TCP.
    await pollUntil(async () => ((await edgeMetric(/^edge_tunnel_held_bytes/)) >= 1_048_576 ? true : undefined), {
      what: "a full send buffer",
    });
    // One read may go beyond the share.
    expect(await edgeMetric(/^edge_tunnel_held_bytes/)).toBeLessThanOrEqual(MEMORY_BYTES / 8 + 65_536);
    expect(offered).toBeLessThan(64 * 1_048_576);
  });
});

describe("floods", () => {
  const flood = (frame: (index: number) => Frame): Buffer[] => {
    const frames = Array.from({ length: 5_000 }, (_, index) => Buffer.from(encodeFrame(frame(index))));
    return frames;
  };
  const floods: [string, (stream: number) => Buffer[]][] = [
    ["ping", () => flood((index) => ({ type: "ping", token: index }))],
    ["pong", () => flood((index) => ({ type: "pong", token: 1_000_000 + index }))],
    ["credit that grants nothing", (stream) => flood(() => ({ ...validFrames.credit, stream, limit: 1 }))],
    ["accept", (stream) => flood(() => ({ ...validFrames.accept, stream }))],
    ["go away", () => flood(() => validFrames.goAway)],
    ["old resume requests", (stream) => flood(() => ({ ...validFrames.resume, stream, limit: 65_536, received: 16 }))],
  ];

  test.each(floods)("of %s frames end the session with 4429", async (_name, frames) => {
    const agent = await RawAgent.greeted(evil, { maxStreams: 10 });
    const { stream } = await transferring(agent);
    const messages = frames(stream);
    const timer = setInterval(() => agent.send(...messages.slice(0, 1_000)), 1);
    try {
      expect(await agent.closeCode()).toBe(4429);
    } finally {
      clearInterval(timer);
    }
  });

  test("of resets of a stream that has ended do not grow the edge, also when nothing is read", async () => {
    // The most that HELLO can claim, so that every bound that follows from it is at its widest.
    const agent = await RawAgent.greeted(evil, { maxStreams: 1_000_000 });
    const { stream } = await transferring(agent);
    const before = await residentBytes();
    agent.webSocket.pause();
    const burst = Array.from({ length: 2_000 }, () => ({ ...validFrames.reset, stream }));
    let sent = 0;
    const stalled = { drained: true };
    const endsAt = performance.now() + 4_000;
    while (performance.now() < endsAt && sent < 3_000_000 && !agent.socket.destroyed) {
      agent.send(...burst);
      sent += burst.length;
      stalled.drained = !agent.socket.writableNeedDrain;
      if (!stalled.drained) await drainedOrClosed(agent.socket);
      else await new Promise((resolve) => setImmediate(resolve));
    }
    expect(sent).toBeGreaterThan(10_000);
    expect((await residentBytes()) - before).toBeLessThan(96 * 1_048_576);
    agent.destroy();
  }, 20_000);

  test("of WebSocket pings from an agent that does not read are cut, and the edge does not grow", async () => {
    const agent = await RawAgent.greeted(evil);
    const before = await residentBytes();
    agent.socket.pause();
    const pings = Buffer.concat(
      Array.from({ length: 400 }, () => Buffer.concat([Buffer.from([0x89, 0xfd, 0, 0, 0, 0]), Buffer.alloc(125)])),
    );
    const endsAt = performance.now() + 3_000;
    while (performance.now() < endsAt && !agent.socket.destroyed) {
      if (!agent.socket.write(pings)) await drainedOrClosed(agent.socket);
    }
    expect((await residentBytes()) - before).toBeLessThan(64 * 1_048_576);
    agent.destroy();
  });

  test("the honest partner was served all the time", expectHonestService);
});

describe("a session", () => {
  /** A header that declares 16,376 bytes, and the first hundred of them. */
  const unfinished = Buffer.concat([Buffer.from([0x82, 0xfe, 0x3f, 0xf8, 0, 0, 0, 0]), Buffer.alloc(100)]);

  test("of silence is gone within six seconds at every stage, and its partner is reset", async () => {
    const [silent, unfinishedHello] = [await RawAgent.connect(evil), await RawAgent.connect(evil)];
    unfinishedHello.sendRaw(unfinished);
    const [idle, unfinishedFrame] = [await RawAgent.greeted(evil, { agent: "idle" }), await RawAgent.greeted(other)];
    const { partner } = await transferring(idle);
    unfinishedFrame.sendRaw(unfinished);
    const agents = [silent, unfinishedHello, idle, unfinishedFrame];
    for (const { livedMs } of await Promise.all(agents.map((agent) => agent.ended)))
      expect(livedMs).toBeLessThan(6_000);
    expect((await silent.ended).code).toBe(4408);
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET" });
  }, 15_000);

  test.each([
    ["that does not exist", () => ({ session: "0".repeat(32) })],
    ["of another process", (session: string) => ({ session, process: "1".repeat(32) })],
  ])("%s cannot be joined", async (_name, hello) => {
    const owner = await RawAgent.greeted(evil);
    const { session } = await owner.awaitFrame("welcome");
    const thief = await RawAgent.connect(evil);
    thief.hello(hello(session));
    expect(await thief.closeCode()).toBe(4404);
    expect(owner.webSocket.readyState).toBe(owner.webSocket.OPEN);
  });

  test("of another client cannot be joined, even by who knows its id and its process", async () => {
    const owner = await RawAgent.greeted(other);
    const { session } = await owner.awaitFrame("welcome");
    const thief = await RawAgent.connect(evil);
    thief.hello({ session, process: owner.process });
    expect(await thief.closeCode()).toBe(4404);
    expect(owner.webSocket.readyState).toBe(owner.webSocket.OPEN);
  });

  test("of another client is not replaced by an agent that takes its name", async () => {
    const owner = await RawAgent.greeted(other, { agent: "twin" });
    await RawAgent.greeted(evil, { agent: "twin", process: owner.process });
    owner.send({ type: "ping", token: 7 });
    expect(await owner.awaitFrame("pong", ({ token }) => token === 7)).toBeDefined();
  });

  test("has at most 32 links: 16, and as many that replace them", async () => {
    const first = await RawAgent.greeted(evil, { links: 16 });
    const { session } = await first.awaitFrame("welcome");
    for (let link = 2; link <= 32; link++) await RawAgent.greeted(evil, { session, process: first.process });
    const last = await RawAgent.connect(evil);
    last.hello({ session, process: first.process });
    expect(await last.closeCode()).toBe(4403);
    expect(await edgeMetric(/^edge_tunnel_links{client="evil"}/)).toBe(32);
  });

  test("is one of at most 64 of a client", async () => {
    await pollUntil(async () => ((await edgeMetric(/^edge_tunnel_sessions{client="evil"}/)) === 0 ? true : undefined), {
      what: "the end of earlier sessions",
    });
    for (let batch = 0; batch < 64; batch += 16) {
      const names = Array.from({ length: 16 }, (_, index) => `agent-${batch + index}`);
      await Promise.all(names.map((agent) => RawAgent.greeted(evil, { agent })));
    }
    const last = await RawAgent.connect(evil);
    last.hello({ agent: "agent-65" });
    expect(await last.closeCode()).toBe(4403);
  });

  test("the honest partner was served all the time", expectHonestService);
});

test.each<[what: string, isGreeted: boolean, breach: (agent: RawAgent) => void, code: number]>([
  ["the protocol", true, (agent) => agent.send(validFrames.open), 4400],
  ["the protocol before its greeting", false, (agent) => agent.send(validFrames.ping), 4400],
  ["WebSocket", true, (agent) => agent.sendRaw(Buffer.from([0xa2, 0x80, 0, 0, 0, 0])), 1002],
  ["WebSocket before its greeting", false, (agent) => agent.sendRaw(Buffer.from([0xa2, 0x80, 0, 0, 0, 0])), 1002],
])(
  "who broke %s is kept out for a while, where it came from and nowhere else",
  async (_what, isGreeted, breach, code) => {
    const source = freshSource();
    const agent = await RawAgent.connect(other, source);
    if (isGreeted) {
      agent.hello();
      await agent.awaitFrame("welcome");
    }
    breach(agent);
    expect(await agent.closeCode()).toBe(code);
    await expect(RawAgent.connect(other, source)).rejects.toMatchObject({
      reason: expect.stringMatching(RESET_BEFORE_TLS),
    });
    expect((await RawAgent.greeted(other)).frames).toHaveLength(1);
  },
);

test("links that never greet leave the edge room for other clients", async () => {
  const silent: RawAgent[] = [];
  const refused: number[] = [];
  for (let index = 0; index < 300; index++) {
    const agent = await RawAgent.connect(evil);
    void agent.ended.then(({ code, livedMs }) => livedMs < 1_000 && refused.push(code));
    silent.push(agent);
  }
  await pollUntil(() => (refused.length > 0 ? true : undefined), { what: "a refusal of a link too many" });
  expect(new Set(refused)).toEqual(new Set([4403]));
  const welcome = RawAgent.greeted(other);
  await withDeadline(welcome, { what: "another client is greeted", timeoutMs: 2_000 });
  await expectHonestService();
});
