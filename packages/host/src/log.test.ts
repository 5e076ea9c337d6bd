import { expect, test } from "vitest";
import { createLogger, droppedLogLines, type Logger } from "./log.ts";

function collect(level?: "debug"): { log: Logger; lines: string[]; objects: () => Record<string, unknown>[] } {
  const lines: string[] = [];
  const destination = { write: (line: string) => void lines.push(line) };
  const log = createLogger({ name: "edge-1", destination, ...(level === undefined ? {} : { level }) });
  return { log, lines, objects: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

test("a line is one JSON object with time, level, name and message", () => {
  const { log, objects } = collect();
  log.info({ listener: "sftp", port: 22 }, "listening");
  expect(objects()).toEqual([
    {
      level: "info",
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      name: "edge-1",
      listener: "sftp",
      port: 22,
      msg: "listening",
    },
  ]);
});

test("the level is info unless it is given, and can be changed", () => {
  const { log, lines } = collect();
  log.debug("hidden");
  expect(lines).toHaveLength(0);
  log.level = "debug";
  log.debug("seen");
  expect(lines).toHaveLength(1);
  expect(collect("debug").log.level).toBe("debug");
});

class ForeignError extends Error {
  readonly code = "ECONNRESET";
  readonly syscall = "read";
  readonly config = { token: "hunter2" };
}

test("of an error only class, code and system call are logged, wherever it stands", () => {
  const { log, lines } = collect();
  const error = new ForeignError("hunter2", { cause: new Error("hunter2") });
  log.error(error);
  log.error(error, "accept failed");
  log.error({ err: error });
  log.error({ error });
  log.error({ err: error, at: 1 }, "accept failed");
  log.error({ other: error }, "accept failed");
  log.error("failed: %s", error);
  log.error("failed: %o", error);
  // The types do not allow it; a caller without types may do it.
  (log.error as (message: string, extra: unknown) => void).call(log, "failed", error);
  log.child({ connection: "c1" }).error({ err: error });
  expect(lines.join("")).not.toContain("hunter2");
  expect(lines.join("")).not.toContain("log.test.ts");
  const facts = { type: "ForeignError", code: "ECONNRESET", syscall: "read" };
  expect(JSON.parse(lines[0]!)).toMatchObject({ err: facts, msg: "error" });
  expect(JSON.parse(lines[1]!)).toMatchObject({ err: facts, msg: "accept failed" });
  expect(JSON.parse(lines[4]!)).toMatchObject({ err: facts, at: 1, msg: "accept failed" });
  expect(JSON.parse(lines[5]!)).toMatchObject({ other: facts });
  expect(JSON.parse(lines[9]!)).toMatchObject({ err: facts, connection: "c1" });
});

test.each([
  ['"}\n{"level":"info","msg":"forged"}'],
  ["\r\n\u0000\u001b[2J\u0007"],
  ["\u007f\u0080\u0085\u009b31m"],
  ["\u2028\u2029\u202e\ufeff"],
  ["\ud800"],
  ["</script><script>"],
])("what an outsider sent (%j) stays inside of one line and comes out as it was", (text) => {
  const { log, lines, objects } = collect();
  log.info({ partner: text }, text);
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/^[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]+\n$/u);
  expect(objects()[0]).toMatchObject({ partner: text, msg: text });
});

test("no line was dropped as long as nothing went wrong", () => {
  expect(droppedLogLines()).toBe(0);
});
