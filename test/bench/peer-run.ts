import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { TestProcess } from "../support/child-process.ts";
import type { ProcessOptions } from "../support/child-process.ts";
import { withDeadline } from "../support/deadline.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";
import type { Certificates } from "./certificates.ts";
import type { Peer } from "./peer.ts";
import { ProcessTree } from "./process-tree.ts";
import type { TargetName } from "./targets.ts";

export type EndName = "edge" | "agent";

/** Where the ends of a peer are, seen from each other. */
export interface Site {
  /** The address at which the outer end awaits the inner one. */
  readonly edgeHost: string;
  /** The address at which the inner end can be reached, for peers whose outer end dials. */
  readonly agentHost: string;
  /** The address of the targets, seen from the inner end (or from a relay). */
  readonly targetHost: string;
  /** Put before the inner end's command line, such as `ip netns exec NAME`. */
  readonly agentCommand: readonly string[];
  /** Takes the address between the two ends that is listened on and returns the one to dial instead. */
  readonly between?: (address: {
    readonly host: string;
    readonly port: number;
  }) => Promise<{ host: string; port: number }>;
}

export const LOOPBACK_SITE: Site = {
  edgeHost: "127.0.0.1",
  agentHost: "127.0.0.1",
  targetHost: "127.0.0.1",
  agentCommand: [],
};

export interface Route {
  readonly name: TargetName;
  /** Of the target, on the site's `targetHost`. */
  readonly port: number;
}

export interface PeerRunOptions {
  readonly peer: Peer;
  readonly site: Site;
  /** `echo` is among them: the start waits until it answers. */
  readonly routes: readonly Route[];
  readonly certificates: Certificates;
}

const START_TIMEOUT_MS = 20_000;
const STOP_GRACE_MS = 1_000;
const RETRY_MS = 10;

/** A peer that runs, from its start to its stop. Whoever starts it awaits `stop()`, which ends every process of it by id. */
export class PeerRun {
  readonly peer: Peer;
  readonly site: Site;
  readonly routes: readonly Route[];
  readonly certificates: Certificates;
  /** From the launch of the first end until the first byte came back from the target. */
  startupMs = 0;
  readonly #ends: Record<EndName, TestProcess[]> = { edge: [], agent: [] };
  readonly #directory: TempDir;
  #launchedAt: number | undefined;
  #ports: ReadonlyMap<string, number> = new Map();
  #isStopping = false;

  private constructor(options: PeerRunOptions, directory: TempDir) {
    this.peer = options.peer;
    this.site = options.site;
    this.routes = options.routes;
    this.certificates = options.certificates;
    this.#directory = directory;
  }

  /** Resolves when a byte went to the echo target and came back, and every other route accepts connections. */
  static async start(options: PeerRunOptions): Promise<PeerRun> {
    const run = new PeerRun(options, await makeTempDir("sallyport-bench-"));
    try {
      run.#ports = await options.peer.start(run);
      await withDeadline(run.#untilReady(), { what: `${options.peer.id}: ready`, timeoutMs: START_TIMEOUT_MS });
      run.startupMs = performance.now() - (run.#launchedAt ?? performance.now());
      return run;
    } catch (error) {
      const said = run.processes().map((process) => `${process.command}\n${process.tail}`);
      await run.stop();
      throw new Error([String(error), ...said].join("\n"), { cause: error });
    }
  }

  /** A path inside the run's directory, which `stop` removes. */
  path(name: string): string {
    return join(this.#directory.path, name);
  }

  async makeDirectory(name: string): Promise<string> {
    await mkdir(this.path(name), { mode: 0o700 });
    return this.path(name);
  }

  /** Starts one process of an end. It is counted with that end and stopped with the run. */
  async launch(end: EndName, options: ProcessOptions): Promise<TestProcess> {
    const line = [...(end === "agent" ? this.site.agentCommand : []), options.command, ...(options.args ?? [])];
    this.#launchedAt ??= performance.now();
    const process = await TestProcess.start({
      cwd: this.#directory.path,
      ...options,
      command: line[0]!,
      args: line.slice(1),
    });
    this.#ends[end].push(process);
    // One that was started again while the run was stopping is not among those that `stop` has seen.
    if (this.#isStopping) await process.stop(STOP_GRACE_MS);
    return process;
  }

  /**
   * As `launch`, and starts the process again whenever it ends, as a service manager without a pause between two starts
   * does. For programs that end when their link is lost.
   */
  async launchSupervised(end: EndName, options: ProcessOptions): Promise<void> {
    const process = await this.launch(end, options);
    void process.waitForEnd(2 ** 30).then(
      async () => {
        if (this.#isStopping) return;
        await delay(RETRY_MS);
        if (!this.#isStopping) await this.launchSupervised(end, options);
      },
      () => undefined,
    );
  }

  /** What the inner end dials for what the outer end listens on, or the reverse. */
  async dialled(address: { readonly host: string; readonly port: number }): Promise<{ host: string; port: number }> {
    return this.site.between === undefined ? address : this.site.between(address);
  }

  /** Resolves when something listens there. */
  async untilAccepted(host: string, port: number): Promise<void> {
    for (;;) {
      const failed = this.processes().find((process) => process.hasEnded);
      if (failed !== undefined && this.site.between === undefined) throw new Error(`${failed.command} has ended`);
      const socket = connect({ host, port });
      socket.on("error", () => undefined);
      try {
        await once(socket, "connect");
        return;
      } catch {
        await delay(RETRY_MS);
      } finally {
        socket.destroy();
      }
    }
  }

  /** Where partners reach this route, on 127.0.0.1. */
  port(name: TargetName): number {
    const port = this.#ports.get(name);
    if (port === undefined) throw new Error(`${this.peer.id}: no route ${name}`);
    return port;
  }

  /** Of one end, or of both. */
  pids(end?: EndName): number[] {
    return this.processes(end).map(({ pid }) => pid);
  }

  processes(end?: EndName): TestProcess[] {
    return end === undefined ? [...this.#ends.edge, ...this.#ends.agent] : this.#ends[end];
  }

  async stop(): Promise<void> {
    this.#isStopping = true;
    const tree = new ProcessTree(this.pids());
    await Promise.all(this.processes().map((process) => process.stop(STOP_GRACE_MS)));
    tree.killRest();
    await this.#directory.remove();
  }

  async #untilReady(): Promise<void> {
    for (const { name } of this.routes) {
      if (name !== "echo") await this.untilAccepted("127.0.0.1", this.port(name));
    }
    while (!(await answersEcho(this.port("echo")))) {
      const failed = this.processes().find((process) => process.hasEnded);
      if (failed !== undefined && this.site.between === undefined) throw new Error(`${failed.command} has ended`);
      await delay(RETRY_MS);
    }
  }
}

/** Whether a byte comes back. A connection that stays silent counts as "not yet" after a second. */
async function answersEcho(port: number): Promise<boolean> {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  const timer = setTimeout(() => socket.destroy(), 1000);
  try {
    return await new Promise((resolve) => {
      socket.once("data", () => resolve(true));
      socket.once("error", () => resolve(false));
      socket.once("close", () => resolve(false));
      socket.write("x");
    });
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}
