import { flushLog } from "./log.ts";

/** How long what is still open may take to end by itself, in milliseconds. */
const LINGER_MS = 200;

/**
 * For a program that has stopped: writes its log out, and ends it although something is still open, such as a peer that does
 * not answer a close or a name server that does not answer a question. Nobody waits for these.
 */
export async function leave(exitCode: number): Promise<void> {
  await flushLog();
  setTimeout(() => process.exit(exitCode), LINGER_MS).unref();
}
