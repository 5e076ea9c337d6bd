/** Streams and the links they run on: what is lost with a link, and how both ends find together again. */
import { describe, expect, it } from "vitest";
import { LoneSession } from "../../../test/support/lone-session.ts";
import { Pair, type SentFrame } from "../../../test/support/pair.ts";
import { CloseCode, ResetCode } from "./codes.ts";
import { encodeFrame, type ResumeFrame } from "./frame.ts";

const TOTAL = 700_000;

/** What is left to say of a stream that is through: everything arrived, nobody keeps anything. */
function ending(pair: Pair, id: number): object {
  const [edge, agent] = [pair.edge.stream(id), pair.agent.stream(id)];
  return {
    outcomes: [edge.outcome, agent.outcome],
    missing: [agent.written - edge.received, edge.written - agent.received],
    streams: [pair.edge.session.streamCount, pair.agent.session.streamCount],
  };
}

const whole = { outcomes: ["finished", "finished"], missing: [0, 0], streams: [0, 0] };

/** Loses the link of the `nth` frame that `matches`, with that frame. */
function loseOnce(pair: Pair, matches: (sent: SentFrame) => boolean, nth = 1): { lost: boolean } {
  const state = { lost: false };
  let left = nth;
  pair.loseAt = (sent) => {
    if (state.lost || !matches(sent)) return false;
    left -= 1;
    state.lost = left === 0;
    return state.lost;
  };
  return state;
}

describe.each([1, 2, 4])("with %i links, one of which is lost", (links) => {
  const type = (name: SentFrame["frame"]["type"]) => (sent: SentFrame) => sent.frame.type === name;
  const endConsumed = (from: "edge" | "agent") => (sent: SentFrame) =>
    sent.from === from && sent.frame.type === "credit" && sent.frame.endConsumed;

  it.each<[string, (sent: SentFrame) => boolean, number]>([
    ["OPEN", type("open"), 1],
    ["ACCEPT", type("accept"), 1],
    ["the first DATA", type("data"), 1],
    ["DATA of the edge", (sent) => sent.from === "edge" && sent.frame.type === "data", 12],
    ["DATA of the agent", (sent) => sent.from === "agent" && sent.frame.type === "data", 12],
    ["the first CREDIT", type("credit"), 1],
    ["a later CREDIT", type("credit"), 7],
    ["END of the edge", (sent) => sent.from === "edge" && sent.frame.type === "end", 1],
    ["END of the agent", (sent) => sent.from === "agent" && sent.frame.type === "end", 1],
    ["the edge's last CREDIT", endConsumed("edge"), 1],
    ["the agent's last CREDIT", endConsumed("agent"), 1],
  ])("a stream loses nothing with %s", (_, matches, nth) => {
    const pair = new Pair({ links });
    const loss = loseOnce(pair, matches, nth);
    const id = pair.edge.open();
    pair.edge.send(id, TOTAL);
    pair.edge.end(id);
    pair.settle();
    if (links === 1 && loss.lost) pair.addLink();
    pair.settle();
    pair.agent.send(id, TOTAL);
    pair.agent.end(id);
    pair.settle();
    if (links === 1) pair.addLink();
    pair.settle();
    expect(loss.lost).toBe(true);
    expect(ending(pair, id)).toEqual(whole);
  });

  it.each<[string, (sent: SentFrame) => boolean]>([
    ["RESET", type("reset")],
    ["CLOSED", type("closed")],
  ])("a reset stream is gone at both ends though %s was lost", (_, matches) => {
    const pair = new Pair({ links });
    const loss = loseOnce(pair, matches);
    const id = pair.edge.open();
    pair.settle();
    pair.agent.reset(id, ResetCode.connectionReset);
    pair.settle();
    if (links === 1) pair.addLink();
    pair.settle();
    expect(loss.lost).toBe(true);
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.connectionReset, by: "peer" });
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });

  it("a refusal that was lost is told again, if not its code", () => {
    const pair = new Pair({ links, maxStreams: 10, agent: { maxStreams: 1 } });
    pair.edge.open();
    pair.settle();
    loseOnce(pair, type("reset"));
    const id = pair.edge.open();
    pair.settle();
    if (links === 1) pair.addLink();
    pair.settle();
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.stateLost, by: "peer" });
    expect(pair.edge.session.streamCount).toBe(1);
  });
});

describe("a link that is lost", () => {
  it.each([
    ["the edge notices at once and the agent later", { edgeNoticesMs: 0, agentNoticesMs: 500 }],
    ["the agent notices at once and the edge later", { edgeNoticesMs: 500, agentNoticesMs: 0 }],
    ["what was sent still arrives at the agent", { edgeNoticesMs: 0, agentNoticesMs: 500, deliverInFlight: true }],
    ["what was sent still arrives at the edge", { edgeNoticesMs: 500, agentNoticesMs: 0, deliverInFlight: true }],
    ["only the edge's heartbeat notices", { edgeNoticesMs: undefined, agentNoticesMs: 0 }],
    ["only the agent's heartbeat notices", { edgeNoticesMs: 0, agentNoticesMs: undefined }],
    ["only heartbeats notice", { edgeNoticesMs: undefined, agentNoticesMs: undefined }],
  ])("loses no byte when %s", (_, loss) => {
    const pair = new Pair({ links: 2 });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 3 * TOTAL);
    pair.agent.send(id, 3 * TOTAL);
    pair.run(95);
    pair.loseLink(1, loss);
    pair.run(30_000);
    pair.edge.end(id);
    pair.agent.end(id);
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
  });

  it("delays its streams by one round trip", () => {
    const roundTripMs = 50;
    const pair = new Pair({ links: 2, latencyMs: roundTripMs / 2 });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 50 * TOTAL);
    pair.agent.send(id, 50 * TOTAL);
    pair.run(500);
    pair.loseLink(1);
    const before = [pair.edge, pair.agent].map((end) => end.stream(id).received);
    // RESUME goes there, and what follows it comes back.
    pair.run(roundTripMs + 1);
    const after = [pair.edge, pair.agent].map((end) => end.stream(id).received);
    expect(after[0]).toBeGreaterThan(before[0]!);
    expect(after[1]).toBeGreaterThan(before[1]!);
  });

  it("moves its streams to the least loaded of the others and leaves theirs alone", () => {
    const pair = new Pair({ links: 3, capture: true });
    const ids = Array.from({ length: 9 }, () => pair.edge.open());
    pair.settle();
    const sent = pair.transcript.length;
    pair.loseLink(1);
    pair.settle();
    const moved = pair.transcript.slice(sent).flatMap(({ frame }) => (frame.type === "resume" ? [frame.stream] : []));
    expect(new Set(moved)).toEqual(new Set([ids[0], ids[3], ids[6]]));
    const links = pair.transcript
      .slice(sent)
      .filter(({ from }) => from === "edge")
      .map(({ link }) => link);
    expect(new Set(links)).toEqual(new Set([2, 3]));
  });

  it("sends again what had not arrived, and nothing else", () => {
    const pair = new Pair({ links: 2 });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 200_000);
    pair.settle();
    pair.loseLink(1);
    pair.settle();
    expect(pair.edge.session.counters).toMatchObject({ retransmittedBytes: 0, linksLost: 1 });
    pair.edge.send(id, 100_000);
    // The first pull is under way, nothing of it has arrived.
    pair.run(5);
    pair.loseLink(2);
    pair.addLink();
    pair.settle();
    expect(pair.edge.session.counters).toMatchObject({ retransmittedBytes: 100_000, linksLost: 2, resumptions: 1 });
  });

  it("while its streams wait for an answer on another that is lost as well, loses no byte", () => {
    const pair = new Pair({ links: 4 });
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, TOTAL);
    pair.agent.send(id, TOTAL);
    for (const link of [1, 2, 3]) {
      pair.run(5);
      pair.loseLink(link);
    }
    pair.edge.end(id);
    pair.agent.end(id);
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
  });

  it("is known by its ping: the round trip is measured and smoothed", () => {
    const pair = new Pair({ latencyMs: 10 });
    expect(pair.edge.session.roundTripMs(1)).toBeUndefined();
    // The first PING goes out with the link.
    pair.run(20);
    expect([pair.edge.session.roundTripMs(1), pair.agent.session.roundTripMs(1)]).toEqual([20, 20]);
    const slow = pair.addLink({ toEdge: 300, toAgent: 100 });
    pair.run(400);
    expect(pair.edge.session.roundTripMs(slow)).toBe(400);
    pair.run(11_000);
    expect(pair.edge.session.roundTripMs(slow)).toBe(400);
    expect(pair.edge.session.roundTripMs(99)).toBeUndefined();
  });

  it("is not declared dead while pongs come, for ever", () => {
    const pair = new Pair({ links: 2 });
    pair.run(3_600_000);
    expect([pair.edge.session.linkCount, pair.agent.session.linkCount]).toEqual([2, 2]);
    expect(pair.edge.session.counters.uselessFrames).toBeLessThanOrEqual(2 * 360);
  });

  it("is declared dead after the heartbeat timeout and not before", () => {
    const pair = new Pair();
    pair.run(10_500);
    pair.loseLink(1, { edgeNoticesMs: undefined, agentNoticesMs: undefined });
    const lastHeard = 10_010 + 1_000 + 10;
    pair.run(lastHeard + 25_000 - pair.now - 1);
    expect(pair.edge.session.linkCount).toBe(1);
    pair.run(1);
    expect(pair.edge.session.linkCount).toBe(0);
    expect(pair.edge.events).toEqual([
      { type: "linkLost", link: 1, code: CloseCode.timeout, reason: "nothing heard" },
      { type: "detached" },
    ]);
  });

  it("delivers nothing any more: the latch is the session's own", () => {
    const pair = new Pair({ links: 2 });
    const id = pair.edge.open();
    pair.settle();
    pair.loseLink(1, { edgeNoticesMs: undefined });
    pair.inject("agent", encodeFrame({ type: "reset", stream: id, offset: 0, code: 0 }), 1);
    pair.inject("agent", new Uint8Array([0xff]), 1);
    expect(pair.agent.session).toMatchObject({ streamCount: 1, ended: false });
  });
});

describe("requests to resume", () => {
  /** One stream on link 1; when link 1 is lost the edge takes link 3, because of its load, and the agent link 2. */
  function crossed(latencyMs: { two: number; three: number }): { pair: Pair; id: number } {
    const pair = new Pair({ latencyMs: 10, capture: true });
    const id = pair.edge.open();
    pair.settle();
    // An OPEN that is on its way makes the edge think link 2 loaded; the agent does not know of it.
    const two = pair.addLink({ toEdge: latencyMs.two, toAgent: 2_000 });
    pair.edge.open();
    pair.run(1);
    pair.addLink({ toEdge: latencyMs.three, toAgent: latencyMs.three });
    expect(two).toBe(2);
    return { pair, id };
  }

  const requests = (pair: Pair, id: number) =>
    pair.transcript.flatMap(({ from, link, frame }) =>
      frame.type === "resume" && frame.stream === id && frame.answers === 0 ? [`${from} on ${link}`] : [],
    );

  it("of both ends may cross on two links: each end follows the other's, and no byte is lost", () => {
    const { pair, id } = crossed({ two: 10, three: 10 });
    pair.edge.send(id, TOTAL);
    pair.agent.send(id, TOTAL);
    pair.run(15);
    pair.loseLink(1);
    pair.run(2_000);
    expect(requests(pair, id)).toEqual(["edge on 3", "agent on 2"]);
    pair.edge.end(id);
    pair.agent.end(id);
    pair.settle();
    expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["finished", "finished"]);
  });

  it("that was overtaken by an answer and by credit does not look like a peer that was rolled back", () => {
    const { pair, id } = crossed({ two: 5_000, three: 10 });
    pair.loseLink(1);
    // The agent's request crawls along link 2 while the stream goes on on link 3.
    pair.run(100);
    pair.edge.send(id, TOTAL);
    pair.agent.send(id, TOTAL);
    pair.run(1_000);
    expect([pair.edge.stream(id).received, pair.agent.stream(id).received]).toEqual([TOTAL, TOTAL]);
    pair.run(10_000);
    expect(pair.edge.stream(id).outcome).toBeUndefined();
    pair.edge.end(id);
    pair.agent.end(id);
    pair.settle();
    expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["finished", "finished"]);
  });

  it("that crossed are remembered: a stream whose peer finished on the other's link does not wait for ever", () => {
    const { pair, id } = crossed({ two: 10, three: 10 });
    pair.agent.stream(id).autoConsume = false;
    pair.edge.end(id);
    pair.agent.end(id);
    pair.run(100);
    pair.loseLink(1);
    pair.run(100);
    // The edge speaks on link 2 and the agent on link 3. Its last word is lost with that link, and it forgets.
    loseOnce(pair, ({ from, frame }) => from === "agent" && frame.type === "credit" && frame.endConsumed);
    pair.agent.stream(id).autoConsume = true;
    pair.agent.consume(id);
    pair.run(100);
    expect(
      pair.transcript.some(({ from, link, frame }) => from === "agent" && link === 3 && frame.type === "credit"),
    ).toBe(true);
    // The edge asks on link 2, on which it takes two seconds to reach the agent.
    pair.run(5_000);
    expect([pair.agent.stream(id).outcome, pair.edge.stream(id).outcome]).toEqual(["finished", "finished"]);
  });

  it("are answered before the stream is forgotten, though they bring its end", () => {
    const pair = new Pair({ latencyMs: 0 });
    pair.edge.autoConsume = false;
    pair.agent.autoConsume = false;
    const id = pair.edge.open();
    pair.settle();
    pair.edge.end(id);
    pair.agent.end(id);
    pair.settle();
    pair.loseLink(1, { edgeNoticesMs: 700 });
    // The edge's last credit goes to a dead link.
    pair.edge.consume(id);
    pair.run(1);
    pair.agent.consume(id);
    pair.addLink();
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
  });

  it("of a stream that this end does not know are answered with CLOSED", () => {
    const edge = new LoneSession("edge");
    const id = edge.open();
    edge.sent();
    edge.receive({ type: "reset", stream: id, offset: 0, code: 2 });
    edge.receive(resume({ stream: id, epoch: 1 }));
    expect(edge.sent()).toEqual(["closed 1", "closed 1"]);
  });

  it("that are answered with CLOSED end the stream: the peer's state is lost", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.inject("edge", encodeFrame({ type: "closed", stream: id }));
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.stateLost, by: "peer" });
  });

  it("by a peer that was rolled back reset the stream at both ends", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.edge.send(id, 200_000);
    pair.settle();
    pair.inject(
      "edge",
      encodeFrame(resume({ stream: id, epoch: 1, received: 1_000, consumed: 1_000, limit: 300_000 })),
    );
    pair.settle();
    expect(pair.edge.stream(id).outcome).toEqual({ code: ResetCode.stateLost, by: "session" });
    expect(pair.agent.stream(id).outcome).toEqual({ code: ResetCode.stateLost, by: "peer" });
  });

  it("that repeat an older number change nothing", () => {
    const edge = new LoneSession("edge", { links: 2 });
    const id = accepted(edge);
    edge.receive(resume({ stream: id, epoch: 5 }), 2);
    expect(edge.sent(2)).toEqual(["resume 1 answer 5 from 0"]);
    edge.receive(resume({ stream: id, epoch: 5 }), 1).receive(resume({ stream: id, epoch: 4 }), 1);
    edge.session.write(id, new Uint8Array(1));
    expect([edge.sent(1), edge.sent(2)]).toEqual([[], ["data 1 0+1"]]);
    expect(edge.session.counters.uselessFrames).toBe(2);
  });

  it("are overtaken by an answer of the same end that says so", () => {
    const edge = new LoneSession("edge", { links: 3 });
    const id = accepted(edge);
    edge.session.detach(1, edge.now);
    expect(edge.sent(2)).toEqual(["resume 1 request 1 from 0"]);
    edge.receive(resume({ stream: id, epoch: 3, answers: 1 }), 2);
    edge.receive(resume({ stream: id, epoch: 3 }), 3);
    expect(edge.sent(3)).toEqual([]);
    expect(edge.session.counters.uselessFrames).toBe(1);
  });

  it("that say the END did not arrive do not make a finished peer look like one that lost its state", () => {
    const edge = new LoneSession("edge", { links: 2 });
    const id = accepted(edge);
    edge.session.end(id);
    edge.receive({ type: "end", stream: id, offset: 0 });
    edge.session.consumeEnd(id);
    expect(edge.sent()).toEqual(["credit 1 0/262144 end", "end 1 0"]);
    edge.receive(resume({ stream: id, epoch: 1 }), 2).receive({ type: "closed", stream: id }, 2);
    expect(edge.lines().at(-1)).toBe("finished 1");
  });

  it("of an edge that has heard no ACCEPT bring the OPEN and then the ACCEPT again, on the new link", () => {
    const agent = new LoneSession("agent", { links: 2 });
    agent.receive(openFrame);
    agent.session.accept(1, "10.0.0.1:22");
    expect(agent.sent(1)).toEqual(["accept 1"]);
    agent.receive(openFrame, 2);
    // Where to speak is known with the request only.
    expect([agent.sent(1), agent.sent(2)]).toEqual([[], []]);
    agent.receive(resume({ stream: 1, epoch: 1, limit: 262_144 }), 2);
    expect(agent.sent(2)).toEqual(["accept 1", "resume 1 answer 1 from 0"]);
  });

  it("make an edge that has heard no ACCEPT repeat its OPEN", () => {
    const edge = new LoneSession("edge", { links: 2 });
    const id = edge.open();
    expect(edge.sent()).toEqual(["open 1 sftp"]);
    edge.receive(resume({ stream: id, epoch: 1 }), 2);
    expect(edge.sent(2)).toEqual(["open 1 sftp", "resume 1 answer 1 from 0"]);
  });

  const openFrame = {
    type: "open",
    stream: 1,
    connection: "c-1",
    target: "sftp",
    deployment: "d",
    partner: "",
    limit: 262_144,
  } as const;

  function accepted(edge: LoneSession): number {
    const id = edge.open();
    edge.sent();
    edge.receive({ type: "accept", stream: id, address: "", limit: 262_144 });
    return id;
  }

  function resume(frame: Partial<ResumeFrame> & { readonly stream: number; readonly epoch: number }): ResumeFrame {
    return {
      type: "resume",
      answers: 0,
      received: 0,
      consumed: 0,
      limit: 262_144,
      endReceived: false,
      endConsumed: false,
      ...frame,
    };
  }
});

describe("a session without links", () => {
  it("waits, and goes on where it was", () => {
    const pair = new Pair({ links: 2 });
    const ids = Array.from({ length: 10 }, () => pair.edge.open());
    pair.settle();
    for (const id of ids) {
      pair.edge.send(id, TOTAL);
      pair.agent.send(id, TOTAL);
      pair.edge.end(id);
      pair.agent.end(id);
    }
    pair.run(60);
    pair.loseLink(1);
    pair.loseLink(2);
    expect(pair.edge.events.at(-1)).toEqual({ type: "detached" });
    pair.run(59_000);
    pair.addLink();
    pair.settle();
    for (const id of ids)
      expect([pair.edge.stream(id).outcome, pair.agent.stream(id).outcome]).toEqual(["finished", "finished"]);
    expect(pair.agent.session.counters.resumptions).toBe(1);
  });

  it("takes what the applications write meanwhile, up to the credit, and opens nothing", () => {
    const pair = new Pair();
    const id = pair.edge.open();
    pair.settle();
    pair.loseLink(1);
    pair.edge.send(id, 10_000_000);
    expect(pair.edge.session.heldBytes).toBeLessThanOrEqual(262_144 + pair.edge.chunkBytes);
    expect(pair.edge.tryOpen()).toBe("noLink");
    pair.addLink();
    pair.settle();
    expect(pair.agent.stream(id).received).toBe(10_000_000);
  });

  it("ends after the resume timeout with resets at both ends and never with an end", () => {
    const pair = new Pair();
    const ids = [pair.edge.open(), pair.edge.open()];
    pair.settle();
    pair.edge.send(ids[0]!, 1_000_000);
    pair.edge.end(ids[0]!);
    pair.run(15);
    pair.loseLink(1);
    pair.run(59_999);
    expect([pair.edge.session.ended, pair.agent.session.ended]).toEqual([false, false]);
    pair.run(1);
    expect([pair.edge.session.ended, pair.agent.session.ended]).toEqual([true, true]);
    for (const application of [pair.edge, pair.agent]) {
      for (const id of ids) {
        expect(application.stream(id)).toMatchObject({
          endSeen: false,
          outcome: { code: ResetCode.sessionLost, by: "session" },
        });
      }
      expect(application.events.at(-1)).toEqual({
        type: "ended",
        code: CloseCode.timeout,
        reason: "not resumed in time",
      });
      expect(application.session.heldBytes).toBe(0);
    }
  });

  it("says when it will have waited long enough", () => {
    const pair = new Pair({ edge: { resumeTimeoutMs: 5_000 } });
    expect(pair.edge.session.nextTimeout()).toBe(pair.now + 10_000);
    pair.loseLink(1);
    expect(pair.edge.session.nextTimeout()).toBe(pair.now + 5_000);
    pair.addLink();
    expect(pair.edge.session.nextTimeout()).toBe(pair.now + 10_000);
  });

  it("that has no streams ends like any other", () => {
    const pair = new Pair();
    pair.loseLink(1);
    pair.run(60_000);
    expect(pair.edge.session.ended).toBe(true);
  });
});

describe("OPENs that overtake each other on two links", () => {
  it("are all taken, in the order of their arrival", () => {
    const pair = new Pair({ links: 0 });
    pair.addLink({ toEdge: 10, toAgent: 500 });
    pair.addLink({ toEdge: 10, toAgent: 10 });
    const ids = Array.from({ length: 6 }, () => pair.edge.open());
    pair.settle();
    expect(pair.agent.opens.map(({ stream }) => stream)).toEqual([2, 4, 6, 1, 3, 5]);
    for (const id of ids) pair.edge.send(id, 1_000);
    pair.settle();
    expect(ids.map((id) => pair.agent.stream(id).received)).toEqual(ids.map(() => 1_000));
  });

  it("and were given up before they went out are known to the agent as ended", () => {
    const pair = new Pair({ links: 0 });
    const slow = pair.addLink({ toEdge: 10, toAgent: 500 });
    const fast = pair.addLink({ toEdge: 10, toAgent: 10 });
    const id = pair.edge.open();
    pair.run(1);
    // Its OPEN is on the slow link; the edge gives that link up and resets the stream on the other.
    pair.loseLink(slow, { agentNoticesMs: undefined, deliverInFlight: true });
    pair.edge.reset(id, ResetCode.cancelled);
    pair.settle();
    expect(pair.agent.opens).toEqual([]);
    expect(pair.liveLinks).toEqual([fast]);
    expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
  });
});
