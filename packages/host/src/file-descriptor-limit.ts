/**
 * How many file descriptors the process may have. At the limit the kernel's accepted connections are closed without an
 * error or event, and `process.memoryUsage` throws: so the limit must never be reached, and connections are capped below
 * it from the start.
 */
import { readFileSync } from "node:fs";

/** Kept free for logs, the admin socket, metrics, name lookups, a few links and whatever the runtime opens. */
export const RESERVED_FILE_DESCRIPTORS = 64;

/**
 * The limit of this process; Node raises the soft limit to the hard one at start. Undefined where the system does not say
 * (anything but Linux) or has none.
 */
export function fileDescriptorLimit(): number | undefined {
  try {
    const line = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "latin1"));
    const limit = Number(line?.[1]);
    return Number.isSafeInteger(limit) ? limit : undefined;
  } catch {
    return undefined;
  }
}

/**
 * How many connections of `descriptorsEach` fit beside the reserve and beside `furtherDescriptors`, which the caller may
 * need for other sockets; at least 1. Undefined: no limit is known.
 */
export function connectionCapacity(descriptorsEach: number, furtherDescriptors = 0): number | undefined {
  const limit = fileDescriptorLimit();
  if (limit === undefined) return undefined;
  return Math.max(1, Math.floor((limit - RESERVED_FILE_DESCRIPTORS - furtherDescriptors) / descriptorsEach));
}
