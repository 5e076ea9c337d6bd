import { execFileSync } from "node:child_process";
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type LineSink, LogDestination } from "./log-destination.ts";

let directory: string;
let opened: number[] = [];
let exitListeners: unknown[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "sallyport-log-"));
  exitListeners = process.listeners("exit");
});

afterEach(() => {
  for (const listener of process.listeners("exit")) {
    if (!exitListeners.includes(listener)) {
      process.removeListener("exit", listener);
    }
  }
  for (const fd of opened) {
    closeSync(fd);
  }
  opened = [];
  rmSync(directory, { recursive: true });
});

function open(path: string, flags: string | number): number {
  const fd = openSync(path, flags);
  opened.push(fd);
  return fd;
}

/** The listener that the newest destination has put on the exit of the process. */
function exitProcess(): void {
  (process.listeners("exit").at(-1) as () => void)();
}

test("lines arrive whole and in order", async () => {
  const path = join(directory, "log");
  const destination = new LogDestination({ fd: open(path, "a") });
  const lines = Array.from({ length: 20_000 }, (_, at) => `{"line":${at},"text":"größe"}\n`);
  for (const line of lines) {
    destination.write(line);
  }
  await destination.flush();
  expect(readFileSync(path, "utf8")).toBe(lines.join(""));
  expect(destination.droppedLines).toBe(0);
});

/** Takes everything at once, and keeps what came with each write. */
class Collector implements LineSink {
  readonly batches: string[] = [];
  readonly handedOver = true;

  write(batch: Buffer, done: (error: unknown, written: number) => void): void {
    this.batches.push(batch.toString());
    queueMicrotask(() => done(null, batch.length));
  }

  writeSync(batch: Buffer): number {
    this.batches.push(batch.toString());
    return batch.length;
  }

  retryAfterMs(): undefined {
    return undefined;
  }
}

test("the first line goes out at once, and those of the next moment together", async () => {
  const sink = new Collector();
  const destination = new LogDestination({ sink });
  destination.write("first\n");
  expect(sink.batches).toEqual(["first\n"]);
  await Promise.resolve();
  for (let line = 0; line < 100; line += 1) {
    destination.write(`${line}\n`);
    await Promise.resolve();
  }
  expect(sink.batches).toHaveLength(1);
  await destination.flush();
  expect(sink.batches.slice(1)).toEqual([Array.from({ length: 100 }, (_, line) => `${line}\n`).join("")]);
});

test("lines that nobody waits for are written all the same", async () => {
  const sink = new Collector();
  const destination = new LogDestination({ sink });
  destination.write("first\n");
  await Promise.resolve();
  destination.write("second\n");
  const deadline = performance.now() + 5_000;
  while (sink.batches.length < 2 && performance.now() < deadline) await new Promise(setImmediate);
  expect(sink.batches).toEqual(["first\n", "second\n"]);
});

test("much is not kept waiting", async () => {
  const sink = new Collector();
  const destination = new LogDestination({ sink });
  destination.write("first\n");
  await Promise.resolve();
  destination.write("small\n");
  destination.write(`${"x".repeat(70_000)}\n`);
  expect(sink.batches.length).toBeGreaterThan(1);
  await destination.flush();
  expect(sink.batches.join("")).toBe(`first\nsmall\n${"x".repeat(70_000)}\n`);
});

test("a line larger than a batch arrives whole", async () => {
  const path = join(directory, "log");
  const destination = new LogDestination({ fd: open(path, "a") });
  destination.write(`${"x".repeat(1_000_000)}\n`);
  await destination.flush();
  expect(readFileSync(path, "utf8")).toHaveLength(1_000_001);
});

test.runIf(process.platform === "linux")("a full disk costs lines, which are counted, and nothing else", async () => {
  const destination = new LogDestination({ fd: open("/dev/full", "w") });
  for (let at = 0; at < 10_000; at++) {
    destination.write("line\n");
  }
  await destination.flush();
  expect(destination.droppedLines).toBe(10_000);
  destination.write("line\n");
  await destination.flush();
  expect(destination.droppedLines).toBe(10_001);
});

test.runIf(process.platform === "linux")("on a full disk the exit does not wait", () => {
  const destination = new LogDestination({ fd: open("/dev/full", "w") });
  destination.write("line\n");
  destination.write("line\n");
  const before = performance.now();
  exitProcess();
  expect(performance.now() - before).toBeLessThan(400);
});

test.skipIf(process.platform === "win32")("a reader that left costs lines and nothing else", async () => {
  const fifo = join(directory, "fifo");
  execFileSync("mkfifo", [fifo]);
  const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
  const destination = new LogDestination({ fd: open(fifo, constants.O_WRONLY) });
  closeSync(reader);
  destination.write("line\n");
  await destination.flush();
  expect(destination.droppedLines).toBe(1);
});

test("a descriptor that is none costs lines and nothing else", async () => {
  const destination = new LogDestination({ fd: 999_999 });
  destination.write("line\n");
  await destination.flush();
  expect(destination.droppedLines).toBe(1);
});

test.skipIf(process.platform === "win32")(
  "a reader that does not read bounds the queue, and what was kept arrives",
  async () => {
    const fifo = join(directory, "fifo");
    execFileSync("mkfifo", [fifo]);
    const reader = open(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
    const destination = new LogDestination({
      fd: open(fifo, constants.O_WRONLY | constants.O_NONBLOCK),
      maxQueuedBytes: 200_000,
    });
    const line = `${"x".repeat(999)}\n`;
    for (let at = 0; at < 1_000; at++) {
      destination.write(line);
    }
    const dropped = destination.droppedLines;
    expect(dropped).toBeGreaterThan(700);

    let received = "";
    const buffer = Buffer.alloc(65_536);
    while (received.length < (1_000 - dropped) * 1_000) {
      try {
        received += buffer.toString("latin1", 0, readSync(reader, buffer));
      } catch {
        // Empty at this moment.
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    await destination.flush();
    expect(received).toBe(line.repeat(1_000 - dropped));
    expect(destination.droppedLines).toBe(dropped);
  },
);

test("what is queued at the exit of the process is written", () => {
  const path = join(directory, "log");
  const destination = new LogDestination({ fd: open(path, "a") });
  for (let at = 0; at < 1_000; at++) {
    destination.write(`${at}\n`);
  }
  exitProcess();
  // The first line may still be on its way in the background; everything behind it is there.
  expect(readFileSync(path, "utf8")).toContain(Array.from({ length: 999 }, (_, at) => `${at + 1}\n`).join(""));
});
