import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { CheckSlots } from "./check-slots.ts";
import { type CheckSettings, HealthChecks, type Probe, type ProbeResult } from "./health-checks.ts";
import { Pool, type RouteChange } from "./pool.ts";
import type { Route } from "./route.ts";

const settings: CheckSettings = {
  intervalMs: 5_000,
  timeoutMs: 2_000,
  rise: 2,
  fall: 3,
  jitter: 0.1,
  send: undefined,
  expect: undefined,
};

function checksOf(names: readonly string[], options: { slots?: number; random?: () => number } = {}) {
  const changes: RouteChange[] = [];
  const pool = new Pool(
    {
      targets: names.map((name) => ({
        target: name,
        address: undefined,
        weight: 1,
        backup: false,
        maxConnections: undefined,
      })),
      clients: undefined,
      balance: "roundRobin",
      ejection: { failures: 5, timeMs: 30_000, maxMs: 300_000 },
    },
    { isConnected: () => true, onChange: (change) => void changes.push(change) },
  );
  const results = new Map<string, ProbeResult>();
  const times: { readonly target: string; readonly at: number }[] = [];
  let running = 0;
  let most = 0;
  const probe: Probe = async (route: Route) => {
    times.push({ target: route.target, at: performance.now() });
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setTimeout(resolve, 100));
    running -= 1;
    return results.get(route.target) ?? { type: "passed" };
  };
  const checks = new HealthChecks({
    pool,
    probe,
    slots: new CheckSlots(options.slots ?? 64),
    random: options.random ?? (() => 0.5),
  });
  return { pool, checks, changes, results, times, mostAtOnce: () => most };
}

const failed: ProbeResult = { type: "failed", reason: "target refused" };

describe("checks, by a clock of their own", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
  afterEach(() => void vi.useRealTimers());

  it("come first within a second and then an interval after the last has ended", async () => {
    const { checks, times } = checksOf(["x"]);
    const start = performance.now();
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(20_000);
    expect(times.map(({ at }) => Math.round(at - start))).toEqual([500, 5_600, 10_700, 15_800]);
    checks.update(undefined);
  });

  it.each([
    [0, 0, 4_500],
    [0.999_999, 1_000, 5_500],
  ])("with the random number %f begin after %i ms and go on every %i ms", async (random, first, interval) => {
    const { checks, times } = checksOf(["x"], { random: () => random });
    const start = performance.now();
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(12_000);
    const [one = 0, two = 0] = times.map(({ at }) => at - start);
    expect(Math.abs(one - first)).toBeLessThan(2);
    expect(Math.abs(two - one - 100 - interval)).toBeLessThan(2);
    checks.update(undefined);
  });

  it("come within a second when a reload has made the interval shorter, and not before their time otherwise", async () => {
    const { checks, times, results, pool } = checksOf(["x"]);
    results.set("x", failed);
    checks.update({ ...settings, intervalMs: 3_600_000, jitter: 0 });
    await vi.advanceTimersByTimeAsync(10_000);
    expect([times.length, pool.routes[0]?.checkedUp]).toEqual([1, false]);
    const reloadedAt = performance.now();
    checks.update(settings);
    expect(pool.routes[0]?.checkedUp).toBe(false);
    checks.update({ ...settings, timeoutMs: 1_000 });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(times.slice(1).map(({ at }) => Math.round(at - reloadedAt))).toEqual([500, 5_600]);
    checks.update(undefined);
  });

  it("mark a target down after `fall` failures and up after `rise` successes", async () => {
    const { checks, changes, results, pool } = checksOf(["x"]);
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(1_000);
    results.set("x", failed);
    await vi.advanceTimersByTimeAsync(10_200);
    expect(pool.routes[0]?.checkedUp).toBe(true);
    await vi.advanceTimersByTimeAsync(5_100);
    expect(changes.map(({ type }) => type)).toEqual(["down"]);
    results.delete("x");
    await vi.advanceTimersByTimeAsync(5_100);
    expect(changes.map(({ type }) => type)).toEqual(["down"]);
    await vi.advanceTimersByTimeAsync(5_100);
    expect(changes.map(({ type }) => type)).toEqual(["down", "up"]);
    checks.update(undefined);
  });

  it("that learn nothing change nothing", async () => {
    const { checks, changes, results } = checksOf(["x"]);
    results.set("x", { type: "unknown" });
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(changes).toEqual([]);
    checks.update(undefined);
  });

  it("are not made of a target in maintenance, and begin again after it", async () => {
    const { checks, times, pool } = checksOf(["x"]);
    const [route] = pool.routes;
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(1_000);
    pool.setState(route!, "maint");
    await vi.advanceTimersByTimeAsync(30_000);
    expect(times).toHaveLength(1);
    pool.setState(route!, "ready");
    await vi.advanceTimersByTimeAsync(5_100);
    expect(times).toHaveLength(2);
    checks.update(undefined);
  });

  it("are made while a target is drained", async () => {
    const { checks, times, pool } = checksOf(["x"]);
    pool.setState(pool.routes[0]!, "drain");
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(times).toHaveLength(2);
    checks.update(undefined);
  });

  it("are no more at once than there are slots, and none is forgotten", async () => {
    const { checks, times, mostAtOnce } = checksOf(
      Array.from({ length: 20 }, (_, at) => `t${at}`),
      { slots: 3 },
    );
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(3_000);
    expect(mostAtOnce()).toBe(3);
    expect(new Set(times.map(({ target }) => target)).size).toBe(20);
    checks.update(undefined);
  });

  it("end at once when the deployment stops, and what they said is forgotten", async () => {
    const { checks, times, results, pool } = checksOf(["x", "y"]);
    results.set("x", failed);
    checks.update(settings);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(pool.routes.map(({ checkedUp }) => checkedUp)).toEqual([false, true]);
    checks.update(undefined);
    const made = times.length;
    await vi.advanceTimersByTimeAsync(60_000);
    expect([times.length, vi.getTimerCount()]).toEqual([made, 0]);
    expect(pool.routes.map(({ checkedUp }) => checkedUp)).toEqual([true, true]);
  });
});
