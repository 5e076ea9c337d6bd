/** A network that cuts every link, and programs that die: no byte is lost, doubled or taken for an end that was none. */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, expect, test } from "vitest";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { PseudoRandomBytes, pseudoRandomStream } from "../support/prng.ts";
import { SallyportPair, type SallyportPairOptions } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { TcpRelay } from "../support/tcp-relay.ts";
import type { TcpServer } from "../support/tcp-server.ts";

const MIB = 1_048_576;
const closers: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

async function startPair(
  options: Partial<SallyportPairOptions> = {},
): Promise<{ pair: SallyportPair; target: TcpServer }> {
  const target = await startEchoServer();
  closers.push(() => target.close());
  const pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    ...options,
  });
  closers.push(() => pair.stop());
  return { pair, target };
}

async function echoed(port: number): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  closers.push(async () => socket.destroy());
  socket.write("ping");
  await withDeadline(once(socket, "data"), { what: "echo" });
  return socket;
}

/** Until a new connection is served; resolves with the milliseconds that it took. */
async function servedAgain(port: number): Promise<number> {
  const since = performance.now();
  await pollUntil(
    async () => {
      const socket = connect({ port, host: "127.0.0.1" });
      const answered = once(socket, "data");
      socket.on("error", () => undefined);
      const closed = new Promise<undefined>((resolve) => socket.once("close", () => resolve(undefined)));
      socket.write("?");
      const isServed = await Promise.race([answered.then(() => true as const).catch(() => undefined), closed]);
      socket.destroy();
      return isServed;
    },
    { what: "service", timeoutMs: 10_000 },
  );
  return performance.now() - since;
}

test("64 MiB each way on four streams survive ten cuts of all links", async () => {
  let relay: TcpRelay | undefined;
  const { pair } = await startPair({
    agentConfig: { reconnect: { min: "20ms", max: "100ms" } },
    publicAddress: async (targetPort) => {
      relay = await TcpRelay.start({ targetPort });
      closers.push(() => relay!.close());
      return `127.0.0.1:${relay.port}`;
    },
  });
  const perStream = 16 * MIB;
  let receivedBytes = 0;
  let cuts = 0;
  const streams = Array.from({ length: 4 }, async (_, index) => {
    const socket = connect({ port: pair.listenerPort("echo"), host: "127.0.0.1", allowHalfOpen: true });
    const source = new PseudoRandomBytes(`stream ${index}`);
    const hash = createHash("sha256");
    let received = 0;
    socket.on("data", (bytes: Buffer) => {
      hash.update(bytes);
      received += bytes.length;
      receivedBytes += bytes.length;
      // Each time another eleventh has come back, everything that the relay carries is reset.
      if (cuts < 10 && receivedBytes > ((cuts + 1) * 4 * perStream) / 11) {
        cuts += 1;
        relay!.cut();
      }
    });
    const ended = socketEnding(socket, 50_000);
    pseudoRandomStream(source, perStream).pipe(socket);
    expect((await ended).how).toBe("end");
    return { received, isEqual: hash.digest("hex") === source.digest() };
  });
  expect(await Promise.all(streams)).toEqual(Array.from({ length: 4 }, () => ({ received: perStream, isEqual: true })));
  expect(cuts).toBe(10);
  const records = await pair.waitForEdgeRecords("echo", 4);
  expect(records.map(({ code, bytesIn, bytesOut }) => ({ code, bytesIn, bytesOut }))).toEqual(
    Array.from({ length: 4 }, () => ({ code: "--", bytesIn: perStream, bytesOut: perStream })),
  );
  expect(metric(await pair.edgeMetrics(), "edge_tunnel_retransmitted_bytes_total")).toBeGreaterThan(0);
  const agent = await pair.agentMetrics();
  expect(metric(agent, "agent_tunnel_retransmitted_bytes_total")).toBeGreaterThan(0);
  // All cuts were of the one session.
  expect(metric(agent, "agent_tunnel_sessions_total", 'edge="')).toBe(1);
}, 60_000);

/** What it takes this machine, at this moment, to start one of the programs at all: it is not the tunnel's time. */
async function programStartMs(pair: SallyportPair): Promise<number> {
  const startedAt = performance.now();
  await pair.command("agent", ["--version"]);
  return performance.now() - startedAt;
}

test("an agent that is killed costs its fifty partners a reset, and is back within three seconds of its start", async () => {
  const { pair, target } = await startPair({ edgeConfig: { resumeTimeout: "1s" } });
  const port = pair.listenerPort("echo");
  const partners = await Promise.all(Array.from({ length: 50 }, () => echoed(port)));
  pair.agent.process.signal("SIGKILL");
  await pair.agent.process.waitForEnd();
  const killedAt = performance.now();
  // Until the edge has heard of it, a connection may still be given to the agent that is gone; then it is refused at once.
  await pair.edge.process.waitForLine(/"msg":"agent lost; session waits"/);
  const refusedAt = performance.now();
  const refused = connect({ port, host: "127.0.0.1" });
  expect(await socketEnding(refused)).toMatchObject({ how: "error", code: "ECONNRESET" });
  expect(performance.now() - refusedAt).toBeLessThan(1_000);
  const endings = await Promise.all(partners.map((socket) => socketEnding(socket)));
  expect(new Set(endings.map(({ how, code }) => `${how} ${code}`))).toEqual(new Set(["error ECONNRESET"]));
  expect(performance.now() - killedAt).toBeLessThan(3_000);
  await pollUntil(() => (target.sockets.size === 0 ? true : undefined), { what: "the targets are let go" });
  const startMs = await programStartMs(pair);
  await pair.restartAgent();
  expect(await servedAgain(port)).toBeLessThan(3_000 + 2 * startMs);
  const { code } = (await pair.waitForEdgeRecords("echo", 51)).find(({ bytesIn }) => bytesIn === 4)!;
  expect(code).not.toBe("--");
}, 40_000);

test("an edge that is killed is waited for with patience, and its streams end at the targets by a reset", async () => {
  const { pair, target } = await startPair();
  const port = pair.listenerPort("echo");
  await echoed(port);
  const [held] = target.sockets;
  const targetEnd = socketEnding(held!, 30_000);
  pair.edge.process.signal("SIGKILL");
  await pair.edge.process.waitForEnd();
  await pair.agent.process.waitForLine(/"msg":"not connected"/);
  const failures = async () => {
    const lines = (await pair.agentMetrics())
      .split("\n")
      .filter((line) => line.startsWith("agent_tunnel_connect_failures_total"));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  };
  const before = await failures();
  const since = performance.now();
  await pollUntil(async () => ((await failures()) > before && performance.now() - since > 1_500 ? true : undefined), {
    what: "further attempts",
  });
  // Full jitter from 200 ms upwards: two links make a handful of attempts, not a busy loop.
  expect(await failures()).toBeLessThan(40);
  const startMs = await programStartMs(pair);
  await pair.restartEdge();
  expect(await servedAgain(port)).toBeLessThan(5_000 + 2 * startMs);
  expect(await targetEnd).toMatchObject({ how: "error", code: "ECONNRESET" });
  const [record] = await pair.waitForAgentRecords(1);
  expect(record).toMatchObject({ code: "DX", reason: "tunnel session unknown to the edge" });
  expect(metric(await pair.agentMetrics(), "agent_tunnel_sessions_total")).toBe(2);
}, 40_000);
