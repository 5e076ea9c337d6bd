import { writeFile } from "node:fs/promises";
import { runSuccessfully } from "../../support/child-process.ts";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import type { PeerRun } from "../peer-run.ts";
import { versionOf } from "../program-version.ts";

/** Its own two ways to protect the tunnel (docs/transport.md there). Each stream has a connection of its own. */
export const ratholeTls = rathole("tls");
export const ratholeNoise = rathole("noise");

function rathole(transport: "tls" | "noise"): Peer {
  return {
    id: `rathole-${transport}`,
    title: `rathole, ${transport}`,
    kind: "tunnel",
    protection: transport === "tls" ? "TLS" : "Noise NK, ChaCha20-Poly1305",
    settings: "default",
    programs: ["rathole"],
    // What the other protection makes of the difference shows in this.
    ...(transport === "tls" ? {} : { onlyGroups: ["bulk"] }),
    version: () => versionOf("rathole", ["--version"], /(?:rathole|Build Version:)\s+(\d\S*)/),
    start: (run) => start(run, transport),
  };
}

async function start(run: PeerRun, transport: "tls" | "noise"): Promise<ReadonlyMap<string, number>> {
  const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
  const dialled = await run.dialled(tunnel);
  const { server: serverTransport, client: clientTransport } = await transports(run, transport);
  const ports = new Map<string, number>();
  const server = [
    "[server]",
    `bind_addr = "${tunnel.host}:${tunnel.port}"`,
    'default_token = "bench"',
    ...serverTransport,
  ];
  const client = [
    "[client]",
    `remote_addr = "${dialled.host}:${dialled.port}"`,
    'default_token = "bench"',
    ...clientTransport,
  ];
  for (const { name, port } of run.routes) {
    ports.set(name, await findFreePort());
    server.push(`[server.services.${name}]`, `bind_addr = "127.0.0.1:${ports.get(name)}"`);
    client.push(`[client.services.${name}]`, `local_addr = "${run.site.targetHost}:${port}"`);
  }
  await writeFile(run.path("server.toml"), `${server.join("\n")}\n`);
  await writeFile(run.path("client.toml"), `${client.join("\n")}\n`);
  const env = { RUST_LOG: "warn" };
  await run.launch("edge", { command: "rathole", args: ["--server", run.path("server.toml")], env });
  await run.untilAccepted(tunnel.host, tunnel.port);
  await run.launch("agent", { command: "rathole", args: ["--client", run.path("client.toml")], env });
  return ports;
}

async function transports(run: PeerRun, transport: "tls" | "noise"): Promise<{ server: string[]; client: string[] }> {
  if (transport === "tls") {
    const { pkcs12File, caFile, name } = run.certificates;
    return {
      server: [
        "[server.transport]",
        'type = "tls"',
        "[server.transport.tls]",
        `pkcs12 = "${pkcs12File}"`,
        'pkcs12_password = "bench"',
      ],
      client: [
        "[client.transport]",
        'type = "tls"',
        "[client.transport.tls]",
        `trusted_root = "${caFile}"`,
        `hostname = "${name}"`,
      ],
    };
  }
  const { stdout } = await runSuccessfully({ command: "rathole", args: ["--genkey"] });
  const [privateKey, publicKey] = [/Private Key:\s*(\S+)/, /Public Key:\s*(\S+)/].map((key) => key.exec(stdout)?.[1]);
  return {
    server: ["[server.transport]", 'type = "noise"', "[server.transport.noise]", `local_private_key = "${privateKey}"`],
    client: ["[client.transport]", 'type = "noise"', "[client.transport.noise]", `remote_public_key = "${publicKey}"`],
  };
}
