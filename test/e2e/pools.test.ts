/** Several targets and several clients behind one listener, with both programs as processes of their own. */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair, type SallyportPairOptions } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

const cleanUp: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const undo of cleanUp.splice(0).toReversed()) await undo();
});

async function pairWith(options: SallyportPairOptions): Promise<SallyportPair> {
  const pair = await SallyportPair.start(options);
  cleanUp.push(() => pair.stop());
  return pair;
}

/** Says its name at once, and then back what it hears. */
async function namedServer(name: string): Promise<TcpServer> {
  const server = await startTcpServer((socket) => {
    socket.write(`${name}\n`);
    socket.pipe(socket);
  });
  cleanUp.push(() => server.close());
  return server;
}

/** Answers the end of what it hears with its length and SHA-256. */
async function digestServer(): Promise<TcpServer> {
  const server = await startTcpServer((socket) => {
    const hash = createHash("sha256");
    let length = 0;
    socket.on("data", (bytes: Buffer) => {
      hash.update(bytes);
      length += bytes.length;
    });
    socket.on("end", () => socket.end(`${length} ${hash.digest("hex")}`));
  });
  cleanUp.push(() => server.close());
  return server;
}

function partner(pair: SallyportPair, deployment: string): Socket {
  const socket = connect({ host: "127.0.0.1", port: pair.listenerPort(deployment), allowHalfOpen: true });
  socket.on("error", () => undefined);
  cleanUp.push(async () => void socket.destroy());
  return socket;
}

/** The name that the server behind a new connection says; empty when the connection is reset. */
async function nameOf(socket: Socket): Promise<string> {
  const name = await withDeadline(
    new Promise<string>((resolve) => {
      socket.once("data", (bytes: Buffer) => resolve(bytes.toString().trim()));
      socket.once("close", () => resolve(""));
    }),
    { what: "the name of a server", timeoutMs: 15_000 },
  );
  return name;
}

async function askedNames(pair: SallyportPair, deployment: string, count: number): Promise<string[]> {
  const names: string[] = [];
  for (let at = 0; at < count; at += 1) {
    const socket = partner(pair, deployment);
    names.push(await nameOf(socket));
    socket.destroy();
  }
  return names;
}

interface TargetView {
  readonly target: string;
  readonly client?: string;
  readonly condition: string;
  readonly active: number;
}

async function targets(pair: SallyportPair, deployment: string): Promise<TargetView[]> {
  const out = await pair.command("edge", ["target", "list", deployment, "--json", "--config", pair.edge.configPath]);
  return (JSON.parse(out) as { targets: TargetView[] }).targets;
}

async function untilCondition(pair: SallyportPair, deployment: string, wanted: Record<string, string>): Promise<void> {
  await pollUntil(
    async () => {
      const now = await targets(pair, deployment);
      const differs = Object.entries(wanted).filter(
        ([name, condition]) => now.find(({ target }) => target === name)?.condition !== condition,
      );
      return differs.length === 0 ? true : undefined;
    },
    { what: `targets ${JSON.stringify(wanted)}`, timeoutMs: 20_000 },
  );
}

const set = (pair: SallyportPair, args: readonly string[]) =>
  pair.command("edge", ["target", ...args, "--config", pair.edge.configPath]);

const fastChecks = { interval: "200ms", timeout: "2s", rise: 1, fall: 2 };

describe.each([
  ["through the tunnel", false],
  ["directly", true],
])("a pool, %s", (_, direct) => {
  it("gives what a partner sent before anybody was connected to the target that answers, once and unchanged", async () => {
    const server = await digestServer();
    const dead = await findFreePort();
    const alive = `127.0.0.1:${server.port}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "early",
          target: alive,
          direct,
          settings: {
            target: undefined,
            targets: [{ target: `127.0.0.1:${dead}` }, { target: alive }],
            balance: "first",
            check: { type: "none" },
            ejection: { failures: 0 },
          },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    const bytes = Buffer.alloc(12_345, "early bytes ");
    const socket = partner(pair, "early");
    socket.end(bytes);
    const [answer] = (await withDeadline(once(socket, "data"), { what: "the digest", timeoutMs: 15_000 })) as [Buffer];
    expect(answer.toString()).toBe(`${bytes.length} ${createHash("sha256").update(bytes).digest("hex")}`);
    const [record] = await pair.waitForEdgeRecords("early", 1);
    expect(record).toMatchObject({ target: alive, attempts: 2, redispatched: true, code: "--", bytesIn: bytes.length });
    const figures = await pair.edgeMetrics();
    const labels = (name: string) => `deployment="early",target="${name}",client="${direct ? "" : "lan"}"`;
    expect(metric(figures, "edge_target_connect_errors_total", labels(`127.0.0.1:${dead}`))).toBe(1);
    expect(metric(figures, "edge_target_redispatch_total", labels(`127.0.0.1:${dead}`))).toBe(1);
    expect(metric(figures, "edge_target_retries_total", labels(alive))).toBe(1);
  });

  it("drains and maintains targets on command, tells when none is left, and takes them back", async () => {
    const [a, b] = [await namedServer("a"), await namedServer("b")];
    const [targetA, targetB] = [`127.0.0.1:${a.port}`, `127.0.0.1:${b.port}`];
    const pair = await pairWith({
      deployments: [
        {
          name: "named",
          target: targetA,
          direct,
          settings: { target: undefined, targets: [{ target: targetA }, { target: targetB }], check: fastChecks },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    const running = partner(pair, "named");
    const first = await nameOf(running);
    const [drained, other] = first === "a" ? [targetA, targetB] : [targetB, targetA];
    await set(pair, ["drain", "named", drained]);
    const otherName = first === "a" ? "b" : "a";
    expect(await askedNames(pair, "named", 4)).toEqual([otherName, otherName, otherName, otherName]);
    running.write("still here");
    expect(await nameOf(running)).toBe("still here");
    await set(pair, ["maint", "named", other]);
    const ready = await fetch(`http://127.0.0.1:${pair.edge.metricsPort}/readyz`);
    expect([ready.status, await ready.text()]).toEqual([503, expect.stringContaining("no target is available")]);
    expect(await askedNames(pair, "named", 1)).toEqual([""]);
    await set(pair, ["ready", "named", drained]);
    await set(pair, ["ready", "named", other]);
    expect((await askedNames(pair, "named", 4)).toSorted()).toEqual(["a", "a", "b", "b"]);
    const records = await pair.waitForEdgeRecords("named", 1);
    expect(records.filter(({ code }) => code === "SC").map(({ reason }) => reason)).toEqual(["no target is available"]);
  });

  it("lets connections wait, unread, for a target that is full, and refuses what is too many", async () => {
    const server = await namedServer("only");
    const target = `127.0.0.1:${server.port}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "full",
          target,
          direct,
          settings: {
            target: undefined,
            targets: [{ target, maxConnections: 1 }],
            queue: { max: 1, timeout: "20s" },
          },
        },
      ],
    });
    const first = partner(pair, "full");
    expect(await nameOf(first)).toBe("only");
    const second = partner(pair, "full");
    second.write("asked before");
    await pollUntil(
      async () => (metric(await pair.edgeMetrics(), "edge_target_queue", 'deployment="full"') === 1 ? true : undefined),
      { what: "the second waits", timeoutMs: 10_000 },
    );
    const third = partner(pair, "full");
    expect(await socketEnding(third)).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect(server.acceptedConnections).toBe(1);
    first.destroy();
    expect(await nameOf(second)).toMatch(/^only/);
    second.destroy();
    const records = await pair.waitForEdgeRecords("full", 3);
    const waited = records.find(({ queuePosition }) => queuePosition === 0);
    expect(waited?.queueMs).toBeGreaterThan(0);
    expect(records.filter(({ code }) => code === "RQ").map(({ reason }) => reason)).toEqual([
      "too many connections wait for a target",
    ]);
  });

  it("resets the connections of a target that is marked down, where `onDown` is close, and uses the backup", async () => {
    let greeting = "main serves";
    const main = await startTcpServer((socket) => void socket.write(`${greeting}\n`));
    cleanUp.push(() => main.close());
    const backup = await namedServer("backup serves");
    const target = `127.0.0.1:${main.port}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "closing",
          target,
          direct,
          settings: {
            target: undefined,
            targets: [{ target }, { target: `127.0.0.1:${backup.port}`, backup: true }],
            check: { ...fastChecks, expect: "serves" },
            onDown: "close",
          },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    const running = partner(pair, "closing");
    expect(await nameOf(running)).toBe("main serves");
    const ending = socketEnding(running);
    // The port stays open, and what answers is not what is expected.
    greeting = "not the one";
    expect(await ending).toMatchObject({ how: "error", code: "ECONNRESET" });
    await pair.waitForEdgeRecords("closing", 1);
    expect(pair.records().edge.at(-1)).toMatchObject({ code: "DD", reason: "target marked down", target });
    expect(await askedNames(pair, "closing", 2)).toEqual(["backup serves", "backup serves"]);
  });

  it("dials nobody for connections that wait for a target when their deployment is stopped", async () => {
    const server = await namedServer("only");
    const target = `127.0.0.1:${server.port}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "stopped",
          target,
          direct,
          settings: { target: undefined, targets: [{ target, maxConnections: 1 }], queue: { max: 5, timeout: "1m" } },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    const first = partner(pair, "stopped");
    expect(await nameOf(first)).toBe("only");
    const waiting = Array.from({ length: 5 }, () => partner(pair, "stopped"));
    const queued = async () => metric(await pair.edgeMetrics(), "edge_target_queue", 'deployment="stopped"') === 5;
    await pollUntil(async () => (await queued()) || undefined, { what: "five that wait" });
    await pair.command("edge", ["deployment", "stop", "stopped", "--config", pair.edge.configPath]);
    for (const socket of [first, ...waiting]) expect(await socketEnding(socket)).toMatchObject({ how: "error" });
    const records = await pair.waitForEdgeRecords("stopped", 6);
    expect(records.map(({ reason, attempts }) => ({ reason, attempts }))).toEqual([
      { reason: "killed by operator", attempts: 1 },
      ...waiting.map(() => ({ reason: "killed by operator", attempts: undefined })),
    ]);
  });

  it("serves those that wait when a reload makes room, and has moved their deployment to another listener", async () => {
    const server = await namedServer("only");
    const target = `127.0.0.1:${server.port}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "moving",
          target,
          direct,
          settings: { target: undefined, targets: [{ target, maxConnections: 1 }], queue: { max: 5, timeout: "1m" } },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    expect(await nameOf(partner(pair, "moving"))).toBe("only");
    const waiting = nameOf(partner(pair, "moving"));
    const queued = async () => metric(await pair.edgeMetrics(), "edge_target_queue", 'deployment="moving"') === 1;
    await pollUntil(async () => (await queued()) || undefined, { what: "one that waits" });
    const { configPath } = pair.edge;
    const text = await readFile(configPath, "utf8");
    const { listeners, deployments, ...others } = JSON.parse(text) as { listeners: object[]; deployments: object[] };
    const changed = {
      ...others,
      listeners: listeners.map((listener) => ({ ...listener, name: "renamed" })),
      deployments: deployments.map((one) => ({
        ...one,
        listener: "renamed",
        targets: [{ target, maxConnections: 2 }],
      })),
    };
    await writeFile(configPath, JSON.stringify(changed));
    await pair.command("edge", ["reload", "--config", configPath]);
    expect(await waiting).toBe("only");
  });

  it("leaves those alone that wait for another target when one that they have tried is marked down", async () => {
    const dying = await startTcpServer((socket) => void socket.write("dying\n"));
    const other = await namedServer("other");
    const [target, full] = [`127.0.0.1:${dying.port}`, `127.0.0.1:${other.port}`];
    const pair = await pairWith({
      deployments: [
        {
          name: "waiting",
          target,
          direct,
          settings: {
            target: undefined,
            targets: [{ target }, { target: full, maxConnections: 1 }],
            balance: "first",
            queue: { max: 5, timeout: "1m" },
            check: { ...fastChecks, interval: "1s", fall: 4 },
            onDown: "close",
          },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    // The first check, which counts at once.
    await pollUntil(() => dying.acceptedConnections > 0 || undefined, { what: "a check" });
    await set(pair, ["drain", "waiting", target]);
    const first = partner(pair, "waiting");
    expect(await nameOf(first)).toBe("other");
    await set(pair, ["ready", "waiting", target]);
    await dying.close();
    const second = partner(pair, "waiting");
    const name = nameOf(second);
    await pair.edge.process.waitForLine(/"msg":"target down"/);
    first.destroy();
    expect(await name).toBe("other");
    second.destroy();
    const records = await pair.waitForEdgeRecords("waiting", 2);
    expect(records.at(-1)).toMatchObject({ target: full, attempts: 2, queuePosition: 0 });
  });
});

describe("checks through an agent", () => {
  it("leave no record there, are counted, and mark down and up", async () => {
    const server = await namedServer("x");
    const target = `127.0.0.1:${server.port}`;
    const dead = `127.0.0.1:${await findFreePort()}`;
    const pair = await pairWith({
      deployments: [
        {
          name: "checked",
          target,
          settings: { target: undefined, targets: [{ target }, { target: dead }], check: fastChecks },
        },
      ],
      agentConfig: { allow: ["127.0.0.0/8:1-65535"] },
    });
    await untilCondition(pair, "checked", { [target]: "up", [dead]: "down" });
    await pollUntil(
      async () =>
        metric(await pair.agentMetrics(), "agent_checks_total", 'service="(allow)"') > 10 ? true : undefined,
      { what: "ten checks", timeoutMs: 20_000 },
    );
    expect(await askedNames(pair, "checked", 2)).toEqual(["x", "x"]);
    await pair.waitForAgentRecords(2);
    const figures = await pair.agentMetrics();
    expect(pair.records().agent.map(({ partner: from }) => from)).not.toContain("check");
    expect(pair.records().agent).toHaveLength(2);
    expect(metric(figures, "agent_connections_total", 'service="(allow)"')).toBe(2);
    const edge = await pair.edgeMetrics();
    expect(metric(edge, "edge_target_up", `deployment="checked",target="${dead}",client="lan"`)).toBe(0);
    expect(metric(edge, "edge_target_check_failures_total", `target="${dead}"`)).toBeGreaterThan(0);
    expect(metric(edge, "edge_target_downtime_seconds_total", `target="${dead}"`)).toBeGreaterThan(0);
  });
});

describe("two clients of one deployment", () => {
  it("are two ways to a target: what one site cannot reach the other may, and one is enough", async () => {
    const [a, b] = [await namedServer("site a"), await namedServer("site b")];
    const dead = await findFreePort();
    const pair = await pairWith({
      deployments: [
        {
          name: "sites",
          target: "db",
          settings: { via: { tunnel: "dmz", clients: ["lan", "site-b"] }, check: fastChecks },
        },
        {
          name: "half",
          target: "half",
          settings: { via: { tunnel: "dmz", clients: ["lan", "site-b"] }, check: { type: "none" } },
        },
      ],
      services: { db: `127.0.0.1:${a.port}`, half: `127.0.0.1:${dead}` },
      edgeConfig: { clients: [{ name: "lan" }, { name: "site-b" }] },
    });
    const siteB = await pair.addAgent("site-b", { db: `127.0.0.1:${b.port}`, half: `127.0.0.1:${b.port}` });
    await pollUntil(
      async () => {
        const now = await targets(pair, "sites");
        return now.every(({ condition }) => condition === "up") ? true : undefined;
      },
      { what: "both sites", timeoutMs: 20_000 },
    );
    expect((await askedNames(pair, "sites", 4)).toSorted()).toEqual(["site a", "site a", "site b", "site b"]);
    expect(await askedNames(pair, "half", 2)).toEqual(["site b", "site b"]);
    await siteB.process.stop();
    expect(await askedNames(pair, "sites", 2)).toEqual(["site a", "site a"]);
    const records = await pair.waitForEdgeRecords("half", 2);
    expect(records.map(({ client, target }) => `${String(client)} ${String(target)}`)).toEqual([
      "site-b half",
      "site-b half",
    ]);
  });
});
