import { processUsage } from "./process-usage.ts";

/** At most this much is put down to the machine. */
const MAX_MACHINE_MS = 2_000;
/** A process that ends takes its figure with it, so that it is looked at this often meanwhile. */
const LOOK_EVERY_MS = 20;

/**
 * How long `action` takes, and how long one of the processes `pids` or this one, whichever longest, was meanwhile ready to run
 * without getting a processor: on a machine that has other work this is no part of what the programs need.
 */
export async function timed<T>(
  pids: readonly number[],
  action: () => Promise<T>,
): Promise<{ readonly result: T; readonly tookMs: number; readonly machineMs: number }> {
  const first = new Map<number, number>();
  const last = new Map<number, number>();
  const lookAt = async (pid: number): Promise<void> => {
    const usage = await processUsage(pid).catch(() => undefined);
    if (usage === undefined) return;
    if (!first.has(pid)) first.set(pid, usage.waitedMs);
    last.set(pid, usage.waitedMs);
  };
  const look = async (): Promise<void> => void (await Promise.all([...pids, process.pid].map(lookAt)));
  await look();
  let looking: Promise<void> | undefined;
  const timer = setInterval(() => {
    looking ??= look().then(() => {
      looking = undefined;
    });
  }, LOOK_EVERY_MS);
  const startedAt = performance.now();
  try {
    const result = await action();
    const tookMs = performance.now() - startedAt;
    await looking;
    await look();
    const longestMs = Math.max(...[...last].map(([pid, waitedMs]) => waitedMs - (first.get(pid) ?? 0)));
    return { result, tookMs: Math.round(tookMs), machineMs: Math.round(Math.min(longestMs, MAX_MACHINE_MS)) };
  } finally {
    clearInterval(timer);
  }
}
