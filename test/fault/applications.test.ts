/** Real clients and servers run through a tunnel whose path is cut every three seconds, and notice nothing. */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { chmod, copyFile, mkdir, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { metric } from "../support/metric.ts";
import { PseudoRandomBytes, pseudoRandomStream } from "../support/prng.ts";
import { RelayProcess } from "../support/relay-process.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import { findUnprivilegedUser } from "../support/unprivileged-user.ts";

const CUT_EVERY_MS = 3_000;
const PGBENCH_SECONDS = 20;
const FILE_BYTES = 200 * 1024 ** 2;
/** So slow that several cuts hit each transfer, however fast the machine is. */
const SFTP_KILOBITS = 200_000;

let closers: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

async function startPair(targetPort: number) {
  let relay: RelayProcess | undefined;
  const pair = await SallyportPair.start({
    services: { target: `127.0.0.1:${targetPort}` },
    deployments: [{ name: "target", target: "target" }],
    publicAddress: async (tunnelPort) => {
      relay = await RelayProcess.start(tunnelPort);
      return `127.0.0.1:${relay.port}`;
    },
  });
  closers.push(() => pair.stop());
  closers.push(() => relay!.close());
  return { pair, relay: relay! };
}

interface Rig {
  readonly pair: SallyportPair;
  readonly relay: RelayProcess;
}

/** How often the session has lost every link and went on, as each end counts it. */
async function resumptions({ pair }: Rig): Promise<{ readonly edge: number; readonly agent: number }> {
  const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
  return {
    edge: metric(edge, "edge_tunnel_resumptions_total"),
    agent: metric(agent, "agent_tunnel_resumptions_total"),
  };
}

/** Resolves when both ends have gone on after each of `cuts`, which all hit an established session. */
async function resumedAfter(rig: Rig, cuts: number): Promise<void> {
  await pollUntil(
    async () => {
      const { edge, agent } = await resumptions(rig);
      if (edge >= cuts && agent >= cuts) return true;
      throw new Error(`${edge} at the edge, ${agent} at the agent`);
    },
    { what: `${cuts} resumptions`, timeoutMs: 20_000 },
  );
}

/**
 * Cuts every link again and again while `work` runs, but not before the session has gone on after the last cut; resolves
 * with what it gives and the number of cuts.
 */
async function whileCutting<T>(rig: Rig, work: Promise<T>): Promise<{ result: T; cuts: number }> {
  const before = await resumptions(rig);
  expect(before.edge).toBe(before.agent);
  const stop = new AbortController();
  const cutting = (async () => {
    let cuts = 0;
    for (;;) {
      try {
        await delay(CUT_EVERY_MS, undefined, { signal: stop.signal });
      } catch {
        return cuts;
      }
      await resumedAfter(rig, before.edge + cuts);
      if (stop.signal.aborted) return cuts;
      if ((await rig.relay.order("cut")) > 0) cuts += 1;
    }
  })();
  try {
    const result = await work;
    stop.abort();
    return { result, cuts: await cutting };
  } finally {
    stop.abort();
  }
}

async function makeDirectory(): Promise<string> {
  const directory = await makeTempDir();
  closers.push(() => directory.remove());
  return directory.path;
}

describeWithPrograms("pgbench", ["initdb", "postgres", "pgbench"], (programs) => {
  test("loses no transaction", async () => {
    const directory = await makeDirectory();
    // The server refuses to run as root; its user must be able to pass through the directory, and owns only `data`.
    const user = await findUnprivilegedUser("postgres");
    await chmod(directory, 0o711);
    const data = join(directory, "data");
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
    const server = await TestProcess.start({
      command: programs.postgres,
      args: ["-D", data, "-p", String(port), "-k", data, "-h", "127.0.0.1", "-c", "fsync=off"],
      cwd: data,
      stopSignal: "SIGINT",
      ...asUser,
    });
    closers.push(() => server.stop());
    await server.waitForLine(/database system is ready to accept connections/);
    const rig = await startPair(port);
    const { pair } = rig;
    const pgbench = (...args: string[]) =>
      runSuccessfully({
        command: programs.pgbench,
        args: ["-h", "127.0.0.1", "-p", String(pair.listenerPort("target")), "-U", "tester", ...args, "postgres"],
      });
    await pgbench("-i", "-s", "5", "-q");
    const work = pgbench("-c", "10", "-j", "2", "-T", String(PGBENCH_SECONDS));
    const { result, cuts } = await whileCutting(rig, work);
    const transactions = Number(/transactions actually processed: (\d+)/.exec(result.stdout)?.[1]);
    console.log(`pgbench: ${transactions} transactions, ${cuts} cuts`);
    expect(result.stdout).toMatch(/number of failed transactions: 0 /);
    expect(result.stderr).not.toMatch(/error|abort/i);
    expect(transactions).toBeGreaterThan(100);
    expect(cuts).toBeGreaterThanOrEqual(Math.floor((PGBENCH_SECONDS * 1000) / CUT_EVERY_MS) - 2);
    await resumedAfter(rig, cuts);
    expect(await resumptions(rig)).toEqual({ edge: cuts, agent: cuts });
  });
});

describeWithPrograms("sftp", ["sshd", "sftp", "ssh-keygen"], (programs) => {
  test("puts and gets a file of 200 MiB unchanged", async () => {
    const directory = await makeDirectory();
    const path = (name: string): string => join(directory, name);
    for (const key of ["host-key", "user-key"]) {
      const args = ["-q", "-t", "ed25519", "-N", "", "-f", path(key)];
      await runSuccessfully({ command: programs["ssh-keygen"], args });
    }
    await copyFile(path("user-key.pub"), path("authorized-keys"));
    const port = await findFreePort();
    await writeFile(path("sshd.conf"), serverConfiguration(directory, port));
    // Without this directory, which its system service makes, sshd refuses to run as root.
    if (process.getuid?.() === 0) await mkdir("/run/sshd", { recursive: true, mode: 0o755 });
    const server = await TestProcess.start({ command: programs.sshd, args: ["-D", "-e", "-f", path("sshd.conf")] });
    closers.push(() => server.stop());
    await server.waitForLine(/Server listening on 127\.0\.0\.1/);
    const source = new PseudoRandomBytes("sftp");
    await pipeline(pseudoRandomStream(source, FILE_BYTES), createWriteStream(path("original")));
    const rig = await startPair(port);
    const { pair } = rig;
    const options = {
      IdentityFile: path("user-key"),
      IdentitiesOnly: "yes",
      UserKnownHostsFile: path("known-hosts"),
      GlobalKnownHostsFile: "none",
      StrictHostKeyChecking: "accept-new",
      BatchMode: "yes",
      Ciphers: "aes128-gcm@openssh.com",
    };
    const pairs = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
    const sftp = (command: string) =>
      runSuccessfully({
        command: programs.sftp,
        args: ["-F", "none", "-P", String(pair.listenerPort("target")), "-l", String(SFTP_KILOBITS), "-b", "-"].concat(
          pairs,
          `${userInfo().username}@127.0.0.1`,
        ),
        input: `${command}\n`,
        timeoutMs: 80_000,
      });
    const put = await whileCutting(rig, sftp(`put ${path("original")} ${path("stored")}`));
    await resumedAfter(rig, put.cuts);
    expect(await sha256Of(path("stored"))).toBe(source.digest());
    const get = await whileCutting(rig, sftp(`get ${path("stored")} ${path("returned")}`));
    expect(await sha256Of(path("returned"))).toBe(source.digest());
    console.log(`sftp: ${put.cuts} and ${get.cuts} cuts`);
    expect(put.cuts).toBeGreaterThanOrEqual(2);
    expect(get.cuts).toBeGreaterThanOrEqual(2);
    await resumedAfter(rig, put.cuts + get.cuts);
    for (const record of await pair.waitForEdgeRecords("target", 2)) expect(record).toMatchObject({ code: "--" });
  });
});

function serverConfiguration(directory: string, port: number): string {
  return [
    `Port ${port}`,
    "ListenAddress 127.0.0.1",
    `HostKey ${directory}/host-key`,
    `AuthorizedKeysFile ${directory}/authorized-keys`,
    "PidFile none",
    // The keys lie below the system's temporary directory, which everyone may write to.
    "StrictModes no",
    "UsePAM no",
    "PasswordAuthentication no",
    "PermitRootLogin prohibit-password",
    "Subsystem sftp internal-sftp",
    "",
  ].join("\n");
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1024 * 1024 }), hash);
  return hash.digest("hex");
}
