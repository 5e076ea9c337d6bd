import { runIperf } from "../iperf.ts";
import type { Column, Measurement, Value } from "../measurement.ts";
import { treeCpuMs } from "../process-tree.ts";

const CASES = [1, 8].flatMap((streams) =>
  (["in", "out"] as const).map((direction) => ({ streams, direction, key: `${streams}-${direction}` })),
);

function title(streams: number, direction: "in" | "out"): string {
  return `${streams} ${streams === 1 ? "stream" : "streams"} ${direction}`;
}

export const bulk: Measurement = {
  id: "bulk",
  title: "Bulk",
  method:
    "iperf3 for some seconds each, after a second both ways to warm up. `in` is from partner to target, `out` the reverse. " +
    "CPU is user and system time of both ends, divided by the bytes (1 GB = 10⁹) that iperf3 has received; iperf3's own is not in it.",
  columns: [
    ...CASES.map(
      ({ streams, direction, key }): Column => ({
        id: `bulk-${key}`,
        title: title(streams, direction),
        unit: "MB/s",
        better: "more",
      }),
    ),
    ...CASES.map(
      ({ streams, direction, key }): Column => ({
        id: `cpu-${key}`,
        title: `CPU, ${title(streams, direction)}`,
        unit: "s/GB",
        better: "less",
      }),
    ),
  ],
  programs: ["iperf3"],
  estimateSeconds: (seconds) => 4 * (seconds + 0.3) + 2.7,
  suits: () => true,
  measure: (bench, peer) =>
    bench.withPeer(peer, ["bulk"], async (run) => {
      const port = run.port("bulk");
      const values: Record<string, Value> = {};
      await runIperf({ port, streams: 2, load: bench.load(1), direction: "both" });
      for (const { streams, direction, key } of CASES) {
        const before = treeCpuMs(run.pids());
        const { bytes, bytesPerSecond } = await runIperf({ port, streams, load: bench.load(bench.seconds), direction });
        const cpuMs = treeCpuMs(run.pids()) - before;
        values[`bulk-${key}`] = bytesPerSecond / 1e6;
        const reason = run.pids().length === 0 ? "no process" : bytes === 0 ? "no bytes" : undefined;
        values[`cpu-${key}`] = reason ?? cpuMs / 1000 / (bytes / 1e9);
      }
      return values;
    }),
};
