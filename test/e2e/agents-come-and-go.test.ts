import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { readCredentials } from "../../packages/agent/src/credentials-file.ts";
import { ResetCode } from "../../packages/protocol/src/index.ts";
import { destroyRawAgents, RawAgent } from "../hostile/raw-agent.ts";
import { TestProcess } from "../support/child-process.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair, type SallyportPairOptions } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

const open: { pair?: SallyportPair; targets: TcpServer[]; processes: TestProcess[] } = { targets: [], processes: [] };

afterEach(async () => {
  destroyRawAgents();
  for (const process of open.processes.splice(0)) {
    process.signal("SIGCONT");
    await process.stop();
  }
  await open.pair?.stop();
  for (const target of open.targets.splice(0)) await target.close();
});

async function startPair(
  hold: object,
  target?: TcpServer,
  more: Partial<SallyportPairOptions> = {},
): Promise<SallyportPair> {
  const server = target ?? (await startEchoServer());
  open.targets.push(server);
  open.pair = await SallyportPair.start({
    services: { service: `127.0.0.1:${server.port}` },
    deployments: [{ name: "only", target: "service", hold }],
    ...more,
    agentConfig: { renewLinks: "0s", ...more.agentConfig },
  });
  return open.pair;
}

function connectPartner(pair: SallyportPair): Socket {
  const socket = connect({ port: pair.listenerPort("only"), host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  return socket;
}

async function echoes(socket: Socket, text: string): Promise<void> {
  socket.write(text);
  const [reply] = (await withDeadline(once(socket, "data"), { what: "echo" })) as [Buffer];
  expect(reply.toString()).toBe(text);
}

async function edgeJson<T>(pair: SallyportPair, ...args: string[]): Promise<T> {
  return JSON.parse(await pair.command("edge", [...args, "--json", "--config", pair.edge.configPath])) as T;
}

interface Status {
  readonly agents: { agent: string; streams: number; links: number; session: string }[];
}

/** Waits until the edge tells `count` held connections. */
async function untilHeld(pair: SallyportPair, count: number): Promise<void> {
  await pollUntil(
    async () =>
      (await pair.edgeMetrics()).includes(`edge_connections_held{listener="only",deployment="only"} ${count}`)
        ? true
        : undefined,
    { what: `${count} held connections` },
  );
}

/** How many had to wait so far, and how many of them in vain. */
async function heldTotals(pair: SallyportPair): Promise<{ held: number; expired: number }> {
  const text = await pair.edgeMetrics();
  const total = (result: string) => metric(text, "edge_connections_held_total", `result="${result}"`);
  return { held: total("held"), expired: total("expired") };
}

/** One more agent process of the same client, with a name of its own or the same. */
async function startAgent(pair: SallyportPair, name: string, changes: object = {}): Promise<TestProcess> {
  const config = JSON.parse(await readFile(pair.agent.configPath, "utf8")) as Record<string, unknown>;
  const stateDir = join(pair.directory, `state-${open.processes.length}`);
  const path = join(pair.directory, `agent-${open.processes.length}.yaml`);
  await writeFile(path, JSON.stringify({ ...config, name, stateDir, metrics: undefined, ...changes }), { mode: 0o600 });
  const program = new URL("../../packages/agent/bin/sallyport-agent.js", import.meta.url).pathname;
  const node = process.env["SALLYPORT_TEST_NODE"] ?? process.execPath;
  const agent = await TestProcess.start({ command: node, args: [program, "run", "--config", path] });
  open.processes.push(agent);
  return agent;
}

describe("while no agent is connected", () => {
  test("connections wait, and are served in their order when it returns", async () => {
    const order: string[] = [];
    const target = await startTcpServer((socket) => {
      socket.once("data", (chunk: Buffer) => {
        order.push(chunk.toString());
        socket.end("served");
      });
    });
    const pair = await startPair({ timeout: "20s" }, target);
    await pair.agent.process.stop();
    const partners: Socket[] = [];
    for (let at = 0; at < 5; at += 1) {
      const partner = connectPartner(pair);
      await once(partner, "connect");
      partner.end(`${at}`);
      partners.push(partner);
      await untilHeld(pair, at + 1);
    }
    expect(target.acceptedConnections).toBe(0);
    await pair.restartAgent();
    for (const partner of partners) expect((await socketEnding(partner)).how).toBe("end");
    expect(order).toEqual(["0", "1", "2", "3", "4"]);
    const records = await pair.waitForEdgeRecords("only", 5);
    for (const record of records) expect(record).toMatchObject({ code: "--", bytesIn: 1, bytesOut: 6 });
    await untilHeld(pair, 0);
    expect(await heldTotals(pair)).toEqual({ held: 5, expired: 0 });
  });

  test("they are reset when they have waited for the timeout, and beyond the most that may wait at once", async () => {
    const pair = await startPair({ timeout: "300ms", max: 1 });
    await pair.agent.process.stop();
    const waits = connectPartner(pair);
    await untilHeld(pair, 1);
    expect(await socketEnding(connectPartner(pair))).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect(await socketEnding(waits)).toMatchObject({ how: "error", code: "ECONNRESET" });
    const codes = (await pair.waitForEdgeRecords("only", 2)).map(({ code }) => code);
    expect(codes).toEqual(["RQ", "DQ"]);
    expect(await heldTotals(pair)).toEqual({ held: 1, expired: 1 });
  });

  test("they are reset at once when nothing may wait", async () => {
    const pair = await startPair({ timeout: "0s" });
    await pair.agent.process.stop();
    expect(await socketEnding(connectPartner(pair))).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect((await pair.waitForEdgeRecords("only", 1))[0]).toMatchObject({ code: "DX", reason: "no agent connected" });
    expect(await heldTotals(pair)).toEqual({ held: 0, expired: 0 });
  });

  test("a thousand that wait for a target which takes one are answered each, and the edge lives on", async () => {
    const targets = [{ target: "service", maxConnections: 1 }];
    const pair = await startPair({}, undefined, {
      deployments: [
        { name: "only", target: "service", hold: { timeout: "1m" }, settings: { target: undefined, targets } },
      ],
      edgeConfig: { limits: { maxConnectionsPerSource: 2_000 } },
    });
    await pair.agent.process.stop();
    const first = connectPartner(pair);
    await untilHeld(pair, 1);
    const others = Array.from({ length: 999 }, () => connectPartner(pair));
    await untilHeld(pair, 1_000);
    await pair.restartAgent();
    const records = await pair.waitForEdgeRecords("only", 999);
    expect(new Set(records.map(({ reason }) => reason))).toEqual(new Set(["connection limit of the target"]));
    await echoes(first, "served");
    for (const partner of [first, ...others]) partner.destroy();
  });

  test("they are not held to be slow while nothing is read from them", async () => {
    const slowBytes = { threshold: 2, window: "1m", ttl: "1h", after: "1s", minBytes: "16B" };
    const pair = await startPair({ timeout: "1m" }, undefined, { edgeConfig: { detectors: { slowBytes } } });
    await pair.agent.process.stop();
    const partners = [connectPartner(pair), connectPartner(pair)];
    await untilHeld(pair, 2);
    const ages = async () => {
      const { connections } = await edgeJson<{ connections: { totalMs: number }[] }>(pair, "connections");
      return connections.map(({ totalMs }) => totalMs);
    };
    await pollUntil(async () => (await ages()).every((age) => age > 1_500) || undefined, { what: "their age" });
    expect(await edgeJson(pair, "ban", "list")).toMatchObject({ bans: [] });
    await pair.restartAgent();
    for (const partner of partners) await echoes(partner, "sixteen bytes and more");
    for (const partner of partners) partner.destroy();
  });

  test("a reload that takes the tunnel out of their way gives them up, and serves those that come", async () => {
    const pair = await startPair({ timeout: "1m" });
    await pair.agent.process.stop();
    const waits = connectPartner(pair);
    await untilHeld(pair, 1);
    const { configPath } = pair.edge;
    const config = JSON.parse(await readFile(configPath, "utf8")) as { deployments: object[] };
    const target = `127.0.0.1:${open.targets[0]?.port ?? 0}`;
    const deployments = config.deployments.map((one) => ({ ...one, via: undefined, target }));
    await writeFile(configPath, JSON.stringify({ ...config, deployments }));
    await pair.command("edge", ["reload", "--config", configPath]);
    expect(await socketEnding(waits)).toMatchObject({ how: "error", code: "ECONNRESET" });
    await echoes(connectPartner(pair), "direct");
  });

  test("a stop of the edge does not wait for them", async () => {
    const pair = await startPair({ timeout: "1m" });
    await pair.agent.process.stop();
    const waits = connectPartner(pair);
    await untilHeld(pair, 1);
    pair.edge.process.signal("SIGTERM");
    expect((await socketEnding(waits)).how).toBe("error");
    expect((await pair.edge.process.waitForEnd(3_000)).code).toBe(0);
    expect((await pair.waitForEdgeRecords("only", 1))[0]).toMatchObject({ code: "LD", reason: "shutdown" });
  });
});

describe("replicas", () => {
  test("share the streams, and when one leaves the other serves", async () => {
    const pair = await startPair({ timeout: "0s" });
    const second = await startAgent(pair, "agent-two");
    const agents = async () => (await edgeJson<Status>(pair, "status")).agents;
    await pollUntil(async () => ((await agents()).length === 2 ? true : undefined), { what: "two agents" });
    const partners = Array.from({ length: 8 }, () => connectPartner(pair));
    for (const partner of partners) await echoes(partner, "x");
    expect((await agents()).map(({ streams }) => streams)).toEqual([4, 4]);
    for (const partner of partners) partner.destroy();
    await second.stop();
    await pollUntil(async () => ((await agents()).length === 1 ? true : undefined), { what: "one agent" });
    const last = connectPartner(pair);
    await echoes(last, "still served");
    last.destroy();
  });

  test("that are full are passed over, and only when all of them are is a connection refused", async () => {
    const pair = await startPair({ timeout: "0s" }, undefined, { agentConfig: { limits: { maxStreams: 1 } } });
    await startAgent(pair, "agent-two", { limits: { maxStreams: 4 } });
    const agents = async () => (await edgeJson<Status>(pair, "status")).agents;
    await pollUntil(async () => ((await agents()).length === 2 ? true : undefined), { what: "two agents" });
    const partners: Socket[] = [];
    for (let at = 0; at < 5; at += 1) {
      const partner = connectPartner(pair);
      await echoes(partner, "x");
      partners.push(partner);
    }
    const streams = Object.fromEntries((await agents()).map(({ agent, streams: count }) => [agent, count]));
    expect(streams).toEqual({ "agent-under-test": 1, "agent-two": 4 });
    expect(await socketEnding(connectPartner(pair))).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect((await pair.waitForEdgeRecords("only", 1))[0]).toMatchObject({ code: "RC", reason: "limit of the agent" });
    for (const partner of partners) partner.destroy();
  });

  test("are left by one that stops: it gets no new streams while it drains, and its own end with it", async () => {
    const pair = await startPair({ timeout: "0s" });
    const second = await startAgent(pair, "agent-two");
    const agents = async () => (await edgeJson<Status>(pair, "status")).agents;
    await pollUntil(async () => ((await agents()).length === 2 ? true : undefined), { what: "two agents" });
    const partners = [connectPartner(pair), connectPartner(pair)];
    for (const partner of partners) await echoes(partner, "x");
    const streams = async () => Object.fromEntries((await agents()).map(({ agent, streams: count }) => [agent, count]));
    expect(await streams()).toEqual({ "agent-under-test": 1, "agent-two": 1 });
    second.signal("SIGTERM");
    await pair.edge.process.waitForLine(/"msg":"agent is draining"/);
    const later = Array.from({ length: 4 }, () => connectPartner(pair));
    for (const partner of later) await echoes(partner, "y");
    expect(await streams()).toEqual({ "agent-under-test": 5, "agent-two": 1 });
    for (const partner of partners) await echoes(partner, "what runs goes on");
    // A second signal: it leaves now, and one of the first two streams with it.
    const endings = partners.map((partner) => socketEnding(partner));
    second.signal("SIGTERM");
    expect((await Promise.race(endings)).how).toBe("error");
    for (const partner of later) await echoes(partner, "z");
    for (const partner of [...partners, ...later]) partner.destroy();
    await Promise.all(endings);
  });

  test("a second process with the name of one that answers is refused", async () => {
    const pair = await startPair({ timeout: "0s" });
    const partner = connectPartner(pair);
    await echoes(partner, "before");
    await startAgent(pair, "agent-under-test");
    await pair.edge.process.waitForLine(/another process presents the name/);
    await echoes(partner, "unharmed");
    expect((await edgeJson<Status>(pair, "status")).agents).toHaveLength(1);
    partner.destroy();
  });

  test("a link that waits for the answer of another agent of its name goes with its token", async () => {
    const pair = await startPair({ timeout: "0s" });
    const credentials = await readCredentials(pair.credentialsPath);
    const first = await RawAgent.greeted(credentials);
    const second = await RawAgent.connect(credentials);
    second.hello();
    // The edge asks the first whether it lives, which is when the second waits.
    await first.awaitFrame("ping");
    await pair.command("edge", ["client", "revoke", "lan", "--config", pair.edge.configPath]);
    await withDeadline(second.ended, { what: "the end of the link", timeoutMs: 2_000 });
    expect(second.frames).toEqual([]);
    expect((await edgeJson<Status>(pair, "status")).agents).toEqual([]);
  });

  test("a second process replaces the first when the first does not answer, and its streams are reset", async () => {
    const pair = await startPair({ timeout: "0s" });
    const partner = connectPartner(pair);
    await echoes(partner, "before");
    const [before] = (await edgeJson<Status>(pair, "status")).agents;
    pair.agent.process.signal("SIGSTOP");
    await startAgent(pair, "agent-under-test");
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET" });
    const after = await pollUntil(
      async () => (await edgeJson<Status>(pair, "status")).agents.find(({ links }) => links > 0),
      { what: "the new agent" },
    );
    expect(after.session).not.toBe(before!.session);
    const next = connectPartner(pair);
    await echoes(next, "served by the new one");
    next.destroy();
    pair.agent.process.signal("SIGCONT");
  });
});

describe("an agent that is asked for a target and", () => {
  const ways = [
    ["stops", "first ", (agent: RawAgent, stream: number) => agent.send(refusal(stream))],
    ["is lost for longer than resumeTimeout", "", (agent: RawAgent) => agent.destroy()],
  ] as const;

  function refusal(stream: number) {
    return { type: "reset", stream, offset: 0, code: ResetCode.shutdown } as const;
  }

  /** A partner whose OPEN and first bytes, if any, have reached an agent by hand. */
  async function opening(
    pair: SallyportPair,
    first: string,
  ): Promise<{ partner: Socket; agent: RawAgent; stream: number }> {
    const agent = await RawAgent.greeted(await readCredentials(pair.credentialsPath));
    const partner = connectPartner(pair);
    if (first !== "") {
      partner.write(first);
      await agent.awaitFrame("data");
    }
    return { partner, agent, stream: (await agent.awaitFrame("open")).stream };
  }

  async function echoesAll(partner: Socket, first: string): Promise<void> {
    const reply: Buffer[] = [];
    partner.on("data", (chunk: Buffer) => reply.push(chunk));
    partner.end("and last");
    expect((await socketEnding(partner)).how).toBe("end");
    expect(Buffer.concat(reply).toString()).toBe(`${first}and last`);
  }

  test.for(ways)("%s makes way for another of its client", async ([, said, leave]) => {
    const pair = await startPair({ timeout: "0s" }, undefined, { edgeConfig: { resumeTimeout: "1s" } });
    // So that the other has fewer.
    const first = connectPartner(pair);
    await echoes(first, "x");
    const { partner, agent, stream } = await opening(pair, said);
    leave(agent, stream);
    // What is sent before that may have gone to the agent that is lost.
    await pollUntil(
      async () =>
        (await edgeJson<Status>(pair, "status")).agents.some(
          ({ agent: name, streams }) => name === "agent-under-test" && streams === 2,
        ) || undefined,
      { what: "the stream with the other agent" },
    );
    await echoesAll(partner, said);
    const [record] = await pair.waitForEdgeRecords("only", 1);
    const bytes = said.length + 8;
    expect(record).toMatchObject({
      code: "--",
      agent: "agent-under-test",
      attempts: 2,
      bytesIn: bytes,
      bytesOut: bytes,
    });
    first.destroy();
  });

  test("is lost when it may have passed on what the partner had sent ends the connection: nobody gets that twice", async () => {
    const pair = await startPair({ timeout: "0s" }, undefined, { edgeConfig: { resumeTimeout: "1s" } });
    const first = connectPartner(pair);
    await echoes(first, "x");
    const { partner, agent } = await opening(pair, "first ");
    agent.destroy();
    expect(await socketEnding(partner)).toMatchObject({ how: "error", code: "ECONNRESET" });
    const [record] = await pair.waitForEdgeRecords("only", 1);
    expect(record).toMatchObject({ code: "DX", reason: "tunnel session not resumed in time" });
    expect(record).not.toHaveProperty("redispatched");
    first.destroy();
  });

  test.for(ways)("%s leaves its partner waiting for one that comes", async ([, said, leave]) => {
    const pair = await startPair({ timeout: "20s" }, undefined, { edgeConfig: { resumeTimeout: "1s" } });
    await pair.agent.process.stop();
    const { partner, agent, stream } = await opening(pair, said);
    leave(agent, stream);
    await untilHeld(pair, 1);
    await pair.restartAgent();
    await echoesAll(partner, said);
    const [record] = await pair.waitForEdgeRecords("only", 1);
    expect(record).toMatchObject({
      code: "--",
      agent: "agent-under-test",
      attempts: 2,
      queuePosition: 0,
      bytesIn: said.length + 8,
    });
  });

  test("stops is followed by five others, and then the partner is reset", async () => {
    const pair = await startPair({ timeout: "20s" });
    await pair.agent.process.stop();
    const credentials = await readCredentials(pair.credentialsPath);
    let opens = 0;
    for (let at = 0; at < 8; at += 1) {
      const agent = await RawAgent.greeted(credentials, { agent: `stops-${at}` });
      void agent.awaitFrame("open", undefined, 20_000).then(
        ({ stream }) => {
          opens += 1;
          agent.send(refusal(stream));
        },
        () => undefined,
      );
    }
    expect(await socketEnding(connectPartner(pair))).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect((await pair.waitForEdgeRecords("only", 1))[0]).toMatchObject({
      code: "LD",
      reason: "shutdown",
      attempts: 6,
    });
    expect(opens).toBe(6);
  });
});
