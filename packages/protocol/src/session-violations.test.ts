/**
 * What a peer may not do, and what it costs it: nothing (the frame is ignored and counted), its stream, or the session.
 * Every row has an honest twin: the neighbouring frame that is no violation.
 */
import { describe, expect, it } from "vitest";
import { LoneSession } from "../../../test/support/lone-session.ts";
import { CloseCode, ResetCode } from "./codes.ts";
import { encodeFrame, type Frame, type ResumeFrame } from "./frame.ts";

const LIMIT = 262_144;
const bytes = (count: number) => new Uint8Array(count);

const open = (stream: number, target = "sftp"): Frame => ({
  type: "open",
  stream,
  connection: "c-1",
  target,
  deployment: "d",
  partner: "192.0.2.1:40000",
  limit: LIMIT,
});
const data = (stream: number, offset: number, count: number): Frame => ({
  type: "data",
  stream,
  offset,
  bytes: bytes(count),
});
const end = (stream: number, offset: number): Frame => ({ type: "end", stream, offset });
const reset = (stream: number): Frame => ({ type: "reset", stream, offset: 0, code: 1 });
const closed = (stream: number): Frame => ({ type: "closed", stream });
const accept = (stream: number): Frame => ({ type: "accept", stream, address: "10.0.0.1:22", limit: LIMIT });
const credit = (stream: number, consumed: number, limit = LIMIT, endConsumed = false): Frame => ({
  type: "credit",
  stream,
  consumed,
  limit,
  endConsumed,
});
const resume = (stream: number, frame: Partial<ResumeFrame> = {}): Frame => ({
  type: "resume",
  stream,
  epoch: 1,
  answers: 0,
  received: 0,
  consumed: 0,
  limit: LIMIT,
  endReceived: false,
  endConsumed: false,
  ...frame,
});
const ping = (token: number): Frame => ({ type: "ping", token });
const pong = (token: number): Frame => ({ type: "pong", token });
const goAway: Frame = { type: "goAway", code: CloseCode.drain, reason: "" };
const hello: Frame = {
  type: "hello",
  agent: "a",
  process: "0".repeat(32),
  session: "",
  features: [],
  initialCredit: 0,
  maxStreams: 1,
  links: 1,
};
const welcome: Frame = {
  type: "welcome",
  edge: "e",
  session: "0".repeat(32),
  resumed: false,
  features: [],
  resumeTimeoutMs: 0,
};

/** An edge with stream 1, accepted, on which it has sent 1,000 bytes and the END, and received 500. */
function edge(): LoneSession {
  const lone = new LoneSession("edge");
  lone.open();
  lone.session.write(1, bytes(1_000));
  lone.session.end(1);
  lone.sent();
  lone.receive(accept(1)).receive(data(1, 0, 500));
  lone.session.consume(1, 500);
  lone.events.length = 0;
  return lone;
}

/** An agent with stream 1, accepted, on which it has sent 1,000 bytes, and received 500 and the END. */
function agent(): LoneSession {
  const lone = new LoneSession("agent");
  lone.receive(open(1));
  lone.session.accept(1, "10.0.0.1:22");
  lone.session.write(1, bytes(1_000));
  lone.sent();
  lone.receive(data(1, 0, 500)).receive(end(1, 500));
  lone.session.consume(1, 500);
  lone.events.length = 0;
  return lone;
}

type Make = () => LoneSession;
const session = (code: CloseCode, reason: string) => [`ended ${code}: ${reason}`];

describe("the session ends, with a code, and its streams with it", () => {
  it.each<[id: string, what: string, make: Make, frames: (Frame | Uint8Array)[], code: CloseCode, reason: string]>([
    ["M1", "a frame type that does not exist", edge, [bytes(9)], CloseCode.protocol, "unknown frame type"],
    ["M2", "an empty message", agent, [bytes(0)], CloseCode.protocol, "frame is too short"],
    [
      "M3",
      "a credit that is too short",
      edge,
      [encodeFrame(credit(1, 0)).subarray(0, 21)],
      CloseCode.protocol,
      "credit must have 22 bytes, has 21",
    ],
    ["M4", "a frame of one byte too many", agent, [bytes(16_377)], CloseCode.tooLarge, "frame is too large"],
    [
      "M5",
      "data of a stream that was not opened, to the edge",
      edge,
      [data(2, 0, 1)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "data of a stream that was not opened, to the agent",
      agent,
      [data(2, 0, 1)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "an end of a stream that was not opened",
      agent,
      [end(2, 0)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "a closed of a stream that was not opened",
      agent,
      [closed(2)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "a reset of a stream that was not opened, to the edge",
      edge,
      [reset(2)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "data of a stream whose OPEN has not arrived",
      agent,
      [open(3), data(2, 0, 1)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M5",
      "data before the stream is accepted",
      () => {
        const lone = new LoneSession("edge");
        lone.open();
        lone.sent();
        return lone;
      },
      [data(1, 0, 1)],
      CloseCode.protocol,
      "data before accept",
    ],
    [
      "M5",
      "an end before the stream is accepted",
      () => {
        const lone = new LoneSession("edge");
        lone.open();
        lone.sent();
        return lone;
      },
      [end(1, 0)],
      CloseCode.protocol,
      "end before accept",
    ],
    ["M7", "data behind the end", agent, [data(1, 500, 1)], CloseCode.protocol, "data behind the end"],
    [
      "M7",
      "a second end elsewhere",
      agent,
      [end(1, 501)],
      CloseCode.protocol,
      "final offset contradicts what was sent",
    ],
    [
      "M7",
      "an end before what was sent",
      edge,
      [end(1, 499)],
      CloseCode.protocol,
      "final offset contradicts what was sent",
    ],
    ["M8", "stream 0", agent, [new Uint8Array([0x13, 0, 0, 0, 0])], CloseCode.protocol, "stream 0 does not exist"],
    ["M9", "an open at the edge", edge, [open(2)], CloseCode.protocol, "open at the edge"],
    ["M9", "an accept at the agent", agent, [accept(1)], CloseCode.protocol, "accept at the agent"],
    [
      "M10",
      "an id that is used again for something else",
      agent,
      [open(1, "db")],
      CloseCode.protocol,
      "stream id is used again",
    ],
    [
      "M10",
      "an open that comes again and asks for a PROXY header",
      agent,
      [{ ...open(1), proxy: [2, "", "", "", ""] } as Frame],
      CloseCode.protocol,
      "stream id is used again",
    ],
    ["M11", "ids that leap", agent, [open(1_126)], CloseCode.protocol, "stream ids leap"],
    [
      "M17",
      "a limit below what was consumed",
      edge,
      [credit(1, 1_000, 999)],
      CloseCode.protocol,
      "limit below what was consumed",
    ],
    [
      "M18",
      "a credit of a stream that was not opened",
      edge,
      [credit(2, 0)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    ["M26", "a HELLO in the session", edge, [hello], CloseCode.protocol, "greeting inside a session"],
    ["M26", "a WELCOME in the session", agent, [welcome], CloseCode.protocol, "greeting inside a session"],
    [
      "M28",
      "a control frame of 4 KiB and a byte",
      agent,
      [new Uint8Array(4_097).fill(0x91).fill(0x03, 0, 1)],
      CloseCode.tooLarge,
      "control frame is too large",
    ],
    [
      "M33",
      "a RESUME of a stream that was not opened",
      edge,
      [resume(2)],
      CloseCode.protocol,
      "frame of a stream that was not opened",
    ],
    [
      "M33",
      "a RESUME that received more than was sent",
      agent,
      [resume(1, { received: 1_001 })],
      CloseCode.protocol,
      "resume beyond what was sent",
    ],
    [
      "M33",
      "a RESUME that received an end that was not sent",
      agent,
      [resume(1, { received: 1_000, endReceived: true })],
      CloseCode.protocol,
      "end received that was not sent",
    ],
    [
      "M33",
      "a RESUME that consumed more than it received",
      edge,
      [resume(1, { received: 10, consumed: 11 })],
      CloseCode.protocol,
      "more consumed than received",
    ],
    [
      "M33",
      "an answer to a request that was not made",
      edge,
      [resume(1, { answers: 1 })],
      CloseCode.protocol,
      "answer to a request that was not made",
    ],
    [
      "M34",
      "a credit for bytes that were not sent",
      edge,
      [credit(1, 1_001)],
      CloseCode.protocol,
      "credit for bytes that were not sent",
    ],
    [
      "M34",
      "an end confirmed that was not sent",
      agent,
      [credit(1, 1_000, LIMIT, true)],
      CloseCode.protocol,
      "end acknowledged that was not sent",
    ],
    [
      "M34",
      "an end confirmed before its bytes",
      edge,
      [credit(1, 999, LIMIT, true)],
      CloseCode.protocol,
      "end acknowledged before its bytes",
    ],
  ])("%s: %s", (_, __, make, frames, code, reason) => {
    const lone = make();
    for (const frame of frames) lone.receive(frame);
    expect(lone.lines().at(-1)).toBe(session(code, reason)[0]);
    expect(lone.lines()).toContain(`reset 1 code ${ResetCode.protocolViolation} by session`);
    expect(lone.session).toMatchObject({ ended: true, streamCount: 0, linkCount: 0 });
  });
});

describe("the neighbour of a violation is none", () => {
  it.each<[id: string, what: string, make: Make, frames: Frame[]]>([
    [
      "M5",
      "data before the stream is accepted, to the agent",
      () => new LoneSession("agent"),
      [open(1), data(1, 0, 1)],
    ],
    ["M7", "the end again", agent, [end(1, 500)]],
    ["M7", "data again, before the end", agent, [data(1, 0, 500), data(1, 499, 1)]],
    ["M10", "the same open again", agent, [open(1)]],
    ["M11", "ids that overtake each other", agent, [open(50), open(2), open(49), open(3)]],
    ["M11", "ids as far as streams may be under way on other links", agent, [open(1_125)]],
    ["M17", "the largest limit", edge, [credit(1, 1_000, Number.MAX_SAFE_INTEGER)]],
    ["M33", "a RESUME that received all that was sent", edge, [resume(1, { received: 1_000, endReceived: true })]],
    ["M33", "a RESUME that received nothing", agent, [resume(1)]],
    ["M34", "a credit for all that was sent", edge, [credit(1, 1_000, LIMIT, true)]],
    ["M34", "a credit that falls behind another", edge, [credit(1, 1_000), credit(1, 500)]],
    ["M35", "a second go away", edge, [goAway, goAway]],
    ["M5", "a reset of a stream whose OPEN was lost, and then the OPEN", agent, [reset(2), open(2)]],
  ])("%s: %s", (_, __, make, frames) => {
    const lone = make();
    for (const frame of frames) lone.receive(frame);
    expect(lone.session).toMatchObject({ ended: false, linkCount: 1 });
    expect(lone.lines().filter((line) => line.startsWith("reset"))).toEqual([]);
  });
});

describe("the stream is reset and the session lives", () => {
  it("M15: a byte more than credit, twice; the third time in a minute ends the session", () => {
    const lone = new LoneSession("agent", { initialCredit: 10 });
    for (const id of [1, 2, 3, 4]) lone.receive(open(id));
    lone
      .receive(data(1, 0, 11))
      .receive(data(2, 0, 10))
      .receive(data(2, 10, 1));
    expect(lone.sent()).toEqual(["reset 1 code 13", "reset 2 code 13"]);
    expect(lone.lines().slice(4)).toEqual(["reset 1 code 13 by session", "data 2 10", "reset 2 code 13 by session"]);
    lone.receive(end(3, 11));
    expect(lone.lines().at(-1)).toBe("ended 4429: more bytes than credit");
  });

  it("M15: breaches that are more than a minute apart end only their streams", () => {
    const lone = new LoneSession("agent", { initialCredit: 10, heartbeatTimeoutMs: 1e9 });
    for (let id = 1; id <= 20; id += 1) {
      lone
        .receive(open(id))
        .receive(data(id, 0, 11))
        .receive(closed(id));
      lone.now += 31_000;
    }
    expect(lone.session).toMatchObject({ ended: false, streamCount: 0 });
  });

  it("M15: its honest twin fills the window to the byte", () => {
    const lone = new LoneSession("agent", { initialCredit: 16_000 });
    lone
      .receive(open(1))
      .receive(data(1, 0, 10_000))
      .receive(data(1, 10_000, 6_000))
      .receive(end(1, 16_000));
    expect(lone.lines()).toEqual(["open 1", "data 1 10000", "data 1 6000", "end 1"]);
  });

  it("M33: a peer whose state is older than what it had acknowledged", () => {
    const lone = edge();
    lone.receive(credit(1, 600)).receive(resume(1, { received: 599 }));
    expect(lone.lines()).toEqual(["reset 1 code 14 by session"]);
    expect(lone.sent()).toEqual(["reset 1 code 14"]);
  });
});

describe("the frame is ignored, and counted", () => {
  it.each<[id: string, what: string, make: Make, frame: Frame]>([
    ["M6", "short data of a stream that has ended", edge, data(1, 500, 1)],
    ["M6", "an end of a stream that has ended", edge, end(1, 500)],
    ["M6", "a credit of a stream that has ended", edge, credit(1, 0)],
    ["M6", "a closed of a stream that has ended", edge, closed(1)],
    ["M6", "a reset of a stream that has ended", edge, reset(1)],
    ["M6", "an accept of a stream that has ended", edge, accept(1)],
    ["M6", "a RESUME of a stream that has ended", edge, resume(1)],
    ["M6", "an open of a stream that has ended", agent, open(1)],
  ])("%s: %s", (_, __, make, frame) => {
    const lone = make();
    lone.receive(reset(1));
    lone.events.length = 0;
    lone.receive(frame);
    expect(lone.session).toMatchObject({ ended: false, streamCount: 0, counters: { uselessFrames: 1 } });
    expect(lone.lines()).toEqual([]);
  });

  it.each<[id: string, what: string, make: Make, frame: Frame]>([
    ["M16", "a credit that gives nothing", edge, credit(1, 0)],
    ["M24", "a ping", edge, ping(7)],
    ["M25", "a pong that nobody asked for", edge, pong(7)],
    ["M9", "an accept of a stream that is accepted", edge, accept(1)],
  ])("%s: %s", (_, __, make, frame) => {
    const lone = make();
    lone.receive(frame);
    expect(lone.session).toMatchObject({ ended: false, streamCount: 1, counters: { uselessFrames: 1 } });
    expect(lone.lines()).toEqual([]);
  });

  it("M6: long data of a stream that has ended is not even counted: it was under way", () => {
    const lone = edge()
      .receive(reset(1))
      .receive(data(1, 500, 10_000));
    expect(lone.session.counters.uselessFrames).toBe(0);
  });

  it("M25: a pong that comes again, or after that of a newer ping, measures nothing", () => {
    const lone = new LoneSession("edge");
    expect(lone.sent()).toEqual([]);
    lone.now += 10_000;
    lone.session.tick(lone.now);
    expect(lone.sent()).toEqual(["ping 2"]);
    lone.receive(pong(2)).receive(pong(1)).receive(pong(2));
    expect(lone.session.roundTripMs(1)).toBe(0);
    expect(lone.session.counters.uselessFrames).toBe(2);
  });
});

describe("floods end the session with the code for budgets", () => {
  const last = (lone: LoneSession) => lone.lines().at(-1);
  const message = "ended 4429: too many frames that carry nothing";

  it.each<[id: string, what: string, make: Make, frame: (index: number) => Frame]>([
    ["M13", "resets of a stream that has ended", () => agent().receive(reset(1)), () => reset(1)],
    ["M16", "credit that gives nothing", edge, () => credit(1, 0)],
    ["M18", "credit for a stream that has ended", () => edge().receive(reset(1)), () => credit(1, 0)],
    ["M18", "credit that confirms the end again and again", edge, () => credit(1, 1_000, LIMIT, true)],
    ["M23", "single bytes of data for a stream that has ended", () => edge().receive(reset(1)), () => data(1, 500, 1)],
    ["M24", "pings", edge, ping],
    ["M25", "pongs", edge, pong],
    ["M33", "RESUME requests, which make the other end send again", agent, (index) => resume(1, { epoch: index + 1 })],
    ["M35", "go away", edge, () => goAway],
    ["M10", "the same open", agent, () => open(1)],
  ])("%s: %s", (_, __, make, frame) => {
    const lone = make();
    for (let index = 0; index < 2_300 && !lone.session.ended; index += 1) {
      lone.receive(frame(index));
      lone.sent();
    }
    expect(last(lone)).toBe(message);
  });

  it("M13: resets that are not read, too", () => {
    const lone = new LoneSession("agent");
    // Each is of another stream, so none is useless; their answers pile up while the peer does not read.
    for (let id = 1; id < 2_000 && !lone.session.ended; id += 1) lone.receive(reset(id));
    expect(last(lone)).toBe("ended 4429: too many resets");
  });

  it("M12: opens beyond the limit are refused without state, as fast as they come", () => {
    const lone = new LoneSession("agent", { maxStreams: 10 });
    for (let id = 1; id <= 5_000; id += 1) {
      lone.receive(open(id));
      lone.sent();
    }
    expect(lone.session).toMatchObject({ ended: false, streamCount: 10 });
    expect(lone.lines()).toHaveLength(10);
  });

  it("M13: open and reset, ten thousand times, leave nothing behind", () => {
    const lone = new LoneSession("agent");
    for (let id = 1; id <= 10_000; id += 1) {
      lone.receive(open(id)).receive(reset(id));
      lone.sent();
    }
    expect(lone.session).toMatchObject({ ended: false, streamCount: 0, counters: { uselessFrames: 0 } });
  });

  it("M23: their honest twin is people who type: 500 streams, a byte every 5 ms, for a minute", () => {
    const lone = new LoneSession("agent", { maxStreams: 500, heartbeatTimeoutMs: 1e9 });
    for (let id = 1; id <= 500; id += 1) {
      lone.receive(open(id));
      lone.session.accept(id, "");
    }
    lone.sent();
    for (let offset = 0; offset < 100; offset += 1) {
      lone.now += 5;
      for (let id = 1; id <= 500; id += 1) {
        lone.receive(data(id, offset, 1));
        lone.session.consume(id, 1);
        lone.events.length = 0;
      }
      lone.sent();
    }
    expect(lone.session).toMatchObject({ ended: false, streamCount: 500, counters: { uselessFrames: 0 } });
  });

  it("M13: their honest twin is ten thousand streams that a lost link makes ask, twice in a row", () => {
    const lone = new LoneSession("agent", { maxStreams: 10_000, links: 3 });
    for (let id = 1; id <= 10_000; id += 1) lone.receive(open(id));
    for (const [epoch, link] of [
      [1, 2],
      [2, 3],
    ] as const) {
      for (let id = 1; id <= 10_000; id += 1) lone.receive(resume(id, { epoch }), link);
      lone.session.detach(link - 1, lone.now);
      lone.sent(link);
    }
    expect(lone.session).toMatchObject({ ended: false, streamCount: 10_000 });
  });
});

describe("what a hostile peer makes a session keep is bounded", () => {
  it("M11: ids that leap, again and again", () => {
    const lone = new LoneSession("agent");
    for (let id = 1_124; !lone.session.ended; id += 1_124) lone.receive(open(id));
    expect(lone.lines().filter((line) => line.startsWith("open"))).toHaveLength(1);
  });

  it("M33: a stream that is thrown from link to link while nothing is read", () => {
    const lone = new LoneSession("agent", { links: 2, maxStreams: 10_000 });
    lone.receive(open(1));
    lone.session.accept(1, "");
    lone.session.write(1, bytes(1_000));
    for (let epoch = 1; epoch <= 20_000; epoch += 1) lone.receive(resume(1, { epoch }), (epoch % 2) + 1);
    expect(lone.sent(2)).toEqual([]);
    expect(lone.sent(1)).toEqual(["accept 1", "resume 1 answer 20000 from 0", "data 1 0+1000"]);
  });

  it("M24: pings that are not answered: one pong is owed, for the last", () => {
    const lone = new LoneSession("edge");
    for (let token = 1; token <= 100; token += 1) lone.receive(ping(token));
    expect(lone.sent()).toEqual(["pong 100"]);
  });

  it("W16: nothing behind a fatal frame is processed", () => {
    const lone = agent();
    lone.receive(bytes(1));
    const events = lone.lines().length;
    for (let id = 2; id < 1_000; id += 1) lone.receive(open(id));
    expect(lone.lines()).toHaveLength(events);
  });

  it("M18: frames of a link that is not there", () => {
    const lone = agent();
    lone.receive(bytes(1), 99);
    expect(lone.session.ended).toBe(false);
  });
});
