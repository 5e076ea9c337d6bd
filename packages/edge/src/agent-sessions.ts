/**
 * The sessions of connected agents. A link that was authenticated says HELLO here and starts a session or joins one; a
 * session that lost its last link waits for the same agent process to return.
 */
import { randomBytes } from "node:crypto";
import {
  CloseCode,
  PROXY_HEADER_FEATURE,
  FEATURES,
  type Hello,
  type MemoryBudget,
  type OpenRefusal,
  type OpenRequest,
  Session,
  STRIPE_FEATURE,
} from "@sallyport/protocol";
import {
  awaitHello,
  Link,
  SessionDriver,
  type StreamHandler,
  sendWelcome,
  type TunnelPeer,
  type TunnelStream,
} from "@sallyport/tunnel";
import type { Logger } from "pino";

/** The way to an agent: where it arrives, and as whom. */
export interface Via {
  readonly tunnel: string;
  readonly client: string;
}

/** One agent process at this edge. */
export class AgentSession {
  readonly id: string;
  /** The tunnel on which its links arrive. */
  readonly tunnel: string;
  readonly client: string;
  readonly agent: string;
  /** Drawn by the agent process at its start. */
  readonly process: string;
  readonly driver: SessionDriver;
  /** What both ends can do beyond the version of the protocol. */
  readonly features: ReadonlySet<string>;
  readonly connectedAt = new Date();
  /** It has refused a stream because its agent stops; GO_AWAY says the same, and may be on its way. */
  leaving = false;
  /** Which token each link was authenticated with, for revocation. At most `MAX_LINKS`. */
  readonly tokenOfLink = new Map<Link, string>();

  constructor(options: { id: string; via: Via; hello: Hello; driver: SessionDriver }) {
    this.id = options.id;
    this.tunnel = options.via.tunnel;
    this.client = options.via.client;
    this.agent = options.hello.agent;
    this.process = options.hello.process;
    this.driver = options.driver;
    this.features = new Set(options.hello.features.filter((feature) => FEATURES.includes(feature)));
  }

  get streams(): number {
    return this.driver.session.streamCount;
  }

  get links(): number {
    return this.driver.session.linkCount;
  }

  /** Is there for new streams, though it may be full. */
  get available(): boolean {
    return this.links > 0 && !this.leaving && !this.driver.session.draining;
  }

  /** Has as many streams as its agent takes. */
  get full(): boolean {
    return this.driver.session.full;
  }
}

export interface AgentSessionsOptions {
  readonly edge: string;
  readonly log: Logger;
  readonly heartbeatIntervalMs: number;
  readonly heartbeatTimeoutMs: number;
  readonly resumeTimeoutMs: number;
  /** Shared by the streams of all sessions. */
  readonly memory: MemoryBudget;
  /** A stream may use several links at once, with agents that can take it. */
  readonly stripe: boolean;
  /** The most partner connections of this edge at the moment. */
  readonly maxConnections: () => number;
  /** Called when an agent came, went, or lost its last link. */
  readonly onChange: () => void;
  /** Called with the address of a peer that authenticated and then broke the protocol. */
  readonly onViolation: (remoteAddress: string) => void;
}

/** An authenticated link, and where it arrived. */
interface Arrival {
  readonly link: Link;
  readonly peer: TunnelPeer;
  readonly tunnel: string;
}

/** HELLO follows the upgrade at once; a peer that is silent now is cut. */
const HELLO_TIMEOUT_MS = 5_000;
/** 16 links of a session, and as many that are about to replace them. */
const MAX_LINKS = 32;
/** How long an agent has to show that it lives, when another process presents its name. */
const PROBE_TIMEOUT_MS = 3_000;
/** A session that ends with one of these was ended by us, because its peer broke the protocol. */
const violations: ReadonlySet<number> = new Set([CloseCode.protocol, CloseCode.tooLarge, CloseCode.budget]);
const MAX_SESSIONS_PER_CLIENT = 64;
/** More than agents have on their way at once, and few enough that one client cannot use up the edge's descriptors. */
const MAX_GREETING_LINKS_PER_CLIENT = 128;
/**
 * An agent may offer a million streams. What a session tolerates of frames that carry nothing follows from the number, so
 * it is no more than this or than the edge's own connections, whichever is larger.
 */
const MAX_STREAMS = 65_536;

export class AgentSessions {
  readonly #options: AgentSessionsOptions;
  /** By session id. Bounded by `MAX_SESSIONS_PER_CLIENT` for each declared client. */
  readonly #sessions = new Map<string, AgentSession>();
  /**
   * Links that have not said HELLO, or wait for an answer to it; at most `MAX_GREETING_LINKS_PER_CLIENT` of each, for the time of
   * the timeout.
   */
  readonly #greeting = new Map<Link, { client: string; tokenId: string }>();
  #draining = false;

  /** Counters for metrics; they only grow. */
  readonly counters = { sessions: 0, linksLost: 0, resumptions: 0, retransmittedBytes: 0, stalls: 0 };

  constructor(options: AgentSessionsOptions) {
    this.#options = options;
  }

  get all(): Iterable<AgentSession> {
    return this.#sessions.values();
  }

  /** Takes over a link that was authenticated at `tunnel`. */
  take(peer: TunnelPeer, tunnel: string): void {
    const link = new Link(peer, "edge");
    // At once and whatever it answers: who is to be kept out must not be back before.
    link.onBreach = () => this.#options.onViolation(peer.remoteAddress);
    if (this.#greetingLinks(peer.client) >= MAX_GREETING_LINKS_PER_CLIENT) {
      return link.close(CloseCode.policy, "too many links that have not greeted");
    }
    this.#greeting.set(link, { client: peer.client, tokenId: peer.tokenId });
    awaitHello(link, {
      timeoutMs: HELLO_TIMEOUT_MS,
      onGreeting: (hello) => {
        this.#greeting.delete(link);
        this.#hello({ link, peer, tunnel }, hello);
      },
      onFailed: (end) => {
        this.#greeting.delete(link);
        this.#options.log[end.breach ? "warn" : "info"](
          { client: peer.client, remote: peer.remoteAddress, code: end.code, reason: end.reason },
          "link closed before its greeting",
        );
      },
    });
  }

  /**
   * The session on this way with the fewest streams that has room for one, and that has `feature` where one is needed; a full
   * one only where all are full, undefined when no such agent is connected.
   */
  pick(via: Via, feature?: string): AgentSession | undefined {
    let best: AgentSession | undefined;
    for (const session of this.#sessions.values()) {
      if (session.client !== via.client || session.tunnel !== via.tunnel || !session.available) continue;
      if (feature !== undefined && !session.features.has(feature)) continue;
      if (best === undefined || isBetter(session, best)) best = session;
    }
    return best;
  }

  /** Whether an agent of this client is connected, by whatever tunnel. */
  isConnected(client: string): boolean {
    for (const session of this.#sessions.values()) if (session.client === client && session.available) return true;
    return false;
  }

  /** Opens a stream to an agent; `noFeature`: agents are connected, and none can do what the request asks for. */
  open(
    via: Via,
    request: OpenRequest,
    handler: (stream: TunnelStream, session: AgentSession) => StreamHandler,
  ): TunnelStream | OpenRefusal | "noFeature" {
    const session = this.pick(via, request.proxy === undefined ? undefined : PROXY_HEADER_FEATURE);
    if (session === undefined) return this.pick(via) === undefined ? "noLink" : "noFeature";
    return session.driver.open(request, (stream) => handler(stream, session));
  }

  /**
   * Cuts at once every link that `tokenId` of `client` authenticated (undefined: every token of the client). A session
   * without another link ends, since nobody may resume it.
   */
  revoke(client: string, tokenId?: string): void {
    const matches = (token: { client: string; tokenId: string }) =>
      token.client === client && (tokenId === undefined || token.tokenId === tokenId);
    for (const [link, token] of this.#greeting) if (matches(token)) link.destroy();
    for (const session of this.#sessions.values()) {
      if (session.client !== client) continue;
      const links = [...session.tokenOfLink];
      const revoked = links.filter(([, id]) => matches({ client, tokenId: id }));
      if (revoked.length === links.length) {
        session.driver.close(CloseCode.authentication, "token revoked");
        for (const [link] of links) link.destroy();
      } else {
        for (const [link] of revoked) link.destroy();
      }
    }
  }

  /** Tells every agent to expect no new streams, and begins no new session. Those that run may be resumed. */
  drain(): void {
    this.#draining = true;
    for (const session of this.#sessions.values()) session.driver.goAway(CloseCode.drain, "edge is shutting down");
  }

  /** Ends every session now. */
  close(): void {
    this.#draining = true;
    for (const link of this.#greeting.keys()) link.destroy();
    for (const session of this.#sessions.values()) {
      session.driver.close(CloseCode.drain, "edge is shutting down");
    }
  }

  #greetingLinks(client: string): number {
    let count = 0;
    for (const greeting of this.#greeting.values()) if (greeting.client === client) count += 1;
    return count;
  }

  #hello(arrival: Arrival, hello: Hello): void {
    const { link, peer, tunnel } = arrival;
    // While the edge drains, running streams still need links.
    if (hello.session !== "") return this.#join(arrival, hello);
    if (this.#draining) return link.close(CloseCode.drain, "edge is shutting down");
    const rivals: AgentSession[] = [];
    for (const other of this.#sessions.values()) {
      if (other.client !== peer.client) continue;
      // The process begins anew, or another process took the name of one that is gone.
      const isSameName = other.agent === hello.agent && other.tunnel === tunnel;
      if (other.process === hello.process || (isSameName && other.links === 0)) {
        other.driver.close(CloseCode.replaced, "replaced by a new session");
      } else if (isSameName) {
        rivals.push(other);
      }
    }
    if (rivals.length === 0) this.#found(arrival, hello);
    else void this.#probe(arrival, rivals).then((isFree) => isFree && this.#hello(arrival, hello));
  }

  /**
   * Another process has the name of agents that seem to live. One that answers keeps its name, and the newcomer is
   * refused; one that does not is replaced. Resolves with whether the newcomer may begin.
   */
  async #probe({ link, peer }: Arrival, rivals: readonly AgentSession[]): Promise<boolean> {
    // Nothing may come before WELCOME, and the link may close while it waits. It counts and is revoked as before its HELLO.
    this.#greeting.set(link, { client: peer.client, tokenId: peer.tokenId });
    link.onMessage = () => link.close(CloseCode.protocol, "message before welcome");
    link.onClosed = () => this.#greeting.delete(link);
    const alive = await Promise.all(rivals.map((rival) => rival.driver.probe(PROBE_TIMEOUT_MS)));
    this.#greeting.delete(link);
    if (link.dead) return false;
    const survivor = rivals.find((rival, at) => alive[at] && this.#sessions.has(rival.id));
    if (survivor !== undefined) {
      this.#options.log.warn(
        { ...this.#names(survivor), remote: link.remoteAddress },
        "another process presents the name of an agent that is connected",
      );
      link.close(CloseCode.replaced, "the agent's name is in use by a process that is alive");
      return false;
    }
    for (const rival of rivals) rival.driver.close(CloseCode.replaced, "replaced: it did not answer");
    // Whoever else took the name meanwhile is asked in turn.
    return true;
  }

  #found({ link, peer, tunnel }: Arrival, hello: Hello): void {
    let ofClient = 0;
    for (const { client } of this.#sessions.values()) if (client === peer.client) ofClient += 1;
    if (ofClient >= MAX_SESSIONS_PER_CLIENT) return link.close(CloseCode.policy, "too many agents of this client");
    const session = this.#start({ tunnel, client: peer.client }, hello);
    this.#attach(session, { link, peer, resumed: false });
    this.#options.log.info(this.#names(session, peer), "agent connected");
    this.#options.onChange();
  }

  #join({ link, peer, tunnel }: Arrival, hello: Hello): void {
    const session = this.#sessions.get(hello.session);
    const isTheirs = session?.client === peer.client && session.tunnel === tunnel && session.process === hello.process;
    // Unknown, of another client or tunnel and of another process look the same from outside.
    if (session === undefined || !isTheirs) {
      return link.close(CloseCode.sessionUnknown, "session unknown");
    }
    if (session.tokenOfLink.size >= MAX_LINKS) return link.close(CloseCode.policy, "too many links");
    const wasDetached = session.links === 0;
    this.#attach(session, { link, peer, resumed: true });
    if (wasDetached) {
      this.#options.log.info({ ...this.#names(session, peer), streams: session.streams }, "session resumed");
      this.#options.onChange();
    }
  }

  #attach(session: AgentSession, options: { link: Link; peer: TunnelPeer; resumed: boolean }): void {
    const { link, peer, resumed } = options;
    session.tokenOfLink.set(link, peer.tokenId);
    sendWelcome(link, {
      edge: this.#options.edge,
      session: session.id,
      resumed,
      features: FEATURES.slice(),
      resumeTimeoutMs: this.#options.resumeTimeoutMs,
    });
    session.driver.attach(link);
  }

  #start(via: Via, hello: Hello): AgentSession {
    const id = randomBytes(16).toString("hex");
    const core = new Session({
      role: "edge",
      maxStreams: Math.min(hello.maxStreams, Math.max(MAX_STREAMS, this.#options.maxConnections())),
      initialCredit: hello.initialCredit,
      heartbeatIntervalMs: this.#options.heartbeatIntervalMs,
      heartbeatTimeoutMs: this.#options.heartbeatTimeoutMs,
      resumeTimeoutMs: this.#options.resumeTimeoutMs,
      memory: this.#options.memory,
      stripe: this.#options.stripe && hello.features.includes(STRIPE_FEATURE),
    });
    const { log, onChange } = this.#options;
    const driver = new SessionDriver(core, {
      // The protocol refuses OPEN at an edge before it becomes an event.
      onOpen: () => undefined,
      onGoAway: (code, reason) => {
        log.info({ ...this.#names(session), code, reason }, "agent is draining");
        onChange();
      },
      onDetached: () => {
        log.warn({ ...this.#names(session), streams: session.streams }, "agent lost; session waits");
        onChange();
      },
      onLinkClosed: (link, end) => {
        session.tokenOfLink.delete(link);
        if (end.code !== CloseCode.renewed) this.counters.linksLost += 1;
        // An agent that says goodbye does not return: nobody waits for it.
        if (end.code === CloseCode.drain && session.links === 0) driver.close(CloseCode.drain, "agent has left");
        const { code, reason } = end;
        const facts = { ...this.#names(session), remote: link.remoteAddress, code, reason, links: session.links };
        // A session that ended for it has told of it already.
        const isNews = end.breach && !core.ended;
        log[isNews ? "warn" : "info"](facts, "link closed");
      },
      onEnded: (code, reason) => {
        this.#sessions.delete(session.id);
        const isViolation = violations.has(code);
        const remote = [...new Set([...session.tokenOfLink.keys()].map((link) => link.remoteAddress))];
        this.counters.resumptions += core.counters.resumptions;
        this.counters.retransmittedBytes += core.counters.retransmittedBytes;
        this.counters.stalls += core.counters.stalls;
        const facts = { ...this.#names(session), code, reason };
        if (isViolation) log.warn({ ...facts, remote }, "session ended");
        else log.info(facts, "session ended");
        onChange();
      },
    });
    const session = new AgentSession({ id, via, hello, driver });
    this.#sessions.set(id, session);
    this.counters.sessions += 1;
    return session;
  }

  #names(session: AgentSession, peer?: TunnelPeer): Record<string, unknown> {
    // The session id lets a link join, so only its head is shown.
    const names = {
      tunnel: session.tunnel,
      client: session.client,
      agent: session.agent,
      session: session.id.slice(0, 8),
    };
    return peer === undefined ? names : { ...names, remote: peer.remoteAddress, token: peer.tokenId };
  }
}

/** Whether a new stream goes to `session` rather than to `other`. */
function isBetter(session: AgentSession, other: AgentSession): boolean {
  return session.full === other.full ? session.streams < other.streams : other.full;
}
