import { fileURLToPath } from "node:url";
import { RelayProcess } from "../../support/relay-process.ts";
import { LoadProcess } from "../load-process.ts";
import type { Measurement } from "../measurement.ts";
import { LOOPBACK_SITE } from "../peer-run.ts";
import type { Site } from "../peer-run.ts";

const program = fileURLToPath(new URL("../programs/cut-probe.mjs", import.meta.url));
/** The relay has the port of what it stands for, on another address, because bore's port is fixed. */
const RELAY_HOST = "127.0.0.90";
const RECOVERY_TIMEOUT_MS = 30_000;

interface Recovery {
  readonly isKept: boolean;
  readonly milliseconds: number;
  readonly lostBytes: number;
}

/** What partners notice when every TCP connection between the two ends is reset at once. */
export const cut: Measurement = {
  id: "cut",
  title: "The link is cut",
  method:
    "Every TCP connection between the two ends is reset at once, while a partner sends 256 bytes every 2 ms to an echo target. " +
    "Time is until bytes come back again: on the same connection where it is kept, else on a new one, tried every 5 ms. Lost " +
    "are bytes that were sent and never came back. Programs that end with their link are started again at once.",
  columns: [
    { id: "cut-recovery", title: "until bytes flow", unit: "ms", better: "less" },
    { id: "cut-lost", title: "bytes lost", unit: "B", better: "less" },
    { id: "cut-closed", title: "connections lost", unit: "%", better: "less" },
  ],
  programs: [],
  estimateSeconds: () => 3,
  suits: ({ kind, id }) => kind === "tunnel" || id === "node-tls",
  async measure(bench, peer) {
    const relays: RelayProcess[] = [];
    const site: Site = {
      ...LOOPBACK_SITE,
      between: async ({ host, port }) => {
        const relay = await RelayProcess.between({ listen: { host: RELAY_HOST, port }, target: { host, port } });
        relays.push(relay);
        return { host: RELAY_HOST, port };
      },
    };
    try {
      return await bench.withPeer(
        peer,
        [],
        async (run) => {
          const probe = new LoadProcess(program, [String(run.port("echo"))]);
          try {
            await probe.order("flow", 10_000);
            const recovery = probe.order<Recovery>("cut", RECOVERY_TIMEOUT_MS);
            recovery.catch(() => undefined);
            await Promise.all(relays.map((relay) => relay.order("cut")));
            const { isKept, milliseconds, lostBytes } = await recovery;
            return { "cut-recovery": milliseconds, "cut-lost": lostBytes, "cut-closed": isKept ? 0 : 100 };
          } finally {
            await probe.close();
          }
        },
        { site },
      );
    } finally {
      for (const relay of relays) await relay.close();
    }
  },
};
