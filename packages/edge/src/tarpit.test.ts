import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Tarpit } from "./tarpit.ts";

let server: Server;
let accepted: Socket[];
beforeEach(async () => {
  accepted = [];
  server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    socket.on("error", () => undefined);
    accepted.push(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
});
afterEach(() => {
  for (const socket of accepted) socket.destroy();
  server.close();
});

async function arrive(): Promise<{ partner: Socket; socket: Socket; told: Promise<string> }> {
  const { port } = server.address() as { port: number };
  const arrival = once(server, "connection");
  const partner = connect(port, "127.0.0.1");
  partner.resume();
  const told = new Promise<string>((resolve) => {
    partner.on("error", ({ code }: NodeJS.ErrnoException) => resolve(code ?? "error"));
    partner.on("end", () => resolve("end"));
  });
  const [socket] = (await arrival) as [Socket];
  return { partner, socket, told };
}

describe("the tarpit", () => {
  test("holds a socket for its time, then resets it", async () => {
    const tarpit = new Tarpit({ holdMs: 200, max: 10 });
    const { socket, told } = await arrive();
    const startedAt = performance.now();
    tarpit.hold(socket);
    expect(tarpit.size).toBe(1);
    expect(await told).toBe("ECONNRESET");
    expect(performance.now() - startedAt).toBeGreaterThan(190);
    expect(tarpit.size).toBe(0);
  });

  test("resets at once what it has no room for", async () => {
    const tarpit = new Tarpit({ holdMs: 60_000, max: 1 });
    const [first, second] = [await arrive(), await arrive()];
    tarpit.hold(first.socket);
    tarpit.hold(second.socket);
    expect(await second.told).toBe("ECONNRESET");
    expect([tarpit.size, first.socket.destroyed]).toEqual([1, false]);
    tarpit.clear();
    expect(await first.told).toBe("ECONNRESET");
    expect(tarpit.size).toBe(0);
  });

  test("lets go of a socket that closes meanwhile", async () => {
    const tarpit = new Tarpit({ holdMs: 60_000, max: 1 });
    const { socket } = await arrive();
    tarpit.hold(socket);
    socket.destroy();
    await once(socket, "close");
    expect(tarpit.size).toBe(0);
    tarpit.clear();
  });
});
