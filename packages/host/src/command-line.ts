/**
 * Command lines that fail in one line, with 64, and never repeat what was given as a value: people paste tokens into the
 * wrong place, and terminals and logs keep what they show.
 */
import { Command, type CommanderError } from "commander";
import { ExitCode, Failure } from "./failure.ts";
import { nearestWord } from "./nearest-word.ts";

/**
 * A command line without commands yet; `command()` and the other methods of the library add them, and `parseAsync` runs
 * them. A mistake is thrown as a `Failure` 64; after help or version, the library's own error with exit code 0, which
 * `runProgram` knows.
 */
export function program(name: string, description: string): Command {
  const root: Command = new Command(name)
    .description(description)
    .configureOutput({ writeErr: () => undefined, outputError: () => undefined })
    .exitOverride((error) => {
      throw error.exitCode === 0 && error.code !== "commander.error" ? error : usageFailure(root, error);
    })
    .showSuggestionAfterError(false);
  return root;
}

/** Only what looks like a name is repeated; a token or a pairing line does not. */
const WORD_PATTERN = /^[a-z][a-z-]{0,30}$/i;

function usageFailure(root: Command, error: CommanderError): Failure {
  const message = error.message.replace(/^error: /, "");
  const quoted = /'([^']*)'/.exec(message)?.[1] ?? "";
  switch (error.code) {
    case "commander.unknownOption":
      return unknownOption(root, quoted);
    case "commander.unknownCommand": {
      const nearest = nearestWord(quoted, commandNames(root));
      const hint = nearest === undefined ? `see ${root.name()} --help` : `did you mean ${nearest}?`;
      return usage(WORD_PATTERN.test(quoted) ? quoted : "command", `unknown command; ${hint}`);
    }
    case "commander.invalidArgument": {
      // "option '--port <n>' argument 'VALUE' is invalid. REASON": the value may hold anything, the reason is ours.
      const mark = "is invalid.";
      const reason = message.slice(message.lastIndexOf(mark) + mark.length).trim();
      const argument = message.startsWith("option") ? longFlag(quoted) : argumentName(message);
      return usage(argument, message.includes(mark) && reason !== "" ? reason : "invalid value");
    }
    case "commander.optionMissingArgument":
      return usage(longFlag(quoted), "needs a value");
    case "commander.missingMandatoryOptionValue":
      return usage(longFlag(quoted), "is required");
    case "commander.missingArgument":
      return usage(`<${quoted}>`, "is required");
    case "commander.excessArguments":
      return usage("arguments", `too many; see ${root.name()} --help`);
    case "commander.help":
      return usage(root.name(), `which command? see ${root.name()} --help`);
    default:
      return usage(root.name(), `wrong command line; see ${root.name()} --help`);
  }
}

function usage(where: string, what: string): Failure {
  return new Failure(ExitCode.usage, where, what);
}

/** `--token=XYZ` comes as one text, and so does `-tXYZ`: what could be a value is cut off. */
function unknownOption(root: Command, text: string): Failure {
  const flag = text.startsWith("--") ? (/^--[^=\s]*/.exec(text)?.[0] ?? "") : text.slice(0, 2);
  const name = flag.replace(/^-+/, "");
  const shown = WORD_PATTERN.test(name) ? flag : "option";
  if (/token|secret|passw|credential|key/i.test(name)) {
    return usage(shown, "unknown option; secrets are never taken as options, because other users can see them");
  }
  const known = optionFlags(root);
  if (known.includes(flag)) return usage(flag, `is not an option here; see ${root.name()} COMMAND --help`);
  const nearest = nearestWord(flag, known);
  return usage(
    shown,
    nearest === undefined ? `unknown option; see ${root.name()} --help` : `unknown option; did you mean ${nearest}?`,
  );
}

function longFlag(flags: string): string {
  return /--[a-z-]+/.exec(flags)?.[0] ?? flags;
}

function argumentName(message: string): string {
  return /for '([a-z-]+)'|argument '([a-z-]+)'/.exec(message)?.slice(1).find(Boolean) ?? "argument";
}

function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap((sub) => allCommands(sub))];
}

function commandNames(root: Command): string[] {
  return allCommands(root)
    .slice(1)
    .map((command) => command.name());
}

function optionFlags(root: Command): string[] {
  return allCommands(root).flatMap((command) => [
    "--help",
    ...command.options.map(({ long }) => long).filter((long) => typeof long === "string"),
  ]);
}
