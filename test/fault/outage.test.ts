/** The path stays away for longer than `resumeTimeout`: nobody may take what was cut short for a whole. */
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { metric } from "../support/metric.ts";
import { RelayProcess } from "../support/relay-process.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";

const STREAMS = 20;
const RESUME_TIMEOUT_MS = 2_000;
const HEARTBEAT = { interval: "200ms", timeout: "1s" };
const HEARTBEAT_TIMEOUT_MS = 1_000;

let closers: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const close of closers.toReversed()) await close();
  closers = [];
});

describe("an outage longer than resumeTimeout", () => {
  const table = [
    { how: "links that end", order: undefined, noticedMs: 0 },
    { how: "links that fall silent", order: "hole", noticedMs: HEARTBEAT_TIMEOUT_MS },
  ] as const;
  test.for(table)("resets both hops and says so at both ends: $how", async ({ order, noticedMs }) => {
    const echo = await startEchoServer();
    closers.push(() => echo.close());
    let relay: RelayProcess | undefined;
    const pair = await SallyportPair.start({
      services: { echo: `127.0.0.1:${echo.port}` },
      deployments: [{ name: "echo", target: "echo" }],
      publicAddress: async (tunnelPort) => {
        relay = await RelayProcess.start(tunnelPort);
        return `127.0.0.1:${relay.port}`;
      },
      edgeConfig: { resumeTimeout: `${RESUME_TIMEOUT_MS}ms`, heartbeat: HEARTBEAT },
      agentConfig: { heartbeat: HEARTBEAT },
    });
    closers.push(() => pair.stop());
    closers.push(() => relay!.close());
    const probes: EchoProbe[] = [];
    closers.push(() => probes.forEach((probe) => probe.close()));
    for (let index = 0; index < STREAMS; index++) probes.push(await EchoProbe.connect(pair.listenerPort("echo")));

    const targets = [...echo.sockets];
    expect(targets).toHaveLength(STREAMS);
    const lostAt = performance.now();
    if (order === undefined) await relay!.kill();
    else await relay!.order(order);
    const endings = await Promise.all(
      [...probes.map(({ socket }) => socket), ...targets].map(async (socket) => {
        const { how, code } = await socketEnding(socket);
        return { how, code, afterMs: performance.now() - lostAt };
      }),
    );
    for (const { how, code } of endings) expect({ how, code }).toEqual({ how: "error", code: "ECONNRESET" });
    const times = endings.map(({ afterMs }) => afterMs);
    expect(Math.min(...times)).toBeGreaterThan(RESUME_TIMEOUT_MS - 100);
    expect(Math.max(...times)).toBeLessThan(noticedMs + RESUME_TIMEOUT_MS + 5_000);

    const edgeRecords = await pair.waitForEdgeRecords("echo", STREAMS);
    const agentRecords = await pair.waitForAgentRecords(STREAMS);
    const story = ({ connection, code, reason, bytesIn, bytesOut }: Readonly<Record<string, unknown>>) =>
      [connection, code, reason, bytesIn, bytesOut].join(" ");
    expect(edgeRecords.map(story).sort()).toEqual(agentRecords.map(story).sort());
    for (const record of edgeRecords)
      expect(record).toMatchObject({ code: "DX", reason: "tunnel session not resumed in time" });
    const [edge, agent] = await Promise.all([pair.edgeMetrics(), pair.agentMetrics()]);
    for (const name of [
      "tunnel_sessions",
      "tunnel_links",
      "tunnel_streams",
      "tunnel_held_bytes",
      "connections_active",
    ]) {
      expect([name, metric(edge, `edge_${name}`), metric(agent, `agent_${name}`)]).toEqual([name, 0, 0]);
    }
    for (const dir of ["in", "out"]) {
      expect(metric(edge, "edge_bytes_total", `dir="${dir}"`)).toBe(metric(agent, "agent_bytes_total", `dir="${dir}"`));
    }

    if (order === undefined) await relay!.revive();
    else await relay!.order("heal");
    await pair.waitUntilReady();
    await pollUntil(
      async () => {
        const probe = await EchoProbe.connect(pair.listenerPort("echo"));
        probe.close();
        return true;
      },
      { what: "service after the outage" },
    );
  });
});
