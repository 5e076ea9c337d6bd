/**
 * A listener: an address on which partners arrive, with what is asked of them before it is known where they go, and
 * the deployments among which they are told apart. Its address is bound while at least one of its deployments runs.
 */
import type { AddressInfo } from "node:net";
import { ResetCode } from "@sallyport/protocol";
import { AdmissionDoor, type DoorSettings } from "./admission.ts";
import type { Deployment, DeploymentContext } from "./deployment.ts";
import type { IpFilter } from "./ip-filter.ts";
import { ListeningSocket } from "./listening-socket.ts";
import type { Pace } from "./paced-socket.ts";
import { PartnerConnection, type Refusal } from "./partner-connection.ts";
import { ServerNameTable } from "./server-name-table.ts";
import { TokenBucket } from "./token-bucket.ts";

export interface ListenerSettings extends DoorSettings {
  readonly host: string;
  readonly port: number;
  /** Nothing is opened before the partner has sent something; 0: off. */
  readonly firstByteTimeoutMs: number;
  /** A connection ends at this age; 0: never. */
  readonly maxDurationMs: number;
  /** In each direction, of all connections together and of each; undefined: no limit. */
  readonly bytesPerSecond: number | undefined;
  readonly connectionBytesPerSecond: number | undefined;
  /** Undefined: connections come from partners themselves. */
  readonly proxy: InboundProxySettings | undefined;
  /** How long a TLS client may take to say whom it wants, where that is asked. */
  readonly clientHelloTimeoutMs: number;
}

/** Every connection comes from a proxy in front and begins with its PROXY header. */
export interface InboundProxySettings {
  /** Allows those whose headers are believed. */
  readonly trusted: IpFilter;
  readonly headerTimeoutMs: number;
}

const MIN_BURST_BYTES = 16_384;

export class Listener {
  readonly name: string;
  readonly context: DeploymentContext;
  /** Connections keep the way they began on; new ones follow the settings of the moment. */
  settings: ListenerSettings;
  readonly door: AdmissionDoor;
  /** The buckets that all its connections share. */
  #buckets: Pace = { in: [], out: [] };
  /** Connections that were refused before a deployment had them; the counts only grow. */
  readonly refused: Partial<Record<Refusal, number>> = {};
  /** Admitted connections of which it is not known yet where they go. Bounded by the limits of admission. */
  readonly undecided = new Set<PartnerConnection>();
  /** Connections that a proxy in front made to see whether we live; the count only grows. */
  proxyChecks = 0;
  #deployments: readonly Deployment[] = [];
  #names = new ServerNameTable<Deployment>();
  readonly #serving = new Set<Deployment>();
  #socket: ListeningSocket | undefined;

  constructor(settings: ListenerSettings, context: DeploymentContext) {
    this.name = settings.name;
    this.settings = settings;
    this.context = context;
    this.door = new AdmissionDoor(settings);
    this.#buckets = bucketsOf(settings.bytesPerSecond);
  }

  /** All that the configuration gives it, running or not. */
  get deployments(): readonly Deployment[] {
    return this.#deployments;
  }

  /** The deployment that every connection belongs to, known before anything was read; undefined when there are several. */
  get onlyDeployment(): Deployment | undefined {
    return this.#deployments.length === 1 ? this.#deployments[0] : undefined;
  }

  /** Tells its deployments apart. */
  get names(): ServerNameTable<Deployment> {
    return this.#names;
  }

  /** What it is bound with, while it is. */
  get socket(): ListeningSocket | undefined {
    return this.#socket;
  }

  /** Where it listens, while it does, with the port that the kernel chose for port 0. */
  get address(): AddressInfo | undefined {
    return this.#socket?.address;
  }

  /** Whether connections of this deployment are taken now. */
  serves(deployment: Deployment): boolean {
    return this.#serving.has(deployment);
  }

  /** Takes connections of `deployment` from now on. @throws the system's error when the address cannot be bound */
  async start(deployment: Deployment): Promise<void> {
    if (this.#socket === undefined) {
      const bound = await Listener.bind(this.settings, this.context);
      if (this.#socket === undefined) this.#use(bound);
      else bound.close();
    }
    this.#serving.add(deployment);
  }

  /**
   * Takes no more connections of `deployment`. When it was the last one the address is free, and connections that had not
   * said where they want to go are reset with `code`.
   */
  stop(deployment: Deployment, code: typeof ResetCode.killed | typeof ResetCode.shutdown): void {
    if (!this.#serving.delete(deployment) || this.#serving.size > 0) return;
    this.#socket?.close();
    this.#socket = undefined;
    for (const connection of this.undecided) connection.abort(code);
  }

  /**
   * Takes what a reload says, at once: settings, deployments, those of them that run, and a bound socket for them or none.
   * The socket before is not closed: it may belong to another listener now.
   */
  adopt(next: {
    readonly settings: ListenerSettings;
    readonly deployments: readonly Deployment[];
    readonly serving: readonly Deployment[];
    readonly socket: ListeningSocket | undefined;
  }): void {
    if (next.settings.bytesPerSecond !== this.settings.bytesPerSecond) {
      this.#buckets = bucketsOf(next.settings.bytesPerSecond);
    }
    this.settings = next.settings;
    this.door.settings = next.settings;
    this.#deployments = next.deployments;
    this.#names = new ServerNameTable();
    for (const deployment of next.deployments) this.#names.add(deployment, deployment.settings);
    this.#serving.clear();
    for (const deployment of next.serving) this.#serving.add(deployment);
    this.#socket = undefined;
    if (next.socket !== undefined) this.#use(next.socket);
    else for (const connection of this.undecided) connection.abort(ResetCode.killed);
  }

  /** What holds a new connection back, where a byte rate is configured. */
  pace(): Pace | undefined {
    const { bytesPerSecond, connectionBytesPerSecond } = this.settings;
    if (bytesPerSecond === undefined && connectionBytesPerSecond === undefined) return undefined;
    const own = bucketsOf(connectionBytesPerSecond);
    return { in: [...own.in, ...this.#buckets.in], out: [...own.out, ...this.#buckets.out] };
  }

  /** Binds the address of `settings`; the socket belongs to the caller. @throws as `start` */
  static async bind(settings: ListenerSettings, { log }: Pick<DeploymentContext, "log">): Promise<ListeningSocket> {
    const { name, host, port } = settings;
    const socket = new ListeningSocket({
      host,
      port,
      onError: (code) => log.error({ listener: name, error: code }, "accept failed"),
    });
    await socket.bind();
    return socket;
  }

  #use(socket: ListeningSocket): void {
    this.#socket = socket;
    socket.onSocket = (accepted) => PartnerConnection.serve(accepted, this);
  }
}

/** A tenth of a second at once, or what one read brings where that is more. */
function bucketsOf(perSecond: number | undefined): Pace {
  if (perSecond === undefined) return { in: [], out: [] };
  const settings = { perSecond, burst: Math.max(MIN_BURST_BYTES, Math.floor(perSecond / 10)) };
  const now = performance.now();
  return { in: [new TokenBucket(settings, now)], out: [new TokenBucket(settings, now)] };
}
