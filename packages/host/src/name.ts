import { z } from "zod";
import { spoken } from "./config-reason.ts";

const PATTERN = /^[a-zA-Z0-9_-]{1,255}$/;

const REASON = "must be a name of 1-255 letters, digits, _ and -";

/**
 * A configuration value that names something: a listener, a client, an edge. `__proto__` is no name, because a name is used
 * as a key.
 */
export function name() {
  return z
    .string(spoken(REASON))
    .regex(PATTERN, REASON)
    .refine((text) => text !== "__proto__", "__proto__ is not usable as a name");
}
