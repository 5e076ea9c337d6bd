/**
 * Credit as frames tell it, kept beside the sessions: what each end has been given for each stream when it sends. A byte that
 * is sent beyond it is credit below zero.
 */
import type { Frame } from "@sallyport/protocol";
import { otherSide } from "./pair.ts";
import type { Side } from "./model-application.ts";

export class CreditAccount {
  readonly #initialCredit: number;
  /** Below which an end may send, by end and stream; at most one entry a stream. */
  readonly #limits: Record<Side, Map<number, number>> = { edge: new Map(), agent: new Map() };

  /** @param initialCredit what the edge may send on each stream before it hears of more */
  constructor(initialCredit: number) {
    this.#initialCredit = initialCredit;
  }

  /** What `side` may send on a stream in all. */
  limit(side: Side, stream: number): number {
    return this.#limits[side].get(stream) ?? (side === "edge" ? this.#initialCredit : 0);
  }

  /**
   * Takes note of a frame.
   *
   * @throws Error when it carries bytes that its sender has no credit for
   */
  observe(what: "sent" | "arrived", from: Side, frame: Frame): void {
    if (what === "sent") {
      if (frame.type !== "data") return;
      const left = this.limit(from, frame.stream) - frame.offset - frame.bytes.length;
      if (left < 0) throw new Error(`${from}: credit of ${left} on stream ${frame.stream}`);
      return;
    }
    const isCredit =
      frame.type === "open" || frame.type === "accept" || frame.type === "credit" || frame.type === "resume";
    if (!isCredit) return;
    const to = otherSide(from);
    this.#limits[to].set(frame.stream, Math.max(this.limit(to, frame.stream), frame.limit));
  }
}
