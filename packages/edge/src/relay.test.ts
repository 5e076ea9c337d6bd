import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { Ending } from "@sallyport/tunnel";
import { withDeadline } from "../../../test/support/deadline.ts";
import { socketEnding } from "../../../test/support/socket-ending.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { pacedSocket } from "./paced-socket.ts";
import { Relay } from "./relay.ts";
import { TokenBucket } from "./token-bucket.ts";

const servers: TcpServer[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close();
});

interface Relayed {
  readonly partner: Socket;
  readonly ending: Promise<Ending>;
  readonly relay: Promise<Relay>;
}

/** A partner that is relayed to a target with the given behaviour. */
async function relayed(
  onTarget: (socket: Socket) => void,
  timeouts = { idle: 0, halfClose: 0 },
  asPartner = (socket: Socket) => socket,
): Promise<Relayed> {
  const target = await startTcpServer(onTarget);
  servers.push(target);
  let onRelay: (relay: Relay) => void = () => undefined;
  const relay = new Promise<Relay>((resolve) => {
    onRelay = resolve;
  });
  const ending = new Promise<Ending>((onEnd) => {
    void startTcpServer((socket) => {
      socket.pause();
      const out = connect({ port: target.port, host: "127.0.0.1", allowHalfOpen: true });
      out.on("error", () => undefined);
      out.pause();
      out.once("connect", () => {
        const { idle, halfClose } = timeouts;
        const partner = asPartner(socket);
        const options = { partner, target: out, idleTimeoutMs: idle, halfCloseTimeoutMs: halfClose, onEnd };
        onRelay(new Relay(options));
      });
    }).then((server) => {
      servers.push(server);
      listening(server.port);
    });
  });
  let listening: (port: number) => void = () => undefined;
  const port = await new Promise<number>((resolve) => {
    listening = resolve;
  });
  const partner = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  partner.on("error", () => undefined);
  await once(partner, "connect");
  return { partner, ending, relay };
}

async function text(socket: Socket): Promise<string> {
  let all = "";
  socket.on("data", (chunk: Buffer) => {
    all += chunk.toString("latin1");
  });
  await withDeadline(once(socket, "end"), { what: "end" });
  return all;
}

async function reset(socket: Socket): Promise<string | undefined> {
  socket.resume();
  const [error] = (await withDeadline(once(socket, "error"), { what: "reset" })) as [NodeJS.ErrnoException];
  return error.code;
}

describe("a relay", () => {
  test("carries both directions, counts them, and ends when both have ended", async () => {
    const { partner, ending, relay } = await relayed((socket) => {
      void text(socket).then((request) => socket.end(`${request}!`));
    });
    partner.end("hello");
    expect(await text(partner)).toBe("hello!");
    expect(await withDeadline(ending, { what: "ending" })).toMatchObject({ code: "--" });
    const { bytesFromPartner, bytesToPartner } = await relay;
    expect([bytesFromPartner, bytesToPartner]).toEqual([5, 6]);
  });

  test("lets the partner go on sending after the target's FIN", async () => {
    let heard: Promise<string> | undefined;
    const { partner, ending } = await relayed((socket) => {
      socket.end("greeting");
      heard = text(socket);
    });
    expect(await text(partner)).toBe("greeting");
    partner.end("late");
    expect((await ending).code).toBe("--");
    expect(await heard).toBe("late");
  });

  test("turns a reset of the target into a reset of the partner", async () => {
    const { partner, ending } = await relayed((socket) => void socket.once("data", () => socket.resetAndDestroy()));
    partner.write("x");
    expect(await reset(partner)).toBe("ECONNRESET");
    expect((await ending).code).toBe("SD");
  });

  test("turns a reset of the partner into a reset of the target", async () => {
    let atTarget: Promise<string | undefined> | undefined;
    const { partner, ending } = await relayed((socket) => {
      atTarget = reset(socket);
      socket.write("hello");
    });
    partner.once("data", () => partner.resetAndDestroy());
    expect((await withDeadline(ending, { what: "ending" })).code).toBe("CD");
    expect(await atTarget).toBe("ECONNRESET");
  });

  test("resets both sides when nothing moves for the idle timeout", async () => {
    const { partner, ending } = await relayed(() => undefined, { idle: 50, halfClose: 0 });
    expect(await reset(partner)).toBe("ECONNRESET");
    expect(await ending).toMatchObject({ code: "cD", reason: "idle timeout" });
  });

  test("is not idle while a byte rate makes an answer take longer than the idle timeout", async () => {
    const answer = Buffer.alloc(65_536, 1);
    const bucket = new TokenBucket({ perSecond: 30_000, burst: 16_384 }, performance.now());
    const { partner, ending } = await relayed(
      (socket) => socket.resume().end(answer),
      { idle: 1_000, halfClose: 0 },
      (socket) => pacedSocket(socket, { in: [], out: [bucket] }),
    );
    partner.end();
    expect(await socketEnding(partner)).toMatchObject({ how: "end", receivedBytes: answer.length });
    expect((await ending).code).toBe("--");
  });

  test("resets both sides when the other direction does not end within the half-close timeout", async () => {
    const { partner, ending } = await relayed((socket) => void socket.resume(), { idle: 0, halfClose: 50 });
    partner.end("x");
    expect(await reset(partner)).toBe("ECONNRESET");
    expect(await ending).toMatchObject({ reason: "half-close timeout" });
  });

  test("leaves a slow partner all of an answer that is complete when the half-close timeout comes", async () => {
    const answer = Buffer.alloc(300_000, 1);
    const { partner, ending } = await relayed((socket) => socket.end(answer), { idle: 0, halfClose: 50 });
    partner.pause();
    expect(await ending).toMatchObject({ reason: "half-close timeout" });
    expect(await socketEnding(partner)).toMatchObject({ how: "end", receivedBytes: answer.length });
  });
});
