/**
 * Reasons for configuration values, worded for the person at the file. No reason repeats a value: it may be a secret in
 * the wrong place.
 */
import type { z } from "zod";

/** Parameters of a zod schema: `reason` for a value of the wrong kind, and the usual words for a missing or empty one. */
export function spoken(reason: string): { error: (issue: { input?: unknown }) => string } {
  return { error: ({ input }) => absence(input) ?? reason };
}

/** The words for a key without value; undefined when it has one. */
function absence(input: unknown): string | undefined {
  if (input === undefined) {
    return "required";
  }
  return input === null ? "has no value; give it one or remove the key" : undefined;
}

const kinds: Readonly<Record<string, string>> = {
  array: "a list",
  boolean: "true or false",
  int: "a whole number",
  number: "a number",
  object: "a map of keys and values",
  record: "a map of keys and values",
  string: "text (in quotes when it looks like a number)",
};

/** zod's error map: the reason for an issue that its schema has no words of its own for. */
export function configReason(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case "invalid_type":
      return absence(issue.input) ?? `must be ${kinds[issue.expected] ?? issue.expected}`;
    case "invalid_value":
      return absence(issue.input) ?? `must be ${issue.values.map(String).join(" or ")}`;
    case "too_small":
      return issue.origin === "array" || issue.origin === "string"
        ? `needs at least ${issue.minimum} ${issue.origin === "array" ? "entries" : "characters"}`
        : `must be at least ${issue.minimum}`;
    case "too_big":
      return issue.origin === "array" || issue.origin === "string"
        ? `must have at most ${issue.maximum} ${issue.origin === "array" ? "entries" : "characters"}`
        : `must be at most ${issue.maximum}`;
    case "invalid_union":
      return absence(issue.input);
    default:
      return undefined;
  }
}
