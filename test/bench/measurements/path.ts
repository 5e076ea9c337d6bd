import type { Bench } from "../bench.ts";
import { runIperf } from "../iperf.ts";
import type { Measurement, Value } from "../measurement.ts";
import type { Peer } from "../peer.ts";

const ROUND_TRIP_MS = 50;
const STREAMS = [1, 8] as const;

/** A long way between the two ends, without loss and with some. */
export const path = farAway({ id: "path", lossPercent: 0 });
export const pathWithLoss = farAway({ id: "path-loss", lossPercent: 1 });

function farAway({ id, lossPercent }: { readonly id: string; readonly lossPercent: number }): Measurement {
  return {
    id,
    title: `Bulk at ${ROUND_TRIP_MS} ms round trip and ${lossPercent} % loss`,
    method:
      "The inner end is in a network namespace of its own behind an emulated link (test/support/link-emulator.c), the targets " +
      `are beside the partner. iperf3 from partner to target, ${lossPercent} % of the packets lost each way.`,
    columns: STREAMS.map((streams) => ({
      id: `${id}-${streams}`,
      title: streams === 1 ? "1 stream" : `${streams} streams`,
      unit: "MB/s",
      better: "more",
    })),
    programs: ["iperf3", "ip", "gcc"],
    ...(lossPercent === 0 ? { maxRounds: 1 } : {}),
    estimateSeconds: (seconds) => STREAMS.length * (seconds + 1) + 1.5,
    suits: ({ kind, id }) => kind === "tunnel" || id === "node-tls",
    measure: (bench, peer) => measure(bench, peer, { id, lossPercent }),
  };
}

async function measure(
  bench: Bench,
  peer: Peer,
  { id, lossPercent }: { readonly id: string; readonly lossPercent: number },
): Promise<Record<string, Value>> {
  const { site, targets } = await bench.farSite({ delayMs: ROUND_TRIP_MS / 2, lossPercent });
  return bench.withPeer(
    peer,
    ["bulk"],
    async (run) => {
      const values: Record<string, Value> = {};
      for (const streams of STREAMS) {
        // TCP needs some of the time to find its window.
        const load = { seconds: bench.isSmoke ? 1 : bench.seconds + 1 };
        const { bytesPerSecond } = await runIperf({ port: run.port("bulk"), streams, load, direction: "in" });
        values[`${id}-${streams}`] = bytesPerSecond / 1e6;
      }
      return values;
    },
    { site, targets },
  );
}
