import { once } from "node:events";
import type { Socket } from "node:net";

/** Waits until the socket takes more, or is closed. Leaves no listener behind, so that it can be called in a loop. */
export async function drainedOrClosed(socket: Socket): Promise<void> {
  const waiting = new AbortController();
  const { signal } = waiting;
  try {
    await Promise.race([once(socket, "drain", { signal }), once(socket, "close", { signal })]);
  } catch {
    // It failed, which closes it.
  } finally {
    waiting.abort();
  }
}
