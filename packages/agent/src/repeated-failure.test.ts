import { expect, it } from "vitest";
import { RepeatedFailure } from "./repeated-failure.ts";

it("tells the first failure of a kind, and then one a minute with their number", () => {
  const failures = new RepeatedFailure();
  expect(failures.note("refused", 0)).toBe(1);
  expect(failures.note("refused", 10_000)).toBeUndefined();
  expect(failures.note("refused", 59_999)).toBeUndefined();
  expect(failures.note("refused", 60_000)).toBe(3);
  expect(failures.note("refused", 61_000)).toBeUndefined();
});

it("tells another failure, and the same one after a success, at once", () => {
  const failures = new RepeatedFailure();
  failures.note("refused", 0);
  expect(failures.note("pin", 1)).toBe(1);
  failures.clear();
  expect(failures.note("pin", 2)).toBe(1);
});
