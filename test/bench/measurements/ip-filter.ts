import { fileURLToPath } from "node:url";
import { runSuccessfully } from "../../support/child-process.ts";
import type { Measurement } from "../measurement.ts";

const program = fileURLToPath(new URL("../ip-filter.bench.mjs", import.meta.url));

/** Of this checkout alone; nothing in it depends on a peer. */
export const ipFilter: Measurement = {
  id: "ip-filter",
  title: "IP filter",
  method:
    "`node test/bench/ip-filter.bench.mjs`: look-ups of an address in text among 100,000 rules, the slower of IPv4 and IPv6.",
  columns: [
    { id: "ip-filter-hit", title: "an address with a rule", unit: "µs", better: "less" },
    { id: "ip-filter-random", title: "any address", unit: "µs", better: "less" },
  ],
  programs: [],
  maxRounds: 1,
  isSlow: true,
  estimateSeconds: () => 15,
  suits: ({ id }) => id === "ours",
  async measure() {
    const { stdout } = await runSuccessfully({ command: process.execPath, args: [program], timeoutMs: 120_000 });
    const rows = [...stdout.matchAll(/^IPv[46]\s+100000\s+\S+\s+\S+\s+(\S+)\s+(\S+)$/gm)];
    if (rows.length !== 2) throw new Error(`ip-filter.bench.mjs printed ${stdout}`);
    return {
      "ip-filter-hit": Math.max(...rows.map(([, hit]) => Number(hit))),
      "ip-filter-random": Math.max(...rows.map(([, , random]) => Number(random))),
    };
  },
};
