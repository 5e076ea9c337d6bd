/**
 * The life of one stream at the agent, top to bottom: OPEN, policy, limits, the dial, ACCEPT, the bytes, one record.
 *
 * The target is not read and the edge has no more than the initial credit until the dial has succeeded. What comes earlier
 * (a partner that speaks first) is kept here, within that credit, and given to the splice.
 */
import type { Socket } from "node:net";
import {
  type Dialled,
  DialError,
  type DialErrorReason,
  type DialOptions,
  formatHostPort,
  parseIpAddress,
  type Resolver,
} from "@sallyport/host";
import { CHECK_PARTNER, type Open, ResetCode } from "@sallyport/protocol";
import { Ended, type Ending, endingOf, Splice, type StreamHandler, type TunnelStream } from "@sallyport/tunnel";
import type { ConnectionFacts, RecordWriter } from "./connection-record.ts";
import type { DialLimits, DialPermit } from "./dial-limits.ts";
import { type OutboundProxyHeader, outboundProxyHeader } from "./outbound-proxy-header.ts";
import type { Decision, Policy } from "./policy.ts";

/** What connections need; read at each OPEN, so that a reload concerns new connections only. */
export interface TargetContext {
  readonly policy: Policy;
  readonly limits: DialLimits;
  readonly resolver: Pick<Resolver, "resolve">;
  readonly dial: (options: DialOptions) => Promise<Dialled>;
  /** In milliseconds; 0 turns idle and half-close timeouts off. */
  readonly timeouts: { readonly connectMs: number; readonly idleMs: number; readonly halfCloseMs: number };
  readonly records: RecordWriter;
}

/** Hears what becomes of connections; keeps the list of those that live. */
export interface TargetConnectionEvents {
  onDialling(connection: TargetConnection): void;
  /** Once, with the final figures. */
  onEnded(connection: TargetConnection): void;
  /** Connections that live, of all and of the service of this one. */
  active(connection: TargetConnection): NonNullable<ConnectionFacts["activeConnections"]>;
  onForbidden(): void;
  onDialError(reason: DialErrorReason | "limit"): void;
}

export interface TargetConnectionOptions {
  /** Name of the edge that sent OPEN. */
  readonly edge: string;
  readonly open: Open;
  readonly stream: TunnelStream;
  readonly context: TargetContext;
  readonly events: TargetConnectionEvents;
}

/** The one table of what a failed dial is called on the wire and in the record. */
const dialFailures: Record<DialErrorReason, { readonly code: ResetCode; readonly ending: Ending }> = {
  refused: { code: ResetCode.targetRefused, ending: Ended.targetRefused },
  timeout: { code: ResetCode.targetTimeout, ending: Ended.targetTimeout },
  unreachable: { code: ResetCode.targetUnreachable, ending: Ended.targetUnreachable },
  name_not_found: { code: ResetCode.nameNotFound, ending: Ended.nameNotFound },
  name_timeout: {
    code: ResetCode.targetTimeout,
    ending: Ended.nameTimeout,
  },
  forbidden: { code: ResetCode.forbidden, ending: Ended.forbidden },
  reset: { code: ResetCode.connectionReset, ending: Ended.targetReset },
  resource: { code: ResetCode.resource, ending: Ended.resource },
  cancelled: { code: ResetCode.cancelled, ending: Ended.partnerGone },
  other: { code: ResetCode.targetUnreachable, ending: Ended.targetUnreachable },
};

/**
 * What a check may be: a stream that is more, or lasts longer, has a record like any other, whatever the edge calls it.
 * An edge that was taken over cannot hide connections among checks.
 */
const MAX_CHECK_BYTES_IN = 1_024;
const MAX_CHECK_BYTES_OUT = 16_384;
const MAX_CHECK_MS = 65_000;

const HEADER_FORBIDDEN: Ending = { code: "PC", reason: "PROXY header not allowed by the agent" };

export class TargetConnection implements StreamHandler {
  readonly startedAt = new Date();
  readonly open: Open;
  readonly edge: string;
  readonly service: string | undefined;
  readonly #stream: TunnelStream;
  readonly #context: TargetContext;
  readonly #events: TargetConnectionEvents;
  readonly #decision: Decision | undefined;
  readonly #start = performance.now();
  readonly #abort = new AbortController();
  /** What came before the target was connected: one buffer, however small the pieces. Bounded by the initial credit. */
  #early = Buffer.alloc(0);
  #earlyBytes = 0;
  #earlyEnd = false;
  #splice: Splice | undefined;
  #proxyHeader: OutboundProxyHeader | undefined;
  #address: string | undefined;
  #dialLocal: string | undefined;
  #rule: string | undefined;
  #connectedAt: number | undefined;
  #endedAt: number | undefined;

  private constructor(options: TargetConnectionOptions, decision: Decision | undefined) {
    this.open = options.open;
    this.edge = options.edge;
    this.service = decision?.service;
    this.#decision = decision;
    this.#stream = options.stream;
    this.#context = options.context;
    this.#events = options.events;
  }

  /** Carries an OPEN out. Undefined: it was refused and its stream is reset. */
  static serve(options: TargetConnectionOptions): StreamHandler | undefined {
    const { context, events, open, stream } = options;
    const decision = context.policy.decide(open.target);
    const connection = new TargetConnection(options, decision);
    if (decision === undefined) {
      events.onForbidden();
      return connection.#refuse(ResetCode.forbidden, Ended.forbidden);
    }
    if (open.proxy !== undefined) {
      const header = decision.proxyProtocol === "allow" ? outboundProxyHeader(open) : undefined;
      if (header === undefined) {
        events.onForbidden();
        connection.#rule = decision.proxyProtocol === "allow" ? "the edge names no addresses" : "proxyProtocol: deny";
        return connection.#refuse(ResetCode.forbidden, HEADER_FORBIDDEN);
      }
      connection.#proxyHeader = header;
    }
    const permit = context.limits.admit(decision.service, performance.now());
    if (typeof permit === "string") {
      connection.#rule = permit;
      if (connection.isCheck) {
        stream.reset(ResetCode.limit);
        return undefined;
      }
      events.onDialError("limit");
      return connection.#refuse(ResetCode.limit, Ended.limit);
    }
    events.onDialling(connection);
    connection.#dial(decision, permit, stream);
    return connection;
  }

  /** The edge asks whether the target can be reached; no partner is behind it. */
  get isCheck(): boolean {
    return this.open.partner === CHECK_PARTNER;
  }

  get id(): string {
    return this.open.connection;
  }

  get bytesIn(): number {
    return this.#splice?.bytesToSocket ?? 0;
  }

  get bytesOut(): number {
    return this.#splice?.bytesFromSocket ?? 0;
  }

  get facts(): ConnectionFacts {
    const since = (at: number | undefined) => (at === undefined ? undefined : round(at - this.#start));
    return {
      connection: this.open.connection,
      startedAt: this.startedAt.toISOString(),
      edge: this.edge,
      deployment: this.open.deployment,
      partner: this.open.partner,
      target: this.open.target,
      service: this.service,
      address: this.#address,
      dialLocal: this.#dialLocal,
      proxyProtocol: this.#proxyHeader === undefined ? undefined : `v${this.#proxyHeader.version}`,
      bytesIn: this.bytesIn,
      bytesOut: this.bytesOut,
      connectMs: since(this.#connectedAt),
      firstByteMs: since(this.#splice?.firstByteFromSocketAt),
      totalMs: round((this.#endedAt ?? performance.now()) - this.#start),
      rule: this.#rule,
    };
  }

  /** Resets stream and target; the record says `killed by operator` or `shutdown`. */
  abort(code: typeof ResetCode.killed | typeof ResetCode.shutdown): void {
    if (this.#endedAt !== undefined) return;
    if (this.#splice !== undefined) return this.#splice.abort(code);
    this.#stream.reset(code);
    this.#finish(endingOf({ type: "aborted", code }, { side: "agent", connected: false }));
    this.#abort.abort();
  }

  #refuse(code: ResetCode, ending: Ending): undefined {
    this.#stream.reset(code);
    this.#endedAt = performance.now();
    this.#context.records.refused(this.#factsAtEnd, ending);
    return undefined;
  }

  #dial(decision: Decision, permit: DialPermit, stream: TunnelStream): void {
    const context = this.#context;
    const { host, port, admit } = decision;
    context
      .dial({
        host,
        port,
        timeoutMs: context.timeouts.connectMs,
        resolver: context.resolver,
        admit,
        signal: this.#abort.signal,
      })
      .then(
        ({ socket, address }) => {
          // The permit counts sockets and dials, not streams: one that was reset meanwhile has cost as much.
          socket.once("close", () => permit.release());
          this.#connected(socket, { host: address, port }, stream);
        },
        (error: unknown) => {
          permit.release();
          if (!(error instanceof DialError)) throw error;
          this.#failed(error, stream);
        },
      );
  }

  #connected(socket: Socket, dialled: { host: string; port: number }, stream: TunnelStream): void {
    if (this.#endedAt !== undefined) {
      socket.resetAndDestroy();
      return;
    }
    const parsed = parseIpAddress(dialled.host);
    this.#address = formatHostPort(dialled);
    this.#dialLocal = formatHostPort({ host: socket.localAddress ?? "", port: socket.localPort ?? 0 });
    this.#rule = parsed === undefined ? undefined : this.#decision?.ruleFor(parsed);
    this.#connectedAt = performance.now();
    // In one piece and before everything else, as the receiver may demand.
    if (this.#proxyHeader !== undefined) socket.write(this.#proxyHeader.encode(socket));
    stream.accept(this.#address);
    const { idleMs, halfCloseMs } = this.#context.timeouts;
    const splice = new Splice(socket, stream, {
      idleTimeoutMs: idleMs,
      halfCloseTimeoutMs: halfCloseMs,
      onEnd: (end) => this.#finish(endingOf(end, { side: "agent", connected: true })),
    });
    this.#splice = splice;
    if (this.#endedAt !== undefined) return;
    if (this.#earlyBytes > 0) splice.onData(this.#early.subarray(0, this.#earlyBytes));
    this.#early = Buffer.alloc(0);
    if (this.#earlyEnd) splice.onEnd();
    stream.handOver(splice);
    splice.start();
  }

  #failed(error: DialError, stream: TunnelStream): void {
    if (this.#endedAt !== undefined) return;
    const { code, ending } = dialFailures[error.reason];
    if (!this.isCheck) this.#events.onDialError(error.reason);
    if (error.address !== undefined) {
      this.#address = formatHostPort({ host: error.address, port: this.#decision?.port ?? 0 });
    }
    this.#rule = error.detail;
    stream.reset(code);
    if (error.reason === "forbidden") {
      this.#events.onForbidden();
      this.#endWith(() => this.#context.records.refused(this.#factsAtEnd, ending));
    } else {
      this.#finish(ending);
    }
  }

  #finish(ending: Ending): void {
    this.#endWith(() => {
      if (!this.#isMereCheck) this.#context.records.ended(this.#factsAtEnd, ending);
    });
  }

  /** A check that has stayed within its bounds: the edge tells what came of it, when that changes. */
  get #isMereCheck(): boolean {
    return (
      this.isCheck &&
      this.bytesIn <= MAX_CHECK_BYTES_IN &&
      this.bytesOut <= MAX_CHECK_BYTES_OUT &&
      performance.now() - this.#start <= MAX_CHECK_MS
    );
  }

  get #factsAtEnd(): ConnectionFacts {
    const { facts } = this;
    return {
      ...facts,
      endedAt: new Date(this.startedAt.getTime() + facts.totalMs).toISOString(),
      activeConnections: this.#events.active(this),
    };
  }

  #endWith(record: () => void): void {
    if (this.#endedAt !== undefined) return;
    this.#endedAt = performance.now();
    this.#early = Buffer.alloc(0);
    record();
    this.#events.onEnded(this);
  }

  // ── the stream, while the target is dialled; later the splice hears it ──

  onAccept(): void {
    // Only an edge hears of ACCEPT.
  }

  onData(bytes: Uint8Array): void {
    // A copy, because the view would keep the whole message in memory.
    const needed = this.#earlyBytes + bytes.length;
    if (needed > this.#early.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.#early.length));
      larger.set(this.#early.subarray(0, this.#earlyBytes));
      this.#early = larger;
    }
    this.#early.set(bytes, this.#earlyBytes);
    this.#earlyBytes = needed;
  }

  onEnd(): void {
    this.#earlyEnd = true;
  }

  onWritable(): void {
    // Nothing was written yet.
  }

  onReset(code: number, by: "peer" | "session"): void {
    this.#finish(endingOf({ type: "streamReset", code, by }, { side: "agent", connected: false }));
    this.#abort.abort();
  }

  onFinished(): void {
    // A stream finishes only after both directions have ended, and ours has not begun.
  }
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}
