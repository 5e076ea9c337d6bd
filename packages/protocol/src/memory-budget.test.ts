import { describe, expect, it } from "vitest";
import { MemoryBudget } from "./memory-budget.ts";

const MIB = 1_048_576;

describe("a memory budget", () => {
  it.each([
    // limit, used, start of a new stream, most of one direction
    { limit: 256, used: 0, start: 524_288, share: 32 * MIB },
    { limit: 256, used: 64, start: 262_144, share: 24 * MIB },
    { limit: 256, used: 96, start: 131_072, share: 20 * MIB },
    { limit: 256, used: 128, start: 8_192, share: 16 * MIB },
    { limit: 256, used: 255, start: 8_192, share: 131_072 },
    { limit: 256, used: 256, start: 8_192, share: 8_192 },
    { limit: 256, used: 400, start: 8_192, share: 8_192 },
    { limit: 16, used: 0, start: 32_768, share: 2 * MIB },
  ])("of $limit MiB with $used MiB in use starts a stream at $start bytes and lets it grow to $share", (row) => {
    const memory = new MemoryBudget(row.limit * MIB);
    memory.adjust(row.used * MIB);
    expect([memory.startBytes, memory.shareBytes]).toEqual([row.start, row.share]);
    expect(memory.freeBytes).toBe(Math.max(0, (row.limit - row.used) * MIB));
  });

  it("admits a write of a sender that holds less than its share, and the first one always", () => {
    const memory = new MemoryBudget(8 * MIB);
    expect([memory.admits(MIB - 1), memory.admits(MIB)]).toEqual([true, false]);
    memory.adjust(8 * MIB);
    expect([memory.admits(0), memory.admits(1)]).toEqual([true, false]);
    memory.adjust(-8 * MIB);
    expect(memory.admits(1)).toBe(true);
  });

  it("follows a limit that changes while it is used", () => {
    const memory = new MemoryBudget(64 * MIB);
    memory.adjust(32 * MIB);
    memory.limitBytes = 16 * MIB;
    expect([memory.freeBytes, memory.usedBytes, memory.shareBytes]).toEqual([0, 32 * MIB, 8_192]);
  });

  it("never gives a share that would not fit, however many take theirs", () => {
    const memory = new MemoryBudget(16 * MIB);
    const shares: number[] = [];
    while (memory.freeBytes >= 131_072) {
      shares.push(memory.shareBytes);
      memory.adjust(memory.shareBytes);
    }
    expect(memory.usedBytes).toBeLessThanOrEqual(16 * MIB);
    expect(shares.length).toBeGreaterThan(30);
  });
});
