/**
 * Where the records of connections go: to the log of the program, to a file of their own, or to both. A record is one JSON
 * object on one line, made once for both.
 *
 * It does not take the way of other log lines: a busy edge writes thousands a second, and a record holds plain values only,
 * never an error.
 */
import type { LogFile } from "./log-file.ts";
import { destinationOf, type Logger } from "./log.ts";
import { printableText } from "./printable-text.ts";

export class RecordLog {
  /** Where records go besides the log, or instead of it. Whoever set it closes it. */
  file: LogFile | undefined;
  /** Whether records go to the log, too. Default true. */
  toLog = true;
  readonly #log: Logger;
  /** Undefined: a log that was made elsewhere, and that has to be asked for each line. */
  readonly #direct: { readonly write: (line: string) => void; readonly name: string } | undefined;

  constructor(log: Logger) {
    this.#log = log;
    this.#direct = destinationOf(log);
  }

  /** One line with all of `facts`, whose keys differ. */
  write(level: "info" | "warn", message: string, ...facts: readonly object[]): void {
    const toLog = this.toLog && this.#log.isLevelEnabled(level);
    if (this.#direct === undefined) {
      if (toLog) this.#log[level](Object.assign({}, ...facts), message);
      if (this.file === undefined) return;
    } else if (!toLog && this.file === undefined) return;
    const line = this.#line(level, message, facts);
    if (toLog) this.#direct?.write(line);
    this.file?.write(line);
  }

  /** Put together from texts: to copy the facts into one object first costs as much again as all the rest. */
  #line(level: string, message: string, facts: readonly object[]): string {
    // All of these are words of the program, or names that its configuration has checked.
    let text = `{"level":"${level}","time":"${new Date().toISOString()}","name":"${this.#direct?.name ?? ""}"`;
    for (const part of facts) {
      const inner = JSON.stringify(part).slice(1, -1);
      if (inner !== "") text += `,${inner}`;
    }
    // JSON escapes C0; DEL, C1 and the separators of Unicode pass through it and end lines in some readers.
    return `${printableText(`${text},"msg":"${message}"}`)}\n`;
  }
}
