import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

export const wstunnel: Peer = {
  id: "wstunnel",
  title: "wstunnel",
  kind: "tunnel",
  protection: "TLS, server not verified (its default)",
  settings: "wss; a path prefix as secret",
  programs: ["wstunnel"],
  version: () => versionOf("wstunnel", ["--version"], /(\d\S*)/),
  async start(run) {
    const { certFile, keyFile } = run.certificates;
    const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
    const dialled = await run.dialled(tunnel);
    const ports = new Map<string, number>();
    const remotes: string[] = [];
    for (const { name, port } of run.routes) {
      ports.set(name, await findFreePort());
      remotes.push("-R", `tcp://127.0.0.1:${ports.get(name)}:${run.site.targetHost}:${port}`);
    }
    const env = { RUST_LOG: "WARN" };
    await run.launch("edge", {
      command: "wstunnel",
      args: [
        "server",
        "--tls-certificate",
        certFile,
        "--tls-private-key",
        keyFile,
        "--restrict-http-upgrade-path-prefix",
        "bench",
        `wss://${tunnel.host}:${tunnel.port}`,
      ],
      env,
    });
    await run.untilAccepted(tunnel.host, tunnel.port);
    await run.launch("agent", {
      command: "wstunnel",
      args: ["client", "--http-upgrade-path-prefix", "bench", ...remotes, `wss://${dialled.host}:${dialled.port}`],
      env,
    });
    return ports;
  },
};
