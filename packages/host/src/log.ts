/**
 * The log of a program: one JSON object a line on standard output. No line holds the message or the content of an error
 * that came from elsewhere, and no text of an outsider can begin a line or send control characters to a terminal.
 */
import { type DestinationStream, type Logger, pino, stdTimeFunctions } from "pino";
import type { LogLevel } from "./config-sections.ts";
import { errorFacts } from "./failure.ts";
import { LogDestination } from "./log-destination.ts";
import { printableText } from "./printable-text.ts";

export type { Logger } from "pino";

export interface LoggerOptions {
  /** Name of the program or of the machine, in every line. */
  readonly name: string;
  /** Default `info`. It can be changed later: `logger.level = "debug"`. */
  readonly level?: LogLevel;
  /** Default: standard output. Only the default one is bounded and counts what it drops. */
  readonly destination?: DestinationStream;
}

/** Of the loggers that were made here. */
const destinations = new WeakMap<Logger, { readonly write: (line: string) => void; readonly name: string }>();

/** Takes whole lines past the logger, and the name that is in each of its own; undefined for a logger made elsewhere. */
export function destinationOf(
  logger: Logger,
): { readonly write: (line: string) => void; readonly name: string } | undefined {
  return destinations.get(logger);
}

let standardOutput: LogDestination | undefined;

/** Lines of this process's log that were lost because standard output did not take them. */
export function droppedLogLines(): number {
  return standardOutput?.droppedLines ?? 0;
}

/** Resolves when standard output has taken (or lost) every line so far. */
export async function flushLog(): Promise<void> {
  await standardOutput?.flush();
}

/** Makes the log of a program. Children made of it (`logger.child`) behave alike. */
export function createLogger({ name, level = "info", destination }: LoggerOptions): Logger {
  if (destination === undefined) {
    standardOutput ??= new LogDestination();
  }
  const stream = destination ?? standardOutput ?? new LogDestination();
  const logger = pino(
    {
      name,
      level,
      base: {},
      timestamp: stdTimeFunctions.isoTime,
      formatters: {
        level: (label) => ({ level: label }),
        log: withoutForeignErrors,
      },
      // The logger's own ones would print message and stack.
      serializers: { err: describeIfError, error: describeIfError },
      hooks: {
        logMethod(args, method) {
          // An error in the place of the first argument, or as `err` beside no message, gives its message to the line.
          const [first, ...rest] = (args as unknown[]).map((arg, at) =>
            arg instanceof Error && at > 0 ? JSON.stringify(errorFacts(arg)) : arg,
          );
          const object = first instanceof Error ? { err: errorFacts(first) } : first;
          const hasError = typeof object === "object" && object !== null && ("err" in object || "error" in object);
          const message = rest.length === 0 && hasError ? ["error"] : rest;
          method.apply(this, [object, ...message] as Parameters<typeof method>);
        },
        // JSON escapes C0; DEL, C1 and the separators of Unicode pass through it and end lines in some readers.
        streamWrite: (line) => `${printableText(line.slice(0, -1))}\n`,
      },
    },
    stream,
  );
  destinations.set(logger, { write: (line) => stream.write(line), name });
  return logger;
}

/** An error under any key would be printed with every property that its maker gave it. */
function withoutForeignErrors(object: Record<string, unknown>): Record<string, unknown> {
  for (const value of Object.values(object)) {
    if (value instanceof Error) {
      return Object.fromEntries(Object.entries(object).map(([key, entry]) => [key, describeIfError(entry)]));
    }
  }
  return object;
}

function describeIfError(value: unknown): unknown {
  return value instanceof Error ? errorFacts(value) : value;
}
