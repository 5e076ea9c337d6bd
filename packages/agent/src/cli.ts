/** The command line of the agent (docs/operations.md). */
import { constants } from "node:os";
import {
  adminRequest,
  createLogger,
  ExitCode,
  Failure,
  formatHostPort,
  leave,
  loadStateDir,
  type Logger,
  notifyService,
  packageVersion,
  printJson,
  printTable,
  program,
  runProgram,
} from "@sallyport/host";
import { parsePairingLine } from "@sallyport/tunnel";
import { Agent } from "./agent.ts";
import { agentConfigSchema, loadAgentConfig } from "./config.ts";
import { readCredentials, writeCredentials } from "./credentials-file.ts";
import { readPairingLine } from "./standard-input.ts";

interface ConfigOption {
  readonly config: string;
}
interface OutputOptions extends ConfigOption {
  readonly json?: boolean;
}

const DEFAULT_CONFIG = "/etc/sallyport/agent.yaml";

async function join(options: { out: string; force?: boolean; json?: boolean }): Promise<void> {
  if (process.stdin.isTTY) process.stderr.write("paste the pairing line and press Enter:\n");
  const text = await readPairingLine(process.stdin);
  let pairing: ReturnType<typeof parsePairingLine>;
  try {
    pairing = parsePairingLine(text);
  } catch (error) {
    // Its messages hold nothing of the line.
    throw new Failure(ExitCode.usage, "standard input", error instanceof Error ? error.message : "not a pairing line");
  }
  await writeCredentials(options.out, pairing, { force: options.force === true });
  const { address, client, pin } = pairing;
  if (options.json) return printJson({ file: options.out, address, client, pinned: pin !== undefined });
  process.stdout.write(
    `${options.out} written: client ${client} at edge ${address}, ` +
      `${pin === undefined ? "certificate checked by the system's authorities" : "certificate pinned"}\n` +
      "next: name the file under `edges` of the configuration, then `sallyport-agent check` and `sallyport-agent run`\n",
  );
}

/** Exit code 0 after a drain, 128 + the signal's number (130 for SIGINT, 143 for SIGTERM) when a second one cut it short. */
async function run({ config: path }: ConfigOption): Promise<number> {
  const config = loadAgentConfig(path);
  const log = createLogger({ name: config.name, level: config.log.level });
  const agent = await Agent.start(path, log, config);
  // Whatever ends the process, a defect of ours included: the kernel closes what is open with a FIN, and a transfer that
  // was cut would look complete.
  process.prependOnceListener("exit", () => agent.connections.shutDown());
  const stopped = stopOnSignals(agent, log);
  // Without a listener of ours, SIGUSR1 would open Node's debugger.
  process.on("SIGUSR1", () => void agent.accessLog?.reopen());
  process.on("SIGHUP", () => {
    void agent.accessLog?.reopen();
    reload(agent, log);
  });
  log.info({ edges: agent.edges.map(({ address }) => address), services: agent.config.services.size }, "ready");
  notifyService("READY=1");
  const exitCode = await stopped;
  log.info("stopped");
  await leave(exitCode);
  return exitCode;
}

function stopOnSignals(agent: Agent, log: Logger): Promise<number> {
  return new Promise((resolve) => {
    let exitCode = 0;
    const onSignal = (signal: NodeJS.Signals) => {
      const drain = !agent.stopping;
      if (drain) {
        log.info({ signal, connections: agent.connections.live.size }, "draining");
        notifyService("STOPPING=1");
      } else {
        log.warn({ signal }, "stopping at once");
        exitCode = 128 + constants.signals[signal];
      }
      void agent.stop({ drain }).then(() => resolve(exitCode));
    };
    process.on("SIGTERM", onSignal);
    process.on("SIGINT", onSignal);
  });
}

function reload(agent: Agent, log: Logger): void {
  try {
    agent.reload();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    log.error({ where: error.where, reason: error.what }, "configuration not reloaded; the old one stays");
  }
}

async function check({ config: path, json }: OutputOptions): Promise<void> {
  const config = loadAgentConfig(path);
  const edges: object[] = [];
  for (const { credentialsFile } of config.edges) {
    const { address, client, pin } = await readCredentials(credentialsFile);
    edges.push({
      edge: formatHostPort(address),
      client,
      certificate: pin === undefined ? "system's authorities" : "pinned",
      proxy: config.proxy?.url ?? "none",
      links: config.links,
    });
  }
  const services = [...config.services].map(([service, { target, maxConnections, dialsPerSecond }]) => ({
    service,
    target: formatHostPort(target),
    maxConnections,
    dialsPerSecond,
  }));
  const allow = config.allow.map(({ text }) => ({ allow: text }));
  if (json) return printJson({ valid: true, edges, services, allow: allow.map((rule) => rule.allow) });
  for (const table of [edges, services, allow]) if (table.length > 0) printTable(table);
}

async function ask(path: string, request: { method?: "GET" | "POST"; path: string; body?: object }): Promise<unknown> {
  const stateDir = loadStateDir(path, { schema: agentConfigSchema, stateDir: agentConfigSchema.shape.stateDir });
  return adminRequest({ stateDir, program: "sallyport-agent" }, { method: "GET", ...request });
}

async function status({ config, json }: OutputOptions): Promise<void> {
  const answer = (await ask(config, { path: "/status" })) as {
    name: string;
    ready: boolean;
    notReady: string[];
    connections: number;
    accessLog?: { dropped: number };
    forbidden: number;
    edges: object[];
    services: object[];
  };
  if (json) return printJson(answer);
  const { name, ready, connections, forbidden } = answer;
  process.stdout.write(
    `${name}: ${ready ? "ready" : "not ready"}, ${connections} connections, ${forbidden} forbidden targets\n`,
  );
  for (const reason of answer.notReady) process.stdout.write(`  ${reason}\n`);
  if ((answer.accessLog?.dropped ?? 0) > 0) {
    process.stdout.write(`  ${answer.accessLog?.dropped} lines of the access log were lost; is its disk full?\n`);
  }
  printTable(answer.edges);
  if (answer.services.length > 0) printTable(answer.services);
}

const cli = program("sallyport-agent", "Dials out to edges and connects their partners to private targets.").version(
  packageVersion(import.meta.url),
);
const command = (name: string, description: string) =>
  cli.command(name).description(description).option("--config <file>", "configuration file", DEFAULT_CONFIG);

cli
  .command("join")
  .description("read the pairing line of `sallyport-edge pair` from standard input and write a credentials file")
  .requiredOption("--out <file>", "credentials file to write, mode 0600")
  .option("--force", "replace a file that exists")
  .option("--json", "print JSON")
  .action(join);
let exitCode = 0;
command("run", "run the agent in the foreground").action(async (options: ConfigOption) => {
  exitCode = await run(options);
});
command("check", "validate the configuration and the credentials; prints what may be dialled")
  .option("--json", "print JSON")
  .action(check);
command("status", "what the running agent does").option("--json", "print JSON").action(status);
command("connections", "live connections to targets")
  .option("--json", "print JSON")
  .action(async ({ config, json }: OutputOptions) => {
    const answer = (await ask(config, { path: "/connections" })) as { connections: object[] };
    if (json) return printJson(answer);
    // No output at all would leave open whether the agent was asked.
    if (answer.connections.length === 0) process.stdout.write("no connections\n");
    else printTable(answer.connections);
  });
cli
  .command("connection")
  .description("one connection")
  .command("kill <id>")
  .description("reset a connection on both sides")
  .option("--config <file>", "configuration file", DEFAULT_CONFIG)
  .option("--json", "print JSON")
  .action(async (id: string, { config, json }: OutputOptions) => {
    const answer = await ask(config, { method: "POST", path: "/connections/kill", body: { connection: id } });
    if (json) return printJson(answer);
    process.stdout.write(`killed ${id}\n`);
  });
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

await runProgram(async () => {
  await cli.parseAsync();
  return exitCode;
});
