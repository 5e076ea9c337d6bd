/**
 * Partners and targets do not notice that links are lost: bulk transfers run both ways while the path between agent and
 * edge is cut in every way that a network knows. Cuts come when a seeded random share of the bytes has arrived, so that
 * all of them hit a running transfer however fast the machine is.
 *
 * `SALLYPORT_FAULT_MEBIBYTES` (default 256): how much goes each way in all. `SALLYPORT_FAULT_SEED`: another schedule.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { metric } from "../support/metric.ts";
import { timed } from "../support/machine-wait.ts";
import { RelayProcess } from "../support/relay-process.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import type { SallyportPairOptions } from "../support/sallyport-pair.ts";
import { seededRandom } from "../support/seeded-random.ts";
import { TwoWayTransfer } from "../support/two-way-transfer.ts";

const STREAMS = 8;
const CUTS = 20;
const EACH_WAY_BYTES = Number(process.env.SALLYPORT_FAULT_MEBIBYTES ?? 256) * 1024 ** 2;
const SEED = process.env.SALLYPORT_FAULT_SEED ?? "cuts";
const STREAM_BYTES = EACH_WAY_BYTES / STREAMS;

const kinds = ["reset", "silence", "killed relay"] as const;
type Kind = (typeof kinds)[number];

/** Detection within a second, for the sake of the test's duration. */
const QUICK = { heartbeat: { interval: "200ms", timeout: "1s" } };
const QUICK_TIMEOUT_MS = 1_000;

let closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

async function startRig(options: Pick<SallyportPairOptions, "links" | "edgeConfig" | "agentConfig"> = {}) {
  const transfer = await TwoWayTransfer.prepare(SEED, STREAM_BYTES);
  closers.push(() => transfer.close());
  const echo = await startEchoServer();
  closers.push(() => echo.close());
  let relay: RelayProcess | undefined;
  const pair = await SallyportPair.start({
    services: { bulk: `127.0.0.1:${transfer.targetPort}`, echo: `127.0.0.1:${echo.port}` },
    deployments: [
      { name: "bulk", target: "bulk" },
      { name: "echo", target: "echo" },
    ],
    publicAddress: async (tunnelPort) => {
      relay = await RelayProcess.start(tunnelPort);
      return `127.0.0.1:${relay.port}`;
    },
    ...options,
  });
  closers.push(() => pair.stop());
  closers.push(() => relay!.close());
  const probe = await EchoProbe.connect(pair.listenerPort("echo"));
  closers.push(() => probe.close());
  const links = options.links ?? 2;
  await pollUntil(async () => (metric(await pair.agentMetrics(), "agent_tunnel_links") === links ? true : undefined), {
    what: `${links} links`,
  });
  return { transfer, pair, relay: relay!, probe };
}

/** How long an echo takes from now on, and what of that is the machine's. */
async function recovery(pair: SallyportPair, probe: EchoProbe): Promise<{ recoveryMs: number; machineMs: number }> {
  const pids = [pair.edge.process.pid, pair.agent.process.pid];
  const { result, machineMs } = await timed(pids, () => probe.roundTrip(64, 60_000));
  return { recoveryMs: Math.round(result), machineMs };
}

/** Breaks the path and heals it; resolves with the most milliseconds that an echo may take from then on. */
async function breakPath(relay: RelayProcess, kind: Kind, random: () => number): Promise<number> {
  switch (kind) {
    case "reset":
      // All links at once, or one while the others carry on.
      await relay.order(random() < 0.5 ? "cut" : "cut-one");
      return 1_000;
    case "silence":
      // Only silence tells that they are lost; new connections pass.
      await relay.order("stall");
      return QUICK_TIMEOUT_MS + 1_000;
    case "killed relay":
      await relay.kill();
      await delay(Math.round(random() * 500));
      await relay.revive();
      return 1_000;
  }
}

describe("a transfer both ways", () => {
  test.for([1, 2, 4])(`survives ${CUTS} cuts of its path, with %i links`, async (links) => {
    const { transfer, pair, relay, probe } = await startRig({ links, edgeConfig: QUICK, agentConfig: QUICK });
    const random = seededRandom(`${SEED} ${links}`);
    const cutAt = Array.from({ length: CUTS }, () => random() * 2 * EACH_WAY_BYTES * 0.95).sort((a, b) => a - b);
    for (let index = 0; index < STREAMS; index++) transfer.addPartner(pair.listenerPort("bulk"));
    const recoveries: { kind: Kind; recoveryMs: number; machineMs: number; allowedMs: number }[] = [];
    for (const [index, bytes] of cutAt.entries()) {
      await transfer.arrived(bytes, 60_000);
      const kind = kinds[index % kinds.length]!;
      const allowedMs = await breakPath(relay, kind, random);
      const { recoveryMs, machineMs } = await recovery(pair, probe);
      recoveries.push({ kind, recoveryMs, machineMs, allowedMs: allowedMs + machineMs });
    }
    const arrivals = await transfer.end(60_000);
    const told = recoveries.map(({ kind, recoveryMs, machineMs }) => `${kind} ${recoveryMs} (${machineMs})`);
    console.log(`${links} links, ms until an echo was back (and without a processor): ${told.join(", ")}`);
    expect(arrivals).toHaveLength(2 * STREAMS);
    for (const arrival of arrivals) {
      expect(arrival).toMatchObject({ sentBytes: STREAM_BYTES, receivedBytes: STREAM_BYTES });
      expect(arrival.receivedDigest).toBe(arrival.sentDigest);
    }
    expect(transfer.acceptedConnections).toBe(STREAMS);
    expect(recoveries.filter(({ recoveryMs, allowedMs }) => recoveryMs > allowedMs)).toEqual([]);
    const records = await pair.waitForEdgeRecords("bulk", STREAMS);
    expect(records.map(({ code }) => code)).toEqual(Array.from({ length: STREAMS }, () => "--"));
    const metrics = await pair.edgeMetrics();
    expect(metric(metrics, "edge_tunnel_resumptions_total")).toBeGreaterThan(0);
    expect(metric(metrics, "edge_tunnel_sessions")).toBe(1);
  });

  test("is found silent by the heartbeats that are the default, within 25 seconds", async () => {
    const { transfer, pair, relay, probe } = await startRig();
    for (let index = 0; index < STREAMS; index++) transfer.addPartner(pair.listenerPort("bulk"));
    await transfer.arrived(EACH_WAY_BYTES / 2, 60_000);
    await relay.order("stall");
    // One link's silence is found after 25 s at both ends, and a new one carries the streams at once.
    const { recoveryMs, machineMs } = await recovery(pair, probe);
    expect(recoveryMs).toBeLessThan(25_000 + 1_000 + machineMs);
    for (const arrival of await transfer.end(60_000)) expect(arrival.receivedDigest).toBe(arrival.sentDigest);
  });

  test("goes on within a second when a hole that swallowed everything is gone", async () => {
    const { transfer, pair, relay, probe } = await startRig({ edgeConfig: QUICK, agentConfig: QUICK });
    for (let index = 0; index < STREAMS; index++) transfer.addPartner(pair.listenerPort("bulk"));
    for (const share of [0.2, 0.6]) {
      await transfer.arrived(2 * EACH_WAY_BYTES * share, 60_000);
      await relay.order("hole");
      // Longer than the heartbeat's timeout: both ends give their links up and the agent dials into the hole.
      await delay(QUICK_TIMEOUT_MS + 1_500);
      await relay.order("heal");
      const { recoveryMs, machineMs } = await recovery(pair, probe);
      expect(recoveryMs).toBeLessThan(1_000 + machineMs);
    }
    for (const arrival of await transfer.end(60_000)) expect(arrival.receivedDigest).toBe(arrival.sentDigest);
  });
});
