import { fileURLToPath } from "node:url";
import { setTimeout as delay } from "node:timers/promises";
import { runSuccessfully } from "../../support/child-process.ts";
import { runIperf } from "../iperf.ts";
import type { Measurement, Values } from "../measurement.ts";

const program = fileURLToPath(new URL("../programs/echo-probe.mjs", import.meta.url));
/** How long the bulk streams have run when the probe begins. */
const HEAD_START_MS = 700;

/** How long 64 bytes take to the target and back. */
export const echo: Measurement = {
  id: "echo",
  title: "Echo round trip",
  method:
    "64 bytes to an echo target and back. Idle: one after the other on one connection. Busy: beside 8 bulk streams (iperf3, 4 " +
    "each way), on 4 connections, each every 10 ms.",
  columns: [
    { id: "echo-p50", title: "idle p50", unit: "ms", better: "less" },
    { id: "echo-p99", title: "idle p99", unit: "ms", better: "less" },
    { id: "echo-p999", title: "idle p99.9", unit: "ms", better: "less" },
    { id: "busy-p50", title: "busy p50", unit: "ms", better: "less" },
    { id: "busy-p99", title: "busy p99", unit: "ms", better: "less" },
    { id: "busy-p999", title: "busy p99.9", unit: "ms", better: "less" },
  ],
  programs: ["iperf3"],
  estimateSeconds: (seconds) => 1.5 * seconds + 2.3,
  suits: () => true,
  measure: (bench, peer) =>
    bench.withPeer(peer, ["bulk"], async (run) => {
      const idle = await probe(["one-by-one", String(run.port("echo")), String(bench.seconds / 2)]);
      const load = runIperf({
        port: run.port("bulk"),
        streams: 4,
        load: bench.load(bench.seconds + 1),
        direction: "both",
      });
      // Its failure is told below, when the probe has ended.
      load.catch(() => undefined);
      await delay(bench.isSmoke ? 0 : HEAD_START_MS);
      const busy = await probe(["paced", String(run.port("echo")), String(bench.seconds)]);
      await load;
      return {
        "echo-p50": idle.p50,
        "echo-p99": idle.p99,
        "echo-p999": idle.p999,
        "busy-p50": busy.p50,
        "busy-p99": busy.p99,
        "busy-p999": busy.p999,
      } satisfies Values;
    }),
};

async function probe(
  args: readonly string[],
): Promise<{ readonly p50: number; readonly p99: number; readonly p999: number }> {
  const { stdout } = await runSuccessfully({ command: process.execPath, args: [program, ...args] });
  return JSON.parse(stdout) as { p50: number; p99: number; p999: number };
}
