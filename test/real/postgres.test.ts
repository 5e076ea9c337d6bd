import { chmod, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { findFreePort } from "../support/free-port.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { findUnprivilegedUser } from "../support/unprivileged-user.ts";

describeWithPrograms("PostgreSQL", ["initdb", "postgres", "psql", "pgbench"], (programs) => {
  let directory: TempDir;
  let server: TestProcess;
  let routes: Routes<"postgres">;

  beforeAll(async () => {
    directory = await makeTempDir();
    // The server refuses to run as root; its user must be able to pass through the directory, and owns only `data`.
    const user = await findUnprivilegedUser("postgres");
    await chmod(directory.path, 0o711);
    const data = join(directory.path, "data");
    await mkdir(data, { mode: 0o700 });
    await user?.own(data);
    const asUser = user === undefined ? {} : { user: user.ids };
    const port = await findFreePort();
    await runSuccessfully({
      command: programs.initdb,
      args: ["-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
      cwd: data,
      ...asUser,
    });
    server = await TestProcess.start({
      command: programs.postgres,
      args: ["-D", data, "-p", String(port), "-k", data, "-h", "127.0.0.1", "-c", "fsync=off"],
      cwd: data,
      // A "fast" shutdown, which does not wait for clients to leave.
      stopSignal: "SIGINT",
      ...asUser,
    });
    await server.waitForLine(/database system is ready to accept connections/);
    routes = await Routes.to({ postgres: port });
  });

  afterAll(async () => {
    await routes?.stop();
    await server?.stop();
    await directory?.remove();
  });

  const connection = (port: number): string[] => ["-h", "127.0.0.1", "-p", String(port), "-U", "tester"];

  it.each(ROUTE_MODES)("answers a query of psql, %s", async (mode) => {
    const { stdout } = await runSuccessfully({
      command: programs.psql,
      args: [
        ...connection(routes.port("postgres", mode)),
        "-X",
        "-A",
        "-t",
        "-c",
        "SELECT sum(n) FROM generate_series(1, 100000) n",
      ].concat(["postgres"]),
    });
    expect(stdout.trim()).toBe("5000050000");
    await routes.expectCarried("postgres", mode, 1);
  });

  it.each(ROUTE_MODES)(
    "serves ten clients of pgbench for ten seconds without a failed transaction, %s",
    async (mode) => {
      const base = connection(routes.port("postgres", mode));
      await runSuccessfully({ command: programs.pgbench, args: [...base, "-i", "-s", "5", "-q", "postgres"] });
      const { stdout, stderr } = await runSuccessfully({
        command: programs.pgbench,
        args: [...base, "-c", "10", "-j", "2", "-T", "10", "postgres"],
      });
      expect(stdout).toMatch(/number of failed transactions: 0 /);
      expect(Number(/transactions actually processed: (\d+)/.exec(stdout)?.[1])).toBeGreaterThan(100);
      expect(stderr).not.toMatch(/error|abort/i);
      await routes.expectCarried("postgres", mode, 10);
    },
  );
});
