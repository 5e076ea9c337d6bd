import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { setImmediate } from "node:timers/promises";
import { expect, test } from "vitest";
import { onConfirmedEnd } from "./confirmed-end.ts";
import { readInSmallPieces, readSocket } from "./socket-reading.ts";

/** A socket that has read bytes and the end of its peer, and holds both. */
async function socketThatHoldsItsEnd(): Promise<{ socket: Socket; close: () => void }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const arriving = once(server, "connection");
  const peer = connect({ host: "127.0.0.1", port });
  peer.on("error", () => undefined);
  peer.end("bytes");
  const [socket] = (await arriving) as [Socket];
  readInSmallPieces(socket);
  socket.read(0);
  const state = (socket as unknown as { readonly _readableState: { readonly ended: boolean } })._readableState;
  while (!state.ended) await setImmediate();
  return {
    socket,
    close: () => {
      peer.destroy();
      socket.destroy();
      server.close();
    },
  };
}

const ways: readonly (readonly [name: string, take: (socket: Socket, onBytes: () => void) => void])[] = [
  ["as a stream", (socket, onBytes) => socket.on("data", onBytes)],
  ["into the shared buffer", (socket, onBytes) => readSocket(socket, onBytes)],
];

for (const [name, take] of ways) {
  test(`an end behind bytes at which a socket was paused is confirmed while it is resumed: read ${name}`, async () => {
    const { socket, close } = await socketThatHoldsItsEnd();
    const told: string[] = [];
    const confirmed = new Promise<void>((resolve) => {
      onConfirmedEnd(socket, () => {
        told.push("confirmed");
        resolve();
      });
    });
    socket.on("error", (error) => told.push(error.message));
    take(socket, () => {
      told.push("bytes");
      socket.pause();
    });
    socket.on("end", () => {
      told.push("end");
      socket.resume();
      socket.pause();
      socket.read(0);
      socket.resume();
    });
    socket.resume();
    await Promise.race([confirmed, once(socket, "close")]);
    expect(told).toEqual(["bytes", "end", "confirmed"]);
    expect(socket.destroyed).toBe(false);
    close();
  });
}

for (const [name, take] of [
  ["as a stream", readInSmallPieces],
  ["into the shared buffer", (socket) => readSocket(socket, () => undefined)],
  ["into the shared buffer, small", (socket) => readSocket(socket, () => undefined, { isLarge: false })],
] as readonly (readonly [name: string, take: (socket: Socket) => void])[]) {
  test(`a socket may be taken over while its end is confirmed: read ${name}`, async () => {
    const { socket, close } = await socketThatHoldsItsEnd();
    const told: string[] = [];
    const confirmed = new Promise<void>((resolve) => onConfirmedEnd(socket, resolve));
    socket.on("error", (error) => told.push(error.message));
    socket.once("data", () => socket.pause());
    socket.on("end", () => {
      told.push("end");
      take(socket);
      socket.resume();
    });
    socket.resume();
    await Promise.race([confirmed, once(socket, "close")]);
    expect(told).toEqual(["end"]);
    expect(socket.destroyed).toBe(false);
    close();
  });
}
