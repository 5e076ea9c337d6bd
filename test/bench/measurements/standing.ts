import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Bench } from "../bench.ts";
import { LoadProcess } from "../load-process.ts";
import type { Measurement, Value } from "../measurement.ts";
import type { Peer } from "../peer.ts";
import type { EndName, PeerRun } from "../peer-run.ts";
import { treeCpuMs, treeUsage } from "../process-tree.ts";
import { runWrk, WARM_UP_SECONDS, warmUp } from "../wrk.ts";

const program = fileURLToPath(new URL("../programs/idle-partners.mjs", import.meta.url));
const COUNTS = [0, 1_000, 10_000] as const;
/** Between the last connection and what is measured. */
const SETTLE_MS = 1_000;
const IDLE_MS = 3_000;
/** Beside the connections of wrk, the default limit of 10,000 holds. */
const CROWD = 9_900;
const HOLD_TIMEOUT_MS = 60_000;
const WORK_OFF_TIMEOUT_MS = 20_000;
const WORK_OFF_SAMPLE_MS = 300;
const WORK_OFF_PERCENT = 10;
/** A single start differs more from the next than most figures. */
const STARTS = 3;

/** What it takes to be there: time to start, memory, and CPU that grows with the number of connections. */
export const standing: Measurement = {
  id: "standing",
  title: "Start-up, memory and idle connections",
  method:
    "Start-up is from the launch of the first end until a byte has come back from the target; median of three, keys and " +
    "configurations made before. Memory is the resident set of each end with so many idle partner connections, all proven end " +
    "to end; of an end with several processes, their private pages and what they share once. Idle CPU is that of both ends " +
    "with 10,000 connections, for three seconds. CPU a connection is as under Short connections, each after as long a warm-up, " +
    "beside 100 and beside 9,900 connections that stand.",
  columns: [
    { id: "startup", title: "start-up", unit: "ms", better: "less" },
    ...COUNTS.flatMap((count) =>
      (["edge", "agent"] as const).map((end) => ({
        id: `memory-${end}-${count}`,
        title: `${end === "edge" ? "outer" : "inner"} end at ${count.toLocaleString("en")}`,
        unit: "MB",
        better: "less" as const,
      })),
    ),
    { id: "idle-cpu", title: "idle CPU at 10,000", unit: "%", better: "less" },
    { id: "open-cpu-100", title: "CPU a connection beside 100", unit: "ms", better: "less" },
    { id: "open-cpu-9900", title: "CPU a connection beside 9,900", unit: "ms", better: "less" },
  ],
  programs: ["wrk", "nginx"],
  maxRounds: 1,
  estimateSeconds: () => 16 + 2 * WARM_UP_SECONDS,
  // Relays of others have two files a connection in one process, and most machines allow no 20,000.
  suits: ({ kind, id, isOurs }) => kind === "tunnel" || isOurs === true || id === "node-tls",
  measure,
};

async function measure(bench: Bench, peer: Peer): Promise<Record<string, Value>> {
  const values: Record<string, Value> = {};
  const startups: number[] = [];
  for (let start = 1; start < (bench.isSmoke ? 1 : STARTS); start++) {
    await bench.withPeer(peer, [], async (run) => startups.push(run.startupMs));
  }
  await bench.withPeer(peer, ["web"], async (run) => {
    startups.push(run.startupMs);
    values.startup = startups.sort((a, b) => a - b)[startups.length >> 1]!;
    const partners = new LoadProcess(program, [String(run.port("echo"))]);
    const hold = (count: number) =>
      partners.order<{ open: number; reason?: string }>(`hold ${bench.isSmoke ? count / 100 : count}`, HOLD_TIMEOUT_MS);
    try {
      let problem: string | undefined;
      for (const count of COUNTS) {
        if (problem === undefined) {
          const { open, reason } = await hold(count);
          if (reason !== undefined) problem = `only ${open}: ${reason}`;
          await delay(bench.isSmoke ? 50 : SETTLE_MS);
        }
        for (const end of ["edge", "agent"] as const) values[`memory-${end}-${count}`] = problem ?? memory(run, end);
      }
      values["idle-cpu"] = problem ?? (await idleCpu(run, bench.isSmoke ? 100 : IDLE_MS));
      values["open-cpu-9900"] = problem ?? (await hold(CROWD), await cpuAConnection(bench, run));
      await hold(100);
      values["open-cpu-100"] = await cpuAConnection(bench, run);
    } finally {
      await partners.close();
    }
  });
  return values;
}

function memory(run: PeerRun, end: EndName): Value {
  const pids = run.pids(end);
  return pids.length === 0 ? "no process" : treeUsage(pids).residentBytes / 1e6;
}

/** Percent of one core. */
async function idleCpu(run: PeerRun, milliseconds: number): Promise<number> {
  const before = treeCpuMs(run.pids());
  const from = performance.now();
  await delay(milliseconds);
  return (100 * (treeCpuMs(run.pids()) - before)) / (performance.now() - from);
}

/** Until what came before is worked off, such as thousands of connections that close at once. */
async function untilIdle(run: PeerRun): Promise<void> {
  const endsAt = performance.now() + WORK_OFF_TIMEOUT_MS;
  while ((await idleCpu(run, WORK_OFF_SAMPLE_MS)) > WORK_OFF_PERCENT && performance.now() < endsAt);
}

async function cpuAConnection(bench: Bench, run: PeerRun): Promise<Value> {
  const port = run.port("web");
  await untilIdle(run);
  await warmUp(bench, port);
  const before = treeCpuMs(run.pids());
  const answered = await runWrk({ port, connections: 16, seconds: bench.seconds });
  return answered === undefined
    ? `no answer in ${bench.seconds} s`
    : (treeCpuMs(run.pids()) - before) / answered.requests;
}
