import { execFileSync } from "node:child_process";
import { chmod, chown, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { readSecretFile } from "./secret-file.ts";

const SECRET = "ThisIsTheSecretThatNobodyMaySee";
let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "sallyport-secret-"));
  path = join(directory, "token");
  await writeFile(path, SECRET, { mode: 0o600 });
});

afterEach(async () => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  await rm(directory, { recursive: true });
});

async function failureOf(promise: Promise<unknown>): Promise<{ exitCode: number; message: string }> {
  const error = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(String(error)).not.toContain(SECRET);
  return error as { exitCode: number; message: string };
}

test.each([[0o600], [0o400]])("a file of mode %o is read", async (mode) => {
  await chmod(path, mode);
  await expect(readSecretFile(path)).resolves.toBe(SECRET);
});

test.skipIf(process.platform === "win32").each([[0o644], [0o640], [0o604], [0o610], [0o601], [0o620]])(
  "a file of mode %o is refused with 77, its name and the needed mode",
  async (mode) => {
    await chmod(path, mode);
    const failure = await failureOf(readSecretFile(path));
    expect(failure.exitCode).toBe(77);
    expect(failure.message).toContain(path);
    expect(failure.message).toContain("0600");
  },
);

test.runIf(process.getuid?.() === 0)("a file of another user is refused, for root as well", async () => {
  await chown(path, 12_345, 12_345);
  const failure = await failureOf(readSecretFile(path));
  expect(failure.exitCode).toBe(77);
  expect(failure.message).toContain("belongs to another user (uid 12345)");
});

test.runIf(process.getuid?.() === 0)("root reads the file of a service in the directory of that service", async () => {
  await chown(path, 12_345, 12_345);
  await chown(directory, 12_345, 12_345);
  await expect(readSecretFile(path)).resolves.toBe(SECRET);
});

test.runIf(process.getuid?.() === 0)("a user reads what root gave, and nothing of a third user", async () => {
  vi.spyOn(process, "getuid").mockReturnValue(12_345);
  await expect(readSecretFile(path)).resolves.toBe(SECRET);
  await chown(path, 54_321, 54_321);
  await chown(directory, 54_321, 54_321);
  expect((await failureOf(readSecretFile(path))).exitCode).toBe(77);
});

test.runIf(process.getuid?.() === 0)("a credential that systemd hands over may show its ACL as mode 0440", async () => {
  await chmod(path, 0o440);
  await expect(readSecretFile(path)).rejects.toThrow("0600");
  vi.stubEnv("CREDENTIALS_DIRECTORY", directory);
  await expect(readSecretFile(path)).resolves.toBe(SECRET);
});

test("a missing file is an input error", async () => {
  expect(await failureOf(readSecretFile(join(directory, "none")))).toMatchObject({
    exitCode: 74,
    what: "cannot read the file: no such file or directory (ENOENT)",
  });
});

test("a directory and a huge file are no secrets", async () => {
  await mkdir(join(directory, "d"), { mode: 0o700 });
  expect(await failureOf(readSecretFile(join(directory, "d")))).toMatchObject({ exitCode: 78 });
  await writeFile(path, SECRET.repeat(10_000));
  expect(await failureOf(readSecretFile(path))).toMatchObject({ exitCode: 78 });
});

test.skipIf(process.platform === "win32")("a FIFO is refused at once instead of being waited for", async () => {
  const fifo = join(directory, "fifo");
  execFileSync("mkfifo", ["-m", "600", fifo]);
  expect(await failureOf(readSecretFile(fifo))).toMatchObject({ exitCode: 78 });
});
