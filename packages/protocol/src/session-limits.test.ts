/**
 * The limits of docs/protocol.md §9, each with its honest twin: traffic that looks like what the limit is against, at a scale
 * that real use reaches, between two sessions that follow the protocol. It may not trip anything.
 *
 * What is beyond each limit is in session-violations.test.ts, and against real programs in test/hostile/hostile-frames.ts.
 */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Pair, type PairOptions } from "../../../test/support/pair.ts";
import { ResetCode } from "./codes.ts";
import { decodeFrame, encodeFrame, type Frame, MAX_CONTROL_FRAME_BYTES, MAX_FRAME_BYTES } from "./frame.ts";

/** Both directions of a stream carry bytes and end; nobody is reset. */
function finishAll(pair: Pair, ids: readonly number[]): void {
  for (const application of [pair.edge, pair.agent]) for (const id of ids) application.end(id);
  pair.settle();
}

function openMany(pair: Pair, count: number): number[] {
  return Array.from({ length: count }, () => pair.edge.open());
}

/** Every stream that began has ended, all but those that an application reset itself without a word of the protocol's. */
function expectUnharmed(pair: Pair, counts: { finished: number; resetByThem?: number }): void {
  const { finished, resetByThem = 0 } = counts;
  for (const { session, streams } of [pair.edge, pair.agent]) {
    expect(session.ended).toBe(false);
    const outcomes = [...streams.values()].map(({ outcome }) => outcome);
    expect(outcomes.filter((outcome) => outcome === "finished")).toHaveLength(finished);
    const own = outcomes.filter(
      (outcome) => outcome === "local" || (typeof outcome === "object" && outcome.code === ResetCode.connectionReset),
    );
    expect(own).toHaveLength(resetByThem);
    expect(outcomes).toHaveLength(finished + resetByThem);
  }
}

/** Frames that carry nothing, at the end that had more of them. */
function uselessFrames(pair: Pair): number {
  return Math.max(pair.edge.session.counters.uselessFrames, pair.agent.session.counters.uselessFrames);
}

const text = (length: number) => "x".repeat(length);

interface Twin {
  /** The row of docs/protocol.md §9. */
  readonly limit: string;
  /** As its last cell says. */
  readonly twin: string;
  readonly act: () => void;
}

/** Keystrokes: each stream sends a byte every 5 ms in both directions, and each byte is consumed and credited. */
function type(options: { streams: number; strokes: number; pair: Pair }): void {
  const { streams, strokes, pair } = options;
  const ids = openMany(pair, streams);
  pair.settle();
  for (let stroke = 0; stroke < strokes; stroke += 1) {
    for (const id of ids) {
      pair.edge.send(id, 1);
      pair.agent.send(id, 1);
    }
    pair.run(5);
  }
  pair.settle();
  // All that counts in an undisturbed session are heartbeats, and no more than the first has gone out by now. The other
  // PINGs measure what came before them.
  expect(uselessFrames(pair)).toBe(1);
  expect(pair.transcript.filter(({ frame }) => frame.type === "ping").length).toBeGreaterThan(2);
  finishAll(pair, ids);
  expectUnharmed(pair, { finished: streams });
}

const pairOf = (options: PairOptions = {}) => new Pair({ maxStreams: 1_000, ...options });

const twins: readonly Twin[] = [
  {
    limit: "message",
    twin: "bulk data in messages of 16,376 bytes",
    act() {
      const pair = pairOf({ capture: true });
      const [id] = openMany(pair, 1) as [number];
      pair.settle();
      pair.edge.send(id, 10_000_000);
      pair.settle();
      finishAll(pair, [id]);
      const longest = Math.max(...pair.transcript.map(({ frame }) => encodeFrame(frame).length));
      expect(longest).toBe(MAX_FRAME_BYTES);
      expectUnharmed(pair, { finished: 1 });
    },
  },
  {
    limit: "control message, and a message of no known type",
    twin: "every text at its longest: HELLO with 32 features, OPEN with a target of 300 characters",
    act() {
      const name = text(255);
      const id = "ab".repeat(16);
      const features = Array.from({ length: 32 }, () => text(32));
      const longest: Frame[] = [
        {
          type: "hello",
          agent: name,
          process: id,
          session: id,
          features,
          initialCredit: 16_777_216,
          maxStreams: 1_000_000,
          links: 16,
        },
        { type: "welcome", edge: name, session: id, resumed: true, features, resumeTimeoutMs: 86_400_000 },
        {
          type: "open",
          stream: 0xffff_ffff,
          connection: text(64),
          target: text(300),
          deployment: name,
          partner: text(64),
          limit: Number.MAX_SAFE_INTEGER,
        },
        { type: "accept", stream: 0xffff_ffff, address: text(64), limit: Number.MAX_SAFE_INTEGER },
        { type: "goAway", code: 4_999, reason: text(200) },
      ];
      for (const frame of longest) {
        const bytes = encodeFrame(frame);
        expect(bytes.length).toBeLessThanOrEqual(MAX_CONTROL_FRAME_BYTES);
        expect(decodeFrame(bytes)).toEqual(frame);
      }
    },
  },
  {
    limit: "streams at once",
    twin: "ten thousand short connections, a hundred at once where a hundred are allowed",
    act() {
      const pair = pairOf({ maxStreams: 100, links: 2 });
      for (let round = 0; round < 100; round += 1) {
        const ids = openMany(pair, 100);
        expect(pair.edge.tryOpen()).toBe("streamLimit");
        for (const id of ids) pair.edge.send(id, 30);
        pair.settle();
        for (const id of ids) pair.agent.send(id, 30);
        finishAll(pair, ids);
      }
      expectUnharmed(pair, { finished: 10_000 });
    },
  },
  {
    limit: "ids skipped",
    twin: "a thousand connections at once over sixteen links, the slowest a second behind the fastest",
    act() {
      const pair = pairOf({ links: 0 });
      for (let link = 0; link < 16; link += 1) pair.addLink({ toEdge: 5, toAgent: 5 + link * 70 });
      const ids = openMany(pair, 1_000);
      for (const id of ids) pair.edge.send(id, 10);
      pair.settle();
      finishAll(pair, ids);
      expectUnharmed(pair, { finished: 1_000 });
    },
  },
  {
    limit: "bytes beyond the limit of a stream",
    twin: "a hundred streams whose windows are full to the byte, both ways, since nobody reads",
    act() {
      const pair = pairOf({ edge: { windowBytes: 20_000 }, agent: { windowBytes: 20_000 }, initialCredit: 5_000 });
      for (const application of [pair.edge, pair.agent]) application.autoConsume = false;
      const ids = openMany(pair, 100);
      pair.settle();
      for (const application of [pair.edge, pair.agent]) for (const id of ids) application.send(id, 60_000);
      pair.settle();
      for (const id of ids)
        expect([pair.edge.stream(id).received, pair.agent.stream(id).received]).toEqual([20_000, 20_000]);
      for (const application of [pair.edge, pair.agent]) {
        application.autoConsume = true;
        for (const stream of application.streams.values()) {
          stream.autoConsume = true;
          application.consume(stream.id);
        }
      }
      pair.settle();
      finishAll(pair, ids);
      expectUnharmed(pair, { finished: 100 });
    },
  },
  {
    limit: "gaps before held bytes",
    twin: "keystrokes on links that come and go, each behind what the last link lost",
    act() {
      const pair = pairOf({ links: 2 });
      const ids = openMany(pair, 20);
      pair.settle();
      for (let round = 0; round < 100; round += 1) {
        for (let stroke = 0; stroke < 20; stroke += 1) {
          for (const id of ids) pair.edge.send(id, 1);
          pair.run(1);
        }
        pair.loseLink(pair.liveLinks[round % 2]!, {
          agentNoticesMs: (round % 5) * 20,
          deliverInFlight: round % 3 === 0,
        });
        pair.addLink({ toEdge: (round % 7) * 10, toAgent: (round % 4) * 15 });
      }
      pair.settle();
      finishAll(pair, ids);
      expectUnharmed(pair, { finished: 20 });
    },
  },
  {
    limit: "answers that wait because the peer does not read (CLOSED, RESET of refused streams)",
    twin: "a thousand connections that are reset at once while the path stands still",
    act() {
      const pair = pairOf();
      const ids = openMany(pair, 1_000);
      pair.settle();
      const [link] = pair.liveLinks as [number];
      pair.stall(link, "agent");
      for (const id of ids) pair.edge.reset(id, ResetCode.connectionReset);
      pair.run(5_000);
      pair.unstall(link, "agent");
      pair.settle();
      expectUnharmed(pair, { finished: 0, resetByThem: 1_000 });
      expect(pair.edge.session.streamCount).toBe(0);
    },
  },
  {
    limit: "frames that carry nothing",
    twin: "500 people who type 200 keys a second",
    act: () => type({ streams: 500, strokes: 60, pair: pairOf({ capture: true }) }),
  },
  {
    limit: "frames that carry nothing",
    twin: "all of a thousand connections reset by both ends at the same moment, ten times over",
    act() {
      const pair = pairOf();
      for (let round = 0; round < 10; round += 1) {
        const ids = openMany(pair, 1_000);
        pair.settle();
        // What is under way then is late at both ends.
        for (const id of ids) {
          pair.edge.send(id, 1);
          pair.agent.send(id, 1);
          pair.edge.reset(id, ResetCode.connectionReset);
          pair.agent.reset(id, ResetCode.connectionReset);
        }
        pair.settle();
      }
      expectUnharmed(pair, { finished: 0, resetByThem: 10_000 });
    },
  },
  {
    limit: "frames that carry nothing",
    twin: "a thousand connections whose links are lost a hundred times in ten minutes",
    act() {
      const pair = pairOf({ links: 2, agent: { maxStreams: 1_000 } });
      const ids = openMany(pair, 1_000);
      pair.settle();
      for (let round = 0; round < 100; round += 1) {
        for (const link of pair.liveLinks) pair.loseLink(link);
        pair.run(100);
        pair.addLink();
        pair.addLink();
        for (const id of ids.slice(0, 100)) pair.edge.send(id, 1);
        pair.run(5_900);
      }
      pair.settle();
      finishAll(pair, ids);
      expectUnharmed(pair, { finished: 1_000 });
    },
  },
  {
    limit: "frames that carry nothing",
    twin: "sixteen links with a heartbeat every 100 ms, for ten minutes",
    act() {
      const heartbeat = { heartbeatIntervalMs: 100, heartbeatTimeoutMs: 1_000 };
      const pair = pairOf({ links: 16, edge: heartbeat, agent: heartbeat, maxStreams: 1 });
      pair.run(600_000);
      expect(uselessFrames(pair)).toBeGreaterThan(16 * 5_900);
      expect(pair.liveLinks).toHaveLength(16);
      expectUnharmed(pair, { finished: 0 });
    },
  },
  {
    limit: "frames that carry nothing",
    twin: "sixteen links that are full all the time and measured 150 times a second each",
    act() {
      let measured = 0;
      const observe: PairOptions["observe"] = (what, { from, frame }) => {
        if (what === "sent" && from === "edge" && frame.type === "ping") measured += 1;
      };
      const pair = pairOf({ links: 16, latencyMs: 0.2, maxStreams: 16, observe });
      const ids = openMany(pair, 16);
      pair.settle();
      for (let round = 0; round < 300 && !pair.agent.session.ended; round += 1) {
        for (const id of ids) pair.edge.send(id, 140_000);
        pair.run(6);
      }
      expect(measured).toBeGreaterThan(16 * 150);
      finishAll(pair, ids);
      expectUnharmed(pair, { finished: 16 });
    },
  },
];

/** The rows of the table of limits: its first and its last cell. What is WebSocket's is shown in packages/tunnel/src/link.test.ts. */
const documented = readFileSync(new URL("../../../docs/protocol.md", import.meta.url), "utf8")
  .split("## 9. Limits")[1]!
  .split("\n\n")
  .find((paragraph) => paragraph.startsWith("| what |"))!
  .split("\n")
  .slice(2)
  .map((row) => row.split("|").map((cell) => cell.trim()))
  .map((cells) => ({ limit: cells[1]!, twins: cells[4]! }));

describe("honest traffic beside a limit does not trip it", () => {
  it.each(twins)("$limit: $twin", { timeout: 60_000 }, ({ act }) => {
    expect(act).not.toThrow();
  });

  it("is what docs/protocol.md says, row by row", () => {
    const said = (limit: string) =>
      twins
        .filter((one) => one.limit === limit)
        .map(({ twin }) => twin)
        .join("; ");
    const ofWebSocket = documented.filter(({ twins: them }) => them.endsWith("(WebSocket)"));
    expect(ofWebSocket).toHaveLength(2);
    const rest = documented.filter((row) => !ofWebSocket.includes(row));
    expect(rest.map(({ limit }) => limit)).toEqual([...new Set(twins.map(({ limit }) => limit))]);
    expect(rest).toEqual(rest.map(({ limit }) => ({ limit, twins: said(limit) })));
  });
});
