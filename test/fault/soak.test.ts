/** The soak of `npm run soak`, for twenty seconds: long enough to show that it works, too short to show a slope. */
import { expect, test } from "vitest";
import { soak } from "../support/soak.ts";

test("for twenty seconds every byte is right and no stream or file stays open", async () => {
  const result = await soak({
    durationMs: 20_000,
    warmUpMs: 5_000,
    cutEveryMs: 4_000,
    reloadEveryMs: 6_000,
    sampleEveryMs: 1_000,
    idleStreams: 300,
    echoStreams: 100,
    connectionsPerSecond: 100,
  });
  console.log(JSON.stringify(result));
  expect({ faults: result.faults, badEndings: result.badEndings }).toEqual({ faults: [], badEndings: [] });
  expect(result.cuts).toBeGreaterThanOrEqual(3);
  expect(result.reloads).toBeGreaterThanOrEqual(2);
  expect(result.toldReloads).toBe(2 * result.reloads);
  // A cut and a reload are worth some lines, and connections their records alone.
  expect(result.logLines).toBeLessThan(50 + 20 * (result.cuts + result.reloads));
  for (const program of [result.edge, result.agent]) {
    expect(program).toMatchObject({ openFiles: 0, sockets: 0, streams: 400, streamsAtEnd: 0, heldBytesAtEnd: 0 });
    // Of those of a session, one or two wait at one moment and not at another.
    expect(program.timers).toBeLessThan(20);
  }
});
