import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { ActivityTimer } from "./activity-timer.ts";

beforeEach(() => vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
afterEach(() => vi.useRealTimers());

function timer(options: { idle: number; half: number; delivered?: () => boolean; progress?: () => number }) {
  const ends: string[] = [];
  const { idle, half, delivered, progress } = options;
  const made = new ActivityTimer({
    idleTimeoutMs: idle,
    halfCloseTimeoutMs: half,
    ...(delivered === undefined ? {} : { delivered }),
    ...(progress === undefined ? {} : { progress }),
    onIdle: (kind) => ends.push(kind),
  });
  return { made, ends };
}

describe("an idle timeout", () => {
  test("comes after that long without activity, and activity postpones it", () => {
    const { made, ends } = timer({ idle: 1_000, half: 100 });
    vi.advanceTimersByTime(900);
    made.touch();
    vi.advanceTimersByTime(900);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(100);
    expect(ends).toEqual(["idle"]);
  });

  test("is postponed by what the far end moves", () => {
    let moved = 0;
    const { ends } = timer({ idle: 1_000, half: 100, progress: () => moved });
    moved = 1;
    vi.advanceTimersByTime(1_500);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(500);
    expect(ends).toEqual(["idle"]);
  });

  test("of 0 never comes", () => {
    const { ends } = timer({ idle: 0, half: 0 });
    vi.advanceTimersByTime(1e9);
    expect(ends).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("a half-close timeout", () => {
  test.for([0, 1_000])("holds once a direction has ended, with an idle timeout of %i", (idle) => {
    const { made, ends } = timer({ idle, half: 100 });
    made.halfClose();
    vi.advanceTimersByTime(99);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(1);
    expect(ends).toEqual(["halfClose"]);
  });

  test("waits until the receiver of the direction that ended has been given all of it", () => {
    let delivered = false;
    const { made, ends } = timer({ idle: 0, half: 100, delivered: () => delivered });
    made.halfClose();
    vi.advanceTimersByTime(10_000);
    expect(ends).toEqual([]);
    made.touch();
    delivered = true;
    vi.advanceTimersByTime(99);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(101);
    expect(ends).toEqual(["halfClose"]);
  });

  test("leaves a receiver that takes nothing to the idle timeout", () => {
    const { made, ends } = timer({ idle: 1_000, half: 100, delivered: () => false });
    made.halfClose();
    vi.advanceTimersByTime(999);
    expect(ends).toEqual([]);
    vi.advanceTimersByTime(1);
    expect(ends).toEqual(["idle"]);
  });
});
