import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BALANCES, type Balance, type Balanced, choose, nameHash } from "./balance.ts";

interface Named extends Balanced {
  readonly name: string;
  active: number;
}

const routesOf = (weights: readonly number[]): Named[] =>
  weights.map((weight, at) => ({ name: `t${at}`, hash: nameHash(`t${at}`), weight, active: 0, turn: 0 }));

/** Numbers from a seed, evenly spread (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b_79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** How many of `count` connections each route got; with `hold` none of them ends. */
function shares(
  routes: Named[],
  options: { balance: Balance; count: number; hold?: boolean; seed?: number },
): number[] {
  const got = new Map(routes.map((route) => [route, 0]));
  const random = seeded(options.seed ?? 1);
  for (let at = 0; at < options.count; at += 1) {
    const route = choose(routes, { balance: options.balance, source: `source ${at}`, random });
    if (route === undefined) continue;
    got.set(route, (got.get(route) ?? 0) + 1);
    if (options.hold === true) route.active += 1;
  }
  return [...got.values()];
}

const weights = fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 8 });

describe("balancing", () => {
  it.each(BALANCES)("%s chooses nothing from nothing, and the only one there is", (balance) => {
    const input = { balance, source: "a", random: () => 0.5 };
    expect(choose([], input)).toBeUndefined();
    const [only] = routesOf([3]);
    expect(choose([only!], input)).toBe(only);
  });

  it("roundRobin gives each route exactly its weight in every round", () => {
    fc.assert(
      fc.property(weights, fc.integer({ min: 1, max: 5 }), (given, rounds) => {
        const total = given.reduce((sum, weight) => sum + weight, 0);
        const got = shares(routesOf(given), { balance: "roundRobin", count: total * rounds });
        expect(got).toEqual(given.map((weight) => weight * rounds));
      }),
    );
  });

  it("roundRobin interleaves, so that no route gets its share in one go", () => {
    const routes = routesOf([5, 1, 1]);
    const order = Array.from({ length: 7 }, () =>
      choose(routes, { balance: "roundRobin", source: "", random: () => 0 }),
    );
    expect(order.map((route) => route?.name)).toEqual(["t0", "t0", "t1", "t0", "t2", "t0", "t0"]);
  });

  it("leastConn keeps the connections of routes in proportion to their weights", () => {
    fc.assert(
      fc.property(weights, fc.integer({ min: 1, max: 400 }), (given, count) => {
        const total = given.reduce((sum, weight) => sum + weight, 0);
        const got = shares(routesOf(given), { balance: "leastConn", count, hold: true });
        for (const [at, weight] of given.entries()) {
          const ideal = (count * weight) / total;
          // Greedy by load: nobody is more than one connection ahead, nor behind by more than one round.
          expect(got[at]).toBeLessThan(ideal + 1 + weight);
          expect(got[at]).toBeGreaterThan(ideal - 1 - weight);
        }
      }),
    );
  });

  it("leastConn divides evenly while nothing runs", () => {
    expect(shares(routesOf([1, 1, 2]), { balance: "leastConn", count: 400 })).toEqual([100, 100, 200]);
  });

  it.each(["ipHash", "random2"] as const)("%s gives each route its share of many sources", (balance) => {
    fc.assert(
      fc.property(weights, fc.integer(), (given, seed) => {
        const count = 4_000;
        const total = given.reduce((sum, weight) => sum + weight, 0);
        const got = shares(routesOf(given), { balance, count, seed });
        for (const [at, weight] of given.entries()) {
          const part = weight / total;
          // Five standard deviations of a binomial distribution.
          const spread = 5 * Math.sqrt(count * part * (1 - part)) + 1;
          expect(Math.abs((got[at] ?? 0) - count * part)).toBeLessThan(spread);
        }
      }),
      { numRuns: 40 },
    );
  });

  it("random2 prefers the less loaded of two", () => {
    const routes = routesOf([1, 1]);
    routes[0]!.active = 1_000;
    const [busy = 0, idle = 0] = shares(routes, { balance: "random2", count: 4_000 });
    // Both draws fall on the busy one in a quarter of all cases.
    expect(busy / (busy + idle)).toBeCloseTo(0.25, 1);
  });

  it("ipHash sends a source to the same route in every process and in every order of the list", () => {
    fc.assert(
      fc.property(weights, fc.string(), (given, source) => {
        const input = { balance: "ipHash", source, random: () => 0 } as const;
        const forwards = choose(routesOf(given), input);
        expect(choose(routesOf(given).toReversed(), input)?.name).toBe(forwards?.name);
      }),
    );
  });

  it("ipHash moves the sources of a route that goes, and no others", () => {
    fc.assert(
      fc.property(weights, fc.nat(), (given, pick) => {
        const routes = routesOf(given);
        const gone = routes[pick % routes.length];
        const rest = routes.filter((route) => route !== gone);
        if (rest.length === 0) return;
        let moved = 0;
        let strayed = 0;
        const count = 2_000;
        for (let at = 0; at < count; at += 1) {
          const input = { balance: "ipHash", source: `${pick} ${at}`, random: () => 0 } as const;
          const before = choose(routes, input);
          const after = choose(rest, input);
          if (before === gone) moved += 1;
          strayed += before !== gone && after !== before ? 1 : 0;
        }
        expect(strayed).toBe(0);
        const part = (gone?.weight ?? 0) / given.reduce((sum, weight) => sum + weight, 0);
        expect(moved / count).toBeLessThan(part + 5 * Math.sqrt((part * (1 - part)) / count) + 0.001);
      }),
      { numRuns: 60 },
    );
  });

  it("first takes the first", () => {
    expect(shares(routesOf([1, 5]), { balance: "first", count: 10 })).toEqual([10, 0]);
  });
});
