/**
 * Keeps two processes from changing one file at the same time: a file beside it, `FILE.lock`, that only one of them can
 * make. For changes that take milliseconds.
 */
import { open, rm, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { errorFacts, ExitCode, Failure, systemFailure } from "./failure.ts";

/** A holder that was killed leaves its lock behind; after this time nobody works on the file any more. */
const STALE_MS = 10_000;
const RETRY_MS = 20;
/** More than `STALE_MS`, so that a lock that was left behind only delays. */
const PATIENCE_MS = 15_000;

/**
 * Runs `change` while no other process runs one for the same `path`, and resolves with its result.
 *
 * @throws Failure 69 when others hold the lock for 15 s, 74 or 77 when it cannot be made; what `change` throws
 */
export async function withFileLock<T>(path: string, change: () => Promise<T>): Promise<T> {
  const lock = `${path}.lock`;
  const deadline = performance.now() + PATIENCE_MS;
  while (!(await tryToMake(lock))) {
    if (performance.now() > deadline) {
      throw new Failure(ExitCode.unavailable, lock, "another command works on the file; try again when it is done");
    }
    await removeStale(lock);
    await delay(RETRY_MS);
  }
  try {
    return await change();
  } finally {
    await rm(lock, { force: true });
  }
}

async function tryToMake(lock: string): Promise<boolean> {
  try {
    const file = await open(lock, "wx", 0o600);
    await file.close();
    return true;
  } catch (error) {
    const { code } = errorFacts(error);
    // Windows reports a file that is just being removed as one that may not be opened.
    if (code === "EEXIST" || (process.platform === "win32" && code === "EPERM")) return false;
    throw systemFailure(error, lock, "make the lock file");
  }
}

async function removeStale(lock: string): Promise<void> {
  try {
    const { mtimeMs } = await stat(lock);
    if (Date.now() - mtimeMs > STALE_MS) await rm(lock, { force: true });
  } catch {
    // It is gone, which is as good.
  }
}
