import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { nextArrival, type RateSettings, rateWaitMs, UNUSED_RATE } from "./rate-limit.ts";

const someRate = fc.record({
  perSecond: fc.double({ min: 0.01, max: 1_000, noNaN: true }),
  burst: fc.integer({ min: 1, max: 100 }),
});

/** The times at which events were admitted. */
function admitted(rate: RateSettings, times: readonly number[]): number[] {
  let arrival = UNUSED_RATE;
  return times.filter((now) => {
    const next = nextArrival(rate, arrival, now);
    arrival = next ?? arrival;
    return next !== undefined;
  });
}

describe("a rate limit", () => {
  test("admits a burst after silence, then what the rate gives", () => {
    const rate = { perSecond: 2, burst: 3 };
    expect(admitted(rate, [0, 0, 0, 0, 499, 500, 501, 999, 1_000])).toEqual([0, 0, 0, 500, 1_000]);
  });

  test("says how long to wait, and admits exactly then", () => {
    const rate = { perSecond: 0.1, burst: 1 };
    const arrival = nextArrival(rate, UNUSED_RATE, 1_000)!;
    expect(rateWaitMs(rate, arrival, 4_000)).toBe(7_000);
    expect(nextArrival(rate, arrival, 10_990)).toBeUndefined();
    expect(nextArrival(rate, arrival, 11_000)).toBe(21_000);
  });

  test("never admits more than burst + rate * t in any span, and never less than a bucket would", () => {
    fc.assert(
      fc.property(someRate, fc.array(fc.nat(400), { maxLength: 200 }), (rate, gaps) => {
        let now = 0;
        const times = gaps.map((gap) => (now += gap));
        const passed = admitted(rate, times);
        for (let from = 0; from < passed.length; from += 1) {
          for (let to = from; to < passed.length; to += 1) {
            const seconds = (passed[to]! - passed[from]!) / 1_000;
            expect(to - from + 1).toBeLessThanOrEqual(rate.burst + rate.perSecond * seconds + 1e-3 * rate.perSecond);
          }
        }
        // The bucket that gains tokens continuously admits the same events.
        let tokens = rate.burst;
        let at = 0;
        const reference = times.filter((time) => {
          tokens = Math.min(rate.burst, tokens + ((time - at) * rate.perSecond) / 1_000);
          at = time;
          // The hair of tolerance, in tokens.
          if (tokens < 1 - (1e-3 * rate.perSecond) / 1_000) return false;
          tokens -= 1;
          return true;
        });
        expect(Math.abs(passed.length - reference.length)).toBeLessThanOrEqual(1);
      }),
    );
  });
});
