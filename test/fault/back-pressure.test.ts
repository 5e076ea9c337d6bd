/**
 * Streams whose readers stop, and small streams beside bulk ones. Load and targets are processes of their own, so that
 * what is measured is the product's work and not the test's.
 *
 * What is compared is measured in rounds, one beside the other: what counts is the sum of them all, and where that does not
 * tell there are more of them. Time in which a program was ready to run and the machine did something else is not counted.
 *
 * An echo beside bulk streams is compared with an idle one at its best of several rounds: five processes share the
 * machine's cores, and what they take from each other is not the product's.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { metric } from "../support/metric.ts";
import { processUsage } from "../support/process-usage.ts";
import { quantile } from "../support/quantile.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { PAUSE_BYTES, TRANSFER_BYTES, TrafficPartners, TrafficTarget } from "../support/traffic.ts";
import type { TrafficKind } from "../support/traffic.ts";

const MEBIBYTE = 1024 ** 2;
/** What a window is at its start. */
const START_WINDOW_BYTES = 256 * 1024;
/** What windows grow to at the most; how wide they are is told by the ends' own figures. */
const MAX_WINDOW_BYTES = 16 * MEBIBYTE;
/** What a stream has at each end when `memory` is used up: credit of 8 KiB, and 8 KiB to send. */
const FRAME_BYTES = 16 * 1024;
/**
 * What the runtime may keep besides: garbage that was not collected yet (a young generation is two semi-spaces of up to
 * 16 MiB, and buffers outside the heap live as long as their handles), and pages that the allocator does not give back.
 */
const RUNTIME_SLACK_BYTES = 16 * MEBIBYTE;
/** Buffers that a program keeps for the next read, for good: two pools of 8 MiB. */
const POOLS_BYTES = 16 * MEBIBYTE;
/** A connection that carries nothing, at one end: 2,000 take 15 KiB at the edge and 21 at the agent each more than 1,000. */
const CONNECTION_BYTES = 25 * 1024;
const OTHER_STREAMS = 50;
/** With a stalled stream, and as many without it. */
const ROUNDS = 10;
const MAX_ROUNDS = 12;
/** Where ten do not tell. */
const MAX_RATE_ROUNDS = 30;
const ROUND_MS = 1_000;
/** Their round trips are judged all together. */
const ECHO_ROUNDS = 5;
const ECHO_ROUND_MS = 3_000;
/** One piece that was read from a socket may go beyond the window of its stream; as much may be consumed and not told. */
const CHUNK_BYTES = 64 * 1024;
const MAX_HONEST_P99_MS = 250;
/** An echo beside bulk streams may be this much later than an idle one. */
const MAX_LATER_MS = 10;
const ECHO_EVERY_MS = 10;

let closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

async function startRig({ memory }: { readonly memory?: string } = {}) {
  const target = await TrafficTarget.start();
  closers.push(() => target.close());
  const echoTarget = await TrafficTarget.start();
  closers.push(() => echoTarget.close());
  const pair = await SallyportPair.start({
    services: { bulk: `127.0.0.1:${target.port}`, echo: `127.0.0.1:${echoTarget.port}` },
    deployments: [
      { name: "bulk", target: "bulk" },
      { name: "echo", target: "echo" },
    ],
    edgeConfig: {
      limits: { maxConnections: 5_000, maxConnectionsPerSource: 5_000 },
      // A target that is a busy process of one thread may accept late.
      timeouts: { connect: "30s" },
      ...(memory === undefined ? {} : { memory }),
    },
    agentConfig: { timeouts: { connect: "30s" }, ...(memory === undefined ? {} : { memory }) },
  });
  closers.push(() => pair.stop());
  const partners = await TrafficPartners.start(pair.listenerPort("bulk"));
  closers.push(() => partners.stop());
  return { pair, target, partners };
}

type Rig = Pick<Awaited<ReturnType<typeof startRig>>, "pair" | "partners">;

interface Memory {
  readonly edgeBytes: number;
  readonly agentBytes: number;
}

async function residentMemory(pair: SallyportPair): Promise<Memory> {
  const [edge, agent] = await Promise.all([processUsage(pair.edge.process.pid), processUsage(pair.agent.process.pid)]);
  return { edgeBytes: edge.residentBytes, agentBytes: agent.residentBytes };
}

/** Resolves when no byte has moved for a second: every buffer between the two ends is full. */
async function standstill(pair: SallyportPair): Promise<void> {
  const endsAt = performance.now() + 90_000;
  let lastMoved = -1;
  for (;;) {
    const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
    const moved = metric(edge, "edge_bytes_total") + metric(agent, "agent_bytes_total");
    if (moved === lastMoved && moved > 0) return;
    if (performance.now() > endsAt) throw new Error("bytes still move");
    lastMoved = moved;
    await delay(1_000);
  }
}

/** What one program says of the bytes of its streams. */
interface StreamBytes {
  readonly heldBytes: number;
  /** Promised to the other program, and not yet taken by partners or targets. */
  readonly windowBytes: number;
  readonly queueBytes: number;
}

async function streamBytes(pair: SallyportPair): Promise<{ readonly edge: StreamBytes; readonly agent: StreamBytes }> {
  const of = (text: string, program: string): StreamBytes => ({
    heldBytes: metric(text, `${program}_tunnel_held_bytes`),
    windowBytes: metric(text, `${program}_tunnel_window_bytes`),
    queueBytes: metric(text, `${program}_tunnel_queue_bytes`),
  });
  const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
  return { edge: of(edge, "edge"), agent: of(agent, "agent") };
}

/** Round trips of one 64-byte echo after the other, `ECHO_EVERY_MS` apart. */
async function roundTrips(probe: EchoProbe, durationMs: number): Promise<number[]> {
  const trips: number[] = [];
  const endsAt = performance.now() + durationMs;
  while (performance.now() < endsAt) {
    const [trip] = await Promise.all([probe.roundTrip(64, 10_000), delay(ECHO_EVERY_MS)]);
    trips.push(trip);
  }
  return trips;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

const figures = (trips: readonly number[]): string =>
  [0.5, 0.9, 0.99, 1].map((q) => quantile(trips, q).toFixed(1)).join(" ");

interface Round {
  /** By stream. */
  readonly bytes: readonly number[];
  /** Without the time in which edge or agent, whichever longer, was ready to run and had no processor. */
  readonly runningMs: number;
}

async function measureRound({ pair, partners, honest }: Rig & { readonly honest: TrafficKind }): Promise<Round> {
  const waited = async () => {
    const usages = await Promise.all([pair.edge, pair.agent].map((program) => processUsage(program.process.pid)));
    return usages.map(({ waitedMs }) => waitedMs);
  };
  const [waitedBefore, { streamBytes: before }] = [await waited(), await partners.count(honest)];
  const startedAt = performance.now();
  await delay(ROUND_MS);
  const { streamBytes: after } = await partners.count(honest);
  const elapsedMs = performance.now() - startedAt;
  const longestMs = Math.max(...(await waited()).map((waitedMs, index) => waitedMs - waitedBefore[index]!));
  return { bytes: after.map((count, index) => count - before[index]!), runningMs: Math.max(1, elapsedMs - longestMs) };
}

/** What the runtime takes once and for all is taken before anything is measured. */
async function memoryOnceWarm({ pair, partners, honest }: Rig & { readonly honest: TrafficKind }): Promise<Memory> {
  await partners.open(honest, 4);
  await delay(4_000);
  await partners.close(honest);
  await delay(1_000);
  return residentMemory(pair);
}

/** Resolves, with the widest window of both ends, when nothing moves any more; neither end holds more than two of them. */
async function expectTwoWindows(pair: SallyportPair, { stalled, before }: { stalled: TrafficKind; before: Memory }) {
  await standstill(pair);
  const after = await residentMemory(pair);
  const { edge, agent } = await streamBytes(pair);
  console.log(
    `${stalled}: edge ${Math.round((after.edgeBytes - before.edgeBytes) / 1024)} KiB, ` +
      `agent ${Math.round((after.agentBytes - before.agentBytes) / 1024)} KiB more; ` +
      `edge ${JSON.stringify(edge)}, agent ${JSON.stringify(agent)}`,
  );
  // The window is that of the end behind which nobody reads; the other end keeps for it what it was given credit for.
  const window = Math.max(edge.windowBytes, agent.windowBytes);
  for (const end of [edge, agent]) {
    expect(end.heldBytes).toBeLessThanOrEqual(2 * window);
    expect(end.queueBytes).toBeLessThanOrEqual(window + 2 * CHUNK_BYTES);
  }
  expect(edge.heldBytes + agent.heldBytes).toBeGreaterThan(0);
  const bound = 2 * window + RUNTIME_SLACK_BYTES;
  expect(after.edgeBytes - before.edgeBytes).toBeLessThan(bound);
  expect(after.agentBytes - before.agentBytes).toBeLessThan(bound);
  return window;
}

/**
 * The direction of the honest streams is that of the stalled ones. `memoryBytes` is `memory` of both programs where many
 * streams stall; it is far less than the windows that they have at the start.
 */
const table = [
  {
    who: "a partner",
    reader: "partners",
    stalled: "pull-none",
    paused: "pull-pause",
    honest: "pull",
    many: 1_000,
    memoryBytes: 64 * MEBIBYTE,
  },
  {
    who: "a target",
    reader: "target",
    stalled: "push-none",
    paused: "push-pause",
    honest: "push",
    // Fewer, since every one of them first fills megabytes of the kernel's buffers.
    many: 300,
    memoryBytes: 32 * MEBIBYTE,
  },
] as const;

describe.each(table)("$who that stops reading", (row) => {
  const { reader, stalled, paused, honest, many, memoryBytes } = row;

  test("costs each end two windows at the most", async () => {
    const rig = await startRig();
    const before = await memoryOnceWarm({ ...rig, honest });
    await rig.partners.open(stalled, 1);
    expect(await expectTwoWindows(rig.pair, { stalled, before })).toBeLessThanOrEqual(MAX_WINDOW_BYTES);
  });

  test("in the midst of a transfer costs as much, and gets every byte when it goes on", async () => {
    const rig = await startRig();
    const { pair, partners } = rig;
    const before = await memoryOnceWarm({ ...rig, honest });
    await partners.open(paused, 1);
    const state = (isReached: "isPaused" | "hasEnded") =>
      pollUntil(
        async () => {
          const transfer = await rig[reader].transfer(paused);
          return transfer[isReached] ? transfer : undefined;
        },
        { what: `${paused}: ${isReached}`, timeoutMs: 60_000 },
      );
    const { receivedBytes, isRight } = await state("isPaused");
    expect(isRight).toBe(true);
    expect(receivedBytes).toBeGreaterThanOrEqual(PAUSE_BYTES);
    expect(receivedBytes).toBeLessThan(PAUSE_BYTES + MEBIBYTE);
    const window = await expectTwoWindows(pair, { stalled: paused, before });
    // What came so far has made it grow.
    expect(window).toBeGreaterThan(START_WINDOW_BYTES);
    expect(window).toBeLessThanOrEqual(MAX_WINDOW_BYTES);
    expect(await rig[reader].transfer(paused)).toMatchObject({ receivedBytes, isPaused: true, hasEnded: false });
    await rig[reader].resume(paused);
    expect(await state("hasEnded")).toMatchObject({ receivedBytes: TRANSFER_BYTES, isRight: true });
    const records = await pair.waitForEdgeRecords("bulk", 5);
    expect(records.at(-1)).toMatchObject({ code: "--" });
  });

  test(`leaves ${OTHER_STREAMS} other streams nine tenths of their rate`, async () => {
    const { pair, partners } = await startRig();
    await partners.open(honest, OTHER_STREAMS);
    await delay(ROUND_MS);
    const alone: Round[] = [];
    const beside: Round[] = [];
    const measureAlone = async () => {
      alone.push(await measureRound({ pair, partners, honest }));
    };
    const measureBeside = async () => {
      await partners.open(stalled, 1);
      await delay(500);
      beside.push(await measureRound({ pair, partners, honest }));
      await partners.close(stalled);
      await delay(200);
    };
    const rate = (rounds: readonly Round[]) =>
      sum(rounds.flatMap(({ bytes }) => bytes)) / sum(rounds.map(({ runningMs }) => runningMs));
    const share = () => rate(beside) / rate(alone);
    // One round is 0.7 to 1.2 of another by itself: where ten do not tell, more of them do.
    for (let round = 0; round < ROUNDS || (round < MAX_RATE_ROUNDS && share() < 0.9); round++) {
      // What the machine does besides comes and goes: neither half is always the first.
      for (const measure of round % 2 === 0 ? [measureAlone, measureBeside] : [measureBeside, measureAlone])
        await measure();
    }
    const shares = beside.map((round, index) => (rate([round]) / rate([alone[index]!])).toFixed(2)).join(" ");
    const streams = Array.from({ length: OTHER_STREAMS }, (_, index) => sum(beside.map(({ bytes }) => bytes[index]!)));
    const ofMean = (bytes: number) => ((bytes * OTHER_STREAMS) / sum(streams)).toFixed(2);
    console.log(
      `${stalled}: share ${share().toFixed(2)} (${shares}) of ${Math.round(rate(alone) / 1e3)} MB/s; ` +
        `streams ${ofMean(Math.min(...streams))} to ${ofMean(Math.max(...streams))} of their mean`,
    );
    expect(share()).toBeGreaterThanOrEqual(0.9);
    // None is forgotten, whichever link carries it.
    expect((Math.min(...streams) * OTHER_STREAMS) / sum(streams)).toBeGreaterThanOrEqual(0.5);
    expect((await partners.count(honest)).failures).toBe(0);
  });

  test(`${many} times over is bounded by memory, and an honest echo is served within ${MAX_HONEST_P99_MS} ms`, async () => {
    const { pair, partners } = await startRig({ memory: `${memoryBytes / MEBIBYTE}MiB` });
    const probe = await EchoProbe.connect(pair.listenerPort("echo"));
    closers.push(() => probe.close());
    const before = await residentMemory(pair);
    await partners.open(stalled, many);
    await standstill(pair);
    const rounds: number[][] = [];
    for (let round = 0; round < ECHO_ROUNDS; round++) rounds.push(await roundTrips(probe, ECHO_ROUND_MS));
    const trips = rounds.flat();
    const { edge, agent } = await streamBytes(pair);
    const after = await residentMemory(pair);
    console.log(
      `${many} ${stalled}: ${trips.length} echoes p50 p90 p99 max ${figures(trips)} ms (${rounds.map(figures).join(", ")}); edge ${JSON.stringify(edge)}, agent ` +
        `${JSON.stringify(agent)}; resident ${Math.round((after.edgeBytes - before.edgeBytes) / MEBIBYTE)} ` +
        `and ${Math.round((after.agentBytes - before.agentBytes) / MEBIBYTE)} MiB more`,
    );
    expect(quantile(trips, 0.99)).toBeLessThanOrEqual(MAX_HONEST_P99_MS);
    const excess = many * FRAME_BYTES;
    for (const { windowBytes, queueBytes, heldBytes } of [edge, agent]) {
      expect(windowBytes + queueBytes).toBeLessThanOrEqual(memoryBytes + excess);
      expect(heldBytes).toBeLessThanOrEqual(windowBytes + queueBytes);
    }
    const bound = memoryBytes + excess + many * CONNECTION_BYTES + POOLS_BYTES + RUNTIME_SLACK_BYTES;
    expect(after.edgeBytes - before.edgeBytes).toBeLessThan(bound);
    expect(after.agentBytes - before.agentBytes).toBeLessThan(bound);
    expect((await partners.count(stalled)).failures).toBe(0);
  });
});

describe("an echo beside bulk streams", () => {
  test.for<TrafficKind>(["pull", "push"])("is at most 10 ms later than an idle one: 8 that %s", async (kind) => {
    const { pair, partners } = await startRig();
    const probe = await EchoProbe.connect(pair.listenerPort("echo"));
    closers.push(() => probe.close());
    const idle: number[] = [];
    const busy: number[] = [];
    const laterMs = () => Math.min(...busy) - Math.min(...idle);
    // Both are taken at their best: an idle round that was disturbed would hide what a busy one has of the product's own.
    while (busy.length < MAX_ROUNDS && (busy.length < 2 || laterMs() > MAX_LATER_MS)) {
      const alone = await roundTrips(probe, 2_000);
      await partners.open(kind, 8);
      await delay(500);
      const [beside, rate] = await Promise.all([roundTrips(probe, 2_000), partners.rate(kind, 2_000)]);
      await partners.close(kind);
      await delay(200);
      console.log(
        `${kind}: p50 p90 p99 max idle ${figures(alone)} ms, busy ${figures(beside)} ms at ${Math.round(rate / 1e6)} MB/s`,
      );
      idle.push(quantile(alone, 0.99));
      busy.push(quantile(beside, 0.99));
    }
    expect(laterMs()).toBeLessThanOrEqual(MAX_LATER_MS);
  });
});
