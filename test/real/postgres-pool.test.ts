/**
 * pgbench against a pool of two PostgreSQL servers through the tunnel, while one of them is stopped and started: only the
 * connections that were on it fail, and new ones go to the other, within the time that a check takes.
 */
import { chmod, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runProcess, runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { type LogRecord, SallyportPair } from "../support/sallyport-pair.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { TempDir } from "../support/temp-dir.ts";
import { findUnprivilegedUser } from "../support/unprivileged-user.ts";

/** Went to another server than `service`, or there only after it had failed elsewhere. */
const goesWrong = ({ target, attempts }: LogRecord, service: string): boolean => target !== service || attempts !== 1;

interface Server {
  readonly service: string;
  readonly port: number;
  start(): Promise<void>;
  stop(): Promise<void>;
}

describeWithPrograms("a pool of two PostgreSQL servers", ["initdb", "postgres", "psql", "pgbench"], (programs) => {
  let directory: TempDir;
  let pair: SallyportPair | undefined;
  const servers: Server[] = [];

  const makeServer = async (service: string): Promise<Server> => {
    const user = await findUnprivilegedUser("postgres");
    const data = join(directory.path, service);
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
    let running: TestProcess | undefined;
    return {
      service,
      port,
      async start() {
        running = await TestProcess.start({
          command: programs.postgres,
          args: ["-D", data, "-p", String(port), "-k", data, "-h", "127.0.0.1", "-c", "fsync=off"],
          cwd: data,
          // A "fast" shutdown, which does not wait for clients to leave.
          stopSignal: "SIGINT",
          ...asUser,
        });
        await running.waitForLine(/database system is ready to accept connections/);
      },
      async stop() {
        await running?.stop();
        running = undefined;
      },
    };
  };

  beforeAll(async () => {
    directory = await makeTempDir();
    await chmod(directory.path, 0o711);
    for (const service of ["pg-a", "pg-b"]) {
      const server = await makeServer(service);
      servers.push(server);
      await server.start();
      const base = ["-h", "127.0.0.1", "-p", String(server.port), "-U", "tester"];
      await runSuccessfully({ command: programs.pgbench, args: [...base, "-i", "-s", "2", "-q", "postgres"] });
    }
    pair = await SallyportPair.start({
      deployments: [
        {
          name: "db",
          target: "pg-a",
          settings: {
            target: undefined,
            targets: [{ target: "pg-a" }, { target: "pg-b" }],
            check: { interval: "500ms", timeout: "2s", rise: 2, fall: 2 },
          },
        },
      ],
      services: Object.fromEntries(servers.map(({ service, port }) => [service, `127.0.0.1:${port}`])),
    });
  }, 120_000);

  afterAll(async () => {
    await pair?.stop();
    for (const server of servers) await server.stop();
    await directory?.remove();
  });

  it("loses only the connections of the server that is stopped, and gives it new ones when it is back", async () => {
    const through = pair!;
    const base = ["-h", "127.0.0.1", "-p", String(through.listenerPort("db")), "-U", "tester"];
    const condition = async (service: string): Promise<string | undefined> => {
      const out = await through.command("edge", [
        "target",
        "list",
        "db",
        "--json",
        "--config",
        through.edge.configPath,
      ]);
      const { targets } = JSON.parse(out) as { targets: { target: string; condition: string }[] };
      return targets.find(({ target }) => target === service)?.condition;
    };
    const becomes = (service: string, wanted: string) =>
      pollUntil(async () => ((await condition(service)) === wanted ? true : undefined), {
        what: `${service} ${wanted}`,
        timeoutMs: 30_000,
      });
    await becomes("pg-b", "up");
    const before = through.records().edge.length;

    // Clients that stay on one connection: those of the server that stops fail, the others finish their transactions.
    const staying = runProcess({
      command: programs.pgbench,
      args: [...base, "-c", "8", "-j", "2", "-T", "25", "-n", "postgres"],
      timeoutMs: 60_000,
    });
    const config = ["--config", through.edge.configPath];
    await pollUntil(
      async () => {
        const out = await through.command("edge", ["connections", "--deployment", "db", "--json", ...config]);
        const { connections } = JSON.parse(out) as { connections: { target: string; bytesIn: number }[] };
        // Beyond their greetings: each is in the middle of its transactions.
        const busy = connections.filter(({ bytesIn }) => bytesIn > 3_000).map(({ target }) => target);
        return busy.toSorted().join() === "pg-a,pg-a,pg-a,pg-a,pg-b,pg-b,pg-b,pg-b" ? true : undefined;
      },
      { what: "four busy clients on each server", timeoutMs: 20_000 },
    );
    const [stopped, other] = [servers[0]!, servers[1]!];
    await stopped.stop();
    // A connection for each transaction. Until the checks have noticed, a refusal sends it to the other server.
    const short = (transactions: number) =>
      runSuccessfully({
        command: programs.pgbench,
        args: [...base, "-c", "1", "-t", String(transactions), "-C", "-n", "-S", "postgres"],
      });
    expect((await short(20)).stdout).toMatch(/number of failed transactions: 0 /);
    await becomes(stopped.service, "down");
    const downAt = Date.now();
    expect((await short(20)).stdout).toMatch(/number of failed transactions: 0 /);
    const startedAt = Date.now();
    await stopped.start();
    await becomes(stopped.service, "up");
    const upAt = Date.now();
    expect((await short(10)).stdout).toMatch(/number of failed transactions: 0 /);

    const { stdout, stderr } = await staying;
    const lost = new Set([...`${stdout}${stderr}`.matchAll(/client (\d+) (?:aborted|script)/g)].map(([, id]) => id));
    const records = (await through.waitForEdgeRecords("db", before + 8)).slice(before);
    const cut = records.filter(({ code }) => code !== "--");
    // Whether the last word of PostgreSQL or the end of its process comes first, nothing was on the other server.
    expect(cut.filter(({ target }) => target === other.service)).toEqual([]);
    expect(lost.size).toBe(4);
    const between = (from: number, to: number) =>
      records.filter(
        ({ startedAt: at }) => new Date(String(at)).getTime() >= from && new Date(String(at)).getTime() < to,
      );
    // Once it is marked down nobody tries it, and once it is up it has its share again.
    expect(between(downAt, startedAt).length).toBeGreaterThanOrEqual(20);
    expect(between(downAt, startedAt).filter((record) => goesWrong(record, other.service))).toEqual([]);
    expect(between(upAt, Number.POSITIVE_INFINITY).map(({ target }) => target)).toContain(stopped.service);
  }, 120_000);
});
