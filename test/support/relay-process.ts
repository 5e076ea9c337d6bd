import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { withDeadline } from "./deadline.ts";
import { findFreePort } from "./free-port.ts";

/** What befalls the relayed connections; `relay-program.mjs` says what each does. */
export type RelayOrder = "cut" | "cut-one" | "stall" | "hole" | "heal";

interface Address {
  readonly host: string;
  readonly port: number;
}

const program = fileURLToPath(new URL("relay-program.mjs", import.meta.url));

/** A sick network between two programs that is a process of its own and can be killed. The caller closes it. */
export class RelayProcess {
  readonly port: number;
  readonly #host: string;
  readonly #target: Address;
  #child: ChildProcess | undefined;
  /** Who waits for the answer to an order, in the order of the orders. */
  #waiting: ((answer: string) => void)[] = [];

  private constructor({ listen, target }: { readonly listen: Address; readonly target: Address }) {
    this.port = listen.port;
    this.#host = listen.host;
    this.#target = target;
  }

  /** The relay listens on `host` (default 127.0.0.1); the target is always on 127.0.0.1. */
  static async start(targetPort: number, host = "127.0.0.1"): Promise<RelayProcess> {
    return RelayProcess.between({
      listen: { host, port: await findFreePort(host) },
      target: { host: "127.0.0.1", port: targetPort },
    });
  }

  static async between(ends: { readonly listen: Address; readonly target: Address }): Promise<RelayProcess> {
    const relay = new RelayProcess(ends);
    await relay.revive();
    return relay;
  }

  /** Starts the process, after `kill` again, on the same port. */
  async revive(): Promise<void> {
    const args = [this.#host, String(this.port), this.#target.host, String(this.#target.port)];
    const child = spawn(process.execPath, [program, ...args], { stdio: ["pipe", "pipe", "inherit"] });
    this.#child = child;
    // Orders to a process that is being killed go nowhere; their deadline tells.
    child.stdin.on("error", () => undefined);
    createInterface({ input: child.stdout }).on("line", (line) => this.#waiting.shift()?.(line));
    await this.#answer("the relay's start");
  }

  /** Ends the process as `kill -9` does: the system closes its sockets. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#child = undefined;
    const ended = once(child, "close");
    child.kill("SIGKILL");
    await withDeadline(ended, { what: "the end of the relay" });
    this.#waiting = [];
  }

  /** Resolves, with the number of connections that it concerned, when the order is carried out. */
  async order(order: RelayOrder): Promise<number> {
    this.#child?.stdin?.write(`${order}\n`);
    const answer = await this.#answer(`the relay's answer to ${order}`);
    return Number(answer.split(" ").at(-1));
  }

  close(): Promise<void> {
    return this.kill();
  }

  #answer(what: string): Promise<string> {
    return withDeadline(new Promise<string>((resolve) => this.#waiting.push(resolve)), { what });
  }
}
