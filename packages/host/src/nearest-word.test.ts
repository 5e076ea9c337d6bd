import { expect, test } from "vitest";
import { nearestWord } from "./nearest-word.ts";

const keys = ["name", "stateDir", "allow", "links", "services", "timeouts", "limits"];

test.each([
  ["allowlst", "allow"],
  ["Links", "links"],
  ["link", "links"],
  ["service", "services"],
  ["statedir", "stateDir"],
  ["nam", "name"],
  ["timeout", "timeouts"],
  ["colour", undefined],
  ["x", undefined],
  ["", undefined],
  ["a".repeat(1_000), undefined],
])("the nearest to %j is %j", (word, nearest) => {
  expect(nearestWord(word, keys)).toBe(nearest);
});
