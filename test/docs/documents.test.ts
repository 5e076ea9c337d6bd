/** The documents are true as far as a program can tell: links, examples, commands, names of tests. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { checkConfigText } from "@sallyport/host";
import { describe, expect, it } from "vitest";
import { agentConfigSchema } from "../../packages/agent/src/config.ts";
import { edgeConfigSchema } from "../../packages/edge/src/config.ts";
import { commandFault, commandsIn } from "./commands.ts";
import { anchors, documents, type Fence, fences, links, readDocument, root } from "./markdown.ts";

const files = documents();
const schemas = { "edge.yaml": edgeConfigSchema, "agent.yaml": agentConfigSchema } as const;

/** A block of YAML is for one of the programs and says so, in its first line or behind the fence. */
function nameOf({ file, line, info, text }: Fence): keyof typeof schemas {
  const name = /\b(edge|agent)\.yaml\b/.exec(`${info} ${text.split("\n").slice(0, 2).join(" ")}`)?.[0];
  if (name === undefined) throw new Error(`${file}:${line}: the block does not say whose configuration it is`);
  return name as keyof typeof schemas;
}

it("there are documents to look at", () => {
  expect(files).toEqual(
    expect.arrayContaining([
      "README.md",
      "deploy/README.md",
      "docs/architecture.md",
      "docs/operations.md",
      "docs/out-of-scope.md",
      "docs/security.md",
    ]),
  );
  expect(files.filter((file) => file.startsWith("docs/decisions/")).length).toBeGreaterThan(10);
});

describe.each(files)("%s", (file) => {
  it("links to files and headings that exist", () => {
    const broken = links(file).filter(({ path, anchor }) => {
      if (!existsSync(join(root, path))) return true;
      return anchor !== undefined && path.endsWith(".md") && !anchors(path).has(anchor);
    });
    expect(broken).toEqual([]);
  });

  it("promises nothing for later", () => {
    expect(readDocument(file)).not.toMatch(/\b(TODO|TBD|FIXME|XXX|coming soon|not yet implemented)\b/i);
  });

  it("has configuration examples that the programs accept", () => {
    const examples = fences(file)
      .filter(({ language }) => language === "yaml")
      .map((fence) => ({ ...fence, name: nameOf(fence) }));
    // The parser says file and line when it refuses one.
    const accepted = examples.map(({ line, text, name }) => checkConfigText(text, `${file}:${line}`, schemas[name]));
    expect(accepted).toHaveLength(examples.length);
  });

  it("names commands and options that exist", async () => {
    const faults: string[] = [];
    for (const command of commandsIn(file)) {
      const fault = await commandFault(command.words);
      if (fault !== undefined) faults.push(`${file}:${command.line}: ${command.words.join(" ")}: ${fault}`);
    }
    expect(faults).toEqual([]);
    // Each of some thirty commands starts a program; the deadline is for a machine that does much else.
  }, 180_000);
});

it("the commands of the documents are found", () => {
  expect(files.flatMap((file) => commandsIn(file)).length).toBeGreaterThan(50);
});

it("a wrong command would be found", async () => {
  expect(await commandFault(["sallyport-edge", "pear", "lan"])).toBeDefined();
  expect(await commandFault(["sallyport-edge", "pair", "lan", "--token", "x"])).toBeDefined();
  expect(await commandFault(["sallyport-edge", "pair"])).toBeDefined();
  expect(await commandFault(["sallyport-edge", "pair", "lan", "--config", "edge.yaml"])).toBeUndefined();
});

it("the README shows the example configurations as they are", () => {
  for (const name of ["edge.yaml", "agent.yaml"] as const) {
    const shown = fences("README.md").find(({ info }) => info === name);
    expect(shown?.text).toBe(readFileSync(join(root, "deploy/examples", name), "utf8"));
  }
});

it("the README has both commands on a line of their own", () => {
  const commands = fences("README.md")
    .filter(({ language }) => language === "sh")
    .flatMap(({ text }) => text.split("\n"));
  expect(commands).toContain("npm ci && npm start");
  expect(commands).toContain("npm ci && npm test");
});

it("each claim of docs/security.md is shown by a test that exists", () => {
  const claims = [...readDocument("docs/security.md").matchAll(/\| `([^`]+\.test\.ts)`: (.+?) \|$/gm)];
  expect(claims.length).toBeGreaterThan(12);
  const missing = claims.filter(([, file = "", title = ""]) => {
    if (!existsSync(join(root, file))) return true;
    const source = readFileSync(join(root, file), "utf8");
    return !source.includes(`"${title}"`);
  });
  expect(missing.map(([, file, title]) => `${file}: ${title}`)).toEqual([]);
});

it("every decision is in the list, and the list has no other", () => {
  const listed = links("docs/decisions/README.md").map(({ path }) => path);
  const there = files.filter((file) => /^docs\/decisions\/\d{4}-/.test(file));
  expect(listed.sort()).toEqual(there);
});

it("every way in which a connection ends is in docs/operations.md with its two letters", () => {
  const text = readDocument("docs/operations.md");
  const sources = [
    "packages/tunnel/src/ending.ts",
    "packages/edge/src/partner-connection.ts",
    "packages/agent/src/target-connection.ts",
  ];
  const endings = sources.flatMap((file) => [
    ...readFileSync(join(root, file), "utf8").matchAll(/\{ code: "(..)", reason: "([^"]+)" \}/g),
  ]);
  expect(endings.length).toBeGreaterThan(20);
  expect(
    endings.filter(([, code, reason]) => !text.includes(`| \`${code}\` | ${reason} |`)).map(([found]) => found),
  ).toEqual([]);
});

it("every key of a connection's record is in docs/operations.md", () => {
  const text = readDocument("docs/operations.md");
  for (const file of ["packages/edge/src/access-record.ts", "packages/agent/src/connection-record.ts"]) {
    const [, body = ""] =
      /interface ConnectionFacts \{([\s\S]*?)^\}/m.exec(readFileSync(join(root, file), "utf8")) ?? [];
    const keys = [...body.matchAll(/^ {2}readonly (\w+)\??:/gm)].map(([, key]) => key);
    expect(keys.length).toBeGreaterThan(10);
    expect(keys.filter((key) => !new RegExp(`^\\| .*\`${key}\``, "m").test(text))).toEqual([]);
  }
});
