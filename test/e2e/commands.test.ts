/** Commands that an operator types while both programs run, and what their mistakes lead to. */
import { copyFile, readFile, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { TcpServer } from "../support/tcp-server.ts";

let pair: SallyportPair;
let target: TcpServer;

beforeAll(async () => {
  target = await startEchoServer();
  pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
  });
});
afterAll(async () => {
  await pair.stop();
  await target.close();
});

/** Runs a command with the pair's configuration, however it ends. */
function run(program: "edge" | "agent", ...args: string[]) {
  return start(program, ...args, "--config", pair[program].configPath);
}

function start(program: "edge" | "agent", ...args: string[]) {
  return runBin(binOf(program), ...args);
}

function binOf(program: "edge" | "agent"): string {
  return fileURLToPath(new URL(`../../packages/${program}/bin/sallyport-${program}.js`, import.meta.url));
}

async function runBin(path: string, ...args: string[]) {
  const { code, stdout, stderr } = await runProcess({
    command: process.env["SALLYPORT_TEST_NODE"] ?? process.execPath,
    args: [path, ...args],
  });
  return { code, stdout, stderr };
}

test.each([
  ["edge", ["deployment", "stop", "ech"], "deployment: ech does not exist"],
  ["edge", ["connections", "--deployment", "ech"], "deployment: ech does not exist"],
  ["edge", ["connection", "kill", "1"], "connection: 1 does not exist (any more)"],
  ["agent", ["connection", "kill", "1"], "connection: 1 does not exist (any more)"],
  ["edge", ["test-ip", "nobody", "192.0.2.1"], "filter: nobody does not exist"],
  ["edge", ["test-ip", "loopback", "192.0.2"], "address: not a canonical IP address"],
] as const)("what %s %j names does not exist: a mistake of the command line", async (program, args, message) => {
  expect(await run(program, ...args)).toEqual({ code: 64, stdout: "", stderr: `error: ${message}\n` });
});

test.each(["edge", "agent"] as const)("the %s says that it has no connections", async (program) => {
  expect(await run(program, "connections")).toEqual({ code: 0, stdout: "no connections\n", stderr: "" });
});

test.each(["edge", "agent"] as const)("the %s tells its version", async (program) => {
  expect(await start(program, "--version")).toEqual({
    code: 0,
    stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    stderr: "",
  });
});

test.each(["edge", "agent"] as const)("a reload by command stands in the log of the %s", async (program) => {
  expect(await run(program, "reload")).toEqual({ code: 0, stdout: "reloaded\n", stderr: "" });
  await pair[program].process.waitForLine(/"msg":"configuration reloaded"/);
});

test("a connection is killed by the id that both ends list", async () => {
  const socket = connect(pair.listenerPort("echo"), "127.0.0.1");
  const ending = socketEnding(socket);
  const id = await pollUntil(
    async () => {
      const { stdout } = await run("agent", "connections", "--json");
      return (JSON.parse(stdout) as { connections: { connection: string }[] }).connections[0]?.connection;
    },
    { what: "the connection" },
  );
  expect(await run("edge", "connection", "kill", id!)).toEqual({ code: 0, stdout: `killed ${id}\n`, stderr: "" });
  expect(await ending).toMatchObject({ code: "ECONNRESET" });
});

test("check reads the certificate that a tunnel names", async () => {
  const path = `${pair.directory}/tls.yaml`;
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8")) as { tunnels: object[] };
  const [tunnel] = config.tunnels;
  const tls = { certFile: "/nowhere/edge.pem", keyFile: "/nowhere/edge.key" };
  await writeFile(path, JSON.stringify({ ...config, tunnels: [{ ...tunnel, tls }] }));
  expect(await start("edge", "check", "--config", path)).toEqual({
    code: 74,
    stdout: "",
    stderr: "error: /nowhere/edge.pem: cannot read the file: no such file or directory (ENOENT)\n",
  });
});

test.each(["edge", "agent"] as const)("the %s is reached while its file has a fault", async (program) => {
  const { configPath } = pair[program];
  const good = await readFile(configPath, "utf8");
  await writeFile(configPath, good.replace("{", '{ "lisenters": [],'));
  try {
    expect(await run(program, "status")).toMatchObject({ code: 0, stderr: "" });
    expect(await run(program, "reload")).toEqual({
      code: 78,
      stdout: "",
      stderr: expect.stringMatching(/^error: .*:1:3: lisenters: unknown key.*\n$/),
    });
  } finally {
    await writeFile(configPath, good);
  }
});

test.each(["edge", "agent"] as const)("the %s of a repository that is not built says what to do", async (program) => {
  const bin = `${pair.directory}/sallyport-${program}.mjs`;
  await copyFile(binOf(program), bin);
  expect(await runBin(bin, "check")).toEqual({
    code: 78,
    stdout: "",
    stderr: `error: sallyport-${program}: is not built; run \`npm ci\` and \`npm run build\` at the top of the repository\n`,
  });
});
