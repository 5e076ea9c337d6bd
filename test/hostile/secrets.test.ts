/**
 * The canary: a pair goes through everything that happens to pairs, well and badly, and then every word that any program
 * said, answered or wrote is searched for the secrets of that pair, in every spelling. The search proves itself by finding
 * them where they belong.
 */
import { once } from "node:events";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  createToken,
  decodeToken,
  deriveVerifier,
  encodeToken,
  formatPairingLine,
  parsePairingLine,
} from "../../packages/tunnel/src/index.ts";
import { runProcess, TestProcess } from "../support/child-process.ts";
import { withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { TcpServer } from "../support/tcp-server.ts";
import { inPairs } from "./in-pairs.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const programs = {
  edge: join(root, "packages/edge/bin/sallyport-edge.js"),
  agent: join(root, "packages/agent/bin/sallyport-agent.js"),
};

/** Where secrets belong; nothing else below the pair's directory may hold one. */
const SECRET_FILES = /\.credentials$|edge\/(clients\.json|tls\/)/;

let pair: SallyportPair;
let target: TcpServer;
/** What was said: where, and the words. */
const heard: [where: string, text: string][] = [];
/** Secrets by name, each in every spelling that a program could use. */
const secrets = new Map<string, readonly string[]>();

function spellings(bytes: Buffer): string[] {
  const base64 = bytes.toString("base64");
  return [
    bytes.toString("base64url"),
    base64,
    base64.replace(/=+$/, ""),
    encodeURIComponent(base64),
    bytes.toString("hex"),
    bytes.toString("hex").toUpperCase(),
    [...bytes].join(","),
    bytes.toString("latin1"),
    JSON.stringify(bytes.toString("latin1")).slice(1, -1),
    // Base64 of the base64url text, as in a header or an encoded file.
    Buffer.from(bytes.toString("base64url")).toString("base64").replace(/=+$/, "").slice(0, -1),
  ];
}

/** The token and the verifier that a pairing line carries, and the line itself. */
function learn(name: string, pairingLine: string): string {
  const line = pairingLine.trim();
  const { token, client } = parsePairingLine(line);
  const bytes = decodeToken(token)!;
  secrets.set(`${name} token`, spellings(bytes));
  secrets.set(`${name} verifier`, spellings(deriveVerifier(bytes, client).key));
  const [, , json] = line.split(":") as [string, string, string];
  secrets.set(`${name} pairing line`, [json, json.slice(0, 200), encodeURIComponent(line)]);
  return line;
}

/** Runs a command and keeps what it said; `isSecret` leaves its standard output, which is a pairing line, out. */
async function run(
  program: keyof typeof programs,
  args: readonly string[],
  { input, isSecret = false }: { input?: string; isSecret?: boolean } = {},
): Promise<{ code: number | null; stdout: string }> {
  const { code, stdout, stderr } = await runProcess({
    command: process.execPath,
    args: [programs[program], ...args],
    cwd: pair.directory,
    timeoutMs: 20_000,
    ...(input === undefined ? {} : { input }),
  });
  const where = `${program} ${args[0]} ${args[1] ?? ""} (${heard.length})`;
  heard.push([`stderr of ${where}`, stderr]);
  if (!isSecret) heard.push([`stdout of ${where}`, stdout]);
  return { code, stdout };
}

/** What the system tells other users of a process while it runs. */
async function look(name: string, { pid }: TestProcess): Promise<void> {
  for (const file of ["cmdline", "environ", "comm"]) {
    heard.push([`/proc of ${name}: ${file}`, await readFile(`/proc/${pid}/${file}`, "latin1")]);
  }
}

async function keep(name: string, { stdout, stderr }: TestProcess): Promise<void> {
  heard.push([`stdout of ${name}`, stdout], [`stderr of ${name}`, stderr]);
}

/** Asks everything that can be asked of the running programs. */
async function askEverything(): Promise<void> {
  const edge = ["--config", pair.edge.configPath];
  const agent = ["--config", pair.agent.configPath];
  const asked = [
    run("edge", ["status", "--json", ...edge]),
    run("edge", ["status", ...edge]),
    run("edge", ["deployments", "--json", ...edge]),
    run("edge", ["connections", "--json", ...edge]),
    run("edge", ["client", "list", "--json", ...edge]),
    run("edge", ["test-ip", "loopback", "127.0.0.1", "--json", ...edge]),
    run("agent", ["status", "--json", ...agent]),
    run("agent", ["connections", "--json", ...agent]),
    run("agent", ["check", "--json", ...agent]),
  ];
  for (const { code } of await Promise.all(asked)) expect(code).toBe(0);
  heard.push(["edge /metrics", await pair.edgeMetrics()], ["agent /metrics", await pair.agentMetrics()]);
  for (const { metricsPort } of [pair.edge, pair.agent]) {
    const answer = await fetch(`http://127.0.0.1:${metricsPort}/readyz`);
    heard.push(["/readyz", await answer.text()]);
  }
  await look("edge", pair.edge.process);
  await look("agent", pair.agent.process);
}

async function filesBelow(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { withFileTypes: true, recursive: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** Every secret that the text holds. */
function found(text: string): string[] {
  return [...secrets].filter(([, forms]) => forms.some((form) => text.includes(form))).map(([name]) => name);
}

async function traffic(): Promise<void> {
  const socket = connect(pair.listenerPort("echo"), "127.0.0.1");
  socket.on("error", () => undefined);
  socket.write("hello");
  await withDeadline(once(socket, "data"), { what: "echo" });
  // The target crashes in the middle of the connection.
  for (const open of target.sockets) open.resetAndDestroy();
  await socketEnding(socket);
}

let secondLine: string;

beforeAll(async () => {
  target = await startEchoServer();
  pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    edgeConfig: { log: { level: "trace" } },
    agentConfig: { log: { level: "trace" }, reconnect: { min: "50ms", max: "200ms" } },
  });
  const credentials = JSON.parse(await readFile(pair.credentialsPath, "utf8"));
  learn("first", formatPairingLine(credentials));
  for (const file of await filesBelow(join(pair.directory, "edge"))) {
    const key = /-----BEGIN [A-Z ]*PRIVATE KEY-----\n([\s\S]*?)-----END/.exec(await readFile(file, "utf8"))?.[1];
    if (key !== undefined) {
      const body = key.replaceAll("\n", "");
      secrets.set("private key", [...spellings(Buffer.from(body, "base64")), ...key.trim().split("\n")]);
    }
  }
});

afterAll(async () => {
  await pair?.stop();
  await target?.close();
});

describe("a pair's secrets", () => {
  test("are where they belong", async () => {
    expect([...secrets.keys()]).toEqual(["first token", "first verifier", "first pairing line", "private key"]);
    const held = new Set<string>();
    for (const file of await filesBelow(pair.directory)) {
      for (const name of found(await readFile(file, "latin1"))) held.add(`${relative(pair.directory, file)}: ${name}`);
    }
    expect([...held].filter((line) => line.endsWith("first token"))).toEqual(["dmz.credentials: first token"]);
    expect([...held].filter((line) => line.endsWith("first verifier"))).toHaveLength(1);
    expect([...held].filter((line) => line.endsWith("private key"))).toHaveLength(1);
    expect([...held].every((line) => SECRET_FILES.test(line.split(": ")[0]!))).toBe(true);
  });

  test("go through the life of a pair", async () => {
    const edge = ["--config", pair.edge.configPath];
    await traffic();
    // Rotation; the agent comes back with the new token, the old one is revoked.
    const rotated = await run("edge", ["client", "rotate", "lan", ...edge], { isSecret: true });
    secondLine = learn("second", rotated.stdout);
    const joined = await run("agent", ["join", "--force", "--out", pair.credentialsPath], { input: rotated.stdout });
    expect(joined.code).toBe(0);
    await keep("the agent with its first token", pair.agent.process);
    await pair.agent.process.stop();
    await pair.restartAgent();
    await pair.waitUntilReady();
    const list = await run("edge", ["client", "list", "--json", ...edge]);
    const [old] = JSON.parse(list.stdout).clients[0].tokens;
    await run("edge", ["client", "revoke", "lan", old.tokenId, ...edge]);
    await traffic();
    // A wrong token: the agent says so, again and again.
    const wrong = learn(
      "wrong",
      formatPairingLine({ ...parsePairingLine(secondLine), token: encodeToken(createToken()) }),
    );
    const right = await readFile(pair.credentialsPath, "utf8");
    await keep("the agent before its wrong token", pair.agent.process);
    await pair.agent.process.stop();
    await run("agent", ["join", "--force", "--out", pair.credentialsPath], { input: wrong });
    await pair.restartAgent();
    await pair.agent.process.waitForLine(/"msg":"not connected"/);
    await look("the agent with a wrong token", pair.agent.process);
    await keep("the agent with a wrong token", pair.agent.process);
    await pair.agent.process.stop();
    await writeFile(pair.credentialsPath, right, { mode: 0o600 });
    await pair.restartAgent();
    await pair.waitUntilReady();
    // Reloads, of a good file and of a bad one that holds a secret where it does not belong.
    await run("edge", ["reload", ...edge]);
    const good = await readFile(pair.edge.configPath, "utf8");
    await writeFile(pair.edge.configPath, good.replace('"127.0.0.0/8"', JSON.stringify(secondLine)));
    pair.edge.process.signal("SIGHUP");
    await pair.edge.process.waitForLine(/"msg":"configuration not reloaded/);
    await writeFile(pair.edge.configPath, good);
    await askEverything();
  }, 60_000);

  test("are pasted into wrong places", async () => {
    const token = parsePairingLine(secondLine).token;
    const edgeText = await readFile(pair.edge.configPath, "utf8");
    const agentText = await readFile(pair.agent.configPath, "utf8");
    const flipped = secondLine.replace(/[a-z](?=[^:]*:[0-9a-f]{8}$)/, (letter) => (letter === "q" ? "r" : "q"));
    const usages: [keyof typeof programs, string[], string?][] = [];
    const [edge, agent] = [
      ["--config", pair.edge.configPath],
      ["--config", pair.agent.configPath],
    ];
    usages.push(
      ["edge", ["serve", "--token", token]],
      ["edge", ["serve", `--token=${secondLine}`]],
      ["edge", [token]],
      ["edge", [`--${secondLine}`]],
      ["edge", ["serve", "--config", token]],
      ["edge", ["check", "--config", `/nowhere/${secondLine}/edge.yaml`]],
      ["edge", ["pair", token, ...edge]],
      ["edge", ["pair", secondLine, ...edge]],
      ["edge", ["client", "revoke", "lan", token, ...edge]],
      ["edge", ["deployment", "stop", secondLine, ...edge]],
      ["edge", ["connection", "kill", token, ...edge]],
      ["edge", ["test-ip", token, "127.0.0.1", ...edge]],
      ["edge", ["test-ip", "loopback", secondLine, ...edge]],
      ["agent", ["run", "--token", token]],
      ["agent", ["join", "--out", join(pair.directory, "x"), secondLine]],
      ["agent", ["join", "--out", `/nowhere/${token}`], secondLine],
      ["agent", ["run", "--config", secondLine]],
      ["agent", ["connection", "kill", token, ...agent]],
    );
    usages.push(
      ["agent", ["join", "--out", join(pair.directory, "x")], flipped],
      ["agent", ["join", "--out", join(pair.directory, "x")], token],
      ["agent", ["join", "--out", join(pair.directory, "x")], `${secondLine} ${secondLine}`],
      ["agent", ["join", "--out", join(pair.directory, "x")], secondLine.slice(0, -20)],
    );
    const codes = await inPairs(
      usages,
      async ([program, args, input = ""]) => (await run(program, args, { input })).code,
    );
    expect(codes.filter((code) => code === 0)).toEqual([]);

    const [quotedToken, quotedLine] = [JSON.stringify(token), JSON.stringify(secondLine)];
    const files: [keyof typeof programs, string][] = [
      ["edge", edgeText.replace('"metrics"', `"token": ${quotedToken}, "metrics"`)],
      ["edge", edgeText.replace('"metrics"', `${quotedToken}: 1, "metrics"`)],
      ["edge", edgeText.replace('"metrics"', `${quotedLine}: 1, "metrics"`)],
      ["edge", edgeText.replace(/"listen": "[^"]*"/, `"listen": ${quotedLine}`)],
      ["edge", edgeText.replace('"cidr": "127.0.0.0/8"', `"cidr": ${quotedToken}`)],
      ["edge", edgeText.replace(/"listener": "[^"]*"/, `"listener": ${quotedToken}`)],
      ["edge", `name: [${token}\n`],
      ["edge", `${secondLine}\n`],
      ["agent", agentText.replace(/"credentialsFile": "[^"]*"/, `"credentialsFile": ${quotedToken}`)],
      ["agent", agentText.replace(/"credentialsFile": "[^"]*"/, `"credentialsFile": ${quotedLine}`)],
      ["agent", agentText.replace('"allow": []', `"allow": [${quotedToken}]`)],
      ["agent", agentText.replace(/"echo": "[^"]*"/, `"echo": ${quotedLine}`)],
      ["agent", agentText.replace('"allow"', `"proxy": { "url": "http://u:${token}@p:1" }, "allow"`)],
    ];
    const fileCodes = await inPairs([...files.entries()], async ([at, [program, text]]) => {
      const path = join(pair.directory, `wrong-${at}.yaml`);
      await writeFile(path, text);
      const { code } = await run(program, ["check", "--config", path]);
      await rm(path);
      return code;
    });
    expect(files.filter(([, text]) => text === edgeText || text === agentText)).toEqual([]);
    expect(fileCodes.filter((code) => code === 0)).toEqual([]);
    expect(pair.edge.process.hasEnded).toBe(false);
  }, 90_000);

  test("survive a signal that no program expects, and a kill, without a trace", async () => {
    await keep("the edge before its end", pair.edge.process);
    pair.edge.process.signal("SIGUSR2");
    await pair.edge.process.waitForEnd();
    await pair.restartEdge();
    await pair.waitUntilReady();
    await keep("the agent before its end", pair.agent.process);
    pair.agent.process.signal("SIGKILL");
    await pair.agent.process.waitForEnd();
    await pair.restartAgent();
    await pair.waitUntilReady();
    await traffic();
    expect(await pair.command("agent", ["status", "--config", pair.agent.configPath])).toContain(" ready");
    await keep("the edge at last", pair.edge.process);
    await keep("the agent at last", pair.agent.process);
  }, 30_000);

  test("were nowhere else", async () => {
    expect(heard.length).toBeGreaterThan(100);
    expect(heard.map(([, text]) => text.length).reduce((sum, length) => sum + length)).toBeGreaterThan(20_000);
    const leaks = heard.flatMap(([where, text]) => found(text).map((name) => `${where}: ${name}`));
    expect(leaks).toEqual([]);
    const files = (await filesBelow(pair.directory)).filter(
      (file) => !SECRET_FILES.test(relative(pair.directory, file)),
    );
    expect(files.length).toBeGreaterThan(1);
    for (const file of files) expect([file, found(await readFile(file, "latin1"))]).toEqual([file, []]);
  });
});
