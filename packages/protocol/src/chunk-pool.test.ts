import { describe, expect, it } from "vitest";
import { ChunkPool } from "./chunk-pool.ts";

describe("a chunk pool", () => {
  it("gives the buffer that came back last, which the caches still know", () => {
    const pool = new ChunkPool(1_024, 8);
    const [first, second] = [pool.take(), pool.take()];
    expect(first).not.toBe(second);
    expect(first.length).toBe(1_024);
    pool.give(first);
    pool.give(second);
    expect(pool.take()).toBe(second);
    expect(pool.take()).toBe(first);
  });

  it("keeps a bounded number and nothing that is not its own size", () => {
    const pool = new ChunkPool(1_024, 8);
    pool.give(new Uint8Array(10));
    expect(pool.kept).toBe(0);
    for (let count = 0; count < 100; count += 1) pool.give(new Uint8Array(1_024));
    expect(pool.kept).toBe(8);
  });
});
