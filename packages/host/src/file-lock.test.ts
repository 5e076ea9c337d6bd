import { readdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { makeTempDir, type TempDir } from "../../../test/support/temp-dir.ts";
import { Failure } from "./failure.ts";
import { withFileLock } from "./file-lock.ts";

let directory: TempDir;
let path: string;

beforeEach(async () => {
  directory = await makeTempDir();
  path = join(directory.path, "file.json");
});
afterEach(() => directory.remove());

test("one change runs at a time", async () => {
  let running = 0;
  let most = 0;
  const change = async (): Promise<void> => {
    running += 1;
    most = Math.max(most, running);
    await stat(directory.path);
    running -= 1;
  };
  await Promise.all(Array.from({ length: 8 }, () => withFileLock(path, change)));
  expect(most).toBe(1);
});

test("the result comes through, a failure as well, and no lock is left", async () => {
  expect(await withFileLock(path, () => Promise.resolve(7))).toBe(7);
  await expect(withFileLock(path, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(await readdir(directory.path)).toEqual([]);
});

test("a lock that a killed process left behind is removed", async () => {
  await writeFile(`${path}.lock`, "");
  const longAgo = new Date(Date.now() - 60_000);
  await utimes(`${path}.lock`, longAgo, longAgo);
  expect(await withFileLock(path, () => Promise.resolve("done"))).toBe("done");
});

test("a directory that does not take the lock is told", async () => {
  await expect(withFileLock(join(directory.path, "missing", "file"), () => Promise.resolve())).rejects.toSatisfy(
    (error) => error instanceof Failure && error.exitCode === 74,
  );
});
