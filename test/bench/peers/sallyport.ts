/**
 * The product as it is built, with its default settings: IP filter, limits, counters, records and metrics are on, and the
 * records go into a file. `mode` says whether the edge dials the target itself or an agent does.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runSuccessfully } from "../../support/child-process.ts";
import { findFreePort } from "../../support/free-port.ts";
import type { Peer } from "../peer.ts";
import type { PeerRun } from "../peer-run.ts";

export interface SallyportOptions {
  readonly id: string;
  readonly title: string;
  /** The root of a checkout that is built. */
  readonly root: string;
  readonly mode: "direct" | "tunnelled";
  /** Further top-level keys of agent.yaml, and of edge.yaml. */
  readonly agentConfig?: Readonly<Record<string, unknown>>;
  readonly edgeConfig?: Readonly<Record<string, unknown>>;
  readonly onlyGroups?: readonly string[];
}

export function sallyport(options: SallyportOptions): Peer {
  const { id, title, root, mode, agentConfig = {}, edgeConfig = {}, onlyGroups } = options;
  const changed = [...changesOf("agent", agentConfig), ...changesOf("edge", edgeConfig)];
  return {
    id,
    title,
    kind: mode === "direct" ? "relay" : "tunnel",
    protection: mode === "direct" ? "none" : "TLS 1.3, authenticated both ways",
    settings: changed.length === 0 ? "default" : changed.join(", "),
    programs: [],
    isOurs: true,
    ...(onlyGroups === undefined ? {} : { onlyGroups }),
    unavailable: () => unavailable(root, Object.keys(agentConfig)),
    version: async () => version(root),
    start: (run) => start(run, options),
  };
}

function changesOf(program: string, config: Readonly<Record<string, unknown>>): string[] {
  return Object.entries(config).map(([key, value]) => `${program}: ${key}: ${JSON.stringify(value)}`);
}

function unavailable(root: string, agentKeys: readonly string[]): string | undefined {
  if (!existsSync(join(root, "packages/agent/dist/cli.js"))) return `${root} is not built`;
  const schema = JSON.parse(readFileSync(join(root, "packages/agent/schema/agent.schema.json"), "utf8")) as {
    readonly properties: Readonly<Record<string, unknown>>;
  };
  const unknown = agentKeys.find((key) => !(key in schema.properties));
  return unknown === undefined ? undefined : `the agent has no setting \`${unknown}\``;
}

function version(root: string): string {
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { readonly version: string };
  try {
    const git = (...args: string[]) =>
      execFileSync("git", ["-C", root, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
    const changed = git("status", "--porcelain", "--", "packages") === "" ? "" : " with changes";
    return `${version} at ${git("rev-parse", "--short", "HEAD")}${changed}`;
  } catch {
    return version;
  }
}

async function start(
  run: PeerRun,
  { root, mode, agentConfig, edgeConfig }: SallyportOptions,
): Promise<ReadonlyMap<string, number>> {
  const edgeProgram = join(root, "packages/edge/bin/sallyport-edge.js");
  const agentProgram = join(root, "packages/agent/bin/sallyport-agent.js");
  const node = process.execPath;
  const ports = new Map<string, number>();
  for (const { name } of run.routes) ports.set(name, await findFreePort());
  const tunnel = { host: run.site.edgeHost, port: await findFreePort(run.site.edgeHost) };
  const publicAddress = await run.dialled(tunnel);
  const edgeConfigPath = run.path("edge.yaml");
  // JSON is YAML, so that nothing needs quoting by hand.
  const edge = {
    name: "edge",
    stateDir: await run.makeDirectory("edge"),
    ipFilters: [{ name: "loopback", default: "block", rules: [{ action: "allow", cidr: "127.0.0.0/8" }] }],
    listeners: run.routes.map(({ name }) => ({ name, listen: `127.0.0.1:${ports.get(name)}`, ipFilter: "loopback" })),
    deployments: run.routes.map(({ name, port }) => ({
      name,
      listener: name,
      ...(mode === "direct"
        ? { target: `${run.site.targetHost}:${port}` }
        : { target: name, via: { tunnel: "dmz", client: "lan" } }),
    })),
    ...(mode === "direct"
      ? {}
      : {
          tunnels: [
            {
              name: "dmz",
              listen: `${tunnel.host}:${tunnel.port}`,
              publicAddress: `${publicAddress.host}:${publicAddress.port}`,
            },
          ],
          clients: [{ name: "lan" }],
        }),
    metrics: { listen: `127.0.0.1:${await findFreePort()}` },
    ...edgeConfig,
  };
  await writeFile(edgeConfigPath, JSON.stringify(edge), { mode: 0o600 });
  const logged = (name: string) => ({ outputFile: run.path(name), cwd: run.path(".") });
  if (mode === "direct") {
    await run.launch("edge", {
      command: node,
      args: [edgeProgram, "serve", "--config", edgeConfigPath],
      ...logged("edge.log"),
    });
    return ports;
  }
  const { stdout: pairingLine } = await runSuccessfully({
    command: node,
    args: [edgeProgram, "pair", "lan", "--config", edgeConfigPath],
  });
  const credentialsFile = run.path("dmz.credentials");
  await runSuccessfully({ command: node, args: [agentProgram, "join", "--out", credentialsFile], input: pairingLine });
  const agentConfigPath = run.path("agent.yaml");
  const agent = {
    name: "agent",
    stateDir: await run.makeDirectory("agent"),
    edges: [{ credentialsFile }],
    services: Object.fromEntries(run.routes.map(({ name, port }) => [name, `${run.site.targetHost}:${port}`])),
    metrics: { listen: `127.0.0.1:${await findFreePort()}` },
    ...agentConfig,
  };
  await writeFile(agentConfigPath, JSON.stringify(agent), { mode: 0o600 });
  await run.launch("edge", {
    command: node,
    args: [edgeProgram, "serve", "--config", edgeConfigPath],
    ...logged("edge.log"),
  });
  await run.untilAccepted(tunnel.host, tunnel.port);
  await run.launch("agent", {
    command: node,
    args: [agentProgram, "run", "--config", agentConfigPath],
    ...logged("agent.log"),
  });
  return ports;
}
