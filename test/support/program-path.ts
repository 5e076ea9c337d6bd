import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { delimiter, join } from "node:path";

/**
 * The full path of a program, or `undefined` when this machine lacks it. Looks where Debian keeps programs, too:
 * PostgreSQL's own directory comes first, because its wrappers on PATH want a cluster.
 */
export function findOnPath(name: string): string | undefined {
  return searchPath()
    .map((directory) => join(directory, name))
    .find(isExecutable);
}

function searchPath(): string[] {
  const versionsDirectory = "/usr/lib/postgresql";
  const postgresql = existsSync(versionsDirectory)
    ? readdirSync(versionsDirectory)
        .sort((a, b) => Number(b) - Number(a))
        .map((version) => join(versionsDirectory, version, "bin"))
    : [];
  return [...postgresql, ...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"].filter(
    (directory) => directory !== "",
  );
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
