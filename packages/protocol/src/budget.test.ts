import { describe, expect, it } from "vitest";
import { Budget } from "./budget.ts";

function takeAll(budget: Budget, now: number): number {
  let taken = 0;
  while (budget.take(now)) taken += 1;
  return taken;
}

describe("a budget", () => {
  it("gives its capacity at once and its rate from then on", () => {
    const budget = new Budget({ capacity: 50, perSecond: 10 });
    expect(takeAll(budget, 5_000)).toBe(50);
    expect(takeAll(budget, 5_099)).toBe(0);
    expect(takeAll(budget, 5_100)).toBe(1);
    expect(takeAll(budget, 6_100)).toBe(10);
  });

  it("never holds more than its capacity", () => {
    const budget = new Budget({ capacity: 50, perSecond: 10 });
    expect(takeAll(budget, 1e9)).toBe(50);
    budget.give(1_000);
    expect(takeAll(budget, 1e9)).toBe(50);
  });

  it("gains nothing from a clock that stands or goes back", () => {
    const budget = new Budget({ capacity: 5, perSecond: 1_000 });
    expect(takeAll(budget, 100)).toBe(5);
    expect([budget.take(100), budget.take(50), budget.take(100)]).toEqual([false, false, false]);
  });

  it("gives what was given", () => {
    const budget = new Budget({ capacity: 5, perSecond: 0 });
    expect(takeAll(budget, 1)).toBe(5);
    budget.give(3);
    expect(takeAll(budget, 1)).toBe(3);
  });
});
