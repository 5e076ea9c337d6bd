import { execFileSync, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { z } from "zod";
import { checkConfigText, loadConfigFile, loadStateDir } from "./config-file.ts";
import { count, logSection } from "./config-sections.ts";
import { duration } from "./duration.ts";
import { Failure } from "./failure.ts";
import { hostPort } from "./host-port.ts";
import { name } from "./name.ts";

const service = z.union([hostPort(), z.strictObject({ target: hostPort(), maxConnections: count().optional() })]);

const schema = z
  .strictObject({
    name: name(),
    token: z.string().max(3).optional(),
    links: z.int().min(1).max(16).default(2),
    allow: z.array(hostPort()).max(2).default([]),
    services: z.record(name(), service).default({}),
    timeouts: z.strictObject({ connect: duration().prefault("5s") }).prefault({}),
    startup: z.enum(["auto", "manual"]).default("auto"),
    listeners: z.array(z.strictObject({ name: name(), filter: z.string().optional() })).default([]),
    log: logSection(),
  })
  .superRefine(({ listeners }, context) => {
    for (const [at, { filter }] of listeners.entries()) {
      if (filter !== undefined) {
        context.addIssue({ code: "custom", path: ["listeners", at, "filter"], message: "no filter of this name" });
      }
    }
  });

function fault(text: string): string {
  try {
    checkConfigText(text, "f.yaml", schema);
  } catch (error) {
    return error instanceof Failure && error.exitCode === 78
      ? error.message
      : `not a configuration failure: ${String(error)}`;
  }
  return "no fault";
}

test("a good file comes out with its defaults", () => {
  expect(checkConfigText("name: a\nservices: { db: 'db:1' }", "f.yaml", schema)).toEqual({
    name: "a",
    links: 2,
    allow: [],
    services: { db: { host: "db", port: 1 } },
    timeouts: { connect: 5_000 },
    startup: "auto",
    listeners: [],
    log: { level: "info" },
  });
});

test.each([
  // What the schema refuses.
  ["links: 2\n", "f.yaml:1:1: name: required"],
  ["name: a\nallowlst: [x]\n", "f.yaml:2:1: allowlst: unknown key; did you mean allow?"],
  ["name: a\ncolour: red\n", "f.yaml:2:1: colour: unknown key"],
  ["name: a\ntimeouts:\n  conect: 5s\n", "f.yaml:3:3: timeouts.conect: unknown key; did you mean connect?"],
  ["name: a\nlog: { levle: info }\n", "f.yaml:2:8: log.levle: unknown key; did you mean level?"],
  [
    "name: a\nlisteners:\n  - name: b\n    fliter: x\n",
    "f.yaml:4:5: listeners.0.fliter: unknown key; did you mean filter?",
  ],
  [
    "name: a\nservices:\n  db: { targt: 'db:1', target: 'db:1' }\n",
    "f.yaml:3:9: services.db.targt: unknown key; did you mean target?",
  ],
  ["name: a\nservices:\n  db: { target: 'db:0' }\n", "f.yaml:3:17: services.db.target: port must be 1-65535"],
  ["name: a\nservices:\n  db: db:x\n", "f.yaml:3:7: services.db: port must be 1-65535"],
  [
    "name: a\nservices:\n  'a b': db:1\n",
    "f.yaml:3:10: services.a b: must be a name of 1-255 letters, digits, _ and -",
  ],
  ["name: a\nlinks: 17\n", "f.yaml:2:8: links: must be at most 16"],
  ["name: a\nlinks: 0\n", "f.yaml:2:8: links: must be at least 1"],
  ["name: a\nlinks: 1.5\n", "f.yaml:2:8: links: must be a whole number"],
  ["name: a\nlinks: '2'\n", "f.yaml:2:8: links: must be a number"],
  ["name: a\nlinks:\n", "f.yaml:2:1: links: has no value; give it one or remove the key"],
  ["name: a\nlog:\n", "f.yaml:2:1: log: has no value; give it one or remove the key"],
  ["name: a\nstartup: later\n", "f.yaml:2:10: startup: must be auto or manual"],
  ["name: a\nallow: db:1\n", "f.yaml:2:8: allow: must be a list"],
  ["name: a\nallow: [a:1, b:2, c:3]\n", "f.yaml:2:8: allow: must have at most 2 entries"],
  [
    "name: a\nallow:\n  - a:1\n  - b\n",
    "f.yaml:4:5: allow.1: must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22",
  ],
  ["name: a\nlog: info\n", "f.yaml:2:6: log: must be a map of keys and values"],
  [
    "name: a\ntimeouts: { connect: 5 }\n",
    "f.yaml:2:22: timeouts.connect: must be a duration with its unit, such as 500ms, 10s, 5m, 1h or 1d",
  ],
  ["name: 22\n", "f.yaml:1:7: name: must be a name of 1-255 letters, digits, _ and -"],
  ["name: a\nlisteners:\n  - { name: b, filter: c }\n", "f.yaml:3:24: listeners.0.filter: no filter of this name"],
  // Several faults: the first in the file, with the number of the others.
  [
    "name: a b\nlinks: 17\ncolour: red\n",
    "f.yaml:1:7: name: must be a name of 1-255 letters, digits, _ and - (and 2 more)",
  ],
  ["colour: red\nlinks: 17\nname: a\n", "f.yaml:1:1: colour: unknown key (and 1 more)"],
  // What is missing is told after what is there: it may be the same key, written wrong.
  ["nmae: a\n", "f.yaml:1:1: nmae: unknown key; did you mean name? (and 1 more)"],
  // Through an alias the fault is where the value stands.
  ["name: a\nlisteners:\n  - &l { name: b, x: 1 }\n  - *l\n", "f.yaml:3:19: listeners.0.x: unknown key (and 1 more)"],
  // What is no map of keys and values at all.
  ["", "f.yaml:1:1: the file is empty"],
  ["# only a comment\n\n", "f.yaml:1:1: the file is empty"],
  ["---\n", "f.yaml:1:1: the file is empty"],
  ["null\n", "f.yaml:1:1: the file is empty"],
  ["hunter2\n", "f.yaml:1:1: the file must be a map of keys and values, such as `name: x`"],
  ["- a\n- b\n", "f.yaml:1:1: the file must be a map of keys and values, such as `name: x`"],
  ["name: a\n---\nname: b\n", "f.yaml:2:1: a second document begins here (---); a configuration file holds one"],
  ["name: a\ntimeouts:\n\tconnect: 5s\n", "f.yaml:3:1: tabs cannot indent in YAML; use spaces"],
  ["name: a\nname: b\n", "f.yaml:2:1: this key occurs twice in its map"],
  ["name: [a\n", "f.yaml:2:1: wrong indentation, or a bracket or quote before it is not closed"],
  [
    "name: 'a\n",
    "f.yaml:2:1: a character is missing here: a closing quote, bracket, comma, or the space behind a colon",
  ],
  ["name: @hunter2\n", "f.yaml:1:7: a text that begins with this character needs quotes"],
  [
    "name: a: b\n",
    "f.yaml:1:7: a map or list begins where a value was expected; check the indentation, and quote a text that holds `: `",
  ],
  ["name: *b\n", "f.yaml:1:7: no anchor (&name) of this name stands before this alias (*name)"],
  ["name: !secret a\n", "f.yaml:1:7: tags (!name) are not used here, or the value does not fit its tag"],
  ["name: a\n{ b: 1 }: c\n", "f.yaml:2:1: a key must be a plain text"],
  ["name: a\n__proto__: { links: 3 }\n", "f.yaml:2:1: __proto__: is not usable as a key"],
  ["name: a\nservices: { __proto__: 'db:1' }\n", "f.yaml:2:13: __proto__: is not usable as a key"],
  ["name: a\nx: &x { links: 3 }\n<<: *x\n", "f.yaml:3:1: <<: merge keys (<<) are not supported"],
  ["name: a\nlisteners: &l [ *l ]\n", "f.yaml:2:17: this alias (*name) stands inside of what it means"],
])("%j: %s", (text, message) => {
  expect(fault(text)).toBe(message);
});

test("`constructor` is a name like any other", () => {
  const { services } = checkConfigText("name: a\nservices: { constructor: 'db:1' }", "f.yaml", schema);
  expect(Object.entries(services)).toEqual([["constructor", { host: "db", port: 1 }]]);
});

test("an alias bomb is refused at once", () => {
  const levels = Array.from({ length: 30 }, (_, at) => `a${at}: &a${at} [*a${at - 1}, *a${at - 1}]`).slice(1);
  expect(fault(`name: a\na0: &a0 [x, x]\n${levels.join("\n")}\n`)).toBe("f.yaml:1:1: has too many aliases (*name)");
});

test("no reason repeats a value, wherever a secret has slipped to", () => {
  const secret = "hunter2";
  for (const text of [
    secret,
    `name: "${secret} ${secret}"`,
    `name: a\ntoken: ${secret}`,
    `name: a\nlinks: ${secret}`,
    `name: a\nstartup: ${secret}`,
    `name: a\nallow: ["${secret}"]`,
    `name: a\nallow: ["${secret}:${secret}"]`,
    `name: a\nallow: [${secret}`,
    `name: a\nservices: { x: ${secret} }`,
    `name: a\ntimeouts: { connect: ${secret} }`,
    `name: a\ntoken: ${secret}: x`,
    `name: a\ntoken: "${secret}\\q"`,
    `name: a\ntoken: @${secret}`,
    `name: a\n  ${secret}`,
    `name: !${secret} a`,
    `name: a\nlog: ${secret}`,
  ]) {
    expect(fault(text)).not.toBe("no fault");
    expect(fault(text)).not.toContain(secret);
  }
});

test("a key from the file cannot forge a line or flood it", () => {
  expect(fault(`name: a\n"x\\n\\e[31m": 1`)).toBe("f.yaml:2:1: x\\u000a\\u001b[31m: unknown key");
  expect(fault(`name: a\n${"k".repeat(900)}: 1`).length).toBeLessThan(120);
});

let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "sallyport-config-"));
  path = join(directory, "f.yaml");
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

test("a UTF-8 byte order mark means nothing", async () => {
  await writeFile(path, "\ufeffname: a\nx: 1\n");
  expect(() => loadConfigFile(path, schema)).toThrow(`${path}:2:1: x: unknown key`);
});

test.each([
  ["is UTF-16; save it as UTF-8", Buffer.from("\ufeffname: a", "utf16le")],
  ["is not UTF-8 text", Buffer.from([0x6e, 0x61, 0x6d, 0x65, 0x3a, 0x20, 0xe9, 0x0a])],
  ["is larger than 16 MiB", Buffer.alloc(16 * 1024 * 1024 + 1, "#")],
])("a file that %s is refused", async (what, content) => {
  await writeFile(path, content);
  expect(() => loadConfigFile(path, schema)).toThrow(`${path}: ${what}`);
});

test("a missing file is an input error", () => {
  expect(() => loadConfigFile(path, schema)).toThrow(
    expect.objectContaining({
      exitCode: 74,
      what: "cannot read the configuration: no such file or directory (ENOENT)",
    }),
  );
});

test("a directory is an input error", () => {
  expect(() => loadConfigFile(directory, schema)).toThrow(expect.objectContaining({ exitCode: 74 }));
});

test.runIf(process.getuid?.() === 0)("a file that must not be read is a permission error", async () => {
  await writeFile(path, "name: a", { mode: 0o600 });
  // Effective ids only, so that root comes back.
  process.seteuid?.(12_345);
  try {
    expect(() => loadConfigFile(path, schema)).toThrow(expect.objectContaining({ exitCode: 77 }));
  } finally {
    process.seteuid?.(0);
  }
});

test.skipIf(process.platform === "win32")("a pipe is read like a file", async () => {
  const fifo = join(directory, "fifo");
  execFileSync("mkfifo", [fifo]);
  const writer = spawn("sh", ["-c", `printf 'name: a\\nx: 1\\n' > "$1"`, "sh", fifo]);
  expect(() => loadConfigFile(fifo, schema)).toThrow(`${fifo}:2:1: x: unknown key`);
  await new Promise((resolve) => writer.once("exit", resolve));
});

const stateDir = z.string().min(1).default("/var/lib/x");

test.each([
  ["a good file", "stateDir: /s", "/s"],
  ["a good file without the key", "name: a", "/var/lib/x"],
  ["an unknown key", "stateDir: /s\nfoo: 1", "/s"],
  ["an unknown key, without the key", "foo: 1", "/var/lib/x"],
  ["a tab behind the key", "stateDir: /s\nlisteners:\n\t- x", "/s"],
  ["a bracket that is not closed", "stateDir: /s\nlisteners: [", "/s"],
])("the state directory is found in a file with %s", async (_, text, expected) => {
  await writeFile(path, text);
  expect(loadStateDir(path, { schema: z.strictObject({ stateDir, name: name().optional() }), stateDir })).toBe(
    expected,
  );
});

test.each([
  ["f.yaml:1:11", "stateDir: 5"],
  ["f.yaml:1:11", "stateDir: ''\nfoo: 1"],
  ["f.yaml:1:1", ""],
  ["f.yaml:1:1", "- a"],
  ["f.yaml:2:1", "name: [\n"],
])("the state directory is not guessed: %s in %j", async (where, text) => {
  await writeFile(path, text);
  const load = () => loadStateDir(path, { schema: z.strictObject({ stateDir, name: name().optional() }), stateDir });
  expect(load).toThrow(Failure);
  expect(load).toThrow(where);
});
