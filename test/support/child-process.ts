import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { open } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import type { Readable } from "node:stream";
import { StringDecoder } from "node:string_decoder";
import { withDeadline } from "./deadline.ts";

export interface ProcessOptions {
  readonly command: string;
  readonly args?: readonly string[];
  /** Added to the environment of this process; `undefined` takes a variable away. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** Runs as this user; only root may ask for another one. */
  readonly user?: { readonly uid: number; readonly gid: number };
  /** Written to the standard input, which is then closed. Without input the standard input is empty. */
  readonly input?: string | Buffer;
  /** Standard input comes from this file instead. */
  readonly inputFile?: string;
  /** Standard output goes into this file instead of being captured. */
  readonly outputFile?: string;
  /** How much of each output stream is kept; older lines are dropped first. Default 1 MiB. */
  readonly maxOutputBytes?: number;
  /** Is called for each line of the standard output as it arrives, without the line's end. */
  readonly onLine?: (line: string) => void;
  /** What `stop` sends first. Default SIGTERM. */
  readonly stopSignal?: NodeJS.Signals;
}

export interface ProcessEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface RunResult extends ProcessEnd {
  readonly stdout: string;
  readonly stderr: string;
}

/** Processes that run now. An entry leaves when its process ends; see the exit handler below. */
const running = new Set<ChildProcess>();

// A test run that is interrupted before its hooks leaves no program behind: each child is ended by its own id.
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/** The output of one stream as lines, the last `maxBytes` of it. */
class LineLog {
  readonly #decoder = new StringDecoder("utf8");
  readonly #maxBytes: number;
  readonly #onLine: (line: string) => void;
  #lines: string[] = [];
  #keptBytes = 0;
  #partial = "";

  constructor(maxBytes: number, onLine: (line: string) => void) {
    this.#maxBytes = maxBytes;
    this.#onLine = onLine;
  }

  append(chunk: Buffer): void {
    const parts = (this.#partial + this.#decoder.write(chunk)).split(/\r?\n/);
    // A program that never ends its line cannot fill the memory either.
    this.#partial = (parts.pop() ?? "").slice(-this.#maxBytes);
    for (const line of parts) this.#keep(line);
  }

  finish(): void {
    const rest = this.#partial + this.#decoder.end();
    this.#partial = "";
    if (rest !== "") this.#keep(rest);
  }

  get lines(): readonly string[] {
    return this.#lines;
  }

  get text(): string {
    return [...this.#lines, this.#partial].join("\n");
  }

  #keep(line: string): void {
    this.#lines.push(line);
    this.#keptBytes += line.length + 1;
    if (this.#keptBytes > 2 * this.#maxBytes) this.#forget();
    this.#onLine(line);
  }

  /** Drops the older half at once, so that dropping costs nothing per line. */
  #forget(): void {
    let dropped = 0;
    while (this.#keptBytes > this.#maxBytes && dropped < this.#lines.length) {
      this.#keptBytes -= (this.#lines[dropped] ?? "").length + 1;
      dropped++;
    }
    this.#lines = this.#lines.slice(dropped);
  }
}

/** A program under test. Whoever starts it awaits `stop()`, also when the test fails. */
export class TestProcess {
  readonly command: string;
  readonly #child: ChildProcess;
  readonly #stdout: LineLog;
  readonly #stderr: LineLog;
  readonly #stopSignal: NodeJS.Signals;
  readonly #waiters = new Set<(line: string) => void>();
  readonly #ended: Promise<ProcessEnd>;
  #end: ProcessEnd | undefined;

  private constructor(child: ChildProcess, options: ProcessOptions) {
    this.command = [options.command, ...(options.args ?? [])].join(" ");
    this.#child = child;
    this.#stopSignal = options.stopSignal ?? "SIGTERM";
    const maxBytes = options.maxOutputBytes ?? 1024 * 1024;
    const announce = (line: string): void => {
      for (const waiter of this.#waiters) waiter(line);
    };
    this.#stdout = new LineLog(maxBytes, (line) => {
      options.onLine?.(line);
      announce(line);
    });
    this.#stderr = new LineLog(maxBytes, announce);
    follow(child.stdout, this.#stdout);
    follow(child.stderr, this.#stderr);
    this.#ended = new Promise((resolve) => {
      child.once("close", (code, signal) => {
        running.delete(child);
        this.#stdout.finish();
        this.#stderr.finish();
        this.#end = { code, signal };
        resolve(this.#end);
      });
    });
  }

  /** Resolves once the process runs; rejects when the command cannot be started. */
  static async start(options: ProcessOptions): Promise<TestProcess> {
    const files: FileHandle[] = [];
    const openFile = async (path: string, flags: string): Promise<number> => {
      const file = await open(path, flags);
      files.push(file);
      return file.fd;
    };
    try {
      const stdin =
        options.inputFile === undefined
          ? options.input === undefined
            ? "ignore"
            : "pipe"
          : await openFile(options.inputFile, "r");
      const stdout = options.outputFile === undefined ? "pipe" : await openFile(options.outputFile, "w");
      const child = spawn(options.command, [...(options.args ?? [])], {
        cwd: options.cwd,
        env: { ...process.env, ...options.env },
        stdio: [stdin, stdout, "pipe"],
        windowsHide: true,
        ...options.user,
      });
      const started = new Promise<void>((resolve, reject) => {
        child.once("spawn", resolve);
        child.on("error", reject);
      });
      const testProcess = new TestProcess(child, options);
      await started;
      running.add(child);
      // A program may end without having read all of its input; its exit code says what that means.
      child.stdin?.on("error", () => undefined);
      child.stdin?.end(options.input);
      return testProcess;
    } finally {
      await Promise.all(files.map((file) => file.close()));
    }
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** What is kept of the standard output. */
  get stdout(): string {
    return this.#stdout.text;
  }

  /** What is kept of the standard error. */
  get stderr(): string {
    return this.#stderr.text;
  }

  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Sends a signal to this process alone. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /**
   * The first line, of either stream and also of those already written, that matches. Rejects at the deadline (default
   * 15 s) and as soon as the process ends without it, showing what the process said last.
   */
  async waitForLine(pattern: RegExp, timeoutMs = 15_000): Promise<string> {
    const earlier = [...this.#stdout.lines, ...this.#stderr.lines].find((line) => pattern.test(line));
    if (earlier !== undefined) return earlier;
    let waiter: (line: string) => void = () => undefined;
    const seen = new Promise<string>((resolve) => {
      waiter = (line) => {
        if (pattern.test(line)) resolve(line);
      };
    });
    this.#waiters.add(waiter);
    const gone = this.#ended.then((): never => {
      throw new Error("the process has ended");
    });
    try {
      return await withDeadline(Promise.race([seen, gone]), { what: `a line like ${pattern}`, timeoutMs });
    } catch (error) {
      throw new Error(`${this.command}: ${(error as Error).message}\n${this.tail}`, { cause: error });
    } finally {
      this.#waiters.delete(waiter);
    }
  }

  /** How the process ended. Rejects at the deadline (default 15 s); the process then still runs. */
  waitForEnd(timeoutMs = 15_000): Promise<ProcessEnd> {
    return withDeadline(this.#ended, { what: `the end of ${this.command}`, timeoutMs });
  }

  /** Asks the process to stop and kills it when it has not stopped after `graceMs` (default 10 s). Always awaits its end. */
  async stop(graceMs = 10_000): Promise<ProcessEnd> {
    if (this.#end !== undefined) return this.#end;
    this.#child.kill(this.#stopSignal);
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), graceMs);
    try {
      return await this.#ended;
    } finally {
      clearTimeout(timer);
    }
  }

  /** How the process stands and what it said last, for the message of a failing test. */
  get tail(): string {
    const lastOf = (log: LineLog): string => log.text.slice(-4000).trim();
    const end = this.#end === undefined ? "runs" : `exit code ${this.#end.code}, signal ${this.#end.signal}`;
    return `process: ${end}\nstdout: ${lastOf(this.#stdout)}\nstderr: ${lastOf(this.#stderr)}`;
  }
}

/** Runs a program to its end. Rejects at the deadline (default 60 s), after having killed it. */
export async function runProcess(options: ProcessOptions & { readonly timeoutMs?: number }): Promise<RunResult> {
  const child = await TestProcess.start(options);
  try {
    const end = await child.waitForEnd(options.timeoutMs ?? 60_000);
    return { ...end, stdout: child.stdout, stderr: child.stderr };
  } catch (error) {
    throw new Error(`${(error as Error).message}\nstdout: ${child.stdout}\nstderr: ${child.stderr}`, { cause: error });
  } finally {
    await child.stop(1000);
  }
}

/** As `runProcess`, and rejects unless the program ends with exit code 0. */
export async function runSuccessfully(options: ProcessOptions & { readonly timeoutMs?: number }): Promise<RunResult> {
  const result = await runProcess(options);
  if (result.code !== 0) {
    const command = [options.command, ...(options.args ?? [])].join(" ");
    throw new Error(
      `${command}: exit code ${result.code}, signal ${result.signal}\nstdout: ${result.stdout}\nstderr: ${result.stderr}`,
    );
  }
  return result;
}

function follow(stream: Readable | null, log: LineLog): void {
  stream?.on("error", () => undefined);
  stream?.on("data", (chunk: Buffer) => log.append(chunk));
}
