/**
 * Bad input through the real commands: the exit code, one line on standard error that says where and why, nothing on
 * standard output, nothing bound, and no value that could be a secret. The tables of each parser stand beside the parsers;
 * here is what reaches an operator.
 */
import { once } from "node:events";
import { chmod, mkdir, readdir, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  certificatePin,
  createToken,
  encodeToken,
  formatPairingLine,
  type Pairing,
} from "../../packages/tunnel/src/index.ts";
import { type RunResult, runProcess, runSuccessfully } from "../support/child-process.ts";
import { findFreePort } from "../support/free-port.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";
import { testCertificate } from "../support/tunnel-ends.ts";
import { inPairs } from "./in-pairs.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
type Program = "edge" | "agent";

/** Stands for every secret that is given at a wrong place; no answer may hold it. */
const SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2-abc";

let directory: TempDir;
let ports: { tunnel: number; first: number; last: number; metrics: number };
let credentialsFile: string;
let pairing: Pairing;

function run(program: Program, args: readonly string[], input?: string | Buffer): Promise<RunResult> {
  return runProcess({
    command: process.execPath,
    args: [join(root, `packages/${program}/bin/sallyport-${program}.js`), ...args],
    cwd: directory.path,
    timeoutMs: 30_000,
    ...(input === undefined ? {} : { input }),
  });
}

function edgeConfig(changes: Record<string, unknown> = {}): string {
  return JSON.stringify(
    {
      name: "edge",
      stateDir: join(directory.path, "edge-state"),
      tunnels: [{ name: "dmz", listen: `127.0.0.1:${ports.tunnel}` }],
      clients: [{ name: "lan" }],
      ipFilters: [{ name: "partners", default: "block", rules: [{ action: "allow", cidr: "203.0.113.0/24" }] }],
      listeners: [
        { name: "first", listen: `127.0.0.1:${ports.first}`, ipFilter: "partners" },
        { name: "last", listen: `127.0.0.1:${ports.last}` },
      ],
      deployments: [
        { name: "one", listener: "first", target: "sftp", via: { tunnel: "dmz", client: "lan" } },
        { name: "two", listener: "last", target: "192.0.2.1:22" },
      ],
      metrics: { listen: `127.0.0.1:${ports.metrics}` },
      ...changes,
    },
    undefined,
    2,
  );
}

function agentConfig(changes: Record<string, unknown> = {}): string {
  return JSON.stringify(
    {
      name: "agent",
      stateDir: join(directory.path, "agent-state"),
      edges: [{ credentialsFile }],
      services: { sftp: "192.0.2.1:22" },
      metrics: { listen: `127.0.0.1:${ports.metrics}` },
      ...changes,
    },
    undefined,
    2,
  );
}

let files = 0;
async function fileWith(text: string | Buffer): Promise<string> {
  files += 1;
  const path = join(directory.path, `config-${files}.yaml`);
  await writeFile(path, text);
  return path;
}

/** The one line of a command that failed as it should. */
function lineOf({ code, signal, stdout, stderr }: RunResult): { code: number | null; line: string } {
  expect({ signal, stdout }).toEqual({ signal: null, stdout: "" });
  expect(stderr).toMatch(/^error: [^\n]+: [^\n]+\n?$/);
  expect(stderr).not.toContain(SECRET);
  expect(stderr).not.toMatch(/\bat .*:\d+:\d+\)|node:internal|defect/);
  return { code, line: stderr.trim() };
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  server.listen(port, "127.0.0.1");
  const isBound = await Promise.race([
    once(server, "listening").then(() => true),
    once(server, "error").then(() => false),
  ]);
  server.close();
  return isBound;
}

async function expectNothingBound(except: readonly number[] = []): Promise<void> {
  const others = Object.values(ports).filter((port) => !except.includes(port));
  expect(await Promise.all(others.map(isFree))).toEqual(others.map(() => true));
}

beforeAll(async () => {
  directory = await makeTempDir();
  ports = {
    tunnel: await findFreePort(),
    first: await findFreePort(),
    last: await findFreePort(),
    metrics: await findFreePort(),
  };
  const der = Buffer.from(testCertificate().cert.replaceAll(/-----[A-Z ]+-----|\s/g, ""), "base64");
  pairing = {
    address: `127.0.0.1:${ports.tunnel}`,
    client: "lan",
    token: encodeToken(createToken()),
    pin: certificatePin(der),
    certificate: der.toString("base64"),
  };
  credentialsFile = join(directory.path, "good.credentials");
  await runSuccessfully({
    command: process.execPath,
    args: [join(root, "packages/agent/bin/sallyport-agent.js"), "join", "--out", credentialsFile],
    input: formatPairingLine(pairing),
  });
  await mkdir(join(directory.path, "edge-state"), { mode: 0o700 });
});

afterAll(() => directory.remove());

/** Exit code, and what the line says behind `error: `. */
type Case = readonly [what: string, text: () => string | Buffer, code: number, line: RegExp];

const edgeFiles: Case[] = [
  ["an unknown key", () => edgeConfig({ limts: {} }), 78, /:\d+:\d+: limts: unknown key; did you mean limits\?/],
  ["a secret as a value", () => edgeConfig({ token: SECRET }), 78, /token: unknown key/],
  [
    "a secret as a listening address",
    () => edgeConfig({ metrics: { listen: SECRET } }),
    78,
    /metrics\.listen: must be/,
  ],
  [
    "host bits in a rule",
    () =>
      edgeConfig({
        ipFilters: [{ name: "partners", default: "block", rules: [{ action: "allow", cidr: "10.0.0.5/8" }] }],
      }),
    78,
    /host bits set; did you mean 10\.0\.0\.0\/8/,
  ],
  [
    "a last listener with a port that is none",
    () =>
      edgeConfig({
        listeners: [
          { name: "first", listen: `127.0.0.1:${ports.first}` },
          { name: "last", listen: "127.0.0.1:65536" },
        ],
      }),
    78,
    /listeners\.1\.listen: port must be 0-65535/,
  ],
  [
    "via without client",
    () => edgeConfig({ deployments: [{ name: "one", listener: "first", target: "sftp", via: { tunnel: "dmz" } }] }),
    78,
    /deployments\.0\.via: either client or clients must be given/,
  ],
  ["text that is no YAML", () => "name: [a\nlisteners: }\n", 78, /:\d+:\d+: /],
  ["tabs", () => "name: a\nlimits:\n\tmaxConnections: 1\n", 78, /tabs cannot indent/],
  ["an empty file", () => "", 78, /the file is empty/],
  ["a list", () => "- a\n- b\n", 78, /must be a map/],
  ["two documents", () => "name: a\n---\nname: b\n", 78, /a second document/],
  ["an alias bomb", () => aliasBomb(), 78, /aliases|alias/],
  ["no text at all", () => Buffer.from([0x6e, 0x61, 0xff, 0xfe, 0x00]), 78, /is not UTF-8/],
  ["UTF-16", () => Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from("name: a", "utf16le")]), 78, /is UTF-16/],
];

const agentFiles: Case[] = [
  ["no service", () => agentConfig({ services: {} }), 78, /services: at least one service or allow entry is required/],
  ["an unknown key", () => agentConfig({ allowlst: [] }), 78, /allowlst: unknown key; did you mean allow\?/],
  [
    "ws instead of a credentials file",
    () => agentConfig({ edges: ["ws://edge.example"] }),
    78,
    /edges\.0: must be a map/,
  ],
  ["host bits", () => agentConfig({ allow: ["10.0.0.5/8:22"] }), 78, /host bits set; did you mean 10\.0\.0\.0\/8/],
  ["an octal address", () => agentConfig({ allow: ["010.0.0.1:22"] }), 78, /not a canonical IP address or CIDR/],
  ["a wide digit", () => agentConfig({ allow: ["１0.0.0.1:22"] }), 78, /not a canonical IP address or CIDR/],
  ["a prefix too long", () => agentConfig({ allow: ["10.0.0.0/33:22"] }), 78, /prefix length must be 0-32/],
  ["a port in hexadecimal", () => agentConfig({ services: { a: "b:0x50" } }), 78, /port must be 1-65535/],
  [
    "a password in the proxy's URL",
    () => agentConfig({ proxy: { url: `http://u:${SECRET}@proxy:3128` } }),
    78,
    /proxy\.url: must not hold a password/,
  ],
  [
    "credentials that are not there",
    () => agentConfig({ edges: [{ credentialsFile: "/nowhere/x" }] }),
    74,
    /\/nowhere\/x: (?:does not exist|cannot read)/,
  ],
];

function aliasBomb(): string {
  const levels = Array.from(
    { length: 12 },
    (_, at) => `a${at + 1}: &a${at + 1} [${Array(9).fill(`*a${at}`).join(", ")}]`,
  );
  return ["a0: &a0 [x]", ...levels, ""].join("\n");
}

const commands: readonly [Program, readonly (readonly [command: string, cases: readonly Case[]])[]][] = [
  [
    "edge",
    [
      ["check", edgeFiles],
      ["serve", edgeFiles.slice(3, 6)],
    ],
  ],
  [
    "agent",
    [
      ["check", agentFiles],
      ["run", agentFiles.slice(-2)],
    ],
  ],
];

describe.each(
  commands.flatMap(([program, entries]) => entries.map(([command, cases]) => ({ program, command, cases }))),
)("sallyport-$program $command", ({ program, command, cases }) => {
  test("says what is wrong with a configuration, binds nothing and ends", async () => {
    await inPairs(cases, async ([what, text, code, line]) => {
      const ended = lineOf(await run(program, [command, "--config", await fileWith(text())]));
      expect([what, ended.code]).toEqual([what, code]);
      expect(ended.line).toMatch(line);
    });
    await expectNothingBound();
  }, 90_000);
});

describe("what cannot be bound", () => {
  let taken: Server;

  beforeAll(async () => {
    taken = createServer();
    taken.listen(ports.last, "127.0.0.1");
    await once(taken, "listening");
  });
  afterAll(() => void taken.close());

  test("is named by serve, which leaves no port bound and no socket behind", async () => {
    const ended = lineOf(await withoutLog(run("edge", ["serve", "--config", await fileWith(edgeConfig())])));
    expect(ended.code).toBe(69);
    expect(ended.line).toMatch(/listeners\.last\.listen: .*EADDRINUSE/);
    await expectNothingBound([ports.last]);
    expect(await readdir(join(directory.path, "edge-state"))).not.toContain("admin.sock");
  });

  test("does not concern check, which binds nothing", async () => {
    const { code, stderr } = await run("edge", ["check", "--config", await fileWith(edgeConfig())]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  });

  test("at the agent is its metrics address alone", async () => {
    const config = agentConfig({ metrics: { listen: `127.0.0.1:${ports.last}` } });
    const ended = lineOf(await withoutLog(run("agent", ["run", "--config", await fileWith(config)])));
    expect(ended.code).toBe(69);
    expect(ended.line).toMatch(/metrics\.listen: .*EADDRINUSE/);
  });
});

/** Log lines that were written before the fault showed are no output of a command. */
async function withoutLog(result: Promise<RunResult>): Promise<RunResult> {
  const ended = await result;
  const stdout = ended.stdout.replaceAll(/^\{"level".*\}\n?/gm, "");
  return { ...ended, stdout };
}

describe("command lines", () => {
  const lines: readonly (readonly [Program, readonly string[], number, RegExp])[] = [
    ["edge", ["serve", "--token", SECRET], 64, /--token: unknown option; secrets are never taken as options/],
    ["agent", ["run", `--token=${SECRET}`], 64, /--token: unknown option; secrets are never taken/],
    ["edge", ["sreve"], 64, /sreve: unknown command; did you mean serve\?/],
    ["edge", [], 64, /which command\?/],
    ["edge", ["serve", "extra"], 64, /too many/],
    ["edge", ["serve", "--config"], 64, /--config: needs a value/],
    ["edge", ["check", "--config", "/nowhere/edge.yaml"], 74, /\/nowhere\/edge\.yaml: cannot read the configuration/],
    ["edge", ["check", "--config", "/"], 74, /cannot read/],
    ["agent", ["join"], 64, /--out: is required/],
    ["edge", ["status", "--config", "GOOD"], 69, /nobody listens: is sallyport-edge running/],
    ["edge", ["pair", "nobody", "--config", "GOOD"], 78, /clients: nobody is not declared/],
    ["edge", ["test-ip", "partners", "010.0.0.1", "--config", "GOOD"], 64, /canonical/],
    ["edge", ["test-ip", "nobody", "10.0.0.1", "--config", "GOOD"], 64, /not declared/],
  ];

  test("that are wrong end with one line that repeats no value", async () => {
    const good = await fileWith(edgeConfig());
    const outcomes = await inPairs(lines, async ([program, args]) => {
      const { code, line } = lineOf(
        await run(
          program,
          args.map((arg) => (arg === "GOOD" ? good : arg)),
        ),
      );
      return [program, ...args, code, line].join(" ");
    });
    const wrong = outcomes.filter(
      (outcome, at) => !outcome.includes(` ${lines[at]![2]} error: `) || !lines[at]![3].test(outcome),
    );
    expect(wrong).toEqual([]);
  }, 90_000);
});

describe("sallyport-agent join", () => {
  const inputs: readonly (readonly [what: string, input: () => string | Buffer, line: RegExp])[] = [
    ["nothing", () => "", /no pairing line/],
    ["something else", () => `${SECRET}\n`, /not a pairing line/],
    ["a flipped character", () => flip(formatPairingLine(pairing)), /damaged or cut off/],
    ["a line that is cut off", () => formatPairingLine(pairing).slice(0, -9), /damaged or cut off/],
    [
      "a line break inside",
      () => formatPairingLine(pairing).replace(/.{60}/, "$&\n"),
      /cut off|line break|white space/,
    ],
    ["two lines", () => `${formatPairingLine(pairing)}\n${formatPairingLine(pairing)}\n`, /one|white space|line/],
    ["a million bytes", () => Buffer.alloc(1_000_000, "x"), /too long|not a pairing line/],
    ["zeros", () => Buffer.alloc(1_000), /not a pairing line/],
  ];

  test("takes nothing but a pairing line, and writes nothing otherwise", async () => {
    const out = join(directory.path, "never.credentials");
    await inPairs(inputs, async ([what, input, line]) => {
      const result = await run("agent", ["join", "--out", out], input());
      expect(result.stderr).not.toContain(pairing.token);
      const ended = lineOf(result);
      expect([what, ended.code]).toEqual([what, 64]);
      expect(ended.line).toMatch(line);
    });
    expect(await readdir(directory.path)).not.toContain("never.credentials");
  }, 90_000);

  function flip(line: string): string {
    const at = Math.floor(line.length / 2);
    return `${line.slice(0, at)}${line[at] === "A" ? "B" : "A"}${line.slice(at + 1)}`;
  }
});

describe("a credentials file", () => {
  const broken: readonly (readonly [what: string, text: () => string, mode: number, code: number, line: RegExp])[] = [
    ["that others can read", () => JSON.stringify(pairing), 0o644, 77, /has mode 0644.*needed is 0600/],
    [
      "whose token is too short",
      () => JSON.stringify({ ...pairing, token: "abc" }),
      0o600,
      78,
      /token must be 43 base64url characters/,
    ],
    [
      "whose token ends in a newline",
      () => JSON.stringify({ ...pairing, token: `${pairing.token}\n` }),
      0o600,
      78,
      /token must be 43/,
    ],
    ["that is no JSON", () => `${SECRET}\n`, 0o600, 78, /is not a valid credentials file/],
    [
      "with an unknown key",
      () => JSON.stringify({ ...pairing, [SECRET]: 1 }),
      0o600,
      78,
      /a key that this program does not know/,
    ],
    [
      "with the pin of another certificate",
      () => JSON.stringify({ ...pairing, pin: "0".repeat(64) }),
      0o600,
      78,
      /pin does not belong/,
    ],
  ];

  test("that is not what join wrote is refused, and nothing of it is shown", async () => {
    const outcomes = await inPairs([...broken.entries()], async ([at, [what, text, mode, code, line]]) => {
      const path = join(directory.path, `broken-${at}.credentials`);
      await writeFile(path, text());
      await chmod(path, mode);
      const config = await fileWith(agentConfig({ edges: [{ credentialsFile: path }] }));
      const result = await run("agent", [at % 2 === 0 ? "check" : "run", "--config", config]);
      expect(result.stderr).not.toContain(pairing.token);
      const ended = lineOf(result);
      return ended.code === code && line.test(ended.line) ? "refused" : `${what}: ${ended.code} ${ended.line}`;
    });
    expect(outcomes).toEqual(broken.map(() => "refused"));
  }, 90_000);
});
