/**
 * How a program fails: with one line on stderr, `error: <where>: <what, and what to do>`, and an exit code of sysexits.h.
 * A stack never reaches an operator, and neither does the message of a foreign error: nobody knows what is in it.
 */
import { getSystemErrorMap } from "node:util";
import { CommanderError } from "commander";
import { hideSecrets } from "./hidden-secrets.ts";
import { printableText } from "./printable-text.ts";

/** The part of sysexits.h that both programs use. */
export const ExitCode = {
  ok: 0,
  /** The command line is wrong. */
  usage: 64,
  /** What is asked is not running or cannot be reached. */
  unavailable: 69,
  /** A bug of ours. */
  software: 70,
  /** The operating system failed to read, write or bind. */
  ioError: 74,
  /** A permission is missing, or a secret has too many readers. */
  permission: 77,
  /** The configuration is wrong; a service manager should not restart. */
  configuration: 78,
} as const;

export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/**
 * A failure that an operator can understand and mend. What has the form of a token or of a pairing line is taken out of both
 * texts, because a place is often what somebody typed.
 */
export class Failure extends Error {
  override readonly name = "Failure";
  readonly exitCode: ExitCode;
  /** A file, `file:line:column`, an option or an address: what to look at. */
  readonly where: string;
  /** What is wrong, and what to do. */
  readonly what: string;

  constructor(exitCode: ExitCode, where: string, what: string) {
    const [shownWhere, shownWhat] = [hideSecrets(where), hideSecrets(what)];
    super(`${shownWhere}: ${shownWhat}`);
    this.exitCode = exitCode;
    this.where = shownWhere;
    this.what = shownWhat;
  }

  /** The one line for stderr, without its end. */
  override toString(): string {
    return `error: ${printableText(this.message)}`;
  }
}

/** What may be told of an error that came from elsewhere. */
export interface ErrorFacts {
  /** The name of its class. */
  readonly type: string;
  readonly code: string | undefined;
  readonly syscall: string | undefined;
}

/** Class, code and system call of anything thrown, each only when it is a plain word: never the message. */
export function errorFacts(error: unknown): ErrorFacts {
  try {
    if (typeof error !== "object" || error === null) {
      return { type: typeof error, code: undefined, syscall: undefined };
    }
    const { code, syscall } = error as { code?: unknown; syscall?: unknown };
    return { type: plainWord(error.constructor?.name) ?? "Error", code: plainWord(code), syscall: plainWord(syscall) };
  } catch {
    return { type: "Error", code: undefined, syscall: undefined };
  }
}

/**
 * The failure for an error of the operating system: 77 when a permission is missing, 74 otherwise. The text is the
 * system's own description of the code (`no such file or directory`), never the message of the error.
 */
export function systemFailure(error: unknown, where: string, doing: string): Failure {
  const { code, type } = errorFacts(error);
  const exitCode = code === "EACCES" || code === "EPERM" ? ExitCode.permission : ExitCode.ioError;
  return new Failure(exitCode, where, `cannot ${doing}: ${systemErrorText(code) ?? type}`);
}

/** `no such file or directory (ENOENT)`; just the code when the system does not know it; undefined without a code. */
export function systemErrorText(code: string | undefined): string | undefined {
  if (code === undefined) {
    return undefined;
  }
  for (const [name, text] of getSystemErrorMap().values()) {
    if (name === code) {
      return `${text} (${code})`;
    }
  }
  return code;
}

/** The line and the exit code for anything thrown. */
export function describeFailure(error: unknown): { line: string; exitCode: ExitCode } {
  if (error instanceof Failure) {
    return { line: error.toString(), exitCode: error.exitCode };
  }
  const { type, code } = errorFacts(error);
  const place = firstFrame(error);
  const what = `${type}${code === undefined ? "" : ` ${code}`}${place === undefined ? "" : ` at ${place}`}`;
  return { line: `error: internal: ${what}; this is a defect of the program`, exitCode: ExitCode.software };
}

/** How long a failed program may take to end by itself, in milliseconds; handles left open end it then. */
const LINGER_MS = 1_000;

/**
 * Runs a program and sets `process.exitCode` to what `main` resolves with (nothing means 0). When `main` rejects, its
 * failure is the one line on stderr. An error that nobody caught, later too, is a bug: it is told in the same way, and the
 * process ends with 70. A reader of stdout that leaves (`| head`) ends nothing.
 */
export async function runProgram(main: () => Promise<number | void>): Promise<void> {
  process.stdout.on("error", ignore);
  process.stderr.on("error", ignore);
  process.on("uncaughtException", (error) => {
    process.exit(report(error));
  });
  try {
    process.exitCode = (await main()) ?? ExitCode.ok;
  } catch (error) {
    // After help and version nothing is left to do.
    if (error instanceof CommanderError && error.exitCode === 0) {
      process.exitCode = ExitCode.ok;
      return;
    }
    process.exitCode = report(error);
    // Whatever is still open (a listener, a timer) must not keep a program alive that has said why it failed.
    setTimeout(() => process.exit(), LINGER_MS).unref();
  }
}

function report(error: unknown): ExitCode {
  const { line, exitCode } = describeFailure(error);
  process.stderr.write(`${line}\n`);
  return exitCode;
}

/** Output has gone when its reader has: there is nobody left to tell. */
function ignore(): void {}

function plainWord(value: unknown): string | undefined {
  return typeof value === "string" && /^\w{1,64}$/.test(value) ? value : undefined;
}

/**
 * File, line and column where the error was made: all that a bug report needs at first. Frames follow the message in the
 * stack, so only what stands behind the message is read, and of that only base names of source files.
 */
function firstFrame(error: unknown): string | undefined {
  if (!(error instanceof Error) || typeof error.stack !== "string") {
    return undefined;
  }
  const messageAt = error.stack.indexOf(error.message);
  if (messageAt === -1) {
    return undefined;
  }
  const frames = error.stack.slice(messageAt + error.message.length);
  return /^\s+at .*?([\w.-]+\.[cm]?[jt]s:\d+:\d+)\)?$/m.exec(frames)?.[1];
}
