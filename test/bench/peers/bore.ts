import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

/** Its port is fixed, so that an address of its own keeps two runs on one machine apart. */
const CONTROL_PORT = 7835;

export const bore: Peer = {
  id: "bore",
  title: "bore",
  kind: "tunnel",
  protection: "**none**: it has no encryption",
  settings: "a client for each port, restarted at once when it ends; with a secret",
  programs: ["bore"],
  version: () => versionOf("bore", ["--version"], /bore-cli (\S+)/),
  async start(run) {
    const host = run.site.edgeHost === "127.0.0.1" ? `127.83.${process.pid % 256}.1` : run.site.edgeHost;
    const dialled = await run.dialled({ host, port: CONTROL_PORT });
    const env = { BORE_SECRET: "bench" };
    await run.launch("edge", {
      command: "bore",
      args: ["server", "--bind-addr", host, "--bind-tunnels", "127.0.0.1"],
      env,
    });
    await run.untilAccepted(host, CONTROL_PORT);
    const ports = new Map<string, number>();
    for (const { name, port } of run.routes) {
      const listenPort = await findFreePort();
      ports.set(name, listenPort);
      await run.launchSupervised("agent", {
        command: "bore",
        args: [
          "local",
          String(port),
          "--local-host",
          run.site.targetHost,
          "--to",
          dialled.host,
          "--port",
          String(listenPort),
        ],
        env,
      });
    }
    return ports;
  },
};
