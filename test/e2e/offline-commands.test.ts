import { once } from "node:events";
import { readdir, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { adminAddress } from "../../packages/host/src/index.ts";
import { runProcess, type RunResult } from "../support/child-process.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";

const program = fileURLToPath(new URL("../../packages/edge/bin/sallyport-edge.js", import.meta.url));
const clients = ["a", "b", "c", "d"];
let stateDir: TempDir;
let configPath: string;

beforeEach(async () => {
  stateDir = await makeTempDir();
  const configuration = {
    name: "edge",
    stateDir: stateDir.path,
    tunnels: [{ name: "dmz", listen: "127.0.0.1:7443" }],
    clients: clients.map((name) => ({ name })),
  };
  configPath = join(stateDir.path, "edge.yaml");
  await writeFile(configPath, JSON.stringify(configuration));
});
afterEach(() => stateDir.remove());

function edge(...args: string[]): Promise<RunResult> {
  const command = process.env.SALLYPORT_TEST_NODE ?? process.execPath;
  return runProcess({ command, args: [program, ...args, "--config", configPath] });
}

test("commands at the same time lose none of their changes and pin one certificate", async () => {
  const pairings = await Promise.all(clients.map((client) => edge("pair", client)));
  expect(pairings.map(({ code }) => code)).toEqual([0, 0, 0, 0]);
  const pins = pairings.map(({ stdout }) => {
    const text = Buffer.from(stdout.trim().split(":")[2] ?? "", "base64url").toString();
    return (JSON.parse(text) as { pin: string }).pin;
  });
  expect(new Set(pins).size).toBe(1);
  const list = JSON.parse((await edge("client", "list", "--json")).stdout) as { clients: { tokens: object[] }[] };
  expect(list.clients.map(({ tokens }) => tokens.length)).toEqual([1, 1, 1, 1]);
});

test.for([
  ["pair", "a"],
  ["client", "revoke", "a"],
  ["client", "list"],
])("`%s %s` does nothing behind the back of an edge that runs and does not answer properly", async (args) => {
  const broken = createServer((_request, response) => response.writeHead(500).end("{}"));
  await once(broken.listen(adminAddress(stateDir.path)), "listening");
  try {
    const { code, stdout, stderr } = await edge(...args);
    expect({ code, stdout }).toEqual({ code: 69, stdout: "" });
    expect(stderr).toMatch(/^error: sallyport-edge: status 500\n$/);
    expect(await readdir(stateDir.path)).not.toContain("clients.json");
  } finally {
    broken.close();
  }
});
