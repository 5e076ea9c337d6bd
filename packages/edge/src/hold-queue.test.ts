import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Held, HoldQueue } from "./hold-queue.ts";

const events: string[] = [];
const held = (name: string): Held => ({
  serve: () => void events.push(`${name} served`),
  expire: () => void events.push(`${name} expired`),
  stop: () => void events.push(`${name} stopped`),
});

describe("a hold queue", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
    events.length = 0;
  });
  afterEach(() => void vi.useRealTimers());

  test("serves in the order of arrival", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    for (const name of ["a", "b", "c"]) queue.add(held(name));
    queue.serve(() => true);
    expect(events).toEqual(["a served", "b served", "c served"]);
    expect([queue.size, vi.getTimerCount()]).toEqual([0, 0]);
  });

  test("stops serving when the agent is gone again, and keeps the rest in order", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    for (const name of ["a", "b", "c"]) queue.add(held(name));
    queue.serve(() => events.length < 1);
    queue.serve(() => true);
    expect(events).toEqual(["a served", "b served", "c served"]);
  });

  test("serves one that begins to wait again the next time", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    const again: Held = {
      ...held("again"),
      serve: () => {
        events.push("again served");
        if (events.length < 100) queue.add(again);
      },
    };
    queue.add(again);
    queue.add(held("other"));
    queue.serve(() => true);
    expect(events).toEqual(["again served", "other served"]);
    expect(queue.size).toBe(1);
  });

  test("serves one after the other, and none within another, when each makes room for the next", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 100 });
    let depth = 0;
    let room = 1;
    const serve = () => queue.serve(() => room > 0);
    for (let at = 0; at < 100; at += 1) {
      queue.add({
        ...held("failing"),
        serve: () => {
          room -= 1;
          depth += 1;
          events.push(`served at ${depth}`);
          room += 1;
          serve();
          depth -= 1;
        },
      });
    }
    serve();
    expect(events).toEqual(Array.from({ length: 100 }, () => "served at 1"));
  });

  test("serves what an earlier one left room for after it was passed over", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    let room = 1;
    const serve = () => queue.serve(() => room > 0);
    const other = held("other");
    queue.add({
      ...held("first"),
      serve: () => {
        room -= 1;
        // It begins to wait behind the end of what is gone through now.
        queue.add(other);
        room += 1;
        serve();
      },
    });
    serve();
    expect(events).toEqual(["other served"]);
  });

  test("passes over one that what there is does not help", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    let isReady = false;
    queue.add({ ...held("a"), isReady: () => isReady });
    queue.add(held("b"));
    queue.serve(() => true);
    expect(events).toEqual(["b served"]);
    isReady = true;
    queue.serve(() => true);
    expect(events).toEqual(["b served", "a served"]);
  });

  test("gives up each connection after its own timeout", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 10 });
    queue.add(held("a"));
    vi.advanceTimersByTime(600);
    queue.add(held("b"));
    vi.advanceTimersByTime(399);
    expect(events).toEqual([]);
    vi.advanceTimersByTime(2);
    expect(events).toEqual(["a expired"]);
    vi.advanceTimersByTime(600);
    expect(events).toEqual(["a expired", "b expired"]);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("refuses when it is full or off", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 1 });
    expect(queue.add(held("a"))).toBeUndefined();
    expect(queue.add(held("b"))).toBe("full");
    queue.settings = { timeoutMs: 0, max: 1 };
    expect(queue.add(held("c"))).toBe("off");
  });

  test("gives up all that wait, in their order, when its deployment stops", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 2 });
    for (const name of ["a", "b"]) queue.add(held(name));
    queue.stop();
    expect(events).toEqual(["a stopped", "b stopped"]);
    expect([queue.size, queue.counters.expired, vi.getTimerCount()]).toEqual([0, 0, 0]);
  });

  test("forgets a connection that was ended while it waited", () => {
    const queue = new HoldQueue({ timeoutMs: 1_000, max: 2 });
    const gone = held("gone");
    queue.add(gone);
    queue.remove(gone);
    expect([queue.size, vi.getTimerCount()]).toEqual([0, 0]);
  });
});
