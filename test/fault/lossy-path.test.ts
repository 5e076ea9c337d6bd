/**
 * The tunnel runs over a path with delay, loss and a low rate: the agent lives in a network namespace of its own behind
 * an emulated link. Heartbeats are far more impatient than the defaults, and still no link may be called dead.
 */
import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { afterEach, expect, test } from "vitest";
import { runSuccessfully } from "../support/child-process.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { findFreePort } from "../support/free-port.ts";
import { EmulatedPath } from "../support/link-emulator.ts";
import type { PathOptions } from "../support/link-emulator.ts";
import { metric } from "../support/metric.ts";
import { RelayProcess } from "../support/relay-process.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { TwoWayTransfer } from "../support/two-way-transfer.ts";

const STREAMS = 8;

let closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

interface Path extends PathOptions {
  readonly name: string;
  /** How much goes each way. */
  readonly bytes: number;
  readonly heartbeat: { readonly interval: string; readonly timeout: string };
  readonly timeoutMs: number;
  /** TCP segments that the agent's system has to send again; shows that packets are really lost. */
  readonly minRetransmitted: number;
}

const table: readonly Path[] = [
  {
    name: "50 ms round trip and 1 % loss",
    delayMs: 25,
    lossPercent: 1,
    bytes: 16 * 1024 ** 2,
    heartbeat: { interval: "500ms", timeout: "3s" },
    timeoutMs: 90_000,
    minRetransmitted: 10,
  },
  {
    name: "500 ms round trip and 1 Mbit/s",
    delayMs: 250,
    kilobitsPerSecond: 1_000,
    queuePackets: 400,
    bytes: 2 * 1024 ** 2,
    heartbeat: { interval: "1s", timeout: "8s" },
    timeoutMs: 90_000,
    minRetransmitted: 0,
  },
];

/** Of all connections in the network namespace of a process. */
async function retransmittedSegments(pid: number): Promise<number> {
  const lines = (await readFile(`/proc/${pid}/net/snmp`, "utf8")).split("\n").filter((line) => line.startsWith("Tcp:"));
  const [names, values] = lines.map((line) => line.split(" "));
  return Number(values![names!.indexOf("RetransSegs")]);
}

/** The agent offers them on the loopback interface of its own network namespace. */
async function metricsOnFarSide(path: EmulatedPath, port: number): Promise<string> {
  const [command = "", ...args] = path.farCommand;
  const script = `fetch("http://127.0.0.1:${port}/metrics").then((answer) => answer.text()).then(console.log)`;
  return (await runSuccessfully({ command, args: [...args, process.execPath, "-e", script] })).stdout;
}

/** Whether this process may make network namespaces: root in a sandbox may not. */
function canMakeNamespaces(): boolean {
  const name = `sallyport-probe-${process.pid}`;
  if (spawnSync("ip", ["netns", "add", name], { stdio: "ignore" }).status !== 0) return false;
  return spawnSync("ip", ["netns", "del", name], { stdio: "ignore" }).status === 0;
}

describeWithPrograms("a path with", ["ip", "gcc"], () => {
  const possible = canMakeNamespaces();
  if (!possible) console.warn("skipped: no network namespace can be made here (ip netns add)");
  test.skipIf(!possible).for(table)("$name carries every byte and loses no link", async (options) => {
    const path = await EmulatedPath.start(options);
    closers.push(() => path.close());
    const transfer = await TwoWayTransfer.prepare(options.name, options.bytes / STREAMS);
    closers.push(() => transfer.close());
    const echo = await startEchoServer();
    closers.push(() => echo.close());
    // The targets stay here, and the agent reaches them on the perfect path.
    const targets: RelayProcess[] = [];
    for (const port of [transfer.targetPort, echo.port]) {
      const relay = await RelayProcess.start(port, path.besideHost);
      closers.push(() => relay.close());
      targets.push(relay);
    }
    const tunnelAddress = `${path.nearHost}:${await findFreePort(path.nearHost)}`;
    const pair = await SallyportPair.start({
      nodePath: await path.nodeOnFarSide("sallyport-agent.js run"),
      services: { bulk: `${path.besideHost}:${targets[0]!.port}`, echo: `${path.besideHost}:${targets[1]!.port}` },
      deployments: [
        { name: "bulk", target: "bulk" },
        { name: "echo", target: "echo" },
      ],
      edgeConfig: {
        tunnels: [{ name: "dmz", listen: tunnelAddress, publicAddress: tunnelAddress }],
        heartbeat: options.heartbeat,
      },
      agentConfig: { heartbeat: options.heartbeat },
    });
    closers.push(() => pair.stop());
    const probe = await EchoProbe.connect(pair.listenerPort("echo"));
    closers.push(() => probe.close());
    // The emulator is really in the way.
    expect(await probe.roundTrip(64, 10_000)).toBeGreaterThanOrEqual(2 * options.delayMs);

    const startedAt = performance.now();
    for (let index = 0; index < STREAMS; index++) transfer.addPartner(pair.listenerPort("bulk"));
    await transfer.arrived(options.bytes, options.timeoutMs);
    // A small stream passes the bulk as well.
    const echoMs = await probe.roundTrip(64, 30_000);
    const arrivals = await transfer.end(options.timeoutMs);
    const seconds = (performance.now() - startedAt) / 1000;
    const metrics = await pair.edgeMetrics();
    const agentMetrics = await metricsOnFarSide(path, pair.agent.metricsPort);
    const retransmitted = await retransmittedSegments(pair.agent.process.pid);
    console.log(
      `${options.name}: ${(options.bytes / seconds / 1e3).toFixed(0)} kB/s each way, echo beside it ${echoMs.toFixed(0)} ms, ` +
        `${retransmitted} TCP segments of the agent sent again`,
    );
    expect(retransmitted).toBeGreaterThanOrEqual(options.minRetransmitted);
    expect(arrivals).toHaveLength(2 * STREAMS);
    for (const arrival of arrivals) expect(arrival.receivedDigest).toBe(arrival.sentDigest);
    expect(metric(metrics, "edge_tunnel_links_lost_total")).toBe(0);
    expect(metric(agentMetrics, "agent_tunnel_links")).toBe(2);
    expect(metric(agentMetrics, "agent_tunnel_links_lost_total")).toBe(0);
    expect(metric(metrics, "edge_tunnel_resumptions_total")).toBe(0);
    expect(metric(metrics, "edge_tunnel_links")).toBe(2);
  });
});
