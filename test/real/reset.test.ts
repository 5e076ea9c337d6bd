import { connect } from "node:net";
import type { Socket } from "node:net";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { findFreePort } from "../support/free-port.ts";
import { PseudoRandomBytes, pseudoRandomStream } from "../support/prng.ts";
import { ROUTE_MODES, Routes } from "../support/routes.ts";
import type { RouteMode } from "../support/routes.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { SocketEnding } from "../support/socket-ending.ts";
import { startTcpServer } from "../support/tcp-server.ts";
import type { TcpServer } from "../support/tcp-server.ts";

const TRANSFER_BYTES = 64 * 1024 * 1024;
const CUT_AFTER_BYTES = 4 * 1024 * 1024;

/** Nothing but a reset: neither a clean end nor a close that hides one. */
const RESET = { how: "error", code: "ECONNRESET" };

describe("resets", () => {
  let behaviour: (socket: Socket) => void = () => undefined;
  let target: TcpServer;
  let routes: Routes<"target" | "nobody">;
  let targetEnding: Promise<SocketEnding>;

  beforeAll(async () => {
    target = await startTcpServer((socket) => behaviour(socket));
    routes = await Routes.to({ target: target.port, nobody: await findFreePort() });
  });

  afterAll(async () => {
    await routes?.stop();
    await target?.close();
  });

  beforeEach(() => {
    behaviour = () => undefined;
  });

  const connectPartner = (port: number): Socket => {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    socket.on("error", () => undefined);
    return socket;
  };
  const partnerOf = (mode: RouteMode): Socket => connectPartner(routes.port("target", mode));

  it.each(ROUTE_MODES)("a target that resets at once is seen as a reset by the partner, %s", async (mode) => {
    behaviour = (socket) => socket.resetAndDestroy();
    expect(await socketEnding(partnerOf(mode))).toEqual({ ...RESET, receivedBytes: 0 });
  });

  it.each(ROUTE_MODES)("a target that nobody serves is seen as a failure, never as an end, %s", async (mode) => {
    const ending = await socketEnding(connectPartner(routes.port("nobody", mode)));
    expect(ending).toEqual({ how: "error", code: expect.stringMatching(/^ECONN(RESET|REFUSED)$/), receivedBytes: 0 });
  });

  it.each(ROUTE_MODES)("a target that resets while it sends is seen as a reset by the partner, %s", async (mode) => {
    const source = new PseudoRandomBytes("cut download");
    behaviour = (socket) => {
      pseudoRandomStream(source, TRANSFER_BYTES).pipe(socket);
    };
    const partner = partnerOf(mode);
    const ending = socketEnding(partner);
    await receivedAtLeast(partner, CUT_AFTER_BYTES);
    for (const socket of target.sockets) socket.resetAndDestroy();
    const { receivedBytes, ...how } = await ending;
    expect(how).toEqual(RESET);
    expect(receivedBytes).toBeLessThan(TRANSFER_BYTES);
  });

  it.each(ROUTE_MODES)("a target that resets while it receives is seen as a reset by the partner, %s", async (mode) => {
    behaviour = (socket) => {
      void receivedAtLeast(socket, CUT_AFTER_BYTES).then(() => socket.resetAndDestroy());
    };
    const partner = partnerOf(mode);
    pseudoRandomStream(new PseudoRandomBytes("cut upload"), TRANSFER_BYTES).pipe(partner);
    expect(await socketEnding(partner)).toEqual({ ...RESET, receivedBytes: 0 });
  });

  it.each(ROUTE_MODES)("a partner that resets while it sends is seen as a reset by the target, %s", async (mode) => {
    const arrived = new Promise<void>((resolve) => {
      behaviour = (socket) => {
        targetEnding = socketEnding(socket);
        void receivedAtLeast(socket, CUT_AFTER_BYTES).then(resolve);
      };
    });
    const partner = partnerOf(mode);
    pseudoRandomStream(new PseudoRandomBytes("cut upload"), TRANSFER_BYTES).pipe(partner);
    await withDeadline(arrived, { what: "the partner's first bytes at the target" });
    partner.resetAndDestroy();
    const { receivedBytes, ...how } = await targetEnding;
    expect(how).toEqual(RESET);
    expect(receivedBytes).toBeLessThan(TRANSFER_BYTES);
  });

  it.each(ROUTE_MODES)("a partner that resets while it receives is seen as a reset by the target, %s", async (mode) => {
    behaviour = (socket) => {
      targetEnding = socketEnding(socket);
      pseudoRandomStream(new PseudoRandomBytes("cut download"), TRANSFER_BYTES).pipe(socket);
    };
    const partner = partnerOf(mode);
    await receivedAtLeast(partner, CUT_AFTER_BYTES);
    partner.resetAndDestroy();
    expect(await targetEnding).toEqual({ ...RESET, receivedBytes: 0 });
  });

  it.each(ROUTE_MODES)("a target that resets while its partner does not read is seen as a reset, %s", async (mode) => {
    const stalled = new Promise<Socket>((resolve) => {
      behaviour = (socket) => {
        pseudoRandomStream(new PseudoRandomBytes("stalled download"), TRANSFER_BYTES).pipe(socket);
        void sendingHasStalled(socket).then(() => resolve(socket));
      };
    });
    const partner = partnerOf(mode);
    (await withDeadline(stalled, { what: "a stalled target", timeoutMs: 20_000 })).resetAndDestroy();
    expect(await socketEnding(partner)).toMatchObject(RESET);
  });

  it.each(ROUTE_MODES)("a target that resets is seen as a reset by a partner that has ended, %s", async (mode) => {
    const stalled = new Promise<Socket>((resolve) => {
      behaviour = (socket) => {
        socket.once("end", () => {
          pseudoRandomStream(new PseudoRandomBytes("answer"), TRANSFER_BYTES).pipe(socket);
          void sendingHasStalled(socket).then(() => resolve(socket));
        });
        socket.resume();
      };
    });
    const partner = partnerOf(mode);
    partner.end("question");
    (await withDeadline(stalled, { what: "a stalled target", timeoutMs: 20_000 })).resetAndDestroy();
    expect(await socketEnding(partner)).toMatchObject(RESET);
  });

  it.each(ROUTE_MODES)("a partner that resets while its target does not read is seen as a reset, %s", async (mode) => {
    const accepted = new Promise<Socket>((resolve) => {
      behaviour = resolve;
    });
    const partner = partnerOf(mode);
    pseudoRandomStream(new PseudoRandomBytes("stalled upload"), TRANSFER_BYTES).pipe(partner);
    const targetSocket = await withDeadline(accepted, { what: "the connection at the target" });
    await sendingHasStalled(partner);
    partner.resetAndDestroy();
    expect(await socketEnding(targetSocket)).toMatchObject(RESET);
  });

  it.each(ROUTE_MODES)(
    "a partner that resets an idle connection is seen as a reset by the target, %s",
    async (mode) => {
      const greeted = new Promise<void>((resolve) => {
        behaviour = (socket) => {
          targetEnding = socketEnding(socket);
          socket.write("hello");
          resolve();
        };
      });
      const partner = partnerOf(mode);
      await receivedAtLeast(partner, 5);
      await greeted;
      partner.resetAndDestroy();
      expect(await targetEnding).toEqual({ ...RESET, receivedBytes: 0 });
    },
  );
});

/** Resolves when the socket holds bytes to send and the other side has stopped taking them. */
function sendingHasStalled(socket: Socket): Promise<true> {
  let unsentBytes = 0;
  return pollUntil(
    () => {
      const isStalled = socket.writableNeedDrain && socket.writableLength === unsentBytes;
      unsentBytes = socket.writableLength;
      return isStalled ? true : undefined;
    },
    { what: "a sender that waits", timeoutMs: 20_000 },
  );
}

function receivedAtLeast(socket: Socket, bytes: number): Promise<void> {
  const received = new Promise<void>((resolve) => {
    socket.on("data", () => {
      if (socket.bytesRead >= bytes) resolve();
    });
  });
  return withDeadline(received, { what: `${bytes} bytes on the socket`, timeoutMs: 20_000 });
}
