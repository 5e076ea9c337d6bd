/** Commands that an operator types while both programs run, and what their mistakes lead to. */
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runProcess } from "../support/child-process.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
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
async function run(program: "edge" | "agent", ...args: string[]) {
  const bin = fileURLToPath(new URL(`../../packages/${program}/bin/sallyport-${program}.js`, import.meta.url));
  const { code, stdout, stderr } = await runProcess({
    command: process.env["SALLYPORT_TEST_NODE"] ?? process.execPath,
    args: [bin, ...args, "--config", pair[program].configPath],
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
