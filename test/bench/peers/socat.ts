import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

export const socat: Peer = {
  id: "socat",
  title: "socat, no tunnel",
  kind: "relay",
  protection: "none",
  settings: "fork: a process for each connection",
  programs: ["socat"],
  onlyGroups: ["bulk"],
  version: () => versionOf("socat", ["-V"], /socat version (\S+)/),
  async start(run) {
    const ports = new Map<string, number>();
    for (const { name, port } of run.routes) {
      const listenPort = await findFreePort();
      ports.set(name, listenPort);
      await run.launch("edge", {
        command: "socat",
        args: [
          `TCP-LISTEN:${listenPort},bind=127.0.0.1,reuseaddr,fork,backlog=4096,nodelay`,
          `TCP:${run.site.targetHost}:${port},nodelay`,
        ],
      });
    }
    return ports;
  },
};
