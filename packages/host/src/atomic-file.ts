/**
 * Files that are either old or new and never half: written beside their place, flushed to the disk, then renamed onto it.
 */
import { randomBytes } from "node:crypto";
import { open, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { systemFailure } from "./failure.ts";

/**
 * Replaces the file at `path`, or makes it. `mode` (for example 0o600) holds from the first byte on. When root writes, the
 * file goes to the owner of its directory: a command that root runs by hand must not take a file away from the service.
 *
 * @throws Failure 74 or 77 that names the path; the old file is untouched then, and nothing is left beside it
 */
export async function writeFileAtomically(path: string, data: string | Uint8Array, mode: number): Promise<void> {
  const directory = dirname(path);
  const temporary = join(directory, `.${basename(path)}.${randomBytes(6).toString("hex")}.tmp`);
  try {
    try {
      // "wx": the name is random, and whoever made it before us is not to be written to.
      const file = await open(temporary, "wx", mode);
      try {
        if (process.getuid?.() === 0) {
          const owner = await stat(directory);
          await file.chown(owner.uid, owner.gid);
        }
        // The umask takes bits away from what `open` is given; the mode asked for is the mode of the file.
        await file.chmod(mode);
        await file.writeFile(data);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => undefined);
      throw error;
    }
    await syncDirectory(directory);
  } catch (error) {
    throw systemFailure(error, path, "write the file");
  }
}

/** Makes the rename outlive a power cut. Windows cannot open directories; there, and on odd file systems, it is left out. */
async function syncDirectory(directory: string): Promise<void> {
  try {
    const handle = await open(directory, "r");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch {
    // The file itself is written and in place.
  }
}
