import { readFile } from "node:fs/promises";
import { runSuccessfully } from "./child-process.ts";

/** Both from Linux' /proc; these tests run nowhere else. */
export interface ProcessUsage {
  /** Memory that is in use by this process now, in bytes. */
  readonly residentBytes: number;
  /** User and system time since its start, of all its threads, in milliseconds. */
  readonly cpuMs: number;
  /** How long its main thread was ready to run and had no processor, in milliseconds; 0 where the kernel does not tell. */
  readonly waitedMs: number;
}

let clockTicksPerSecond: number | undefined;

export async function processUsage(pid: number): Promise<ProcessUsage> {
  clockTicksPerSecond ??= Number((await runSuccessfully({ command: "getconf", args: ["CLK_TCK"] })).stdout);
  const [status, stat] = await Promise.all([
    readFile(`/proc/${pid}/status`, "utf8"),
    readFile(`/proc/${pid}/stat`, "utf8"),
  ]);
  const schedule = await readFile(`/proc/${pid}/schedstat`, "utf8").catch(() => "0 0 0");
  const residentKiB = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]);
  // The name in parentheses may hold blanks; utime and stime are fields 14 and 15 of proc(5), 12 and 13 after the name.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = Number(fields[11]) + Number(fields[12]);
  return {
    residentBytes: residentKiB * 1024,
    cpuMs: (ticks / clockTicksPerSecond) * 1000,
    waitedMs: Number(schedule.split(" ")[1]) / 1e6,
  };
}
