import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { withDeadline } from "./deadline.ts";

/** What the streams of a group do; `traffic-program.mjs` has the table. */
export type TrafficKind = "pull" | "pull-none" | PausedKind | "push" | "push-none";
/** One transfer of `TRANSFER_BYTES`, whose reader stands still after `PAUSE_BYTES` until it is told to go on. */
export type PausedKind = "pull-pause" | "push-pause";

export const TRANSFER_BYTES = 1024 ** 3;
export const PAUSE_BYTES = 256 * 1024 ** 2;

/** How far the reader of a transfer with a pause has come. */
export interface TransferState {
  readonly receivedBytes: number;
  /** Whether every byte so far was the one that was sent. */
  readonly isRight: boolean;
  readonly isPaused: boolean;
  /** The other side has ended after its last byte. */
  readonly hasEnded: boolean;
}

export interface TrafficCount {
  /** Bytes that each partner of the group has read and that the system has taken from it, in the order of their start. */
  readonly streamBytes: readonly number[];
  /** Connections that failed. */
  readonly failures: number;
}

const program = fileURLToPath(new URL("traffic-program.mjs", import.meta.url));

/** A process of `traffic-program.mjs`. */
class TrafficProcess {
  readonly #child: ChildProcess;
  /** Who waits for a line, in the order of the lines. */
  readonly #waiting: ((line: string) => void)[] = [];

  constructor(args: readonly string[]) {
    const sizes = [TRANSFER_BYTES, PAUSE_BYTES].map(String);
    const child = spawn(process.execPath, [program, ...args, ...sizes], { stdio: ["pipe", "pipe", "inherit"] });
    child.stdin.on("error", () => undefined);
    createInterface({ input: child.stdout }).on("line", (line) => this.#waiting.shift()?.(line));
    this.#child = child;
  }

  line(what: string, timeoutMs = 60_000): Promise<string> {
    return withDeadline(new Promise<string>((resolve) => this.#waiting.push(resolve)), { what, timeoutMs });
  }

  async order(order: object): Promise<unknown> {
    this.#child.stdin?.write(`${JSON.stringify(order)}\n`);
    return JSON.parse(await this.line(`an answer to ${JSON.stringify(order)}`)) as unknown;
  }

  async transfer(kind: PausedKind): Promise<TransferState> {
    return (await this.order({ order: "transfer", kind })) as TransferState;
  }

  async resume(kind: PausedKind): Promise<void> {
    await this.order({ order: "resume", kind });
  }

  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, "close");
    this.#child.kill("SIGKILL");
    await ended;
  }
}

/** The end that reads a transfer with a pause: the partners' process or the target's. */
export interface PausedReader {
  transfer(kind: PausedKind): Promise<TransferState>;
  resume(kind: PausedKind): Promise<void>;
}

/** A target as a process of its own. The caller closes it. */
export class TrafficTarget implements PausedReader {
  readonly port: number;
  readonly #process: TrafficProcess;

  private constructor(process: TrafficProcess, port: number) {
    this.#process = process;
    this.port = port;
  }

  static async start(): Promise<TrafficTarget> {
    const process = new TrafficProcess(["target"]);
    const line = await process.line("the target's port");
    return new TrafficTarget(process, Number(line.split(" ")[1]));
  }

  transfer(kind: PausedKind): Promise<TransferState> {
    return this.#process.transfer(kind);
  }

  resume(kind: PausedKind): Promise<void> {
    return this.#process.resume(kind);
  }

  close(): Promise<void> {
    return this.#process.close();
  }
}

/** Partners as a process of their own. The caller closes it. */
export class TrafficPartners implements PausedReader {
  readonly #process: TrafficProcess;

  private constructor(process: TrafficProcess) {
    this.#process = process;
  }

  static async start(port: number): Promise<TrafficPartners> {
    const process = new TrafficProcess(["partners", String(port)]);
    await process.line("the partners' start");
    return new TrafficPartners(process);
  }

  async open(kind: TrafficKind, count: number): Promise<void> {
    await this.#process.order({ order: "open", kind, count });
  }

  async count(kind: TrafficKind): Promise<TrafficCount> {
    return (await this.#process.order({ order: "count", kind })) as TrafficCount;
  }

  /** Bytes per second, over `durationMs`, of all streams of a group together. */
  async rate(kind: TrafficKind, durationMs: number): Promise<number> {
    const total = async () => (await this.count(kind)).streamBytes.reduce((sum, bytes) => sum + bytes, 0);
    const before = await total();
    const startedAt = performance.now();
    await delay(durationMs);
    return (((await total()) - before) * 1000) / (performance.now() - startedAt);
  }

  transfer(kind: PausedKind): Promise<TransferState> {
    return this.#process.transfer(kind);
  }

  resume(kind: PausedKind): Promise<void> {
    return this.#process.resume(kind);
  }

  /** Resets every connection of a group. */
  async close(kind: TrafficKind): Promise<void> {
    await this.#process.order({ order: "close", kind });
  }

  async stop(): Promise<void> {
    await this.#process.close();
  }
}
