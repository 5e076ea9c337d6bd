import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import { versionOf } from "../program-version.ts";

/** Debian's package libnginx-mod-stream puts it here; other builds have it inside. */
const MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so";

export const nginxStream: Peer = {
  id: "nginx",
  title: "nginx stream, no tunnel",
  kind: "relay",
  protection: "none",
  settings: "worker_processes auto",
  programs: ["nginx"],
  unavailable: () => (existsSync(MODULE) ? undefined : "not installed: the stream module"),
  version: () => versionOf("nginx", ["-v"], /nginx\/(\S+)/),
  async start(run) {
    const ports = new Map<string, number>();
    const servers: string[] = [];
    for (const { name, port } of run.routes) {
      ports.set(name, await findFreePort());
      servers.push(
        `  server { listen 127.0.0.1:${ports.get(name)} backlog=4096; proxy_pass ${run.site.targetHost}:${port}; proxy_timeout 1h; }`,
      );
    }
    const config = [
      `load_module ${MODULE};`,
      "daemon off;",
      "worker_processes auto;",
      "worker_rlimit_nofile 20000;",
      `pid ${run.path("nginx.pid")};`,
      "error_log stderr crit;",
      "events { worker_connections 19000; }",
      "stream {",
      ...servers,
      "}",
      "",
    ].join("\n");
    await writeFile(run.path("nginx.conf"), config);
    await run.launch("edge", {
      command: "nginx",
      args: ["-p", run.path("."), "-e", "stderr", "-c", run.path("nginx.conf")],
    });
    return ports;
  },
};
