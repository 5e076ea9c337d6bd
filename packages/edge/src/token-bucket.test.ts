import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TokenBucket } from "./token-bucket.ts";

describe("a token bucket", () => {
  test("gives its burst at once, then what the rate fills in", () => {
    const bucket = new TokenBucket({ perSecond: 1_000, burst: 500 }, 0);
    expect(bucket.take(800, 0)).toBe(500);
    expect(bucket.take(800, 0)).toBe(0);
    expect(bucket.waitMs(100, 0)).toBe(100);
    expect(bucket.take(800, 100)).toBe(100);
    expect(bucket.take(800, 10_000)).toBe(500);
  });

  test("what is given back can be taken again, up to the burst", () => {
    const bucket = new TokenBucket({ perSecond: 1, burst: 10 }, 0);
    bucket.take(4, 0);
    bucket.giveBack(100);
    expect(bucket.take(100, 0)).toBe(10);
  });

  test("never gives more than burst + rate * t, in any span, and never starves who waits", () => {
    fc.assert(
      fc.property(
        fc.record({ perSecond: fc.integer({ min: 1, max: 1_000_000 }), burst: fc.integer({ min: 1, max: 100_000 }) }),
        fc.array(fc.record({ gapMs: fc.nat(3_000), wanted: fc.nat(200_000) }), { maxLength: 100 }),
        (settings, requests) => {
          const bucket = new TokenBucket(settings, 0);
          const taken: { at: number; count: number }[] = [];
          let now = 0;
          for (const { gapMs, wanted } of requests) {
            now += gapMs;
            taken.push({ at: now, count: bucket.take(wanted, now) });
          }
          for (let from = 0; from < taken.length; from += 1) {
            let sum = 0;
            for (let to = from; to < taken.length; to += 1) {
              sum += taken[to]!.count;
              const seconds = (taken[to]!.at - taken[from]!.at) / 1_000;
              expect(sum).toBeLessThanOrEqual(settings.burst + settings.perSecond * seconds + 1e-3);
            }
          }
          const waitMs = bucket.waitMs(1, now);
          expect(bucket.take(1, now + waitMs + 1e-3)).toBe(1);
        },
      ),
    );
  });
});
