import { writeFile } from "node:fs/promises";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

export const frp: Peer = {
  id: "frp",
  title: "frp",
  kind: "tunnel",
  protection: "TLS, server verified",
  settings: "TCP with multiplexing as by default; TLS forced; poolCount 5 as in its example",
  programs: ["frps", "frpc"],
  version: () => versionOf("frps", ["--version"], /(\d\S*)/),
  async start(run) {
    const { certFile, keyFile, caFile, name: serverName } = run.certificates;
    const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
    const dialled = await run.dialled(tunnel);
    const common = ['auth.token = "bench"', 'log.level = "warn"'];
    const server = [
      `bindAddr = "${tunnel.host}"`,
      `bindPort = ${tunnel.port}`,
      'proxyBindAddr = "127.0.0.1"',
      ...common,
      "transport.tls.force = true",
      `transport.tls.certFile = "${certFile}"`,
      `transport.tls.keyFile = "${keyFile}"`,
      "",
    ];
    const client = [
      `serverAddr = "${dialled.host}"`,
      `serverPort = ${dialled.port}`,
      ...common,
      "transport.poolCount = 5",
      `transport.tls.trustedCaFile = "${caFile}"`,
      `transport.tls.serverName = "${serverName}"`,
    ];
    const ports = new Map<string, number>();
    for (const { name, port } of run.routes) {
      ports.set(name, await findFreePort());
      client.push(
        "[[proxies]]",
        `name = "${name}"`,
        'type = "tcp"',
        `localIP = "${run.site.targetHost}"`,
        `localPort = ${port}`,
        `remotePort = ${ports.get(name)}`,
      );
    }
    await writeFile(run.path("frps.toml"), server.join("\n"));
    await writeFile(run.path("frpc.toml"), `${client.join("\n")}\n`);
    await run.launch("edge", { command: "frps", args: ["-c", run.path("frps.toml")] });
    await run.untilAccepted(tunnel.host, tunnel.port);
    await run.launch("agent", { command: "frpc", args: ["-c", run.path("frpc.toml")] });
    return ports;
  },
};
