/**
 * The agent's side of one edge: keeps its links up for ever, and the session that they carry.
 *
 * ```
 *   slot 1  dial ─► HELLO "" ─► WELCOME: the session begins ─► carries ─► lost ─► backoff ─► dial ─► HELLO id ─► …
 *   slot 2  waits ······························· dial ─► HELLO id ─► joins ─► carries ─► …
 * ```
 *
 * While there is no session, one slot founds it and the others wait. While there is one, a lost link is dialled again and
 * joins it, so streams outlive links. When the edge says that the session is over, its streams are reset and a new session
 * is founded.
 */
import { Failure, formatHostPort } from "@sallyport/host";
import {
  CloseCode,
  closeReason,
  type Hello,
  type LinkFigures,
  type Open,
  ProtocolError,
  Session,
  type SessionOptions,
  STRIPE_FEATURE,
  type Welcome,
} from "@sallyport/protocol";
import {
  greet,
  Link,
  type LinkEnd,
  type LinkTransport,
  SessionDriver,
  type StreamHandler,
  TunnelConnectError,
  type TunnelStream,
} from "@sallyport/tunnel";
import type { Logger } from "pino";
import { Backoff, type BackoffOptions } from "./backoff.ts";
import { RepeatedFailure } from "./repeated-failure.ts";

export interface EdgeSessionOptions {
  /** Where the edge is; names it in logs and metrics, since its own name is known only once it has been greeted. */
  readonly address: { readonly host: string; readonly port: number };
  /**
   * Makes an authenticated connection; called again for each link.
   *
   * @throws TunnelConnectError, or Failure when the agent's own files are at fault
   */
  readonly connect: (signal: AbortSignal) => Promise<LinkTransport>;
  /** What HELLO says of this agent. */
  readonly hello: Omit<Hello, "session">;
  readonly heartbeat: { readonly intervalMs: number; readonly timeoutMs: number };
  readonly backoff?: BackoffOptions;
  /** A link is replaced after this long, in milliseconds; 0 or left out: never. */
  readonly renewLinksMs?: number;
  /** Shared with the sessions of other edges; left out: the session has its own. */
  readonly memory?: SessionOptions["memory"];
  /** A stream may use several links at once, with edges that can take it. Default false. */
  readonly stripe?: boolean;
  /** An OPEN of this edge, whose name comes first. */
  readonly onOpen: (edge: string, open: Open, stream: TunnelStream) => StreamHandler | undefined;
  readonly log: Logger;
}

interface Current {
  readonly id: string;
  readonly edge: string;
  readonly driver: SessionDriver;
  readonly since: Date;
}

/** How one attempt of a slot ended. */
interface Outcome {
  /** How long the link carried the session, in milliseconds; 0: it never did. */
  readonly livedMs: number;
  /** The next attempt waits for this long at least; undefined: it comes at once. */
  readonly floorMs: number | undefined;
}

/** WELCOME follows HELLO at once. */
const WELCOME_TIMEOUT_MS = 5_000;
/** Credentials do not become right by trying again, and an edge holds failed attempts against their source. */
const AUTHENTICATION_FLOOR_MS = 5_000;
/** Somebody has to update one of the two. */
const VERSION_FLOOR_MS = 30_000;
/** The edge refused something that it may grant later. */
const REFUSED_FLOOR_MS = 1_000;
/** For the close frames of a shutdown; then links are cut. */
const CLOSE_GRACE_MS = 500;

/** The edge's session has ended when it closes a link with one of these; other codes concern the link alone. */
const endsSession: ReadonlySet<number> = new Set([
  CloseCode.drain,
  CloseCode.protocol,
  CloseCode.authentication,
  CloseCode.sessionUnknown,
  CloseCode.replaced,
  CloseCode.tooLarge,
  CloseCode.version,
  CloseCode.budget,
]);

export class EdgeSession {
  /** `host:port`. */
  readonly address: string;
  /** Totals for metrics; they only grow. */
  readonly connectFailures = new Map<string, number>();
  sessionsStarted = 0;
  linksLost = 0;
  /** What the sessions that have ended counted. */
  readonly #endedCounters = { stalls: 0, resumptions: 0, retransmittedBytes: 0 };

  /** One for each slot. */
  readonly #backoffs: Backoff[] = [];
  readonly #options: EdgeSessionOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #failure = new RepeatedFailure();
  /** At most two for each slot, while one replaces another. */
  readonly #links = new Set<Link>();
  /** Hear when their link has closed; at most two for each slot, while one link replaces another. */
  readonly #onLinkClosed = new Map<Link, (end: LinkEnd) => void>();
  /** Links whose time is over, by slot; each goes on until its successor carries the session. */
  readonly #outgoing = new Map<number, Link>();
  /** Slots that wait for a session; at most one entry for each. */
  #waiting: (() => void)[] = [];
  #slots: Promise<void>[] = [];
  #current: Current | undefined;
  /** The slot that founds the session, while there is none. */
  #founder: number | undefined;
  #draining = false;
  #lastFailure: string | undefined;

  constructor(options: EdgeSessionOptions) {
    this.#options = options;
    this.address = formatHostPort(options.address);
    this.#log = options.log.child({ address: this.address });
  }

  /** Begins to dial; `close` ends it. */
  start(): void {
    for (let slot = 0; slot < this.#options.hello.links; slot += 1) this.#slots.push(this.#runSlot(slot));
  }

  /** There is a session, and a link that carries it. */
  get connected(): boolean {
    return this.links > 0;
  }

  /** Links that carry the session. */
  get links(): number {
    return this.#current?.driver.session.linkCount ?? 0;
  }

  get streams(): number {
    return this.#current?.driver.session.streamCount ?? 0;
  }

  /** A session exists, with links or waiting for one. */
  get hasSession(): boolean {
    return this.#current !== undefined;
  }

  /** Name of the edge, once it was greeted. */
  get edge(): string | undefined {
    return this.#current?.edge;
  }

  get connectedSince(): Date | undefined {
    return this.#current?.since;
  }

  /** Bytes of all streams in memory. */
  get heldBytes(): number {
    return this.#current?.driver.session.heldBytes ?? 0;
  }

  /** Bytes that the edge may make the agent hold. */
  get windowBytes(): number {
    return this.#current?.driver.session.windowBytes ?? 0;
  }

  /** Bytes that the edge has not acknowledged. */
  get queueBytes(): number {
    return this.#current?.driver.session.queueBytes ?? 0;
  }

  /** Streams with bytes for the edge and no credit, now. */
  get stalledStreams(): number {
    return this.#current?.driver.session.stalledStreams ?? 0;
  }

  /** How often a stream had bytes for the edge and no credit; a total for metrics. */
  get stalls(): number {
    return this.#endedCounters.stalls + (this.#current?.driver.session.counters.stalls ?? 0);
  }

  /** How often all links were lost and the session went on; a total for metrics. */
  get resumptions(): number {
    return this.#endedCounters.resumptions + (this.#current?.driver.session.counters.resumptions ?? 0);
  }

  /** Bytes sent again after a link was lost; a total for metrics. */
  get retransmittedBytes(): number {
    return this.#endedCounters.retransmittedBytes + (this.#current?.driver.session.counters.retransmittedBytes ?? 0);
  }

  /** The links of the session now, for metrics. */
  get linkFigures(): LinkFigures[] {
    return this.#current?.driver.session.linkFigures ?? [];
  }

  /** Why the last attempt failed; undefined while connected. */
  get lastFailure(): string | undefined {
    return this.connected ? undefined : this.#lastFailure;
  }

  /** Smoothed round trip of the fastest link in milliseconds, once measured. */
  get roundTripMs(): number | undefined {
    const driver = this.#current?.driver;
    if (driver === undefined) return undefined;
    let best: number | undefined;
    for (const link of driver.links) {
      const trip = driver.session.roundTripMs(link.id);
      if (trip !== undefined && (best === undefined || trip < best)) best = trip;
    }
    return best;
  }

  /** Takes no new streams; running ones go on, and their links are still dialled again. */
  drain(): void {
    this.#draining = true;
    this.#current?.driver.goAway(CloseCode.drain, "agent is shutting down");
  }

  /** Ends session and links. Resolves when no link is left, half a second later at the most. */
  async close(): Promise<void> {
    this.#draining = true;
    this.#stop.abort();
    this.#current?.driver.close(CloseCode.drain, "agent is shutting down");
    for (const link of this.#links) link.close(CloseCode.drain, "agent is shutting down");
    this.#wakeSlots();
    const cut = setTimeout(() => {
      for (const link of this.#links) link.destroy();
    }, CLOSE_GRACE_MS);
    await Promise.all(this.#slots);
    clearTimeout(cut);
  }

  // ── slots ──

  async #runSlot(slot: number): Promise<void> {
    const backoff = new Backoff(this.#options.backoff);
    this.#backoffs.push(backoff);
    const { signal } = this.#stop;
    while (!signal.aborted) {
      if (!this.#mayDial(slot)) {
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
        continue;
      }
      const { livedMs, floorMs } = await this.#attempt(slot);
      backoff.ended(livedMs);
      if (floorMs === undefined) continue;
      await this.#pause(backoff.next({ floorMs, sessionWaits: this.hasSession && this.links === 0 }));
    }
  }

  /** Ends early when the session is closed. */
  async #pause(delayMs: number): Promise<void> {
    const { signal } = this.#stop;
    if (signal.aborted) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, delayMs);
      signal.addEventListener("abort", done);
    });
  }

  /** Without a session only the founder dials, which is whoever asks first. */
  #mayDial(slot: number): boolean {
    if (this.#current !== undefined) return true;
    if (this.#draining || (this.#founder !== undefined && this.#founder !== slot)) return false;
    this.#founder = slot;
    return true;
  }

  #wakeSlots(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async #attempt(slot: number): Promise<Outcome> {
    let transport: LinkTransport;
    try {
      transport = await this.#options.connect(this.#stop.signal);
    } catch (error) {
      return this.#connectFailed(error);
    }
    const link = new Link(transport, "agent");
    this.#links.add(link);
    const end = new Promise<Outcome>((resolve) => {
      if (this.#stop.signal.aborted || !this.#mayDial(slot)) {
        // The session that it was to join has ended meanwhile.
        link.onClosed = () => {
          this.#links.delete(link);
          resolve({ livedMs: 0, floorMs: 0 });
        };
        link.destroy();
        return;
      }
      this.#greet(slot, link, resolve);
    });
    return end;
  }

  #connectFailed(error: unknown): Outcome {
    if (this.#stop.signal.aborted) return { livedMs: 0, floorMs: 0 };
    if (error instanceof Failure) {
      this.#noteFailure("credentials", error.message);
      return { livedMs: 0, floorMs: AUTHENTICATION_FLOOR_MS };
    }
    if (!(error instanceof TunnelConnectError)) throw error;
    this.#noteFailure(error.reason, describe(error));
    return { livedMs: 0, floorMs: floorOf(error.reason) };
  }

  // ── greeting ──

  #greet(slot: number, link: Link, resolve: (outcome: Outcome) => void): void {
    const joined = this.#current;
    greet(
      link,
      { ...this.#options.hello, session: joined?.id ?? "" },
      {
        timeoutMs: WELCOME_TIMEOUT_MS,
        onGreeting: (welcome) => this.#welcomed({ slot, link, joined, welcome, resolve }),
        onFailed: (end) => {
          this.#links.delete(link);
          resolve(this.#greetingFailed(end, joined));
        },
      },
    );
  }

  #welcomed(options: {
    slot: number;
    link: Link;
    joined: Current | undefined;
    welcome: Welcome;
    resolve: (outcome: Outcome) => void;
  }): void {
    const { slot, link, joined, welcome, resolve } = options;
    if (joined !== this.#current || this.#stop.signal.aborted) {
      // It ended while the edge answered; the slot starts over.
      link.close(CloseCode.drain, "session has ended");
      return;
    }
    if (joined !== undefined && welcome.session !== joined.id) throw new ProtocolError("welcome to another session");
    if (welcome.resumed !== (joined !== undefined)) {
      throw new ProtocolError(welcome.resumed ? "welcome to a session of before" : "welcome to a session that begins");
    }
    const current = joined ?? this.#begin(welcome);
    const resumed = joined !== undefined && joined.driver.session.linkCount === 0;
    const attachedAt = performance.now();
    const renewal = this.#renewLater(() => {
      this.#outgoing.set(slot, link);
      resolve({ livedMs: performance.now() - attachedAt, floorMs: undefined });
    });
    this.#onLinkClosed.set(link, (end) => {
      clearTimeout(renewal);
      resolve({ livedMs: performance.now() - attachedAt, floorMs: floorOf(closeReason(end.code ?? 0)) });
    });
    this.#failure.clear();
    current.driver.attach(link);
    const predecessor = this.#outgoing.get(slot);
    this.#outgoing.delete(slot);
    // Its streams are on other links before it closes.
    if (predecessor !== undefined) current.driver.retire(predecessor);
    const facts = { edge: current.edge, session: head(current.id), links: this.links };
    if (joined === undefined) this.#log.info(facts, "connected");
    else if (resumed) this.#log.info({ ...facts, streams: this.streams }, "session resumed");
    else this.#log.debug(facts, "link joined");
    this.#wakeSlots();
  }

  /** Links that are made together are not renewed together. */
  #renewLater(renew: () => void): NodeJS.Timeout | undefined {
    const { renewLinksMs = 0 } = this.#options;
    return renewLinksMs === 0 ? undefined : setTimeout(renew, renewLinksMs * (0.9 + Math.random() * 0.1));
  }

  #greetingFailed(end: LinkEnd, joined: Current | undefined): Outcome {
    // The session that the link was to join has ended meanwhile; that has been told.
    if (this.#stop.signal.aborted || joined !== this.#current) return { livedMs: 0, floorMs: 0 };
    if (end.code === CloseCode.sessionUnknown && joined !== undefined) {
      // While other links carry the session, it is this link that is not wanted; one is enough to serve.
      if (this.links > 0) return { livedMs: 0, floorMs: AUTHENTICATION_FLOOR_MS };
      joined.driver.close(CloseCode.sessionUnknown, "the edge does not know the session any more");
      return { livedMs: 0, floorMs: undefined };
    }
    const reason = closeReason(end.code ?? 0);
    this.#noteFailure(reason ?? "closed", end.reason);
    return { livedMs: 0, floorMs: floorOf(reason) };
  }

  // ── the session ──

  #begin(welcome: Welcome): Current {
    const { hello, heartbeat, memory, onOpen, stripe = false } = this.#options;
    const session = new Session({
      role: "agent",
      maxStreams: hello.maxStreams,
      initialCredit: hello.initialCredit,
      heartbeatIntervalMs: heartbeat.intervalMs,
      heartbeatTimeoutMs: heartbeat.timeoutMs,
      resumeTimeoutMs: welcome.resumeTimeoutMs,
      ...(memory === undefined ? {} : { memory }),
      stripe: stripe && welcome.features.includes(STRIPE_FEATURE),
    });
    const driver = new SessionDriver(session, {
      onOpen: (open, stream) => onOpen(welcome.edge, open, stream),
      onGoAway: (code, reason) => {
        this.#log.info({ edge: welcome.edge, code, reason }, "edge is draining");
      },
      // Told by the line of the link that was the last.
      onDetached: () => undefined,
      onLinkClosed: (link, end) => this.#linkClosed(current, link, end),
      onEnded: (code, reason) => this.#ended(current, code, reason),
    });
    const current: Current = { id: welcome.session, edge: welcome.edge, driver, since: new Date() };
    this.#current = current;
    this.#founder = undefined;
    this.sessionsStarted += 1;
    if (this.#draining) driver.goAway(CloseCode.drain, "agent is shutting down");
    return current;
  }

  #linkClosed(current: Current, link: Link, end: LinkEnd): void {
    this.#links.delete(link);
    for (const [slot, outgoing] of this.#outgoing) if (outgoing === link) this.#outgoing.delete(slot);
    const isRenewed = end.code === CloseCode.renewed;
    if (!isRenewed) this.linksLost += 1;
    if (current === this.#current && !isRenewed) {
      if (endsSession.has(end.code ?? 0)) {
        current.driver.close(closeCodeOf(end.code), end.reason);
      } else {
        const facts = { edge: current.edge, code: end.code, reason: end.reason, links: this.links };
        if (this.links > 0) this.#log.info(facts, "link lost");
        else this.#log.warn({ ...facts, streams: this.streams }, "last link lost; session waits");
      }
    }
    this.#onLinkClosed.get(link)?.(end);
    this.#onLinkClosed.delete(link);
  }

  #ended(current: Current, code: CloseCode, reason: string): void {
    if (current !== this.#current) return;
    this.#current = undefined;
    const { stalls, resumptions, retransmittedBytes } = current.driver.session.counters;
    // An edge that restarts is mostly back soon after the session was given up; waits that grew meanwhile would outlast it.
    if (code === CloseCode.timeout) for (const backoff of this.#backoffs) backoff.beginAnew();
    this.#endedCounters.stalls += stalls;
    this.#endedCounters.resumptions += resumptions;
    this.#endedCounters.retransmittedBytes += retransmittedBytes;
    const facts = { edge: current.edge, session: head(current.id), code, reason };
    if (this.#stop.signal.aborted) this.#log.info(facts, "session closed");
    else this.#log.warn(facts, "session ended");
    this.#lastFailure = reason;
    this.#wakeSlots();
  }

  #noteFailure(reason: string, text: string): void {
    this.connectFailures.set(reason, (this.connectFailures.get(reason) ?? 0) + 1);
    this.#lastFailure = text;
    const attempts = this.#failure.note(`${reason} ${text}`, performance.now());
    if (attempts !== undefined) this.#log.warn({ reason, detail: text, attempts }, "not connected");
  }
}

function floorOf(reason: string | undefined): number {
  switch (reason) {
    case "authentication":
    case "proof":
    case "pin":
    case "policy":
      return AUTHENTICATION_FLOOR_MS;
    case "version":
      return VERSION_FLOOR_MS;
    case "replaced":
    case "sessionUnknown":
    case "protocol":
    case "budget":
    case "tooLarge":
      return REFUSED_FLOOR_MS;
    default:
      return 0;
  }
}

/** In words, with what to do where something can be done. */
function describe(error: TunnelConnectError): string {
  const { reason, detail } = error;
  const because = detail === "" ? "" : ` (${detail})`;
  switch (reason) {
    case "unreachable":
      return `edge not reachable${because}`;
    case "refused":
      return `edge refused the connection${because}`;
    case "timeout":
      return `edge did not answer in time${because}`;
    case "proxy":
      if (detail === "status 407") return "proxy refused the credentials (407); check proxy.credentialsFile";
      if (detail.startsWith("status")) return `proxy does not let us through (${detail})`;
      return `proxy not reachable${because}`;
    case "tls":
      return `TLS failed${because}`;
    case "pin":
      return "the edge's certificate is not the paired one; pair again if it was changed on purpose";
    case "authentication":
      return "the edge does not accept the client or its token; pair again if it was revoked";
    case "proof":
      return "the edge could not prove that it knows the token; it is not the paired one";
    case "version":
      return "no protocol version in common; update the older side";
    case "protocol":
      return `the other side does not speak this protocol${because}`;
    case "cancelled":
      return "cancelled";
  }
}

function closeCodeOf(code: number | undefined): CloseCode {
  return endsSession.has(code ?? 0) ? (code as CloseCode) : CloseCode.timeout;
}

/** The id lets a link join the session, so only its head is shown. */
function head(session: string): string {
  return session.slice(0, 8);
}
