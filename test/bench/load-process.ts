import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { withDeadline } from "../support/deadline.ts";

/** One of `programs/` that takes orders on its standard input, a line each, and answers each by a line of JSON. */
export class LoadProcess {
  readonly #child: ChildProcess;
  /** Who waits for an answer, in the order of the orders. */
  #waiting: { readonly resolve: (line: string) => void; readonly reject: (error: Error) => void }[] = [];

  constructor(program: string, args: readonly string[]) {
    this.#child = spawn(process.execPath, [program, ...args], { stdio: ["pipe", "pipe", "inherit"] });
    this.#child.stdin!.on("error", () => undefined);
    createInterface({ input: this.#child.stdout! }).on("line", (line) => this.#waiting.shift()?.resolve(line));
    this.#child.once("close", () => {
      for (const { reject } of this.#waiting) reject(new Error(`${program} has ended`));
      this.#waiting = [];
    });
  }

  async order<Answer>(order: string, timeoutMs: number): Promise<Answer> {
    const answer = new Promise<string>((resolve, reject) => this.#waiting.push({ resolve, reject }));
    this.#child.stdin!.write(`${order}\n`);
    return JSON.parse(await withDeadline(answer, { what: `the answer to ${order}`, timeoutMs })) as Answer;
  }

  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, "close");
    this.#child.kill("SIGKILL");
    await ended;
  }
}
