import { expect, test } from "vitest";
import { type Offence, PenaltyBox, penaltyMs } from "./penalty-box.ts";

function boxWith(offences: readonly Offence[], now = 0): PenaltyBox {
  const box = new PenaltyBox();
  for (const offence of offences) {
    box.punish("a", offence, now);
  }
  return box;
}

test.each<[Offence[], number]>([
  [[], 0],
  [["authentication"], 0],
  [["authentication", "authentication"], 0],
  [["authentication", "authentication", "silence"], 0],
  [["authentication", "authentication", "authentication"], 15_000],
  [["protocol"], 90_000],
  [Array<Offence>(14).fill("silence"), 0],
  [Array<Offence>(15).fill("silence"), 15_000],
  [["protocol", "authentication"], 95_000],
])("after %j a source is refused for %d ms", (offences, refusedForMs) => {
  expect(boxWith(offences).refusedForMs("a", 0)).toBe(refusedForMs);
});

test("a refusal lasts until all of the time has passed, not only the part above the threshold", () => {
  const box = boxWith(["authentication", "authentication", "authentication"]);
  expect(box.refusedForMs("a", 14_999)).toBe(1);
  expect(box.refusedForMs("a", 15_000)).toBe(0);
});

test("time heals: failures far enough apart are never refused", () => {
  const box = new PenaltyBox();
  for (let now = 0; now < 1_000_000; now += penaltyMs.authentication) {
    expect(box.refusedForMs("a", now)).toBe(0);
    box.punish("a", "authentication", now);
  }
});

test("nobody is refused for more than ten minutes", () => {
  const box = boxWith(Array<Offence>(100).fill("protocol"));
  expect(box.refusedForMs("a", 0)).toBe(600_000);
  expect(box.refusedForMs("a", 600_000)).toBe(0);
});

test("one source's failures do not touch another", () => {
  expect(boxWith(["protocol"]).refusedForMs("b", 0)).toBe(0);
});

test("a source that has served its time begins anew", () => {
  const box = boxWith(["protocol"]);
  box.punish("a", "authentication", 90_000);
  expect(box.refusedForMs("a", 90_000)).toBe(0);
});

test("a source is forgotten when it is looked at after its time", () => {
  const box = boxWith(["protocol"]);
  expect(box.size).toBe(1);
  box.refusedForMs("a", 90_000);
  expect(box.size).toBe(0);
});

test("the table is bounded: the source whose last offence is oldest makes room, and new ones are still punished", () => {
  const box = new PenaltyBox({ maxSources: 3 });
  for (const source of ["a", "b", "c", "a", "d"]) {
    box.punish(source, "protocol", 0);
  }
  expect(box.size).toBe(3);
  expect(["a", "b", "c", "d"].filter((source) => box.refusedForMs(source, 0) > 0)).toEqual(["a", "c", "d"]);
});

test("100,000 sources leave 65,536 entries", () => {
  const box = new PenaltyBox();
  for (let source = 0; source < 100_000; source++) {
    box.punish(String(source), "silence", 0);
  }
  expect(box.size).toBe(65_536);
});
