import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { findFreePort } from "../support/free-port.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

/** Connects and asks for one echo: the whole way works. */
async function echo(port: number, text = "ping"): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  socket.write(text);
  const [reply] = (await withDeadline(once(socket, "data"), { what: "echo" })) as [Buffer];
  expect(reply.toString()).toBe(text);
  return socket;
}

/** Sends a line and gets it back over a connection that is open already. */
async function echoAgain(socket: Socket, text = "still there"): Promise<void> {
  socket.write(text);
  const [reply] = (await withDeadline(once(socket, "data"), { what: "echo" })) as [Buffer];
  expect(reply.toString()).toBe(text);
}

/** How a connection to `port` ends without a byte from this side. */
async function endingOf(port: number): Promise<{ how: string; code: string | undefined }> {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  const { how, code } = await socketEnding(socket);
  return { how, code };
}

async function edgeJson<T>(pair: SallyportPair, ...args: string[]): Promise<T> {
  return JSON.parse(await pair.command("edge", [...args, "--json", "--config", pair.edge.configPath])) as T;
}

/** The parts of edge.yaml that tests change. */
interface ConfigFile {
  readonly clients: object[];
  readonly listeners: object[];
  readonly deployments: { name: string }[];
  readonly ipFilters: { readonly rules: object[] }[];
}

/** Writes the edge's configuration anew; `change` edits it in place. */
async function changeConfig(path: string, change: (config: ConfigFile) => void): Promise<void> {
  const config = JSON.parse(await readFile(path, "utf8")) as ConfigFile;
  change(config);
  await writeFile(path, `${JSON.stringify(config, undefined, 2)}\n`);
}

const servers: { close(): Promise<void> }[] = [];
afterAll(async () => {
  for (const server of servers) await server.close();
});

describe("a pair", () => {
  let pair: SallyportPair;
  let target: TcpServer;

  beforeAll(async () => {
    target = await startEchoServer();
    servers.push(target);
    pair = await SallyportPair.start({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [
        { name: "tunnelled", target: "echo" },
        { name: "direct", target: `127.0.0.1:${target.port}`, direct: true },
      ],
    });
  });
  afterAll(() => pair?.stop());

  test.for(["tunnelled", "direct"])("carries a %s connection and writes its record", async (name) => {
    const before = pair.records().edge.filter((record) => record.deployment === name).length;
    const socket = await echo(pair.listenerPort(name), "hello");
    socket.end();
    expect((await socketEnding(socket)).how).toBe("end");
    const record = (await pair.waitForEdgeRecords(name, before + 1)).at(-1)!;
    expect(record).toMatchObject({
      deployment: name,
      listener: name,
      bytesIn: 5,
      bytesOut: 5,
      code: "--",
      reason: "finished",
      address: `127.0.0.1:${target.port}`,
    });
    expect(record["connection"]).toMatch(/^[0-9a-f]+-[0-9a-z]+$/);
    expect(record["partner"]).toMatch(/^127\.0\.0\.1:\d+$/);
    for (const time of ["queueMs", "connectMs", "firstByteMs", "totalMs"])
      expect(record[time]).toBeGreaterThanOrEqual(0);
  });

  test("names the same connection id at the edge and at the agent", async () => {
    const before = pair.records().edge.filter((record) => record.deployment === "tunnelled").length;
    const socket = await echo(pair.listenerPort("tunnelled"));
    socket.end();
    await socketEnding(socket);
    const connection = (await pair.waitForEdgeRecords("tunnelled", before + 1)).at(-1)!["connection"];
    const agents = await pollUntil(() => pair.records().agent.find((record) => record["connection"] === connection), {
      what: "the agent's record",
    });
    expect(agents).toMatchObject({ service: "echo", bytesIn: 4, bytesOut: 4, code: "--" });
  });

  test("moves its byte counters while a transfer runs", async () => {
    const bytesIn = async () => {
      const line = (await pair.edgeMetrics())
        .split("\n")
        .find((text) => /^edge_bytes_total.*tunnelled.*"in"/.test(text));
      return Number(line?.split(" ").at(-1));
    };
    const socket = await echo(pair.listenerPort("tunnelled"));
    const before = await bytesIn();
    await echoAgain(socket, "x".repeat(1_000));
    expect((await bytesIn()) - before).toBe(1_000);
    socket.destroy();
  });

  test("lists what it does, and kills a connection on both sides", async () => {
    const socket = await echo(pair.listenerPort("tunnelled"));
    const { connections } = await edgeJson<{ connections: { connection: string; deployment: string }[] }>(
      pair,
      "connections",
      "--deployment",
      "tunnelled",
    );
    const { connection } = connections.at(-1)!;
    await pair.command("edge", ["connection", "kill", connection, "--config", pair.edge.configPath]);
    expect(await socketEnding(socket)).toMatchObject({ how: "error", code: "ECONNRESET" });
    const record = await pollUntil(
      () => pair.records().edge.find((candidate) => candidate["connection"] === connection),
      { what: "record of the killed connection" },
    );
    expect(record).toMatchObject({ code: "KD", reason: "killed by operator" });
    const status = await edgeJson<{ ready: boolean; agents: object[] }>(pair, "status");
    expect(status).toMatchObject({ ready: true, agents: [{ client: "lan", agent: "agent-under-test" }] });
  });

  test.for([
    ["127.0.0.1", "allow"],
    ["192.0.2.1", "block"],
    ["::ffff:127.9.9.9", "allow"],
    ["2001:db8::1", "block"],
  ] as const)("test-ip says for %s: %s", async ([address, action]) => {
    const answer = await edgeJson<{ action: string }>(pair, "test-ip", "loopback", address);
    expect(answer.action).toBe(action);
  });

  test("stops, starts and restarts a deployment, cutting or draining", async () => {
    const command = (...args: string[]) => pair.command("edge", [...args, "--config", pair.edge.configPath]);
    const port = pair.listenerPort("tunnelled");
    const cut = await echo(port);
    await command("deployment", "stop", "tunnelled");
    expect(await socketEnding(cut)).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect((await endingOf(port)).code).toBe("ECONNREFUSED");
    await command("deployment", "start", "tunnelled");
    const drained = await echo(port);
    await command("deployment", "stop", "tunnelled", "--drain");
    expect((await endingOf(port)).code).toBe("ECONNREFUSED");
    await echoAgain(drained);
    await command("deployment", "restart", "tunnelled", "--drain");
    (await echo(port)).destroy();
    await echoAgain(drained);
    drained.destroy();
  });
});

describe("admission", () => {
  test("closes a source that the IP filter blocks at once: no frame, no dial, one record", async () => {
    const target = await startEchoServer();
    servers.push(target);
    const pair = await SallyportPair.start({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [
        { name: "tunnelled", target: "echo" },
        { name: "direct", target: `127.0.0.1:${target.port}`, direct: true },
      ],
      edgeConfig: {
        ipFilters: [{ name: "loopback", default: "allow", rules: [{ action: "block", cidr: "127.0.0.1" }] }],
      },
    });
    try {
      for (const name of ["tunnelled", "direct"]) {
        expect(["end", "error"]).toContain((await endingOf(pair.listenerPort(name))).how);
        const [record] = await pair.waitForEdgeRecords(name, 1);
        expect(record).toMatchObject({ code: "PA", rule: "block 127.0.0.1/32", bytesIn: 0, bytesOut: 0 });
      }
      expect(target.acceptedConnections).toBe(0);
      expect(pair.records().agent).toEqual([]);
      expect(await pair.edgeMetrics()).toMatch(/edge_connections_denied_total{.*reason="ipFilter"} 1/);
    } finally {
      await pair.stop();
    }
  });

  test("refuses beyond the limits, and serves again when there is room", async () => {
    const target = await startEchoServer();
    servers.push(target);
    const pair = await SallyportPair.start({
      deployments: [{ name: "direct", target: `127.0.0.1:${target.port}`, direct: true }],
      edgeConfig: { limits: { maxConnections: 2 } },
    });
    try {
      const port = pair.listenerPort("direct");
      const [one, two] = [await echo(port), await echo(port)];
      expect(["end", "error"]).toContain((await endingOf(port)).how);
      expect((await pair.waitForEdgeRecords("direct", 1))[0]).toMatchObject({ code: "RA" });
      one.destroy();
      await pair.waitForEdgeRecords("direct", 2);
      const three = await echo(port);
      await echoAgain(two);
      three.destroy();
      two.destroy();
    } finally {
      await pair.stop();
    }
  });
});

describe("timeouts and failures", () => {
  let pair: SallyportPair;
  const targets = { unused: 0 };

  beforeAll(async () => {
    targets.unused = await findFreePort();
    const silent = await startTcpServer((socket) => socket.resume());
    servers.push(silent);
    pair = await SallyportPair.start({
      services: {
        silent: `127.0.0.1:${silent.port}`,
        nobody: `127.0.0.1:${targets.unused}`,
        nameless: "no-such-name.invalid:1",
      },
      deployments: [
        { name: "idle", target: "silent" },
        { name: "idle-direct", target: `127.0.0.1:${silent.port}`, direct: true },
        { name: "refused", target: "nobody" },
        { name: "refused-direct", target: `127.0.0.1:${targets.unused}`, direct: true },
        { name: "nameless", target: "nameless" },
        { name: "unlisted", target: "unknown-service" },
      ],
      agentConfig: { allow: [] },
      edgeConfig: { timeouts: { connect: "2s", idle: "300ms", halfClose: "200ms" } },
    });
  });
  afterAll(() => pair?.stop());

  test.for([
    ["idle", "cD", "idle timeout"],
    ["idle-direct", "cD", "idle timeout"],
    ["refused", "SC", "target refused"],
    ["refused-direct", "SC", "target refused"],
    ["nameless", "SC", "target name not found"],
    ["unlisted", "PC", "target not allowed by the agent"],
  ] as const)("%s: the partner is reset and the record says %s, %s", async ([name, code, reason]) => {
    expect(await endingOf(pair.listenerPort(name))).toEqual({ how: "error", code: "ECONNRESET" });
    expect((await pair.waitForEdgeRecords(name, 1))[0]).toMatchObject({ code, reason });
  });
});

describe("the running edge", () => {
  let pair: SallyportPair;
  let target: TcpServer;

  beforeAll(async () => {
    target = await startEchoServer();
    servers.push(target);
    pair = await SallyportPair.start({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [
        { name: "first", target: "echo" },
        { name: "second", target: "echo" },
      ],
    });
  });
  afterAll(() => pair?.stop());

  const readiness = async () => {
    const response = await fetch(`http://127.0.0.1:${pair.edge.metricsPort}/readyz`);
    return { status: response.status, body: await response.text() };
  };

  test("takes a new configuration by SIGHUP without touching what is not concerned", async () => {
    const kept = await echo(pair.listenerPort("first"));
    const port = await findFreePort();
    await changeConfig(pair.edge.configPath, (config) => {
      config.listeners.push({ name: "third", listen: `127.0.0.1:${port}` });
      const third = { name: "third", listener: "third", target: "echo", via: { tunnel: "dmz", client: "lan" } };
      config.deployments.push(third);
      config.ipFilters[0]!.rules.push({ action: "block", cidr: "127.0.0.1" });
    });
    pair.edge.process.signal("SIGHUP");
    await pair.edge.process.waitForLine(/"msg":"configuration reloaded"/);
    (await echo(port)).destroy();
    await echoAgain(kept);
    expect(["end", "error"]).toContain((await endingOf(pair.listenerPort("second"))).how);
    kept.destroy();
  });

  test("keeps the old configuration when the new one is wrong, and says the line", async () => {
    const good = await readFile(pair.edge.configPath, "utf8");
    await writeFile(pair.edge.configPath, good.replace('"listeners"', '"listenrs"'));
    pair.edge.process.signal("SIGHUP");
    const line = await pair.edge.process.waitForLine(/"msg":"configuration not reloaded/);
    expect(line).toMatch(/edge\.yaml:\d+:\d+/);
    await writeFile(
      pair.edge.configPath,
      good.replace(/\{\s*"action": "block",\s*"cidr": "127.0.0.1"\s*\}/, '{"action":"block","cidr":"192.0.2.1"}'),
    );
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    (await echo(pair.listenerPort("first"))).destroy();
  });

  test("renames a deployment and gives its listener to the new one without refusing anybody", async () => {
    const port = pair.listenerPort("first");
    const kept = await echo(port);
    const rename = (from: string, to: string) =>
      changeConfig(pair.edge.configPath, (config) => {
        const deployment = config.deployments.find(({ name }) => name === from)!;
        deployment.name = to;
      });
    await rename("first", "renamed");
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    (await echo(port)).destroy();
    await echoAgain(kept);
    const names = async () =>
      (await edgeJson<{ deployments: { deployment: string; state: string }[] }>(pair, "deployments")).deployments.map(
        ({ deployment, state }) => `${deployment} ${state}`,
      );
    expect(await names()).toContain("renamed running");
    expect(await names()).toContain("first draining");
    await rename("renamed", "first");
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    await echoAgain(kept);
    (await echo(port)).destroy();
    kept.destroy();
    await pollUntil(async () => ((await names()).join().includes("renamed") ? undefined : true), {
      what: "the old name is forgotten",
    });
    expect(await names()).toContain("first running");
  });

  test("says that it is not ready while no agent is connected, and serves again when one returns", async () => {
    expect((await readiness()).status).toBe(200);
    await pair.agent.process.stop();
    const down = await pollUntil(
      async () => {
        const answer = await readiness();
        return answer.status === 503 ? answer : undefined;
      },
      { what: "503" },
    );
    expect(down.body).toContain("client lan");
    expect(await endingOf(pair.listenerPort("first"))).toEqual({ how: "error", code: "ECONNRESET" });
    await pair.restartAgent();
    await pair.waitUntilReady();
    (await echo(pair.listenerPort("first"))).destroy();
  });

  test("rotates a token while both are valid, and cuts the links of a revoked one at once", async () => {
    const clients = () =>
      edgeJson<{ clients: { tokens: { tokenId: string }[]; connected: boolean }[] }>(pair, "client", "list");
    const config = ["--config", pair.edge.configPath];
    const line = await pair.command("edge", ["client", "rotate", "lan", ...config]);
    const [old, fresh] = (await clients()).clients[0]!.tokens.map(({ tokenId }) => tokenId);
    expect([old, fresh]).toEqual([expect.stringMatching(/^[0-9a-f]{8}$/), expect.stringMatching(/^[0-9a-f]{8}$/)]);
    const held = await echo(pair.listenerPort("first"));
    await pair.command("edge", ["client", "revoke", "lan", old!, ...config]);
    expect(await socketEnding(held)).toMatchObject({ how: "error" });
    expect((await clients()).clients[0]).toMatchObject({ connected: false });
    await pair.command("agent", ["join", "--force", "--out", pair.credentialsPath], line);
    await pair.agent.process.stop();
    await pair.restartAgent();
    await pair.waitUntilReady();
    (await echo(pair.listenerPort("first"))).destroy();
  });

  test("learns of a client that is paired while it runs", async () => {
    await changeConfig(pair.edge.configPath, (config) => config.clients.push({ name: "other" }));
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    const line = await pair.command("edge", ["pair", "other", "--config", pair.edge.configPath]);
    expect(line).toMatch(/^sallyport-pair:\S+\n$/);
  });

  test("drains on SIGTERM: what runs goes on, new connections are refused, then it exits with 0", async () => {
    const socket = await echo(pair.listenerPort("first"));
    pair.edge.process.signal("SIGTERM");
    await pair.edge.process.waitForLine(/"msg":"draining"/);
    await pollUntil(
      async () => ((await endingOf(pair.listenerPort("first"))).code === "ECONNREFUSED" ? true : undefined),
      { what: "refused" },
    );
    await echoAgain(socket);
    socket.end();
    expect((await socketEnding(socket)).how).toBe("end");
    expect((await pair.edge.process.waitForEnd(3_000)).code).toBe(0);
  });

  test("an idle edge exits within a second of SIGTERM, a second signal ends a drain at once", async () => {
    await pair.restartEdge();
    const idleSince = performance.now();
    pair.edge.process.signal("SIGTERM");
    await pair.edge.process.waitForEnd(3_000);
    expect(performance.now() - idleSince).toBeLessThan(1_500);
    await pair.restartEdge();
    await pair.waitUntilReady();
    const socket = await echo(pair.listenerPort("first"));
    pair.edge.process.signal("SIGTERM");
    await pair.edge.process.waitForLine(/"msg":"draining"/);
    pair.edge.process.signal("SIGTERM");
    expect((await socketEnding(socket)).how).toBe("error");
    await pair.edge.process.waitForEnd(3_000);
  });
});
