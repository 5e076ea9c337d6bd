/** Parts of the configuration that both programs have. Every duration comes out in milliseconds. */
import { z } from "zod";
import { byteSize } from "./byte-size.ts";
import { duration } from "./duration.ts";
import { listenAddress } from "./host-port.ts";

/** Levels of the log, the most talkative first. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** `log`: default level `info`. */
export function logSection() {
  return z
    .strictObject({ level: z.enum(LOG_LEVELS).default("info").describe("The least level that is logged.") })
    .prefault({})
    .describe("The log: JSON lines on standard output.");
}

/** `accessLog`: without it, records of connections go to the log alone. */
export function accessLogSection() {
  return z
    .strictObject({
      file: filePath().describe(
        "The file. FILE.1, FILE.2 and so on beside it are the ones before. Made with mode 0640; no link is followed.",
      ),
      maxSize: byteSize({ min: "64KiB", max: "1024GiB" })
        .prefault("100MiB")
        .describe("The largest a file becomes before another takes its place."),
      maxAge: duration({ max: "24d" })
        .prefault("1d")
        .describe("How long a file is written to before another takes its place. 0s: any time."),
      keep: count({ min: 0, max: 365 })
        .default(14)
        .describe("How many files are kept besides the one that is written to."),
      format: z.enum(["json"]).default("json").describe("How a record is written: one JSON object a line."),
      stdout: z.boolean().default(true).describe("Whether records go to standard output, too."),
    })
    .optional()
    .describe("A file for the records of connections. Left out: they go to standard output alone.");
}

/** `metrics`: without it, nothing listens. */
export function metricsSection() {
  return z
    .strictObject({
      listen: listenAddress().describe(
        "IP address and port of /metrics, /healthz and /readyz. Answers anybody who can reach it.",
      ),
    })
    .optional()
    .describe("Prometheus metrics and health over plain HTTP. Left out: none.");
}

/** `heartbeat`: default every 10 s, dead after 25 s. The time to live must be longer than the interval. */
export function heartbeatSection() {
  return z
    .strictObject({
      interval: duration({ min: "100ms", max: "1h" })
        .prefault("10s")
        .describe("How often each end of a link says that it lives."),
      timeout: duration({ min: "200ms", max: "1d" })
        .prefault("25s")
        .describe("A link that is silent for this long is dead."),
    })
    .superRefine(({ interval, timeout }, context) => {
      if (timeout <= interval) {
        context.addIssue({ code: "custom", path: ["timeout"], message: "must be longer than heartbeat.interval" });
      }
    })
    .prefault({})
    .describe("Heartbeats of tunnel links. They notice a dead network that TCP does not.");
}

/** The keys of `timeouts`, shared by the defaults and by what overrides them. */
const timeouts = {
  connect: duration({ min: "10ms", max: "5m" }).describe(
    "The longest time until a target is connected, name lookup included.",
  ),
  idle: duration().describe("A connection without a byte in either direction for this long is reset. 0s: never."),
  halfClose: duration().describe("The same once one direction has ended. 0s: `idle` goes on to hold."),
};

/** `timeouts`: connect 5 s, idle 1 h, halfClose 30 s unless given. */
export function timeoutsSection() {
  return z
    .strictObject({
      connect: timeouts.connect.prefault("5s"),
      idle: timeouts.idle.prefault("1h"),
      halfClose: timeouts.halfClose.prefault("30s"),
    })
    .prefault({})
    .describe("Timeouts of connections.");
}

/** `timeouts` of something special: what is left out is as in the general section. */
export function timeoutOverrides() {
  return z
    .strictObject({
      connect: timeouts.connect.optional(),
      idle: timeouts.idle.optional(),
      halfClose: timeouts.halfClose.optional(),
    })
    .optional()
    .describe("Timeouts that differ from the general ones.");
}

/** `drainTimeout`: default 30 s. */
export function drainTimeout() {
  return duration({ max: "1d" })
    .prefault("30s")
    .describe("How long running connections may go on after a stop with drain (SIGTERM) before they are reset.");
}

/** `memory`: default 256 MiB. In bytes. */
export function memorySize() {
  return byteSize({ min: "16MiB" })
    .prefault("256MiB")
    .describe(
      "What all tunnelled connections together may hold or have been promised. When it is short, windows shrink and nothing is dropped.",
    );
}

/** `stripe`: default false. */
export function stripeSetting() {
  return z
    .boolean()
    .default(false)
    .describe(
      "Whether one connection may use several links at once when its own is full: faster on long paths that lose packets, dearer on short ones.",
    );
}

/** A path in the file system. Relative ones start at the working directory of the program. */
export function filePath() {
  return z
    .string()
    .min(1)
    .max(4_096)
    .refine((path) => !path.includes("\0"), "must be a path");
}

/** A number of things, at least `min` (default 1) and at most a million. */
export function count({ min = 1, max = 1_000_000 }: { readonly min?: number; readonly max?: number } = {}) {
  return z.int().min(min).max(max);
}
