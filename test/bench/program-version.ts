import { runProcess } from "../support/child-process.ts";

/** The first group of `pattern` in what the program prints, or "?" when it prints nothing of the kind. */
export async function versionOf(command: string, args: readonly string[], pattern: RegExp): Promise<string> {
  const { stdout, stderr } = await runProcess({ command, args, timeoutMs: 10_000 });
  return pattern.exec(`${stdout}\n${stderr}`)?.[1] ?? "?";
}
