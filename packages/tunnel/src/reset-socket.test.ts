import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { setImmediate } from "node:timers/promises";
import { ResetCode } from "@sallyport/protocol";
import { afterEach, beforeEach, expect, test } from "vitest";
import { abandon } from "./abandon.ts";
import { resetSocket } from "./reset-socket.ts";
import type { TunnelStream } from "./session-driver.ts";
import { Splice } from "./splice.ts";

let socket: Socket;
let peer: Socket;
const told: string[] = [];

beforeEach(async () => {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const arriving = once(server, "connection");
  peer = connect({ port: (server.address() as { port: number }).port, host: "127.0.0.1", allowHalfOpen: true });
  peer.on("error", () => undefined);
  [socket] = (await arriving) as [Socket];
  server.close();
  told.length = 0;
  socket.on("error", (error) => told.push(error.message));
});
afterEach(() => {
  peer.destroy();
  socket.destroy();
});

const ways: readonly (readonly [name: string, end: () => void | Promise<void>])[] = [
  ["was not ended", () => undefined],
  ["was ended in this turn", () => void socket.end()],
  ["was ended with bytes in this turn", () => void socket.end("bytes")],
  ["was ended a turn before", () => (socket.end(), setImmediate())],
  ["has sent its FIN", () => once(socket.end(), "finish").then(() => undefined)],
];

for (const [name, end] of ways) {
  for (const reset of [resetSocket, abandon]) {
    test(`${reset.name} closes a socket that ${name}`, async () => {
      await end();
      const closed = new Promise((resolve) => socket.once("close", resolve));
      reset(socket);
      await closed;
      expect(told).toEqual([]);
    });
  }
}

test("a splice whose stream is reset in the turn in which it ended closes its socket", async () => {
  const stream = { reset() {}, consumeEnd() {}, acknowledgedBytes: 0 } as unknown as TunnelStream;
  const splice = new Splice(socket, stream, { idleTimeoutMs: 0, halfCloseTimeoutMs: 0, onEnd: () => undefined });
  splice.start();
  const closed = new Promise((resolve) => socket.once("close", resolve));
  splice.onEnd();
  splice.onReset(ResetCode.connectionReset, "peer");
  await closed;
  expect(told).toEqual([]);
});
