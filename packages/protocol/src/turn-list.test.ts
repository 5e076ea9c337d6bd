import { describe, expect, it } from "vitest";
import { MemoryBudget } from "./memory-budget.ts";
import { ReceiveBuffer } from "./receive-buffer.ts";
import { ReceiveWindow } from "./receive-window.ts";
import { Stream } from "./stream.ts";
import { TurnList } from "./turn-list.ts";

const streams = (count: number) =>
  Array.from(
    { length: count },
    (_, index) =>
      new Stream({
        id: index + 1,
        sendLimit: 0,
        sendBufferBytes: 0,
        receive: new ReceiveBuffer(0, 0),
        window: new ReceiveWindow({ startBytes: 0, maxBytes: 0 }),
        memory: new MemoryBudget(),
      }),
  );

function drain(list: TurnList): number[] {
  const ids: number[] = [];
  for (let stream = list.shift(); stream !== undefined; stream = list.shift()) ids.push(stream.id);
  return ids;
}

describe("a list of turns", () => {
  it("hands streams out in the order in which they came", () => {
    const list = new TurnList();
    for (const stream of streams(3)) list.push(stream.dataTurn);
    expect(drain(list)).toEqual([1, 2, 3]);
    expect(list.empty).toBe(true);
  });

  it.each([
    [0, [2, 3]],
    [1, [1, 3]],
    [2, [1, 2]],
  ])("closes up when stream at %i leaves", (index, rest) => {
    const list = new TurnList();
    const all = streams(3);
    for (const stream of all) list.push(stream.dataTurn);
    all[index]!.dataTurn.leave();
    expect(all[index]!.dataTurn.waiting).toBe(false);
    all[index]!.dataTurn.leave();
    expect(drain(list)).toEqual(rest);
  });

  it("takes a stream again that has left, once", () => {
    const list = new TurnList();
    const [first, second] = streams(2);
    list.push(first!.controlTurn);
    list.push(second!.controlTurn);
    first!.controlTurn.leave();
    list.push(first!.controlTurn);
    expect(drain(list)).toEqual([2, 1]);
  });

  it("keeps the turns for control and for data apart", () => {
    const control = new TurnList();
    const data = new TurnList();
    const [stream] = streams(1);
    control.push(stream!.controlTurn);
    data.push(stream!.dataTurn);
    expect([drain(control), drain(data)]).toEqual([[1], [1]]);
  });
});
