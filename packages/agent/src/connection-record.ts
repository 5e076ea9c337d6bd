/**
 * The record of one connection to a target, written once at its end. Every OPEN has one, served or refused. The id is the
 * one in the edge's record; `partner` and `deployment` are what the edge claims.
 */
import { LineRate, type Logger, RecordLog } from "@sallyport/host";
import type { Ending } from "@sallyport/tunnel";

/** The facts of a connection; undefined ones are left out. Durations are milliseconds since OPEN arrived. */
export interface ConnectionFacts {
  readonly connection: string;
  /** When OPEN arrived: ISO 8601, UTC. */
  readonly startedAt: string;
  /** When it ended; of an ended connection only. Always `startedAt` and `totalMs`, whatever the clock did meanwhile. */
  readonly endedAt?: string | undefined;
  /** Name of the edge, from its greeting. */
  readonly edge: string;
  readonly deployment: string;
  readonly partner: string;
  /** What OPEN named. */
  readonly target: string;
  readonly service: string | undefined;
  /** The address that was dialled, with port. */
  readonly address: string | undefined;
  /** The address that it was dialled from, with port. */
  readonly dialLocal?: string | undefined;
  /** Version of the PROXY header that the target got, or was to get: `v1`, `v2`. */
  readonly proxyProtocol?: string | undefined;
  /** Targets of a pool that were tried, the last included; undefined without a pool. */
  readonly attempts?: number | undefined;
  readonly redispatched?: boolean | undefined;
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
  /** At its end, itself included unless it was refused. */
  readonly activeConnections?: { readonly agent: number; readonly service?: number | undefined } | undefined;
}

/** Records of refused OPENs, at most: an edge that was taken over must not fill the disk. */
const REFUSED_BURST = 200;
const REFUSED_PER_SECOND = 20;

export class RecordWriter {
  readonly log: RecordLog;
  readonly #refused = new LineRate({ burst: REFUSED_BURST, perSecond: REFUSED_PER_SECOND });

  constructor(log: Logger) {
    this.log = new RecordLog(log);
  }

  ended(facts: ConnectionFacts, ending: Ending): void {
    this.log.write("info", "connection", facts, ending);
  }

  /**
   * An OPEN that policy or limits refused: the audit line, as a warning. Beyond the rate, lines are counted and the count
   * is written with the next.
   */
  refused(facts: ConnectionFacts, ending: Ending): void {
    const leftOut = this.#refused.admit();
    if (leftOut === undefined) return;
    if (leftOut > 0) this.log.write("warn", "records of refused connections left out", { count: leftOut });
    this.log.write("warn", "connection", facts, ending);
  }
}
