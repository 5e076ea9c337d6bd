import { connect, type Socket } from "node:net";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { readCredentials } from "../../packages/agent/src/credentials-file.ts";
import { destroyRawAgents, RawAgent } from "../hostile/raw-agent.ts";
import { pollUntil } from "../support/deadline.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

const LOCAL = "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const open: Socket[] = [];

afterEach(() => {
  for (const socket of open.splice(0)) socket.destroy();
  destroyRawAgents();
});

function partnerOf(port: number): Socket {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => undefined);
  open.push(socket);
  return socket;
}

/** Resolves when it is closed, by a reset or not. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => socket.once("close", () => resolve()));
}

describe("agents of two ages", () => {
  let pair: SallyportPair;

  beforeAll(async () => {
    pair = await SallyportPair.start({
      deployments: [
        { name: "told", target: "127.0.0.1:9", settings: { proxyProtocol: "v2" } },
        { name: "bare", target: "127.0.0.1:9" },
      ],
    });
    await pair.agent.process.stop();
  });
  afterAll(() => pair.stop());

  test("one that knows no header gets no such key, and who needs it is refused with a reason", async () => {
    const agent = await RawAgent.greeted(await readCredentials(pair.credentialsPath), { features: [] });
    await closed(partnerOf(pair.listenerPort("told")));
    expect(await pair.waitForEdgeRecords("told", 1)).toMatchObject([
      { code: "PC", reason: "agent is too old to write a PROXY header", proxyProtocol: "v2" },
    ]);
    partnerOf(pair.listenerPort("bare"));
    expect(await agent.awaitFrame("open")).not.toHaveProperty("proxy");
    expect(agent.frames.filter(({ type }) => type === "open")).toHaveLength(1);
  });

  test("one that knows it is told partner and edge, and is preferred", async () => {
    const credentials = await readCredentials(pair.credentialsPath);
    await RawAgent.greeted(credentials, { agent: "old", features: [] });
    const agent = await RawAgent.greeted(credentials, { agent: "new", features: ["proxy-header", "later"] });
    const partner = partnerOf(pair.listenerPort("told"));
    const { proxy, partner: claimed } = await agent.awaitFrame("open");
    const own = `127.0.0.1:${partner.localPort}`;
    expect(claimed).toBe(own);
    expect(proxy).toEqual([2, own, `127.0.0.1:${pair.listenerPort("told")}`, "", ""]);
  });
});

test("an agent whose file does not allow a header refuses it, and both records say so", async () => {
  const target = await startTcpServer(() => undefined);
  const pair = await SallyportPair.start({
    deployments: [{ name: "told", target: `127.0.0.1:${target.port}`, settings: { proxyProtocol: "v1" } }],
  });
  try {
    await closed(partnerOf(pair.listenerPort("told")));
    expect(await pair.waitForEdgeRecords("told", 1)).toMatchObject([
      { code: "PC", reason: "target not allowed by the agent" },
    ]);
    expect(await pair.waitForAgentRecords(1)).toMatchObject([
      { code: "PC", reason: "PROXY header not allowed by the agent", rule: "proxyProtocol: deny" },
    ]);
    expect(target.acceptedConnections).toBe(0);
  } finally {
    await pair.stop();
    await target.close();
  }
});

test("checks of a target that expects a header begin with one of their own", async () => {
  const modes = [true, false].flatMap((direct) => ["v1", "v2"].map((version) => ({ direct, version })));
  const heads = new Map<string, string[]>();
  const targets: TcpServer[] = [];
  for (const { direct, version } of modes) {
    const name = `${direct ? "direct" : "tunnelled"}-${version}`;
    const seen: string[] = [];
    heads.set(name, seen);
    targets.push(
      await startTcpServer((socket) => {
        const ends = `${socket.remotePort} ${socket.localPort}`;
        socket.once("data", (bytes: Buffer) => {
          seen.push(bytes.toString("latin1").replace(ends, "FROM TO"));
          socket.write("ready");
        });
      }),
    );
  }
  const pair = await SallyportPair.start({
    deployments: [...heads.keys()].map((name, at) => ({
      name,
      target: `127.0.0.1:${targets[at]!.port}`,
      direct: name.startsWith("direct"),
      settings: {
        proxyProtocol: name.split("-")[1],
        check: { type: "tcp", interval: "100ms", send: "ping", expect: "ready" },
      },
    })),
    agentConfig: { allowProxyProtocol: "allow" },
  });
  try {
    for (const [name, seen] of heads) {
      await pollUntil(() => seen.length >= 2 || undefined, { what: `checks of ${name}` });
      const head = name.endsWith("v2") ? LOCAL : "PROXY TCP4 127.0.0.1 127.0.0.1 FROM TO\r\n";
      const begun = new Set(seen.map((bytes) => bytes.slice(0, head.length)));
      expect({ name, begun: [...begun] }).toEqual({ name, begun: [head] });
    }
    expect(await pair.command("edge", ["status", "--config", pair.edge.configPath])).not.toContain("down");
  } finally {
    await pair.stop();
    for (const target of targets) await target.close();
  }
});

test("limits and bans of a source are those of the header's address, and never those of the proxy", async () => {
  const target = await startTcpServer((socket) => socket.pipe(socket));
  const pair = await SallyportPair.start({
    deployments: [
      {
        name: "behind",
        target: `127.0.0.1:${target.port}`,
        direct: true,
        listenerConfig: { ipFilter: undefined, proxyProtocol: "required", trustedProxies: ["127.0.0.1"] },
      },
    ],
    edgeConfig: { limits: { maxConnectionsPerSource: 2 } },
  });
  const from = (client: string) => {
    const socket = partnerOf(pair.listenerPort("behind"));
    socket.write(`PROXY TCP4 ${client} 198.51.100.1 1000 443\r\nhello`);
    const answered = new Promise<string>((resolve) => socket.once("data", (bytes) => resolve(bytes.toString())));
    return Promise.race([answered, closed(socket).then(() => "reset")]);
  };
  try {
    expect([await from("203.0.113.9"), await from("203.0.113.9"), await from("203.0.113.9")]).toEqual([
      "hello",
      "hello",
      "reset",
    ]);
    for (const last of [10, 11, 12]) expect(await from(`203.0.113.${last}`)).toBe("hello");
    await pair.command("edge", ["ban", "add", "203.0.113.77", "--config", pair.edge.configPath]);
    expect([await from("203.0.113.77"), await from("203.0.113.78")]).toEqual(["reset", "hello"]);
    const denied = await pollUntil(
      () => {
        const found = pair.records().edge.filter((record) => record.denied !== undefined);
        return found.length >= 2 ? found : undefined;
      },
      { what: "two records of refused connections" },
    );
    expect(denied).toMatchObject([
      { partner: "203.0.113.9:1000", denied: "maxConnectionsPerSource" },
      { partner: "203.0.113.77:1000", denied: "ban" },
    ]);
  } finally {
    await pair.stop();
    await target.close();
  }
});
