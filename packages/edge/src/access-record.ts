/**
 * The record of one partner connection, written once at its end, and in between for a long one. Every connection has
 * one, served or refused.
 */
import { LineRate } from "@sallyport/host";
import type { Ending } from "@sallyport/tunnel";
import type { Logger } from "pino";

/** The facts of a connection; undefined ones are left out of the record. Times are milliseconds since it was accepted. */
export interface ConnectionFacts {
  readonly connection: string;
  /** `address:port`; IPv6 in brackets. */
  readonly partner: string;
  /** The address of the edge that the partner reached. */
  readonly local: string;
  readonly listener: string;
  readonly deployment: string;
  readonly target: string;
  readonly client: string | undefined;
  readonly agent: string | undefined;
  /** The address that was dialled. */
  readonly address: string | undefined;
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Until the stream was opened or the dial began. */
  readonly queueMs: number | undefined;
  /** From then until the target was connected. */
  readonly connectMs: number | undefined;
  /** Until the first byte of the target. */
  readonly firstByteMs: number | undefined;
  readonly totalMs: number;
  /** The rule that decided, where one did. */
  readonly rule: string | undefined;
}

/** Refused connections whose record is written, at most: a flood of them must not become a flood of lines. */
const REFUSED_BURST = 1_000;
const REFUSED_PER_SECOND = 100;

export class RecordWriter {
  readonly #log: Logger;
  readonly #refused = new LineRate({ burst: REFUSED_BURST, perSecond: REFUSED_PER_SECOND });

  constructor(log: Logger) {
    this.#log = log;
  }

  /** A connection that was served, or that could not be. */
  ended(facts: ConnectionFacts, ending: Ending): void {
    this.#log.info({ ...facts, code: ending.code, reason: ending.reason }, "connection");
  }

  /** The state of a long connection. */
  interim(facts: ConnectionFacts): void {
    this.#log.info(facts, "connection interim");
  }

  /** A connection that admission refused. Beyond the rate, lines are counted and the count is written with the next. */
  refused(facts: ConnectionFacts, ending: Ending): void {
    const suppressed = this.#refused.admit();
    if (suppressed === undefined) return;
    if (suppressed > 0) this.#log.warn({ count: suppressed }, "records of refused connections left out");
    this.ended(facts, ending);
  }
}
