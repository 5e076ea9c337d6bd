import { writeFile } from "node:fs/promises";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

export const haproxy: Peer = {
  id: "haproxy",
  title: "HAProxy, no tunnel",
  kind: "relay",
  protection: "none",
  settings: "mode tcp; a thread for each core, as by default",
  programs: ["haproxy"],
  version: () => versionOf("haproxy", ["-v"], /version (\S+)/),
  async start(run) {
    const ports = new Map<string, number>();
    const sections: string[] = [];
    for (const { name, port } of run.routes) {
      ports.set(name, await findFreePort());
      sections.push(
        `listen ${name}`,
        `  bind 127.0.0.1:${ports.get(name)} backlog 4096`,
        `  server target ${run.site.targetHost}:${port}`,
      );
    }
    const config = [
      "global",
      // Two files a connection, and the hard limit of many machines is 20,000.
      "  maxconn 9900",
      "defaults",
      "  mode tcp",
      "  timeout connect 5s",
      "  timeout client 1h",
      "  timeout server 1h",
      ...sections,
      "",
    ].join("\n");
    await writeFile(run.path("haproxy.cfg"), config);
    await run.launch("edge", { command: "haproxy", args: ["-db", "-f", run.path("haproxy.cfg")] });
    return ports;
  },
};
