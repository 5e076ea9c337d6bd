import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runSuccessfully, TestProcess } from "./child-process.ts";
import { pollUntil } from "./deadline.ts";
import { findFreePort } from "./free-port.ts";
import { makeTempDir } from "./temp-dir.ts";

export interface PairDeployment {
  readonly name: string;
  /** The name of one of `services`, or `host:port`. A tunnelled `host:port` is put on the agent's allow list. */
  readonly target: string;
  /** The edge dials the target itself. Default: through the tunnel. */
  readonly direct?: boolean;
  /** What happens while no agent is connected. Default: connections are reset at once. */
  readonly hold?: object;
  /** The deployment whose listener it shares. Default: a listener of its own. */
  readonly listener?: string;
  /** Further keys of its listener. */
  readonly listenerConfig?: Readonly<Record<string, unknown>>;
  /** Further keys of the deployment; one given here replaces the one that the pair would write, `undefined` takes it out. */
  readonly settings?: Readonly<Record<string, unknown>>;
}

export interface SallyportPairOptions {
  readonly deployments: readonly PairDeployment[];
  /** The agent's services: name to `host:port`. */
  readonly services?: Readonly<Record<string, string>>;
  /** Links per session. Default: the agent's own. */
  readonly links?: number;
  /** Further top-level keys of edge.yaml; a key given here replaces the one that the pair would write. */
  readonly edgeConfig?: Readonly<Record<string, unknown>>;
  /** The same for agent.yaml. */
  readonly agentConfig?: Readonly<Record<string, unknown>>;
  /** What the pairing line says instead of the tunnel's own address, such as a relay's. */
  readonly publicAddress?: (tunnelPort: number) => string | Promise<string>;
  /** Hears every line of both programs' standard output, of which the processes keep the last ones only. */
  readonly onLine?: (program: "edge" | "agent", line: string) => void;
  /** The Node binary that runs both programs. Default: `SALLYPORT_TEST_NODE`, else the one that runs the test. */
  readonly nodePath?: string;
  /** Arguments of that binary, before the program. */
  readonly nodeArgs?: readonly string[];
}

/** One JSON line that a program has logged. */
export type LogRecord = Readonly<Record<string, unknown>>;

export interface PairRecords {
  readonly edge: readonly LogRecord[];
  readonly agent: readonly LogRecord[];
}

export interface PairedProgram {
  readonly process: TestProcess;
  readonly configPath: string;
  readonly metricsPort: number;
}

/** Each program's connection records are kept up to this many, the latest ones. */
const MAX_RECORDS = 50_000;
const PAIRING_LINE = /^sallyport-pair:\S+$/;
const root = fileURLToPath(new URL("../../", import.meta.url));
const edgeProgram = join(root, "packages/edge/bin/sallyport-edge.js");
const agentProgram = join(root, "packages/agent/bin/sallyport-agent.js");

/** The JSON lines of a program's standard output, of which the connection records are kept. */
class ConnectionRecords {
  #records: LogRecord[] = [];

  readonly take = (line: string): void => {
    if (!line.includes('"msg":"connection"')) return;
    this.#records.push(JSON.parse(line) as LogRecord);
    if (this.#records.length > 2 * MAX_RECORDS) this.#records = this.#records.slice(-MAX_RECORDS);
  };

  get all(): readonly LogRecord[] {
    return this.#records;
  }
}

/**
 * A real edge and a real agent as processes of their own, paired by their commands, on loopback ports and with their
 * files in a temporary directory. The caller awaits `stop()`, which ends both and removes the directory.
 */
export class SallyportPair {
  readonly directory: string;
  readonly #options: SallyportPairOptions;
  readonly #nodePath: string;
  readonly #removeDirectory: () => Promise<void>;
  readonly #listenerPorts = new Map<string, number>();
  readonly #edgeRecords = new ConnectionRecords();
  readonly #agentRecords = new ConnectionRecords();
  #edge: PairedProgram | undefined;
  #agent: PairedProgram | undefined;
  readonly #otherAgents: PairedProgram[] = [];

  private constructor(
    options: SallyportPairOptions,
    { path, remove }: { readonly path: string; readonly remove: () => Promise<void> },
  ) {
    this.#options = options;
    this.#nodePath = options.nodePath ?? process.env.SALLYPORT_TEST_NODE ?? process.execPath;
    this.directory = path;
    this.#removeDirectory = remove;
  }

  /** Resolves when every deployment can serve: the edge's `/readyz` answers 200. */
  static async start(options: SallyportPairOptions): Promise<SallyportPair> {
    const pair = new SallyportPair(options, await makeTempDir());
    try {
      await pair.#startBoth();
      return pair;
    } catch (error) {
      const said = [pair.#edge, pair.#agent].map((program) => program?.process.tail).join("\n---\n");
      await pair.stop();
      throw new Error(`${String(error)}\n--- edge and agent said:\n${said}`, { cause: error });
    }
  }

  get edge(): PairedProgram {
    return started(this.#edge, "edge");
  }

  get agent(): PairedProgram {
    return started(this.#agent, "agent");
  }

  get credentialsPath(): string {
    return join(this.directory, "dmz.credentials");
  }

  /** The loopback port on which the deployment of this name listens. */
  listenerPort(deployment: string): number {
    const port = this.#listenerPorts.get(deployment);
    if (port === undefined) throw new Error(`no deployment ${deployment}`);
    return port;
  }

  /** The connection records that both programs have written so far. */
  records(): PairRecords {
    return { edge: this.#edgeRecords.all, agent: this.#agentRecords.all };
  }

  /** The edge's connection records of one deployment, once there are at least `count` of them. */
  waitForEdgeRecords(deployment: string, count: number, timeoutMs = 15_000): Promise<readonly LogRecord[]> {
    return pollUntil(
      () => {
        const records = this.#edgeRecords.all.filter((record) => record.deployment === deployment);
        return records.length >= count ? records : undefined;
      },
      { what: `${count} connection records of ${deployment}`, timeoutMs },
    );
  }

  /** All of the agent's connection records, once there are at least `count` of them. */
  waitForAgentRecords(count: number, timeoutMs = 15_000): Promise<readonly LogRecord[]> {
    return pollUntil(() => (this.#agentRecords.all.length >= count ? this.#agentRecords.all : undefined), {
      what: `${count} connection records of the agent`,
      timeoutMs,
    });
  }

  /** The edge's metrics in Prometheus' text format. */
  async edgeMetrics(): Promise<string> {
    return (await httpGet(this.edge.metricsPort, "/metrics")).body;
  }

  async agentMetrics(): Promise<string> {
    return (await httpGet(this.agent.metricsPort, "/metrics")).body;
  }

  /** Resolves when the edge's `/readyz` answers 200. */
  async waitUntilReady(timeoutMs = 15_000): Promise<void> {
    await pollUntil(
      async () => {
        const answer = await httpGet(this.edge.metricsPort, "/readyz");
        if (answer.status === 200) return true;
        throw new Error(`/readyz: ${answer.status} ${answer.body.trim()}`);
      },
      { what: "the edge's readiness", timeoutMs },
    );
  }

  /** Runs one of the programs' commands with the pair's configuration file, and rejects unless it exits with 0. */
  async command(program: "edge" | "agent", args: readonly string[], input?: string): Promise<string> {
    const { stdout } = await runSuccessfully({
      command: this.#nodePath,
      args: [program === "edge" ? edgeProgram : agentProgram, ...args],
      cwd: this.directory,
      timeoutMs: 20_000,
      ...(input === undefined ? {} : { input }),
    });
    return stdout;
  }

  /** Starts the edge again after `edge.process.stop()`. */
  async restartEdge(): Promise<void> {
    this.#edge = await this.#serveEdge(this.edge.configPath, this.edge.metricsPort);
  }

  /** Starts the agent again after `agent.process.stop()`. */
  async restartAgent(): Promise<void> {
    this.#agent = await this.#runAgent(this.agent.configPath, this.agent.metricsPort);
  }

  /** Pairs and starts an agent of another client, which edge.yaml declares; the pair stops it with the others. */
  async addAgent(client: string, services: Readonly<Record<string, string>>): Promise<PairedProgram> {
    const credentialsFile = join(this.directory, `${client}.credentials`);
    const line = await this.command("edge", ["pair", client, "--config", this.edge.configPath]);
    await this.command("agent", ["join", "--out", credentialsFile], line);
    const metricsPort = await findFreePort();
    const configPath = await this.#writeConfig(`${client}.yaml`, {
      name: `agent-of-${client}`,
      stateDir: await this.#makeStateDir(client),
      edges: [{ credentialsFile }],
      services,
      metrics: { listen: `127.0.0.1:${metricsPort}` },
    });
    const agent = await this.#runAgent(configPath, metricsPort);
    this.#otherAgents.push(agent);
    return agent;
  }

  async stop(): Promise<void> {
    const agents = [this.#agent, ...this.#otherAgents];
    await Promise.all([...agents.map((agent) => agent?.process.stop()), this.#edge?.process.stop()]);
    await this.#removeDirectory();
  }

  async #startBoth(): Promise<void> {
    const edgeMetricsPort = await findFreePort();
    const edgeConfigPath = await this.#writeConfig("edge.yaml", await this.#edgeConfig(edgeMetricsPort));
    this.#edge = await this.#serveEdge(edgeConfigPath, edgeMetricsPort);
    const hasAgent = this.#options.deployments.some(({ direct }) => direct !== true);
    if (hasAgent) {
      const pairingLine = await this.command("edge", ["pair", "lan", "--config", edgeConfigPath]);
      if (!PAIRING_LINE.test(pairingLine.trim())) throw new Error("pair: not one pairing line alone");
      await this.command("agent", ["join", "--out", this.credentialsPath], pairingLine);
      const agentMetricsPort = await findFreePort();
      const agentConfigPath = await this.#writeConfig("agent.yaml", await this.#agentConfig(agentMetricsPort));
      this.#agent = await this.#runAgent(agentConfigPath, agentMetricsPort);
    }
    await this.waitUntilReady();
  }

  async #edgeConfig(metricsPort: number): Promise<Record<string, unknown>> {
    const tunnelPort = await findFreePort();
    const publicAddress = (await this.#options.publicAddress?.(tunnelPort)) ?? `127.0.0.1:${tunnelPort}`;
    for (const { name, listener } of this.#options.deployments) {
      this.#listenerPorts.set(name, listener === undefined ? await findFreePort() : this.listenerPort(listener));
    }
    return {
      name: "edge-under-test",
      stateDir: await this.#makeStateDir("edge"),
      tunnels: [{ name: "dmz", listen: `127.0.0.1:${tunnelPort}`, publicAddress }],
      clients: [{ name: "lan" }],
      ipFilters: [{ name: "loopback", default: "block", rules: [{ action: "allow", cidr: "127.0.0.0/8" }] }],
      listeners: this.#options.deployments
        .filter(({ listener }) => listener === undefined)
        .map(({ name, listenerConfig }) => ({
          name,
          listen: `127.0.0.1:${this.listenerPort(name)}`,
          ipFilter: "loopback",
          ...listenerConfig,
        })),
      deployments: this.#options.deployments.map(({ name, listener, target, direct, hold, settings }) => ({
        name,
        listener: listener ?? name,
        target,
        ...(direct === true ? {} : { via: { tunnel: "dmz", client: "lan" } }),
        hold: hold ?? { timeout: "0s" },
        startup: "auto",
        ...settings,
      })),
      metrics: { listen: `127.0.0.1:${metricsPort}` },
      ...this.#options.edgeConfig,
    };
  }

  async #agentConfig(metricsPort: number): Promise<Record<string, unknown>> {
    const services = this.#options.services ?? {};
    const allow = this.#options.deployments
      .filter(({ target, direct }) => direct !== true && !(target in services))
      .map(({ target }) => target);
    return {
      name: "agent-under-test",
      stateDir: await this.#makeStateDir("agent"),
      edges: [{ credentialsFile: this.credentialsPath }],
      ...(this.#options.links === undefined ? {} : { links: this.#options.links }),
      services,
      allow,
      metrics: { listen: `127.0.0.1:${metricsPort}` },
      ...this.#options.agentConfig,
    };
  }

  async #makeStateDir(program: string): Promise<string> {
    const path = join(this.directory, program);
    await mkdir(path, { mode: 0o700 });
    return path;
  }

  /** JSON is YAML, so that nothing needs quoting by hand. */
  async #writeConfig(fileName: string, config: Record<string, unknown>): Promise<string> {
    const path = join(this.directory, fileName);
    await writeFile(path, `${JSON.stringify(config, undefined, 2)}\n`, { mode: 0o600 });
    return path;
  }

  async #serveEdge(configPath: string, metricsPort: number): Promise<PairedProgram> {
    const edge = await this.#startProgram("edge", configPath, metricsPort);
    try {
      await edge.process.waitForLine(/"msg":"ready"/);
      return edge;
    } catch (error) {
      await edge.process.stop();
      throw error;
    }
  }

  #runAgent(configPath: string, metricsPort: number): Promise<PairedProgram> {
    return this.#startProgram("agent", configPath, metricsPort);
  }

  async #startProgram(program: "edge" | "agent", configPath: string, metricsPort: number): Promise<PairedProgram> {
    const command = program === "edge" ? [edgeProgram, "serve"] : [agentProgram, "run"];
    const records = program === "edge" ? this.#edgeRecords : this.#agentRecords;
    const testProcess = await TestProcess.start({
      command: this.#nodePath,
      args: [...(this.#options.nodeArgs ?? []), ...command, "--config", configPath],
      cwd: this.directory,
      onLine: (line) => {
        records.take(line);
        this.#options.onLine?.(program, line);
      },
    });
    return { process: testProcess, configPath, metricsPort };
  }
}

function started(program: PairedProgram | undefined, name: string): PairedProgram {
  if (program === undefined) throw new Error(`the ${name} of this pair was never started`);
  return program;
}

async function httpGet(port: number, path: string): Promise<{ status: number; body: string }> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    headers: { connection: "close" },
    signal: AbortSignal.timeout(5000),
  });
  return { status: response.status, body: await response.text() };
}
