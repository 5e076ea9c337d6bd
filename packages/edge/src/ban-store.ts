/**
 * The bans of an edge, in memory and in `stateDir/bans.json`: a header, then one ban a line. The file is replaced as a
 * whole, in pieces that leave the event loop to the traffic; changes that come together are written together, and writing
 * never takes more than about a twentieth of the time. What an operator asks for is on the disk when the command ends.
 */
import { open } from "node:fs/promises";
import { join } from "node:path";
import { ExitCode, errorFacts, Failure, parseCidr, systemFailure, writeFileAtomically } from "@sallyport/host";
import { z } from "zod";
import { type Ban, BanList, type BanOrigin, MAX_BAN_COMMENT, MAX_BANS, type NewBan } from "./ban-list.ts";

const HEADER = { format: "sallyport-bans", version: 1 } as const;
/** A line has 550 bytes at most, with a comment of which every character is escaped more; the common one has 150. */
const MAX_FILE_BYTES = 256 * 1024 * 1024;
const LINES_AT_A_TIME = 5_000;
const MIN_WRITE_PAUSE_MS = 1_000;

export const BAN_ORIGIN_PATTERN = /^(manual|(auto|log):[a-zA-Z0-9_-]{1,64})$/;

const headerSchema = z.strictObject({ format: z.literal(HEADER.format), version: z.literal(HEADER.version) });
const lineSchema = z.strictObject({
  cidr: z.string(),
  origin: z.string().regex(BAN_ORIGIN_PATTERN),
  comment: z.string().max(MAX_BAN_COMMENT),
  createdAt: z.number(),
  expiresAt: z.number().optional(),
  repeats: z.int().min(1),
  hits: z.int().min(0),
});

/** Milliseconds since 1970 that only go forward: a corrected clock of the machine moves no ban and no rate. */
export function steadyNow(): number {
  return performance.timeOrigin + performance.now();
}

export interface BanStoreOptions {
  /** Default `steadyNow`. */
  readonly now?: () => number;
  /** The file could not be written; the bans hold in memory, and the next change tries again. */
  readonly onWriteFailure?: (failure: Failure) => void;
}

export class BanStore {
  readonly list: BanList;
  /** Bans made since the start, by origin. */
  readonly counters = new Map<BanOrigin, number>();
  readonly #path: string;
  readonly #options: BanStoreOptions;
  readonly #now: () => number;
  #timer: NodeJS.Timeout | undefined;
  #dirty = false;
  #pauseMs = MIN_WRITE_PAUSE_MS;
  #writing: Promise<void> = Promise.resolve();

  private constructor(stateDir: string, options: BanStoreOptions) {
    this.#path = join(stateDir, "bans.json");
    this.#options = options;
    this.#now = options.now ?? steadyNow;
    this.list = new BanList();
  }

  /** @throws Failure 78 when the file is damaged, 74 or 77 when it cannot be read; no file means no bans */
  static async open(stateDir: string, options: BanStoreOptions = {}): Promise<BanStore> {
    const store = new BanStore(stateDir, options);
    await store.reload();
    return store;
  }

  /** Reads the file again, instead of what is in memory. @throws Failure as `open`; nothing has changed then */
  async reload(): Promise<void> {
    const bans = await readBans(this.#path);
    this.list.flush();
    const now = this.#now();
    for (const ban of bans) this.list.insert(ban, now);
  }

  /** Adds a ban; it is written soon. Undefined when the list is full, or the operator's ban that stays. */
  add(ban: NewBan): Ban | undefined {
    const added = this.list.add(ban, this.#now());
    if (added === undefined || added.origin !== ban.origin) return added;
    this.counters.set(ban.origin, (this.counters.get(ban.origin) ?? 0) + 1);
    this.#changed();
    return added;
  }

  remove(text: string): Ban | undefined {
    const removed = this.list.remove(text);
    if (removed !== undefined) this.#changed();
    return removed;
  }

  flush(origin?: string): number {
    const count = this.list.flush(origin);
    if (count > 0) this.#changed();
    return count;
  }

  /** Forgets what has expired; called once a second. The file follows with the next change. */
  sweep(): void {
    this.list.sweep(this.#now());
  }

  /** Resolves when every change so far is on the disk. @throws Failure 74 or 77 when it cannot be written */
  async save(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const run = this.#writing.then(() => (this.#dirty ? this.#write() : undefined));
    this.#writing = run.catch(() => undefined);
    await run;
  }

  #changed(): void {
    this.#dirty = true;
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.save().catch((error: unknown) => {
        if (!(error instanceof Failure)) throw error;
        this.#options.onWriteFailure?.(error);
      });
    }, this.#pauseMs);
    this.#timer.unref();
  }

  async #write(): Promise<void> {
    this.#dirty = false;
    const started = performance.now();
    try {
      const parts = [`${JSON.stringify(HEADER)}\n`];
      let lines = "";
      let count = 0;
      // A snapshot: the list changes while this waits.
      const bans = Array.from(this.list.list(this.#now()));
      for (const ban of bans) {
        const { text: cidr, origin, comment, createdAt, expiresAt, repeats, hits } = ban;
        lines += `${JSON.stringify({ cidr, origin, comment, createdAt, expiresAt, repeats, hits })}\n`;
        count += 1;
        if (count % LINES_AT_A_TIME !== 0) continue;
        parts.push(lines);
        lines = "";
        await new Promise((resolve) => setImmediate(resolve));
      }
      parts.push(lines);
      await writeFileAtomically(this.#path, Buffer.concat(parts.map((part) => Buffer.from(part))), 0o600);
    } catch (error) {
      this.#dirty = true;
      throw error;
    } finally {
      this.#pauseMs = Math.max(MIN_WRITE_PAUSE_MS, 20 * (performance.now() - started));
    }
  }
}

async function readBans(path: string): Promise<Ban[]> {
  const text = await readText(path);
  if (text === undefined) return [];
  const [header = "", ...lines] = text.split("\n");
  if (!headerSchema.safeParse(parseJson(header)).success) throw damaged(path, 1);
  if (lines.at(-1) === "") lines.pop();
  if (lines.length > MAX_BANS) throw damaged(path, MAX_BANS + 2);
  return lines.map((line, at) => {
    const parsed = lineSchema.safeParse(parseJson(line));
    if (!parsed.success) throw damaged(path, at + 2);
    const { cidr: block, origin, comment, createdAt, expiresAt, repeats, hits } = parsed.data;
    try {
      const cidr = parseCidr(block);
      return { cidr, text: block, origin: origin as BanOrigin, comment, createdAt, expiresAt, repeats, hits };
    } catch {
      throw damaged(path, at + 2);
    }
  });
}

async function readText(path: string): Promise<string | undefined> {
  try {
    const file = await open(path, "r");
    try {
      const { size } = await file.stat();
      if (size > MAX_FILE_BYTES) throw damaged(path, 1);
      return await file.readFile("utf8");
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof Failure) throw error;
    if (errorFacts(error).code === "ENOENT") return undefined;
    throw systemFailure(error, path, "read the bans");
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function damaged(path: string, line: number): Failure {
  return new Failure(
    ExitCode.configuration,
    `${path}:${line}`,
    "is no list of bans of this version; correct the line, or move the file away and no address is banned",
  );
}
