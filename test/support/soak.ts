/**
 * The product for a long time under a mixed load on a path that keeps breaking: idle streams, streams that echo without
 * end, short connections, cuts of every link and reloads of both programs. What is asked at the end: was every byte right,
 * and does anything grow?
 */
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { pollUntil, withDeadline } from "./deadline.ts";
import { startEchoServer } from "./echo-server.ts";
import { EchoProbe } from "./echo-probe.ts";
import { metric } from "./metric.ts";
import { PseudoRandomBytes } from "./prng.ts";
import { quantile } from "./quantile.ts";
import { RelayProcess } from "./relay-process.ts";
import { SallyportPair } from "./sallyport-pair.ts";
import { seededRandom } from "./seeded-random.ts";

export interface SoakOptions {
  /** All of it, warm-up included. */
  readonly durationMs: number;
  /** After which growth counts. */
  readonly warmUpMs: number;
  readonly cutEveryMs: number;
  readonly reloadEveryMs: number;
  /** How often both programs collect their garbage and are asked for their figures. */
  readonly sampleEveryMs: number;
  readonly idleStreams: number;
  readonly echoStreams: number;
  readonly connectionsPerSecond: number;
}

/** Figures of one program. */
export interface ProgramGrowth {
  /** Slope of the least that a collection leaves of the heap in each of ten periods, in bytes per minute. */
  readonly heapBytesPerMinute: number;
  /**
   * What is in RAM besides the heap and its reserves: median of the second half of the samples less that of the first, in
   * bytes. How much the heap keeps in reserve is the runtime's to choose, and changes by 30 MiB within minutes.
   */
  readonly residentBytes: number;
  /** Of each of ten periods: that least, and the median of what is in RAM besides, in MiB. */
  readonly course: readonly string[];
  /** With all streams and both links, at the end of the load less before it. */
  readonly openFiles: number;
  /** The same of sockets, and of timers. */
  readonly sockets: number;
  readonly timers: number;
  /** Streams when only the idle and echo streams are left. */
  readonly streams: number;
  /** Streams when all partners are gone. */
  readonly streamsAtEnd: number;
  /** Bytes of streams that are in memory when all partners are gone. */
  readonly heldBytesAtEnd: number;
}

export interface SoakResult {
  readonly cuts: number;
  readonly reloads: number;
  /** Reloads that the programs have told of; each reload is one of both. */
  readonly toldReloads: number;
  /** Lines of both programs besides connection records. */
  readonly logLines: number;
  readonly shortConnections: number;
  readonly echoes: number;
  /** What went wrong on any stream, without doubles: failures and wrong bytes. At most 20. */
  readonly faults: readonly string[];
  /** What the rig could not do in time: cut, reload, or ask for figures. At most 20. */
  readonly delays: readonly string[];
  /** Connections whose record, at either end, does not say that they finished, with what it says. At most 20. */
  readonly badEndings: readonly string[];
  readonly edge: ProgramGrowth;
  readonly agent: ProgramGrowth;
}

interface Sample {
  readonly atMs: number;
  readonly heapBytes: number;
  /** Besides the heap. */
  readonly residentBytes: number;
  readonly openFiles: number;
  readonly sockets: number;
  readonly timers: number;
  readonly streams: number;
  readonly heldBytes: number;
}

const collectOnSignal = fileURLToPath(new URL("collect-on-signal.cjs", import.meta.url));

const MAX_ECHO_BYTES = 32 * 1024;
/** A cut costs a pause; what takes longer than this is a fault. */
const ECHO_TIMEOUT_MS = 15_000;
const MAX_FAULTS = 20;
const PERIODS = 10;

export async function soak(options: SoakOptions): Promise<SoakResult> {
  const echo = await startEchoServer();
  const log = { lines: 0, reloads: 0 };
  let relay: RelayProcess | undefined;
  const pair = await SallyportPair.start({
    nodeArgs: ["--require", collectOnSignal],
    services: { echo: `127.0.0.1:${echo.port}` },
    // Connections that come while the path is cut wait, as they do by default.
    deployments: [{ name: "echo", target: "echo", hold: {} }],
    // All partners come from one address, and a pause makes the short connections of several seconds wait.
    edgeConfig: { limits: { maxConnections: 10_000, maxConnectionsPerSource: 10_000 } },
    publicAddress: async (tunnelPort) => {
      relay = await RelayProcess.start(tunnelPort);
      return `127.0.0.1:${relay.port}`;
    },
    onLine(_program, line) {
      if (line.includes('"msg":"connection"')) return;
      log.lines += 1;
      if (line.includes('"msg":"configuration reloaded')) log.reloads += 1;
    },
  });
  try {
    const result = await new Soak(options, pair, relay!).run();
    return { ...result, toldReloads: log.reloads, logLines: log.lines };
  } finally {
    await relay?.close();
    await pair.stop();
    await echo.close();
  }
}

class Soak {
  readonly #options: SoakOptions;
  readonly #pair: SallyportPair;
  readonly #relay: RelayProcess;
  readonly #port: number;
  readonly #faults = new Set<string>();
  readonly #delays: string[] = [];
  readonly #random = seededRandom("soak");
  readonly #stop = new AbortController();
  readonly #edgeSamples: Sample[] = [];
  readonly #agentSamples: Sample[] = [];
  #cuts = 0;
  #reloads = 0;
  #shortConnections = 0;
  #echoes = 0;

  constructor(options: SoakOptions, pair: SallyportPair, relay: RelayProcess) {
    this.#options = options;
    this.#pair = pair;
    this.#relay = relay;
    this.#port = pair.listenerPort("echo");
  }

  async run(): Promise<Omit<SoakResult, "toldReloads" | "logLines">> {
    const { idleStreams, echoStreams, durationMs } = this.#options;
    const idle = await Promise.all(Array.from({ length: idleStreams }, () => EchoProbe.connect(this.#port)));
    const echoing = Array.from({ length: echoStreams }, () => this.#connect());
    const longLived = idleStreams + echoStreams;
    await this.#settled(longLived);
    const edgeBefore = await this.#sampleEdge();
    const agentBefore = await this.#sampleAgent();
    const work = [
      ...echoing.map((socket, index) => this.#echoWithoutEnd(socket, index)),
      this.#churn(),
      this.#every(this.#options.cutEveryMs, async () => {
        await this.#relay.order("cut");
        this.#cuts += 1;
      }),
      this.#every(this.#options.reloadEveryMs, async () => {
        await this.#changeFilter();
        this.#pair.edge.process.signal("SIGHUP");
        this.#pair.agent.process.signal("SIGHUP");
        this.#reloads += 1;
      }),
      this.#every(this.#options.sampleEveryMs, async () => {
        for (const { process } of [this.#pair.edge, this.#pair.agent]) process.signal("SIGUSR2");
        this.#edgeSamples.push(await this.#sampleEdge());
        this.#agentSamples.push(await this.#sampleAgent());
      }),
    ];
    await delay(durationMs);
    this.#stop.abort();
    await Promise.all(work);
    await this.#settled(longLived);
    // The idle streams still work, all of them.
    await Promise.all(
      idle.map((probe) => probe.roundTrip(100, ECHO_TIMEOUT_MS).catch((error: unknown) => this.#fault(String(error)))),
    );
    const edgeLoaded = await this.#sampleEdge();
    const agentLoaded = await this.#sampleAgent();
    const { edge, agent } = this.#pair.records();
    const badEndings = [...edge, ...agent]
      .filter(({ code }) => code !== "--")
      .map((record) => [record.name, record.connection, record.code, record.reason, record.totalMs].join(" "));
    for (const probe of idle) probe.close();
    for (const socket of echoing) socket.destroy();
    await this.#settled(0);
    const edgeAfter = await this.#sampleEdge();
    const agentAfter = await this.#sampleAgent();
    return {
      cuts: this.#cuts,
      reloads: this.#reloads,
      shortConnections: this.#shortConnections,
      echoes: this.#echoes,
      faults: [...this.#faults],
      delays: this.#delays,
      badEndings: badEndings.slice(0, MAX_FAULTS),
      edge: this.#growth(this.#edgeSamples, [edgeBefore, edgeLoaded, edgeAfter]),
      agent: this.#growth(this.#agentSamples, [agentBefore, agentLoaded, agentAfter]),
    };
  }

  #growth(all: readonly Sample[], [before, loaded, after]: readonly [Sample, Sample, Sample]): ProgramGrowth {
    const firstAt = (all[0]?.atMs ?? 0) + this.#options.warmUpMs;
    const samples = all.filter(({ atMs }) => atMs >= firstAt);
    const half = Math.max(1, Math.floor(samples.length / 2));
    const resident = samples.map(({ residentBytes }) => residentBytes);
    return {
      heapBytesPerMinute: heapSlope(samples),
      residentBytes: quantile(resident.slice(-half), 0.5) - quantile(resident.slice(0, half), 0.5),
      course: periodsOf(samples).map((period) =>
        [
          leastHeap(period),
          quantile(
            period.map(({ residentBytes }) => residentBytes),
            0.5,
          ),
        ]
          .map((bytes) => (bytes / 1024 ** 2).toFixed(1))
          .join(" "),
      ),
      openFiles: loaded.openFiles - before.openFiles,
      sockets: loaded.sockets - before.sockets,
      timers: loaded.timers - before.timers,
      streams: loaded.streams,
      streamsAtEnd: after.streams,
      heldBytesAtEnd: after.heldBytes,
    };
  }

  /** Another number of rules in the IP filter, none of which concerns a partner of the soak. */
  async #changeFilter(): Promise<void> {
    const { configPath } = this.#pair.edge;
    const config = JSON.parse(await readFile(configPath, "utf8"));
    const [filter] = config.ipFilters;
    const extra = Array.from({ length: this.#reloads % 2 === 0 ? 500 : 0 }, (_, at) => ({
      action: "block",
      cidr: `10.${at >> 8}.${at & 0xff}.0/24`,
    }));
    filter.rules = [...extra, ...filter.rules.filter(({ action }: { action: string }) => action === "allow")];
    await writeFile(configPath, JSON.stringify(config));
  }

  #fault(text: string): void {
    if (this.#faults.size < MAX_FAULTS) this.#faults.add(text);
  }

  #connect(): Socket {
    const socket = connect({ port: this.#port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    socket.on("error", (error: NodeJS.ErrnoException) => this.#fault(`connection: ${error.code}`));
    return socket;
  }

  /** Both ends have so many streams and both links. */
  async #settled(streams: number): Promise<void> {
    await pollUntil(
      async () => {
        const [edge, agent] = await Promise.all([this.#pair.edgeMetrics(), this.#pair.agentMetrics()]);
        const found = [
          metric(edge, "edge_tunnel_streams"),
          metric(agent, "agent_tunnel_streams"),
          metric(edge, "edge_tunnel_links"),
          metric(agent, "agent_tunnel_links"),
        ];
        if (found.join() === [streams, streams, 2, 2].join()) return true;
        throw new Error(`streams and links of edge and agent: ${found.join()}`);
      },
      { what: `${streams} streams on two links`, timeoutMs: 60_000 },
    );
  }

  /** Runs `act` again and again until the load ends. */
  async #every(periodMs: number, act: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        await delay(periodMs, undefined, { signal: this.#stop.signal });
      } catch {
        return;
      }
      try {
        await act();
      } catch (error) {
        // The rig itself was too slow, which a machine that stands still causes: told, and gone on.
        if (this.#delays.length < MAX_FAULTS) this.#delays.push(String(error));
      }
    }
  }

  async #echoWithoutEnd(socket: Socket, index: number): Promise<void> {
    const source = new PseudoRandomBytes(`soak ${index}`);
    while (!this.#stop.signal.aborted) {
      const bytes = source.next(1 + Math.floor(this.#random() * MAX_ECHO_BYTES));
      if (!(await this.#sendAndCompare(socket, bytes))) return;
      this.#echoes += 1;
      await delay(50 + this.#random() * 100);
    }
  }

  /** Sends bytes and compares what comes back. */
  async #sendAndCompare(socket: Socket, bytes: Buffer): Promise<boolean> {
    const pieces: Buffer[] = [];
    let leftBytes = bytes.length;
    let onData: (piece: Buffer) => void = () => undefined;
    const back = new Promise<void>((resolve) => {
      onData = (piece) => {
        pieces.push(piece);
        leftBytes -= piece.length;
        if (leftBytes <= 0) resolve();
      };
      socket.on("data", onData);
    });
    socket.write(bytes);
    try {
      await withDeadline(back, { what: "an echo", timeoutMs: ECHO_TIMEOUT_MS });
    } catch (error) {
      this.#fault(String(error));
      return false;
    } finally {
      socket.off("data", onData);
    }
    if (Buffer.concat(pieces).equals(bytes)) return true;
    this.#fault("an echo came back wrong");
    return false;
  }

  /** Short connections at their rate, however long each takes; at most as many at once as come in a timeout. */
  async #churn(): Promise<void> {
    const running = new Set<Promise<void>>();
    const startedAt = performance.now();
    while (!this.#stop.signal.aborted) {
      const due = ((performance.now() - startedAt) / 1000) * this.#options.connectionsPerSecond;
      for (; this.#shortConnections < due; this.#shortConnections++) {
        const one = this.#shortConnection().finally(() => running.delete(one));
        running.add(one);
      }
      await delay(10);
    }
    await Promise.all(running);
  }

  async #shortConnection(): Promise<void> {
    const socket = this.#connect();
    const ended = once(socket, "end");
    ended.catch(() => undefined);
    const bytes = Buffer.from(`short connection ${this.#shortConnections} of this run`);
    if (await this.#sendAndCompare(socket, bytes)) {
      socket.end();
      socket.resume();
      try {
        await withDeadline(ended, { what: "the end of a short connection", timeoutMs: ECHO_TIMEOUT_MS });
      } catch (error) {
        this.#fault(error instanceof Error ? error.message : "a short connection failed");
      }
    }
    socket.destroy();
  }

  async #sampleEdge(): Promise<Sample> {
    return sampleOf(await this.#pair.edgeMetrics(), "edge");
  }

  async #sampleAgent(): Promise<Sample> {
    return sampleOf(await this.#pair.agentMetrics(), "agent");
  }
}

function sampleOf(text: string, program: "edge" | "agent"): Sample {
  return {
    atMs: performance.now(),
    heapBytes: metric(text, "nodejs_heap_size_used_bytes"),
    residentBytes: metric(text, "process_resident_memory_bytes") - metric(text, "nodejs_heap_size_total_bytes"),
    openFiles: metric(text, "process_open_fds"),
    sockets: metric(text, "nodejs_active_resources", 'type="TCPSocketWrap"'),
    timers: metric(text, "nodejs_active_resources", 'type="Timeout"'),
    streams: metric(text, `${program}_tunnel_streams`),
    heldBytes: metric(text, `${program}_tunnel_held_bytes`),
  };
}

function periodsOf(samples: readonly Sample[]): Sample[][] {
  const size = Math.max(1, Math.floor(samples.length / PERIODS));
  return Array.from({ length: Math.floor(samples.length / size) }, (_, at) =>
    samples.slice(at * size, (at + 1) * size),
  );
}

/** What a cut leaves on its way is in use for a while; the least is what stays. */
function leastHeap(period: readonly Sample[]): number {
  return Math.min(...period.map(({ heapBytes }) => heapBytes));
}

/** Least squares through the least of each period, in bytes per minute. */
function heapSlope(samples: readonly Sample[]): number {
  const points = periodsOf(samples).map((period) => ({
    minutes: period[0]!.atMs / 60_000,
    bytes: leastHeap(period),
  }));
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const minutes = mean(points.map((point) => point.minutes));
  const bytes = mean(points.map((point) => point.bytes));
  const covariance = points.reduce((sum, point) => sum + (point.minutes - minutes) * (point.bytes - bytes), 0);
  const variance = points.reduce((sum, point) => sum + (point.minutes - minutes) ** 2, 0);
  return variance === 0 ? 0 : covariance / variance;
}
