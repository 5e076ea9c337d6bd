/** What both programs tell of their links and of what the loss of links cost. */
import { connect, type Socket } from "node:net";
import { afterEach, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { TcpRelay } from "../support/tcp-relay.ts";
import { startTcpServer } from "../support/tcp-server.ts";

const closers: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** The labels of a metric's samples. */
const labels = (text: string, name: string): string[] =>
  [...text.matchAll(new RegExp(`^${name}\\{([^}]*)\\} `, "gm"))].map(([, found]) => found!);

test("both ends tell the round trip of each link, and count links lost, resumptions and what was sent again", async () => {
  const target = await startEchoServer();
  closers.push(() => target.close());
  const relays: TcpRelay[] = [];
  const pair = await SallyportPair.start({
    links: 3,
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    publicAddress: async (targetPort) => {
      const relay = await TcpRelay.start({ targetPort });
      relays.push(relay);
      closers.push(() => relay.close());
      return `127.0.0.1:${relay.port}`;
    },
  });
  closers.push(() => pair.stop());
  const probe = await EchoProbe.connect(pair.listenerPort("echo"));
  closers.push(() => probe.close());

  const measured = (text: string, program: string) =>
    labels(text, `${program}_tunnel_round_trip_seconds`)
      .map((found) => Number(/link="(\d+)"/.exec(found)?.[1]))
      .toSorted((a, b) => a - b);
  const untilMeasured = () =>
    pollUntil(
      async () => {
        const both = [measured(await pair.edgeMetrics(), "edge"), measured(await pair.agentMetrics(), "agent")];
        return both.every((links) => links.length === 3) ? both : undefined;
      },
      { what: "three round trips at both ends", timeoutMs: 30_000 },
    );
  expect(await untilMeasured()).toEqual([
    [0, 1, 2],
    [0, 1, 2],
  ]);
  for (const relay of relays) relay.cut();
  await probe.roundTrip(200_000, 30_000);
  // The places of links that are gone are taken again: the labels stay few.
  expect(await untilMeasured()).toEqual([
    [0, 1, 2],
    [0, 1, 2],
  ]);
  const [edge, agent] = [await pair.edgeMetrics(), await pair.agentMetrics()];
  for (const [program, text] of [
    ["edge", edge],
    ["agent", agent],
  ] as const) {
    expect(metric(text, `${program}_tunnel_resumptions_total`)).toBe(1);
    expect(metric(text, `${program}_tunnel_links_lost_total`)).toBeGreaterThanOrEqual(3);
    expect(labels(text, `${program}_tunnel_in_flight_bytes`)).toHaveLength(3);
    expect(text).toMatch(new RegExp(`^${program}_tunnel_retransmitted_bytes_total`, "m"));
    // Nothing had to wait for credit that would not come.
    expect(metric(text, `${program}_tunnel_stalled_streams`)).toBe(0);
    for (const name of ["window_bytes", "queue_bytes", "stalled_streams", "memory_limit_bytes"]) {
      expect(text).toMatch(new RegExp(`^${program}_tunnel_${name} \\d+$`, "m"));
    }
  }
});

test("both ends count a stream that has bytes and no credit, because the far side does not read", async () => {
  // More than the windows and the buffers of all sockets on the way take.
  const bytes = Buffer.alloc(48 * 1_048_576, "x");
  let atTarget: Socket | undefined;
  const target = await startTcpServer((socket) => {
    socket.pause();
    atTarget = socket;
    socket.end(bytes);
  });
  closers.push(() => target.close());
  const pair = await SallyportPair.start({
    services: { sink: `127.0.0.1:${target.port}` },
    deployments: [{ name: "sink", target: "sink" }],
  });
  closers.push(() => pair.stop());
  const figures = async () => {
    const [edge, agent] = [await pair.edgeMetrics(), await pair.agentMetrics()];
    const of = (name: string) => [metric(edge, `edge_tunnel_${name}`), metric(agent, `agent_tunnel_${name}`)];
    return { stalled: of("stalled_streams"), stalls: of("stream_stalls_total") };
  };
  expect(await figures()).toEqual({ stalled: [0, 0], stalls: [0, 0] });
  const partner = connect({ port: pair.listenerPort("sink"), host: "127.0.0.1", allowHalfOpen: true });
  partner.on("error", () => undefined);
  partner.pause();
  partner.end(bytes);
  const stood = await pollUntil(
    async () => {
      const now = await figures();
      return now.stalled.every((count) => count === 1) ? now : undefined;
    },
    { what: "a stalled stream at both ends" },
  );
  for (const count of stood.stalls) expect(count).toBeGreaterThan(0);
  const endings = await Promise.all([partner, atTarget!].map((socket) => socketEnding(socket)));
  expect(endings.map(({ how, receivedBytes }) => ({ how, receivedBytes }))).toEqual(
    Array.from({ length: 2 }, () => ({ how: "end", receivedBytes: bytes.length })),
  );
  expect((await figures()).stalled).toEqual([0, 0]);
});
