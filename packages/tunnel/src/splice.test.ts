import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import { pollUntil, withDeadline } from "../../../test/support/deadline.ts";
import { socketEnding } from "../../../test/support/socket-ending.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { TunnelEnds, type TunnelEndsOptions } from "../../../test/support/tunnel-ends.ts";

/** What a window grows to at the most. */
const MAX_WINDOW_BYTES = 16 * 1024 * 1024;

const open: { target?: TcpServer; ends?: TunnelEnds } = {};

async function start(
  onTarget: (socket: Socket) => void,
  options: Partial<TunnelEndsOptions> = {},
): Promise<TunnelEnds> {
  open.target = await startTcpServer(onTarget);
  open.ends = await TunnelEnds.start({ targetPort: open.target.port, ...options });
  return open.ends;
}

afterEach(async () => {
  await open.ends?.stop();
  await open.target?.close();
  delete open.ends;
  delete open.target;
});

/** Everything until the end; rejects when the connection is reset. */
async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await withDeadline(
    new Promise<void>((resolve, reject) => {
      socket.once("end", resolve);
      socket.once("error", reject);
    }),
    { what: "end of the connection" },
  );
  return Buffer.concat(chunks);
}

async function resetOf(socket: Socket): Promise<string> {
  socket.resume();
  const [error] = (await withDeadline(once(socket, "error"), { what: "reset" })) as [NodeJS.ErrnoException];
  return error.code ?? "";
}

describe("half-close", () => {
  test("a target that answers only after the partner's FIN is heard in full", async () => {
    const ends = await start((socket) => {
      void readAll(socket).then((request) => socket.end(Buffer.concat([request, request])));
    });
    const partner = await ends.connectPartner();
    const request = randomBytes(300_000);
    partner.end(request);
    const reply = await readAll(partner);
    expect(reply.equals(Buffer.concat([request, request]))).toBe(true);
    expect((await ends.connections[0]!.edgeEnd).type).toBe("finished");
    expect((await ends.connections[0]!.agentEnd).type).toBe("finished");
  });

  test("a partner goes on sending after the target's FIN", async () => {
    const received = new Promise<Buffer>((resolve) => {
      void start((socket) => {
        socket.end("hello");
        void readAll(socket).then(resolve);
      }).then(async (ends) => {
        const partner = await ends.connectPartner();
        expect((await readAll(partner)).toString()).toBe("hello");
        partner.end(Buffer.alloc(500_000, 3));
      });
    });
    expect((await withDeadline(received, { what: "upload" })).length).toBe(500_000);
    expect((await open.ends!.connections[0]!.edgeEnd).type).toBe("finished");
  });

  test("one direction ended and the other silent runs into the half-close timeout", async () => {
    const ends = await start((socket) => socket.resume(), { halfCloseTimeoutMs: 100 });
    const partner = await ends.connectPartner();
    partner.end("request");
    expect(await resetOf(partner)).toBe("ECONNRESET");
  });

  test("a slow partner gets all of an answer that is complete when the half-close timeout comes", async () => {
    const answer = Buffer.alloc(300_000, 1);
    const ends = await start((socket) => socket.end(answer), { halfCloseTimeoutMs: 100 });
    const partner = await ends.connectPartner();
    partner.pause();
    await withDeadline(ends.connections[0]!.edgeEnd, { what: "timeout" });
    expect(await socketEnding(partner)).toMatchObject({ how: "end", receivedBytes: answer.length });
  });
});

describe("reset", () => {
  test("a target that resets in the middle of a transfer is seen as a reset", async () => {
    const ends = await start((socket) => {
      socket.write(Buffer.alloc(100_000));
      socket.once("data", () => socket.resetAndDestroy());
    });
    const partner = await ends.connectPartner();
    partner.once("data", () => partner.write("x"));
    expect(await resetOf(partner)).toBe("ECONNRESET");
    expect(await ends.connections[0]!.edgeEnd).toMatchObject({ type: "streamReset", code: 1, by: "peer" });
    expect(await ends.connections[0]!.agentEnd).toMatchObject({ type: "socketReset", error: "ECONNRESET" });
  });

  test("a partner that resets in the middle of a transfer is seen as a reset", async () => {
    const reset = new Promise<string>((resolve) => {
      void start((socket) => {
        socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? ""));
        socket.on("data", () => socket.write(Buffer.alloc(10_000)));
      }).then(async (ends) => {
        const partner = await ends.connectPartner();
        partner.write("x");
        partner.once("data", () => partner.resetAndDestroy());
      });
    });
    expect(await withDeadline(reset, { what: "reset at the target" })).toBe("ECONNRESET");
  });

  test("an idle connection is reset on both sides", async () => {
    const ends = await start((socket) => socket.resume(), { idleTimeoutMs: 100 });
    const partner = await ends.connectPartner();
    partner.write("x");
    expect(await resetOf(partner)).toBe("ECONNRESET");
  });
});

describe("back-pressure", () => {
  test("a target that does not read stops the partner after bounded bytes, and loses none", async () => {
    const paused: Socket[] = [];
    const ends = await start((socket) => {
      socket.pause();
      paused.push(socket);
    });
    const partner = await ends.connectPartner();
    const bytes = randomBytes(64 * 1024 * 1024);
    partner.end(bytes);
    // Credit is used up: what follows stays with the partner.
    await pollUntil(
      () => (ends.edge.session.stalledStreams === 1 && ends.edge.session.queueBytes >= 262_144 ? true : undefined),
      { what: "window filled" },
    );
    const window = ends.agent.session.windowBytes;
    expect(window).toBeLessThanOrEqual(MAX_WINDOW_BYTES);
    expect(ends.agent.session.heldBytes).toBeLessThanOrEqual(window);
    // One chunk may go beyond the window, and as much may have been consumed that was not told yet.
    expect(ends.edge.session.heldBytes).toBeLessThanOrEqual(window + 2 * 65_536);
    expect(partner.bytesWritten - partner.writableLength).toBeLessThan(bytes.length);
    const target = paused[0]!;
    const hash = createHash("sha256");
    target.on("data", (chunk: Buffer) => hash.update(chunk));
    target.resume();
    await withDeadline(once(target, "end"), { what: "end at the target", timeoutMs: 20_000 });
    expect(hash.digest("hex")).toBe(createHash("sha256").update(bytes).digest("hex"));
  });
});

test("tiny pieces for a target that does not read cost few writes, and arrive in order", async () => {
  const paused: Socket[] = [];
  const ends = await start((socket) => {
    socket.pause();
    paused.push(socket);
  });
  const partner = await ends.connectPartner();
  // Fills the kernel's buffers and the window, so that what follows trickles through it.
  const filler = Buffer.alloc(8 * 1024 * 1024, "f");
  partner.write(filler);
  for (let at = 0; at < 2_000; at += 1) partner.write(`${at},`);
  partner.end();
  const target = await pollUntil(() => paused[0], { what: "target" });
  let tail = "";
  let count = 0;
  target.on("data", (chunk: Buffer) => {
    count += chunk.length;
    tail = (tail + chunk.toString("latin1")).slice(-20_000);
  });
  target.resume();
  await withDeadline(once(target, "end"), { what: "end" });
  const numbers = Array.from({ length: 2_000 }, (_, at) => `${at},`).join("");
  expect(count).toBe(filler.length + numbers.length);
  expect(tail.endsWith(numbers)).toBe(true);
});

describe("link loss", () => {
  test("a transfer in both directions survives the loss of its only link", async () => {
    const ends = await start((socket) => socket.pipe(socket));
    const partner = await ends.connectPartner();
    const bytes = randomBytes(32 * 1024 * 1024);
    const echoed = createHash("sha256");
    let count = 0;
    let cuts = 0;
    const added: Promise<unknown>[] = [];
    partner.on("data", (chunk: Buffer) => {
      echoed.update(chunk);
      count += chunk.length;
      if (count > (cuts + 1) * 4_000_000) {
        cuts += 1;
        for (const link of ends.agent.links) link.destroy();
        added.push(ends.addLink());
      }
    });
    partner.end(bytes);
    await withDeadline(once(partner, "end"), { what: "echo", timeoutMs: 20_000 });
    // The last one may still be on its way, and the rig must not be taken down under it.
    await Promise.all(added);
    expect(cuts).toBeGreaterThan(4);
    expect(echoed.digest("hex")).toBe(createHash("sha256").update(bytes).digest("hex"));
    expect((await ends.connections[0]!.edgeEnd).type).toBe("finished");
  });

  test("when no link returns in time both sides are reset, never ended", async () => {
    const reset = new Promise<string>((resolve) => {
      void start(
        (socket) => {
          socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? ""));
          socket.write("hello");
        },
        { resumeTimeoutMs: 100 },
      ).then(async (ends) => {
        const partner = await ends.connectPartner();
        await once(partner, "data");
        for (const link of ends.agent.links) link.destroy();
        expect(await resetOf(partner)).toBe("ECONNRESET");
      });
    });
    expect(await withDeadline(reset, { what: "reset at the target" })).toBe("ECONNRESET");
  });
});
