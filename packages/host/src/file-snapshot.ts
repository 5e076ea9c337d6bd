import { readFileSync, statSync } from "node:fs";

/**
 * The parsed content of a small file of the system that others may change at any time, such as `/etc/hosts`.
 *
 * Reads are synchronous on purpose: asynchronous file access runs in the thread pool, and what is built on this must not
 * wait for anything there. A look at the file costs microseconds and is taken at most every `checkIntervalMs`.
 */
export class FileSnapshot<Content extends object> {
  readonly #path: string | undefined;
  readonly #parse: (text: string) => Content;
  readonly #now: () => number;
  readonly #checkIntervalMs: number;
  #content: Content;
  #version = "";
  #checkedAt = Number.NEGATIVE_INFINITY;

  /** Without a path, and while the file is missing, the content is that of an empty file. */
  constructor(options: {
    path: string | undefined;
    parse: (text: string) => Content;
    now: () => number;
    /** Default 5000. */
    checkIntervalMs?: number;
  }) {
    this.#path = options.path;
    this.#parse = options.parse;
    this.#now = options.now;
    this.#checkIntervalMs = options.checkIntervalMs ?? 5_000;
    this.#content = options.parse("");
  }

  /** The content; the same object as long as the file has not changed. */
  current(): Content {
    const now = this.#now();
    if (this.#path !== undefined && now - this.#checkedAt >= this.#checkIntervalMs) {
      this.#checkedAt = now;
      this.#read(this.#path);
    }
    return this.#content;
  }

  #read(path: string): void {
    try {
      const found = statSync(path, { throwIfNoEntry: false });
      const version = found === undefined ? "" : `${found.ino} ${found.mtimeMs} ${found.size}`;
      if (version !== this.#version) {
        this.#content = this.#parse(found === undefined ? "" : readFileSync(path, "utf8"));
        this.#version = version;
      }
    } catch {
      // Unreadable for the moment, for want of file descriptors perhaps: what was known stays in force.
    }
  }
}
