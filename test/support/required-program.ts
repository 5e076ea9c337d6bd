import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { describe } from "vitest";

/** The programs that tests with real software start, and the Debian package that has each. */
const DEBIAN_PACKAGES = {
  haproxy: "haproxy",
  initdb: "postgresql",
  ip: "iproute2",
  ncat: "ncat",
  nginx: "nginx",
  openssl: "openssl",
  pgbench: "postgresql",
  postgres: "postgresql",
  psql: "postgresql",
  "redis-benchmark": "redis-tools",
  "redis-cli": "redis-tools",
  "redis-server": "redis-server",
  sftp: "openssh-client",
  socat: "socat",
  "ssh-keygen": "openssh-client",
  sshd: "openssh-server",
  "systemd-analyze": "systemd",
  wrk: "wrk",
} as const;

export type ProgramName = keyof typeof DEBIAN_PACKAGES;

/** The full path of a program, or `undefined` when this machine lacks it. */
export function findProgram(name: ProgramName): string | undefined {
  return searchPath()
    .map((directory) => join(directory, name))
    .find(isExecutable);
}

/**
 * A suite that needs programs which not every machine has. Where one is missing it fails when `CI` is set, and is
 * skipped otherwise under a title that says what to install. The body gets the programs' full paths.
 */
export function describeWithPrograms<Name extends ProgramName>(
  title: string,
  names: readonly Name[],
  body: (programs: Readonly<Record<Name, string>>) => void,
): void {
  const found = names.map((name) => [name, findProgram(name)] as const);
  const missing = found.filter(([, path]) => path === undefined).map(([name]) => name);
  const packages = [...new Set(missing.map((name) => DEBIAN_PACKAGES[name]))].join(" ");
  const advice = missing.length === 0 ? "" : ` (needs ${missing.join(", ")}: apt-get install ${packages})`;
  if (missing.length > 0 && isSet(process.env.CI)) throw new Error(`${title}${advice}`);
  describe.skipIf(missing.length > 0)(`${title}${advice}`, () => {
    body(Object.fromEntries(found) as Record<Name, string>);
  });
}

/** Where Debian keeps programs: PostgreSQL's own directory first, because its wrappers on PATH want a cluster. */
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

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== "" && value !== "false" && value !== "0";
}
