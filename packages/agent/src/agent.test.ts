import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { adminRequest, createLogger, Failure } from "@sallyport/host";
import { certificatePin, encodeToken } from "@sallyport/tunnel";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { pollUntil, withDeadline } from "../../../test/support/deadline.ts";
import { findFreePort } from "../../../test/support/free-port.ts";
import { HandWrittenEdge } from "../../../test/support/hand-written-edge.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { makeTempDir } from "../../../test/support/temp-dir.ts";
import { Agent } from "./agent.ts";
import { writeCredentials } from "./credentials-file.ts";

const closers: (() => Promise<unknown> | void)[] = [];
let lines: Record<string, unknown>[];

beforeEach(() => {
  lines = [];
});
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

interface Setup {
  readonly agent: Agent;
  readonly edge: HandWrittenEdge;
  readonly target: TcpServer;
  readonly metricsPort: number;
  readonly write: (changes: Record<string, unknown>) => Promise<void>;
}

/** An agent that is connected to an edge by hand; the target sends `hello` and echoes. */
async function start(changes: Record<string, unknown> = {}): Promise<Setup> {
  const directory = await makeTempDir();
  const { path } = directory;
  closers.push(() => directory.remove());
  const edge = await HandWrittenEdge.start();
  closers.push(() => edge.stop());
  const target = await startTcpServer((socket: Socket) => {
    socket.write("hello ");
    socket.pipe(socket);
  });
  closers.push(() => target.close());
  const der = new X509Certificate(edge.certificate.cert).raw;
  const credentialsFile = join(path, "dmz.credentials");
  await writeCredentials(credentialsFile, {
    address: `127.0.0.1:${edge.port}`,
    client: "lan",
    token: encodeToken(edge.token),
    pin: certificatePin(der),
    certificate: der.toString("base64"),
  });
  const metricsPort = await findFreePort();
  const configPath = join(path, "agent.yaml");
  const write = (more: Record<string, unknown>) =>
    writeFile(
      configPath,
      JSON.stringify({
        name: "lan-agent-1",
        stateDir: join(path, "state"),
        edges: [{ credentialsFile }],
        services: { echo: `127.0.0.1:${target.port}` },
        metrics: { listen: `127.0.0.1:${metricsPort}` },
        ...more,
      }),
    );
  await write(changes);
  const log = createLogger({
    name: "test",
    level: "debug",
    destination: { write: (line: string) => lines.push(JSON.parse(line)) },
  });
  const agent = await Agent.start(configPath, log);
  closers.push(() => agent.stop({ drain: false }));
  await edge.connected({ links: 2 });
  return { agent, edge, target, metricsPort, write };
}

async function get(port: number, path: string): Promise<{ status: number; body: string }> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, { signal: AbortSignal.timeout(5_000) });
  return { status: response.status, body: await response.text() };
}

function ask(agent: Agent, path: string, body?: object): Promise<unknown> {
  return adminRequest(
    { stateDir: agent.config.stateDir, program: "sallyport-agent" },
    { method: body === undefined ? "GET" : "POST", path, ...(body === undefined ? {} : { body }) },
  );
}

/** An open stream whose target has said hello. */
async function openEcho(edge: HandWrittenEdge) {
  const opened = edge.open("echo");
  await opened.answer;
  await pollUntil(() => opened.received().toString() === "hello " || undefined, { what: "hello" });
  return opened;
}

function connectionLines(): Record<string, unknown>[] {
  return lines.filter(({ msg }) => msg === "connection");
}

describe("a running agent", () => {
  it("is ready exactly while its edge is connected, and says why not", async () => {
    const { agent, edge, metricsPort } = await start();
    await pollUntil(() => agent.notReady.length === 0 || undefined, { what: "ready" });
    expect(await get(metricsPort, "/readyz")).toEqual({ status: 200, body: "ready\n" });
    await edge.goDown();
    await pollUntil(() => agent.notReady.length > 0 || undefined, { what: "not ready" });
    const { status, body } = await get(metricsPort, "/readyz");
    expect(status).toBe(503);
    expect(body).toContain(`edge 127.0.0.1:${edge.port} is not connected`);
    expect(await get(metricsPort, "/healthz")).toMatchObject({ status: 200 });
  });

  it("counts bytes while a transfer runs", async () => {
    const { edge, metricsPort } = await start();
    const opened = await openEcho(edge);
    opened.stream.write(Buffer.from("four"));
    const metrics = await pollUntil(
      async () => {
        const { body } = await get(metricsPort, "/metrics");
        return body.includes('agent_bytes_total{dir="in"} 4') && body.includes('agent_bytes_total{dir="out"} 10')
          ? body
          : undefined;
      },
      { what: "bytes in the metrics" },
    );
    expect(metrics).toContain('agent_connections_active{service="echo"} 1');
    expect(metrics).toContain('agent_connections_total{service="echo"} 1');
    expect(metrics).toContain(`agent_tunnel_links{edge="127.0.0.1:${edge.port}"} 2`);
    expect(metrics).toContain(`agent_tunnel_sessions{edge="127.0.0.1:${edge.port}"} 1`);
    expect(metrics).toContain("agent_forbidden_total 0");
  });

  it("lists its connections on the admin socket and kills one of them", async () => {
    const { agent, edge, target } = await start();
    const opened = await openEcho(edge);
    const other = await openEcho(edge);
    const { connections } = (await ask(agent, "/connections")) as { connections: { connection: string }[] };
    expect(connections).toMatchObject([
      { edge: "edge-by-hand", target: "echo", address: `127.0.0.1:${target.port}`, bytesOut: 6 },
      { edge: "edge-by-hand", target: "echo" },
    ]);
    expect(await ask(agent, "/status")).toMatchObject({
      name: "lan-agent-1",
      ready: true,
      connections: 2,
      edges: [{ address: `127.0.0.1:${edge.port}`, edge: "edge-by-hand", links: 2, streams: 2 }],
    });
    const id = connections[0]!.connection;
    expect(await ask(agent, "/connections/kill", { connection: id })).toEqual({ killed: id });
    expect(await withDeadline(opened.end, { what: "killed" })).toBe("reset killed by peer");
    await expect(ask(agent, "/connections/kill", { connection: id })).rejects.toThrow("does not exist");
    other.stream.end();
    expect(await withDeadline(other.end, { what: "end" })).toBe("finished");
    await pollUntil(() => connectionLines().length === 2 || undefined, { what: "two records" });
    expect(connectionLines()).toMatchObject([
      { connection: id, code: "KD" },
      { connection: connections[1]!.connection, code: "--", service: "echo", reason: "finished" },
    ]);
  });

  it("shows the token nowhere", async () => {
    const { agent, edge, metricsPort } = await start();
    await openEcho(edge);
    const shown = JSON.stringify([
      lines,
      await ask(agent, "/status"),
      await ask(agent, "/connections"),
      await get(metricsPort, "/metrics"),
    ]);
    expect(shown).not.toContain(encodeToken(edge.token));
    expect(shown).not.toContain(edge.session.id);
  });
});

describe("a reload", () => {
  it("takes services, limits and log level over, and leaves running connections alone", async () => {
    const { agent, edge, target, write } = await start();
    const running = await openEcho(edge);
    await write({
      services: { renamed: `127.0.0.1:${target.port}` },
      limits: { maxStreams: 1 },
      log: { level: "warn" },
    });
    expect(await ask(agent, "/reload", {})).toEqual({ restartNeeded: [] });
    expect(await edge.open("echo").answer).toBe("reset forbidden");
    expect(await edge.open("renamed").answer).toBe("reset limit");
    expect(agent.log.level).toBe("warn");
    running.stream.write(Buffer.from("still here"));
    running.stream.end();
    expect(await withDeadline(running.end, { what: "end" })).toBe("finished");
    expect(running.received().toString()).toBe("hello still here");
    await pollUntil(() => agent.connections.context.limits.active === 0 || undefined, { what: "permit back" });
    expect(await edge.open("renamed").answer).toBe(`127.0.0.1:${target.port}`);
  });

  it("of a bad file changes nothing and names the line", async () => {
    const { agent, edge, write } = await start();
    await write({ servises: {} });
    const before = agent.config;
    expect(() => agent.reload()).toThrow(Failure);
    expect(() => agent.reload()).toThrow(/agent\.yaml:\d+:\d+: servises: unknown key; did you mean services\?/);
    expect(agent.config).toBe(before);
    await openEcho(edge);
  });

  it("names the keys that need a restart, each time until there is one", async () => {
    const { agent, write } = await start();
    const accessLog = { file: "/var/log/agent.log" };
    await write({ links: 3, limits: { maxStreams: 20_000 }, heartbeat: { interval: "5s", timeout: "25s" }, accessLog });
    const restartNeeded = ["links", "heartbeat", "accessLog", "limits.maxStreams"];
    expect(agent.reload()).toEqual({ restartNeeded });
    expect(agent.reload()).toEqual({ restartNeeded });
    await write({});
    expect(agent.reload()).toEqual({ restartNeeded: [] });
  });
});

describe("a stop", () => {
  it("of an idle agent takes less than a second", async () => {
    const { agent, edge } = await start();
    const before = performance.now();
    await agent.stop({ drain: true });
    expect(performance.now() - before).toBeLessThan(1_000);
    expect(edge.session.goneAway).toEqual(["agent is shutting down"]);
    expect(agent.notReady).toEqual(["shutting down"]);
  });

  it("lets running connections finish and takes no new ones", async () => {
    const { agent, edge } = await start();
    const running = await openEcho(edge);
    const stopped = agent.stop({ drain: true });
    await pollUntil(() => edge.session.goneAway.length > 0 || undefined, { what: "GO_AWAY" });
    expect(() => edge.open("echo")).toThrow("draining");
    running.stream.write(Buffer.from("last words"));
    running.stream.end();
    expect(await withDeadline(running.end, { what: "end" })).toBe("finished");
    expect(running.received().toString()).toBe("hello last words");
    await withDeadline(stopped, { what: "stop" });
  });

  it("resets what runs when the drain timeout is over", async () => {
    const { agent, edge, target } = await start({ drainTimeout: "100ms" });
    const running = await openEcho(edge);
    const [socket] = target.sockets;
    const reset = once(socket!, "error");
    await withDeadline(agent.stop({ drain: true }), { what: "stop" });
    expect(await withDeadline(running.end, { what: "reset" })).toBe("reset shutdown by peer");
    expect(await withDeadline(reset, { what: "reset of the target" })).toMatchObject([{ code: "ECONNRESET" }]);
    expect(connectionLines()).toMatchObject([{ code: "LD" }]);
  });

  it("is cut short by a second one", async () => {
    const { agent, edge } = await start({ drainTimeout: "1h" });
    const running = await openEcho(edge);
    const first = agent.stop({ drain: true });
    await agent.stop({ drain: false });
    await withDeadline(first, { what: "first stop" });
    expect(await withDeadline(running.end, { what: "reset" })).toBe("reset shutdown by peer");
  });
});

describe("a start", () => {
  it("fails without leaving anything open when credentials cannot be read", async () => {
    const directory = await makeTempDir();
    const { path } = directory;
    closers.push(() => directory.remove());
    const configPath = join(path, "agent.yaml");
    const config = {
      name: "a",
      stateDir: join(path, "state"),
      edges: [{ credentialsFile: join(path, "none") }],
      services: { a: "127.0.0.1:1" },
    };
    await writeFile(configPath, JSON.stringify(config));
    const log = createLogger({ name: "test", destination: { write: () => undefined } });
    await expect(Agent.start(configPath, log)).rejects.toMatchObject({ exitCode: 74, where: join(path, "none") });
  });
});
