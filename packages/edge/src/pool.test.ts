import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BALANCES } from "./balance.ts";
import { type Choice, Pool, type PoolSettings, type RouteChange } from "./pool.ts";
import type { Route, TargetSettings } from "./route.ts";

const target = (name: string, more: Partial<TargetSettings> = {}): TargetSettings => ({
  target: name,
  address: undefined,
  weight: 1,
  backup: false,
  maxConnections: undefined,
  ...more,
});

const ejection = { failures: 5, timeMs: 30_000, maxMs: 300_000 };
const thresholds = { rise: 2, fall: 3 };

function poolOf(targets: TargetSettings[], more: Partial<PoolSettings> = {}) {
  const clock = { now: 1_000 };
  const changes: RouteChange[] = [];
  const connected = new Set(["a", "b"]);
  const settings: PoolSettings = { targets, clients: ["a"], balance: "roundRobin", ejection, ...more };
  const pool = new Pool(settings, {
    isConnected: (client) => connected.has(client),
    onChange: (change) => void changes.push(change),
    now: () => clock.now,
    random: () => 0.5,
  });
  const route = (name: string, client = "a"): Route => pool.find(name, client)[0]!;
  const choice = (tried: Route[] = []): Choice => pool.choose({ source: "s", tried: new Set(tried) });
  const chosen = (tried: Route[] = []): string => {
    const result = choice(tried);
    return result.type === "route" ? result.route.target : result.type;
  };
  const fail = (name: string, times: number) => {
    for (let at = 0; at < times; at += 1) pool.checked(route(name), "target refused", thresholds);
  };
  const pass = (name: string, times: number) => {
    for (let at = 0; at < times; at += 1) pool.checked(route(name), undefined, thresholds);
  };
  return { pool, clock, changes, connected, settings, route, choice, chosen, fail, pass };
}

describe("a pool", () => {
  it("has a route for each target by each client, and gives each its turn", () => {
    const { pool } = poolOf([target("x"), target("y")], { clients: ["a", "b"] });
    expect(pool.routes.map((route) => `${route.client}/${route.target}`)).toEqual(["a/x", "b/x", "a/y", "b/y"]);
    const names = Array.from({ length: 4 }, () => {
      const choice = pool.choose({ source: "s", tried: new Set() });
      return choice.type === "route" ? `${choice.route.client}/${choice.route.target}` : choice.type;
    });
    expect(names.toSorted()).toEqual(["a/x", "a/y", "b/x", "b/y"]);
  });

  it("marks a target down after `fall` failures in a row and up after `rise` successes, each told once", () => {
    const { changes, chosen, fail, pass, route } = poolOf([target("x"), target("y")]);
    pass("x", 1);
    fail("x", 2);
    pass("x", 1);
    fail("x", 2);
    expect([route("x").checkedUp, changes]).toEqual([true, []]);
    fail("x", 1);
    expect(changes).toEqual([{ type: "down", route: route("x"), reason: "target refused" }]);
    expect([chosen(), chosen()]).toEqual(["y", "y"]);
    pass("x", 1);
    fail("x", 1);
    pass("x", 1);
    expect(route("x").checkedUp).toBe(false);
    pass("x", 1);
    expect(changes.at(-1)).toEqual({ type: "up", route: route("x") });
    expect(changes).toHaveLength(2);
  });

  it("believes the first check at once", () => {
    const { chosen, fail, route } = poolOf([target("x"), target("y")]);
    fail("x", 1);
    expect([route("x").checkedUp, chosen()]).toEqual([false, "y"]);
  });

  it("counts the time for which a target is down", () => {
    const { pool, clock, fail, pass, route } = poolOf([target("x"), target("y")]);
    fail("x", 1);
    clock.now += 7_000;
    expect(pool.downMs(route("x"))).toBe(7_000);
    pass("x", 2);
    clock.now += 5_000;
    expect(pool.downMs(route("x"))).toBe(7_000);
  });

  it("uses a backup only while every primary is down, and goes back when one returns", () => {
    const { chosen, fail, pass } = poolOf([target("x"), target("y"), target("z", { backup: true })]);
    pass("x", 1);
    pass("y", 1);
    fail("x", 3);
    expect([chosen(), chosen()]).toEqual(["y", "y"]);
    fail("y", 3);
    expect([chosen(), chosen()]).toEqual(["z", "z"]);
    pass("x", 2);
    expect([chosen(), chosen()]).toEqual(["x", "x"]);
  });

  it("does not send a connection to a backup because primaries have refused it or are full", () => {
    const { pool, route, chosen } = poolOf([target("x", { maxConnections: 1 }), target("z", { backup: true })]);
    expect(chosen([route("x")])).toBe("noTarget");
    pool.take(route("x"));
    expect(chosen()).toBe("full");
  });

  it("gives nothing to weight 0, drain and maint, and uses backups then", () => {
    const { pool, route, chosen } = poolOf([target("x"), target("y"), target("z", { backup: true })]);
    pool.setState(route("x"), "drain");
    expect([chosen(), chosen()]).toEqual(["y", "y"]);
    pool.setWeight(route("y"), 0);
    expect(chosen()).toBe("z");
    pool.setState(route("z"), "maint");
    expect([chosen(), pool.available]).toEqual(["noTarget", false]);
    pool.setState(route("x"), "ready");
    expect(chosen()).toBe("x");
  });

  it("forgets what checks said before a maintenance", () => {
    const { pool, route, fail, chosen } = poolOf([target("x")]);
    fail("x", 3);
    expect(chosen()).toBe("noTarget");
    pool.setState(route("x"), "maint");
    pool.setState(route("x"), "ready");
    expect(chosen()).toBe("x");
    fail("x", 1);
    expect(chosen()).toBe("noTarget");
  });

  it("says that an agent is missing where only that is missing", () => {
    const { connected, chosen, fail, pool, route } = poolOf([target("x")], { clients: ["a", "b"] });
    connected.delete("a");
    expect(chosen()).toBe("x");
    connected.delete("b");
    expect([chosen(), pool.condition(route("x"))]).toEqual(["noAgent", "no agent"]);
    fail("x", 1);
    expect(chosen()).toBe("noAgent");
    pool.checked(route("x", "b"), "connect timeout", thresholds);
    expect(chosen()).toBe("noTarget");
  });

  it("counts all routes of a target against its limit, and a seat until it is released once", () => {
    const { pool, route, chosen } = poolOf([target("x", { maxConnections: 2 })], { clients: ["a", "b"] });
    const one = pool.take(route("x", "a"));
    const two = pool.take(route("x", "b"));
    expect([chosen(), pool.hasRoom, pool.available]).toEqual(["full", false, true]);
    one.release();
    one.release();
    expect([chosen(), route("x", "a").active, route("x", "b").active]).toEqual(["x", 0, 1]);
    two.release();
  });

  it("ejects after failures in a row, for longer each time up to the cap, and begins anew after good behaviour", () => {
    const { pool, clock, changes, route, chosen } = poolOf([target("x"), target("y")]);
    const failAll = () => {
      for (let at = 0; at < 5; at += 1) pool.connectFailed(route("x"));
      const last = changes.at(-1);
      return last?.type === "ejected" ? last.pauseMs : undefined;
    };
    for (let at = 0; at < 4; at += 1) pool.connectFailed(route("x"));
    pool.connected(route("x"));
    for (let at = 0; at < 4; at += 1) pool.connectFailed(route("x"));
    expect(changes).toEqual([]);
    pool.connected(route("x"));
    const pauses: (number | undefined)[] = [];
    for (let times = 0; times < 12; times += 1) {
      const pauseMs = failAll();
      pauses.push(pauseMs);
      expect([pool.isUp(route("x")), chosen()]).toEqual([false, "y"]);
      clock.now += (pauseMs ?? 0) - 1;
      expect(pool.isUp(route("x"))).toBe(false);
      clock.now += 1;
      expect(pool.isUp(route("x"))).toBe(true);
    }
    expect(pauses.slice(0, 3)).toEqual([30_000, 60_000, 90_000]);
    expect(pauses.slice(9)).toEqual([300_000, 300_000, 300_000]);
    clock.now += 300_001;
    expect(failAll()).toBe(30_000);
  });

  it("never ejects the last that could serve", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat({ max: 3 }), { maxLength: 200 }),
        fc.array(fc.record({ at: fc.nat({ max: 3 }), up: fc.boolean() }), { maxLength: 20 }),
        fc.constantFrom(...BALANCES),
        (failures, checks, balance) => {
          const { pool, clock, chosen } = poolOf(
            ["w", "x", "y", "z"].map((name) => target(name)),
            { balance },
          );
          const [...pending] = checks;
          for (const at of failures) {
            pool.connectFailed(pool.routes[at]!);
            clock.now += 100;
            const check = pending.pop();
            if (check !== undefined) pool.checked(pool.routes[check.at]!, check.up ? undefined : "down", thresholds);
            const usable = pool.routes.filter((route) => route.usable);
            // Checks may take the last sound one away; then ejected ones serve.
            expect(chosen() === "noTarget").toBe(usable.length === 0);
          }
          const pool2 = poolOf([target("x"), target("y"), target("z")]);
          for (let round = 0; round < 100; round += 1) {
            for (const route of pool2.pool.routes) pool2.pool.connectFailed(route);
            expect(pool2.pool.routes.filter((route) => pool2.pool.isUp(route)).length).toBeGreaterThan(0);
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  it("uses a backup while every primary is ejected, since it is not the last", () => {
    const { pool, clock, route, chosen } = poolOf([target("x"), target("z", { backup: true })]);
    for (let at = 0; at < 5; at += 1) pool.connectFailed(route("x"));
    expect(chosen()).toBe("z");
    clock.now += 30_000;
    expect(chosen()).toBe("x");
  });

  it("uses backups in no state in which a primary could serve", () => {
    const change = fc.record({
      at: fc.nat({ max: 4 }),
      what: fc.constantFrom("fail", "pass", "drain", "ready", "connectFailed", "wait"),
    });
    fc.assert(
      fc.property(fc.array(change, { maxLength: 120 }), (steps) => {
        const { pool, clock, choice } = poolOf([
          target("p1"),
          target("p2"),
          target("p3", { weight: 0 }),
          target("b1", { backup: true }),
          target("b2", { backup: true }),
        ]);
        for (const { at, what } of steps) {
          const route = pool.routes[at]!;
          if (what === "fail") pool.checked(route, "down", thresholds);
          else if (what === "pass") pool.checked(route, undefined, thresholds);
          else if (what === "connectFailed") for (let n = 0; n < 5; n += 1) pool.connectFailed(route);
          else if (what === "wait") clock.now += 20_000;
          else pool.setState(route, what);
          const result = choice();
          if (result.type !== "route") continue;
          expect(result.route.usable).toBe(true);
          const soundPrimary = pool.routes.some((other) => !other.settings.backup && other.usable && pool.isUp(other));
          expect(result.route.settings.backup && soundPrimary).toBe(false);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("says what there is for a connection beside what it has tried", () => {
    const { pool, route } = poolOf([target("x"), target("y", { maxConnections: 1 })]);
    const tried = new Set([route("x")]);
    expect(pool.roomBeside(tried)).toBe("room");
    const seat = pool.take(route("y"));
    expect([pool.hasRoom, pool.roomBeside(tried)]).toEqual([true, "full"]);
    pool.setState(route("y"), "drain");
    expect(pool.roomBeside(tried)).toBe("none");
    seat.release();
  });

  it("counts connections of a route that a reload has removed against the bound of its target", () => {
    const x = target("x", { maxConnections: 2 });
    const { pool, settings, route, chosen } = poolOf([x, target("y")], { clients: ["a", "b"] });
    const seats = [pool.take(route("x", "b")), pool.take(route("x", "a"))];
    pool.update({ ...settings, clients: ["a"], targets: [x] });
    expect(chosen()).toBe("full");
    pool.update({ ...settings, clients: ["a"], targets: [target("y")] });
    pool.update({ ...settings, clients: ["a"], targets: [x] });
    expect(chosen()).toBe("full");
    seats[0]?.release();
    expect([pool.hasRoom, chosen()]).toEqual([true, "x"]);
  });

  it("keeps what is known of a route over a reload, and an operator's weight unless the file's has changed", () => {
    const { pool, settings, route, fail, chosen } = poolOf([target("x"), target("y"), target("z")]);
    fail("x", 3);
    pool.setState(route("y"), "drain");
    pool.setWeight(route("z"), 7);
    const seat = pool.take(route("z"));
    pool.update({ ...settings, targets: [target("z"), target("y"), target("x"), target("new")] });
    expect(pool.routes.map((one) => pool.condition(one))).toEqual(["up", "drain", "down", "up"]);
    expect([route("z").weight, route("z").active]).toEqual([7, 1]);
    pool.update({ ...settings, targets: [target("z", { weight: 3 })] });
    expect([route("z").weight, chosen()]).toEqual([3, "z"]);
    seat.release();
  });
});
