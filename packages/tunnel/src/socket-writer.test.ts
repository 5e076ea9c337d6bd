import { createHash } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { LARGE_CHUNK_BYTES, largeChunks, middleChunks } from "@sallyport/protocol";
import { afterEach, expect, test } from "vitest";
import { pollUntil, withDeadline } from "../../../test/support/deadline.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { readSocket, readsShared } from "./socket-reading.ts";
import { SocketWriter } from "./socket-writer.ts";

let server: TcpServer | undefined;
let client: Socket | undefined;
afterEach(async () => {
  client?.destroy();
  await server?.close();
});

async function connectPair(): Promise<{ near: Socket; far: Socket }> {
  const accepted = new Promise<Socket>((resolve) => {
    void startTcpServer(resolve).then((started) => {
      server = started;
      client = connect({ host: "127.0.0.1", port: started.port, allowHalfOpen: true });
    });
  });
  const far = await withDeadline(accepted, { what: "accept" });
  return { near: client!, far };
}

test("this Node lets sockets share the buffer into which they are read", () => {
  expect(readsShared).toBe(true);
});

test("what is written arrives in order and is confirmed to the byte, however it is cut", async () => {
  const { near, far } = await connectPair();
  let confirmed = 0;
  const writer = new SocketWriter(near, (bytes) => {
    confirmed += bytes;
  });
  const received = createHash("sha256");
  const sent = createHash("sha256");
  let arrived = 0;
  readSocket(far, (bytes) => {
    arrived += bytes.length;
    received.update(bytes);
  });
  far.resume();
  let total = 0;
  for (let round = 0; round < 400; round += 1) {
    const piece = new Uint8Array(1 + ((round * 7_919) % 16_000)).fill(round);
    writer.write(piece);
    sent.update(piece);
    // The memory of a piece is the caller's again at once.
    piece.fill(0xee);
    total += piece.length;
    if (round % 5 === 0) writer.flush();
  }
  writer.flush();
  await pollUntil(() => (arrived === total && confirmed === total ? true : undefined), { what: "every byte" });
  expect(received.digest("hex")).toBe(sent.digest("hex"));
  expect(writer.idle).toBe(true);
});

test("a piece that is larger than any buffer goes out whole", async () => {
  const { near, far } = await connectPair();
  let confirmed = 0;
  const writer = new SocketWriter(near, (bytes) => {
    confirmed += bytes;
  });
  const received = createHash("sha256");
  readSocket(far, (bytes) => received.update(bytes));
  far.resume();
  const piece = Uint8Array.from({ length: 3 * LARGE_CHUNK_BYTES + 100 }, (_, index) => index % 251);
  const sent = createHash("sha256").update("before").update(piece).update(piece).digest("hex");
  writer.write(Buffer.from("before"));
  writer.write(piece);
  writer.write(piece);
  writer.end();
  await withDeadline(once(far, "end"), { what: "end" });
  expect(received.digest("hex")).toBe(sent);
  expect(confirmed).toBe(6 + 2 * piece.length);
});

test("what waits for a socket that takes nothing costs little more than its bytes", async () => {
  const { near, far } = await connectPair();
  let confirmed = 0;
  const writer = new SocketWriter(near, (bytes) => {
    confirmed += bytes;
  });
  const received = createHash("sha256");
  readSocket(far, (bytes) => received.update(bytes));
  far.pause();
  const flood = Buffer.alloc(240 * LARGE_CHUNK_BYTES, 1);
  writer.write(flood);
  writer.flush();
  // Fewer are kept than the pools may keep, so that one that is taken or made shows.
  for (const pool of [largeChunks, middleChunks]) {
    const some = Array.from({ length: 3 }, () => pool.take());
    some.forEach((chunk) => pool.give(chunk));
  }
  const kept = () => [largeChunks.kept, middleChunks.kept];
  const before = kept();
  writer.write(Buffer.alloc(10, 2));
  writer.flush();
  expect(kept()).toEqual(before);
  writer.write(Buffer.alloc(1_100, 3));
  expect(kept()).toEqual([before[0]!, before[1]! - 1]);
  writer.write(Buffer.alloc(20_000, 4));
  expect(kept()).toEqual([before[0]! - 1, before[1]!]);
  far.resume();
  writer.end();
  await withDeadline(once(far, "end"), { what: "end" });
  const sent = createHash("sha256").update(flood);
  for (const [length, fill] of [
    [10, 2],
    [1_100, 3],
    [20_000, 4],
  ] as const)
    sent.update(Buffer.alloc(length, fill));
  expect(received.digest("hex")).toBe(sent.digest("hex"));
  expect(confirmed).toBe(flood.length + 21_110);
});

test("the end comes behind every byte", async () => {
  const { near, far } = await connectPair();
  const writer = new SocketWriter(near, () => undefined);
  let arrived = 0;
  readSocket(far, (bytes) => {
    arrived += bytes.length;
  });
  far.resume();
  for (let count = 0; count < 50; count += 1) writer.write(new Uint8Array(LARGE_CHUNK_BYTES));
  writer.write(new Uint8Array(10));
  writer.end();
  await withDeadline(once(far, "end"), { what: "end" });
  expect(arrived).toBe(50 * LARGE_CHUNK_BYTES + 10);
});

test("bytes that were given back to a socket come before those that it reads", async () => {
  const { near, far } = await connectPair();
  far.pause();
  far.unshift(Buffer.from("first "));
  let text = "";
  readSocket(far, (bytes) => {
    text += bytes.toString("latin1");
  });
  near.end("second");
  far.resume();
  await withDeadline(once(far, "end"), { what: "end" });
  expect(text).toBe("first second");
});

test("what a paused socket has buffered comes before what it reads, and waits as long as it is paused", async () => {
  const { near, far } = await connectPair();
  far.once("data", (bytes: Buffer) => {
    far.pause();
    far.unshift(bytes);
  });
  near.write("one ");
  await pollUntil(() => (far.readableLength > 0 ? true : undefined), { what: "a buffered piece" });
  near.write("two ");
  await pollUntil(() => (far.readableLength > 4 ? true : undefined), { what: "another" });
  let text = "";
  readSocket(far, (bytes) => {
    text += bytes.toString("latin1");
  });
  near.end("three");
  // Two round trips of a loopback socket: what would be read out of turn has come by then.
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(text).toBe("");
  far.resume();
  await withDeadline(once(far, "end"), { what: "end" });
  expect(text).toBe("one two three");
});

test("a socket that is paused reads nothing until it is resumed", async () => {
  const { near, far } = await connectPair();
  let arrived = 0;
  readSocket(far, (bytes) => {
    arrived += bytes.length;
    if (arrived > 0) far.pause();
  });
  far.resume();
  near.end(Buffer.alloc(3 * LARGE_CHUNK_BYTES));
  await pollUntil(() => (arrived > 0 ? true : undefined), { what: "the first read" });
  expect(arrived).toBeLessThanOrEqual(LARGE_CHUNK_BYTES);
  far.on("pause", () => setImmediate(() => far.resume()));
  far.resume();
  await withDeadline(once(far, "end"), { what: "end" });
  expect(arrived).toBe(3 * LARGE_CHUNK_BYTES);
});
