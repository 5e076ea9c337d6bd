import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { writeFileAtomically } from "./atomic-file.ts";

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "sallyport-atomic-"));
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

test("a new file has the content and the mode that were asked for, whatever the umask", async () => {
  const path = join(directory, "clients.json");
  const before = process.umask(0o077);
  try {
    await writeFileAtomically(path, "one", 0o644);
  } finally {
    process.umask(before);
  }
  expect(await readFile(path, "utf8")).toBe("one");
  expect((await stat(path)).mode & 0o777).toBe(0o644);
});

test("an old file is replaced as a whole, with the new mode, and nothing is left beside it", async () => {
  const path = join(directory, "clients.json");
  await writeFile(path, "a much longer content", { mode: 0o644 });
  await writeFileAtomically(path, new Uint8Array([1, 2]), 0o600);
  expect([...(await readFile(path))]).toEqual([1, 2]);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect(await readdir(directory)).toEqual(["clients.json"]);
});

test.runIf(process.getuid?.() === 0)("what root writes belongs to the owner of the directory", async () => {
  await chown(directory, 12_345, 12_346);
  await writeFileAtomically(join(directory, "a"), "x", 0o600);
  expect(await stat(join(directory, "a"))).toMatchObject({ uid: 12_345, gid: 12_346 });
});

test("a write that fails leaves no file behind and names its target", async () => {
  const path = join(directory, "is-a-directory");
  await mkdir(path);
  await chmod(path, 0o755);
  await writeFile(join(path, "keep"), "");
  await expect(writeFileAtomically(path, "x", 0o600)).rejects.toMatchObject({ exitCode: 74, where: path });
  expect(await readdir(directory)).toEqual(["is-a-directory"]);
});

test("a missing directory is named", async () => {
  const path = join(directory, "none", "file");
  await expect(writeFileAtomically(path, "x", 0o600)).rejects.toThrow(
    `${path}: cannot write the file: no such file or directory (ENOENT)`,
  );
});
