/** The runtime's own floor: `programs/relay.mjs` does nothing but `pipe`. */
import { fileURLToPath } from "node:url";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";

const program = fileURLToPath(new URL("../programs/relay.mjs", import.meta.url));

export const nodePipe: Peer = {
  id: "node-pipe",
  title: "Node `pipe`, no tunnel",
  kind: "relay",
  protection: "none",
  settings: "TCP to TCP in one process",
  programs: [],
  version: async () => process.version,
  async start(run) {
    const ports = new Map<string, number>();
    const pairs: string[] = [];
    for (const { name, port } of run.routes) {
      const listenPort = await findFreePort();
      ports.set(name, listenPort);
      pairs.push(`127.0.0.1:${listenPort}=${run.site.targetHost}:${port}`);
    }
    await run.launch("edge", { command: process.execPath, args: [program, "plain", "-", ...pairs] });
    return ports;
  },
};

export const nodeTls: Peer = {
  id: "node-tls",
  title: "Node `pipe` over TLS",
  kind: "floor",
  protection: "TLS 1.3, AES-128-GCM",
  settings: "TCP to TLS to TCP in two processes, one TLS connection a stream; no WebSocket, no multiplexing",
  programs: [],
  version: async () => `${process.version}, OpenSSL ${process.versions.openssl}`,
  async start(run) {
    const { certFile, keyFile, caFile, name: serverName } = run.certificates;
    const ports = new Map<string, number>();
    const outer: string[] = [];
    const inner: string[] = [];
    const listening: number[] = [];
    for (const { name, port } of run.routes) {
      const between = { host: run.site.agentHost, port: await findFreePort() };
      const dialled = await run.dialled(between);
      listening.push(between.port);
      ports.set(name, await findFreePort());
      outer.push(`127.0.0.1:${ports.get(name)}=${dialled.host}:${dialled.port}`);
      inner.push(`${between.host}:${between.port}=${run.site.targetHost}:${port}`);
    }
    await run.launch("agent", {
      command: process.execPath,
      args: [program, "from-tls", `${certFile},${keyFile}`, ...inner],
    });
    // One end after the other, as all tunnels are started here.
    for (const port of listening) await run.untilAccepted(run.site.agentHost, port);
    await run.launch("edge", {
      command: process.execPath,
      args: [program, "to-tls", `${caFile},${serverName}`, ...outer],
    });
    return ports;
  },
};
