import { z } from "zod";
import { spoken } from "./config-reason.ts";

const unitMs = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** Node's timers take no more (2^31 - 1 ms, 24.8 days): beyond it they would fire at once. */
const MAX_TIMER_MS = 2_147_483_647;

const PATTERN = /^(0|[1-9][0-9]{0,9})(ms|s|m|h|d)$/;

/** Bounds of a {@link duration}, as durations themselves; both included. */
export interface DurationBounds {
  /** Default `0ms`. */
  readonly min?: string;
  /** Default and most: `24d`, what a timer can wait. */
  readonly max?: string;
}

/**
 * A configuration value such as `500ms`, `10s`, `5m`, `1h` or `1d`, read as milliseconds. A number without unit is refused:
 * nobody knows whether it means seconds.
 */
export function duration({ min = "0ms", max = "24d" }: DurationBounds = {}) {
  const minMs = parseDuration(min) ?? 0;
  const maxMs = Math.min(parseDuration(max) ?? MAX_TIMER_MS, MAX_TIMER_MS);
  return z
    .string(spoken("must be a duration with its unit, such as 500ms, 10s, 5m, 1h or 1d"))
    .regex(PATTERN, "must be a duration with its unit, such as 500ms, 10s, 5m, 1h or 1d")
    .transform((text, context) => {
      const ms = parseDuration(text) ?? 0;
      if (ms < minMs || ms > maxMs) {
        context.addIssue({ code: "custom", message: `must be ${min} to ${max}` });
        return z.NEVER;
      }
      return ms;
    });
}

/** Milliseconds of a duration; undefined when it is none. */
export function parseDuration(text: string): number | undefined {
  const [, count, unit] = PATTERN.exec(text) ?? [];
  return count === undefined || unit === undefined ? undefined : Number(count) * unitMs[unit as keyof typeof unitMs];
}
