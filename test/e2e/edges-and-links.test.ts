/** One agent, its edges and its links: a session to each edge, and links that are replaced while they work. */
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { Agent } from "../../packages/agent/src/agent.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { LoopbackEdge, loggerTo } from "../support/loopback-edge.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import { TwoWayTransfer } from "../support/two-way-transfer.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** An agent of these edges whose service `echo` is an echo server; every link stands. */
async function startAgent(directory: string, edges: readonly LoopbackEdge[], settings: object = {}) {
  const target = await startEchoServer();
  closers.push(() => target.close());
  const configPath = join(directory, "agent.yaml");
  const configuration = {
    name: "agent",
    stateDir: join(directory, "agent"),
    edges: edges.map(({ credentialsPath }) => ({ credentialsFile: credentialsPath })),
    services: { echo: `127.0.0.1:${target.port}` },
    ...settings,
  };
  await writeFile(configPath, JSON.stringify(configuration));
  const agent = await Agent.start(configPath, loggerTo("agent"));
  closers.push(() => agent.stop({ drain: false }));
  const linked = async () => {
    const areLinked = () => agent.edges.every(({ links }) => links >= 2) || undefined;
    await pollUntil(areLinked, { what: "links to every edge", timeoutMs: 30_000 });
  };
  await linked();
  return { agent, linked };
}

async function startEdge(directory: string, name: string, onLine?: (line: string) => void): Promise<LoopbackEdge> {
  const edge = await LoopbackEdge.start(directory, name, onLine);
  closers.push(() => edge.stop());
  return edge;
}

function partnerOf(edge: LoopbackEdge): Socket {
  const socket = edge.connectPartner();
  closers.push(() => Promise.resolve(socket.destroy()));
  return socket;
}

async function echo(partner: Socket, text: string): Promise<void> {
  partner.write(text);
  const [bytes] = (await withDeadline(once(partner, "data"), { what: "echo" })) as [Buffer];
  expect(bytes.toString()).toBe(text);
}

async function makeDirectory(): Promise<string> {
  const directory = await makeTempDir();
  closers.push(() => directory.remove());
  return directory.path;
}

test("an agent serves two edges independently of each other", async () => {
  const directory = await makeDirectory();
  const first = await startEdge(directory, "first");
  const second = await startEdge(directory, "second");
  const { agent, linked } = await startAgent(directory, [first, second]);
  const [atFirst, atSecond] = [partnerOf(first), partnerOf(second)];
  await echo(atFirst, "one");
  await echo(atSecond, "two");
  expect(agent.edges.map(({ sessionsStarted }) => sessionsStarted)).toEqual([1, 1]);

  // One edge goes: its partner is reset, the other's goes on in the session that it had.
  const ending = socketEnding(atFirst);
  await first.stop();
  expect(await ending).toMatchObject({ how: "error", code: "ECONNRESET" });
  await echo(atSecond, "three");
  await echo(partnerOf(second), "four");

  // It returns: the agent comes back to it, and has never left the other.
  await first.restart();
  await linked();
  await echo(partnerOf(first), "five");
  await echo(atSecond, "six");
  expect(agent.edges.map(({ sessionsStarted }) => sessionsStarted)).toEqual([2, 1]);
});

test("links that are renewed again and again are not seen by the connections that they carry", async () => {
  const directory = await makeDirectory();
  const renewed: string[] = [];
  const edge = await startEdge(directory, "edge", (line) => {
    if (line.includes('"code":4001')) renewed.push(line);
  });
  const { agent } = await startAgent(directory, [edge], { renewLinks: "150ms" });
  const partners = [partnerOf(edge), partnerOf(edge), partnerOf(edge)];
  for (let round = 0; renewed.length < 8; round += 1) {
    for (const partner of partners) await echo(partner, `round ${round}`);
  }
  expect(agent.edges.map(({ sessionsStarted }) => sessionsStarted)).toEqual([1]);
});

test("links that are renewed under load lose no byte, and one is there at any time", async () => {
  const streams = 4;
  const streamBytes = 16 * 1024 ** 2;
  const transfer = await TwoWayTransfer.prepare("renewed links", streamBytes);
  closers.push(() => transfer.close());
  let renewals = 0;
  const pair = await SallyportPair.start({
    services: { bulk: `127.0.0.1:${transfer.targetPort}` },
    deployments: [{ name: "bulk", target: "bulk" }],
    // As soon as a link stands its successor is dialled.
    agentConfig: { renewLinks: "50ms" },
    onLine: (program, line) => {
      if (program === "edge" && line.includes('"code":4001')) renewals += 1;
    },
  });
  closers.push(() => pair.stop());
  const atBoth = async (name: string) => {
    const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
    return { edge: metric(edge, `edge_tunnel_${name}`), agent: metric(agent, `agent_tunnel_${name}`) };
  };
  const renewedBefore = renewals;
  for (let index = 0; index < streams; index++) transfer.addPartner(pair.listenerPort("bulk"));
  const transferring = { hasEnded: false };
  const end = transfer.end(50_000).finally(() => {
    transferring.hasEnded = true;
  });
  const links: Awaited<ReturnType<typeof atBoth>>[] = [];
  while (!transferring.hasEnded) links.push(await atBoth("links"));
  const renewedMeanwhile = renewals - renewedBefore;
  const arrivals = await end;
  expect(arrivals).toHaveLength(2 * streams);
  for (const arrival of arrivals) {
    expect(arrival).toMatchObject({ sentBytes: streamBytes, receivedBytes: streamBytes });
    expect(arrival.receivedDigest).toBe(arrival.sentDigest);
  }
  expect(renewedMeanwhile).toBeGreaterThanOrEqual(4);
  expect(links.length).toBeGreaterThan(0);
  expect(links.filter(({ edge, agent }) => edge < 1 || agent < 1)).toEqual([]);
  expect(await atBoth("links_lost_total")).toEqual({ edge: 0, agent: 0 });
  expect(await atBoth("resumptions_total")).toEqual({ edge: 0, agent: 0 });
  expect(metric(await pair.agentMetrics(), "agent_tunnel_sessions_total")).toBe(1);
});
