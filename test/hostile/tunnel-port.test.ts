/** Strangers at the tunnel port of a real edge, with the limits that are shipped. Each comes from a source of its own. */
import { once } from "node:events";
import { connect as connectTcp, type Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from "node:tls";
import { readFile } from "node:fs/promises";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import {
  agentProof,
  createNonce,
  createToken,
  deriveVerifier,
  exportChannelBinding,
  formatAgentHello,
} from "../../packages/tunnel/src/index.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import type { TcpServer } from "../support/tcp-server.ts";
import { HonestPartner } from "./honest-partner.ts";
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
let lan: AgentCredentials;
let port: number;
const sockets: Socket[] = [];

beforeAll(async () => {
  target = await startEchoServer();
  pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "honest", target: "echo" }],
  });
  lan = credentialsOf(await pair.command("edge", ["client", "rotate", "lan", "--config", pair.edge.configPath]));
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8"));
  port = Number(String(config.tunnels[0].listen).split(":")[1]);
});

afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  destroyRawAgents();
});

afterAll(async () => {
  await pair?.stop();
  await target?.close();
});

function tcp(localAddress = freshSource()): Socket {
  const socket = connectTcp({ host: "127.0.0.1", port, localAddress });
  socket.on("error", () => undefined);
  sockets.push(socket);
  return socket;
}

async function tls(options: ConnectionOptions = {}, localAddress = freshSource()): Promise<TLSSocket> {
  const socket = connectTls({ socket: tcp(localAddress), rejectUnauthorized: false, ...options });
  socket.on("error", () => undefined);
  sockets.push(socket);
  await withDeadline(once(socket, "secureConnect"), { what: "TLS" });
  return socket;
}

/** Everything that the edge says until the connection is gone, and how long that took. */
async function readAll(socket: Socket): Promise<{ text: string; elapsedMs: number }> {
  const since = performance.now();
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  const closed = new Promise<void>((resolve) => {
    if (socket.closed) resolve();
    socket.once("close", () => resolve());
  });
  await withDeadline(closed, { what: "the connection ends" });
  return { text: Buffer.concat(chunks).toString("latin1"), elapsedMs: performance.now() - since };
}

function upgrade(authorization: string, path = "/sallyport/v1"): string {
  return [
    `GET ${path} HTTP/1.1`,
    "Host: edge.example.com",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol: sallyport.v1",
    ...(authorization === "" ? [] : [`Authorization: ${authorization}`]),
    "",
    "",
  ].join("\r\n");
}

function proof(socket: TLSSocket, options: { client: string; key: Buffer; versions?: number[] }): string {
  const { client, key, versions = [1] } = options;
  const nonce = createNonce();
  const exporter = exportChannelBinding(socket);
  const mac = agentProof(key, { exporter, client, versions, agentNonce: nonce });
  return formatAgentHello({ client, nonce, versions, mac });
}

async function ask(request: (socket: TLSSocket) => string): Promise<string> {
  const socket = await tls();
  socket.write(request(socket));
  return (await readAll(socket)).text;
}

describe("a stranger", () => {
  test("that is silent, at any stage, is gone within six seconds while the honest partner is served", async () => {
    const honest = await HonestPartner.start(pair.listenerPort("honest"));
    const started = tcp();
    started.write(Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01]));
    const halfRequest = await tls();
    halfRequest.write("GET /sallyport/v1 HTTP/1.1\r\nHost: edge\r\nAuthori");
    const endless = await tls();
    endless.write("GET /sallyport/v1 HTTP/1.1\r\n");
    const drip = setInterval(() => endless.write("X-A: b\r\n"), 300);
    const ends = await Promise.all([tcp(), started, await tls(), halfRequest, endless].map(readAll));
    clearInterval(drip);
    for (const { elapsedMs } of ends) expect(elapsedMs).toBeLessThan(6_000);
    expect(await honest.stop()).toBeUndefined();
  }, 15_000);

  test("that speaks HTTP without TLS hears nothing and is closed", async () => {
    const socket = tcp();
    socket.write("GET / HTTP/1.1\r\nHost: edge\r\n\r\n");
    const { text, elapsedMs } = await readAll(socket);
    expect(text).not.toMatch(/HTTP|sallyport|nginx|node/i);
    expect(elapsedMs).toBeLessThan(1_000);
  });

  test.each(["TLSv1.2", "TLSv1.1"] as const)("cannot speak %s", async (version) => {
    const socket = connectTls({
      socket: tcp(),
      rejectUnauthorized: false,
      minVersion: "TLSv1",
      maxVersion: version,
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    sockets.push(socket);
    const [error] = (await withDeadline(once(socket, "error"), { what: "a TLS alert" })) as [NodeJS.ErrnoException];
    expect(error.code).toMatch(/PROTOCOL_VERSION|ECONNRESET|UNSUPPORTED/);
  });

  test("cannot tell a wrong token from a client that does not exist, by a single byte", async () => {
    const wrong = createToken();
    const answers = await Promise.all([
      ask((socket) => upgrade(proof(socket, { client: "lan", key: deriveVerifier(wrong, "lan").key }))),
      ask((socket) => upgrade(proof(socket, { client: "nobody", key: deriveVerifier(wrong, "nobody").key }))),
      ask((socket) => upgrade(proof(socket, { client: "nobody", key: deriveVerifier(lan.token, "lan").key }))),
      ask(() => upgrade("")),
      ask(() => upgrade("Basic bGFuOmh1bnRlcjI=")),
      ask(() => upgrade('Sallyport client="lan"')),
    ]);
    expect(new Set(answers).size).toBe(1);
    expect(answers[0]).toMatch(/^HTTP\/1\.1 401 /);
    expect(answers[0]).toMatch(/Connection: close/i);
  });

  test("learns of no other path, and of no version before it has authenticated", async () => {
    const key = deriveVerifier(lan.token, "lan").key;
    const right = { client: "lan", key };
    expect(await ask((socket) => upgrade(proof(socket, right), "/other"))).toMatch(/^HTTP\/1\.1 404 /);
    const versions = [99];
    expect(await ask((socket) => upgrade(proof(socket, { ...right, versions })))).toMatch(/^HTTP\/1\.1 426 /);
    const wrongKey = deriveVerifier(createToken(), "lan").key;
    expect(await ask((socket) => upgrade(proof(socket, { ...right, versions, key: wrongKey })))).toMatch(
      /^HTTP\/1\.1 401 /,
    );
    expect(await ask(() => "GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n")).toMatch(/^HTTP\/1\.1 404 /);
  });

  test("that presents wrong proofs, one right after the other, is refused before TLS; an agent elsewhere is not", async () => {
    const source = freshSource();
    const key = deriveVerifier(createToken(), "lan").key;
    // Each costs 5 s of the 15 s at which a source is refused, and time takes it away meanwhile: three are not quite enough.
    for (let attempt = 0; attempt < 4; attempt++) {
      const socket = await tls({}, source);
      socket.write(upgrade(proof(socket, { client: "lan", key })));
      expect((await readAll(socket)).text).toMatch(/^HTTP\/1\.1 401 /);
    }
    expect((await readAll(tcp(source))).text).toBe("");
    await expect(RawAgent.connect(lan, source)).rejects.toMatchObject({
      reason: expect.stringMatching(RESET_BEFORE_TLS),
    });
    expect((await RawAgent.greeted(lan)).frames).toHaveLength(1);
  });

  test("that sends bytes no agent sends is refused from then on", async () => {
    const source = freshSource();
    const socket = await tls({}, source);
    socket.write(`GET /sallyport/v1 HTTP/1.1\r\nX: ${"x".repeat(20_000)}`);
    await readAll(socket);
    await expect(RawAgent.connect(lan, source)).rejects.toMatchObject({
      reason: expect.stringMatching(RESET_BEFORE_TLS),
    });
  });

  test("that scans the port as fast as it can leaves a bounded number of lines", async () => {
    const linesBefore = pair.edge.process.stdout
      .split("\n")
      .filter((line) => line.includes("tunnel connection refused"));
    const source = freshSource();
    for (let batch = 0; batch < 10; batch++) {
      await Promise.all(
        Array.from({ length: 100 }, async () => {
          const socket = tcp(source);
          await once(socket, "connect").catch(() => undefined);
          socket.resetAndDestroy();
        }),
      );
    }
    const lines = pair.edge.process.stdout.split("\n").filter((line) => line.includes("tunnel connection refused"));
    expect(lines.length - linesBefore.length).toBeLessThan(200);
    expect(pair.edge.process.hasEnded).toBe(false);
  });
});

describe("two hundred silent connections", () => {
  async function fill(count: number, sources: () => string): Promise<void> {
    const connected = Array.from({ length: count }, () => once(tcp(sources()), "connect").catch(() => undefined));
    await Promise.all(connected);
  }

  test("of one source keep neither a known agent nor a new one out", async () => {
    const source = freshSource();
    const known = freshSource();
    (await RawAgent.connect(lan, known)).destroy();
    await fill(200, () => source);
    const since = performance.now();
    const agents = await Promise.all([RawAgent.connect(lan, known), RawAgent.connect(lan)]);
    expect(agents).toHaveLength(2);
    expect(performance.now() - since).toBeLessThan(2_000);
  });

  test("of many sources keep a new agent out until they time out, and a known one not at all", async () => {
    const known = freshSource();
    (await RawAgent.connect(lan, known)).destroy();
    await fill(200, freshSource);
    const since = performance.now();
    expect(await RawAgent.connect(lan, known)).toBeDefined();
    expect(performance.now() - since).toBeLessThan(2_000);
    await expect(RawAgent.connect(lan)).rejects.toMatchObject({ reason: expect.stringMatching(RESET_BEFORE_TLS) });
    await pollUntil(() => RawAgent.connect(lan), { what: "a place for a new agent", timeoutMs: 7_000 });
    expect(performance.now() - since).toBeLessThan(7_000);
  }, 20_000);

  test("the paired agent was never lost", async () => {
    const honest = await HonestPartner.start(pair.listenerPort("honest"));
    expect(await honest.stop()).toBeUndefined();
    expect(pair.agent.process.stdout).not.toContain("session ended");
  });
});
