export interface Deadline {
  /** Names what is awaited; the error's text begins with it. */
  readonly what: string;
  /** Milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
}

const DEFAULT_TIMEOUT_MS = 10_000;

/**
 * Settles as `promise` does, or rejects after the deadline with an error that names what was awaited. The promise itself
 * is not cancelled; whoever made it still closes what it holds.
 */
export async function withDeadline<T>(promise: Promise<T>, deadline: Deadline): Promise<T> {
  const timeoutMs = deadline.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${deadline.what}: not within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    return await Promise.race([promise, expiry]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Asks `probe` every 50 ms until it answers something other than `undefined`. It is for states that only polling
 * shows, such as an HTTP readiness answer; a probe that throws counts as "not yet".
 */
export async function pollUntil<T>(
  probe: () => Promise<T | undefined> | T | undefined,
  deadline: Deadline,
): Promise<T> {
  const timeoutMs = deadline.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  const endsAt = Date.now() + timeoutMs;
  let lastFailure = "";
  for (;;) {
    try {
      const answer = await probe();
      if (answer !== undefined) return answer;
    } catch (error) {
      lastFailure = `; last failure: ${String(error)}`;
    }
    if (Date.now() >= endsAt) throw new Error(`${deadline.what}: not within ${timeoutMs} ms${lastFailure}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
