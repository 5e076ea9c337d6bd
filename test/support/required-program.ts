import { describe } from "vitest";
import { findOnPath } from "./program-path.ts";

/** The programs that tests with real software start, and the Debian package that has each. */
const DEBIAN_PACKAGES = {
  gcc: "gcc",
  haproxy: "haproxy",
  initdb: "postgresql",
  ip: "iproute2",
  iperf3: "iperf3",
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
  ssh: "openssh-client",
  "ssh-keygen": "openssh-client",
  sshd: "openssh-server",
  "systemd-analyze": "systemd",
  wrk: "wrk",
} as const;

export type ProgramName = keyof typeof DEBIAN_PACKAGES;

/** The full path of a program, or `undefined` when this machine lacks it. */
export function findProgram(name: ProgramName): string | undefined {
  return findOnPath(name);
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

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== "" && value !== "false" && value !== "0";
}
