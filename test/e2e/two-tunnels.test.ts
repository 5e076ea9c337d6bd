import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { Agent } from "../../packages/agent/src/agent.ts";
import { writeCredentials } from "../../packages/agent/src/credentials-file.ts";
import { Edge } from "../../packages/edge/src/edge.ts";
import { pairClient, rotateClient } from "../../packages/edge/src/pairing.ts";
import { createLogger } from "../../packages/host/src/index.ts";
import { parsePairingLine } from "../../packages/tunnel/src/index.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { findFreePort } from "../support/free-port.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { makeTempDir } from "../support/temp-dir.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** An edge with two tunnels and a deployment by each of them; `credentials` are those of one client for each tunnel. */
async function startEdge(directory: string): Promise<{ edge: Edge; credentials: string[] }> {
  const names = ["inside", "outside"];
  const ports = await Promise.all(names.map(() => findFreePort()));
  const configPath = join(directory, "edge.yaml");
  const configuration = {
    name: "edge",
    stateDir: join(directory, "edge"),
    tunnels: names.map((name, at) => ({ name, listen: `127.0.0.1:${ports[at]}` })),
    clients: [{ name: "lan" }],
    listeners: names.map((name) => ({ name, listen: "127.0.0.1:0" })),
    deployments: names.map((name) => ({
      name,
      listener: name,
      target: "echo",
      via: { tunnel: name, client: "lan" },
    })),
  };
  await writeFile(configPath, JSON.stringify(configuration));
  const log = createLogger({ name: "edge", destination: { write: () => undefined } });
  const edge = await Edge.start(configPath, log);
  closers.push(() => edge.stop({ drain: false }));
  const request = { config: edge.config, clients: edge.clients, client: "lan" };
  const pairings = [
    await pairClient({ ...request, tunnel: "inside" }),
    await rotateClient({ ...request, tunnel: "outside" }),
  ];
  const credentials: string[] = [];
  for (const [at, { line }] of pairings.entries()) {
    const path = join(directory, `${names[at]}.credentials`);
    await writeCredentials(path, parsePairingLine(line));
    credentials.push(path);
  }
  return { edge, credentials };
}

async function startAgent(directory: string, credentials: readonly string[]): Promise<Agent> {
  const target = await startEchoServer();
  closers.push(() => target.close());
  const configPath = join(directory, "agent.yaml");
  const configuration = {
    name: "agent",
    stateDir: join(directory, "agent"),
    edges: credentials.map((credentialsFile) => ({ credentialsFile })),
    services: { echo: `127.0.0.1:${target.port}` },
  };
  await writeFile(configPath, JSON.stringify(configuration));
  const log = createLogger({ name: "agent", destination: { write: () => undefined } });
  const agent = await Agent.start(configPath, log);
  closers.push(() => agent.stop({ drain: false }));
  return agent;
}

function partnerOf(edge: Edge, deployment: string) {
  const port = edge.deployments.get(deployment)?.address?.port ?? 0;
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  closers.push(() => Promise.resolve(socket.destroy()));
  return socket;
}

async function prepare(tunnels: number) {
  const directory = await makeTempDir();
  closers.push(() => directory.remove());
  const { edge, credentials } = await startEdge(directory.path);
  const agent = await startAgent(directory.path, credentials.slice(0, tunnels));
  const ready = () => agent.edges.every((session) => session.links === 2) || undefined;
  await pollUntil(ready, { what: "all links" });
  return { edge, agent };
}

test("a deployment is served by agents of its own tunnel only", async () => {
  const { edge } = await prepare(1);
  const inside = partnerOf(edge, "inside");
  inside.write("ping");
  await withDeadline(once(inside, "data"), { what: "echo" });
  expect(await socketEnding(partnerOf(edge, "outside"))).toMatchObject({ how: "error", code: "ECONNRESET" });
  expect(edge.notReady).toEqual(["deployment outside: no agent of client lan is connected at tunnel outside"]);
});

test("an agent may reach one edge by two tunnels", async () => {
  const { edge, agent } = await prepare(2);
  for (const name of ["inside", "outside"]) {
    const partner = partnerOf(edge, name);
    partner.write("ping");
    await withDeadline(once(partner, "data"), { what: "echo" });
  }
  expect(edge.notReady).toEqual([]);
  expect(agent.edges.map(({ sessionsStarted }) => sessionsStarted)).toEqual([1, 1]);
});
