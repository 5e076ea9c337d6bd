import { describe, expect, test } from "vitest";
import { BoundedTable } from "./bounded-table.ts";

describe("a bounded table", () => {
  test("lets the least recently used entry go for a new one", () => {
    const table = new BoundedTable<number>(3);
    for (const [at, key] of ["a", "b", "c"].entries()) table.set(key, at);
    table.use("a");
    table.peek("b");
    table.set("d", 3);
    expect([...table.entries()].map(([key]) => key)).toEqual(["c", "a", "d"]);
    expect([table.size, table.evicted]).toEqual([3, 1]);
  });

  test("holds no more than its size however many keys come", () => {
    const table = new BoundedTable<number>(1_000);
    for (let at = 0; at < 100_000; at += 1) table.set(`k${at}`, at);
    expect([table.size, table.evicted]).toEqual([1_000, 99_000]);
  });
});
