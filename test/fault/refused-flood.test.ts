/**
 * A flood of refused connections: nothing is opened or dialled for them, and an allowed partner hardly notices. Rounds come
 * in pairs, one beside the flood and one beside as many connects to a port where nobody listens: what making them costs the
 * machine that the test shares with everybody is in both, so that their ratio tells what refusing them costs the edge.
 */
import { connect } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

const ROUNDS = 40;
const REFUSED = 10_000;
const PER_ROUND = REFUSED / ROUNDS;
/** Connects on their way at a time. */
const AT_ONCE = 20;
const PER_SECOND = 400;

let pair: SallyportPair;
let target: TcpServer;
let received = 0;

beforeAll(async () => {
  target = await startTcpServer((socket) => {
    socket.on("data", (bytes: Buffer) => (received += bytes.length));
  });
  pair = await SallyportPair.start({
    services: { sink: `127.0.0.1:${target.port}` },
    deployments: [{ name: "sink", target: "sink" }],
    edgeConfig: {
      ipFilters: [{ name: "loopback", default: "block", rules: [{ action: "allow", cidr: "127.0.0.0/24" }] }],
    },
  });
});
afterAll(async () => {
  await pair.stop();
  await target.close();
});

/** Resolves with how the connection ended. */
function knock(port: number, from: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: "127.0.0.1", localAddress: from });
    socket.on("error", ({ code }: NodeJS.ErrnoException) => resolve(code ?? "error"));
    socket.on("end", () => resolve("end"));
    socket.resume();
  });
}

interface Round {
  /** Bytes of the partner's transfer, and the time that they had. */
  readonly bytes: number;
  readonly elapsedMs: number;
  readonly endings: ReadonlySet<string>;
  readonly perSecond: number;
}

/** Makes `PER_ROUND` connects, no faster than `perSecond`; counts their endings and the bytes that passed meanwhile. */
async function round(port: number, from: string, perSecond: number): Promise<Round> {
  const endings = new Set<string>();
  const startedAt = performance.now();
  const bytesBefore = received;
  let made = 0;
  const run = async () => {
    while (made < PER_ROUND) {
      made += 1;
      const earlyMs = (made * 1_000) / perSecond - (performance.now() - startedAt);
      if (earlyMs > 0) await new Promise((resolve) => setTimeout(resolve, earlyMs));
      endings.add(await knock(port, from));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, run));
  const elapsedMs = performance.now() - startedAt;
  return { bytes: received - bytesBefore, elapsedMs, endings, perSecond: (PER_ROUND * 1_000) / elapsedMs };
}

test("10,000 refused connections open and dial nothing, and a transfer keeps four fifths of its rate", async () => {
  const port = pair.listenerPort("sink");
  const nobody = await findFreePort();
  const partner = connect({ port, host: "127.0.0.1" });
  partner.on("error", () => undefined);
  const piece = Buffer.alloc(65_536, "x");
  const feed = () => {
    while (partner.write(piece));
  };
  partner.on("drain", feed);
  partner.once("connect", feed);
  await pollUntil(() => received > 10_000_000 || undefined, { what: "a transfer that runs" });
  const refused = async () => metric(await pair.edgeMetrics(), "edge_connections_denied_total");
  const dialsBefore = metric(await pair.agentMetrics(), "agent_connections_total");
  const refusedBefore = await refused();

  const rounds: { readonly loud: Round; readonly quiet: Round }[] = [];
  for (let at = 0; at < ROUNDS; at += 1) {
    const loud = await round(port, `127.0.${1 + at}.1`, PER_SECOND);
    // A machine that is busy otherwise may not reach the rate; the other round takes as much time as this one then.
    const quiet = await round(nobody, "127.0.0.1", loud.perSecond);
    expect([...quiet.endings]).toEqual(["ECONNREFUSED"]);
    expect([...loud.endings]).toEqual(["ECONNRESET"]);
    rounds.push({ loud, quiet });
  }

  expect((await refused()) - refusedBefore).toBe(REFUSED);
  expect(metric(await pair.agentMetrics(), "agent_connections_total") - dialsBefore).toBe(0);
  expect(metric(await pair.edgeMetrics(), "edge_connections_total")).toBe(1);
  expect(metric(await pair.edgeMetrics(), "edge_tunnel_streams")).toBe(1);
  expect(target.acceptedConnections).toBe(1);
  // Of all rounds together: they are short and take turns, so that what else the machine does falls on both alike.
  const rateOf = (of: "loud" | "quiet") =>
    rounds.reduce((sum, both) => sum + both[of].bytes, 0) / rounds.reduce((sum, both) => sum + both[of].elapsedMs, 0);
  const kept = rateOf("loud") / rateOf("quiet");
  process.stdout.write(
    `a transfer kept ${(kept * 100).toFixed(0)} % of its rate beside a flood of refused connections\n`,
  );
  expect(kept).toBeGreaterThanOrEqual(0.8);
  partner.destroy();
}, 300_000);
