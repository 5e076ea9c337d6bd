/**
 * The life of one partner connection, top to bottom: admission to the listener, its prelude, which tells who it is and where
 * it goes, the way to the target (through an agent or directly), the bytes, one record at its end.
 *
 * A refused source is closed at once: it causes no frame and no dial.
 */
import type { Socket } from "node:net";
import { formatIpAddress, type IpAddress, type ProxyEndpoint, parsePeerAddress } from "@sallyport/host";
import { ResetCode } from "@sallyport/protocol";
import { Ended, type Ending, endingOf, onConfirmedEnd, resetSocket, Splice } from "@sallyport/tunnel";
import type { ConnectionFacts } from "./access-record.ts";
import type { AdmissionRefusal, Admitted, Denial, OnDeny } from "./admission.ts";
import type { Connected } from "./attempt.ts";
import { nextConnectionId } from "./connection-id.ts";
import type { Deployment, DeploymentSettings } from "./deployment.ts";
import type { EarlyAccount } from "./early-bytes.ts";
import { awaitFirstByte } from "./first-byte.ts";
import type { Conduct } from "./gatekeeper.ts";
import type { Listener } from "./listener.ts";
import { type OutboundFacts, proxyHeaderBytes, proxyOfOpen } from "./outbound-proxy-header.ts";
import { pacedSocket } from "./paced-socket.ts";
import { endpointText, leftInPrelude, Prelude, type PreludeRefusal, preludeRefusals } from "./prelude.ts";
import { Relay } from "./relay.ts";
import type { Route } from "./route.ts";
import { Routing } from "./routing.ts";
import { DEFAULT_SOURCE_PREFIXES, sourceKey } from "./source-key.ts";

/** What a refusal on a listener is called in records and metrics. */
export type Refusal = AdmissionRefusal | PreludeRefusal;

const refusals: Record<Refusal, Ending> = {
  maxConnections: { code: "RA", reason: "connection limit of the edge" },
  listenerMaxConnections: { code: "RA", reason: "connection limit of the listener" },
  maxConnectionsPerSource: { code: "RA", reason: "connection limit of the source" },
  targetMaxConnections: { code: "RA", reason: "connection limit of the target" },
  connectionRatePerSource: { code: "RA", reason: "connection rate of the source" },
  listenerConnectionRate: { code: "RA", reason: "connection rate of the listener" },
  ipFilter: { code: "PA", reason: "blocked by IP filter" },
  ban: { code: "PA", reason: "banned" },
  firstByteTimeout: { code: "cA", reason: "no first byte in time" },
  badAddress: { code: "IA", reason: "peer address unknown" },
  ...preludeRefusals,
};

const leftEarly: Ending = { code: "CA", reason: "partner left without sending a byte" };
/** Of a connection that was admitted, when a ban or a reload forbids it later. */
const forbiddenNow: Record<"ban" | "ipFilter", Ending> = {
  ban: { code: "PD", reason: "banned" },
  ipFilter: { code: "PD", reason: "blocked by IP filter" },
};
const tooOld: Ending = Ended.maxDuration;

type Way =
  | { readonly type: "none" }
  /** The target is not connected yet. */
  | { readonly type: "routing"; readonly routing: Routing }
  | { readonly type: "relay"; readonly relay: Relay }
  | { readonly type: "splice"; readonly splice: Splice };

/** Idle time before the kernel asks whether the partner is still there. */
const KEEP_ALIVE_MS = 30_000;

export class PartnerConnection {
  readonly id: string;
  readonly listener: Listener;
  readonly startedAt = new Date();
  /** Where it goes, with the settings of the moment: a reload may change what the deployment does next. */
  #route: { readonly deployment: Deployment; readonly settings: DeploymentSettings } | undefined;
  #socket: Socket;
  readonly #start = performance.now();
  /** `address:port` of the peer, or of the client that a trusted proxy names. */
  #partner: string;
  /** The proxy, where one has named the client. */
  #peer: string | undefined;
  readonly #prelude: Prelude;
  /** A proxy in front only looks whether we live: there is no record of that. */
  #isCheck = false;
  /** The source that counts is known: of the peer, or of the client that a trusted proxy names. */
  #isIdentified = false;
  readonly #local: string;
  /** What `ipHash` goes by. */
  #source = "";
  #admitted: Admitted | undefined;
  #way: Way = { type: "none" };
  #routing: Routing | undefined;
  #dialLocal: string | undefined;
  #connectedAt: number | undefined;
  /** Records that were written in between. */
  #records = 0;
  /** Those of the guards: the longest duration, and the look at a slow one. */
  #guardTimers: NodeJS.Timeout[] = [];
  #cancelFirstByte: (() => void) | undefined;
  #forced: Ending | undefined;
  #rule: string | undefined;
  #ended = false;

  private constructor(socket: Socket, listener: Listener, partner: string) {
    this.id = nextConnectionId();
    this.listener = listener;
    this.#socket = socket;
    this.#partner = partner;
    this.#prelude = new Prelude(socket, listener, {
      onIdentified: (source) => this.#identify(source),
      onCheck: () => this.#answerCheck(),
      onRefused: (refusal, rule) => this.#refuseInPrelude(refusal, rule),
      onGone: () => this.#giveUp(leftInPrelude),
      onDeployment: (deployment) => this.#decided(deployment),
    });
    this.#local = `${bracket(plain(socket.localAddress))}:${socket.localPort ?? 0}`;
  }

  /** Serves a socket that `listener` accepted, or refuses it. */
  static serve(socket: Socket, listener: Listener): void {
    const address = parsePeerAddress(socket.remoteAddress ?? "");
    if (address === undefined && listener.settings.proxy !== undefined) {
      // Health checks of a proxy often end with a reset before they are accepted.
      listener.proxyChecks += 1;
      socket.resetAndDestroy();
      return;
    }
    const text = address === undefined ? "unknown" : bracket(formatIpAddress(address));
    const connection = new PartnerConnection(socket, listener, `${text}:${socket.remotePort ?? 0}`);
    if (address === undefined) return connection.#refuse("badAddress");
    connection.#admit(address);
  }

  get ageMs(): number {
    return performance.now() - this.#start;
  }

  /** Asked only where the deployment is known. */
  get deployment(): Deployment {
    return this.#routed.deployment;
  }

  get #settings(): DeploymentSettings {
    return this.#routed.settings;
  }

  get #routed(): { readonly deployment: Deployment; readonly settings: DeploymentSettings } {
    if (this.#route === undefined) throw new Error("a connection was used before it had a deployment");
    return this.#route;
  }

  get bytesIn(): number {
    const way = this.#way;
    if (way.type === "splice") return way.splice.bytesFromSocket;
    return way.type === "relay" ? way.relay.bytesFromPartner : (this.#routing?.bytesIn ?? 0);
  }

  get bytesOut(): number {
    const way = this.#way;
    if (way.type === "splice") return way.splice.bytesToSocket;
    return way.type === "relay" ? way.relay.bytesToPartner : 0;
  }

  get facts(): ConnectionFacts {
    const way = this.#way;
    const admitted = this.#admitted;
    const routing = this.#routing;
    let firstByteAt: number | undefined;
    if (way.type === "splice") firstByteAt = way.splice.firstByteToSocketAt;
    else if (way.type === "relay") firstByteAt = way.relay.firstByteToPartnerAt;
    const since = (at: number | undefined, from: number | undefined) =>
      at === undefined || from === undefined ? undefined : round(at - from);
    return {
      connection: this.id,
      startedAt: this.startedAt.toISOString(),
      partner: this.#partner,
      peer: this.#peer,
      ...this.#prelude.facts,
      local: this.#local,
      listener: this.listener.name,
      deployment: (this.#route?.deployment ?? this.listener.onlyDeployment)?.name,
      target:
        routing?.route?.target ?? only((this.#route ?? this.listener.onlyDeployment)?.settings.pool.targets)?.target,
      client: routing?.route?.client ?? only(this.#route?.settings.via?.clients),
      agent: routing?.agent,
      address: routing?.address,
      dialLocal: this.#dialLocal,
      proxyProtocol: this.#outbound?.version,
      bytesIn: this.bytesIn,
      bytesOut: this.bytesOut,
      attempts: routing?.attempts === 0 ? undefined : routing?.attempts,
      redispatched: routing?.redispatched === true ? true : undefined,
      queuePosition: routing?.queuePosition,
      queueMs: since(routing?.openedAt, this.#start),
      connectMs: since(this.#connectedAt, routing?.openedAt),
      firstByteMs: since(firstByteAt, this.#start),
      totalMs: round(performance.now() - this.#start),
      rule: this.#rule,
      dryRun:
        admitted === undefined || admitted.dryRun.length === 0
          ? undefined
          : admitted.dryRun.map(({ reason }) => reason),
    };
  }

  /** What a record in between says; the one at the end counts on. */
  get interimFacts(): ConnectionFacts {
    this.#records += 1;
    return { ...this.facts, sequence: this.#records };
  }

  /** The route that it is on, or tries; undefined while it waits, whatever it has tried before. */
  get targetRoute(): Route | undefined {
    return this.#routing?.waits === true ? undefined : this.#routing?.route;
  }

  /** Resets both sides; the record says `killed by operator`, `shutdown` or `target marked down`. */
  abort(code: typeof ResetCode.killed | typeof ResetCode.shutdown | typeof ResetCode.targetDown): void {
    if (this.#ended) return;
    const way = this.#way;
    switch (way.type) {
      case "splice":
        way.splice.abort(code);
        return;
      case "relay":
        way.relay.abort(code);
        return;
      case "routing":
      case "none":
        this.#prelude.cancel();
        if (way.type === "routing") way.routing.cancel(code);
        this.#giveUp(endingOf({ type: "aborted", code }, { side: "edge", connected: false }));
        return;
    }
  }

  /**
   * What a ban or an IP filter says against it now; it was admitted before. Undefined for one that is over.
   */
  recheck(): Denial | undefined {
    const { admission, now } = this.listener.context.gatekeeper;
    const admitted = this.#admitted;
    return admitted === undefined || this.#ended ? undefined : admission.recheck(admitted, admitted.address, now);
  }

  /** Resets both sides because a rule forbids it by now. */
  deny({ reason, rule }: Denial): void {
    this.#rule = rule;
    this.#forced = forbiddenNow[reason === "ban" ? "ban" : "ipFilter"];
    this.abort(ResetCode.killed);
  }

  #admit(address: IpAddress): void {
    const { listener } = this;
    const admitted = listener.context.gatekeeper.admit(address, listener.door);
    if (admitted.type === "denial") return this.#refuse(admitted.reason, admitted);
    this.#admitted = admitted;
    this.#source = sourceKey(address, DEFAULT_SOURCE_PREFIXES);
    this.listener.undecided.add(this);
    this.#prelude.start();
  }

  /**
   * It is known who it is: the peer, or the client that a trusted proxy names, who is asked what concerns a source. Then the
   * guards begin, and behind them the choice of the deployment.
   */
  #identify(source: ProxyEndpoint | undefined): void {
    const { listener } = this;
    const admitted = this.#admitted;
    if (admitted === undefined) return;
    if (listener.settings.proxy !== undefined) {
      if (source !== undefined) {
        this.#peer = this.#partner;
        this.#partner = endpointText(source);
        this.#source = sourceKey(source.address, DEFAULT_SOURCE_PREFIXES);
      }
      const answer = listener.context.gatekeeper.admitClient(admitted, source?.address ?? admitted.address);
      if (answer.type === "denial") return this.#refuse(answer.reason, answer);
    }
    this.#isIdentified = true;
    this.#guard(admitted);
    const { firstByteTimeoutMs } = listener.settings;
    if (firstByteTimeoutMs === 0 || admitted.trusted) this.#prelude.choose();
    else this.#awaitFirstByte(admitted, firstByteTimeoutMs);
  }

  /** It is refused for its first bytes. Only how that is done is a matter of policy: without them nobody knows what it is. */
  #refuseInPrelude(refusal: PreludeRefusal, rule: string | undefined): void {
    const { gatekeeper } = this.listener.context;
    const admitted = this.#admitted;
    if (admitted === undefined || this.#isIdentified) return this.#refuse(refusal, { rule });
    // A proxy that is trusted is not suspected, whatever it sends.
    if (refusal === "untrustedProxy") gatekeeper.note("badProxyHeader", admitted);
    const { onDeny } = admitted.door.settings.policy.proxyHeader;
    this.#refuse(refusal, { rule, onDeny });
  }

  /** Nothing has been made for it, and nothing is. */
  #refuse(refusal: Refusal, options: { rule?: string | undefined; onDeny?: OnDeny } = {}): void {
    const { refused, context, undecided } = this.listener;
    const { rule, onDeny = "reset" } = options;
    this.#clearGuards();
    this.#admitted?.release();
    undecided.delete(this);
    refused[refusal] = (refused[refusal] ?? 0) + 1;
    context.records.refused({ ...this.#factsAtEnd, rule, denied: refusal }, refusals[refusal]);
    this.#ended = true;
    switch (onDeny) {
      case "reset":
        this.#socket.resetAndDestroy();
        return;
      case "close":
        // The FIN goes out before the socket is closed. What the partner has sent meanwhile is never read.
        this.#socket.end(() => this.#socket.destroy());
        return;
      case "tarpit":
        context.gatekeeper.tarpit.hold(this.#socket);
        return;
    }
  }

  // ── guards ──

  #guard(admitted: Admitted): void {
    const { settings, context } = this.listener;
    const { maxDurationMs } = settings;
    const { slow } = context.gatekeeper.detectors.settings;
    if (admitted.trusted) return;
    if (maxDurationMs > 0) {
      this.#guardTimers.push(
        setTimeout(() => {
          this.#forced = tooOld;
          this.abort(ResetCode.killed);
        }, maxDurationMs),
      );
    }
    if (slow !== undefined) {
      const timer = setTimeout(() => {
        // While it waits, or its target is being connected, it is we who do not read: it is looked at again.
        if (this.#way.type === "routing") timer.refresh();
        else if (this.bytesIn < slow.minBytes) context.gatekeeper.note("slowBytes", admitted);
      }, slow.afterMs);
      this.#guardTimers.push(timer);
    }
  }

  #awaitFirstByte(admitted: Admitted, timeoutMs: number): void {
    const { context } = this.listener;
    this.#cancelFirstByte = awaitFirstByte(this.#socket, {
      timeoutMs,
      onOutcome: (outcome) => {
        if (this.#ended) return;
        this.#cancelFirstByte = undefined;
        switch (outcome) {
          case "arrived":
            this.#prelude.choose();
            return;
          case "closed":
            this.#finish(leftEarly);
            this.#socket.destroy();
            return;
          case "timeout": {
            context.gatekeeper.note("noFirstByte", admitted);
            const denial = context.gatekeeper.admission.refuseLater(admitted, "firstByteTimeout");
            if (denial === undefined) this.#prelude.choose();
            else this.#refuse(denial.reason, denial);
            return;
          }
        }
      },
    });
  }

  #clearGuards(): void {
    this.#cancelFirstByte?.();
    for (const timer of this.#guardTimers) clearTimeout(timer);
  }

  /**
   * A proxy in front asks whether we live. It is answered by the connection that stands, and closes when the proxy does, or
   * when it has had the time that a header may take. It causes no stream, no record and no suspicion.
   */
  #answerCheck(): void {
    const socket = this.#socket;
    const { listener } = this;
    this.#isCheck = true;
    listener.proxyChecks += 1;
    if (socket.destroyed) return this.#finish(Ended.normal);
    const timer = setTimeout(() => resetSocket(socket), listener.settings.proxy?.headerTimeoutMs ?? 0);
    onConfirmedEnd(socket, () => socket.end());
    socket.on("close", () => {
      clearTimeout(timer);
      this.#finish(Ended.normal);
    });
    socket.resume();
  }

  // ── where it goes ──

  #decided(deployment: Deployment): void {
    const { gatekeeper } = this.listener.context;
    if (deployment.count.isFull && this.#admitted?.trusted === false) {
      const denial = gatekeeper.admission.refuseLater(this.#admitted, "targetMaxConnections");
      if (denial !== undefined) return this.#refuse(denial.reason, denial);
    }
    // From here on bytes flow; what was read before is in front of the socket. Those that are refused are spared its options.
    this.#socket.setNoDelay(true);
    this.#socket.setKeepAlive(true, KEEP_ALIVE_MS);
    const pace = this.listener.pace();
    if (pace !== undefined) this.#socket = pacedSocket(this.#socket, pace);
    this.#routeTo(deployment);
  }

  // ── where it goes ──

  #routeTo(deployment: Deployment): void {
    const { settings } = deployment;
    this.listener.undecided.delete(this);
    this.#route = { deployment, settings };
    deployment.connections.add(this);
    deployment.count.take();
    deployment.counters.accepted += 1;
    const routing = new Routing({
      connection: this.id,
      deployment,
      settings,
      socket: this.#socket,
      partner: this.#partner,
      proxy: this.#outbound === undefined ? undefined : proxyOfOpen(this.#outbound),
      source: this.#source,
      onConnected: (connected, early) => this.#join(connected, early),
      onFailed: (ending) => this.#giveUp(ending),
    });
    this.#routing = routing;
    this.#way = { type: "routing", routing };
    routing.start();
  }

  /** What the target is to hear of the partner; undefined: nothing but its bytes. */
  get #outbound(): OutboundFacts | undefined {
    const version = this.#route?.settings.proxyProtocol ?? "off";
    if (version === "off") return undefined;
    const { sni, alpn } = this.#prelude.facts;
    return { version, connection: this.id, partner: this.#partner, local: this.#local, sni, alpn };
  }

  /** Joins partner and target, through the tunnel or directly. */
  #join(connected: Connected, early: EarlyAccount | undefined): void {
    const { idleMs: idleTimeoutMs, halfCloseMs: halfCloseTimeoutMs } = this.#settings.timeouts;
    this.#connectedAt = performance.now();
    switch (connected.type) {
      case "tunnel": {
        const splice = new Splice(this.#socket, connected.stream, {
          idleTimeoutMs,
          halfCloseTimeoutMs,
          ...(early === undefined ? {} : { before: early }),
          onEnd: (end) => this.#finish(endingOf(end, { side: "edge", connected: true })),
        });
        this.#way = { type: "splice", splice };
        connected.stream.handOver(splice);
        splice.start();
        return;
      }
      case "direct": {
        const { socket: target } = connected;
        this.#dialLocal = `${bracket(plain(target.localAddress))}:${target.localPort ?? 0}`;
        // In one piece and before everything else, as the receiver may demand.
        if (this.#outbound !== undefined) target.write(proxyHeaderBytes(this.#outbound));
        const relay = new Relay({
          partner: this.#socket,
          target,
          idleTimeoutMs,
          halfCloseTimeoutMs,
          onEnd: (ending) => this.#finish(ending),
        });
        this.#way = { type: "relay", relay };
        return;
      }
    }
  }

  /** Ends a connection that was never connected. */
  #giveUp(ending: Ending): void {
    this.#finish(ending);
    this.#socket.resetAndDestroy();
  }

  /** Before it is taken out of the counts. */
  get #factsAtEnd(): ConnectionFacts {
    const { facts, listener } = this;
    return {
      ...facts,
      endedAt: new Date(this.startedAt.getTime() + facts.totalMs).toISOString(),
      sequence: this.#records === 0 ? undefined : this.#records + 1,
      activeConnections: {
        edge: listener.context.gatekeeper.admission.active,
        listener: listener.door.active,
        deployment: (this.#route?.deployment ?? listener.onlyDeployment)?.connections.size,
        target: this.targetRoute?.active,
      },
    };
  }

  #finish(ending: Ending): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#clearGuards();
    const facts = this.#factsAtEnd;
    const told = this.#forced ?? ending;
    this.listener.undecided.delete(this);
    this.#route?.deployment.ended(this, facts);
    this.#routing?.release();
    if (!this.#isCheck) this.listener.context.records.ended(facts, told);
    if (this.#admitted !== undefined) {
      this.listener.context.gatekeeper.leave(this.#admitted, {
        bytesIn: facts.bytesIn,
        ageMs: facts.totalMs,
        // What a proxy does is held against nobody: it is trusted, and its clients are not known yet.
        by: this.#isIdentified ? conductOf(told) : "other",
      });
    }
  }
}

/** What is held against a partner: that it went, not what we, the target or an operator did. */
function conductOf({ code }: Ending): Conduct["by"] {
  if (code === "CC" || code === "CD") return "partnerReset";
  return code === "--" || code === "CA" || code === "CR" ? "finished" : "other";
}

/** The one entry of a list of one. */
function only<T>(list: readonly T[] | undefined): T | undefined {
  return list?.length === 1 ? list[0] : undefined;
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

function bracket(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}

/** An IPv4 address that a dual-stack listener reports as mapped, in its own form. */
function plain(address: string | undefined): string {
  const parsed = parsePeerAddress(address ?? "");
  return parsed === undefined ? "" : formatIpAddress(parsed);
}
