import { once } from "node:events";
import { createServer, connect, type AddressInfo, type Socket } from "node:net";
import { onConfirmedEnd } from "@sallyport/tunnel";
import { afterEach, expect, test } from "vitest";
import { peek, type PeekResult } from "./peek.ts";

const open: { destroy(): void }[] = [];

afterEach(() => {
  for (const socket of open.splice(0)) socket.destroy();
});

/** Both ends of a connection over loopback; the accepted one is as the listener hands it over. */
async function pair(): Promise<{ partner: Socket; accepted: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, highWaterMark: 65_536 });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const partner = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  const [accepted] = (await once(server, "connection")) as [Socket];
  server.close();
  for (const socket of [partner, accepted]) {
    socket.on("error", () => undefined);
    open.push(socket);
  }
  return { partner, accepted };
}

/** Takes a line that ends with `;`. */
const line = (bytes: Buffer) => {
  const end = bytes.indexOf(";");
  return end === -1 ? undefined : { value: bytes.subarray(0, end).toString(), length: end + 1 };
};

function peekLine(socket: Socket, timeoutMs = 20_000): Promise<PeekResult<string>> {
  return new Promise((onDone) => peek(socket, { parse: line, maxBytes: 1_000, timeoutMs, onDone }));
}

/** All that whoever has the socket next reads, to its end. */
async function rest(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (bytes: Buffer) => (text += bytes.toString()));
  socket.resume();
  if (!socket.readableEnded) await once(socket, "end");
  return text;
}

test.each([
  ["with more behind it", "head;body", "body"],
  ["with nothing behind it", "head;", ""],
])("what is known is taken away, %s", async (_, sent, left) => {
  const { partner, accepted } = await pair();
  partner.write(sent);
  expect(await peekLine(accepted)).toEqual({ type: "known", value: "head" });
  partner.end(" and more");
  expect(await rest(accepted)).toBe(`${left} and more`);
});

test("an end that came with it is kept", async () => {
  const { partner, accepted } = await pair();
  partner.end("head;body");
  await once(partner, "finish");
  expect(await peekLine(accepted)).toEqual({ type: "known", value: "head" });
  await new Promise((resolve) => setImmediate(resolve));
  expect(accepted.readableEnded).toBe(false);
  expect(await rest(accepted)).toBe("body");
  accepted.end("answer");
  expect(await rest(partner)).toBe("answer");
});

test("bytes may come one at a time", async () => {
  const { partner, accepted } = await pair();
  partner.setNoDelay(true);
  const known = peekLine(accepted);
  for (const letter of "head;") {
    partner.write(letter);
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(await known).toEqual({ type: "known", value: "head" });
  partner.end("body");
  expect(await rest(accepted)).toBe("body");
});

test("a partner that ends too early leaves its bytes and its end as they were", async () => {
  const { partner, accepted } = await pair();
  partner.end("he");
  expect(await peekLine(accepted)).toEqual({ type: "ended", bytes: 2 });
  await new Promise((resolve) => setImmediate(resolve));
  expect(accepted.readableEnded).toBe(false);
  expect(await rest(accepted)).toBe("he");
});

test("the end of a partner that has sent nothing is told to whoever asks for it later", async () => {
  const { partner, accepted } = await pair();
  partner.end();
  expect(await peekLine(accepted)).toEqual({ type: "ended", bytes: 0 });
  await new Promise((resolve) => setImmediate(resolve));
  await new Promise<void>((resolve) => onConfirmedEnd(accepted, resolve));
  accepted.end("answer");
  expect(await rest(partner)).toBe("answer");
});

test("a socket that can only be read in the ordinary way is read on", async () => {
  const { partner, accepted } = await pair();
  Object.assign((accepted as unknown as { _handle: object })._handle, { useUserBuffer: undefined });
  partner.write("head;");
  expect(await peekLine(accepted)).toEqual({ type: "known", value: "head" });
  accepted.resume();
  partner.end("body");
  expect(await rest(accepted)).toBe("body");
});

test.each([
  ["was known, with nothing behind it", "first;", { type: "known", value: "first" }, "second"],
  ["did not come in time", "", { type: "timeout", bytes: 0 }, "second"],
  ["came in part", "se", { type: "timeout", bytes: 2 }, "second"],
])("a socket is looked at again after what was looked for %s", async (_, sent, first, second) => {
  const { partner, accepted } = await pair();
  if (sent !== "") partner.write(sent);
  expect(await peekLine(accepted, sent.endsWith(";") ? 20_000 : 100)).toEqual(first);
  const again = peekLine(accepted);
  partner.end(sent === "se" ? "cond;body" : "second;body");
  expect(await again).toEqual({ type: "known", value: second });
  expect(await rest(accepted)).toBe("body");
});

test("a partner that is silent is given up, with what it sent still there", async () => {
  const { partner, accepted } = await pair();
  partner.write("he");
  expect(await peekLine(accepted, 100)).toEqual({ type: "timeout", bytes: 2 });
  partner.end("llo");
  expect(await rest(accepted)).toBe("hello");
});

test("a partner that resets is gone", async () => {
  const { partner, accepted } = await pair();
  const result = peekLine(accepted);
  partner.write("he");
  await once(accepted, "readable");
  partner.resetAndDestroy();
  expect(await result).toEqual({ type: "closed", bytes: 2 });
});

test("a socket that is closed already is gone", async () => {
  const { accepted } = await pair();
  accepted.destroy();
  expect(await peekLine(accepted)).toEqual({ type: "closed", bytes: 0 });
});

test("after it was cancelled nothing is heard", async () => {
  const { partner, accepted } = await pair();
  const heard: unknown[] = [];
  const peeking = peek(accepted, {
    parse: line,
    maxBytes: 1_000,
    timeoutMs: 1,
    onDone: (result) => heard.push(result),
  });
  peeking.cancel();
  partner.end("head;");
  expect(await rest(accepted)).toBe("head;");
  expect(heard).toEqual([]);
});

test("a socket that was peeked at stays paused until somebody reads it, and takes a bounded part of what is sent", async () => {
  const { partner, accepted } = await pair();
  partner.write(`head;${"x".repeat(20_000_000)}`);
  expect(await peekLine(accepted)).toEqual({ type: "known", value: "head" });
  let received = 0;
  accepted.on("data", (bytes: Buffer) => (received += bytes.length));
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(accepted.readableLength).toBeLessThanOrEqual(4 * 65_536);
  expect(received).toBe(0);
  partner.end();
  await rest(accepted);
  expect(received).toBe(20_000_000);
});
