/**
 * The record of one connection to a target, written once at its end. Every OPEN has one, served or refused. The id is the
 * one in the edge's record; `partner` and `deployment` are what the edge claims.
 */
import type { Ending } from "@sallyport/tunnel";
import type { Logger } from "pino";

/** The facts of a connection; undefined ones are left out. Times are milliseconds since OPEN arrived. */
export interface ConnectionFacts {
  readonly connection: string;
  /** Name of the edge, from its greeting. */
  readonly edge: string;
  readonly deployment: string;
  readonly partner: string;
  /** What OPEN named. */
  readonly target: string;
  readonly service: string | undefined;
  /** The address that was dialled, with port. */
  readonly address: string | undefined;
  /** From the partner to the target, as far as the target has taken them. */
  readonly bytesIn: number;
  /** From the target to the partner. */
  readonly bytesOut: number;
  /** Until the target was connected. */
  readonly connectMs: number | undefined;
  /** Until the first byte of the target. */
  readonly firstByteMs: number | undefined;
  readonly totalMs: number;
  /** The rule that admitted the address, or what refused it. */
  readonly rule: string | undefined;
}

/** Records of refused OPENs, at most: an edge that was taken over must not fill the disk. */
const REFUSED_BURST = 200;
const REFUSED_PER_SECOND = 20;

export class RecordWriter {
  /** Records of refused OPENs that were left out so far. */
  suppressed = 0;
  readonly #log: Logger;
  readonly #now: () => number;
  #tokens = REFUSED_BURST;
  #at: number;
  #untold = 0;

  constructor(log: Logger, now: () => number = () => performance.now()) {
    this.#log = log;
    this.#now = now;
    this.#at = now();
  }

  ended(facts: ConnectionFacts, ending: Ending): void {
    this.#log.info({ ...facts, code: ending.code, reason: ending.reason }, "connection");
  }

  /**
   * An OPEN that policy or limits refused: the audit line, as a warning. Beyond the rate, lines are counted and the count
   * is written with the next.
   */
  refused(facts: ConnectionFacts, ending: Ending): void {
    const now = this.#now();
    this.#tokens = Math.min(REFUSED_BURST, this.#tokens + ((now - this.#at) / 1_000) * REFUSED_PER_SECOND);
    this.#at = now;
    if (this.#tokens < 1) {
      this.suppressed += 1;
      this.#untold += 1;
      return;
    }
    this.#tokens -= 1;
    if (this.#untold > 0) {
      this.#log.warn({ count: this.#untold }, "records of refused connections left out");
      this.#untold = 0;
    }
    this.#log.warn({ ...facts, code: ending.code, reason: ending.reason }, "connection");
  }
}
