import { join } from "node:path";
import { runProcess } from "../support/child-process.ts";
import { fences, readDocument, root } from "./markdown.ts";

export interface DocumentedCommand {
  readonly line: number;
  /** Begins with `sallyport-edge` or `sallyport-agent`. */
  readonly words: readonly string[];
}

/** Every call of one of the programs in a document: in blocks of shell commands, and between backticks. */
export function commandsIn(file: string): DocumentedCommand[] {
  const inBlocks = fences(file)
    .filter(({ language }) => language === "sh" || language === "ini")
    .flatMap(({ line, text }) =>
      text
        .replaceAll("\\\n", "  ")
        .split("\n")
        .map((command, at) => ({ line: line + 1 + at, command })),
    );
  const inText = readDocument(file)
    .replace(/^```[\s\S]*?^```/gm, (block) => block.replace(/[^\n]/g, ""))
    .split("\n")
    .flatMap((text, at) => [...text.matchAll(/`([^`]+)`/g)].map(([, command = ""]) => ({ line: at + 1, command })));
  return [...inBlocks, ...inText].flatMap(({ line, command }) =>
    command
      .replace(/(^|\s)#.*$/, "")
      .split(/&&|\|\||[;|<>]/)
      .map((call) => call.trim().split(/\s+/))
      .map((words) =>
        words.slice(words.findLastIndex((word) => /^(\S*\/bin\/)?sallyport-(edge|agent)(\.js)?$/.test(word))),
      )
      // Elsewhere the name is a user, a unit or an image: nothing follows it there, or an option does.
      .filter(
        ([program = "", next = ""]) => /sallyport-(edge|agent)(\.js)?$/.test(program) && /^[a-z][a-z-]*$/.test(next),
      )
      .map(([program = "", ...rest]) => ({
        line,
        words: [/sallyport-(edge|agent)/.exec(program)?.[0] ?? program, ...rest],
      })),
  );
}

interface Help {
  readonly commands: ReadonlySet<string>;
  /** Option, and whether it takes a value. */
  readonly options: ReadonlyMap<string, boolean>;
  /** How many arguments the command needs, and may have. */
  readonly arguments: { readonly min: number; readonly max: number };
}

const known = new Map<string, Promise<Help>>();

/** What is wrong with a command line by the programs' own `--help`; undefined when it would be accepted. */
export async function commandFault(words: readonly string[]): Promise<string | undefined> {
  const [program = "", ...rest] = words;
  let path: string[] = [];
  let help = await helpOf(program, path);
  while (rest.length > 0 && help.commands.has(rest[0]!)) {
    path = [...path, rest.shift()!];
    help = await helpOf(program, path);
  }
  if (help.commands.size > 0) return `no command ${rest[0] ?? ""}`;
  let given = 0;
  while (rest.length > 0) {
    const word = rest.shift()!;
    if (!word.startsWith("--")) {
      given += 1;
      continue;
    }
    const takesValue = help.options.get(word);
    if (takesValue === undefined) return `no option ${word}`;
    if (takesValue && rest.shift() === undefined) return `${word} needs a value`;
  }
  // `sallyport-edge connections` in running text names the command; in that case too few arguments are a fault as well.
  const { min, max } = help.arguments;
  return given < min || given > max ? `${given} arguments instead of ${min} to ${max}` : undefined;
}

function helpOf(program: string, path: readonly string[]): Promise<Help> {
  const key = [program, ...path].join(" ");
  const cached = known.get(key) ?? readHelp(program, path);
  known.set(key, cached);
  return cached;
}

async function readHelp(program: string, path: readonly string[]): Promise<Help> {
  const script = join(root, "packages", program.replace("sallyport-", ""), "bin", `${program}.js`);
  const { stdout, stderr, code } = await runProcess({ command: process.execPath, args: [script, ...path, "--help"] });
  if (code !== 0) throw new Error(`${program} ${path.join(" ")} --help: ${stderr}`);
  const usage = /^Usage: (.*)$/m.exec(stdout)?.[1] ?? "";
  const part = (title: string) =>
    new RegExp(`^${title}:\\n([\\s\\S]*?)(\\n\\n|$(?![\\s\\S]))`, "m").exec(stdout)?.[1] ?? "";
  const commands = [...part("Commands").matchAll(/^ {2}([a-z][a-z-]*)/gm)].map(([, name = ""]) => name);
  const options = [...part("Options").matchAll(/^ {2}(?:-\w, )?(--[a-z-]+)( [<[])?/gm)];
  return {
    commands: new Set(commands),
    options: new Map(options.map(([, name = "", value]) => [name, value !== undefined])),
    arguments: {
      min: (usage.match(/<[\w-]+>/g) ?? []).length,
      max: (usage.match(/<[\w-]+>|\[(?!options|command)[\w-]+\]/g) ?? []).length,
    },
  };
}
