import { describe, expect, it } from "vitest";
import { MemoryBudget } from "./memory-budget.ts";
import { ReceiveWindow } from "./receive-window.ts";

const START = 1_000;
const MAX = 16_000;

/** Tells credit at each `[time, consumed]`, and what the window is then. */
function sizes(steps: readonly (readonly [number, number])[], roundTripMs: number | undefined): number[] {
  const window = new ReceiveWindow({ startBytes: START, maxBytes: MAX });
  return steps.map(([now, consumed]) => {
    window.adapt(consumed, now, roundTripMs);
    return window.wantedBytes;
  });
}

describe("a window", () => {
  it.each<{ why: string; steps: [number, number][]; expected: number[] }>([
    {
      why: "doubles when all of it was consumed within two round trips, up to the most",
      steps: [
        [0, 250],
        [50, 1_250],
        [100, 3_250],
        [150, 7_250],
        [200, 15_250],
        [250, 31_250],
      ],
      expected: [1_000, 2_000, 4_000, 8_000, 16_000, 16_000],
    },
    {
      why: "stays when less than all of it was",
      steps: [
        [0, 250],
        [50, 700],
        [100, 1_249],
      ],
      expected: [1_000, 1_000, 1_000],
    },
    {
      why: "stays when it took three round trips",
      steps: [
        [0, 250],
        [75, 750],
        [150, 1_250],
        [225, 1_750],
        [300, 2_250],
      ],
      expected: [1_000, 1_000, 1_000, 1_000, 1_000],
    },
    {
      why: "is not judged by a pause",
      steps: [
        [0, 250],
        [101, 2_000],
        [151, 3_000],
      ],
      expected: [1_000, 1_000, 2_000],
    },
  ])("$why", ({ steps, expected }) => {
    expect(sizes(steps, 50)).toEqual(expected);
  });

  it("stays as long as the round trip is not known", () => {
    const steps = [
      [0, 1_000],
      [1, 2_000],
      [2, 3_000],
    ] as const;
    expect(sizes(steps, undefined)).toEqual([1_000, 1_000, 1_000]);
  });

  it("that is not needed any more halves every ten seconds, down to where it began", () => {
    const window = new ReceiveWindow({ startBytes: START, maxBytes: MAX });
    for (const [now, consumed] of [
      [0, 0],
      [10, 1_000],
      [20, 3_000],
      [30, 7_000],
      [40, 15_000],
    ] as const) {
      window.adapt(consumed, now, 50);
    }
    expect(window.wantedBytes).toBe(16_000);
    const after: number[] = [];
    // It is a trickle now; the first ten seconds still hold the burst.
    for (let now = 10_040, consumed = 15_000; now < 80_000; now += 10_040) {
      consumed += 10;
      window.adapt(consumed, now, 50);
      after.push(window.wantedBytes);
    }
    expect(after).toEqual([16_000, 8_000, 4_000, 2_000, 1_000, 1_000, 1_000]);
  });

  it("that comes back after a long pause has shrunk for all of it at once", () => {
    const window = new ReceiveWindow({ startBytes: START, maxBytes: MAX });
    for (const [now, consumed] of [
      [0, 0],
      [10, 1_000],
      [20, 3_000],
      [10_020, 3_010],
      [60_020, 3_020],
    ] as const) {
      window.adapt(consumed, now, 50);
    }
    expect(window.wantedBytes).toBe(START);
  });

  it("is no larger than the memory allows, and smaller still before anything was consumed", () => {
    const memory = new MemoryBudget(8_388_608);
    const window = new ReceiveWindow({ startBytes: 2_097_152, maxBytes: 2_097_152 });
    expect([window.size(memory, 0), window.size(memory, 1)]).toEqual([16_384, 1_048_576]);
    memory.adjust(8_388_608);
    expect(window.size(memory, 1)).toBe(16_384);
  });

  it("may be smaller than a frame, where that is wanted", () => {
    expect(new ReceiveWindow({ startBytes: 100, maxBytes: 0 }).size(new MemoryBudget(), 1)).toBe(100);
  });
});
