/** `npm run bench`: see docs/benchmarks.md. */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { removeLeftNamespaces } from "../support/link-emulator.ts";
import { UsageError, parseOptions, USAGE } from "./options.ts";
import type { Options } from "./options.ts";
import { MEASUREMENTS } from "./measurements.ts";
import { allPeers, choose } from "./peers.ts";
import { killDescendants } from "./process-tree.ts";
import { report } from "./report.ts";
import type { Result } from "./result.ts";
import { measureAll } from "./rounds.ts";

const documentPath = fileURLToPath(new URL("../../docs/benchmarks.md", import.meta.url));
const rawPath = fileURLToPath(new URL("../../docs/benchmarks.json", import.meta.url));

export async function main(args: readonly string[]): Promise<void> {
  // Whatever ends this process: nothing that it has started stays. Before the handler of child-process.ts, which ends the
  // children and would leave theirs without a parent to be found by.
  const directory = useOneTempDirectory();
  process.prependListener("exit", () => {
    killDescendants();
    removeLeftNamespaces();
    rmSync(directory, { recursive: true, force: true, maxRetries: 3 });
  });
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    process.on(signal, () => process.exit(code));
  }
  try {
    await run(parseOptions(args), args);
  } catch (error) {
    if (error instanceof UsageError) process.stderr.write(`error: ${error.message}\n\n${USAGE}`);
    else process.stderr.write(`error: bench: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exit(error instanceof UsageError ? 64 : 1);
  }
  process.exit();
}

/** All temporary files of this process and of its children go below it. Servers that refuse root pass through it. */
function useOneTempDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "sallyport-bench-"));
  chmodSync(directory, 0o711);
  process.env.TMPDIR = directory;
  return directory;
}

async function run(options: Options, args: readonly string[]): Promise<void> {
  if (options.isHelp) {
    process.stdout.write(USAGE);
    return;
  }
  if (options.reportFrom !== undefined) {
    const raw = JSON.parse(await readFile(options.reportFrom, "utf8")) as Result;
    await writeFile(documentPath, report(raw));
    process.stdout.write(`wrote ${documentPath}\n`);
    return;
  }
  const peers = choose(allPeers(options.oursDirectories), options.peers, "--peers");
  const measurements = choose(MEASUREMENTS, options.columns, "--columns");
  if (options.isList) {
    process.stdout.write(`rows: ${peers.map(({ id }) => id).join(", ")}\n`);
    process.stdout.write(`columns: ${measurements.map(({ id }) => id).join(", ")}\n`);
    return;
  }
  const result = await measureAll({
    options,
    peers,
    measurements,
    command: ["npm run bench", ...(args.length === 0 ? [] : ["--", ...args])].join(" "),
    say: (line) => process.stderr.write(`${line}\n`),
  });
  if (options.jsonFile !== undefined) await writeFile(options.jsonFile, `${JSON.stringify(result)}\n`);
  const isWhole =
    !options.isSmoke && options.peers.length + options.columns.length + options.oursDirectories.length === 0;
  if (!isWhole) {
    process.stdout.write(report(result));
    return;
  }
  await writeFile(rawPath, `${JSON.stringify(result)}\n`);
  await writeFile(documentPath, report(result));
  process.stdout.write(`wrote ${documentPath} and ${rawPath}\n`);
}
