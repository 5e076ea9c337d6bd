/**
 * A file of lines that rotates by size and by age, for records that should outlive the journal: `FILE` is written to,
 * `FILE.1` is the one before it, and so on.
 *
 * Nothing here blocks, throws or ends the process once the file is open. A disk that is full, or a file that cannot be written
 * for another reason, is tried again each second; lines wait meanwhile in a bounded queue, and what finds no place is lost
 * and counted. A line that was written in part is taken back, so that every line of the file is whole.
 *
 * The file is opened without following a symbolic link, and only if it is a regular file with one name: who may write to the
 * directory can take the log away, but cannot turn it into something else.
 */
import { type BigIntStats, constants, write, writeSync } from "node:fs";
import { type FileHandle, lstat, open, rename, unlink } from "node:fs/promises";
import { ExitCode, errorFacts, Failure, systemErrorText, systemFailure } from "./failure.ts";
import { LineRate } from "./line-rate.ts";
import { LogDestination, type LineSink } from "./log-destination.ts";
import type { Logger } from "./log.ts";

export interface LogFileSettings {
  readonly file: string;
  /** Bytes that the file has at most before another takes its place; 0: any number. */
  readonly maxSize: number;
  /** Milliseconds after which another takes its place, unless it is empty; 0: any age. */
  readonly maxAge: number;
  /** How many files are kept besides the one that is written to. */
  readonly keep: number;
}

export interface LogFileOptions {
  /** Hears of trouble with the file, and of its end; not of lines. */
  readonly log: Logger;
  /** Default 4 MiB. */
  readonly maxQueuedBytes?: number;
}

/** Some seven thousand records: enough for the moment that it takes to make room, not enough to hurt. */
const MAX_QUEUED_BYTES = 4 * 1024 * 1024;
const RETRY_MS = 1_000;
/** How long the end of the program waits for the disk. */
const CLOSE_MS = 500;
/** How often it is looked whether the file still stands under its name. */
const LOOK_MS = 10_000;
/** After a rotation that failed, the file grows on for so long before the next try. */
const ROTATE_AGAIN_MS = 60_000;
/** How often it is told that the file still cannot be written. */
const REMIND_MS = 60_000;
/** Readable by the group, so that whoever ships logs needs no more than its membership. */
const MODE = 0o640;

export class LogFile {
  /** Totals for metrics; they only grow. */
  readonly counters = { lines: 0, rotations: 0 };
  readonly #file: RotatingFile;
  readonly #destination: LogDestination;

  private constructor(file: RotatingFile, maxQueuedBytes: number) {
    this.#file = file;
    this.#destination = new LogDestination({ sink: file, maxQueuedBytes });
    file.droppedLines = () => this.#destination.droppedLines;
    file.onRotated = () => (this.counters.rotations += 1);
  }

  /** @throws Failure when the file cannot be opened or is none */
  static async open(settings: LogFileSettings, options: LogFileOptions): Promise<LogFile> {
    const file = new RotatingFile(settings, options.log);
    await file.open();
    return new LogFile(file, options.maxQueuedBytes ?? MAX_QUEUED_BYTES);
  }

  get settings(): LogFileSettings {
    return this.#file.settings;
  }

  /** Lines that were lost. */
  get droppedLines(): number {
    return this.#destination.droppedLines;
  }

  get queuedBytes(): number {
    return this.#destination.queuedBytes;
  }

  /** Takes one line with its end. Never throws. */
  write(line: string): void {
    this.counters.lines += 1;
    this.#destination.write(line);
  }

  /** Closes the file and opens what stands under its name now, or a new one: another program has moved it away. */
  reopen(): Promise<void> {
    return this.#file.reopen();
  }

  /** Resolves when every line so far was written or lost. */
  flush(): Promise<void> {
    return this.#destination.flush();
  }

  /** Resolves in bounded time; what the disk has not taken then is lost. */
  async close(): Promise<void> {
    await this.#destination.close(CLOSE_MS);
    await this.#file.close();
  }
}

/** What `status` says of it; nothing where there is none. */
export function accessLogView(file: LogFile | undefined): { accessLog?: object } {
  if (file === undefined) return {};
  const { settings, counters, droppedLines, queuedBytes } = file;
  return {
    accessLog: { file: settings.file, lines: counters.lines, dropped: droppedLines, queuedBytes },
  };
}

class RotatingFile implements LineSink {
  readonly settings: LogFileSettings;
  droppedLines: () => number = () => 0;
  onRotated: () => void = () => undefined;
  readonly #log: Logger;
  #handle: FileHandle | undefined;
  /** What `#handle` is, to tell whether its name still means it. */
  #identity: Pick<BigIntStats, "dev" | "ino"> | undefined;
  #size = 0;
  #bornAt = 0;
  #lookAt = 0;
  #rotateAfter = 0;
  #ageTimer: NodeJS.Timeout | undefined;
  /** The error of the last write, while there is one. */
  #failing: string | undefined;
  #remindAt = 0;
  readonly #told = new LineRate({ burst: 10, perSecond: 1 / 30 });
  /** Everything that is done with the file, one after the other. */
  #turn: Promise<void> = Promise.resolve();
  #closed = false;
  handedOver = false;

  constructor(settings: LogFileSettings, log: Logger) {
    this.settings = settings;
    this.#log = log;
  }

  async open(): Promise<void> {
    try {
      await this.#open();
    } catch (error) {
      if (error instanceof Failure) throw error;
      throw systemFailure(error, this.settings.file, "open the access log");
    }
  }

  reopen(): Promise<void> {
    return this.#inTurn(async () => {
      try {
        await this.#open();
        this.#log.info({ file: this.settings.file }, "access log reopened");
      } catch (error) {
        // The next write tries again.
        await this.#release();
        this.#fail(error);
      }
    });
  }

  async close(): Promise<void> {
    await this.#inTurn(async () => {
      this.#closed = true;
      clearTimeout(this.#ageTimer);
      await this.#release();
    });
  }

  // ── as a sink ──

  write(batch: Buffer, done: (error: unknown, written: number) => void): void {
    this.handedOver = false;
    void this.#inTurn(async () => {
      try {
        const handle = await this.#ready(batch.length);
        this.handedOver = true;
        const { error, written } = await this.#writeAll(handle, batch);
        if (error === undefined) this.#recover();
        else this.#fail(error);
        done(error, written);
      } catch (error) {
        this.#fail(error);
        done(error, 0);
      }
    });
  }

  writeSync(batch: Buffer): number {
    if (this.#handle === undefined) throw new Failure(ExitCode.ioError, this.settings.file, "is not open");
    return writeSync(this.#handle.fd, batch);
  }

  retryAfterMs(): number {
    return RETRY_MS;
  }

  /** The file to write the next `bytes` to. @throws the system's error */
  async #ready(bytes: number): Promise<FileHandle> {
    const now = Date.now();
    if (this.#handle !== undefined && now >= this.#lookAt) {
      this.#lookAt = now + LOOK_MS;
      if (!(await this.#isInPlace())) await this.#open();
    }
    if (this.#handle === undefined) await this.#open();
    const { maxSize } = this.settings;
    const full = maxSize > 0 && this.#size > 0 && this.#size + bytes > maxSize;
    if (full || this.#isOld(now)) await this.#rotate();
    if (this.#handle === undefined) throw new Failure(ExitCode.ioError, this.settings.file, "is not open");
    return this.#handle;
  }

  async #writeAll(handle: FileHandle, batch: Buffer): Promise<{ error: unknown; written: number }> {
    let written = 0;
    while (written < batch.length) {
      const { error, count } = await new Promise<{ error: unknown; count: number }>((resolve) => {
        write(handle.fd, batch, written, batch.length - written, null, (failure, taken) =>
          resolve({ error: failure ?? undefined, count: taken }),
        );
      });
      if (error !== undefined) {
        // What remains of a line is in the way of the next one.
        const torn = written - (batch.lastIndexOf(10, written - 1) + 1);
        if (written > 0 && torn > 0 && (await this.#takeBack(handle, torn))) written -= torn;
        return { error, written };
      }
      written += count;
      this.#size += count;
    }
    return { error: undefined, written };
  }

  /** Takes the last bytes back, if they are still the last ones. */
  async #takeBack(handle: FileHandle, bytes: number): Promise<boolean> {
    try {
      const { size } = await handle.stat();
      if (size !== this.#size) return false;
      await handle.truncate(size - bytes);
      this.#size = size - bytes;
      return true;
    } catch {
      return false;
    }
  }

  // ── the file ──

  /** Opens what stands under the name, or makes it, and lets go of what was open before. @throws as `LogFile.open` */
  async #open(): Promise<void> {
    const { file } = this.settings;
    // Not to wait for the reader of a FIFO, and not to follow a link; Windows has neither.
    const flags = constants.O_WRONLY | constants.O_APPEND | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);
    let handle: FileHandle;
    try {
      handle = await open(file, flags | constants.O_CREAT | constants.O_EXCL, MODE);
      // Whatever the mask of the process says.
      await handle.chmod(MODE);
    } catch (error) {
      if (errorFacts(error).code !== "EEXIST") throw error;
      handle = await open(file, flags).catch((failure: unknown) => {
        const { code } = errorFacts(failure);
        if (code === "ELOOP" || code === "EMLINK" || code === "ENXIO") throw notAFile(file);
        throw failure;
      });
    }
    const stats = await handle.stat({ bigint: true });
    if (!stats.isFile() || stats.nlink !== 1n) {
      await handle.close();
      throw notAFile(file);
    }
    await this.#release();
    this.#handle = handle;
    this.#identity = stats;
    this.#size = Number(stats.size);
    const bornAt = Number(stats.birthtimeMs > 0n ? stats.birthtimeMs : stats.mtimeMs);
    // A clock that was set back must not keep a file for ever.
    this.#bornAt = this.#size === 0 ? Date.now() : Math.min(bornAt, Date.now());
    this.#lookAt = Date.now() + LOOK_MS;
    this.#armAge();
  }

  async #release(): Promise<void> {
    const handle = this.#handle;
    this.#handle = undefined;
    await handle?.close().catch(() => undefined);
  }

  async #isInPlace(): Promise<boolean> {
    try {
      const { dev, ino } = await lstat(this.settings.file, { bigint: true });
      return dev === this.#identity?.dev && ino === this.#identity.ino;
    } catch {
      return false;
    }
  }

  #isOld(now: number): boolean {
    const { maxAge } = this.settings;
    return maxAge > 0 && this.#size > 0 && now - this.#bornAt >= maxAge;
  }

  /** A file that nobody writes to grows old, too. */
  #armAge(): void {
    clearTimeout(this.#ageTimer);
    const { maxAge } = this.settings;
    if (maxAge === 0 || this.#closed) return;
    this.#ageTimer = setTimeout(
      () => void this.#inTurn(() => this.#growOld()),
      Math.max(1_000, this.#bornAt + maxAge - Date.now()),
    );
    this.#ageTimer.unref();
  }

  async #growOld(): Promise<void> {
    if (this.#handle !== undefined && this.#isOld(Date.now())) await this.#rotate();
    // An empty file is as young as its first line will be.
    if (this.#size === 0) this.#bornAt = Date.now();
    this.#armAge();
  }

  /** If it fails, the file is written to as before. */
  async #rotate(): Promise<void> {
    if (Date.now() < this.#rotateAfter) return;
    const { file, keep } = this.settings;
    try {
      // Somebody else may have moved it away already; what stands there now is not ours to move.
      if (await this.#isInPlace()) {
        for (let number = keep - 1; number >= 1; number -= 1)
          await renameIfThere(`${file}.${number}`, `${file}.${number + 1}`);
        if (keep === 0) await unlink(file);
        else await rename(file, `${file}.1`);
      }
      await this.#open();
      this.onRotated();
    } catch (error) {
      this.#rotateAfter = Date.now() + ROTATE_AGAIN_MS;
      this.#tell(
        { error: systemErrorText(errorFacts(error).code) ?? "not a file" },
        "access log not rotated; it grows on",
      );
    }
  }

  // ── trouble ──

  #fail(error: unknown): void {
    const reason = error instanceof Failure ? error.what : (systemErrorText(errorFacts(error).code) ?? "unknown error");
    const now = Date.now();
    if (this.#failing === reason && now < this.#remindAt) return;
    this.#failing = reason;
    this.#remindAt = now + REMIND_MS;
    this.#tell({ error: reason }, "access log cannot be written; its lines wait, and are lost when too many do");
  }

  #recover(): void {
    if (this.#failing === undefined) return;
    this.#failing = undefined;
    this.#tell({}, "access log is written again");
  }

  #tell(facts: object, message: string): void {
    const leftOut = this.#told.admit();
    if (leftOut === undefined) return;
    const { file } = this.settings;
    this.#log.warn({ file, ...facts, dropped: this.droppedLines(), ...(leftOut > 0 ? { leftOut } : {}) }, message);
  }

  #inTurn(action: () => Promise<void>): Promise<void> {
    this.#turn = this.#turn.then(action);
    return this.#turn;
  }
}

async function renameIfThere(from: string, to: string): Promise<void> {
  await rename(from, to).catch((error: unknown) => {
    if (errorFacts(error).code !== "ENOENT") throw error;
  });
}

function notAFile(file: string): Failure {
  return new Failure(
    ExitCode.configuration,
    file,
    "is not a regular file with one name; the access log follows no link. Remove it, or name another file",
  );
}
