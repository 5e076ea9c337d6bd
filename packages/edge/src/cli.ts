/** The command line of the edge (docs/operations.md). */
import { constants } from "node:os";
import {
  adminRequest,
  createLogger,
  ExitCode,
  Failure,
  leave,
  loadStateDir,
  NotRunning,
  notifyService,
  packageVersion,
  parseIpAddress,
  printJson,
  printTable,
  program,
  runProgram,
} from "@sallyport/host";
import { addAdmissionCommands } from "./admission-cli.ts";
import { loadTunnelCertificate } from "./certificate.ts";
import { ClientStore } from "./client-store.ts";
import { type EdgeConfig, edgeConfigSchema, loadEdgeConfig } from "./config.ts";
import { deploymentSettings, ipFilters } from "./deployment-settings.ts";
import { Edge } from "./edge.ts";
import type { IpFilterDecision } from "./ip-filter.ts";
import { type PairResult, pairClient, rotateClient } from "./pairing.ts";

interface ConfigOption {
  readonly config: string;
}
interface OutputOptions extends ConfigOption {
  readonly json?: boolean;
}

const DEFAULT_CONFIG = "/etc/sallyport/edge.yaml";

/** Exit code 0 after a drain, 128 + the signal's number (130 for SIGINT, 143 for SIGTERM) when a second one cut it short. */
async function serve({ config: path }: ConfigOption): Promise<void> {
  const config = loadEdgeConfig(path);
  const log = createLogger({ name: config.name, level: config.log.level });
  const edge = await Edge.start(path, log, config);
  // Whatever ends the process, a defect of ours included: the kernel closes what is open with a FIN, and a transfer that
  // was cut would look complete.
  process.prependOnceListener("exit", () => edge.cut());
  log.info({ deployments: edge.deployments.size }, "ready");
  notifyService("READY=1");

  let exitCode: number = ExitCode.ok;
  const done = new Promise<void>((resolve) => {
    const onSignal = (signal: NodeJS.Signals) => {
      if (edge.stopping) {
        exitCode = 128 + constants.signals[signal];
        log.warn({ signal }, "stopping at once");
        void edge.stop({ drain: false }).then(resolve);
        return;
      }
      log.info({ signal }, "draining");
      notifyService("STOPPING=1");
      void edge.stop({ drain: true }).then(resolve);
    };
    process.on("SIGTERM", onSignal);
    process.on("SIGINT", onSignal);
  });
  // Without a listener of ours, SIGUSR1 would open Node's debugger.
  process.on("SIGUSR1", () => void edge.accessLog?.reopen());
  process.on("SIGHUP", () => {
    void edge.accessLog?.reopen();
    edge.reload().catch((error: unknown) => {
      if (!(error instanceof Failure)) throw error;
      log.error({ where: error.where, reason: error.what }, "configuration not reloaded; the old one stays");
    });
  });
  await done;
  log.info("stopped");
  process.exitCode = exitCode;
  await leave(exitCode);
}

async function check({ config: path, json }: OutputOptions): Promise<void> {
  const config = loadEdgeConfig(path);
  // Those of an operator only: one that is still to be generated is made when the edge starts.
  for (const tunnel of config.tunnels) {
    if (tunnel.tls !== undefined) await loadTunnelCertificate(tunnel, config.stateDir);
  }
  const listeners = new Map(config.listeners.map((listener) => [listener.name, listener]));
  const plan = deploymentSettings(config).map((settings) => ({
    deployment: settings.name,
    listen: listenText(listeners.get(settings.listener)?.listen),
    target: settings.pool.targets.map(({ target }) => target).join(", "),
    via: settings.via === undefined ? "direct" : `${settings.via.tunnel}/${settings.via.clients.join(",")}`,
    startup: settings.startup,
    filter: listeners.get(settings.listener)?.ipFilter ?? "none (all are allowed)",
  }));
  const tunnels = config.tunnels.map(({ name, listen }) => ({ tunnel: name, listen: `${listen.host}:${listen.port}` }));
  if (json) return printJson({ valid: true, deployments: plan, tunnels });
  printTable(plan);
  printTable(tunnels);
}

function listenText(listen: { readonly host: string; readonly port: number } | undefined): string {
  return listen === undefined ? "" : `${listen.host}:${listen.port}`;
}

/** Asks the running edge; when none runs, works on the configuration and the state directory itself. */
async function throughEdgeOrDirectly<T>(
  path: string,
  request: { method?: "GET" | "POST"; path: string; body?: object },
  directly: (config: EdgeConfig) => Promise<T> | T,
): Promise<T> {
  try {
    return (await ask(path, { method: "POST", ...request })) as T;
  } catch (error) {
    if (!(error instanceof NotRunning)) throw error;
    return directly(loadEdgeConfig(path));
  }
}

async function ask(path: string, request: { method?: "GET" | "POST"; path: string; body?: object }): Promise<unknown> {
  const stateDir = loadStateDir(path, { schema: edgeConfigSchema, stateDir: edgeConfigSchema.shape.stateDir });
  return adminRequest({ stateDir, program: "sallyport-edge" }, { method: "GET", ...request });
}

function printTargets(answer: TargetsAnswer, json: boolean | undefined): void {
  if (json) return printJson(answer);
  printTable(answer.targets);
}

function printPairing({ line, client, tokenId }: PairResult): void {
  process.stdout.write(`${line}\n`);
  // On standard error, so that standard output can be piped into `join`.
  process.stderr.write(`token ${tokenId} of client ${client}; the line above is its only copy\n`);
}

const cli = program(
  "sallyport-edge",
  "Accepts partner connections in the DMZ and forwards them to private targets.",
).version(packageVersion(import.meta.url));
const command = (name: string, description: string) =>
  cli.command(name).description(description).option("--config <file>", "configuration file", DEFAULT_CONFIG);

command("serve", "run the edge in the foreground").action(serve);
command("check", "validate the configuration and its certificates without binding anything")
  .option("--json", "print JSON")
  .action(check);
command("pair <client>", "make the first token of a client; prints the pairing line for `sallyport-agent join`")
  .option("--tunnel <name>", "the tunnel that the agent reaches; needed when there are several")
  .action(async (client: string, options: ConfigOption & { tunnel?: string }) => {
    const { tunnel } = options;
    const result = await throughEdgeOrDirectly<PairResult>(
      options.config,
      { path: "/clients/pair", body: { client, ...(tunnel === undefined ? {} : { tunnel }) } },
      async (config) => pairClient({ config, clients: await ClientStore.open(config.stateDir), client, tunnel }),
    );
    printPairing(result);
  });

const client = cli.command("client").description("paired identities");
const clientCommand = (name: string, description: string) =>
  client.command(name).description(description).option("--config <file>", "configuration file", DEFAULT_CONFIG);
clientCommand("list", "clients, their tokens and whether an agent is connected")
  .option("--json", "print JSON")
  .action(async ({ config: path, json }: OutputOptions) => {
    const { clients } = await throughEdgeOrDirectly<ClientList>(
      path,
      { method: "GET", path: "/clients" },
      async (config) => {
        const stored = (await ClientStore.open(config.stateDir)).list();
        return {
          clients: config.clients.map(({ name }) => ({
            client: name,
            tokens: [...(stored.find((entry) => entry.client === name)?.tokens ?? [])],
          })),
        };
      },
    );
    if (json) return printJson({ clients });
    printTable(
      clients.map((entry) => ({
        client: entry.client,
        tokens:
          entry.tokens.map(({ tokenId, createdAt }) => `${tokenId} (${createdAt})`).join(", ") || "none: not paired",
        connected: entry.connected === undefined ? "edge not running" : entry.connected ? "yes" : "no",
      })),
    );
  });
clientCommand("rotate <client>", "make a second token; revoke the old one when the agent has joined with the new")
  .option("--tunnel <name>", "the tunnel that the agent reaches; needed when there are several")
  .action(async (name: string, options: ConfigOption & { tunnel?: string }) => {
    const { tunnel } = options;
    const result = await throughEdgeOrDirectly<PairResult>(
      options.config,
      { path: "/clients/rotate", body: { client: name, ...(tunnel === undefined ? {} : { tunnel }) } },
      async (config) =>
        rotateClient({ config, clients: await ClientStore.open(config.stateDir), client: name, tunnel }),
    );
    printPairing(result);
  });
clientCommand("revoke <client> [token]", "revoke one token (by its id) or all; links that used it are cut at once")
  .option("--json", "print JSON")
  .action(async (name: string, token: string | undefined, options: OutputOptions) => {
    const result = await throughEdgeOrDirectly<{ client: string; revoked: readonly string[] }>(
      options.config,
      { path: "/clients/revoke", body: { client: name, ...(token === undefined ? {} : { token }) } },
      async ({ stateDir }) => ({
        client: name,
        revoked: await (await ClientStore.open(stateDir)).revoke(name, token),
      }),
    );
    if (options.json) return printJson(result);
    process.stdout.write(`revoked ${result.revoked.join(", ")}\n`);
  });

command("status", "what the running edge does")
  .option("--json", "print JSON")
  .action(async ({ config, json }: OutputOptions) => {
    const status = (await ask(config, { path: "/status" })) as {
      name: string;
      ready: boolean;
      notReady: string[];
      connections: number;
      accessLog?: { dropped: number };
      agents: object[];
      deployments: object[];
    };
    if (json) return printJson(status);
    process.stdout.write(
      `${status.name}: ${status.ready ? "ready" : "not ready"}, ${status.connections} connections\n`,
    );
    for (const reason of status.notReady) process.stdout.write(`  ${reason}\n`);
    if ((status.accessLog?.dropped ?? 0) > 0) {
      process.stdout.write(`  ${status.accessLog?.dropped} lines of the access log were lost; is its disk full?\n`);
    }
    printTable(status.deployments.map(deploymentRow));
    printTable(status.agents);
  });
command("deployments", "deployments and their state")
  .option("--json", "print JSON")
  .action(async ({ config, json }: OutputOptions) => {
    const answer = (await ask(config, { path: "/deployments" })) as { deployments: object[] };
    if (json) return printJson(answer);
    printTable(answer.deployments.map(deploymentRow));
  });
command("connections", "live partner connections")
  .option("--json", "print JSON")
  .option("--deployment <name>", "only those of one deployment")
  .action(async ({ config, json, deployment }: OutputOptions & { deployment?: string }) => {
    const body = deployment === undefined ? {} : { deployment };
    const answer = (await ask(config, { method: "POST", path: "/connections", body })) as { connections: object[] };
    if (json) return printJson(answer);
    // No output at all would leave open whether the edge was asked.
    if (answer.connections.length === 0) process.stdout.write("no connections\n");
    else printTable(answer.connections);
  });
const connection = cli.command("connection").description("one partner connection");
connection
  .command("kill <id>")
  .description("reset a connection on both sides")
  .option("--config <file>", "configuration file", DEFAULT_CONFIG)
  .option("--json", "print JSON")
  .action(async (id: string, { config, json }: OutputOptions) => {
    const answer = await ask(config, { method: "POST", path: "/connections/kill", body: { connection: id } });
    if (json) return printJson(answer);
    process.stdout.write(`killed ${id}\n`);
  });

const deployment = cli.command("deployment").description("one deployment");
for (const verb of ["start", "stop", "restart"] as const) {
  const verbCommand = deployment
    .command(`${verb} <name>`)
    .description(`${verb} a deployment`)
    .option("--config <file>", "configuration file", DEFAULT_CONFIG)
    .option("--json", "print JSON");
  if (verb !== "start") verbCommand.option("--drain", "let its connections finish; without it they are reset");
  verbCommand.action(async (name: string, options: OutputOptions & { drain?: boolean }) => {
    const body = verb === "start" ? { name } : { name, drain: options.drain === true };
    const answer = (await ask(options.config, { method: "POST", path: `/deployments/${verb}`, body })) as object;
    if (options.json) return printJson(answer);
    printTable([deploymentRow(answer)]);
  });
}

const target = cli.command("target").description("the targets of a deployment");
const targetCommand = (usage: string, description: string) =>
  target
    .command(usage)
    .description(description)
    .option("--config <file>", "configuration file", DEFAULT_CONFIG)
    .option("--json", "print JSON");
targetCommand("list [deployment]", "targets, whether they are up, and what runs on them").action(
  async (name: string | undefined, { config, json }: OutputOptions) => {
    const body = name === undefined ? {} : { deployment: name };
    printTargets((await ask(config, { method: "POST", path: "/targets", body })) as TargetsAnswer, json);
  },
);
const stateMeanings = {
  ready: "take new connections and be checked",
  drain: "take no new connections; running ones go on",
  maint: "take no new connections and be checked no more; running ones go on",
};
for (const [state, meaning] of Object.entries(stateMeanings)) {
  targetCommand(`${state} <deployment> <target>`, meaning)
    .option("--client <name>", "only by the way through this client")
    .action(async (of: string, to: string, { config, json, client: by }: OutputOptions & { client?: string }) => {
      const body = { deployment: of, target: to, state, ...(by === undefined ? {} : { client: by }) };
      printTargets((await ask(config, { method: "POST", path: "/targets/set", body })) as TargetsAnswer, json);
    });
}
targetCommand("weight <deployment> <target> <weight>", "change the share of connections; 0: none")
  .option("--client <name>", "only by the way through this client")
  .action(
    async (of: string, to: string, text: string, { config, json, client: by }: OutputOptions & { client?: string }) => {
      if (!/^[0-9]{1,4}$/.test(text)) throw new Failure(ExitCode.usage, "weight", "must be a number from 0 to 1000");
      const body = { deployment: of, target: to, weight: Number(text), ...(by === undefined ? {} : { client: by }) };
      printTargets((await ask(config, { method: "POST", path: "/targets/set", body })) as TargetsAnswer, json);
    },
  );

command("test-ip <filter> <address>", "which rule of an IP filter decides over an address")
  .option("--json", "print JSON")
  .action(async (filter: string, address: string, { config, json }: OutputOptions) => {
    const answer = await throughEdgeOrDirectly<TestIpAnswer>(
      config,
      { path: "/test-ip", body: { filter, address } },
      (offline) => testIpOffline(offline, { path: config, filterName: filter, text: address }),
    );
    if (json) return printJson(answer);
    const { rule } = answer;
    const by =
      rule === undefined
        ? "the default of the filter"
        : `rule ${rule.index + 1}, ${rule.action} ${rule.cidr}${rule.description === "" ? "" : ` (${rule.description})`}`;
    process.stdout.write(`${answer.action}: ${answer.address} by ${by}\n`);
  });
addAdmissionCommands(cli, { throughEdgeOrDirectly, ask, defaultConfig: DEFAULT_CONFIG });
command("reload", "read the configuration file again, as SIGHUP does")
  .option("--json", "print JSON")
  .action(async ({ config, json }: OutputOptions) => {
    const answer = (await ask(config, { method: "POST", path: "/reload", body: {} })) as { restartNeeded: string[] };
    if (json) return printJson(answer);
    const { restartNeeded } = answer;
    process.stdout.write(
      restartNeeded.length === 0 ? "reloaded\n" : `reloaded; restart needed for: ${restartNeeded.join(", ")}\n`,
    );
  });

interface TargetsAnswer {
  readonly targets: readonly object[];
}

interface ClientList {
  readonly clients: readonly {
    readonly client: string;
    readonly tokens: readonly { readonly tokenId: string; readonly createdAt: string }[];
    /** Undefined while no edge runs. */
    readonly connected?: boolean;
  }[];
}

interface TestIpAnswer {
  readonly filter: string;
  readonly address: string;
  readonly action: string;
  readonly rule?: NonNullable<IpFilterDecision["rule"]>;
}

/** While no edge runs, the configuration file answers. */
function testIpOffline(
  config: EdgeConfig,
  { path, filterName, text }: { path: string; filterName: string; text: string },
): TestIpAnswer {
  const address = parseIpAddress(text);
  if (address === undefined) throw new Failure(ExitCode.usage, "address", "not a canonical IP address");
  const filter = ipFilters(config).get(filterName);
  if (filter === undefined) throw new Failure(ExitCode.usage, "filter", `${filterName} is not declared in ${path}`);
  return { filter: filterName, address: text, ...filter.explain(address) };
}

function deploymentRow(view: object): Record<string, unknown> {
  const {
    deployment,
    state,
    ready,
    listen,
    target: to,
    via,
    connections,
    accepted,
    refused,
    bytesIn,
    bytesOut,
  } = view as Record<string, unknown>;
  const through = via as { clients: readonly string[] } | undefined;
  return {
    deployment,
    state,
    ready,
    listen,
    target: to,
    client: through?.clients.join(", "),
    connections,
    accepted,
    refused,
    bytesIn,
    bytesOut,
  };
}

await runProgram(async () => {
  await cli.parseAsync();
  return Number(process.exitCode ?? ExitCode.ok);
});
