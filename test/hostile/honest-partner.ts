import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { withDeadline } from "../support/deadline.ts";

/** Longest time between a question and its echo that counts as being served, on a machine that other tests share. */
const MAX_LATENCY_MS = 2_000;

/**
 * A partner on a connection of its own to an echo deployment, who goes on asking while others are under attack. The caller
 * awaits `stop()`, which tells whether every answer came, right and in time.
 */
export class HonestPartner {
  readonly #socket: Socket;
  readonly #run: Promise<void>;
  #stopped = false;
  #answers = 0;
  #worstMs = 0;
  #failure: string | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#run = this.#ask();
  }

  static async start(port: number): Promise<HonestPartner> {
    const socket = connect({ port, host: "127.0.0.1" });
    socket.on("error", () => undefined);
    await withDeadline(once(socket, "connect"), { what: "honest partner connected" });
    return new HonestPartner(socket);
  }

  /** What went wrong for it, or undefined when it was served all the time. */
  async stop(): Promise<string | undefined> {
    this.#stopped = true;
    await this.#run;
    this.#socket.destroy();
    if (this.#failure !== undefined) return this.#failure;
    if (this.#answers === 0) return "no answer at all";
    return this.#worstMs > MAX_LATENCY_MS ? `an answer took ${Math.round(this.#worstMs)} ms` : undefined;
  }

  async #ask(): Promise<void> {
    try {
      while (!this.#stopped) {
        const question = `question ${this.#answers} ${"x".repeat(2_000)}`;
        const askedAt = performance.now();
        this.#socket.write(question);
        let answer = "";
        while (answer.length < question.length) {
          const [chunk] = (await withDeadline(once(this.#socket, "data"), { what: "echo for the honest partner" })) as [
            Buffer,
          ];
          answer += chunk.toString("latin1");
        }
        if (answer !== question) throw new Error("the echo is not what was sent");
        this.#answers += 1;
        this.#worstMs = Math.max(this.#worstMs, performance.now() - askedAt);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    } catch (error) {
      this.#failure = `after ${this.#answers} answers: ${(error as NodeJS.ErrnoException).code ?? String(error)}`;
    }
  }
}
