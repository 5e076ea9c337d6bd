import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { LineRate } from "./line-rate.ts";

beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
afterEach(() => void vi.useRealTimers());

test("lets a burst through, then so many a second, and tells how many were left out", () => {
  const rate = new LineRate({ burst: 2, perSecond: 10 });
  expect([rate.admit(), rate.admit(), rate.admit(), rate.admit()]).toEqual([0, 0, undefined, undefined]);
  vi.advanceTimersByTime(100);
  expect([rate.admit(), rate.admit()]).toEqual([2, undefined]);
  vi.advanceTimersByTime(10_000);
  expect([rate.admit(), rate.admit(), rate.admit()]).toEqual([1, 0, undefined]);
});
