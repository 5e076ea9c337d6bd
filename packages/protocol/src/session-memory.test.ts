import { ResetCode } from "@sallyport/protocol";
import { describe, expect, it } from "vitest";
import { LoneSession } from "../../../test/support/lone-session.ts";
import { Pair, type PairOptions } from "../../../test/support/pair.ts";
import { MemoryBudget } from "./memory-budget.ts";

const MIB = 1_048_576;
/** What one direction has when nothing is free. */
const HALF_FRAME = 8_192;

/** A pair on a path of 50 ms and any bandwidth. */
function longPair(options: PairOptions = {}): Pair {
  return new Pair({ latencyMs: 25, linkBytes: 64 * MIB, capture: true, ...options });
}

/** What the edge was promised beyond what had been consumed, each time it changed. */
function windowsOf(pair: Pair, stream = 1): number[] {
  const windows: number[] = [];
  for (const { from, frame } of pair.transcript) {
    if (from !== "agent" || frame.type !== "credit" || frame.stream !== stream) continue;
    const window = frame.limit - frame.consumed;
    if (windows.at(-1) !== window) windows.push(window);
  }
  return windows;
}

describe("a window", () => {
  it("doubles every round trip until it is no longer what limits the stream", () => {
    const pair = longPair();
    pair.run(50);
    const id = pair.edge.open();
    pair.edge.send(id, 200 * MIB);
    pair.run(2_000);
    expect(pair.agent.stream(id).received).toBe(200 * MIB);
    expect(windowsOf(pair)).toEqual(
      expect.arrayContaining([262_144, 524_288, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB]),
    );
    expect(Math.max(...windowsOf(pair))).toBe(16 * MIB);
  });

  it("moves a hundred times as much in two seconds as one that stays at 256 KiB", () => {
    const moved = [{}, { windowBytes: 262_144 }].map((session) => {
      const pair = longPair({ edge: session, agent: session });
      pair.run(50);
      const id = pair.edge.open();
      pair.edge.send(id, 1_024 * MIB);
      pair.run(2_000);
      return pair.agent.stream(id).received;
    });
    expect(moved[1]).toBeLessThanOrEqual(41 * 262_144);
    expect(moved[0]).toBeGreaterThan(40 * (moved[1] ?? 0));
  });

  it("does not grow while the path is what limits the stream", () => {
    // 128 KiB a way of 25 ms: 5.2 MB/s, for which 256 KiB are the bandwidth-delay product.
    const pair = longPair({ linkBytes: 131_072 });
    pair.run(50);
    const id = pair.edge.open();
    pair.edge.send(id, 32 * MIB);
    pair.run(10_000);
    expect(pair.agent.stream(id).received).toBe(32 * MIB);
    expect(Math.max(...windowsOf(pair))).toBeLessThanOrEqual(MIB);
  });

  it("does not grow for an application that is slow", () => {
    const pair = longPair();
    pair.agent.autoConsume = false;
    pair.run(50);
    const id = pair.edge.open();
    pair.edge.send(id, 16 * MIB);
    for (let round = 0; round < 400; round += 1) {
      pair.run(50);
      pair.agent.consume(id, 40_000);
    }
    expect(pair.agent.stream(id).consumed).toBe(16_000_000);
    expect(windowsOf(pair)).toEqual([262_144]);
  });

  it("of a stream that ended is given back when its last byte is known", () => {
    const pair = longPair();
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.edge.send(id, 1_000);
    pair.edge.end(id);
    pair.run(1_000);
    expect(pair.agent.session.windowBytes).toBe(1_000);
    expect(pair.edge.session.queueBytes).toBe(1_000);
  });
});

describe("memory that is scarce", () => {
  it("lets new streams start with one frame, at both ends", () => {
    const memory = new MemoryBudget(0);
    const pair = longPair({ edge: { memory }, agent: { memory }, initialCredit: HALF_FRAME });
    const id = pair.edge.open();
    pair.run(200);
    const [open, accept] = pair.transcript
      .map(({ frame }) => frame)
      .filter(({ type }) => type === "open" || type === "accept");
    expect(open).toMatchObject({ type: "open", limit: HALF_FRAME });
    expect(accept).toMatchObject({ type: "accept", limit: HALF_FRAME });
    expect([pair.edge.session.windowBytes, pair.agent.session.windowBytes]).toEqual([HALF_FRAME, HALF_FRAME]);
    pair.edge.reset(id, ResetCode.killed);
    pair.run(200);
    expect(memory.usedBytes).toBe(0);
  });

  it("lets a window that had grown shrink as its bytes are consumed, and grow again when there is more", () => {
    const memory = new MemoryBudget(64 * MIB);
    const pair = longPair({ agent: { memory } });
    pair.run(50);
    const id = pair.edge.open();
    pair.edge.send(id, 1_024 * MIB);
    pair.run(1_000);
    const grown = pair.agent.session.windowBytes;
    expect(grown).toBeGreaterThan(6 * MIB);
    // Others take the rest.
    memory.adjust(64 * MIB - memory.usedBytes);
    const taken = memory.usedBytes - grown;
    pair.run(1_000);
    expect(pair.agent.session.windowBytes).toBeLessThanOrEqual(grown / 2);
    expect(memory.usedBytes).toBeLessThanOrEqual(64 * MIB);
    memory.adjust(-taken);
    pair.run(1_000);
    expect(pair.agent.session.windowBytes).toBeGreaterThan(6 * MIB);
    expect(pair.agent.session.ended).toBe(false);
  });

  it("stops an application that writes before the peer's credit does", () => {
    const memory = new MemoryBudget(MIB);
    const pair = longPair({ edge: { memory }, initialCredit: 8 * MIB });
    const id = pair.edge.open();
    pair.edge.send(id, 8 * MIB);
    // An eighth of what is free, and the write that reached it.
    expect(pair.edge.session.queueBytes).toBeGreaterThanOrEqual(MIB / 16);
    expect(pair.edge.session.queueBytes).toBeLessThanOrEqual(MIB / 8 + HALF_FRAME);
    expect(pair.edge.stream(id).blocked).toBe(true);
    pair.run(60_000);
    expect(pair.agent.stream(id).received).toBe(8 * MIB);
  });

  it("lets every stream go on, in both directions and with nothing free at either end", () => {
    const memory = () => ({ memory: new MemoryBudget(0) });
    const pair = longPair({ edge: memory(), agent: memory(), initialCredit: HALF_FRAME, capture: false });
    const ids = Array.from({ length: 50 }, () => pair.edge.open());
    pair.run(100);
    for (const id of ids) {
      for (const application of [pair.edge, pair.agent]) {
        application.send(id, 300_000);
        application.end(id);
      }
    }
    pair.run(60_000);
    for (const application of [pair.edge, pair.agent]) {
      for (const id of ids) expect(application.stream(id)).toMatchObject({ outcome: "finished", received: 300_000 });
    }
  });

  it("of small writes is enough, since what was consumed is told even when it is little", () => {
    const pair = longPair({ edge: { memory: new MemoryBudget(0) } });
    pair.edge.chunkBytes = 10;
    const id = pair.edge.open();
    pair.edge.send(id, 1_000);
    pair.run(20_000);
    expect(pair.agent.stream(id).received).toBe(1_000);
  });

  it("lets an honest stream through while readers that stopped hold all of it", () => {
    const memory = new MemoryBudget(16 * MIB);
    const pair = longPair({
      edge: { memory },
      agent: { memory: new MemoryBudget(16 * MIB) },
      initialCredit: HALF_FRAME,
      capture: false,
    });
    pair.edge.autoConsume = false;
    pair.run(50);
    const stalled = Array.from({ length: 500 }, () => pair.edge.open());
    pair.run(100);
    for (const id of stalled) pair.agent.send(id, 4 * MIB);
    pair.run(5_000);
    expect(memory.usedBytes).toBeLessThanOrEqual(16 * MIB + 501 * HALF_FRAME);
    const honest = pair.edge.open();
    pair.edge.stream(honest).autoConsume = true;
    const before = pair.now;
    pair.run(100);
    pair.agent.send(honest, 500_000);
    pair.agent.end(honest);
    while (!pair.edge.stream(honest).endSeen) pair.run(10);
    // One write each round trip at the least, and the wait for its last bytes to be told.
    expect(pair.now - before).toBeLessThanOrEqual(100 + (50 + 25) * Math.ceil(500_000 / HALF_FRAME));
    expect(pair.edge.stream(honest).received).toBe(500_000);
  });
});

describe("what was consumed", () => {
  it("is told within 25 ms, so that an idle stream holds nothing at its sender", () => {
    const pair = longPair();
    pair.run(100);
    const id = pair.edge.open();
    pair.run(100);
    pair.edge.send(id, 100);
    pair.run(74);
    expect(pair.edge.session.queueBytes).toBe(100);
    pair.run(1);
    expect(pair.edge.session.queueBytes).toBe(0);
  });

  it("is told also when that was before ACCEPT, which says nothing of it", () => {
    const pair = longPair({ edge: { memory: new MemoryBudget(0) }, agent: { memory: new MemoryBudget(0) } });
    const id = pair.edge.open();
    pair.edge.send(id, 1);
    pair.edge.send(id, 1);
    pair.run(200);
    expect(pair.agent.stream(id).received).toBe(2);
  });

  it("is told by a RESUME that was overtaken, too", () => {
    const pair = longPair({ links: 2, agent: { memory: new MemoryBudget(0) } });
    pair.edge.autoConsume = false;
    const id = pair.edge.open();
    pair.run(200);
    pair.agent.send(id, 1);
    pair.agent.send(id, 1);
    pair.run(200);
    // Requests cross on the link that is left; what is consumed meanwhile stands in the answer, which is not waited for.
    pair.loseLink(1);
    pair.run(7);
    pair.edge.open();
    pair.run(0);
    pair.edge.stream(id).autoConsume = true;
    pair.edge.consume(id);
    pair.run(1_000);
    expect(pair.edge.stream(id).received).toBe(2);
  });

  it("is told once, however often little is consumed meanwhile", () => {
    const lone = new LoneSession("agent");
    lone.receive({ type: "open", stream: 1, connection: "c", target: "t", deployment: "d", partner: "", limit: 1_000 });
    lone.session.accept(1, "");
    expect(lone.sent()).toEqual(["accept 1"]);
    for (let offset = 0; offset < 10; offset += 1) {
      lone.receive({ type: "data", stream: 1, offset, bytes: new Uint8Array(1) });
      lone.session.consume(1, 1);
    }
    expect(lone.sent()).toEqual([]);
    expect(lone.session.nextTimeout()).toBe(lone.now + 25);
    lone.now += 25;
    lone.session.tick(lone.now);
    expect(lone.sent()).toEqual([`credit 1 10/${10 + 262_144}`]);
    expect(lone.session.nextTimeout()).toBe(lone.now - 25 + 10_000);
  });
});

describe("figures of memory", () => {
  it("are the sum of what streams hold and promise, and nothing when they are gone", () => {
    const memory = new MemoryBudget();
    const pair = longPair({ edge: { memory }, maxStreams: 10 });
    pair.edge.autoConsume = false;
    pair.run(50);
    const ids = [pair.edge.open(), pair.edge.open(), pair.edge.open()];
    pair.run(100);
    for (const id of ids) pair.agent.send(id, 1_000);
    pair.edge.send(ids[0]!, 5_000);
    pair.run(20);
    const { session } = pair.edge;
    expect([session.windowBytes, session.queueBytes]).toEqual([3 * 262_144, 5_000]);
    expect(memory.usedBytes).toBe(3 * 262_144 + 5_000);
    pair.run(100);
    pair.edge.reset(ids[0]!, ResetCode.killed);
    pair.agent.reset(ids[1]!, ResetCode.killed);
    pair.run(100);
    expect([session.windowBytes, session.queueBytes]).toEqual([262_144, 0]);
    session.close(4000, "over");
    expect([session.windowBytes, session.queueBytes, memory.usedBytes]).toEqual([0, 0, 0]);
  });

  it("count streams that have data and no credit, and how often that came about", () => {
    const pair = longPair({ initialCredit: 1_000 });
    pair.agent.autoConsume = false;
    pair.agent.autoAccept = false;
    const [first, second] = [pair.edge.open(), pair.edge.open()];
    pair.edge.send(first, 5_000);
    pair.edge.send(second, 999);
    pair.run(100);
    const { session } = pair.edge;
    expect([session.stalledStreams, session.counters.stalls]).toEqual([1, 1]);
    pair.agent.accept(first);
    pair.run(100);
    expect([session.stalledStreams, session.counters.stalls]).toEqual([0, 1]);
    pair.edge.send(first, MIB);
    pair.run(100);
    expect([session.stalledStreams, session.counters.stalls]).toEqual([1, 2]);
    pair.edge.reset(first, ResetCode.killed);
    expect([session.stalledStreams, session.counters.stalls]).toEqual([0, 2]);
  });
});
