import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface TempDir {
  readonly path: string;
  /** Removes the directory with everything in it. May be called more than once. */
  remove(): Promise<void>;
}

/** Makes an empty directory, mode 0700. The caller removes it, after the programs that use it have stopped. */
export async function makeTempDir(prefix = "sallyport-"): Promise<TempDir> {
  const path = await mkdtemp(join(tmpdir(), prefix));
  return {
    path,
    remove: () => rm(path, { recursive: true, force: true, maxRetries: 3 }),
  };
}
