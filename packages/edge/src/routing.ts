/**
 * The way of one partner connection from admission until its target is connected: a route is chosen and tried, and when it
 * cannot be connected for a reason that says nothing of the partner, another one. It waits where there is nothing to choose
 * yet: for an agent, or for a target that has room.
 *
 * An agent that stops, or is lost, says nothing of the route: another agent of its client is asked, or waited for, as if the
 * connection had come now.
 *
 * A try ends before the first byte of a target has been passed on, so the partner notices nothing but time. What it has sent
 * meanwhile is in `EarlyBytes`.
 */
import type { Socket } from "node:net";
import { type OpenProxy, ResetCode } from "@sallyport/protocol";
import { Ended, type Ending } from "@sallyport/tunnel";
import type { Attempt, AttemptEvents, AttemptFailure, Connected } from "./attempt.ts";
import type { Deployment, DeploymentSettings } from "./deployment.ts";
import { DirectAttempt } from "./direct-attempt.ts";
import { type EarlyAccount, EarlyBytes } from "./early-bytes.ts";
import type { Held, HoldQueue } from "./hold-queue.ts";
import type { Pool, Seat } from "./pool.ts";
import type { Route } from "./route.ts";
import { TunnelAttempt } from "./tunnel-attempt.ts";

/** Agents that stop or are lost while they connect one target; beyond, the route counts as one that has failed. */
const MAX_AGENTS_LOST = 5;

export interface RoutingOptions {
  readonly connection: string;
  readonly deployment: Deployment;
  /** Those that the connection came under. */
  readonly settings: DeploymentSettings;
  /** Paused; belongs to the connection. */
  readonly socket: Socket;
  /** `address:port`, for the agent's records. */
  readonly partner: string;
  /** The PROXY header that an agent is asked to write; undefined: none. */
  readonly proxy: OpenProxy | undefined;
  /** What `ipHash` goes by. */
  readonly source: string;
  /** Once; then nothing more. `early` is what was read through a tunnel before. */
  readonly onConnected: (connected: Connected, early: EarlyAccount | undefined) => void;
  /** Once; then nothing more. */
  readonly onFailed: (ending: Ending) => void;
}

export class Routing {
  readonly #options: RoutingOptions;
  readonly #pool: Pool;
  /** Routes that have failed since it waited last, and while it waits those before. */
  readonly #tried = new Set<Route>();
  /** It was served, and has tried nothing since. */
  #hasWaited = false;
  #early: EarlyBytes | undefined;
  #attempt: Attempt | undefined;
  #seat: Seat | undefined;
  #waiting: { readonly queue: HoldQueue; readonly held: Held } | undefined;
  #failure: AttemptFailure | undefined;
  #agentsLost = 0;
  #over = false;

  attempts = 0;
  /** The first route that was tried was not the last. */
  redispatched = false;
  /** How many waited when it began to wait. */
  queuePosition: number | undefined;
  /** When the first try began, by `performance.now()`. */
  openedAt: number | undefined;
  agent: string | undefined;
  /** What was dialled, as far as it is known. */
  address: string | undefined;
  #lastRoute: Route | undefined;

  constructor(options: RoutingOptions) {
    this.#options = options;
    this.#pool = options.deployment.pool;
  }

  /** The route that is tried or taken, or was last. */
  get route(): Route | undefined {
    return this.#lastRoute;
  }

  /** Waits for an agent or a target. */
  get waits(): boolean {
    return this.#waiting !== undefined;
  }

  /** Bytes that were read from the partner so far. */
  get bytesIn(): number {
    return this.#early?.bytes ?? 0;
  }

  start(): void {
    const { socket } = this.#options;
    if (socket.destroyed) return this.#fail(Ended.partnerGone);
    socket.once("close", this.#onPartnerGone);
    this.#next();
  }

  /** Gives up; nothing follows. */
  cancel(code: ResetCode): void {
    if (this.#over) return;
    this.#stop();
    this.#attempt?.cancel(code);
  }

  /** The connection is over: its place on the route is free. */
  release(): void {
    this.#seat?.release();
    this.#options.deployment.serveWaiting();
  }

  #next(): void {
    const { deployment } = this.#options;
    const choice = this.#pool.choose({ source: this.#options.source, tried: this.#tried });
    switch (choice.type) {
      case "route":
        return this.#try(choice.route);
      case "full":
        return this.#wait(deployment.targetQueue, Ended.noTargetInTime);
      case "noAgent":
        // One that has failed elsewhere is not made to wait for an agent as well.
        if (this.#failure !== undefined && this.#failure.blame !== "agent") return this.#fail(this.#failure.ending);
        return this.#wait(deployment.holdQueue, Ended.noAgentInTime);
      case "noTarget":
        return this.#fail(this.#failure?.ending ?? Ended.noTarget);
    }
  }

  #try(route: Route): void {
    // What failed before it waited may work when this has failed.
    if (this.#hasWaited) this.#tried.clear();
    this.#hasWaited = false;
    if (this.attempts > 0) route.counters.retries += 1;
    if (this.#lastRoute !== undefined && this.#lastRoute !== route) {
      this.#lastRoute.counters.redispatches += 1;
      this.redispatched = true;
    }
    this.#lastRoute = route;
    this.attempts += 1;
    this.openedAt ??= performance.now();
    this.#seat = this.#pool.take(route);
    const attempt = this.#makeAttempt(route, {
      onConnected: (connected) => this.#connected(route, connected),
      onFailed: (failure) => this.#attemptFailed(route, failure),
    });
    this.#attempt = attempt;
    attempt.start();
  }

  #makeAttempt(route: Route, events: AttemptEvents): Attempt {
    const { connection, deployment, settings, socket, partner, proxy } = this.#options;
    const { sessions, resolver } = deployment.context;
    const connectTimeoutMs = settings.timeouts.connectMs;
    const { client, target } = route;
    const { address } = route.settings;
    if (address !== undefined) return new DirectAttempt({ ...address, resolver, connectTimeoutMs, events });
    this.#early ??= new EarlyBytes(socket);
    return new TunnelAttempt({
      sessions,
      // Where agents of the client are looked for now: a reload may have named another tunnel while it waited.
      via: { tunnel: (deployment.settings.via ?? settings.via)?.tunnel ?? "", client: client ?? "" },
      request: {
        connection,
        target,
        deployment: deployment.name,
        partner,
        ...(proxy === undefined ? {} : { proxy }),
      },
      early: this.#early,
      connectTimeoutMs,
      events: { ...events, onOpened: (agent) => (this.agent = agent) },
    });
  }

  #connected(route: Route, connected: Connected): void {
    this.#stop();
    this.#pool.connected(route);
    this.address = connected.address;
    this.#options.onConnected(connected, this.#early?.handOver());
  }

  #attemptFailed(route: Route, failure: AttemptFailure): void {
    this.#attempt = undefined;
    this.#failure = failure;
    this.address = failure.address;
    this.#seat?.release();
    if (failure.blame === "agent" && this.#agentsLost < MAX_AGENTS_LOST) {
      this.#agentsLost += 1;
      this.#next();
    } else {
      this.#tried.add(route);
      if (failure.blame === "target") this.#pool.connectFailed(route);
      const failures = this.attempts - this.#agentsLost;
      if (failure.blame === "connection" || failures > this.#options.settings.retries) this.#fail(failure.ending);
      else this.#next();
    }
    this.#options.deployment.serveWaiting();
  }

  #wait(queue: HoldQueue, inVain: Ending): void {
    const { deployment } = this.#options;
    // Where nothing new is taken, those that lost their agent are given up as those are that waited.
    if (deployment.state !== "running") return this.#fail(Ended.shutdown);
    const held: Held = {
      // Room at what it has tried already is not what it waits for, as long as there is something else.
      isReady: () =>
        queue !== deployment.targetQueue ||
        deployment.pool !== this.#pool ||
        this.#pool.roomBeside(this.#tried) !== "full",
      serve: () => {
        this.#waiting = undefined;
        // A reload has replaced the way that it waits for by another kind, which is for those that come now.
        if (deployment.pool !== this.#pool) return this.#fail(inVain);
        if (this.#pool.roomBeside(this.#tried) === "none") this.#tried.clear();
        this.#hasWaited = true;
        this.#next();
      },
      expire: () => {
        this.#waiting = undefined;
        this.#fail(inVain);
      },
      stop: () => {
        this.#waiting = undefined;
        this.#fail(Ended.shutdown);
      },
    };
    const position = queue.size;
    const refusal = queue.add(held);
    if (refusal === undefined) {
      this.queuePosition = position;
      this.#waiting = { queue, held };
    } else if (queue === deployment.holdQueue) {
      this.#fail(refusal === "full" ? Ended.holdFull : Ended.noAgent);
    } else {
      this.#fail(queue.settings.max === 0 ? Ended.targetsFull : Ended.targetQueueFull);
    }
  }

  /** FIN is not leaving: a reply may be awaited. */
  readonly #onPartnerGone = (): void => {
    if (this.#over) return;
    const attempt = this.#attempt;
    this.#fail(Ended.partnerGone);
    attempt?.cancel(ResetCode.connectionReset);
  };

  #fail(ending: Ending): void {
    if (this.#over) return;
    this.#stop();
    this.#options.onFailed(ending);
  }

  #stop(): void {
    this.#over = true;
    this.#options.socket.removeListener("close", this.#onPartnerGone);
    if (this.#waiting !== undefined) this.#waiting.queue.remove(this.#waiting.held);
    this.#waiting = undefined;
  }
}
