import { chmod, chown, mkdir, mkdtemp, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { openStateDirectory } from "./state-directory.ts";

let parent: string;
let path: string;

beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), "sallyport-state-"));
  path = join(parent, "state");
});

afterEach(async () => {
  vi.restoreAllMocks();
  await rm(parent, { recursive: true });
});

test("a missing directory is made for its owner alone", async () => {
  await openStateDirectory(path);
  expect((await stat(path)).mode & 0o777).toBe(0o700);
  await openStateDirectory(path);
});

test.skipIf(process.platform === "win32").each([[0o755], [0o750], [0o701], [0o770]])(
  "a directory of mode %o is refused with the mode that is needed",
  async (mode) => {
    await mkdir(path);
    await chmod(path, mode);
    await expect(openStateDirectory(path)).rejects.toMatchObject({
      exitCode: 77,
      where: path,
      what: expect.stringContaining("chmod 700"),
    });
  },
);

test.runIf(process.getuid?.() === 0)(
  "a directory of another user is refused, but root may use that of a service",
  async () => {
    await mkdir(path, { mode: 0o700 });
    await chown(path, 12_345, 12_345);
    await openStateDirectory(path);
    vi.spyOn(process, "getuid").mockReturnValue(54_321);
    await expect(openStateDirectory(path)).rejects.toMatchObject({
      exitCode: 77,
      what: expect.stringContaining("uid 12345"),
    });
  },
);

test("a file in its place is a configuration error", async () => {
  await writeFile(path, "");
  await expect(openStateDirectory(path)).rejects.toMatchObject({ exitCode: 78, where: path });
  await expect(openStateDirectory(join(path, "below"))).rejects.toMatchObject({ exitCode: 78 });
});

test.skipIf(process.platform === "win32")("a link is followed, and what it leads to is checked", async () => {
  const real = join(parent, "real");
  await mkdir(real, { mode: 0o700 });
  await symlink(real, path);
  await openStateDirectory(path);
  await chmod(real, 0o755);
  await expect(openStateDirectory(path)).rejects.toMatchObject({ exitCode: 77 });
});
