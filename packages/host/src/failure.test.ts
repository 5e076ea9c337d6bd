import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { describeFailure, errorFacts, ExitCode, Failure, runProgram, systemFailure } from "./failure.ts";

const lines: string[] = [];
let handlers: ((error: Error) => void)[] = [];

beforeEach(() => {
  lines.length = 0;
  handlers = process.listeners("uncaughtException") as typeof handlers;
  vi.useFakeTimers();
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    lines.push(String(text));
    return true;
  });
});

afterEach(() => {
  for (const handler of process.listeners("uncaughtException")) {
    if (!handlers.includes(handler as (error: Error) => void)) {
      process.removeListener("uncaughtException", handler);
    }
  }
  vi.useRealTimers();
  vi.restoreAllMocks();
  process.exitCode = undefined;
});

test("a failure is one line with where and what", async () => {
  await runProgram(() => Promise.reject(new Failure(ExitCode.configuration, "edge.yaml:3:5", "allow: required")));
  expect(lines).toEqual(["error: edge.yaml:3:5: allow: required\n"]);
  expect(process.exitCode).toBe(78);
});

test("a failure stays one line whatever is in it", () => {
  expect(describeFailure(new Failure(ExitCode.usage, "a\nerror: b", "\u001b[2Jc\u0085")).line).toBe(
    "error: a\\u000aerror: b: \\u001b[2Jc\\u0085",
  );
});

test("an unknown error is told by class, code and place, never by its message or stack", async () => {
  class SecretError extends Error {}
  const error = Object.assign(new SecretError("token=hunter2\n    at evil (file.ts:1:1)"), { code: "E_HUNTER" });
  await runProgram(() => Promise.reject(error));
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(
    /^error: internal: SecretError E_HUNTER at failure\.test\.ts:\d+:\d+; this is a defect of the program\n$/,
  );
  expect(process.exitCode).toBe(70);
});

test.each([[undefined], [null], ["text"], [42], [{ code: "bad code\n" }], [Object.create(null)]])(
  "even %j can be thrown",
  (thrown) => {
    expect(describeFailure(thrown).line).toMatch(/^error: internal: \w+; this is a defect of the program$/);
  },
);

test("an error that throws when it is looked at is told as well", () => {
  const hostile = new Proxy(
    {},
    {
      get: () => {
        throw new Error("no");
      },
    },
  );
  expect(errorFacts(hostile)).toEqual({ type: "Error", code: undefined, syscall: undefined });
});

test.each([
  [undefined, 0],
  [ExitCode.unavailable, 69],
])("a program that resolves with %j exits with %d", async (result, exitCode) => {
  await runProgram(async () => result);
  expect(process.exitCode).toBe(exitCode);
  expect(lines).toEqual([]);
});

test("a failed program ends although something is still open", async () => {
  const exit = vi.spyOn(process, "exit").mockImplementation((() => undefined) as never);
  await runProgram(() => Promise.reject(new Failure(ExitCode.unavailable, "admin.sock", "nobody listens")));
  expect(exit).not.toHaveBeenCalled();
  vi.advanceTimersByTime(1_000);
  expect(exit).toHaveBeenCalledOnce();
});

test("an error that nobody caught ends the process with 70 and one line", async () => {
  const exit = vi.spyOn(process, "exit").mockImplementation((() => undefined) as never);
  await runProgram(async () => undefined);
  const handler = process.listeners("uncaughtException").at(-1) as (error: Error) => void;
  handler(new RangeError("secret"));
  expect(exit).toHaveBeenCalledWith(70);
  expect(lines.join("")).toMatch(/^error: internal: RangeError at .*\n$/);
  expect(lines.join("")).not.toContain("secret");
});

test("a reader of stdout that left is no error", async () => {
  await runProgram(async () => undefined);
  expect(() => process.stdout.emit("error", new Error("EPIPE"))).not.toThrow();
});

test.each([
  ["ENOENT", 74, "cannot read the file: no such file or directory (ENOENT)"],
  ["EACCES", 77, "cannot read the file: permission denied (EACCES)"],
  ["ENOSPC", 74, "cannot read the file: no space left on device (ENOSPC)"],
  ["EWHATEVER", 74, "cannot read the file: EWHATEVER"],
])("the system's %s is exit code %d", (code, exitCode, what) => {
  const failure = systemFailure(Object.assign(new Error("secret"), { code }), "/a", "read the file");
  expect(failure).toMatchObject({ exitCode, what, where: "/a" });
});
