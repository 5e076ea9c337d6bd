import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

export const chisel: Peer = {
  id: "chisel",
  title: "chisel",
  kind: "tunnel",
  protection: "TLS, server verified, and SSH inside",
  settings: "default",
  programs: ["chisel"],
  version: () => versionOf("chisel", ["--version"], /(\d\S*)/),
  async start(run) {
    const { certFile, keyFile, caFile, name: serverName } = run.certificates;
    const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
    const dialled = await run.dialled(tunnel);
    const env = { AUTH: "bench:bench" };
    const ports = new Map<string, number>();
    const remotes: string[] = [];
    for (const { name, port } of run.routes) {
      ports.set(name, await findFreePort());
      remotes.push(`R:127.0.0.1:${ports.get(name)}:${run.site.targetHost}:${port}`);
    }
    const listen = ["--host", tunnel.host, "--port", String(tunnel.port)];
    await run.launch("edge", {
      command: "chisel",
      args: ["server", ...listen, "--reverse", "--tls-cert", certFile, "--tls-key", keyFile],
      env,
    });
    await run.untilAccepted(tunnel.host, tunnel.port);
    await run.launch("agent", {
      command: "chisel",
      args: ["client", "--tls-ca", caFile, "--sni", serverName, `https://${dialled.host}:${dialled.port}`, ...remotes],
      env,
    });
    return ports;
  },
};
