import { expect, test } from "vitest";
import { PreAuthGate, type PreAuthRefusal } from "./pre-auth-gate.ts";

function admitMany(gate: PreAuthGate, source: string, count: number): (PreAuthRefusal | undefined)[] {
  return Array.from({ length: count }, () => gate.admit(source, 0));
}

test("an agent opens 16 links at once; a 17th connection of its source waits for a place", () => {
  const gate = new PreAuthGate();
  expect(new Set(admitMany(gate, "a", 16))).toEqual(new Set([undefined]));
  expect(gate.admit("a", 0)).toBe("source_limit");
  gate.release("a");
  expect(gate.admit("a", 0)).toBeUndefined();
});

test("twenty agents with two links each come back at once through one address that is known", () => {
  const gate = new PreAuthGate();
  gate.recognise("nat", 0);
  expect(new Set(admitMany(gate, "nat", 40))).toEqual(new Set([undefined]));
});

test("twenty unknown agents behind one address get in within a few rounds", () => {
  const gate = new PreAuthGate();
  let waiting = 40;
  for (let round = 0; round < 3; round++) {
    const admitted = admitMany(gate, "nat", waiting).filter((refusal) => refusal === undefined).length;
    for (let index = 0; index < admitted; index++) {
      gate.recognise("nat", 0);
      gate.release("nat");
    }
    waiting -= admitted;
  }
  expect(waiting).toBe(0);
});

test("strangers fill 48 places; the last 16 are for sources that have authenticated", () => {
  const gate = new PreAuthGate();
  gate.recognise("known", 0);
  for (let source = 0; source < 48; source++) {
    expect(gate.admit(`stranger ${source}`, 0)).toBeUndefined();
  }
  expect(gate.admit("one more", 0)).toBe("limit");
  expect(new Set(admitMany(gate, "known", 16))).toEqual(new Set([undefined]));
  expect(gate.admit("known", 0)).toBe("limit");
  expect(gate.pending).toBe(64);
});

test("being refused for lack of a place is no offence", () => {
  const gate = new PreAuthGate();
  admitMany(gate, "a", 1_000);
  expect(gate.punishedSources).toBe(0);
});

test("a punished source is refused, and takes no place", () => {
  const gate = new PreAuthGate();
  gate.punish("a", "protocol", 0);
  expect(gate.admit("a", 0)).toBe("penalty");
  expect(gate.pending).toBe(0);
  expect(gate.admit("a", 90_000)).toBeUndefined();
});

test("a known source is not punished when connections break off, but is for wrong proofs", () => {
  const gate = new PreAuthGate();
  gate.recognise("nat", 0);
  for (let index = 0; index < 100; index++) {
    gate.punish("nat", "silence", 0);
  }
  expect(gate.admit("nat", 0)).toBeUndefined();
  for (let index = 0; index < 3; index++) {
    gate.punish("nat", "authentication", 0);
  }
  expect(gate.admit("nat", 0)).toBe("penalty");
});

test("a source is known for a day", () => {
  const gate = new PreAuthGate({ maxPerSource: 1, maxPerKnownSource: 3 });
  gate.recognise("a", 0);
  expect(gate.admit("a", 86_399_999)).toBeUndefined();
  expect(gate.admit("a", 86_399_999)).toBeUndefined();
  expect(gate.admit("a", 86_400_000)).toBe("source_limit");
});

test("the table of known sources is bounded; the one that authenticated the longest ago makes room", () => {
  const gate = new PreAuthGate({ maxPending: 1, reservedForKnown: 1, maxKnownSources: 2 });
  for (const source of ["a", "b", "a", "c"]) {
    gate.recognise(source, 0);
  }
  expect(gate.admit("b", 0)).toBe("limit");
  expect(gate.admit("a", 0)).toBeUndefined();
});

test("giving back a place that was not taken changes nothing", () => {
  const gate = new PreAuthGate();
  gate.release("a");
  expect(gate.pending).toBe(0);
});
