// `npm start`: the main job on this machine alone. An edge and an agent run as processes of their own, paired by their own
// commands, and carry connections through a real tunnel to an HTTP target that lives in this process.
//
//   curl ─► edge (listener, IP filter) ═ TLS tunnel ═ agent (its own list of services) ─► HTTP target
//
// Ctrl-C stops all of it. Files are in a temporary directory, which is removed at the end.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer as createHttpServer } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const edgeProgram = join(root, "packages/edge/bin/sallyport-edge.js");
const agentProgram = join(root, "packages/agent/bin/sallyport-agent.js");

/** How long each program has to start, and to stop before it is killed. */
const START_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 5_000;

/**
 * Given to each program by --import: it ends when this process is gone, however that came about, because the pipe between
 * them closes then. The pipe does not keep the program alive by itself.
 */
const endWithParent = `data:text/javascript,${encodeURIComponent(
  'import{Socket}from"node:net";' +
    'new Socket({fd:3}).on("error",()=>{}).on("close",()=>process.exit(0)).resume().unref()',
)}`;

/** A reason fit for the person who typed `npm start`. */
class DemoError extends Error {}

const children = new Set();
let target;
let directory;
let stopping = false;

process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});
process.on("SIGINT", () => void stop(0));
process.on("SIGTERM", () => void stop(0));
process.on("uncaughtException", (error) => fail(error));

try {
  await main();
} catch (error) {
  fail(error);
}

async function main() {
  if (!existsSync(join(root, "packages/edge/dist/cli.js")) || !existsSync(join(root, "packages/agent/dist/cli.js"))) {
    throw new DemoError("the programs are not built; run `npm ci` first");
  }
  target = await startTarget();
  const [listenerPort, tunnelPort, metricsPort] = await freePorts(3);
  directory = await mkdtemp(join(tmpdir(), "sallyport-demo-"));
  const edgeState = join(directory, "edge");
  const agentState = join(directory, "agent");
  await mkdir(edgeState, { mode: 0o700 });
  await mkdir(agentState, { mode: 0o700 });
  const edgeConfig = join(directory, "edge.yaml");
  const agentConfig = join(directory, "agent.yaml");
  const credentials = join(agentState, "demo-edge.credentials");
  // JSON texts are YAML as well, whatever characters the path of the temporary directory has.
  await writeFile(
    edgeConfig,
    `name: demo-edge
stateDir: ${JSON.stringify(edgeState)}
tunnels:
  - { name: dmz, listen: "127.0.0.1:${tunnelPort}" }
clients:
  - name: lan
ipFilters:
  - name: this-machine
    default: block
    rules:
      - { action: allow, cidr: 127.0.0.0/8, description: loopback }
listeners:
  - { name: web, listen: "127.0.0.1:${listenerPort}", ipFilter: this-machine }
deployments:
  - { name: web, listener: web, target: web, via: { tunnel: dmz, client: lan } }
metrics: { listen: "127.0.0.1:${metricsPort}" }
`,
  );
  await writeFile(
    agentConfig,
    `name: demo-agent
stateDir: ${JSON.stringify(agentState)}
edges:
  - credentialsFile: ${JSON.stringify(credentials)}
services:
  web: 127.0.0.1:${target.address().port}
`,
  );

  await startProgram("edge", [edgeProgram, "serve", "--config", edgeConfig], (record) => {
    if (record.msg === "connection") print(describeConnection(record));
  });
  const pairingLine = await run([edgeProgram, "pair", "lan", "--config", edgeConfig]);
  await run([agentProgram, "join", "--out", credentials], pairingLine);
  await startProgram("agent", [agentProgram, "run", "--config", agentConfig]);
  await untilReady(`http://127.0.0.1:${metricsPort}/readyz`);
  if (stopping) return;

  print(`An edge and an agent run on this machine, paired, with a tunnel between them.

  partner ─► edge 127.0.0.1:${listenerPort} ═ TLS tunnel :${tunnelPort} ═ agent ─► target 127.0.0.1:${target.address().port}

Try, in another terminal:

  curl http://127.0.0.1:${listenerPort}/
  curl http://127.0.0.1:${metricsPort}/metrics
  npx sallyport-edge status --config ${edgeConfig}
  npx sallyport-edge test-ip this-machine 192.0.2.1 --config ${edgeConfig}

Ctrl-C stops everything. One line for each partner connection, at its end:
`);
}

/** The private target: only the agent knows where it is. */
async function startTarget() {
  const server = createHttpServer((request, response) => {
    response.setHeader("content-type", "text/plain; charset=utf-8");
    response.end(
      `Hello from the private target.\n${request.method} ${request.url} came through the tunnel; ` +
        "this server never heard from you directly.\n",
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

/** Ports that are free now. All are held until the last is known, so that they differ. */
async function freePorts(count) {
  const servers = Array.from({ length: count }, () => createTcpServer());
  for (const server of servers) {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
  }
  const ports = servers.map((server) => server.address().port);
  for (const server of servers) {
    server.close();
    await once(server, "close");
  }
  return ports;
}

function launch(args, stdin) {
  const child = spawn(process.execPath, ["--import", endWithParent, ...args], {
    stdio: [stdin, "pipe", "pipe", "pipe"],
    cwd: directory,
    windowsHide: true,
  });
  children.add(child);
  child.once("close", () => children.delete(child));
  child.on("error", () => undefined);
  child.stdio[3].on("error", () => undefined);
  return child;
}

/** Starts a program that stays; resolves when it logs that it is ready. */
async function startProgram(name, args, onRecord = () => undefined) {
  const child = launch(args, "ignore");
  let lastError = "";
  createInterface({ input: child.stderr }).on("line", (line) => {
    lastError = line;
  });
  const ended = once(child, "close").then(([code]) => {
    if (!stopping)
      fail(new DemoError(`the ${name} ended (exit code ${code})${lastError === "" ? "" : `: ${lastError}`}`));
  });
  const ready = new Promise((resolve) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const record = parseRecord(line);
      if (record === undefined) return;
      if (record.msg === "ready") resolve();
      onRecord(record);
    });
  });
  await within(Promise.race([ready, ended]), `the ${name} did not become ready`);
}

/** Runs a command to its end and returns what it printed. */
async function run(args, input = "") {
  const child = launch(args, "pipe");
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk) => (stdout += chunk));
  child.stderr.on("data", (chunk) => (stderr += chunk));
  child.stdin.on("error", () => undefined);
  child.stdin.end(input);
  const [code] = await within(once(child, "close"), `\`${args[1]}\` did not end`);
  if (code !== 0) throw new DemoError(`\`${args[1]}\` failed (exit code ${code}): ${stderr.trim()}`);
  return stdout;
}

/** The edge says that it is ready as soon as it listens; connections need the agent as well. */
async function untilReady(url) {
  const endsAt = Date.now() + START_TIMEOUT_MS;
  let reasons = "no answer";
  for (;;) {
    if (stopping) return;
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(2_000) });
      reasons = (await response.text()).trim();
      if (response.ok) return;
    } catch {
      // It may still be about to listen.
    }
    if (Date.now() > endsAt) throw new DemoError(`the edge did not become ready: ${reasons}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function within(promise, otherwise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(
      () => reject(new DemoError(`${otherwise} within ${START_TIMEOUT_MS / 1_000} s`)),
      START_TIMEOUT_MS,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function parseRecord(line) {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

function describeConnection(record) {
  const at = new Date(record.time).toLocaleTimeString("en-GB");
  const way = [record.partner, record.deployment, record.address ?? record.target].join(" → ");
  const bytes = `${record.bytesIn} B in, ${record.bytesOut} B out, ${Math.round(record.totalMs)} ms`;
  return `${at}  ${way}  ${bytes}  ${record.code} ${record.reason}`;
}

function print(text) {
  process.stdout.write(`${text}\n`);
}

function fail(error) {
  if (stopping) return;
  const reason =
    error instanceof DemoError || error?.syscall !== undefined ? error.message : (error?.stack ?? String(error));
  process.stderr.write(`error: demo: ${reason}\n`);
  void stop(1);
}

/** Ends the programs, agent first, each by its own id, and removes the directory. */
async function stop(exitCode) {
  if (stopping) return;
  stopping = true;
  process.exitCode = exitCode;
  for (const child of [...children].toReversed()) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const closed = once(child, "close");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
    child.kill("SIGTERM");
    await closed;
    clearTimeout(timer);
  }
  target?.close();
  target?.closeAllConnections();
  if (directory !== undefined) await rm(directory, { recursive: true, force: true, maxRetries: 3 });
  process.exit(exitCode);
}
