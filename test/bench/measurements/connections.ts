import { writeFile } from "node:fs/promises";
import { runSuccessfully } from "../../support/child-process.ts";
import { findOnPath } from "../../support/program-path.ts";
import type { Measurement, Value } from "../measurement.ts";
import { treeCpuMs } from "../process-tree.ts";
import { DATABASE_USER } from "../targets.ts";
import { runWrk, WARM_UP_SECONDS, warmUp } from "../wrk.ts";

/** Short connections by HTTP, and those of a database without a pool. */
export const connections: Measurement = {
  id: "connections",
  title: "Short connections",
  method:
    "`wrk -t1 -c16` with `Connection: close` on nginx with an answer of 512 bytes: open, request, close, after six seconds of the same. wrk's clock runs from " +
    "its request to the end of the answer, and the opening of the way to the target lies in between. CPU is that of both ends " +
    "for each connection. `pgbench -C -c4`: a new connection to PostgreSQL for each `SELECT 1`.",
  columns: [
    { id: "open-rate", title: "connections", unit: "1/s", better: "more" },
    { id: "open-p50", title: "p50", unit: "ms", better: "less" },
    { id: "open-p99", title: "p99", unit: "ms", better: "less" },
    { id: "open-cpu", title: "CPU a connection", unit: "ms", better: "less" },
    { id: "open-failed", title: "failed", unit: "%", better: "less" },
    { id: "database-rate", title: "pgbench -C", unit: "1/s", better: "more" },
  ],
  programs: ["wrk", "nginx"],
  estimateSeconds: (seconds) => WARM_UP_SECONDS + seconds + 2.5,
  suits: () => true,
  measure: (bench, peer) =>
    bench.withPeer(peer, hasDatabase() ? ["web", "database"] : ["web"], async (run) => {
      const values: Record<string, Value> = {};
      const port = run.port("web");
      await warmUp(bench, port);
      const before = treeCpuMs(run.pids());
      const answered = await runWrk({ port, connections: 16, seconds: bench.seconds });
      const cpuMs = treeCpuMs(run.pids()) - before;
      if (answered === undefined) throw new Error(`no request was answered within ${bench.seconds} s`);
      const { requests, failed } = answered;
      values["open-rate"] = answered.perSecond;
      values["open-p50"] = answered.p50Ms;
      values["open-p99"] = answered.p99Ms;
      values["open-cpu"] = run.pids().length === 0 ? "no process" : cpuMs / requests;
      values["open-failed"] = (100 * failed) / (requests + failed);
      values["database-rate"] = hasDatabase()
        ? await databaseRate(run.port("database"), run.path("select.sql"))
        : "not installed: PostgreSQL";
      return values;
    }),
};

function hasDatabase(): boolean {
  return ["initdb", "postgres", "pgbench"].every((name) => findOnPath(name) !== undefined);
}

async function databaseRate(port: number, scriptPath: string): Promise<number> {
  await writeFile(scriptPath, "SELECT 1;\n");
  const { stdout } = await runSuccessfully({
    command: findOnPath("pgbench") ?? "pgbench",
    args: [
      "-h",
      "127.0.0.1",
      "-p",
      String(port),
      "-U",
      DATABASE_USER,
      "-n",
      "-C",
      "-c",
      "4",
      "-T",
      "1",
      "-f",
      scriptPath,
      "postgres",
    ],
  });
  const rate = /^tps = ([\d.]+)/m.exec(stdout)?.[1];
  if (rate === undefined) throw new Error(`pgbench: no rate in ${stdout}`);
  return Number(rate);
}
