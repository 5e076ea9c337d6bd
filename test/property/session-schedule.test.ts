/**
 * Random schedules of open, write, end, reset, credit, link loss, link gain and drain over a simulated pair. Whatever the
 * applications and the network do, bytes come out as they went in, no end sends a byte that it has no credit for, memory
 * is bounded, a stream ends exactly once at each end, and nothing is left when the network heals.
 *
 * PROPERTY_RUNS sets how many schedules are played. A failure prints its seed and its shortest schedule; how often each
 * thing happened is printed, and has to be often.
 */
import { CloseCode, MemoryBudget, MIN_DIRECTION_BYTES, ResetCode } from "@sallyport/protocol";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CreditAccount } from "../support/credit-account.ts";
import type { ModelApplication, ModelStream, Side } from "../support/model-application.ts";
import { Pair } from "../support/pair.ts";

const runs = Number(process.env["PROPERTY_RUNS"] ?? 2_000);

const WINDOW_BYTES = 8_192;
const CHUNK_BYTES = 3_000;
const INITIAL_CREDIT = 4_096;
/** By which a stream may exceed the memory, both directions together: one frame. */
const FRAME_BYTES = 2 * MIN_DIRECTION_BYTES;

const side = fc.constantFrom<Side>("edge", "agent");
/** Which of the streams so far; taken modulo their number. */
const pick = fc.nat({ max: 30 });
const noticeMs = fc.constantFrom(0, 0, 5, 60, 700, undefined);

const lose = fc.record({
  do: fc.constant("lose" as const),
  pick,
  edgeNoticesMs: noticeMs,
  agentNoticesMs: noticeMs,
  deliverInFlight: fc.boolean(),
});
const latencyMs = fc.constantFrom(0, 1, 10, 40, 400, 3_000);
const gain = fc.record({ do: fc.constant("gain" as const), toEdge: latencyMs, toAgent: latencyMs });
const open = fc.record({ do: fc.constant("open" as const) });
const send = fc.record({
  do: fc.constant("send" as const),
  side,
  pick,
  bytes: fc.oneof(
    { weight: 9, arbitrary: fc.integer({ min: 1, max: 30_000 }) },
    // Enough to make a link busy, so that another may help.
    { weight: 1, arbitrary: fc.integer({ min: 100_000, max: 300_000 }) },
  ),
});
const end = fc.record({ do: fc.constant("end" as const), side, pick });
const consume = fc.record({
  do: fc.constant("consume" as const),
  side,
  pick,
  bytes: fc.integer({ min: 1, max: 9_000 }),
});
/** One in four is carried out: a session drains for good. */
const drain = fc.record({ do: fc.constant("drain" as const), side, die: fc.nat({ max: 3 }) });
const run = fc.record({ do: fc.constant("run" as const), ms: fc.constantFrom(0, 1, 7, 30, 200, 1_000, 11_000) });

const step = fc.oneof(
  { weight: 4, arbitrary: open },
  { weight: 6, arbitrary: send },
  { weight: 3, arbitrary: end },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("reset" as const), side, pick }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("accept" as const), pick }) },
  { weight: 4, arbitrary: consume },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("slow" as const), side, pick }) },
  { weight: 4, arbitrary: lose },
  { weight: 3, arbitrary: gain },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("stall" as const), side, pick, on: fc.boolean() }) },
  { weight: 2, arbitrary: drain },
  { weight: 8, arbitrary: run },
);

/** Few streams on links that differ much and die often, near the ends of the streams: requests cross and are overtaken. */
const stormStep = fc.oneof(
  { weight: 1, arbitrary: open },
  { weight: 2, arbitrary: send },
  { weight: 3, arbitrary: end },
  { weight: 3, arbitrary: consume },
  { weight: 7, arbitrary: lose },
  { weight: 7, arbitrary: gain },
  { weight: 6, arbitrary: run },
);

type Step = typeof step | typeof stormStep extends fc.Arbitrary<infer T> ? T : never;

const setup = fc.record({
  links: fc.integer({ min: 1, max: 4 }),
  /** Of each end; undefined: windows of a fixed size. */
  memoryBytes: fc.constantFrom(undefined, undefined, 0, 100_000, 3_000_000),
  latencyMs: fc.integer({ min: 0, max: 50 }),
  stripe: fc.boolean(),
  autoAccept: fc.boolean(),
  autoConsume: fc.boolean(),
  steps: fc.oneof(
    fc.array(step, { maxLength: 70, size: "max" }),
    fc.array(stormStep, { maxLength: 70, size: "max" }).map((steps): Step[] => [{ do: "open" }, ...steps]),
  ),
});

type Setup = typeof setup extends fc.Arbitrary<infer T> ? T : never;

function chosen(application: ModelApplication, pick: number): number | undefined {
  const ids = [...application.streams.keys()];
  return ids.length === 0 ? undefined : ids[pick % ids.length];
}

/** How often each thing really happened, over all schedules of this file. */
const coverage = {
  schedules: 0,
  opened: 0,
  refusedOpens: 0,
  sends: 0,
  bytesDelivered: 0,
  ended: 0,
  reset: 0,
  consumed: 0,
  linksLost: 0,
  lastLinkLost: 0,
  linksGained: 0,
  resumed: 0,
  retransmittedBytes: 0,
  stripedBytes: 0,
  drains: 0,
  drainsWithStreams: 0,
  finished: 0,
};

const stepCounts = { send: "sends", end: "ended", reset: "reset", consume: "consumed" } as const;

function play(pair: Pair, step: Step, resumable: boolean): void {
  switch (step.do) {
    case "open":
      if (typeof pair.edge.tryOpen() === "number") coverage.opened += 1;
      else coverage.refusedOpens += 1;
      return;
    case "drain": {
      const { session } = pair.end(step.side);
      if (step.die > 0 || session.ended) return;
      coverage.drains += 1;
      if (session.streamCount > 0) coverage.drainsWithStreams += 1;
      session.goAway(CloseCode.drain, "maintenance");
      return;
    }
    case "send":
    case "end":
    case "reset":
    case "consume":
    case "slow": {
      const application = pair.end(step.side);
      const id = chosen(application, step.pick);
      if (id === undefined) return;
      const stream = application.stream(id);
      if (!stream.over && step.do !== "slow") coverage[stepCounts[step.do]] += 1;
      if (step.do === "send" && !stream.wantsEnd && !stream.over) application.send(id, step.bytes);
      if (step.do === "end") application.end(id);
      if (step.do === "reset") application.reset(id, ResetCode.connectionReset);
      if (step.do === "consume") application.consume(id, step.bytes);
      if (step.do === "slow") stream.autoConsume = false;
      return;
    }
    case "accept": {
      const waiting = [...pair.agent.streams.values()].filter((stream) => !stream.accepted && !stream.over);
      const stream = waiting[step.pick % Math.max(1, waiting.length)];
      if (stream !== undefined) pair.agent.accept(stream.id);
      return;
    }
    case "lose": {
      const links = pair.liveLinks;
      const link = links[step.pick % Math.max(1, links.length)];
      if (link === undefined) return;
      pair.loseLink(link, step);
      coverage.linksLost += 1;
      if (links.length === 1) coverage.lastLinkLost += 1;
      return;
    }
    case "gain":
      if (pair.liveLinks.length >= 4 || !resumable) return;
      pair.addLink(step);
      coverage.linksGained += 1;
      return;
    case "stall": {
      const links = pair.liveLinks;
      const link = links[step.pick % Math.max(1, links.length)];
      if (link === undefined) return;
      if (step.on) pair.stall(link, step.side);
      else pair.unstall(link, step.side);
      return;
    }
    case "run":
      pair.run(step.ms);
  }
}

/** The memory of both ends. */
type Memory = Readonly<Record<Side, MemoryBudget>> | undefined;

function expectBoundedMemory(pair: Pair, memory: Memory): void {
  for (const { session, side } of [pair.edge, pair.agent]) {
    // Without a budget of their own windows have a fixed size, and what is promised is what may be held.
    const usedBytes = session.windowBytes + session.queueBytes;
    const limitBytes = memory?.[side].limitBytes ?? 0;
    const perStream = memory === undefined ? 2 * WINDOW_BYTES + CHUNK_BYTES : FRAME_BYTES;
    const promisedBytes = memory?.[side].usedBytes ?? usedBytes;
    expect(promisedBytes).toBe(usedBytes);
    expect(session.heldBytes).toBeLessThanOrEqual(usedBytes);
    expect(usedBytes).toBeLessThanOrEqual(limitBytes + session.streamCount * perStream);
  }
}

function finishEverything(pair: Pair, memory: Memory): void {
  for (const link of pair.liveLinks) {
    pair.unstall(link, "edge");
    pair.unstall(link, "agent");
  }
  pair.addLink();
  // Black holes are noticed by heartbeats, several of them one after the other.
  pair.run(120_000);
  for (const application of [pair.agent, pair.edge]) {
    application.autoAccept = true;
    application.autoConsume = true;
    for (const stream of application.streams.values()) {
      if (stream.over) continue;
      if (application.side === "agent" && !stream.accepted) application.accept(stream.id);
      stream.autoConsume = true;
      application.consume(stream.id);
      application.end(stream.id);
    }
  }
  pair.settle();
  // A second round for streams whose OPEN came only now.
  for (const stream of pair.agent.streams.values()) if (!stream.over) pair.agent.end(stream.id);
  pair.settle();
  if (memory === undefined) return;
  // Where there is little memory, credit for a few bytes waits for its time.
  const streams = () => pair.edge.session.streamCount + pair.agent.session.streamCount;
  for (let rounds = 0; streams() > 0 && rounds < 1_000; rounds += 1) pair.run(1_000);
}

function newPair(options: {
  links: number;
  latencyMs: number;
  stripe: boolean;
  resumeTimeoutMs: number;
  memoryBytes: number | undefined;
}): { pair: Pair; memory: Memory } {
  const { memoryBytes, resumeTimeoutMs, stripe } = options;
  const memory: Memory =
    memoryBytes === undefined
      ? undefined
      : { edge: new MemoryBudget(memoryBytes), agent: new MemoryBudget(memoryBytes) };
  const initialCredit = memory === undefined ? INITIAL_CREDIT : MIN_DIRECTION_BYTES;
  const credit = new CreditAccount(initialCredit);
  const session = (side: Side) => ({
    resumeTimeoutMs,
    stripe,
    ...(memory === undefined ? { windowBytes: WINDOW_BYTES } : { memory: memory[side] }),
  });
  const pair = new Pair({
    links: options.links,
    latencyMs: options.latencyMs,
    initialCredit,
    observe: (what, { from, frame }) => credit.observe(what, from, frame),
    maxStreams: 12,
    edge: session("edge"),
    // What has ended at the edge may not have ended at the agent yet: at the very limit an OPEN can be refused.
    agent: { ...session("agent"), maxStreams: 1_000 },
  });
  for (const application of [pair.edge, pair.agent]) application.chunkBytes = CHUNK_BYTES;
  return { pair, memory };
}

/** Plays the steps of a schedule; the memory is bounded after each of them. */
function playAll(
  schedule: Setup,
  options: { resumable: boolean; resumeTimeoutMs: number },
): ReturnType<typeof newPair> {
  const { autoAccept, autoConsume, steps } = schedule;
  const { pair, memory } = newPair({ ...schedule, resumeTimeoutMs: options.resumeTimeoutMs });
  pair.agent.autoAccept = autoAccept;
  pair.edge.autoConsume = autoConsume;
  pair.agent.autoConsume = autoConsume;
  for (const step of steps) {
    play(pair, step, options.resumable);
    expectBoundedMemory(pair, memory);
  }
  return { pair, memory };
}

describe("random schedules", () => {
  it(`keep every byte and leave nothing behind when links come back (${runs} schedules)`, {
    timeout: 3_600_000,
  }, () => {
    fc.assert(
      fc.property(setup, (schedule) => {
        const { pair, memory } = playAll(schedule, { resumable: true, resumeTimeoutMs: 1e9 });
        finishEverything(pair, memory);

        coverage.schedules += 1;
        for (const { session, streams } of [pair.edge, pair.agent]) {
          coverage.resumed += session.counters.resumptions;
          coverage.retransmittedBytes += session.counters.retransmittedBytes;
          coverage.stripedBytes += session.counters.stripedBytes;
          for (const { outcome, received } of streams.values()) {
            coverage.bytesDelivered += received;
            if (outcome === "finished") coverage.finished += 1;
          }
        }
        expect(pair.edge.session.ended || pair.agent.session.ended).toBe(false);
        expect([pair.edge.session.streamCount, pair.agent.session.streamCount]).toEqual([0, 0]);
        expect([memory?.edge.usedBytes ?? 0, memory?.agent.usedBytes ?? 0]).toEqual([0, 0]);
        const refused = new Set<ModelStream>();
        for (const atEdge of pair.edge.streams.values()) {
          const atAgent = pair.agent.streams.get(atEdge.id);
          const reset = atEdge.outcome === "local" || atAgent?.outcome === "local";
          if (reset) continue;
          // An OPEN that was on its way when the agent began to drain. If the refusal is lost with its link, the OPEN comes
          // again and is answered by CLOSED.
          if (atAgent === undefined && pair.agent.session.draining) {
            refused.add(atEdge);
            continue;
          }
          // Only the applications reset streams, so where neither did, both directions are whole.
          expect(atEdge.outcome).toBe("finished");
          expect(atAgent?.outcome).toBe("finished");
          expect([atAgent?.received, atEdge.received]).toEqual([atEdge.written, atAgent?.written]);
        }
        for (const { outcome } of refused) {
          expect([ResetCode.shutdown, ResetCode.stateLost].map((code) => ({ code, by: "peer" }))).toContainEqual(
            outcome,
          );
        }
        const outcomes = [pair.edge, pair.agent].flatMap(({ streams }) =>
          [...streams.values()].filter((stream) => !refused.has(stream)).map(({ outcome }) => outcome),
        );
        for (const outcome of outcomes) {
          expect(["finished", "local", { code: ResetCode.connectionReset, by: "peer" }]).toContainEqual(outcome);
        }
      }),
      { numRuns: runs },
    );
  });

  it(`reset what is left at both ends when no link comes back in time (${runs / 4} schedules)`, {
    timeout: 3_600_000,
  }, () => {
    fc.assert(
      fc.property(setup, fc.boolean(), (schedule, drain) => {
        const { pair } = playAll(schedule, { resumable: false, resumeTimeoutMs: 60_000 });
        if (drain && !pair.agent.session.ended) pair.agent.session.goAway(CloseCode.drain, "maintenance");
        for (const link of pair.liveLinks) pair.loseLink(link, { agentNoticesMs: undefined });
        pair.run(300_000);

        for (const { session, streams, events } of [pair.edge, pair.agent]) {
          expect(session.ended).toBe(true);
          expect([session.streamCount, session.linkCount, session.heldBytes]).toEqual([0, 0, 0]);
          expect(session.nextTimeout()).toBeUndefined();
          expect(events.filter((event) => event.type === "ended")).toHaveLength(1);
          for (const stream of streams.values()) expect(stream.outcome).toBeDefined();
        }
      }),
      { numRuns: runs / 4 },
    );
  });

  it("have happened: everything that a schedule can hold, and often", () => {
    console.log(`schedules: ${JSON.stringify(coverage)}`);
    const { schedules, bytesDelivered, retransmittedBytes, ...counts } = coverage;
    for (const [name, count] of Object.entries(counts)) {
      expect({ name, isOften: count > schedules / 20 }).toEqual({ name, isOften: true });
    }
    expect(bytesDelivered).toBeGreaterThan(schedules * 1_000);
    expect(retransmittedBytes).toBeGreaterThan(schedules * 100);
  });
});
