import { describe, expect, it } from "vitest";
import { Pair } from "../../../test/support/pair.ts";
import { CloseCode, ResetCode } from "./codes.ts";
import { MAX_DATA_BYTES } from "./frame.ts";
import { FrameWriter } from "./frame-writer.ts";
import { Session } from "./session.ts";

const WINDOW = 262_144;

/** Frames of the transcript from `from` on that are none of the links' own. */
const conversation = (pair: Pair, from = 0) => pair.lines().slice(from);

/** Both directions of a stream are ended and everything is consumed. */
function finish(pair: Pair, id: number): void {
  pair.edge.end(id);
  pair.agent.end(id);
  pair.settle();
}

describe("a stream", () => {
  it("is opened, accepted, used, ended in both directions and forgotten", () => {
    const pair = new Pair({ capture: true });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 5);
    pair.edge.end(id);
    pair.settle();
    pair.agent.send(id, 7);
    pair.agent.end(id);
    pair.settle();
    expect(conversation(pair)).toEqual([
      "edge → agent 1: open 1 sftp",
      "agent → edge 1: accept 1",
      "edge → agent 1: data 1 0+5",
      "edge → agent 1: end 1 5",
      "agent → edge 1: credit 1 5/262149 end",
      "agent → edge 1: data 1 0+7",
      "agent → edge 1: end 1 7",
      "edge → agent 1: credit 1 7/262151 end",
    ]);
    expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["finished", "finished"]);
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });

  it("tells the agent what the edge asked for, and the edge what the agent dialled", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    expect(pair.agent.opens).toEqual([
      { stream: id, connection: "c-1", target: "sftp", deployment: "d", partner: "192.0.2.1:40000", limit: WINDOW },
    ]);
    expect(pair.edge.events).toEqual([{ type: "accept", stream: id, address: "10.0.0.1:22" }]);
  });

  it("may be refused with a reason", () => {
    const pair = new Pair({ capture: true });
    pair.agent.autoAccept = false;
    const id = pair.edge.open();
    pair.settle();
    pair.agent.reset(id, ResetCode.targetRefused);
    pair.settle();
    expect(conversation(pair, 1)).toEqual(["agent → edge 1: reset 1 code 2", "edge → agent 1: closed 1"]);
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.targetRefused, by: "peer" });
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });

  it("carries early data before it is accepted, up to the credit of the greeting", () => {
    const pair = new Pair({ initialCredit: 10_000 });
    pair.agent.autoAccept = false;
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.edge.send(id, 30_000);
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(10_000);
    pair.agent.accept(id);
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(30_000);
  });

  it("carries nothing early when the greeting gives no credit", () => {
    const pair = new Pair({ initialCredit: 0 });
    pair.agent.autoAccept = false;
    const id = pair.edge.open();
    pair.edge.send(id, 100);
    pair.edge.end(id);
    pair.settle();
    expect(pair.agent.stream(id)).toMatchObject({ received: 0, endSeen: false });
    pair.agent.accept(id);
    pair.settle();
    expect(pair.agent.stream(id)).toMatchObject({ received: 100, endSeen: true });
  });

  it("says nothing of the agent's before it is accepted", () => {
    const pair = new Pair();
    pair.agent.autoAccept = false;
    const id = pair.edge.open();
    pair.settle();
    expect(() => pair.agent.session.write(id, new Uint8Array(1))).toThrow("write before accept");
    expect(() => pair.agent.session.end(id)).toThrow("end before accept");
  });

  it("takes no bytes after its end", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.edge.session.end(id);
    expect(() => pair.edge.session.write(id, new Uint8Array(1))).toThrow("write after end");
  });

  it("refuses to count its end before its bytes", () => {
    const pair = new Pair();
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.edge.send(id, 10);
    pair.edge.end(id);
    pair.settle();
    expect(() => pair.agent.session.consumeEnd(id)).toThrow(RangeError);
  });

  it("is opened by the edge alone and accepted by the agent alone", () => {
    const pair = new Pair();
    expect(() => pair.agent.tryOpen()).toThrow("only the edge");
    expect(() => pair.edge.session.accept(1, "")).toThrow("only the agent");
  });

  it("is not opened when the agent would refuse the request as malformed, and costs no id", () => {
    const pair = new Pair();
    const request = { connection: "c", target: "a\nb", deployment: "d", partner: "" };
    expect(() => pair.edge.session.open(request)).toThrow(RangeError);
    expect(pair.edge.session.streamCount).toBe(0);
    expect(pair.edge.open()).toBe(1);
  });
});

describe("half-close", () => {
  const directions = ["edge", "agent"] as const;

  it.each(directions)("lets the other direction go on when the %s ends first", (first) => {
    const pair = new Pair();
    const other = first === "edge" ? "agent" : "edge";
    const id = pair.edge.open();
    pair.settle();
    pair.end(first).send(id, 1_000);
    pair.end(first).end(id);
    pair.settle();
    expect(pair.end(other).stream(id)).toMatchObject({ received: 1_000, endSeen: true, outcome: undefined });
    pair.end(other).send(id, 500_000);
    pair.settle();
    expect(pair.end(first).stream(id)).toMatchObject({ received: 500_000, endSeen: false });
    pair.end(other).end(id);
    pair.settle();
    expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["finished", "finished"]);
  });

  it("of both ends may cross", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 100_000);
    pair.agent.send(id, 100_000);
    finish(pair, id);
    expect([pair.edge.stream(id), pair.agent.stream(id)]).toMatchObject([
      { received: 100_000, outcome: "finished" },
      { received: 100_000, outcome: "finished" },
    ]);
  });

  it("of a stream without bytes ends it", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    finish(pair, id);
    expect(pair.edge.stream(id).outcome).toBe("finished");
  });

  it("before the stream is accepted reaches the agent behind the early data", () => {
    const pair = new Pair();
    pair.agent.autoAccept = false;
    const id = pair.edge.open();
    pair.edge.send(id, 10);
    pair.edge.end(id);
    pair.settle();
    expect(pair.agent.stream(id)).toMatchObject({ received: 10, endSeen: true });
    pair.agent.accept(id);
    pair.agent.send(id, 20);
    pair.agent.end(id);
    pair.settle();
    expect(pair.edge.stream(id)).toMatchObject({ received: 20, outcome: "finished" });
  });

  it("is not through before the destination has it", () => {
    const pair = new Pair();
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.settle();
    pair.agent.end(id);
    pair.edge.send(id, 10);
    pair.edge.end(id);
    pair.settle();
    expect(pair.edge.stream(id).outcome).toBeUndefined();
    pair.agent.stream(id).autoConsume = true;
    pair.agent.consume(id);
    pair.settle();
    expect(pair.edge.stream(id).outcome).toBe("finished");
  });
});

describe("a reset", () => {
  it.each(["edge", "agent"] as const)("by the %s ends both directions in the middle of a transfer", (side) => {
    const pair = new Pair();
    const other = side === "edge" ? "agent" : "edge";
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 10_000_000);
    pair.agent.send(id, 10_000_000);
    pair.run(35);
    pair.end(side).reset(id, ResetCode.connectionReset);
    pair.settle();
    expect(pair.end(other).stream(id)).toMatchObject({
      outcome: { code: ResetCode.connectionReset, by: "peer" },
      endSeen: false,
    });
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
    expect([pair.edge.session.heldBytes, pair.agent.session.heldBytes]).toEqual([0, 0]);
  });

  it("after an end is a reset and no end", () => {
    const pair = new Pair();
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.edge.send(id, 1_000_000);
    pair.edge.end(id);
    pair.run(100);
    pair.edge.reset(id, ResetCode.connectionReset);
    pair.settle();
    expect(pair.agent.stream(id)).toMatchObject({ endSeen: false, outcome: { code: ResetCode.connectionReset } });
  });

  it("of both ends may cross: neither hears of the other's", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.edge.reset(id, ResetCode.connectionReset);
    pair.agent.reset(id, ResetCode.targetTimeout);
    pair.settle();
    expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["local", "local"]);
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });

  it("before its OPEN went out goes out alone, and costs the edge no budget at the agent", () => {
    const pair = new Pair({ capture: true });
    for (let count = 0; count < 10_000; count += 1) {
      pair.edge.reset(pair.edge.open(), ResetCode.cancelled);
      if (count % 500 === 0) pair.settle();
    }
    pair.settle();
    expect(pair.agent.opens).toEqual([]);
    expect(conversation(pair).slice(0, 2)).toEqual(["edge → agent 1: reset 1 code 17", "agent → edge 1: closed 1"]);
    // The one is the PING of the new link.
    expect(pair.agent.session).toMatchObject({ ended: false, counters: { uselessFrames: 1 } });
    expect(pair.edge.session).toMatchObject({ ended: false, streamCount: 0 });
  });

  it("keeps the stream's place until the peer has confirmed it", () => {
    const pair = new Pair({ maxStreams: 1 });
    pair.edge.reset(pair.edge.open(), ResetCode.cancelled);
    expect(pair.edge.tryOpen()).toBe("streamLimit");
    pair.settle();
    expect(pair.edge.tryOpen()).toBe(2);
  });

  it("code that is not known is handed on as a number", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.agent.session.reset(id, 999 as ResetCode);
    pair.settle();
    expect(pair.edge.stream(id).outcome).toEqual({ code: 999, by: "peer" });
  });

  it("of many streams at once, crossing, is honest", () => {
    const pair = new Pair({ maxStreams: 5_000 });
    const ids = Array.from({ length: 5_000 }, () => pair.edge.open());
    pair.settle();
    for (const id of ids) {
      pair.edge.send(id, 1);
      pair.agent.send(id, 1);
      pair.edge.reset(id, ResetCode.killed);
      pair.agent.reset(id, ResetCode.killed);
    }
    pair.settle();
    expect([pair.edge.session.ended, pair.agent.session.ended]).toEqual([false, false]);
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });
});

describe("credit", () => {
  it("comes back when bytes are consumed, not when they arrive", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.agent.stream(id).autoConsume = false;
    pair.edge.send(id, 1_000_000);
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(WINDOW);
    pair.agent.consume(id, WINDOW / 4 - 1);
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(WINDOW);
    pair.agent.consume(id, 1);
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(WINDOW + WINDOW / 4);
  });

  it("holds one window and one chunk at the sender and one window at the receiver", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.agent.stream(id).autoConsume = false;
    pair.edge.send(id, 100_000_000);
    pair.settle();
    expect(pair.edge.session.heldBytes).toBeLessThanOrEqual(WINDOW + pair.edge.chunkBytes);
    expect(pair.agent.session.heldBytes).toBe(WINDOW);
    expect(pair.edge.session.acknowledgedBytes(id)).toBe(0);
  });

  it("of a reader that stalls stalls its own stream only", () => {
    const pair = new Pair();
    const ids = Array.from({ length: 20 }, () => pair.edge.open());
    pair.settle();
    pair.agent.stream(ids[0]!).autoConsume = false;
    for (const id of ids) pair.edge.send(id, 3_000_000);
    pair.settle();
    const received = ids.map((id) => pair.agent.stream(id).received);
    expect(received).toEqual([WINDOW, ...Array.from({ length: 19 }, () => 3_000_000)]);
  });

  it("without end does not make the sender hold without end", () => {
    const pair = new Pair({ edge: { sendBufferBytes: 200_000 } });
    const id = pair.edge.open();
    pair.settle();
    pair.agent.stream(id).autoConsume = false;
    const generous = { type: "credit", stream: id, consumed: 0, limit: Number.MAX_SAFE_INTEGER } as const;
    pair.inject("edge", creditFrame(generous));
    pair.edge.send(id, 50_000_000);
    expect(pair.edge.session.heldBytes).toBeLessThanOrEqual(200_000 + pair.edge.chunkBytes);
  });

  it("flows through a sender that holds less than the receiver's window", () => {
    const pair = new Pair({ edge: { sendBufferBytes: 1 }, agent: { windowBytes: 8_388_608 } });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 5_000_000);
    finish(pair, id);
    expect(pair.agent.stream(id)).toMatchObject({ received: 5_000_000, outcome: "finished" });
  });

  it("is told before it is needed: a transfer does not wait for a round trip per window", () => {
    const pair = new Pair({ latencyMs: 10, capture: true });
    const id = pair.edge.open();
    pair.settle();
    const start = pair.now;
    pair.edge.send(id, 40 * WINDOW);
    pair.settle();
    // A window per round trip of 20 ms, and the links carry 128 KiB at a time: 20 ms for each window.
    expect(pair.now - start).toBeLessThan(41 * 20 + 40);
  });
});

function creditFrame(credit: { stream: number; consumed: number; limit: number }): Uint8Array {
  const bytes = new Uint8Array(22);
  const view = new DataView(bytes.buffer);
  bytes[0] = 0x14;
  view.setUint32(1, credit.stream);
  view.setBigUint64(5, BigInt(credit.consumed));
  view.setBigUint64(13, BigInt(credit.limit));
  return bytes;
}

describe("turns", () => {
  /** The streams of the DATA frames that one full link takes at once. */
  function poll(session: Session, link = 1, bytes = 65_536): { stream: number; length: number }[] {
    const frames: { stream: number; length: number }[] = [];
    const writer = new FrameWriter(new Uint8Array(bytes), {
      headerBytes: () => 8,
      writeHeader: (out, at, length) => {
        frames.push({ stream: at, length });
        out.fill(0, at, at + 8);
      },
    });
    session.poll(link, writer, 0);
    const view = new DataView(writer.bytes.buffer);
    return frames
      .filter(({ stream: at }) => writer.bytes[at + 8] === 0x10)
      .map(({ stream: at, length }) => ({ stream: view.getUint32(at + 9), length }));
  }

  function edgeWith(streams: number): { session: Session; ids: number[] } {
    const session = new Session({ role: "edge", maxStreams: 1_000, initialCredit: 16_777_216 });
    session.attach(1, 0);
    const ids = Array.from({ length: streams }, () =>
      session.open({ connection: "c", target: "t", deployment: "d", partner: "" }),
    ) as number[];
    return { session, ids };
  }

  it("go round: every bulk stream has a frame before one has two", () => {
    const { session, ids } = edgeWith(10);
    for (const id of ids) for (let count = 0; count < 4; count += 1) session.write(id, new Uint8Array(65_536));
    const order: number[] = [];
    while (order.length < 100) order.push(...poll(session).map(({ stream }) => stream));
    for (let round = 0; round < 9; round += 1) {
      expect(new Set(order.slice(round * 10, round * 10 + 10)).size).toBe(10);
    }
  });

  it("let a keystroke pass before megabytes of others", () => {
    const { session, ids } = edgeWith(51);
    const [keys, ...bulk] = ids as [number, ...number[]];
    for (const id of bulk) session.write(id, new Uint8Array(1_000_000));
    // All of them were fresh once.
    while (!poll(session).some(({ stream }) => stream === bulk.at(-1)));
    session.write(keys, new Uint8Array(1));
    expect(poll(session)[0]?.stream).toBe(keys);
  });

  it("let no streams that are always fresh starve the others", () => {
    const { session, ids } = edgeWith(41);
    const [bulk, ...chatty] = ids as [number, ...number[]];
    session.write(bulk, new Uint8Array(4_000_000));
    for (const id of chatty) session.write(id, new Uint8Array(4_000));
    let served = 0;
    for (let round = 0; round < 45; round += 1) {
      const turns = poll(session).map(({ stream }) => stream);
      served += turns.filter((stream) => stream === bulk).length;
      // Each has something new as soon as it has nothing left, and there are more of them than a write has room for.
      for (const id of chatty) if (turns.includes(id)) session.write(id, new Uint8Array(4_000));
    }
    // About 16 frames a round for 41 streams.
    expect(served).toBeGreaterThanOrEqual(15);
  });

  it("put control frames before data", () => {
    const pair = new Pair({ capture: true });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 1_000_000);
    pair.edge.open();
    pair.edge.session.goAway(CloseCode.drain, "");
    const sent = pair.transcript.length;
    pair.settle();
    const types = pair.transcript.slice(sent, sent + 3).map(({ frame }) => frame.type);
    expect(types).toEqual(["goAway", "open", "data"]);
  });

  it("share a link fairly among many streams that transfer at once", () => {
    const pair = new Pair({ latencyMs: 5 });
    const ids = Array.from({ length: 100 }, () => pair.edge.open());
    pair.settle();
    for (const id of ids) pair.edge.send(id, 10_000_000);
    pair.run(1_000);
    const received = ids.map((id) => pair.agent.stream(id).received);
    expect(Math.min(...received)).toBeGreaterThan(0);
    expect(Math.max(...received) - Math.min(...received)).toBeLessThanOrEqual(2 * MAX_DATA_BYTES);
  });

  it("are done in frames of one TLS record", () => {
    const { session, ids } = edgeWith(1);
    session.write(ids[0]!, new Uint8Array(1_000_000));
    poll(session);
    expect(poll(session).map(({ length }) => length)).toEqual([16_376, 16_376, 16_376, 16_376]);
  });
});

describe("limits", () => {
  it("refuse at the edge what the agent would refuse", () => {
    const pair = new Pair({ maxStreams: 3 });
    const ids = [pair.edge.open(), pair.edge.open(), pair.edge.open()];
    expect(pair.edge.tryOpen()).toBe("streamLimit");
    pair.settle();
    expect(pair.edge.tryOpen()).toBe("streamLimit");
    finish(pair, ids[0]!);
    expect(pair.edge.tryOpen()).toBe(4);
  });

  it("are held by the agent when the edge does not hold them, without state", () => {
    const pair = new Pair({ maxStreams: 1_000, agent: { maxStreams: 3 } });
    const ids = Array.from({ length: 10 }, () => pair.edge.open());
    pair.settle();
    expect(pair.agent.session.streamCount).toBe(3);
    expect(pair.agent.opens).toHaveLength(3);
    expect(ids.slice(3).map((id) => pair.edge.stream(id).outcome)).toEqual(
      Array.from({ length: 7 }, () => ({ code: ResetCode.limit, by: "peer" })),
    );
    expect(pair.edge.session.streamCount).toBe(3);
  });

  it("open nothing without a link", () => {
    const pair = new Pair({ links: 0 });
    expect(pair.edge.tryOpen()).toBe("noLink");
  });
});

describe("going away", () => {
  it("lets running streams finish and takes no new ones", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.agent.session.goAway(CloseCode.drain, "update");
    pair.settle();
    expect(pair.edge.events.at(-1)).toEqual({ type: "goAway", code: CloseCode.drain, reason: "update" });
    expect(pair.edge.session.draining).toBe(true);
    expect(pair.edge.tryOpen()).toBe("draining");
    pair.edge.send(id, 500_000);
    finish(pair, id);
    expect(pair.agent.stream(id)).toMatchObject({ received: 500_000, outcome: "finished" });
  });

  it("refuses an open that was under way, with a code that says why", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.run(1);
    pair.agent.session.goAway(CloseCode.drain, "");
    pair.settle();
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.shutdown, by: "peer" });
    expect(pair.agent.opens).toEqual([]);
  });

  it("is said again on every link that comes, and heard once", () => {
    const pair = new Pair();
    pair.edge.session.goAway(CloseCode.drain, "update");
    pair.edge.session.goAway(CloseCode.drain, "again");
    pair.addLink();
    pair.settle();
    pair.loseLink(1);
    pair.addLink();
    pair.settle();
    expect(pair.agent.events.filter(({ type }) => type === "goAway")).toEqual([
      { type: "goAway", code: CloseCode.drain, reason: "update" },
    ]);
    expect(pair.agent.session.ended).toBe(false);
  });
});

describe("closing", () => {
  it("resets every stream here at once, and drops what its links still deliver", () => {
    const pair = new Pair();
    const ids = [pair.edge.open(), pair.edge.open()];
    pair.settle();
    pair.edge.send(ids[0]!, 1_000);
    pair.agent.send(ids[1]!, 1_000_000);
    pair.edge.session.close(CloseCode.authentication, "revoked");
    pair.settle();
    expect(pair.edge.events.slice(2)).toEqual([
      { type: "reset", stream: 1, code: ResetCode.revoked, by: "session" },
      { type: "reset", stream: 2, code: ResetCode.revoked, by: "session" },
      { type: "linkLost", link: 1, code: CloseCode.authentication, reason: "revoked" },
      { type: "ended", code: CloseCode.authentication, reason: "revoked" },
    ]);
    expect(pair.edge.session).toMatchObject({
      ended: true,
      draining: true,
      streamCount: 0,
      linkCount: 0,
      heldBytes: 0,
    });
  });

  it("happens once, and everything after it is without effect", () => {
    const { edge } = new Pair();
    const { session } = edge;
    const id = edge.open();
    session.close(CloseCode.drain, "");
    session.close(CloseCode.protocol, "");
    session.write(id, new Uint8Array(1));
    session.consume(id, 1);
    session.end(id);
    session.reset(id, ResetCode.killed);
    session.goAway(CloseCode.drain, "");
    session.detach(1, 0);
    session.tick(1e9);
    const events = Array.from({ length: 4 }, () => session.takeEvent()?.type);
    expect(events).toEqual(["reset", "linkLost", "ended", undefined]);
    expect(session.nextTimeout()).toBeUndefined();
    expect(() => session.attach(2, 0)).toThrow("ended");
  });

  it.each([
    [CloseCode.drain, ResetCode.shutdown],
    [CloseCode.protocol, ResetCode.protocolViolation],
    [CloseCode.tooLarge, ResetCode.protocolViolation],
    [CloseCode.budget, ResetCode.protocolViolation],
    [CloseCode.replaced, ResetCode.replaced],
    [CloseCode.authentication, ResetCode.revoked],
    [CloseCode.sessionUnknown, ResetCode.sessionUnknown],
    [CloseCode.timeout, ResetCode.sessionLost],
  ])("with %i resets streams with %i", (closeCode, resetCode) => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.edge.session.close(closeCode, "");
    pair.settle();
    expect(pair.edge.stream(id).outcome).toEqual({ code: resetCode, by: "session" });
  });
});

describe("a write of many OPENs", () => {
  it("never takes one that is longer than what is left, whatever their texts", () => {
    const session = new Session({ role: "edge", maxStreams: 10_000, initialCredit: 0 });
    session.attach(1, 0);
    const framing = { headerBytes: () => 4, writeHeader: () => undefined };
    const writer = new FrameWriter(new Uint8Array(65_536), framing);
    const name = "n".repeat(255);
    const address = "a".repeat(64);
    for (let length = 1; length <= 300; length += 7) {
      const target = "t".repeat(length);
      for (let count = 0; count < 200; count += 1) {
        session.open({
          connection: address,
          target,
          deployment: name,
          partner: address,
          proxy: [2, address, address, name, name],
        });
      }
      for (let writes = 0; writes < 5; writes += 1) {
        writer.clear();
        session.poll(1, writer, 0);
        expect(writer.used).toBeLessThanOrEqual(65_536);
      }
    }
    expect(session.streamCount).toBe(43 * 200);
  });
});
