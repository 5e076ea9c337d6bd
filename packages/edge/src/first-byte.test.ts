import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { buffer } from "node:stream/consumers";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { awaitFirstByte, type FirstByteOutcome } from "./first-byte.ts";
import { peek } from "./peek.ts";

let server: Server;
let partner: Socket;
let socket: Socket;
beforeEach(async () => {
  server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const arrival = once(server, "connection");
  partner = connect({ port: (server.address() as { port: number }).port, host: "127.0.0.1", allowHalfOpen: true });
  partner.on("error", () => undefined);
  [socket] = (await arrival) as [Socket];
  socket.on("error", () => undefined);
});
afterEach(() => {
  partner.destroy();
  socket.destroy();
  server.close();
});

const outcome = (timeoutMs: number): Promise<FirstByteOutcome> =>
  new Promise((resolve) => awaitFirstByte(socket, { timeoutMs, onOutcome: resolve }));

describe("waiting for a first byte", () => {
  test("takes no byte: whoever reads next has all of them, and the socket is paused until then", async () => {
    const waiting = outcome(60_000);
    const sent = Buffer.alloc(200_000, "a");
    partner.end(sent);
    expect(await waiting).toBe("arrived");
    expect(socket.isPaused()).toBe(true);
    const read: Buffer[] = [];
    socket.on("data", (bytes: Buffer) => read.push(bytes));
    await new Promise((resolve) => setImmediate(resolve));
    expect(read).toEqual([]);
    socket.resume();
    await once(socket, "end");
    expect(Buffer.concat(read).equals(sent)).toBe(true);
  });

  test.each([
    ["ends its direction", () => partner.end()],
    ["resets", () => partner.resetAndDestroy()],
  ])("ends when the partner %s without a byte", async (_, leave) => {
    const waiting = outcome(60_000);
    leave();
    expect(await waiting).toBe("closed");
  });

  test.each([
    ["a byte comes", () => partner.write("x"), "arrived"],
    ["the partner ends", () => partner.end(), "closed"],
  ])("is over when %s behind a header that came alone", async (_, act, expected) => {
    const parse = () => ({ value: "header", length: 6 });
    const header = new Promise((onDone) => peek(socket, { parse, maxBytes: 6, timeoutMs: 60_000, onDone }));
    partner.write("header");
    await header;
    const waiting = outcome(60_000);
    act();
    expect(await waiting).toBe(expected);
  });

  test("ends with its time, and says so once", async () => {
    expect(await outcome(20)).toBe("timeout");
    partner.end("late");
    expect((await buffer(socket)).toString()).toBe("late");
  });

  test("is silent once it is cancelled", async () => {
    let told: FirstByteOutcome | undefined;
    const cancel = awaitFirstByte(socket, { timeoutMs: 10, onOutcome: (what) => (told = what) });
    cancel();
    partner.end("x");
    expect((await buffer(socket)).toString()).toBe("x");
    expect(told).toBeUndefined();
  });
});
