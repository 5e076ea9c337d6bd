/**
 * What Linux' /proc tells of a process and all that descend from it. A peer may be one process, a process with workers
 * (nginx) or one that forks for each connection (socat, sshd): a tree counts them alike.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";

interface ProcessEntry {
  readonly pid: number;
  readonly parent: number;
  /** User and system time of itself and of all children that have ended and were waited for, in clock ticks. */
  readonly ticks: number;
  /** Since boot, in clock ticks: with the pid it names a process for good. */
  readonly startedAt: number;
}

export interface TreeUsage {
  /** User and system time so far, children that have ended included, in milliseconds. The kernel counts in 10 ms. */
  readonly cpuMs: number;
  /**
   * Memory in use, in bytes: the private pages of every process and, once, the most that any of them shares. For a single
   * process that is its resident set, shared libraries and program text included.
   */
  readonly residentBytes: number;
  readonly processes: number;
}

let clockTicksPerSecond: number | undefined;

function ticksToMs(ticks: number): number {
  clockTicksPerSecond ??= Number(execFileSync("getconf", ["CLK_TCK"], { encoding: "utf8" }));
  return (ticks / clockTicksPerSecond) * 1000;
}

/** A process that ends while it is read is left out. */
function readProcess(pid: number): ProcessEntry | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The name in parentheses may hold blanks. After it, field 3 of proc(5) is at 0: ppid 4, utime 14, stime 15, cutime 16,
  // cstime 17, starttime 22.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const field = (number: number): number => Number(fields[number - 3]);
  return { pid, parent: field(4), ticks: field(14) + field(15) + field(16) + field(17), startedAt: field(22) };
}

/** The processes of these ids and all that descend from them, parents first. */
function treeOf(roots: readonly number[]): ProcessEntry[] {
  const children = new Map<number, ProcessEntry[]>();
  const byId = new Map<number, ProcessEntry>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const entry = readProcess(Number(name));
    if (entry === undefined) continue;
    byId.set(entry.pid, entry);
    const siblings = children.get(entry.parent);
    if (siblings === undefined) children.set(entry.parent, [entry]);
    else siblings.push(entry);
  }
  const tree = roots.flatMap((pid) => byId.get(pid) ?? []);
  for (let index = 0; index < tree.length; index++) tree.push(...(children.get(tree[index]!.pid) ?? []));
  return tree;
}

/** CPU alone, which is cheap to read. */
export function treeCpuMs(roots: readonly number[]): number {
  return ticksToMs(treeOf(roots).reduce((sum, { ticks }) => sum + ticks, 0));
}

export function treeUsage(roots: readonly number[]): TreeUsage {
  const tree = treeOf(roots);
  let privateKiB = 0;
  let sharedKiB = 0;
  for (const { pid } of tree) {
    let rollup: string;
    try {
      rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
    } catch {
      continue;
    }
    const kiB = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(rollup)?.[1] ?? 0);
    privateKiB += kiB("Private_Clean") + kiB("Private_Dirty");
    sharedKiB = Math.max(sharedKiB, kiB("Shared_Clean") + kiB("Shared_Dirty"));
  }
  return {
    cpuMs: ticksToMs(tree.reduce((sum, { ticks }) => sum + ticks, 0)),
    residentBytes: (privateKiB + sharedKiB) * 1024,
    processes: tree.length,
  };
}

/** A remembered tree, so that what it leaves behind can be ended when its root is gone and its children are orphans. */
export class ProcessTree {
  readonly #entries: readonly ProcessEntry[];

  constructor(roots: readonly number[]) {
    this.#entries = treeOf(roots);
  }

  /** Ends, by id, what still runs of it. An id that another process has taken since is left alone. */
  killRest(): void {
    for (const { pid, startedAt } of this.#entries) {
      if (readProcess(pid)?.startedAt !== startedAt) continue;
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended in between.
      }
    }
  }
}

/** Ends, by id, all that this process has started and all that those have. */
export function killDescendants(): void {
  const own = treeOf([process.pid]).filter(({ pid }) => pid !== process.pid);
  for (const { pid } of own) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended in between.
    }
  }
}
