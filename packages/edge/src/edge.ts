/**
 * The edge program without its command line: builds the parts in order, takes a new configuration, and stops them in
 * reverse.
 */
import type { AddressInfo } from "node:net";
import { isDeepStrictEqual } from "node:util";
import {
  AdminServer,
  collectProcessMetrics,
  connectionCapacity,
  fileDescriptorLimit,
  ExitCode,
  Failure,
  keepKeys,
  LineRate,
  LogFile,
  type Logger,
  listenFailure,
  ObservabilityServer,
  openStateDirectory,
  registerAccessLogMetrics,
  Resolver,
} from "@sallyport/host";
import { MemoryBudget, ResetCode } from "@sallyport/protocol";
import { TunnelServer, type TunnelServerEvent } from "@sallyport/tunnel";
import { Registry } from "prom-client";
import { RecordWriter } from "./access-record.ts";
import type { Admission, AdmissionLimits } from "./admission.ts";
import { registerAdmissionMetrics } from "./admission-metrics.ts";
import { gatekeeperSettings } from "./admission-settings.ts";
import { adminRoutes } from "./admin-routes.ts";
import { AgentSessions } from "./agent-sessions.ts";
import { BanStore } from "./ban-store.ts";
import { loadTunnelCertificate } from "./certificate.ts";
import { ClientStore } from "./client-store.ts";
import { CheckSlots } from "./check-slots.ts";
import { type EdgeConfig, loadEdgeConfig } from "./config.ts";
import { Deployment, type DeploymentContext, type DeploymentSettings } from "./deployment.ts";
import { deploymentSettings, ipFilters, listenerSettings } from "./deployment-settings.ts";
import type { EndedConnections } from "./ended-connections.ts";
import { registerEndedMetrics } from "./ended-metrics.ts";
import { Gatekeeper } from "./gatekeeper.ts";
import type { IpFilter } from "./ip-filter.ts";
import { Listener, type ListenerSettings } from "./listener.ts";
import type { ListeningSocket } from "./listening-socket.ts";
import { registerEdgeMetrics } from "./metrics.ts";
import type { PartnerConnection } from "./partner-connection.ts";

/** Checks of targets at once; each is one dial, or one stream. */
const MAX_CHECKS = 64;

/** Keys that are read at start only; a reload that changes them says so. */
const RESTART_KEYS = ["name", "stateDir", "accessLog", "metrics", "heartbeat", "resumeTimeout", "stripe"] as const;

/**
 * Kept free for those who have not authenticated (as many as the tunnel admits at once) and for links. Without them partners
 * and strangers together take the last descriptor, and an agent that lost its links gets no new ones.
 */
const DESCRIPTORS_PER_TUNNEL = 64;
/** One agent with its most links, or eight with two each. Together they are at most a quarter of what there is. */
const DESCRIPTORS_PER_CLIENT = 16;

const BAN_SWEEP_MS = 1_000;
const DENY_DELAY_MS = 100;

export class Edge {
  /** As it was read last, but `RESTART_KEYS`, which stay as they were at the start. */
  config: EdgeConfig;
  readonly configPath: string;
  readonly log: Logger;
  /** By name; the configuration bounds them. */
  readonly listeners = new Map<string, Listener>();
  /** By name; those of the configuration, and those that it had while their connections finish. */
  readonly deployments = new Map<string, Deployment>();
  readonly sessions: AgentSessions;
  readonly memory: MemoryBudget;
  readonly clients: ClientStore;
  readonly tunnels = new Map<string, TunnelServer>();
  /** Where each tunnel listens, with the port that was chosen for port 0. */
  readonly tunnelAddresses = new Map<string, AddressInfo>();
  readonly startedAt = new Date();
  /** Those that were made at the start. */
  readonly #tunnelsAtStart: EdgeConfig["tunnels"];
  readonly #context: DeploymentContext;
  readonly #registry = new Registry();
  readonly #closers: (() => Promise<void> | void)[] = [];
  /** Deployments that the configuration no longer has, while their connections finish. */
  readonly #retired = new Set<string>();
  #filters: ReadonlyMap<string, IpFilter> = new Map();
  /** The last change of what listens; see `#inTurn`. */
  #changing: Promise<unknown> = Promise.resolve();
  readonly #tunnelEvents = new LineRate({ burst: 50, perSecond: 10 });
  #stopping = false;
  #interimTimer: NodeJS.Timeout | undefined;
  #denyTimer: NodeJS.Timeout | undefined;

  private constructor(
    config: EdgeConfig,
    options: { configPath: string; log: Logger; clients: ClientStore; bans: BanStore },
  ) {
    this.config = config;
    this.#tunnelsAtStart = config.tunnels;
    this.configPath = options.configPath;
    this.log = options.log;
    this.clients = options.clients;
    this.memory = new MemoryBudget(config.memory);
    this.sessions = new AgentSessions({
      memory: this.memory,
      stripe: config.stripe,
      edge: config.name,
      log: options.log,
      heartbeatIntervalMs: config.heartbeat.interval,
      heartbeatTimeoutMs: config.heartbeat.timeout,
      resumeTimeoutMs: config.resumeTimeout,
      onChange: () => {
        for (const deployment of this.deployments.values()) deployment.serveWaiting();
      },
      maxConnections: () => this.config.limits.maxConnections,
      onViolation: (remoteAddress) => {
        for (const tunnel of this.tunnels.values()) tunnel.punish(remoteAddress, "protocol");
      },
    });
    this.#context = {
      gatekeeper: new Gatekeeper(gatekeeperSettings(config, this.#limitsOf(config)), {
        bans: options.bans,
        log: options.log,
        onBan: () => {
          if (this.config.admission.closeExisting) this.#denySoon();
        },
      }),
      sessions: this.sessions,
      resolver: new Resolver(),
      records: new RecordWriter(options.log),
      checkSlots: new CheckSlots(MAX_CHECKS),
      log: options.log,
    };
    registerEdgeMetrics(this.#registry, this);
    registerEndedMetrics(this.#registry, this);
    registerAccessLogMetrics(this.#registry, () => this.accessLog);
    registerAdmissionMetrics(this.#registry, this);
    collectProcessMetrics(this.#registry);
  }

  /**
   * Resolves when everything that starts by itself listens. `config` is what is in the file, where that is known.
   *
   * @throws Failure; nothing is left bound then
   */
  static async start(configPath: string, log: Logger, config = loadEdgeConfig(configPath)): Promise<Edge> {
    await openStateDirectory(config.stateDir);
    const clients = await ClientStore.open(config.stateDir);
    const bans = await BanStore.open(config.stateDir, {
      onWriteFailure: ({ where, what }) => log.error({ where, reason: what }, "bans not written"),
    });
    const edge = new Edge(config, { configPath, log, clients, bans });
    try {
      await edge.#start();
    } catch (error) {
      await edge.stop({ drain: false });
      throw error;
    }
    return edge;
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  /** How connections ended, for metrics. */
  get ended(): EndedConnections {
    return this.#context.records.counts;
  }

  /** The file of records, where the configuration names one. */
  get accessLog(): LogFile | undefined {
    return this.#context.records.log.file;
  }

  /** The filter of the running configuration, of whatever listener. */
  ipFilter(name: string): IpFilter | undefined {
    return this.#filters.get(name);
  }

  /** Every connection that is admitted and not over, also those of which it is not known yet where they go. */
  *connections(): Generator<PartnerConnection> {
    for (const listener of this.listeners.values()) yield* listener.undecided;
    for (const deployment of this.deployments.values()) yield* deployment.connections;
  }

  get admission(): Admission {
    return this.#context.gatekeeper.admission;
  }

  get gatekeeper(): Gatekeeper {
    return this.#context.gatekeeper;
  }

  get ipFilters(): ReadonlyMap<string, IpFilter> {
    return this.#filters;
  }

  /** Many sources may be banned at once; the connections are looked through once for all of them. */
  #denySoon(): void {
    if (this.#denyTimer !== undefined) return;
    this.#denyTimer = setTimeout(() => {
      this.#denyTimer = undefined;
      this.denyConnections();
    }, DENY_DELAY_MS);
    this.#denyTimer.unref();
  }

  /** Resets connections that a ban or an IP filter forbids by now, and says how many. */
  denyConnections(): number {
    let count = 0;
    for (const connection of this.connections()) {
      const denial = connection.recheck();
      if (denial === undefined) continue;
      connection.deny(denial);
      count += 1;
    }
    return count;
  }

  /** Why the edge is not ready; empty when every deployment that starts by itself can serve a connection. */
  get notReady(): string[] {
    if (this.#stopping) return ["shutting down"];
    const reasons: string[] = [];
    for (const deployment of this.deployments.values()) {
      if (deployment.settings.startup === "manual" && deployment.state === "stopped") continue;
      if (deployment.state !== "running") reasons.push(`deployment ${deployment.name} does not listen`);
      else if (!deployment.ready) reasons.push(`deployment ${deployment.name}: ${deployment.whyNoRoute}`);
    }
    return reasons;
  }

  /**
   * Reads the configuration again and takes over IP filters, listeners, deployments, clients, limits, memory,
   * timeouts and tunnel certificates. Connections that are not concerned are not touched. @throws Failure; nothing has changed then
   */
  async reload(): Promise<{ restartNeeded: string[] }> {
    const result = await this.#inTurn(() => this.#reload());
    const { restartNeeded } = result;
    if (restartNeeded.length === 0) this.log.info("configuration reloaded");
    else this.log.warn({ restartNeeded }, "configuration reloaded; some keys take effect after a restart");
    return result;
  }

  /** With `drain`, running connections have `drainTimeout` to finish; `stop` again without it cuts them at once. */
  async stop(options: { drain: boolean }): Promise<void> {
    this.#stopping = true;
    clearInterval(this.#interimTimer);
    clearTimeout(this.#denyTimer);
    // What is being bound must not go on listening behind our back.
    await this.#changing;
    const deployments = [...this.deployments.values()];
    if (options.drain) {
      this.sessions.drain();
      const drainTimeoutMs = this.config.drainTimeout;
      await Promise.all(deployments.map((deployment) => deployment.stop({ type: "drain", drainTimeoutMs })));
    } else {
      this.cut();
      for (const deployment of deployments) await deployment.stop({ type: "cut" });
    }
    this.gatekeeper.tarpit.clear();
    this.sessions.close();
    for (const tunnel of this.tunnels.values()) await tunnel.close();
    await this.gatekeeper.bans.save().catch((error: unknown) => {
      if (!(error instanceof Failure)) throw error;
      this.log.error({ where: error.where, reason: error.what }, "bans not written");
    });
    for (const close of this.#closers.splice(0).toReversed()) await close();
  }

  async #start(): Promise<void> {
    const { config } = this;
    if (config.accessLog !== undefined) {
      const { log } = this.#context.records;
      const file = await LogFile.open(config.accessLog, { log: this.log });
      log.file = file;
      log.toLog = config.accessLog.stdout;
      // The first to be opened is the last to be closed, when every record is written.
      this.#closers.push(() => file.close());
    }
    // Everything is made before anything listens, so that a fault leaves nothing bound.
    this.#filters = ipFilters(config);
    this.#install(listenerSettings(config, this.#filters), {
      deployments: deploymentSettings(config),
      running: new Set(),
      sockets: new Map(),
    });
    for (const tunnel of config.tunnels) {
      const tls = await loadTunnelCertificate(tunnel, config.stateDir);
      this.tunnels.set(
        tunnel.name,
        new TunnelServer({
          listen: tunnel.listen,
          tls,
          credentials: (client) => (this.#declared(client) ? this.clients.verifiers(client) : []),
          onPeer: (peer) => this.sessions.take(peer, tunnel.name),
          onEvent: (event) => this.#tunnelEvent(tunnel.name, event),
          limits: { handshakeTimeoutMs: tunnel.handshakeTimeout, requestTimeoutMs: tunnel.handshakeTimeout },
        }),
      );
    }
    const admin = new AdminServer({ stateDir: config.stateDir, routes: adminRoutes(this) });
    await admin.listen();
    this.#closers.push(() => admin.close());
    // Until the socket was there, commands worked on the file itself; none does from now on.
    await this.clients.reload();
    await this.gatekeeper.bans.reload();
    const sweep = setInterval(() => this.gatekeeper.bans.sweep(), BAN_SWEEP_MS);
    sweep.unref();
    this.#closers.push(() => clearInterval(sweep));
    if (config.metrics !== undefined) {
      const observability = new ObservabilityServer({
        listen: config.metrics.listen,
        registry: this.#registry,
        notReady: () => this.notReady,
      });
      const address = await observability.listen().catch((error: unknown) => {
        throw listenFailure("metrics.listen", config.metrics?.listen, error);
      });
      this.#closers.push(() => observability.close());
      this.log.info({ address: address.address, port: address.port }, "metrics listening");
    }
    for (const tunnel of config.tunnels) {
      const server = this.tunnels.get(tunnel.name);
      const address = await server?.listen().catch((error: unknown) => {
        throw listenFailure(`tunnels.${tunnel.name}.listen`, tunnel.listen, error);
      });
      if (address === undefined) continue;
      this.tunnelAddresses.set(tunnel.name, address);
      this.log.info({ tunnel: tunnel.name, address: address.address, port: address.port }, "tunnel listening");
    }
    for (const deployment of this.deployments.values()) {
      if (deployment.settings.startup === "auto") await this.startDeployment(deployment);
    }
    this.#armInterim();
  }

  /** @throws Failure that names the listener when its address cannot be bound, or the deployment when it is gone */
  async startDeployment(deployment: Deployment): Promise<void> {
    await this.#inTurn(async () => {
      const { name } = deployment;
      if (this.deployments.get(name) !== deployment || this.#retired.has(name)) {
        throw new Failure(ExitCode.usage, "deployment", `${name} is not in the configuration any more`);
      }
      const { settings } = deployment.listener;
      await deployment.start().catch((error: unknown) => {
        throw listenFailure(`listeners.${settings.name}.listen`, settings, error);
      });
    });
  }

  /** Resets every partner connection, in this very turn: for the moment before the process ends. */
  cut(): void {
    for (const connection of this.connections()) connection.abort(ResetCode.shutdown);
  }

  /** Changes of what listens come one at a time, since two that overlap would leave a mixture, and none while stopping. */
  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const run = this.#changing.then(() => {
      if (this.#stopping) throw new Failure(ExitCode.unavailable, this.config.name, "the edge is shutting down");
      return change();
    });
    this.#changing = run.catch(() => undefined);
    return run;
  }

  async #reload(): Promise<{ restartNeeded: string[] }> {
    const next = loadEdgeConfig(this.configPath);
    const before = this.config;
    const { config, changed: changedKeys } = keepKeys(RESTART_KEYS, { before, next });
    const restartNeeded: string[] = [...changedKeys];
    // Certificates are read again and the public address is asked for when a line is made; the rest is not.
    const atStart = this.#tunnelsAtStart;
    const changed = (tunnel: EdgeConfig["tunnels"][number]) => {
      const old = atStart.find(({ name }) => name === tunnel.name);
      if (old === undefined || old.handshakeTimeout !== tunnel.handshakeTimeout) return true;
      return !isDeepStrictEqual(old.listen, tunnel.listen);
    };
    if (next.tunnels.length !== atStart.length || next.tunnels.some(changed)) restartNeeded.push("tunnels");
    // What can fail comes first: certificates are read, and new addresses are bound beside the old ones.
    const certificates = new Map<string, Awaited<ReturnType<typeof loadTunnelCertificate>>>();
    for (const tunnel of next.tunnels) {
      if (this.tunnels.has(tunnel.name))
        certificates.set(tunnel.name, await loadTunnelCertificate(tunnel, before.stateDir));
    }
    await this.#applyDeployments(next);
    for (const [name, tls] of certificates) this.tunnels.get(name)?.setTls(tls);
    this.config = config;
    this.memory.limitBytes = next.memory;
    this.gatekeeper.adopt(gatekeeperSettings(next, this.#limitsOf(next)));
    if (next.admission.closeExisting) {
      const closed = this.denyConnections();
      if (closed > 0) this.log.warn({ closed }, "connections that are forbidden by now were reset");
    }
    this.log.level = next.log.level;
    for (const { name } of before.clients) if (!this.#declared(name)) this.sessions.revoke(name);
    this.#armInterim();
    return { restartNeeded };
  }

  /**
   * Binds what is new first, so that a failure leaves everything as it was. A listener that stays at its address stays
   * open, whichever deployment has it afterwards: renaming or exchanging deployments refuses no partner.
   */
  async #applyDeployments(next: EdgeConfig): Promise<void> {
    const filters = ipFilters(next);
    const wantedDeployments = deploymentSettings(next);
    const wantedListeners = listenerSettings(next, filters);
    const bound = new Map<string, ListeningSocket>();
    for (const { settings, socket } of this.listeners.values()) {
      if (socket !== undefined) bound.set(addressKey(settings), socket);
    }
    const sockets = new Map<string, ListeningSocket>();
    const fresh: ListeningSocket[] = [];
    const running = new Set<string>();
    try {
      const ofListener = byListener(wantedDeployments);
      for (const settings of wantedListeners) {
        const runs = (ofListener.get(settings.name) ?? []).filter((deployment) => this.#runsAfterReload(deployment));
        if (runs.length === 0) continue;
        for (const { name } of runs) running.add(name);
        const key = addressKey(settings);
        let socket = bound.get(key);
        bound.delete(key);
        if (socket === undefined) {
          socket = await Listener.bind(settings, this.#context).catch((error: unknown) => {
            throw listenFailure(`listeners.${settings.name}.listen`, settings, error);
          });
          fresh.push(socket);
        }
        sockets.set(settings.name, socket);
      }
    } catch (error) {
      for (const socket of fresh) socket.close();
      throw error;
    }
    for (const [name, filter] of filters) {
      const before = this.#filters.get(name);
      if (before !== undefined) filter.inheritHits(before);
    }
    this.#filters = filters;
    // What an operator has stopped meanwhile stays stopped.
    for (const { name } of wantedDeployments) {
      if (running.has(name) && this.deployments.has(name) && !this.#retired.has(name)) {
        if (this.deployments.get(name)?.state !== "running") running.delete(name);
      }
    }
    this.#install(wantedListeners, { deployments: wantedDeployments, running, sockets });
    const names = new Set(wantedDeployments.map(({ name }) => name));
    for (const deployment of this.deployments.values()) {
      const { name } = deployment;
      if (!names.has(name) && !this.#retired.has(name)) this.#retire(deployment, next.drainTimeout);
    }
    for (const socket of bound.values()) socket.close();
  }

  /** Puts listeners and deployments in the place of those before, in one turn. */
  #install(
    listeners: readonly ListenerSettings[],
    next: {
      readonly deployments: readonly DeploymentSettings[];
      /** Names of the deployments that run. */
      readonly running: ReadonlySet<string>;
      /** By listener; one that an operator has closed meanwhile is not to be taken for one that listens. */
      readonly sockets: ReadonlyMap<string, ListeningSocket>;
    },
  ): void {
    const started: Deployment[] = [];
    const old = new Map(this.listeners);
    this.listeners.clear();
    // Before anything is adopted: where a deployment runs is asked of the listener that it had.
    const ranBefore = new Set([...this.deployments.values()].filter(({ state }) => state === "running"));
    for (const settings of listeners) {
      const listener = old.get(settings.name) ?? new Listener(settings, this.#context);
      this.listeners.set(settings.name, listener);
    }
    // In the order of the file, which is the order in which commands list them.
    const adopted: Deployment[] = [];
    for (const settings of next.deployments) {
      const listener = this.listeners.get(settings.listener);
      if (listener !== undefined) adopted.push(this.#adopted(settings, listener));
    }
    const ofListener = byListener(adopted.map((deployment) => ({ deployment, listener: deployment.listener.name })));
    for (const settings of listeners) {
      const listener = this.listeners.get(settings.name);
      if (listener === undefined) continue;
      old.delete(settings.name);
      const deployments = (ofListener.get(settings.name) ?? []).map(({ deployment }) => deployment);
      const bound = next.sockets.get(settings.name);
      const socket = bound?.address === undefined ? undefined : bound;
      const serving = socket === undefined ? [] : deployments.filter(({ name }) => next.running.has(name));
      if (serving.length === 0) bound?.close();
      listener.adopt({ settings, deployments, serving, socket: serving.length === 0 ? undefined : socket });
      started.push(...serving.filter((deployment) => !ranBefore.has(deployment)));
    }
    for (const listener of old.values()) {
      listener.adopt({ settings: listener.settings, deployments: [], serving: [], socket: undefined });
    }
    for (const deployment of started) deployment.started();
    for (const deployment of adopted) {
      deployment.updateChecks();
      deployment.serveWaiting();
    }
  }

  /** The deployment of this name with the settings of a reload, or a new one. */
  #adopted(settings: DeploymentSettings, listener: Listener): Deployment {
    const existing = this.deployments.get(settings.name);
    this.#retired.delete(settings.name);
    existing?.adopt(settings, listener);
    const deployment = existing ?? new Deployment(settings, listener);
    this.deployments.set(settings.name, deployment);
    return deployment;
  }

  /** What runs goes on running, what an operator has stopped stays stopped, what is new starts as it says. */
  #runsAfterReload(settings: DeploymentSettings): boolean {
    const existing = this.deployments.get(settings.name);
    if (existing === undefined || this.#retired.has(settings.name)) return settings.startup === "auto";
    return existing.state === "running";
  }

  /** It is not in the configuration any more: its connections finish, and it is forgotten when none is left. */
  #retire(deployment: Deployment, drainTimeoutMs: number): void {
    this.#retired.add(deployment.name);
    void deployment.stop({ type: "drain", drainTimeoutMs }).then(() => {
      if (this.#retired.delete(deployment.name)) this.deployments.delete(deployment.name);
    });
  }

  /** The configured limits, or what the file descriptors of this process allow where that is less. */
  #limitsOf(config: EdgeConfig): AdmissionLimits {
    const descriptorsEach = config.deployments.some(({ via }) => via === undefined) ? 2 : 1;
    const forTunnels = config.tunnels.length * DESCRIPTORS_PER_TUNNEL + config.clients.length * DESCRIPTORS_PER_CLIENT;
    const atMost = Math.floor((fileDescriptorLimit() ?? 0) / 4);
    const capacity = connectionCapacity(descriptorsEach, Math.min(forTunnels + tarpitSize(config), atMost));
    const { maxConnections } = config.limits;
    if (capacity === undefined || capacity >= maxConnections) return config.limits;
    this.log.warn(
      { configured: maxConnections, maxConnections: capacity },
      "limits.maxConnections is lowered: the process may not open more files (LimitNOFILE, ulimit -n)",
    );
    return { ...config.limits, maxConnections: capacity };
  }

  #declared(client: string): boolean {
    return this.config.clients.some(({ name }) => name === client);
  }

  /** A scan of the port must not become a flood of lines: beyond the rate they are counted. */
  #tunnelEvent(tunnel: string, event: TunnelServerEvent): void {
    const suppressed = this.#tunnelEvents.admit();
    if (suppressed === undefined) return;
    const { type: _, ...facts } = event;
    this.log.warn({ tunnel, ...facts, ...(suppressed > 0 ? { suppressed } : {}) }, "tunnel connection refused");
  }

  /** Interim records of long connections, from one timer for all of them. */
  #armInterim(): void {
    clearInterval(this.#interimTimer);
    const intervalMs = this.config.recordInterval;
    if (intervalMs === 0) return;
    this.#interimTimer = setInterval(() => {
      for (const connection of this.connections()) {
        if (connection.ageMs >= intervalMs) this.#context.records.interim(connection.interimFacts);
      }
    }, intervalMs);
    this.#interimTimer.unref();
  }
}

function byListener<T extends { readonly listener: string }>(entries: readonly T[]): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const entry of entries) {
    const group = groups.get(entry.listener);
    if (group === undefined) groups.set(entry.listener, [entry]);
    else group.push(entry);
  }
  return groups;
}

/** Names the address of a listener; each port 0 is another one. */
function addressKey({ name, host, port }: ListenerSettings): string {
  return port === 0 ? `${host} 0 ${name}` : `${host} ${port}`;
}

/** Sockets that the tarpit may hold, where a rule sends any there. */
function tarpitSize({ admission, listeners }: EdgeConfig): number {
  const maps = [admission.rules, ...listeners.map((listener) => listener.admission.rules)];
  return maps.some((rules) => Object.values(rules).some(({ onDeny }) => onDeny === "tarpit"))
    ? admission.tarpit.max
    : 0;
}
