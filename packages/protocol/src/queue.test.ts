import { expect, it } from "vitest";
import { Queue } from "./queue.ts";

it("hands out what was pushed, in order, however the calls are mixed", () => {
  const queue = new Queue<number>();
  let pushed = 0;
  let shifted = 0;
  for (let round = 0; round < 400; round += 1) {
    for (let count = (round * 7) % 13; count > 0; count -= 1) queue.push(pushed++);
    for (let count = (round * 5) % 11; count > 0 && shifted < pushed; count -= 1) expect(queue.shift()).toBe(shifted++);
    expect(queue.length).toBe(pushed - shifted);
  }
  while (shifted < pushed) expect(queue.shift()).toBe(shifted++);
  expect([queue.shift(), queue.length]).toEqual([undefined, 0]);
});
