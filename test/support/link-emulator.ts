import { spawn, spawnSync } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { runProcess, runSuccessfully } from "./child-process.ts";
import { withDeadline } from "./deadline.ts";
import { makeTempDir } from "./temp-dir.ts";
import type { TempDir } from "./temp-dir.ts";

/** Ends what an `EmulatedPath` of this process has left because nobody could await its close. For the end of a process. */
export function removeLeftNamespaces(): void {
  for (const name of Object.values(namespaceNames())) {
    if (existsSync(`/run/netns/${name}`)) spawnSync("ip", ["netns", "del", name], { stdio: "ignore" });
  }
}

function namespaceNames(): { readonly far: string; readonly middle: string } {
  return { far: `sp${process.pid}far`, middle: `sp${process.pid}mid` };
}

/** Of each direction on its own. */
export interface PathOptions {
  readonly delayMs: number;
  readonly lossPercent?: number;
  /** Default: unlimited. */
  readonly kilobitsPerSecond?: number;
  /** Packets that are on their way or wait; more are lost. Default 10,000. */
  readonly queuePackets?: number;
  /** Which packets are lost. Default 1. */
  readonly seed?: number;
  /** How TCP answers to loss on this path, both ways. Default: what the machine is set to. */
  readonly congestionControl?: CongestionControl;
}

/** `cubic` (RFC 9438) is what Linux has where nobody sets another. */
export type CongestionControl = "cubic" | "bbr";

const source = fileURLToPath(new URL("link-emulator.c", import.meta.url));

/**
 * A far network namespace that is reached from this one over an emulated path, and over a second, perfect one:
 *
 *   here  nearHost ── veth ── link emulator, in a namespace of its own ── veth ──  farHost   there
 *   here  besideHost ───────────────────────── veth ───────────────────────────────────────  there
 *
 * It needs root, `ip` and `gcc`. All names hold the id of this process. The caller closes it.
 */
export class EmulatedPath {
  /** This side's address on the emulated path. */
  readonly nearHost: string;
  /** The far side's address on the emulated path. */
  readonly farHost: string;
  /** This side's address on the perfect path. */
  readonly besideHost: string;
  readonly #directory: TempDir;
  readonly #far = namespaceNames().far;
  readonly #middle = namespaceNames().middle;
  readonly #near = `sp${process.pid}n`;
  readonly #beside = `sp${process.pid}b`;
  #emulator: ChildProcess | undefined;

  private constructor(directory: TempDir) {
    this.#directory = directory;
    // 198.18.0.0/15 is for tests of networks (RFC 2544); the third byte keeps two runs on one machine apart.
    this.nearHost = `198.18.${process.pid % 256}.1`;
    this.farHost = `198.18.${process.pid % 256}.2`;
    this.besideHost = `198.19.${process.pid % 256}.1`;
  }

  /** Put before a command line, it runs the command on the far side, in the same process. */
  get farCommand(): readonly string[] {
    return ["ip", "netns", "exec", this.#far];
  }

  static async start(options: PathOptions): Promise<EmulatedPath> {
    const path = new EmulatedPath(await makeTempDir());
    try {
      await path.#build(options);
      return path;
    } catch (error) {
      await path.close();
      throw error;
    }
  }

  /** A stand-in for the Node binary that runs the command lines that contain `pattern` on the far side. */
  async nodeOnFarSide(pattern: string): Promise<string> {
    const path = join(this.#directory.path, "node-on-far-side");
    const script = [
      "#!/bin/sh",
      `case "$*" in`,
      `*"${pattern}"*) exec ip netns exec ${this.#far} "${process.execPath}" "$@" ;;`,
      `*) exec "${process.execPath}" "$@" ;;`,
      "esac",
      "",
    ].join("\n");
    await writeFile(path, script);
    await chmod(path, 0o755);
    return path;
  }

  async close(): Promise<void> {
    const emulator = this.#emulator;
    if (emulator !== undefined && emulator.exitCode === null && emulator.signalCode === null) {
      const ended = once(emulator, "close");
      emulator.kill("SIGKILL");
      await ended;
    }
    // A namespace takes its interfaces with it, and their other ends, but in its own time: the next path has the same names.
    for (const name of [this.#near, this.#beside]) await runProcess({ command: "ip", args: ["link", "del", name] });
    for (const name of [this.#far, this.#middle]) await runProcess({ command: "ip", args: ["netns", "del", name] });
    await this.#directory.remove();
  }

  async #build(options: PathOptions): Promise<void> {
    const emulator = join(this.#directory.path, "link-emulator");
    await runSuccessfully({ command: "gcc", args: ["-D_GNU_SOURCE", "-O2", "-o", emulator, source] });
    const [far, middle] = [this.#far, this.#middle];
    const [near, beside] = [this.#near, this.#beside];
    const ip = (line: string) => runSuccessfully({ command: "ip", args: line.split(" ") });
    const inside = (namespace: string, line: string) => ip(`netns exec ${namespace} ${line}`);
    await ip(`netns add ${far}`);
    await ip(`netns add ${middle}`);
    await ip(`link add ${near} type veth peer name m0 netns ${middle}`);
    await ip(`link add f0 netns ${far} type veth peer name m1 netns ${middle}`);
    await ip(`link add ${beside} type veth peer name f1 netns ${far}`);
    await ip(`addr add ${this.nearHost}/30 dev ${near}`);
    await ip(`addr add ${this.besideHost}/30 dev ${beside}`);
    await ip(`-n ${far} addr add ${this.farHost}/30 dev f0`);
    await ip(`-n ${far} addr add ${this.besideHost.replace(/1$/, "2")}/30 dev f1`);
    await runSuccessfully({ command: emulator, args: ["plain", near] });
    for (const [namespace, name] of [
      [far, "f0"],
      [middle, "m0"],
      [middle, "m1"],
    ] as const) {
      await inside(namespace, `${emulator} plain ${name}`);
      await ip(`-n ${namespace} link set ${name} up`);
    }
    await ip(`-n ${far} link set f1 up`);
    await ip(`-n ${far} link set lo up`);
    await ip(`link set ${near} up`);
    await ip(`link set ${beside} up`);
    const { delayMs, lossPercent = 0, kilobitsPerSecond = 0, queuePackets = 10_000, seed = 1 } = options;
    if (options.congestionControl !== undefined) {
      const network = this.nearHost.replace(/1$/, "0/30");
      const rule = `congctl ${options.congestionControl}`;
      await ip(`route replace ${network} dev ${near} proto kernel scope link src ${this.nearHost} ${rule}`);
      await ip(`-n ${far} route replace ${network} dev f0 proto kernel scope link src ${this.farHost} ${rule}`);
    }
    const figures = [delayMs, lossPercent, kilobitsPerSecond, queuePackets, seed].map(String);
    const child = spawn("ip", ["netns", "exec", middle, emulator, "m0", "m1", ...figures], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#emulator = child;
    child.stdin.on("error", () => undefined);
    await withDeadline(once(createInterface({ input: child.stdout }), "line"), { what: "the link emulator's start" });
  }
}
