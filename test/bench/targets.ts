/** What stands behind every peer. Each target is a process of its own, is started when it is first asked for, and stays. */
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { findFreePort } from "../support/free-port.ts";
import { findOnPath } from "../support/program-path.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { findUnprivilegedUser } from "../support/unprivileged-user.ts";
import { ProcessTree } from "./process-tree.ts";

/** `bulk`: iperf3. `web`: nginx with a short answer. `database`: PostgreSQL. `echo`: returns every byte. */
export type TargetName = "bulk" | "web" | "database" | "echo";

interface RunningTarget {
  readonly process: TestProcess;
  readonly port: number;
}

export const DATABASE_USER = "bench";

const echoProgram = fileURLToPath(new URL("programs/echo-target.mjs", import.meta.url));

/** The caller closes it. */
export class Targets {
  readonly host: string;
  readonly #directory: TempDir;
  readonly #running = new Map<TargetName, Promise<RunningTarget>>();

  private constructor(host: string, directory: TempDir) {
    this.host = host;
    this.#directory = directory;
  }

  static async on(host: string): Promise<Targets> {
    return new Targets(host, await makeTempDir("sallyport-bench-targets-"));
  }

  async port(name: TargetName): Promise<number> {
    return (await this.#target(name)).port;
  }

  async close(): Promise<void> {
    for (const target of this.#running.values()) {
      const started = await target.catch(() => undefined);
      if (started === undefined) continue;
      const tree = new ProcessTree([started.process.pid]);
      await started.process.stop(2_000);
      tree.killRest();
    }
    this.#running.clear();
    await this.#directory.remove();
  }

  #target(name: TargetName): Promise<RunningTarget> {
    const existing = this.#running.get(name);
    if (existing !== undefined) return existing;
    const started = this.#start(name);
    this.#running.set(name, started);
    return started;
  }

  async #start(name: TargetName): Promise<RunningTarget> {
    const port = await findFreePort(this.host);
    switch (name) {
      case "bulk":
        return { port, process: await this.#startIperf(port) };
      case "web":
        return { port, process: await this.#startNginx(port) };
      case "database":
        return { port, process: await this.#startPostgres(port) };
      case "echo": {
        const process = await TestProcess.start({
          command: globalThis.process.execPath,
          args: [echoProgram, this.host, String(port)],
        });
        await process.waitForLine(/^ready$/);
        return { port, process };
      }
    }
  }

  async #startIperf(port: number): Promise<TestProcess> {
    const args = ["-s", "-p", String(port), "-B", this.host, "--forceflush"];
    const process = await TestProcess.start({ command: found("iperf3"), args, maxOutputBytes: 64 * 1024 });
    await process.waitForLine(/Server listening/);
    return process;
  }

  async #startNginx(port: number): Promise<TestProcess> {
    const directory = join(this.#directory.path, "nginx");
    await mkdir(directory);
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((kind) => `${kind}_temp_path ${directory}/${kind};`)
      .join(" ");
    const config = `
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid ${directory}/nginx.pid;
error_log stderr crit;
${process.getuid?.() === 0 ? "user root;" : ""}
events { worker_connections 8192; }
http {
  ${temporary}
  access_log off;
  server {
    listen ${this.host}:${port} backlog=4096;
    location / { return 200 "${"x".repeat(512)}"; }
    location = /ready { return 200 "ready"; }
  }
}
`;
    await writeFile(join(directory, "nginx.conf"), config);
    const server = await TestProcess.start({
      command: found("nginx"),
      args: ["-p", directory, "-e", "stderr", "-c", join(directory, "nginx.conf")],
      maxOutputBytes: 64 * 1024,
    });
    for (let attempt = 0; attempt < 100; attempt++) {
      const answer = await fetch(`http://${this.host}:${port}/ready`).catch(() => undefined);
      if (answer?.ok === true) return server;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await server.stop();
    throw new Error(`nginx does not answer\n${server.tail}`);
  }

  async #startPostgres(port: number): Promise<TestProcess> {
    // The server refuses to run as root; its user must be able to pass through the directory, and owns only `data`.
    const user = await findUnprivilegedUser("postgres");
    await chmod(this.#directory.path, 0o711);
    const data = join(this.#directory.path, "data");
    await mkdir(data, { mode: 0o700 });
    await user?.own(data);
    const asUser = user === undefined ? {} : { user: user.ids };
    await runSuccessfully({
      command: found("initdb"),
      args: ["-D", data, "-U", DATABASE_USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
      cwd: data,
      ...asUser,
    });
    const server = await TestProcess.start({
      command: found("postgres"),
      args: ["-D", data, "-p", String(port), "-k", data, "-h", this.host, "-c", "fsync=off"],
      cwd: data,
      stopSignal: "SIGINT",
      maxOutputBytes: 64 * 1024,
      ...asUser,
    });
    await server.waitForLine(/database system is ready to accept connections/);
    return server;
  }
}

function found(program: string): string {
  const path = findOnPath(program);
  if (path === undefined) throw new Error(`${program} is not on PATH`);
  return path;
}
