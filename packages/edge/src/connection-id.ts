/**
 * Connection ids: unique across edges and restarts, short, and readable aloud. The same id stands in the records of
 * the edge and of the agent.
 */
import { randomBytes } from "node:crypto";

/** Drawn at start: two processes do not share it. */
const processPart = randomBytes(5).toString("hex");
let counter = 0;

/** Such as `9f8a01c2d3-1b`: the process, then a counter in base 36. At most 24 characters. */
export function nextConnectionId(): string {
  counter += 1;
  return `${processPart}-${counter.toString(36)}`;
}
