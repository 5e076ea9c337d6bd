import { describe, expect, it } from "vitest";
import { MemoryBudget } from "./memory-budget.ts";
import { ReceiveWindow } from "./receive-window.ts";

const START = 1_000;
const MAX = 16_000;

/** One of the most, after 15,000 bytes in 40 ms. */
function grown(): ReceiveWindow {
  const window = new ReceiveWindow({ startBytes: START, maxBytes: MAX });
  window.adapt(0, 0, false);
  for (const [now, consumed] of [
    [10, 1_000],
    [20, 3_000],
    [30, 7_000],
    [40, 15_000],
  ] as const) {
    window.adapt(consumed, now, true);
  }
  expect(window.wantedBytes).toBe(MAX);
  return window;
}

describe("a window", () => {
  it("doubles whenever the sender ran out of it, up to the most, and stays otherwise", () => {
    const window = new ReceiveWindow({ startBytes: START, maxBytes: MAX });
    const sizes = [false, true, false, true, true, true, true].map((wasShort, at) => {
      window.adapt(1_000 * at, 50 * at, wasShort);
      return window.wantedBytes;
    });
    expect(sizes).toEqual([1_000, 2_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
  });

  it("that is too small is not judged by how long its bytes took", () => {
    const window = grown();
    for (let second = 5; second <= 60; second += 5) window.adapt(15_000 + 3_200 * second, 1_000 * second, true);
    expect(window.wantedBytes).toBe(16_000);
  });

  it("that is used keeps its size", () => {
    const window = grown();
    for (let second = 1; second <= 60; second += 1) window.adapt(15_000 + 6_400 * second, 40 + 1_000 * second, false);
    expect(window.wantedBytes).toBe(16_000);
  });

  it("that is not needed any more halves every ten seconds, down to where it began", () => {
    const window = grown();
    const after: number[] = [];
    for (let now = 10_040, consumed = 15_000; now < 70_000; now += 10_040) {
      consumed += 10;
      window.adapt(consumed, now, false);
      after.push(window.wantedBytes);
    }
    expect(after).toEqual([8_000, 4_000, 2_000, 1_000, 1_000, 1_000]);
  });

  it("that comes back after a long pause has shrunk for all of it at once", () => {
    const window = grown();
    window.adapt(15_010, 60_020, false);
    expect(window.wantedBytes).toBe(START);
  });

  it("is no larger than the memory allows, and smaller still before anything was consumed", () => {
    const memory = new MemoryBudget(8_388_608);
    const window = new ReceiveWindow({ startBytes: 2_097_152, maxBytes: 2_097_152 });
    expect([window.size(memory, 0), window.size(memory, 1)]).toEqual([16_384, 1_048_576]);
    memory.adjust(8_388_608);
    expect(window.size(memory, 1)).toBe(8_192);
  });

  it("may be smaller than a frame, where that is wanted", () => {
    expect(new ReceiveWindow({ startBytes: 100, maxBytes: 0 }).size(new MemoryBudget(), 1)).toBe(100);
  });
});
