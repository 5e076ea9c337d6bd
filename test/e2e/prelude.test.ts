import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { Duplex } from "node:stream";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { metric } from "../support/metric.ts";
import { pollUntil } from "../support/deadline.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";

/** Answers `NAME: ` and all that the partner has sent, after its end. */
function replying(name: string): Promise<TcpServer> {
  return startTcpServer((socket) => {
    const parts: Buffer[] = [];
    socket.on("data", (bytes: Buffer) => parts.push(bytes));
    socket.on("end", () => socket.end(Buffer.concat([Buffer.from(`${name}: `), ...parts])));
  });
}

/** Sends `parts` with a turn of the event loop between them, ends, and resolves with the answer; "reset" when it was one. */
async function exchange(port: number, parts: readonly Uint8Array[]): Promise<string> {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.setNoDelay(true);
  const received: Buffer[] = [];
  socket.on("data", (bytes: Buffer) => received.push(bytes));
  const end = new Promise<string>((resolve) => {
    socket.on("error", () => resolve("reset"));
    socket.on("end", () => resolve(Buffer.concat(received).toString("latin1")));
  });
  await once(socket, "connect").catch(() => undefined);
  for (const part of parts) {
    socket.write(part);
    await new Promise((resolve) => setImmediate(resolve));
  }
  socket.end();
  const answer = await end;
  socket.destroy();
  return answer;
}

const text = (value: string) => Buffer.from(value, "latin1");
const V2_LOCAL = Buffer.from("0d0a0d0a000d0a515549540a20000000", "hex");
const V2_FULL = Buffer.from(
  "0d0a0d0a000d0a515549540a2111003bcb007107c6336414c73801bb020010736674702e6578616d706c652e636f6d050012632d3031323334353637383961626364656603000465394080",
  "hex",
);

async function clientHello(servername: string, ALPNProtocols: string[] = []): Promise<Buffer> {
  return new Promise((resolve) => {
    const wire = new Duplex({ read() {}, write: (chunk: Buffer) => resolve(chunk) });
    connectTls({ socket: wire, servername, ALPNProtocols }).on("error", () => undefined);
  });
}

describe.each(["direct", "tunnelled"])("a listener behind a proxy, %s", (mode) => {
  let target: TcpServer;
  let pair: SallyportPair;
  const isDirect = mode === "direct";

  beforeAll(async () => {
    target = await replying("target");
    const common = { target: `127.0.0.1:${target.port}`, direct: isDirect };
    pair = await SallyportPair.start({
      deployments: [
        {
          ...common,
          name: "trusted",
          listenerConfig: {
            ipFilter: "clients",
            proxyProtocol: "required",
            trustedProxies: ["127.0.0.1"],
            proxyHeaderTimeout: "500ms",
          },
        },
        {
          ...common,
          name: "untrusted",
          listenerConfig: { proxyProtocol: "required", trustedProxies: ["192.0.2.1"] },
        },
      ],
      edgeConfig: {
        ipFilters: [
          {
            name: "clients",
            default: "block",
            rules: [
              { action: "allow", cidr: "127.0.0.1" },
              { action: "allow", cidr: "203.0.113.0/24" },
              { action: "block", cidr: "203.0.113.66" },
            ],
          },
          { name: "loopback", default: "allow" },
        ],
      },
    });
  });
  afterAll(async () => {
    await pair.stop();
    await target.close();
  });

  const lastRecord = async (count: number, deployment = "trusted") =>
    (await pair.waitForEdgeRecords(deployment, count)).at(-1);
  const recordsSoFar = (deployment = "trusted") =>
    pair.records().edge.filter((record) => record.deployment === deployment).length;

  test.each<[string, Uint8Array, object]>([
    [
      "version 1",
      text("PROXY TCP4 203.0.113.9 198.51.100.20 40000 443\r\n"),
      { partner: "203.0.113.9:40000", proxyLocal: "198.51.100.20:443" },
    ],
    [
      "version 2 with additions",
      V2_FULL,
      {
        partner: "203.0.113.7:51000",
        proxyLocal: "198.51.100.20:443",
        proxyAuthority: "sftp.example.com",
        proxyUniqueId: "c-0123456789abcdef",
      },
    ],
  ])("the client of a header of %s is the partner, and the target gets what follows", async (_, header, facts) => {
    for (const parts of [
      [Buffer.concat([header, text("hello")])],
      [...header, ...text("hello")].map((byte) => Buffer.from([byte])),
    ]) {
      const before = recordsSoFar();
      expect(await exchange(pair.listenerPort("trusted"), parts)).toBe("target: hello");
      const record = await lastRecord(before + 1);
      expect(record).toMatchObject({ ...facts, code: "--", bytesIn: 5, bytesOut: 13 });
      expect(record?.peer).toMatch(/^127\.0\.0\.1:\d+$/);
    }
    const { partner } = facts as { partner: string };
    const told = isDirect ? [{ partner }] : await pair.waitForAgentRecords(1);
    expect(told.at(-1)).toMatchObject({ partner });
  });

  test("UNKNOWN leaves the proxy's own address", async () => {
    const before = recordsSoFar();
    expect(await exchange(pair.listenerPort("trusted"), [text("PROXY UNKNOWN\r\nhello")])).toBe("target: hello");
    const record = await lastRecord(before + 1);
    expect(record?.partner).toMatch(/^127\.0\.0\.1:\d+$/);
    expect(record).not.toHaveProperty("peer");
  });

  test.each<[string, string, object]>([
    ["no header", "SSH-2.0-OpenSSH\r\n", { code: "PR", reason: "bad PROXY header", rule: "no PROXY header" }],
    [
      "a lone line feed",
      "PROXY TCP4 203.0.113.9 198.51.100.20 40000 443\n",
      { code: "PR", rule: "line feed without carriage return", denied: "proxyHeader" },
    ],
    [
      "a wrong checksum",
      Buffer.from(V2_FULL).fill(1, 16, 17).toString("latin1"),
      { code: "PR", rule: "checksum is wrong" },
    ],
    [
      "a client that is blocked",
      "PROXY TCP4 203.0.113.66 198.51.100.20 40000 443\r\n",
      { code: "PA", rule: "block 203.0.113.66/32", partner: "203.0.113.66:40000", denied: "ipFilter" },
    ],
    [
      "a client that no rule allows",
      "PROXY TCP4 192.0.2.1 198.51.100.20 40000 443\r\n",
      { code: "PA", rule: "default", partner: "192.0.2.1:40000" },
    ],
  ])("%s is reset and reaches no target", async (_, sent, facts) => {
    const dialled = target.acceptedConnections;
    const before = recordsSoFar();
    expect(await exchange(pair.listenerPort("trusted"), [text(sent)])).toBe("reset");
    expect(await lastRecord(before + 1)).toMatchObject(facts);
    expect(target.acceptedConnections).toBe(dialled);
  });

  test("half a header is given up after its time", async () => {
    const before = recordsSoFar();
    const socket = connect(pair.listenerPort("trusted"), "127.0.0.1");
    socket.write("PROXY TCP4 ");
    const [error] = (await once(socket, "error")) as [NodeJS.ErrnoException];
    expect(error.code).toBe("ECONNRESET");
    expect(await lastRecord(before + 1)).toMatchObject({ code: "cR", denied: "proxyHeaderTimeout" });
  });

  test("a header of a peer that is not trusted is not even read", async () => {
    const sent = text("PROXY TCP4 203.0.113.9 198.51.100.20 40000 443\r\n");
    expect(await exchange(pair.listenerPort("untrusted"), [sent])).toBe("reset");
    const record = await lastRecord(1, "untrusted");
    expect(record).toMatchObject({ code: "PA", reason: "peer is no trusted proxy", denied: "untrustedProxy" });
    expect(record?.partner).toMatch(/^127\.0\.0\.1:/);
  });

  test("a health check of the proxy opens nothing, has no record and ends in peace", async () => {
    const dialled = target.acceptedConnections;
    const before = pair.records().edge.length;
    expect(await exchange(pair.listenerPort("trusted"), [V2_LOCAL])).toBe("");
    expect(await exchange(pair.listenerPort("trusted"), [])).toBe("");
    const cut = connect(pair.listenerPort("trusted"), "127.0.0.1");
    cut.write(V2_LOCAL, () => setImmediate(() => cut.resetAndDestroy()));
    // Under load the reset may come before the edge has accepted; then there is no address any more, and no header to read.
    const told = async () => {
      const metrics = await pair.edgeMetrics();
      const denied = metric(
        metrics,
        "edge_connections_denied_total",
        'listener="trusted",deployment="trusted",reason="badAddress"',
      );
      return metric(metrics, "edge_proxy_checks_total", 'listener="trusted"') + denied === 3 || undefined;
    };
    await pollUntil(told, { what: "all checks to be counted" });
    await pollUntil(
      async () =>
        JSON.parse(await pair.command("edge", ["status", "--json", "--config", pair.edge.configPath])).connections ===
          0 || undefined,
      { what: "the checks to be over" },
    );
    expect(pair.records().edge.length).toBe(before);
    expect(target.acceptedConnections).toBe(dialled);
  });
});

describe("deployments that share a listener", () => {
  const targets = new Map<string, TcpServer>();
  let pair: SallyportPair;

  beforeAll(async () => {
    for (const name of ["api", "portal", "rest"]) targets.set(name, await replying(name));
    const targetOf = (name: string) => `127.0.0.1:${targets.get(name)!.port}`;
    pair = await SallyportPair.start({
      deployments: [
        {
          name: "api",
          target: targetOf("api"),
          listenerConfig: { clientHelloTimeout: "500ms" },
          settings: { sni: ["api.example", "*.api.example"] },
        },
        {
          name: "portal",
          listener: "api",
          target: targetOf("portal"),
          direct: true,
          settings: { sni: ["portal.example"], alpn: ["h2"] },
        },
        { name: "rest", listener: "api", target: targetOf("rest") },
        {
          name: "strict",
          target: targetOf("api"),
          listenerConfig: { clientHelloTimeout: "500ms" },
          settings: { sni: ["api.example"] },
        },
      ],
    });
  });
  afterAll(async () => {
    await pair.stop();
    for (const target of targets.values()) await target.close();
  });

  test.each([
    ["api.example", [], "api"],
    ["API.Example", [], "api"],
    ["eu.api.example", [], "api"],
    ["eu.west.api.example", [], "rest"],
    ["portal.example", ["h2"], "portal"],
    ["portal.example", ["http/1.1"], "rest"],
    ["", [], "rest"],
  ])(
    "a client that asks for %j with %j comes to %s, byte for byte, however its greeting is split",
    async (name, alpn, to) => {
      const hello = await clientHello(name, alpn);
      const sent = Buffer.concat([hello, text("and more")]);
      const answer = `${to}: ${sent.toString("latin1")}`;
      const before = pair.records().edge.filter(({ deployment }) => deployment === to).length;
      for (const parts of [
        [sent],
        [sent.subarray(0, 1), sent.subarray(1, 7), sent.subarray(7, 100), sent.subarray(100)],
        [...sent].map((byte) => Buffer.from([byte])),
      ]) {
        expect(await exchange(pair.listenerPort("api"), parts)).toBe(answer);
      }
      const records = await pair.waitForEdgeRecords(to, before + 3);
      expect(records.at(-1)).toMatchObject({ listener: "api", code: "--", bytesIn: sent.length });
      expect(records.at(-1)?.sni).toBe(name === "" ? undefined : name.toLowerCase());
      expect(records.at(-1)?.alpn).toEqual(alpn.length === 0 ? undefined : alpn);
    },
  );

  test.each(["SSH-2.0-x\r\n", "\x16", ""])("what is no TLS comes to the deployment without names: %j", async (sent) => {
    expect(await exchange(pair.listenerPort("api"), [text(sent)])).toBe(`rest: ${sent}`);
  });

  test("a client that waits for the server to speak comes there, too, after the time for its greeting", async () => {
    const dialled = targets.get("rest")!.acceptedConnections;
    const socket: Socket = connect(pair.listenerPort("api"), "127.0.0.1");
    await pollUntil(() => targets.get("rest")!.acceptedConnections > dialled || undefined, { what: "the dial" });
    socket.end("hello");
    const [bytes] = (await once(socket, "data")) as [Buffer];
    expect(bytes.toString()).toBe("rest: hello");
  });

  test.each<[string, () => Promise<Uint8Array>, object]>([
    ["another name", () => clientHello("other.example"), { code: "PR", denied: "serverName", sni: "other.example" }],
    ["no TLS", async () => text("SSH-2.0-x\r\n"), { code: "PR", denied: "serverName" }],
    ["half a greeting and its end", async () => text("\x16\x03"), { code: "PR", denied: "serverName" }],
    ["nothing", async () => text(""), { code: "CR", reason: "partner left within its first bytes" }],
  ])("without such a deployment a client with %s is reset", async (_, sent, facts) => {
    const before = pair.records().edge.filter(({ listener }) => listener === "strict").length;
    expect(await exchange(pair.listenerPort("strict"), [await sent()])).toBe("reset");
    expect((await pair.waitForEdgeRecords("strict", before + 1)).at(-1)).toMatchObject(facts);
  });

  test("a client that is silent there is reset after its time", async () => {
    const before = pair.records().edge.filter(({ listener }) => listener === "strict").length;
    const socket = connect(pair.listenerPort("strict"), "127.0.0.1");
    await once(socket, "error");
    expect((await pair.waitForEdgeRecords("strict", before + 1)).at(-1)).toMatchObject({
      denied: "clientHelloTimeout",
    });
  });

  test("one deployment stops and starts while the others of its listener serve", async () => {
    const command = (verb: string) =>
      pair.command("edge", ["deployment", verb, "api", "--config", pair.edge.configPath]);
    const hello = await clientHello("api.example");
    await command("stop");
    expect(await exchange(pair.listenerPort("api"), [hello])).toBe("reset");
    expect(await exchange(pair.listenerPort("api"), [text("x")])).toBe("rest: x");
    const stopped = await pollUntil(() => pair.records().edge.find(({ denied }) => denied === "notRunning"), {
      what: "the record of the refusal",
    });
    expect(stopped).toMatchObject({ code: "PA", reason: "the deployment is stopped", sni: "api.example" });
    await command("start");
    expect(await exchange(pair.listenerPort("api"), [hello])).toMatch(/^api: /);
    await command("stop");
    await pair.command("edge", ["deployment", "stop", "portal", "--config", pair.edge.configPath]);
    await pair.command("edge", ["deployment", "stop", "rest", "--config", pair.edge.configPath]);
    const refused = connect(pair.listenerPort("api"), "127.0.0.1");
    expect(((await once(refused, "error")) as [NodeJS.ErrnoException])[0].code).toBe("ECONNREFUSED");
    await pair.command("edge", ["deployment", "start", "rest", "--config", pair.edge.configPath]);
    expect(await exchange(pair.listenerPort("api"), [text("x")])).toBe("rest: x");
  });
});
