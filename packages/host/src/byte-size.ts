import { z } from "zod";
import { spoken } from "./config-reason.ts";

const unitBytes = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 } as const;

const PATTERN = /^(0|[1-9][0-9]{0,11})(B|KB|MB|GB|KiB|MiB|GiB)$/;

/** Bounds of a {@link byteSize}, as sizes themselves; both included. */
export interface ByteSizeBounds {
  /** Default `0B`. */
  readonly min?: string;
  /** Default `1024GiB`. */
  readonly max?: string;
}

/** A configuration value such as `512B`, `64KB`, `256KiB` or `1MiB`, read as bytes. A number without unit is refused. */
export function byteSize({ min = "0B", max = "1024GiB" }: ByteSizeBounds = {}) {
  const minBytes = parseByteSize(min) ?? 0;
  const maxBytes = parseByteSize(max) ?? Number.MAX_SAFE_INTEGER;
  return z
    .string(spoken("must be a size with its unit, such as 512B, 64KB, 256KiB or 1MiB"))
    .regex(PATTERN, "must be a size with its unit, such as 512B, 64KB, 256KiB or 1MiB")
    .transform((text, context) => {
      const bytes = parseByteSize(text) ?? 0;
      if (bytes < minBytes || bytes > maxBytes) {
        context.addIssue({ code: "custom", message: `must be ${min} to ${max}` });
        return z.NEVER;
      }
      return bytes;
    });
}

/** Bytes of a size; undefined when it is none. */
export function parseByteSize(text: string): number | undefined {
  const [, count, unit] = PATTERN.exec(text) ?? [];
  return count === undefined || unit === undefined
    ? undefined
    : Number(count) * unitBytes[unit as keyof typeof unitBytes];
}
