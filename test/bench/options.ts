import { parseArgs } from "node:util";

export interface OursDirectory {
  readonly label: string;
  readonly directory: string;
}

export interface Options {
  /** Ids, or beginnings of ids with a star; empty: all. */
  readonly peers: readonly string[];
  /** Ids of measurements; empty: all. */
  readonly columns: readonly string[];
  readonly rounds: number;
  readonly seconds: number;
  readonly isSmoke: boolean;
  /** Raw results go there, too. */
  readonly jsonFile?: string;
  /** Raw results that were written earlier; nothing is measured. */
  readonly reportFrom?: string;
  readonly oursDirectories: readonly OursDirectory[];
  /** Prints names and ends. */
  readonly isList: boolean;
  readonly isHelp: boolean;
}

export const USAGE = `npm run bench -- [OPTIONS]

Measures Sallyport and its peers in one interleaved run. Without --peers, --columns, --ours-dir and --smoke it writes
docs/benchmarks.md and docs/benchmarks.json; with one of them it prints the tables.

  --peers A,B        only these rows; NAME* takes all that begin with NAME
  --columns X,Y      only these groups of columns
  --rounds N         rounds, 1 to 100 (default 3)
  --seconds S        of each single measurement, 1 to 60 (default 2)
  --ours-dir L=DIR   also the built checkout in DIR, as rows ours@L and ours-direct@L; may be given more than once
  --smoke            only whether every piece works: one short round; with --columns, all of these for all rows
  --json FILE        writes the raw results to FILE
  --report FILE      measures nothing: writes docs/benchmarks.md from raw results
  --help             prints this
  --list             prints the names of rows and columns
`;

/** Wrong usage; the text is for the person who typed it. */
export class UsageError extends Error {}

export function parseOptions(args: readonly string[]): Options {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: {
        peers: { type: "string" },
        columns: { type: "string" },
        rounds: { type: "string" },
        seconds: { type: "string" },
        "ours-dir": { type: "string", multiple: true },
        smoke: { type: "boolean" },
        json: { type: "string" },
        report: { type: "string" },
        list: { type: "boolean" },
        help: { type: "boolean" },
      },
    }));
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const isSmoke = values.smoke === true;
  return {
    peers: names(values.peers),
    columns: names(values.columns),
    rounds: whole("--rounds", values.rounds, { otherwise: isSmoke ? 1 : 3, max: 100 }),
    seconds: whole("--seconds", values.seconds, { otherwise: isSmoke ? 1 : 2, max: 60 }),
    isSmoke,
    ...(values.json === undefined ? {} : { jsonFile: values.json }),
    ...(values.report === undefined ? {} : { reportFrom: values.report }),
    oursDirectories: (values["ours-dir"] ?? []).map(oursDirectory),
    isList: values.list === true,
    isHelp: values.help === true,
  };
}

function names(text: string | undefined): string[] {
  return text === undefined ? [] : text.split(",").filter((name) => name !== "");
}

function whole(name: string, text: string | undefined, { otherwise, max }: { otherwise: number; max: number }): number {
  if (text === undefined) return otherwise;
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1 || value > max) throw new UsageError(`${name}: 1 to ${max}, not ${text}`);
  return value;
}

function oursDirectory(text: string): OursDirectory {
  const match = /^([\w.-]+)=(.+)$/.exec(text);
  if (match === null) throw new UsageError(`--ours-dir: LABEL=DIR, not ${text}`);
  return { label: match[1]!, directory: match[2]! };
}
