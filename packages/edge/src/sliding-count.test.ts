import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { SlidingCount } from "./sliding-count.ts";

describe("a sliding count", () => {
  test("counts what came within the window and forgets the rest", () => {
    const count = new SlidingCount(0);
    for (let at = 0; at < 10; at += 1) count.add(at, 1_000);
    expect(count.value(999, 1_000)).toBe(10);
    expect(count.value(1_500, 1_000)).toBe(5);
    expect(count.value(2_000, 1_000)).toBe(0);
  });

  test("never counts more than came in two windows, nor less than came in its current one", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(700), { minLength: 1, maxLength: 100 }), (gaps) => {
        const count = new SlidingCount(0);
        const times: number[] = [];
        let now = 0;
        for (const gap of gaps) {
          now += gap;
          times.push(now);
          const estimate = count.add(now, 1_000);
          expect(estimate).toBeLessThanOrEqual(times.filter((at) => at > now - 2_000).length);
          expect(estimate).toBeGreaterThanOrEqual(1);
        }
      }),
    );
  });
});
