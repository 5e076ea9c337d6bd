import type { CongestionControl } from "../../support/link-emulator.ts";
import type { Bench } from "../bench.ts";
import { runIperf } from "../iperf.ts";
import type { Measurement, Value } from "../measurement.ts";
import type { Peer } from "../peer.ts";

const ROUND_TRIP_MS = 50;
const STREAMS = [1, 8] as const;

interface Way {
  readonly id: string;
  readonly lossPercent: number;
  readonly congestionControl: CongestionControl;
}

/** A long way between the two ends, without loss and with some. */
export const path = farAway({ id: "path", lossPercent: 0, congestionControl: "cubic" });
export const pathWithLoss = farAway({ id: "path-loss", lossPercent: 1, congestionControl: "cubic" });
/** For machines that are set to it: it takes loss for chance, where others take it for a full path and slow down. */
export const pathWithLossAndBbr = farAway({ id: "path-loss-bbr", lossPercent: 1, congestionControl: "bbr" });

function farAway(way: Way): Measurement {
  const { id, lossPercent, congestionControl } = way;
  const control = congestionControl === "bbr" ? "BBR" : "CUBIC";
  return {
    id,
    title: `Bulk at ${ROUND_TRIP_MS} ms round trip and ${lossPercent} % loss, ${control}`,
    method:
      "The inner end is in a network namespace of its own behind an emulated link (test/support/link-emulator.c), the targets " +
      `are beside the partner. iperf3 from partner to target, ${lossPercent} % of the packets lost each way, TCP of the link ` +
      `with ${control}${congestionControl === "cubic" ? ", the default of Linux" : ""}.`,
    columns: STREAMS.map((streams) => ({
      id: `${id}-${streams}`,
      title: streams === 1 ? "1 stream" : `${streams} streams`,
      unit: "MB/s",
      better: "more",
    })),
    programs: ["iperf3", "ip", "gcc"],
    ...(lossPercent > 0 && congestionControl === "cubic" ? {} : { maxRounds: 1 }),
    estimateSeconds: (seconds) => STREAMS.length * (seconds + 1) + 1.5,
    suits: ({ kind, id }) => kind === "tunnel" || id === "node-tls",
    measure: (bench, peer) => measure(bench, peer, way),
  };
}

async function measure(
  bench: Bench,
  peer: Peer,
  { id, lossPercent, congestionControl }: Way,
): Promise<Record<string, Value>> {
  const { site, targets } = await bench.farSite({ delayMs: ROUND_TRIP_MS / 2, lossPercent, congestionControl });
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
