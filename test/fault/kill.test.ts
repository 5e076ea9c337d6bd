/** Either program is killed without a chance to say goodbye, while it carries 200 connections. */
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { processUsage } from "../support/process-usage.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";

const STREAMS = 200;
const RESUME_TIMEOUT_MS = 4_000;
/** The least that `resumeTimeout` takes. */
const SHORTEST_HOLD_MS = 1_000;
/** Over which the survivor's use of the processor is measured, once it has dealt with the loss. */
const SETTLE_MS = 500;
const IDLE_MS = 3_000;
const MAX_IDLE_CPU_SHARE = 0.02;
/** While streams wait, an agent tries for a link several times a second, so that they go on as soon as they can. */
const MAX_WAITING_CPU_SHARE = 0.05;
/** A new process, its readiness and one connection through it. */
const MAX_RETURN_MS = 3_000;

let closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

async function startRig(resumeTimeoutMs = RESUME_TIMEOUT_MS) {
  const echo = await startEchoServer();
  closers.push(() => echo.close());
  const pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${echo.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    edgeConfig: { resumeTimeout: `${resumeTimeoutMs}ms` },
  });
  closers.push(() => pair.stop());
  const probes = await Promise.all(Array.from({ length: STREAMS }, () => EchoProbe.connect(pair.listenerPort("echo"))));
  closers.push(() => probes.forEach((probe) => probe.close()));
  const partners = probes.map(({ socket }) => socket);
  const targets = [...echo.sockets];
  expect(targets).toHaveLength(STREAMS);
  return { pair, partners, targets };
}

/** Share of one processor that a process uses while its peer is away. */
async function cpuShare(pid: number): Promise<number> {
  await delay(SETTLE_MS);
  const before = await processUsage(pid);
  const startedAt = performance.now();
  await delay(IDLE_MS);
  const after = await processUsage(pid);
  return (after.cpuMs - before.cpuMs) / (performance.now() - startedAt);
}

/** How each ended, without doubles, and when the last one did. */
async function endings(sockets: readonly Parameters<typeof socketEnding>[0][], sinceMs: number) {
  const all = await Promise.all(
    sockets.map(async (socket) => {
      const { how, code } = await socketEnding(socket);
      return { how: code ?? how, afterMs: performance.now() - sinceMs };
    }),
  );
  return { kinds: [...new Set(all.map(({ how }) => how))], lastMs: Math.max(...all.map(({ afterMs }) => afterMs)) };
}

const story = ({ code, reason }: Readonly<Record<string, unknown>>) => [code, reason].join(" ");

/** Milliseconds until a new connection is served. */
async function returnMs(pair: SallyportPair, restart: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  await restart();
  await pollUntil(
    async () => {
      const probe = await EchoProbe.connect(pair.listenerPort("echo"));
      probe.close();
      return true;
    },
    { what: "service after the restart" },
  );
  return performance.now() - startedAt;
}

describe("kill -9", () => {
  test("of the agent resets every partner when it does not come back, and new ones are served when it does", async () => {
    const { pair, partners, targets } = await startRig();
    const killedAt = performance.now();
    pair.agent.process.signal("SIGKILL");
    const partnersEnd = endings(partners, killedAt);
    // The system closes the sockets of a killed process; whether by FIN or by RST is not in the program's hands.
    expect((await endings(targets, killedAt)).lastMs).toBeLessThan(1_000);
    const edgeShare = await cpuShare(pair.edge.process.pid);
    const { kinds, lastMs } = await partnersEnd;
    expect(kinds).toEqual(["ECONNRESET"]);
    expect(lastMs).toBeLessThan(RESUME_TIMEOUT_MS + 1_000);
    const records = await pair.waitForEdgeRecords("echo", STREAMS);
    expect(new Set(records.map(story))).toEqual(new Set(["DX tunnel session not resumed in time"]));
    expect(await returnMs(pair, () => pair.restartAgent())).toBeLessThan(MAX_RETURN_MS);
    expect(edgeShare).toBeLessThan(MAX_IDLE_CPU_SHARE);
  });

  test("of the agent resets every partner within a second of the shortest hold that can be set", async () => {
    const { pair, partners } = await startRig(SHORTEST_HOLD_MS);
    const killedAt = performance.now();
    pair.agent.process.signal("SIGKILL");
    const { kinds, lastMs } = await endings(partners, killedAt);
    expect(kinds).toEqual(["ECONNRESET"]);
    expect(lastMs).toBeLessThan(SHORTEST_HOLD_MS + 1_000);
    expect(new Set((await pair.waitForEdgeRecords("echo", STREAMS)).map(story))).toEqual(
      new Set(["DX tunnel session not resumed in time"]),
    );
  });

  test("of the agent resets every partner as soon as a new process takes its place", async () => {
    const { pair, partners } = await startRig();
    const killedAt = performance.now();
    pair.agent.process.signal("SIGKILL");
    const partnersEnd = endings(partners, killedAt);
    await pair.agent.process.waitForEnd();
    expect(await returnMs(pair, () => pair.restartAgent())).toBeLessThan(MAX_RETURN_MS);
    const { kinds, lastMs } = await partnersEnd;
    expect(kinds).toEqual(["ECONNRESET"]);
    // Sooner than the timeout would have it.
    expect(lastMs).toBeLessThan(RESUME_TIMEOUT_MS);
    // Besides, there are those of the connections that asked for service while there was none.
    const records = (await pair.waitForEdgeRecords("echo", STREAMS)).map(story);
    expect(records.filter((text) => text === "DX agent replaced by a new process")).toHaveLength(STREAMS);
    await pair.edge.process.waitForLine(/"msg":"session ended"/);
    expect(pair.edge.process.stdout).toMatch(/"code":4409,"reason":"replaced by a new session"/);
  });

  test("of the edge ends every partner at once, resets the targets, and the agent finds the new one", async () => {
    const { pair, partners, targets } = await startRig();
    const killedAt = performance.now();
    pair.edge.process.signal("SIGKILL");
    const targetsEnd = endings(targets, killedAt);
    expect((await endings(partners, killedAt)).lastMs).toBeLessThan(1_000);
    expect(await cpuShare(pair.agent.process.pid)).toBeLessThan(MAX_WAITING_CPU_SHARE);
    expect(await returnMs(pair, () => pair.restartEdge())).toBeLessThan(MAX_RETURN_MS);
    const { kinds, lastMs } = await targetsEnd;
    expect(kinds).toEqual(["ECONNRESET"]);
    expect(lastMs).toBeLessThan(RESUME_TIMEOUT_MS + 1_000);
  });

  test("of the edge resets the targets when it does not come back", async () => {
    const { pair, targets } = await startRig();
    const killedAt = performance.now();
    pair.edge.process.signal("SIGKILL");
    const { kinds, lastMs } = await endings(targets, killedAt);
    expect(kinds).toEqual(["ECONNRESET"]);
    expect(lastMs).toBeLessThan(RESUME_TIMEOUT_MS + 1_000);
    expect(new Set((await pair.waitForAgentRecords(STREAMS)).map(story))).toEqual(
      new Set(["DX tunnel session not resumed in time"]),
    );
    // From then on nobody waits, and the agent tries every ten seconds on average.
    expect(await cpuShare(pair.agent.process.pid)).toBeLessThan(MAX_IDLE_CPU_SHARE);
  });
});
