import { once } from "node:events";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair, type SallyportPairOptions } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { TcpRelay } from "../support/tcp-relay.ts";
import { startTcpServer } from "../support/tcp-server.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

async function startPair(options: SallyportPairOptions): Promise<SallyportPair> {
  const pair = await SallyportPair.start(options);
  closers.push(() => pair.stop());
  return pair;
}

function partnerOf(pair: SallyportPair, deployment: string): Socket {
  const socket = connect({ port: pair.listenerPort(deployment), host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  return socket;
}

async function echo(socket: Socket, text = "ping"): Promise<void> {
  socket.write(text);
  const [reply] = (await withDeadline(once(socket, "data"), { what: "echo" })) as [Buffer];
  expect(reply.toString()).toBe(text);
}

interface ConfigOfPair {
  readonly tunnels: readonly object[];
  readonly listeners: readonly { readonly name: string }[];
  readonly deployments: readonly { readonly name: string }[];
}

async function changeConfig({ edge }: SallyportPair, change: (config: ConfigOfPair) => object): Promise<void> {
  const config = JSON.parse(await readFile(edge.configPath, "utf8")) as ConfigOfPair;
  await writeFile(edge.configPath, JSON.stringify(change(config)));
}

async function startEcho(): Promise<number> {
  const target = await startEchoServer();
  closers.push(() => target.close());
  return target.port;
}

test("the record of a connection names what it was connected to, whatever a reload has changed since", async () => {
  const services = { first: `127.0.0.1:${await startEcho()}`, second: `127.0.0.1:${await startEcho()}` };
  const pair = await startPair({ services, deployments: [{ name: "moving", target: "first" }] });
  const partner = partnerOf(pair, "moving");
  await echo(partner);
  const { configPath } = pair.edge;
  await writeFile(configPath, (await readFile(configPath, "utf8")).replace('"target": "first"', '"target": "second"'));
  await pair.command("edge", ["reload", "--config", configPath]);
  partner.end();
  const [record] = await pair.waitForEdgeRecords("moving", 1);
  expect(record).toMatchObject({ target: "first", address: services.first });
});

describe("a deployment that a reload takes away while a connection runs", () => {
  async function startWithout(drainTimeout: string): Promise<{ pair: SallyportPair; partner: Socket }> {
    const target = `127.0.0.1:${await startEcho()}`;
    const deployments = [
      { name: "stays", target, direct: true },
      { name: "goes", target, direct: true },
    ];
    const pair = await startPair({ deployments, edgeConfig: { drainTimeout } });
    const partner = partnerOf(pair, "goes");
    await echo(partner);
    await changeConfig(pair, ({ listeners, deployments, ...others }) => ({
      ...others,
      listeners: listeners.filter(({ name }) => name === "stays"),
      deployments: deployments.filter(({ name }) => name === "stays"),
    }));
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    return { pair, partner };
  }

  test.each(["start", "restart"])("listens no more, and no %s makes it", async (verb) => {
    const { pair, partner } = await startWithout("1m");
    const command = pair.command("edge", ["deployment", verb, "goes", "--config", pair.edge.configPath]);
    await expect(command).rejects.toThrow("goes is not in the configuration any more");
    expect(await socketEnding(partnerOf(pair, "goes"))).toMatchObject({ how: "error", code: "ECONNREFUSED" });
    partner.destroy();
  });

  test("gives it no more time when there is another reload", async () => {
    const { pair, partner } = await startWithout("1s");
    await changeConfig(pair, (config) => ({ ...config, drainTimeout: "1h" }));
    await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect(await pair.waitForEdgeRecords("goes", 1)).toMatchObject([{ reason: "shutdown" }]);
  });
});

test("a connection that waits for an agent is served when a reload names the tunnel at which there is one", async () => {
  const pair = await startPair({
    services: { echo: `127.0.0.1:${await startEcho()}` },
    deployments: [{ name: "waiting", target: "echo", hold: { timeout: "1m" } }],
  });
  const asBefore = await readFile(pair.edge.configPath, "utf8");
  await changeConfig(pair, ({ tunnels, deployments, ...others }) => ({
    ...others,
    tunnels: [...tunnels, { name: "other", listen: "127.0.0.1:0" }],
    deployments: deployments.map((deployment) => ({ ...deployment, via: { tunnel: "other", client: "lan" } })),
  }));
  await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
  const partner = partnerOf(pair, "waiting");
  const held = async () => metric(await pair.edgeMetrics(), "edge_connections_held", 'deployment="waiting"') === 1;
  await pollUntil(async () => (await held()) || undefined, { what: "one that waits" });
  await writeFile(pair.edge.configPath, asBefore);
  await pair.command("edge", ["reload", "--config", pair.edge.configPath]);
  await echo(partner);
  partner.end();
  expect(await pair.waitForEdgeRecords("waiting", 1)).toMatchObject([{ code: "--", agent: "agent-under-test" }]);
});

test("what takes effect after a restart is told at each reload until then, and has none before", async () => {
  const told: unknown[] = [];
  const pair = await startPair({
    services: { echo: `127.0.0.1:${await startEcho()}` },
    deployments: [{ name: "echo", target: "echo" }],
    onLine: (program, line) => {
      if (program === "edge" && line.includes('"msg":"configuration')) told.push(JSON.parse(line));
    },
  });
  const otherStateDir = join(pair.directory, "other");
  await mkdir(otherStateDir, { mode: 0o700 });
  const reload = async () => {
    const before = told.length;
    pair.edge.process.signal("SIGHUP");
    await pollUntil(() => told.length > before || undefined, { what: "reload" });
    return told.at(-1);
  };
  const asBefore = await readFile(pair.edge.configPath, "utf8");
  await changeConfig(pair, ({ tunnels, ...others }) => ({
    ...others,
    tunnels: tunnels.map((tunnel) => ({ ...tunnel, handshakeTimeout: "3s" })),
    stateDir: otherStateDir,
  }));
  expect(await reload()).toMatchObject({ restartNeeded: ["stateDir", "tunnels"] });
  expect(await reload()).toMatchObject({ restartNeeded: ["stateDir", "tunnels"] });
  // Agents know the certificate that is in the first one.
  expect(await readdir(otherStateDir)).toEqual([]);
  await pair.agent.process.stop();
  await pair.restartAgent();
  await pair.waitUntilReady();
  await writeFile(pair.edge.configPath, asBefore);
  expect(await reload()).not.toHaveProperty("restartNeeded");
});

test("while the edge drains, running connections outlive the loss of all links, and nothing new listens", async () => {
  const relays: TcpRelay[] = [];
  const pair = await startPair({
    services: { echo: `127.0.0.1:${await startEcho()}` },
    deployments: [
      { name: "running", target: "echo" },
      { name: "other", target: "echo" },
    ],
    publicAddress: async (targetPort) => {
      const relay = await TcpRelay.start({ targetPort });
      relays.push(relay);
      closers.push(() => relay.close());
      return `127.0.0.1:${relay.port}`;
    },
  });
  const partner = partnerOf(pair, "running");
  await echo(partner);
  await pair.command("edge", ["deployment", "stop", "other", "--config", pair.edge.configPath]);
  pair.edge.process.signal("SIGTERM");
  await pair.edge.process.waitForLine(/"msg":"draining"/);
  for (const args of [["deployment", "start", "other"], ["reload"]]) {
    await expect(pair.command("edge", [...args, "--config", pair.edge.configPath])).rejects.toThrow("is shutting down");
  }
  for (const relay of relays) relay.cut();
  await pair.edge.process.waitForLine(/"msg":"session resumed"/);
  await echo(partner, "still there");
  partner.end();
  expect(await socketEnding(partner)).toMatchObject({ how: "end" });
  expect((await pair.edge.process.waitForEnd(3_000)).code).toBe(0);
});

test.for(["edge", "agent"] as const)(
  "when a defect ends the %s, what it carries is reset and never looks complete",
  async (program) => {
    const atTarget: Promise<{ how: string }>[] = [];
    const target = await startTcpServer((socket) => {
      socket.write("half of it");
      atTarget.push(socketEnding(socket));
    });
    closers.push(() => target.close());
    const defect = "process.on('SIGUSR2', () => { throw new Error('defect'); })";
    process.env.NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(defect)}`;
    const pair = await startPair({
      services: { target: `127.0.0.1:${target.port}` },
      deployments: [
        { name: "tunnelled", target: "target" },
        { name: "direct", target: `127.0.0.1:${target.port}`, direct: true },
      ],
      edgeConfig: { resumeTimeout: "1s" },
    }).finally(() => delete process.env.NODE_OPTIONS);
    const names = program === "edge" ? ["tunnelled", "direct"] : ["tunnelled"];
    const partners = names.map((name) => partnerOf(pair, name));
    await Promise.all(partners.map((partner) => withDeadline(once(partner, "data"), { what: "data" })));
    const endings = partners.map((partner) => socketEnding(partner));
    await pollUntil(() => (atTarget.length === names.length ? true : undefined), { what: "connections" });
    pair[program].process.signal("SIGUSR2");
    expect((await Promise.all(endings)).map(({ how }) => how)).toEqual(names.map(() => "error"));
    expect((await Promise.all(atTarget)).map(({ how }) => how)).toEqual(names.map(() => "error"));
    expect((await pair[program].process.waitForEnd(3_000)).code).toBe(70);
  },
);
