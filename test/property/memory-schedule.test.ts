/**
 * Random schedules of many streams over several sessions that share one memory budget at each end. However scarce it is,
 * it is never exceeded by more than a frame of credit and a write for each stream, all bytes come out as they went in,
 * and nothing is left in the accounts.
 *
 * A quarter of PROPERTY_RUNS says how many schedules are played. A failure prints its seed and its shortest schedule.
 */
import { LARGE_CHUNK_BYTES, MemoryBudget, MIN_DIRECTION_BYTES, ResetCode } from "@sallyport/protocol";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Side } from "../support/model-application.ts";
import { Pair } from "../support/pair.ts";

const runs = Number(process.env["PROPERTY_RUNS"] ?? 2_000) / 4;

const FRAME_BYTES = 2 * MIN_DIRECTION_BYTES;
const SESSIONS = 2;

const step = fc.record({
  do: fc.oneof(
    { weight: 5, arbitrary: fc.constant("open" as const) },
    { weight: 8, arbitrary: fc.constant("send" as const) },
    { weight: 4, arbitrary: fc.constant("consume" as const) },
    { weight: 2, arbitrary: fc.constant("flow" as const) },
    { weight: 2, arbitrary: fc.constant("end" as const) },
    { weight: 1, arbitrary: fc.constant("reset" as const) },
    { weight: 1, arbitrary: fc.constant("lose" as const) },
    { weight: 1, arbitrary: fc.constant("shrink" as const) },
    { weight: 6, arbitrary: fc.constant("run" as const) },
  ),
  session: fc.nat({ max: SESSIONS - 1 }),
  side: fc.constantFrom<Side>("edge", "agent"),
  pick: fc.nat({ max: 60 }),
  bytes: fc.integer({ min: 1, max: 600_000 }),
  ms: fc.constantFrom(0, 1, 7, 30, 200, 1_000),
});

const setup = fc.record({
  limitBytes: fc.constantFrom(0, 1, 40_000, 300_000, 2_000_000, 30_000_000),
  latencyMs: fc.constantFrom(0, 1, 25),
  chunkBytes: fc.constantFrom(100, 4_096, MIN_DIRECTION_BYTES, LARGE_CHUNK_BYTES),
  steps: fc.array(step, { maxLength: 100, size: "max" }),
});

describe("random schedules over one budget", () => {
  it(`keep within it, keep every byte and leave nothing behind (${runs} schedules)`, { timeout: 600_000 }, () => {
    fc.assert(
      fc.property(setup, ({ limitBytes, latencyMs, chunkBytes, steps }) => {
        const memory = { edge: new MemoryBudget(limitBytes), agent: new MemoryBudget(limitBytes) };
        const pairs = Array.from({ length: SESSIONS }, () => {
          const pair = new Pair({
            links: 2,
            latencyMs,
            initialCredit: MIN_DIRECTION_BYTES,
            edge: { memory: memory.edge, resumeTimeoutMs: 1e9 },
            agent: { memory: memory.agent, resumeTimeoutMs: 1e9 },
          });
          for (const application of [pair.edge, pair.agent]) {
            application.chunkBytes = chunkBytes;
            application.asksForLargeWrites = chunkBytes > MIN_DIRECTION_BYTES;
            application.autoConsume = false;
          }
          return pair;
        });
        const expectWithinBudget = () => {
          for (const side of ["edge", "agent"] as const) {
            const sessions = pairs.map((pair) => pair.end(side).session);
            const sum = (value: (session: (typeof sessions)[number]) => number) =>
              sessions.reduce((total, session) => total + value(session), 0);
            const streams = sum(({ streamCount }) => streamCount);
            const bytes = sum(({ windowBytes, queueBytes }) => windowBytes + queueBytes);
            expect(sum(({ heldBytes }) => heldBytes)).toBeLessThanOrEqual(bytes);
            expect(bytes).toBeLessThanOrEqual(limitBytes + streams * FRAME_BYTES);
            // Each stream may have so much more reserved for large writes.
            const reservedBytes = chunkBytes > MIN_DIRECTION_BYTES ? streams * chunkBytes : 0;
            expect(memory[side].usedBytes).toBeGreaterThanOrEqual(bytes);
            expect(memory[side].usedBytes).toBeLessThanOrEqual(bytes + reservedBytes);
          }
        };

        for (const { do: what, session, side, pick, bytes, ms } of steps) {
          const pair = pairs[session]!;
          const application = pair.end(side);
          const ids = [...application.streams.keys()];
          const id = ids[pick % Math.max(1, ids.length)];
          const stream = id === undefined ? undefined : application.stream(id);
          if (what === "run") for (const each of pairs) each.run(ms);
          else if (what === "open") pair.edge.tryOpen();
          else if (what === "lose") {
            const [link] = pair.liveLinks;
            if (link !== undefined) pair.loseLink(link);
            pair.addLink();
          } else if (what === "shrink") {
            // A smaller limit holds once the streams have moved on.
            memory[side].limitBytes = Math.floor(memory[side].limitBytes / 2);
          } else if (stream === undefined || id === undefined || stream.over) continue;
          else if (what === "send" && !stream.wantsEnd) application.send(id, Math.min(bytes, 40 * chunkBytes));
          else if (what === "consume") application.consume(id, bytes);
          else if (what === "flow") {
            stream.autoConsume = true;
            application.consume(id);
          } else if (what === "end") application.end(id);
          else if (what === "reset") application.reset(id, ResetCode.connectionReset);
          expectWithinBudget();
        }

        for (const pair of pairs) {
          for (const application of [pair.edge, pair.agent]) {
            application.autoConsume = true;
            for (const stream of application.streams.values()) {
              stream.autoConsume = true;
              application.consume(stream.id);
            }
          }
          pair.run(1_000);
          for (const application of [pair.agent, pair.edge]) {
            for (const stream of application.streams.values()) if (!stream.over) application.end(stream.id);
          }
          for (let rounds = 0; pair.edge.session.streamCount + pair.agent.session.streamCount > 0; rounds += 1) {
            if (rounds === 1_000) throw new Error("streams do not come to their end");
            pair.run(1_000);
            expectWithinBudget();
          }
          for (const atEdge of pair.edge.streams.values()) {
            const atAgent = pair.agent.streams.get(atEdge.id);
            if (atEdge.outcome === "local" || atAgent?.outcome === "local") continue;
            expect([atEdge.outcome, atAgent?.outcome]).toEqual(["finished", "finished"]);
            expect([atAgent?.received, atEdge.received]).toEqual([atEdge.written, atAgent?.written]);
          }
        }
        expect([memory.edge.usedBytes, memory.agent.usedBytes]).toEqual([0, 0]);
        for (const pair of pairs) {
          for (const { session } of [pair.edge, pair.agent]) {
            expect([session.windowBytes, session.queueBytes, session.stalledStreams]).toEqual([0, 0, 0]);
          }
        }
      }),
      { numRuns: runs },
    );
  });
});
