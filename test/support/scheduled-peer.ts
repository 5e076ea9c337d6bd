/**
 * One end of a connection, a partner or a target, that does what a plan says: it sends pieces of a known content with
 * pauses between them, ends its direction or resets, and reads at its own speed what it checks byte for byte.
 */
import { once } from "node:events";
import type { Socket } from "node:net";
import type { Chance } from "./chance.ts";
import { drainedOrClosed } from "./socket-drain.ts";
import { type SocketEnding, socketEnding } from "./socket-ending.ts";

export interface PeerPlan {
  /** How many it sends before it ends or resets. */
  readonly bytes: number;
  /** When it begins to send: `atEnd`, when the other end has ended its direction. */
  readonly begins: "now" | "atEnd";
  /** `reset`: without an end; `endAndReset`: some time after the end of its direction. */
  readonly ends: "end" | "reset" | "endAndReset";
  /** `late`: not before it has sent everything. */
  readonly reads: "fast" | "slowly" | "late";
}

export interface ScheduledPeerOptions {
  readonly plan: PeerPlan;
  readonly chance: Chance;
  /** What it sends, after `preface`. At least as long as the plan says. */
  readonly content: Buffer;
  /** Goes out first and is not counted. */
  readonly preface?: Buffer;
  /** What it expects to receive, or the beginning of it. */
  readonly expected: Buffer;
  /** How long the incoming half may take. */
  readonly timeoutMs: number;
}

/** Of pieces; some are a little more than buffers of ours are long. */
const PIECES = [1, 5, 100, 4_096, 8_192, 8_193, 20_000, 65_536, 262_144] as const;

export class ScheduledPeer {
  readonly socket: Socket;
  readonly plan: PeerPlan;
  /** The socket forgets it when it is closed. */
  readonly remotePort: number | undefined;
  /** How the incoming half has ended. */
  readonly ending: Promise<SocketEnding>;
  /** Fulfilled when it has done all that its plan says, or its socket is closed. */
  readonly played: Promise<void>;
  receivedBytes = 0;
  /** Where what it received is not what it expected first. */
  wrongAt: number | undefined;
  /** How many bytes the socket was given. */
  sentBytes = 0;
  hasEnded = false;
  hasReset = false;
  readonly #options: ScheduledPeerOptions;

  /** The socket allows half-open, and has an 'error' listener. */
  constructor(socket: Socket, options: ScheduledPeerOptions) {
    this.socket = socket;
    this.#options = options;
    const { plan, timeoutMs } = options;
    this.plan = plan;
    this.remotePort = socket.remotePort;
    socket.on("data", (bytes: Buffer) => this.#check(bytes));
    const mayBegin = plan.begins === "now" ? Promise.resolve() : this.#otherEnded();
    this.ending = socketEnding(socket, timeoutMs);
    // Whoever asks hears that it took too long; where nobody does that is no failure of its own.
    this.ending.catch(() => undefined);
    if (plan.reads === "late") socket.pause();
    this.played = mayBegin.then(() => this.#play());
  }

  async #otherEnded(): Promise<void> {
    const waiting = new AbortController();
    const { signal } = waiting;
    const events = ["end", "close"].map((event) => once(this.socket, event, { signal }));
    await Promise.race(events).catch(() => undefined);
    waiting.abort();
    await Promise.allSettled(events);
  }

  async #play(): Promise<void> {
    const { chance, plan, preface } = this.#options;
    if (preface !== undefined && !this.socket.destroyed) {
      this.socket.write(preface);
      if (chance.happens(0.6)) await chance.pause();
    }
    await this.#send();
    await chance.pause();
    if (this.socket.destroyed) return;
    if (plan.reads === "late") this.socket.resume();
    if (plan.ends !== "reset") {
      this.hasEnded = true;
      // The FIN is with the kernel, or the socket is closed.
      await new Promise<void>((resolve) => this.socket.end(resolve));
      await chance.pause();
    } else if (chance.happens(0.5)) {
      // The same of every byte before the reset.
      await new Promise((resolve) => this.socket.write("", resolve));
    }
    if (plan.ends === "end" || this.socket.destroyed) return;
    this.hasReset = true;
    this.socket.resetAndDestroy();
  }

  async #send(): Promise<void> {
    const { chance, content, plan } = this.#options;
    const { socket } = this;
    while (this.sentBytes < plan.bytes && !socket.destroyed) {
      const length = Math.min(plan.bytes - this.sentBytes, chance.oneOf(...PIECES));
      const mayFollow = socket.write(content.subarray(this.sentBytes, this.sentBytes + length));
      this.sentBytes += length;
      if (!mayFollow && chance.happens(0.7)) await drainedOrClosed(socket);
      await chance.pause();
    }
  }

  #check(bytes: Buffer): void {
    const { chance, expected, plan } = this.#options;
    const from = this.receivedBytes;
    this.receivedBytes += bytes.length;
    if (!bytes.equals(expected.subarray(from, this.receivedBytes))) this.wrongAt ??= from;
    if (plan.reads !== "slowly" || !chance.happens(0.2)) return;
    this.socket.pause();
    void chance.pause().then(() => this.socket.resume());
  }
}
