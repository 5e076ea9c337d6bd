import { cpus, loadavg, release, totalmem } from "node:os";
import { findOnPath } from "../support/program-path.ts";
import { versionOf } from "./program-version.ts";

/** What a reader needs to judge the figures, names to values. */
export async function describeMachine(): Promise<Record<string, string>> {
  const processors = cpus();
  const tools: Record<string, string> = {};
  for (const [name, args, pattern] of [
    ["iperf3", ["--version"], /iperf (\S+)/],
    ["wrk", ["-v"], /wrk (\S+)/],
    ["pgbench", ["--version"], /(\d[\d.]*)/],
  ] as const) {
    const command = findOnPath(name);
    tools[name] = command === undefined ? "not installed" : await versionOf(command, args, pattern);
  }
  return {
    processor: `${processors.length} × ${processors[0]?.model.trim() ?? "?"}`,
    memory: `${Math.round(totalmem() / 2 ** 30)} GiB`,
    kernel: `Linux ${release()}`,
    Node: `${process.version}, OpenSSL ${process.versions.openssl}`,
    ...tools,
    "load at the start": loadavg()[0]!.toFixed(1),
  };
}
