/**
 * `npm run soak`: twelve minutes, of which the first two are a warm-up; `SOAK_MINUTES` for another length. It needs a
 * machine that does little else.
 */
import { expect, test } from "vitest";
import { soak } from "../support/soak.ts";

const MEBIBYTE = 1024 ** 2;
const minutes = Number(process.env.SOAK_MINUTES ?? 12);

test(`for ${minutes} minutes every byte is right and nothing grows`, async () => {
  const result = await soak({
    durationMs: minutes * 60_000,
    warmUpMs: Math.min(2, minutes / 4) * 60_000,
    cutEveryMs: 20_000,
    reloadEveryMs: 30_000,
    sampleEveryMs: 10_000,
    idleStreams: 300,
    echoStreams: 100,
    connectionsPerSecond: 200,
  });
  console.log(JSON.stringify(result, undefined, 2));
  expect({ faults: result.faults, badEndings: result.badEndings }).toEqual({ faults: [], badEndings: [] });
  // Else the machine has done so much else that the figures say nothing.
  expect(result.delays.length).toBeLessThan(minutes);
  expect(result.shortConnections).toBeGreaterThan(minutes * 60 * 200 * 0.9);
  expect(result.toldReloads).toBe(2 * result.reloads);
  // A cut and a reload are worth some lines, and connections their records alone.
  expect(result.logLines).toBeLessThan(50 + 20 * (result.cuts + result.reloads));
  for (const program of [result.edge, result.agent]) {
    expect(program.heapBytesPerMinute).toBeLessThan(0.1 * MEBIBYTE);
    expect(program.residentBytes).toBeLessThan(8 * MEBIBYTE);
    expect(program).toMatchObject({ openFiles: 0, sockets: 0, streams: 400, streamsAtEnd: 0, heldBytesAtEnd: 0 });
    // Of those of a session, one or two wait at one moment and not at another.
    expect(program.timers).toBeLessThan(20);
  }
});
