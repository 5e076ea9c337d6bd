import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";

const BODY_BYTES = 4096;

/** A configuration that names every path, so that nothing of an installed nginx is read or written. */
function configuration(directory: string, port: number): string {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((kind) => `${kind}_temp_path ${directory}/${kind};`)
    .join("\n  ");
  return `
daemon off;
worker_processes 1;
pid ${directory}/nginx.pid;
error_log stderr warn;
${process.getuid?.() === 0 ? "user root;" : ""}
events { worker_connections 1024; }
http {
  ${temporary}
  access_log off;
  keepalive_requests 10000000;
  server {
    listen 127.0.0.1:${port} backlog=1024;
    root ${directory}/www;
  }
}
`;
}

describeWithPrograms("nginx", ["nginx", "wrk"], (programs) => {
  let directory: TempDir;
  let server: TestProcess;
  let routes: Routes<"nginx">;

  beforeAll(async () => {
    directory = await makeTempDir();
    const port = await findFreePort();
    await mkdir(join(directory.path, "www"));
    await writeFile(join(directory.path, "www/index.html"), "x".repeat(BODY_BYTES));
    const configPath = join(directory.path, "nginx.conf");
    await writeFile(configPath, configuration(directory.path, port));
    server = await TestProcess.start({
      command: programs.nginx,
      args: ["-p", directory.path, "-e", "stderr", "-c", configPath],
    });
    await pollUntil(async () => ((await fetch(`http://127.0.0.1:${port}/`)).ok ? true : undefined), {
      what: "nginx's first answer",
    });
    routes = await Routes.to({ nginx: port });
  });

  afterAll(async () => {
    await routes?.stop();
    await server?.stop();
    await directory?.remove();
  });

  const runWrk = async (port: number, headers: readonly string[]): Promise<string> => {
    const { stdout } = await runSuccessfully({
      command: programs.wrk,
      args: ["-t2", "-c50", "-d5s", ...headers.flatMap((header) => ["-H", header]), `http://127.0.0.1:${port}/`],
    });
    return stdout;
  };

  it.each(ROUTE_MODES)("answers fifty connections that are kept alive, %s", async (mode) => {
    const report = await runWrk(routes.port("nginx", mode), []);
    expect(failuresIn(report)).toEqual([]);
    expect(requestsIn(report)).toBeGreaterThan(100);
    await routes.expectCarried("nginx", mode, 50);
  });

  it.each(ROUTE_MODES)("answers a connection for each request, %s", async (mode) => {
    const report = await runWrk(routes.port("nginx", mode), ["Connection: close"]);
    expect(failuresIn(report)).toEqual([]);
    expect(requestsIn(report)).toBeGreaterThan(100);
    await routes.expectCarried("nginx", mode, 100);
  });
});

/** wrk mentions socket errors and answers other than 2xx and 3xx only when there were some. */
function failuresIn(report: string): string[] {
  return report.split("\n").filter((line) => /Socket errors|Non-2xx/.test(line));
}

function requestsIn(report: string): number {
  return Number(/(\d+) requests in/.exec(report)?.[1]);
}
