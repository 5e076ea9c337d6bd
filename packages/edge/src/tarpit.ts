/**
 * Holds sockets of refused partners without reading, for a while, so that a flooder waits instead of coming again; then
 * they are reset. Bounded in number and time: beyond, a refused socket is reset at once.
 */
import type { Socket } from "node:net";

export interface TarpitSettings {
  readonly holdMs: number;
  /** Sockets held at the same time, of the whole edge. */
  readonly max: number;
}

export class Tarpit {
  settings: TarpitSettings;
  /** In the order of their arrival, with the time at which they are reset. Bounded by `max`. */
  readonly #held = new Map<Socket, number>();
  #timer: NodeJS.Timeout | undefined;

  constructor(settings: TarpitSettings) {
    this.settings = settings;
  }

  get size(): number {
    return this.#held.size;
  }

  /** Takes a paused socket over, or resets it when there is no room. */
  hold(socket: Socket): void {
    if (this.#held.size >= this.settings.max) {
      socket.resetAndDestroy();
      return;
    }
    this.#held.set(socket, performance.now() + this.settings.holdMs);
    socket.once("close", () => this.#held.delete(socket));
    this.#arm();
  }

  /** Resets what is held. */
  clear(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const socket of this.#held.keys()) socket.resetAndDestroy();
    this.#held.clear();
  }

  /** One timer for all: the first in is the first out, unless a reload made the time shorter. */
  #arm(): void {
    if (this.#timer !== undefined) return;
    const [first] = this.#held.values();
    if (first === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        const now = performance.now();
        for (const [socket, until] of this.#held) {
          if (until > now) break;
          this.#held.delete(socket);
          socket.resetAndDestroy();
        }
        this.#arm();
      },
      Math.max(0, Math.ceil(first - performance.now())),
    );
    this.#timer.unref();
  }
}
