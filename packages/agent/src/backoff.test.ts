import { describe, expect, it } from "vitest";
import { Backoff } from "./backoff.ts";

describe("backoff", () => {
  it("doubles its ceiling from 200 ms to 20 s", () => {
    const backoff = new Backoff({ random: () => 1 });
    const delays = Array.from({ length: 10 }, () => backoff.next());
    expect(delays).toEqual([200, 400, 800, 1_600, 3_200, 6_400, 12_800, 20_000, 20_000, 20_000]);
  });

  it("waits anywhere between nothing and the ceiling", () => {
    const backoff = new Backoff({ random: () => 0 });
    expect([backoff.next(), backoff.next()]).toEqual([0, 0]);
    const half = new Backoff({ random: () => 0.5 });
    expect([half.next(), half.next()]).toEqual([100, 200]);
  });

  it("begins again only after a link that lived five seconds", () => {
    const backoff = new Backoff({ random: () => 1 });
    backoff.next();
    backoff.next();
    backoff.ended(4_999);
    expect(backoff.next()).toBe(800);
    backoff.ended(5_000);
    expect(backoff.next()).toBe(200);
  });

  it("waits 500 ms at the most while a session waits, and counts on meanwhile", () => {
    const backoff = new Backoff({ random: () => 1 });
    const waits = Array.from({ length: 5 }, () => backoff.next({ sessionWaits: true }));
    expect(waits).toEqual([200, 400, 500, 500, 500]);
    expect(backoff.next()).toBe(6_400);
    expect(new Backoff({ minMs: 2_000, random: () => 1 }).next({ sessionWaits: true })).toBe(2_000);
  });

  it("waits at least half of the ceiling while a session waits, because each try costs", () => {
    const backoff = new Backoff({ random: () => 0 });
    expect([1, 2, 3].map(() => backoff.next({ sessionWaits: true }))).toEqual([100, 200, 250]);
    expect(backoff.next()).toBe(0);
  });

  it("hurries for a session that waits, once for a link that was up, and once a second", () => {
    let now = 0;
    const backoff = new Backoff({ random: () => 1, now: () => now });
    backoff.ended(1);
    expect([1, 2, 3].map(() => backoff.next({ sessionWaits: true }))).toEqual([20, 200, 400]);
    now = 999;
    backoff.ended(1);
    expect(backoff.next({ sessionWaits: true })).toBe(500);
    now = 1_000;
    expect(backoff.next()).toBe(1_600);
    backoff.ended(0);
    expect(backoff.next({ sessionWaits: true })).toBe(500);
    backoff.ended(1);
    expect(backoff.next({ floorMs: 30_000, sessionWaits: true })).toBe(30_020);
  });

  it("waits little again when what it waited for is given up", () => {
    const backoff = new Backoff({ random: () => 1 });
    for (let count = 0; count < 10; count += 1) backoff.next({ sessionWaits: true });
    backoff.beginAnew();
    expect([backoff.next(), backoff.next()]).toEqual([200, 400]);
  });

  it("never waits less than the floor, and spreads above it", () => {
    expect(new Backoff({ random: () => 0 }).next({ floorMs: 30_000 })).toBe(30_000);
    expect(new Backoff({ random: () => 1 }).next({ floorMs: 5_000 })).toBe(5_200);
  });

  it("keeps to the configured bounds", () => {
    const backoff = new Backoff({ minMs: 10, maxMs: 30, random: () => 1 });
    expect([backoff.next(), backoff.next(), backoff.next(), backoff.next()]).toEqual([10, 20, 30, 30]);
  });
});
