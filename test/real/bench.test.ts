/** Whether the benchmark works, not how fast anything is. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, expect, it } from "vitest";
import { runSuccessfully, TestProcess } from "../support/child-process.ts";
import { describeWithPrograms } from "../support/required-program.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import type { Value } from "../bench/measurement.ts";
import type { Result, Sample } from "../bench/result.ts";

const program = fileURLToPath(new URL("../bench/bench.mjs", import.meta.url));
/** It takes less than a minute on a machine that does nothing else; other tests run beside it. */
const SMOKE_TIMEOUT_MS = 360_000;
/** Debian has these; the others are measured only where somebody has put them on PATH. */
const ALWAYS_THERE = [
  "ours",
  "ours-direct",
  "node-tls",
  "node-pipe",
  "openssh",
  "openssh-aes128-gcm",
  "haproxy",
  "nginx",
  "socat",
  "loopback",
];

/** The processes that have this in their environment, as all have that come from one with it. */
async function processesWith(variable: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const environment = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
    if (!environment.split("\0").includes(variable)) continue;
    found.push(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => pid));
  }
  return found;
}

interface SmokeRun {
  readonly result: Result;
  readonly report: string;
  readonly namespaces: string;
  readonly processesLeft: readonly string[];
}

async function runSmoke(): Promise<SmokeRun> {
  const directory = await makeTempDir();
  try {
    const jsonFile = join(directory.path, "result.json");
    const bench = await TestProcess.start({
      command: process.execPath,
      args: [program, "--smoke", "--json", jsonFile],
      env: { SALLYPORT_BENCH_RUN: directory.path },
    });
    const end = await bench.waitForEnd(SMOKE_TIMEOUT_MS).catch(() => bench.stop());
    if (end.code !== 0) throw new Error(`the benchmark failed\n${bench.tail}`);
    const list = await runSuccessfully({ command: "ip", args: ["netns", "list"] });
    return {
      result: JSON.parse(await readFile(jsonFile, "utf8")) as Result,
      report: bench.stdout,
      namespaces: list.stdout
        .split("\n")
        .filter((line) => line.startsWith(`sp${bench.pid}`))
        .join(),
      processesLeft: await processesWith(`SALLYPORT_BENCH_RUN=${directory.path}`),
    };
  } finally {
    await directory.remove();
  }
}

/** `peer measurement column` of the samples whose value is so. */
function named(samples: readonly Sample[], isWanted: (value: Value) => boolean): string[] {
  return samples.flatMap(({ peer, measurement, values }) =>
    Object.entries(values).flatMap(([column, value]) => (isWanted(value) ? [`${peer} ${measurement} ${column}`] : [])),
  );
}

describeWithPrograms(
  "the benchmark's short form",
  ["gcc", "haproxy", "ip", "iperf3", "nginx", "openssl", "pgbench", "socat", "ssh", "ssh-keygen", "sshd", "wrk"],
  () => {
    let run: SmokeRun;
    beforeAll(async () => {
      run = await runSmoke();
    }, SMOKE_TIMEOUT_MS + 10_000);

    it("starts every row that is installed, and each carries bytes", () => {
      const absent = run.result.peers.filter((peer) => peer.absent !== undefined).map(({ id }) => id);
      expect(absent.filter((id) => ALWAYS_THERE.includes(id))).toEqual([]);
      const carried = run.result.samples.filter(({ measurement }) => measurement === "bulk").map(({ peer }) => peer);
      expect(carried).toEqual(expect.arrayContaining(ALWAYS_THERE));
      expect(named(run.result.samples, (value) => value === "failed")).toEqual([]);
    });

    it("has a number of ours in every column", () => {
      const ours = run.result.samples.filter(({ peer }) => peer === "ours");
      expect(named(ours, (value) => typeof value !== "number")).toEqual([]);
      const slow = ["ip-filter"];
      expect(ours.map(({ measurement }) => measurement)).toEqual(
        run.result.measurements.filter((id) => !slow.includes(id)),
      );
    });

    it("loses no byte and no connection of ours when the link is cut", () => {
      const cut = run.result.samples.find(({ peer, measurement }) => peer === "ours" && measurement === "cut");
      expect(cut?.values).toMatchObject({ "cut-lost": 0, "cut-closed": 0 });
    });

    it("reports every row", () => {
      const missing = run.result.peers.filter(({ title }) => !run.report.includes(`| ${title} |`));
      expect(missing).toEqual([]);
    });

    it("leaves no process and no network namespace behind", () => {
      expect(run.processesLeft).toEqual([]);
      expect(run.namespaces).toBe("");
    });
  },
);
