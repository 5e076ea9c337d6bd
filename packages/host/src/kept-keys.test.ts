import { expect, test } from "vitest";
import { keepKeys } from "./kept-keys.ts";

interface Config {
  readonly name: string;
  readonly metrics?: { readonly port: number };
  readonly level: string;
}

const before: Config = { name: "a", metrics: { port: 1 }, level: "info" };

test("keys stay as they were, and those that would change are told", () => {
  const next: Config = { name: "b", metrics: { port: 1 }, level: "debug" };
  expect(keepKeys(["name", "metrics"], { before, next })).toEqual({
    config: { name: "a", metrics: { port: 1 }, level: "debug" },
    changed: ["name"],
  });
  expect(next.name).toBe("b");
});

test("a key that is left out, and one that comes, has changed", () => {
  const without: Config = { name: "a", level: "info" };
  expect(keepKeys(["metrics"], { before, next: without })).toEqual({ config: before, changed: ["metrics"] });
  const back = keepKeys(["metrics"], { before: without, next: before });
  expect(back.changed).toEqual(["metrics"]);
  expect(back.config.metrics).toBeUndefined();
});
