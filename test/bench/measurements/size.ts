import { readFileSync, realpathSync, statSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runSuccessfully } from "../../support/child-process.ts";
import { findOnPath } from "../../support/program-path.ts";
import type { Measurement, Values } from "../measurement.ts";

const root = fileURLToPath(new URL("../../../", import.meta.url));

/** What has to be installed. */
export const size: Measurement = {
  id: "size",
  title: "Size",
  method:
    "Ours: the five packages as `npm pack` makes them, all that `npm ci --omit=dev` installs beside them, and how many packages " +
    "those are; Node itself is not in it. Others: the programs' files, without the libraries that they load.",
  columns: [
    { id: "size-packed", title: "packed", unit: "kB", better: "less" },
    { id: "size-installed", title: "installed", unit: "MB", better: "less" },
    { id: "size-dependencies", title: "dependencies at run time", unit: "packages", better: "less" },
  ],
  programs: ["npm"],
  maxRounds: 1,
  estimateSeconds: () => 2,
  suits: ({ id, programs }) => id === "ours" || programs.length > 0,
  measure: async (_bench, peer) => (peer.isOurs === true ? measureOurs() : programSizes(peer.programs)),
};

async function measureOurs(): Promise<Values> {
  const pack = await runSuccessfully({
    command: "npm",
    args: ["pack", "--workspaces", "--dry-run", "--json", "--ignore-scripts"],
    cwd: root,
  });
  const tarballs = Object.values(JSON.parse(pack.stdout) as Record<string, { size: number; unpackedSize: number }>);
  const dependencies = runtimeDependencies();
  let bytes = tarballs.reduce((sum, { unpackedSize }) => sum + unpackedSize, 0);
  for (const directory of dependencies) bytes += await directoryBytes(join(root, directory));
  return {
    "size-packed": tarballs.reduce((sum, { size }) => sum + size, 0) / 1e3,
    "size-installed": bytes / 1e6,
    "size-dependencies": dependencies.length,
  };
}

/** As the lock file has them: what is neither ours nor for development only. */
function runtimeDependencies(): string[] {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    readonly packages: Readonly<Record<string, { readonly dev?: boolean; readonly link?: boolean }>>;
  };
  return Object.entries(lock.packages)
    .filter(([path, { dev, link }]) => path.includes("node_modules/") && dev !== true && link !== true)
    .map(([path]) => path);
}

async function directoryBytes(path: string): Promise<number> {
  const entries = await readdir(path, { withFileTypes: true, recursive: true }).catch(() => []);
  return entries
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
}

function programSizes(programs: readonly string[]): Values {
  // A key maker is no part of a tunnel.
  const files = programs.filter((name) => name !== "ssh-keygen").flatMap((name) => findOnPath(name) ?? []);
  const bytes = files.reduce((sum, file) => sum + statSync(realpathSync(file)).size, 0);
  return { "size-installed": bytes / 1e6 };
}
