/**
 * The record of one partner connection, written once at its end, and in between for a long one. Every connection has
 * one, served or refused.
 */
import { LineRate, type Logger, RecordLog } from "@sallyport/host";
import type { Ending } from "@sallyport/tunnel";
import { EndedConnections } from "./ended-connections.ts";

/** How many connections there were when one ended, itself included unless it was refused. */
export interface ActiveConnections {
  readonly edge: number;
  readonly listener: number;
  /** Undefined when it was not known where it goes. */
  readonly deployment: number | undefined;
  /** Of the target in a pool. */
  readonly target?: number | undefined;
}

/**
 * The facts of a connection; undefined ones are left out of the record. Durations are milliseconds since it was accepted.
 * What a partner or an agent chose (`sni`, `alpn`, `proxyAuthority`, `proxyUniqueId`, `agent`, `address`, `dialLocal`) may hold any
 * character: whoever writes a record escapes it.
 */
export interface ConnectionFacts {
  readonly connection: string;
  /** When it was accepted: ISO 8601, UTC. */
  readonly startedAt: string;
  /** When it ended; of an ended connection only. Always `startedAt` and `totalMs`, whatever the clock did meanwhile. */
  readonly endedAt?: string | undefined;
  /** `address:port`; IPv6 in brackets. What is believed: the address of a PROXY header where one was accepted. */
  readonly partner: string;
  /** The address that the connection came from, where it is not `partner`: a proxy in front. */
  readonly peer?: string | undefined;
  /** The address of the edge that the partner reached. */
  readonly local: string;
  /** The address that the partner reached at the proxy in front, from its PROXY header. */
  readonly proxyLocal?: string | undefined;
  /** AUTHORITY of the PROXY header. */
  readonly proxyAuthority?: string | undefined;
  /** UNIQUE_ID of the PROXY header: printable ASCII as it is, anything else in hexadecimal. */
  readonly proxyUniqueId?: string | undefined;
  readonly listener: string;
  /** Undefined when the connection ended before it was known where it goes. */
  readonly deployment: string | undefined;
  /** Server name and protocols that a TLS client asked for. Nothing is terminated. */
  readonly sni?: string | undefined;
  readonly alpn?: readonly string[] | undefined;
  /** Undefined while none of several is chosen. */
  readonly target: string | undefined;
  readonly client: string | undefined;
  readonly agent: string | undefined;
  /** The address that was dialled. */
  readonly address: string | undefined;
  /** The address that it was dialled from: of the agent, or of the edge where it dials itself. */
  readonly dialLocal?: string | undefined;
  /** Version of the PROXY header that the target gets: `v1`, `v2`. */
  readonly proxyProtocol?: string | undefined;
  /** Targets that were tried, the last included; undefined where none was. */
  readonly attempts?: number | undefined;
  /** True: it was served by another target than the first that was tried. */
  readonly redispatched?: boolean | undefined;
  /** How many waited before it when it began to wait, for an agent or a target. */
  readonly queuePosition?: number | undefined;
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
  /** Why admission refused it, in the word of the metrics' label `reason`. */
  readonly denied?: string | undefined;
  /** What would have refused it if it were enforced, in the same words. */
  readonly dryRun?: readonly string[] | undefined;
  /** At its end. */
  readonly activeConnections?: ActiveConnections | undefined;
  /** Counts the records of one connection from 1, where it has more than the one at its end. */
  readonly sequence?: number | undefined;
}

/** Refused connections whose record is written, at most: a flood of them must not become a flood of lines. */
const REFUSED_BURST = 1_000;
const REFUSED_PER_SECOND = 100;

export class RecordWriter {
  readonly log: RecordLog;
  readonly #refused = new LineRate({ burst: REFUSED_BURST, perSecond: REFUSED_PER_SECOND });

  /** What metrics count of them. */
  readonly counts = new EndedConnections();

  constructor(log: Logger) {
    this.log = new RecordLog(log);
  }

  /** A connection that was served, or that could not be. */
  ended(facts: ConnectionFacts, ending: Ending): void {
    this.counts.count(facts, ending);
    this.log.write("info", "connection", facts, ending);
  }

  /** The state of a long connection. */
  interim(facts: ConnectionFacts): void {
    this.log.write("info", "connection interim", facts);
  }

  /** A connection that admission refused. Beyond the rate, lines are counted and the count is written with the next. */
  refused(facts: ConnectionFacts, ending: Ending): void {
    this.counts.count(facts, ending);
    const suppressed = this.#refused.admit();
    if (suppressed === undefined) return;
    if (suppressed > 0) this.log.write("warn", "records of refused connections left out", { count: suppressed });
    this.log.write("info", "connection", facts, ending);
  }
}
