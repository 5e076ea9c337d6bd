import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { pollUntil } from "../../../test/support/deadline.ts";
import { Failure } from "./failure.ts";
import { createLogger } from "./log.ts";
import { LogFile, type LogFileSettings } from "./log-file.ts";

let directory: string;
let file: string;
let told: Record<string, unknown>[];
let opened: LogFile[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "sallyport-log-file-"));
  file = join(directory, "access.log");
  told = [];
  opened = [];
});

afterEach(async () => {
  vi.useRealTimers();
  for (const log of opened) await log.close();
  rmSync(directory, { recursive: true });
});

async function openLog(settings: Partial<LogFileSettings> = {}, maxQueuedBytes?: number): Promise<LogFile> {
  const log = createLogger({
    name: "edge-1",
    destination: { write: (line: string) => void told.push(JSON.parse(line) as Record<string, unknown>) },
  });
  const opening = await LogFile.open(
    { file, maxSize: 0, maxAge: 0, keep: 3, ...settings },
    { log, ...(maxQueuedBytes === undefined ? {} : { maxQueuedBytes }) },
  );
  opened.push(opening);
  return opening;
}

const line = (number: number, padding = 0) => `${JSON.stringify({ number, padding: "x".repeat(padding) })}\n`;

function numbersIn(path: string): number[] {
  const text = readFileSync(path, "utf8");
  expect(text === "" || text.endsWith("\n")).toBe(true);
  return text
    .split("\n")
    .slice(0, -1)
    .map((each) => (JSON.parse(each) as { number: number }).number);
}

const from = (first: number, count: number) => Array.from({ length: count }, (_, at) => first + at);

test("lines are appended, and the group may read them whatever the mask says", async () => {
  const mask = process.umask(0o077);
  try {
    const log = await openLog();
    for (const number of from(0, 5_000)) log.write(line(number));
    await log.flush();
  } finally {
    process.umask(mask);
  }
  expect(numbersIn(file)).toEqual(from(0, 5_000));
  expect(statSync(file).mode & 0o777).toBe(0o640);
});

test("a file that exists is continued and keeps its mode", async () => {
  writeFileSync(file, line(1));
  chmodSync(file, 0o600);
  const log = await openLog();
  log.write(line(2));
  await log.flush();
  expect(numbersIn(file)).toEqual([1, 2]);
  expect(statSync(file).mode & 0o777).toBe(0o600);
});

test("a full file makes room: no line is lost or split, and no more files are kept than asked for", async () => {
  const log = await openLog({ maxSize: 200_000, keep: 3 });
  for (const number of from(0, 1_000)) {
    log.write(line(number, 950));
    if (number % 50 === 0) await log.flush();
  }
  await log.flush();
  expect(readdirSync(directory).sort()).toEqual(["access.log", "access.log.1", "access.log.2", "access.log.3"]);
  const kept = [3, 2, 1].flatMap((number) => numbersIn(`${file}.${number}`)).concat(numbersIn(file));
  expect(kept).toEqual(from(1_000 - kept.length, kept.length));
  for (const name of readdirSync(directory)) {
    expect(statSync(join(directory, name)).size).toBeLessThanOrEqual(200_000);
    expect(statSync(join(directory, name)).mode & 0o777).toBe(0o640);
  }
  expect(log.counters.rotations).toBeGreaterThan(3);
  expect(log.droppedLines).toBe(0);
});

test("none is kept when none is asked for", async () => {
  const log = await openLog({ maxSize: 100_000, keep: 0 });
  for (const number of from(0, 300)) log.write(line(number, 950));
  await log.flush();
  expect(readdirSync(directory)).toEqual(["access.log"]);
  expect(numbersIn(file).at(-1)).toBe(299);
});

describe("the age of a file", () => {
  const DAY_MS = 86_400_000;

  beforeEach(() => void vi.useFakeTimers({ toFake: ["Date", "setTimeout", "clearTimeout"], now: Date.now() }));

  const rotations = (log: LogFile, count: number) =>
    vi.waitFor(() => expect(log.counters.rotations).toBe(count), { timeout: 5_000, interval: 5 });

  test("rotates it, whether somebody writes or not", async () => {
    const log = await openLog({ maxAge: DAY_MS });
    log.write(line(1));
    await log.flush();
    vi.advanceTimersByTime(DAY_MS - 10_000);
    log.write(line(2));
    await log.flush();
    expect(numbersIn(file)).toEqual([1, 2]);
    vi.useFakeTimers({ toFake: ["Date", "setTimeout", "clearTimeout"], now: Date.now() + 20_000 });
    log.write(line(3));
    await log.flush();
    expect([numbersIn(`${file}.1`), numbersIn(file)]).toEqual([[1, 2], [3]]);
    expect(log.counters.rotations).toBe(1);
  });

  test("is noticed by a timer while nobody writes, and an empty file does not age", async () => {
    const log = await openLog({ maxAge: DAY_MS });
    log.write(line(1));
    await log.flush();
    await vi.advanceTimersByTimeAsync(DAY_MS + 1_000);
    vi.useRealTimers();
    await rotations(log, 1);
    expect([numbersIn(`${file}.1`), numbersIn(file)]).toEqual([[1], []]);
  });
});

describe("another program", () => {
  test("that moves the file away and asks for it gets a new one", async () => {
    const log = await openLog();
    log.write(line(1));
    await log.flush();
    renameSync(file, `${file}.old`);
    log.write(line(2));
    await log.flush();
    await log.reopen();
    log.write(line(3));
    await log.flush();
    expect([numbersIn(`${file}.old`), numbersIn(file)]).toEqual([[1, 2], [3]]);
    expect(told).toMatchObject([{ msg: "access log reopened" }]);
  });

  test("that removes the file without a word is noticed within ten seconds", async () => {
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() });
    const log = await openLog();
    log.write(line(1));
    await log.flush();
    unlinkSync(file);
    log.write(line(2));
    await log.flush();
    expect(existsSync(file)).toBe(false);
    vi.setSystemTime(Date.now() + 10_000);
    log.write(line(3));
    await log.flush();
    expect(numbersIn(file)).toEqual([3]);
  });

  test("that has put another file there before a rotation keeps it", async () => {
    const log = await openLog({ maxSize: 100_000 });
    log.write(line(1, 90_000));
    await log.flush();
    renameSync(file, `${file}.moved`);
    writeFileSync(file, line(7));
    log.write(line(2, 90_000));
    await log.flush();
    expect(numbersIn(`${file}.moved`)).toEqual([1]);
    expect(numbersIn(file)).toEqual([7, 2]);
    expect(existsSync(`${file}.1`)).toBe(false);
  });
});

describe("what is not a file of its own is not written to:", () => {
  const places: Record<string, (victim: string) => void> = {
    "a symbolic link": (victim) => symlinkSync(victim, file),
    "a link to nothing": () => symlinkSync(join(directory, "nothing"), file),
    "a second name": (victim) => linkSync(victim, file),
    "a directory": () => mkdirSync(file),
    "a FIFO": () => void execFileSync("mkfifo", [file]),
    "a device": () => symlinkSync("/dev/full", file),
  };

  test.each(Object.entries(places))("%s, at the start", async (_, put) => {
    const victim = join(directory, "victim");
    writeFileSync(victim, "precious");
    put(victim);
    await expect(openLog()).rejects.toThrow(Failure);
    expect(readFileSync(victim, "utf8")).toBe("precious");
    expect(existsSync(join(directory, "nothing"))).toBe(false);
  });

  test("a link that takes its place while the program runs costs no byte of what it points to", async () => {
    const log = await openLog();
    log.write(line(1));
    await log.flush();
    const victim = join(directory, "victim");
    writeFileSync(victim, "precious");
    unlinkSync(file);
    symlinkSync(victim, file);
    await log.reopen();
    log.write(line(2));
    await vi.waitFor(() => expect(told).toHaveLength(1));
    expect(told).toMatchObject([{ level: "warn", error: expect.stringContaining("is not a regular file") }]);
    unlinkSync(file);
    await log.flush();
    expect(numbersIn(file)).toEqual([2]);
    expect(readFileSync(victim, "utf8")).toBe("precious");
  });
});

test("a directory that takes no new name costs no line: the file grows on", async () => {
  // Not by permissions, which do not hold for root: the next name is taken by what cannot be replaced.
  mkdirSync(`${file}.1`);
  writeFileSync(join(`${file}.1`, "x"), "");
  const log = await openLog({ maxSize: 100_000, keep: 1 });
  for (const number of from(0, 300)) log.write(line(number, 950));
  await log.flush();
  expect(numbersIn(file)).toEqual(from(0, 300));
  expect(told).toMatchObject([{ level: "warn", msg: "access log not rotated; it grows on" }]);
});

/** A disk of 512 KiB; undefined where this user may not mount one. */
function smallDisk(): string | undefined {
  const path = mkdtempSync(join(tmpdir(), "sallyport-small-disk-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=512k", "tmpfs", path], { stdio: "ignore" });
    return path;
  } catch {
    rmSync(path, { recursive: true });
    return undefined;
  }
}

test("a full disk costs lines, which are counted and told, and every line that is there is whole", async (context) => {
  const disk = smallDisk();
  if (disk === undefined) return context.skip("this user may not mount a tmpfs");
  try {
    file = join(disk, "access.log");
    const log = await openLog({}, 100_000);
    for (let number = 0; log.droppedLines < 1_000; number += 1) {
      log.write(line(number, 951));
      // As fast as the disk is, so that the first line that is lost is lost to the disk.
      if (number % 20 === 0 && told.length === 0) {
        const trouble = pollUntil(() => told.length > 0 || log.queuedBytes === 0 || undefined, {
          what: "room or trouble",
          timeoutMs: 5_000,
        });
        await Promise.race([log.flush(), trouble]);
      }
    }
    expect(log.queuedBytes).toBeLessThanOrEqual(100_000);
    expect(told).toMatchObject([{ level: "warn", error: "no space left on device (ENOSPC)" }]);
    const before = numbersIn(file);
    expect(before).toEqual(from(0, before.length));
    expect(statSync(file).size).toBeGreaterThan(500_000);

    // Room again: what waited comes first, in its order, and then what is new.
    unlinkSync(file);
    await log.reopen();
    await log.flush();
    log.write(line(1_000_000));
    await log.flush();
    const after = numbersIn(file);
    expect(after).toEqual([...from(before.length, after.length - 1), 1_000_000]);
    expect(told.at(-1)).toMatchObject({ msg: "access log is written again", dropped: log.droppedLines });
    expect(before.length + after.length + log.droppedLines).toBe(log.counters.lines);
    await log.close();
    opened = [];
  } finally {
    execFileSync("umount", ["-l", disk]);
    rmSync(disk, { recursive: true });
  }
});

test("the end of the program does not wait for a disk that stays full", async (context) => {
  const disk = smallDisk();
  if (disk === undefined) return context.skip("this user may not mount a tmpfs");
  try {
    file = join(disk, "access.log");
    const log = await openLog();
    for (const number of from(0, 1_000)) log.write(line(number, 951));
    await pollUntil(() => told.length > 0 || undefined, { what: "word of the full disk", timeoutMs: 5_000 });
    await log.close();
    opened = [];
    expect(numbersIn(file).length + log.droppedLines).toBe(1_000);
  } finally {
    execFileSync("umount", ["-l", disk]);
    rmSync(disk, { recursive: true });
  }
});
