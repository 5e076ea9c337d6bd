/**
 * An edge that was taken over, against a real agent process: it holds the pairing's key and says whatever it likes. It
 * reaches nothing that the agent's own file does not name, and cannot end or change the agent.
 */
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Frame } from "../../packages/protocol/src/index.ts";
import { runProcess } from "../support/child-process.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { drainedOrClosed } from "../support/socket-drain.ts";
import type { TcpServer } from "../support/tcp-server.ts";
import { makeTempDir, type TempDir } from "../support/temp-dir.ts";
import { control, fields, malformedFrames, validFrames } from "./malformed-frames.ts";
import { RawEdge, type RawLink } from "./raw-edge.ts";

/** Loopback addresses, and whatever link-local ones this machine has, on which nobody must arrive. */
const sentinelAddresses = [
  "127.0.0.1",
  "127.0.0.2",
  "127.0.0.53",
  "127.0.1.1",
  "127.1.1.1",
  "127.8.8.8",
  "127.64.0.1",
  "127.127.127.127",
  "127.200.0.1",
  "127.254.254.254",
  "127.255.255.254",
  "::1",
  ...Object.entries(networkInterfaces()).flatMap(([name, addresses]) =>
    (addresses ?? []).map(({ address }) => (/^fe80/i.test(address) ? `${address}%${name}` : address)),
  ),
];

/** Listens on the same port of every sentinel address. The caller closes it. */
class Sentinels {
  port = 0;
  readonly addresses: string[] = [];
  arrived = 0;
  readonly #servers: Server[] = [];

  static async start(): Promise<Sentinels> {
    const sentinels = new Sentinels();
    for (const host of new Set(sentinelAddresses)) {
      const server = createServer((socket) => {
        sentinels.arrived += 1;
        socket.on("error", () => undefined);
        socket.destroy();
      });
      server.listen(sentinels.port, host);
      const isBound = await Promise.race([
        once(server, "listening").then(() => true),
        once(server, "error").then(() => false),
      ]);
      // A system may have fewer addresses than Linux.
      if (!isBound) continue;
      sentinels.port = (server.address() as { port: number }).port;
      sentinels.addresses.push(host);
      sentinels.#servers.push(server);
    }
    return sentinels;
  }

  close(): void {
    for (const server of this.#servers) server.close();
  }
}

let sentinels: Sentinels;
let target: TcpServer;
let directory: TempDir;
let edge: RawEdge | undefined;

beforeAll(async () => {
  sentinels = await Sentinels.start();
  target = await startEchoServer();
  directory = await makeTempDir();
});

afterEach(async () => {
  await edge?.stop();
  edge = undefined;
});

afterAll(async () => {
  sentinels.close();
  await target.close();
  await directory.remove();
});

async function start(options: Parameters<typeof RawEdge.start>[0]): Promise<{ edge: RawEdge; link: RawLink }> {
  edge = await RawEdge.start(options);
  return { edge, link: await edge.link() };
}

function open(stream: number, to: string): Frame {
  return { ...validFrames.open, stream, connection: `c-${stream}`, target: to };
}

/** What the agent answers to OPEN: `accept`, or `reset` with the code. */
async function answerTo(link: RawLink, stream: number): Promise<string> {
  const frame = await link.awaitFrame(
    (one) => (one.type === "accept" || one.type === "reset") && one.stream === stream,
    `answer on stream ${stream}`,
  );
  return frame.type === "reset" ? `reset ${frame.code}` : frame.type;
}

const FORBIDDEN = "reset 6";
/** A wide rule for addresses admits names, too, for what they lead to; these lead nowhere. */
const NAME_NOT_FOUND = "reset 5";

/** Everything that an edge could try in the place of a target: none of these is allowed by the files below. */
function unlistedTargets(port: number, ownAddresses: readonly string[]): string[] {
  const v4 =
    "127.0.0.1 127.0.0.2 127.0.0.53 127.1.1.1 127.127.127.127 127.255.255.254 0.0.0.0 127.1 127.0.1 0 2130706433 " +
    "0x7f000001 0x7f.1 017700000001 0177.0.0.1 127.0.0.01 127.0.0.1. 169.254.169.254 169.254.0.1 224.0.0.1 " +
    "255.255.255.255 localhost LOCALHOST localhost. db.localhost ip6-localhost %31%32%37.0.0.1";
  const v6 =
    "::1 :: ::ffff:127.0.0.1 ::ffff:7f00:1 0:0:0:0:0:0:0:1 64:ff9b::7f00:1 2002:7f00:1:: fe80::1 fe80::1%lo " +
    "::127.0.0.1 fd00:ec2::254 ff02::1";
  const words =
    "other DB ../db ./echo echo/../db echo/ echo,db echo;db * echo:22 __proto__ constructor toString hasOwnProperty " +
    "prototype services allow 0 length unix:/run/x.sock /run/x.sock 127.0.0.1 %2e%2e/db file:///etc/passwd - ' \" " +
    `__proto__:${port} constructor:${port} http://127.0.0.1:${port} tcp://localhost:${port}/ 127.0.0.1:${port}/ ` +
    `127.0.0.1:${port}# user@127.0.0.1:${port} echo@127.0.0.1:${port} 127.0.0.1:0${port} 127.0.0.1:+${port} ` +
    `127.0.0.1:${port}.0 127.0.0.1:0x50 10.0.0.1:${port},127.0.0.1:${port} host=127.0.0.1;port=${port} :${port}`;
  return [
    ...v4.split(" ").map((host) => `${host}:${port}`),
    ...[...v6.split(" "), ...ownAddresses].map((host) => `[${host}]:${port}`),
    ...words.split(" "),
    "db ",
    " db",
    `127.0.0.1 :${port}`,
    `{"host":"127.0.0.1","port":${port}}`,
  ];
}

describe("targets that the agent does not allow", () => {
  test("are not dialled, however they are spelled, and what is allowed still is", async () => {
    const { port } = sentinels;
    const { edge, link } = await start({
      // As wide as an operator may be careless: everything but what is special.
      config: {
        services: { echo: `127.0.0.1:${target.port}`, local: `localhost.example.invalid:${port}` },
        allow: [`0.0.0.0/1:${port}`, `128.0.0.0/1:${port}`, `[::/0]:${port}`],
        limits: { maxStreams: 200 },
      },
    });
    expect(sentinels.addresses.length).toBeGreaterThanOrEqual(12);
    const own = sentinels.addresses
      .map((address) => address.replace(/%.*/, ""))
      .filter((one) => /^(fe80|::1)/.test(one));
    const targets = unlistedTargets(port, own);
    expect(targets.length).toBeGreaterThan(70);
    const wrong: string[] = [];
    const answers: string[] = [];
    for (const [at, text] of targets.entries()) {
      link.send(open(at + 1, text));
      const answer = await answerTo(link, at + 1);
      answers.push(answer);
      if (answer !== FORBIDDEN && answer !== NAME_NOT_FOUND) wrong.push(`${text}: ${answer}`);
      link.send({ type: "closed", stream: at + 1 });
    }
    expect(wrong).toEqual([]);
    expect(sentinels.arrived).toBe(0);
    const forbidden = answers.filter((answer) => answer === FORBIDDEN);
    expect(forbidden.length).toBeGreaterThan(60);
    expect(await edge.metric("agent_forbidden_total")).toBe(forbidden.length);
    const records = await edge.heard("connection", targets.length);
    expect(records.filter(({ code }) => code === "PC")).toHaveLength(forbidden.length);
    link.send(open(1_000, "echo"));
    expect(await answerTo(link, 1_000)).toBe("accept");
    expect(edge.links).toHaveLength(1);
    const probe = connect(port, "127.0.0.1");
    await once(probe, "close");
    expect(sentinels.arrived).toBe(1);
    sentinels.arrived = 0;
  });

  test("are not dialled when a name that is allowed leads there", async (context) => {
    const { port } = sentinels;
    const hosts = join(directory.path, "hosts");
    await writeFile(
      hosts,
      [
        "127.0.0.1 localhost",
        "127.0.0.1 db.corp.example",
        "127.255.255.254 db.corp.example",
        "::1 v6.corp.example",
        "::ffff:127.0.0.1 mapped.corp.example",
        "169.254.169.254 meta.corp.example",
        "0.0.0.0 any.corp.example",
        "64:ff9b::7f00:1 nat64.corp.example",
        "2002:7f00:1:: six.corp.example",
        "fe80::1 link.corp.example",
      ]
        .map((line) => `${line}\n`)
        .join(""),
    );
    const launcher = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts];
    const isPossible = await runProcess({ command: launcher[0]!, args: [...launcher.slice(1), "true"] }).then(
      ({ code }) => code === 0,
      () => false,
    );
    context.skip(!isPossible, "needs root and mount name spaces, to give the agent a hosts file of its own");
    const { edge, link } = await start({
      launcher,
      config: {
        services: {
          echo: `127.0.0.1:${target.port}`,
          db: `db.corp.example:${port}`,
          v6: `v6.corp.example:${port}`,
          mapped: `mapped.corp.example:${port}`,
          meta: `meta.corp.example:${port}`,
          any: `any.corp.example:${port}`,
          nat64: `nat64.corp.example:${port}`,
          six: `six.corp.example:${port}`,
          link: `link.corp.example:${port}`,
        },
        allow: [`db.corp.example:${port}`, "v6.corp.example:*", `[::/0]:${port}`, `0.0.0.0/0:${port}`],
      },
    });
    const names = ["db", "v6", "mapped", "meta", "any", "nat64", "six", "link"];
    const targets = [...names, ...names.map((name) => `${name}.corp.example:${port}`)];
    const answers: string[] = [];
    for (const [at, text] of targets.entries()) {
      link.send(open(at + 1, text));
      answers.push(`${text}: ${await answerTo(link, at + 1)}`);
    }
    expect(answers).toEqual(targets.map((text) => `${text}: ${FORBIDDEN}`));
    expect(sentinels.arrived).toBe(0);
    link.send(open(100, "echo"));
    expect(await answerTo(link, 100)).toBe("accept");
    expect(edge.agent.hasEnded).toBe(false);
  });
});

describe("orders that are not of the protocol", () => {
  const smuggled: [string, Record<string, unknown>][] = [
    ["a host and a port beside the service", { host: "127.0.0.1", port: 22 }],
    ["a policy", { allow: ["0.0.0.0/0:*"] }],
    ["a command", { exec: "/bin/sh" }],
  ];

  test("end the session with 4400, dial nothing and leave a line", async () => {
    const { edge } = await start({
      config: { services: { echo: `127.0.0.1:${target.port}` }, log: { level: "info" } },
    });
    const before = target.acceptedConnections;
    for (const [at, [name, keys]] of smuggled.entries()) {
      const link = await edge.link(at + 1);
      link.send(control("open", { ...fields("open"), ...keys }));
      expect([name, await link.closeCode()]).toEqual([name, 4400]);
    }
    const ended = await edge.heard("session ended", smuggled.length);
    for (const line of ended)
      expect(line).toMatchObject({ level: "warn", code: 4400, reason: expect.stringContaining("open") });
    expect(target.acceptedConnections).toBe(before);
    await edge.link(smuggled.length + 1);
  }, 30_000);

  test("may come in any state of a session: none is taken, and the agent comes back each time", async () => {
    const { edge } = await start({ config: { services: { echo: `127.0.0.1:${target.port}` } } });
    // A second's wait follows each session that ended in a violation, so each attempt spoils one session's state.
    const cases = malformedFrames().filter(([, , code]) => code !== 1009);
    const perState = 16;
    const wrong: string[] = [];
    let count = 0;
    for (const [at, [name, bytes, code]] of cases.filter((_, index) => index % perState === 0).entries()) {
      count += 1;
      const link = await edge.link(count);
      if (at % 2 === 1) {
        link.send(open(1, "echo"));
        await answerTo(link, 1);
        link.send({ ...validFrames.data, bytes: Buffer.alloc(5_000) });
        await link.awaitFrame(({ type }) => type === "data", "the echo");
      }
      link.send(bytes);
      const closedWith = await link.closeCode().catch(() => "nothing");
      if (closedWith !== code) wrong.push(`${name}: ${closedWith} instead of ${code}`);
    }
    expect(count).toBeGreaterThan(4);
    expect(wrong).toEqual([]);
    expect(edge.agent.hasEnded).toBe(false);
    await edge.link(count + 1);
  }, 60_000);
});

describe("floods", () => {
  test("of OPENs, 20,000 a second, reach the target at the configured rate, and the agent lives", async () => {
    const dialsPerSecond = 50;
    const seconds = 2;
    const { edge } = await start({
      config: {
        services: { echo: { target: `127.0.0.1:${target.port}`, dialsPerSecond } },
        limits: { maxStreams: 500 },
      },
    });
    const before = target.acceptedConnections;
    const startedAt = performance.now();
    let opened = 0;
    let link = await edge.link();
    for (let tick = 1; tick <= seconds * 50; tick++) {
      // A session that is ended for it begins anew, and the flood goes on.
      link = edge.links.at(-1) ?? link;
      const id = link.frames.length === 0 && link !== edge.links[0] ? 0 : opened;
      for (let index = 1; index <= 400; index++)
        link.send(open(id + index, "echo"), { ...validFrames.reset, stream: id + index });
      opened += 400;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, startedAt + tick * 20 - performance.now())));
    }
    const elapsedSeconds = (performance.now() - startedAt) / 1_000;
    expect(opened).toBe(seconds * 20_000);
    expect(target.acceptedConnections - before).toBeGreaterThan(0);
    expect(target.acceptedConnections - before).toBeLessThanOrEqual(dialsPerSecond * (elapsedSeconds + 2));
    expect(edge.agent.hasEnded).toBe(false);
    // What refused OPENs leave in the log is bounded, too.
    expect(edge.said("connection").length).toBeLessThan(5_000);
    await edge.metric("agent_forbidden_total");
  }, 30_000);

  test("of pings and of WebSocket pings by an edge that does not read do not grow the agent", async () => {
    const { edge, link } = await start({ config: { services: { echo: `127.0.0.1:${target.port}` } } });
    const before = await edge.metric("process_resident_memory_bytes");
    link.socket.pause();
    const pings = Buffer.concat(
      Array.from({ length: 400 }, () => Buffer.concat([Buffer.from([0x89, 125]), Buffer.alloc(125)])),
    );
    const endsAt = performance.now() + 3_000;
    while (performance.now() < endsAt && !link.socket.destroyed) {
      if (link.socket.write(pings)) continue;
      await drainedOrClosed(link.socket);
    }
    const next = await edge.link(2);
    const frames = Array.from({ length: 2_000 }, (_, token): Frame => ({ type: "ping", token }));
    const timer = setInterval(() => next.send(...frames), 1);
    try {
      expect(await next.closeCode()).toBe(4429);
    } finally {
      clearInterval(timer);
    }
    expect((await edge.metric("process_resident_memory_bytes")) - before).toBeLessThan(96 * 1_048_576);
    expect(edge.agent.hasEnded).toBe(false);
    await edge.link(3);
  }, 30_000);
});
