import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { EarlyBytes } from "./early-bytes.ts";
import { awaitFirstByte } from "./first-byte.ts";

const cleanUp: (() => void)[] = [];
afterEach(() => {
  for (const undo of cleanUp.splice(0)) undo();
});

/** A partner's socket as a listener hands it over, and the partner. */
async function partnerAndSocket(): Promise<{ partner: Socket; socket: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const partner = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  const socket = await accepted;
  for (const one of [partner, socket]) one.on("error", () => undefined);
  cleanUp.push(() => {
    partner.destroy();
    socket.destroy();
    server.close();
  });
  return { partner, socket };
}

/** A stream that takes `credit` bytes. */
class Sink {
  readonly got: Buffer[] = [];
  ended = 0;
  readonly #credit: number;
  #wake: (() => void)[] = [];

  constructor(credit = 16_384) {
    this.#credit = credit;
  }

  write(bytes: Uint8Array): boolean {
    this.got.push(Buffer.from(bytes));
    this.#notify();
    return this.length < this.#credit;
  }

  end(): void {
    this.ended += 1;
    this.#notify();
  }

  get length(): number {
    return this.got.reduce((sum, { length }) => sum + length, 0);
  }

  get text(): string {
    return Buffer.concat(this.got).toString();
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#wake.push(resolve));
  }

  #notify(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }
}

describe("what a partner sends before its target is connected", () => {
  it("flows to the first try at once, and from the beginning to the next, with what came in between once", async () => {
    const { partner, socket } = await partnerAndSocket();
    const early = new EarlyBytes(socket);
    const first = new Sink();
    early.flowTo(first);
    partner.write("hello ");
    await first.until(() => first.text === "hello ");
    early.hold();
    partner.write("world");
    const second = new Sink();
    early.flowTo(second);
    await second.until(() => second.text === "hello world");
    expect([first.text, early.bytes]).toEqual(["hello ", 11]);
  });

  it("keeps the order when a try fails in the turn in which it began, while the socket holds all that it may", async () => {
    const { partner, socket } = await partnerAndSocket();
    const sent = Buffer.from(Uint8Array.from({ length: 300_000 }, (_, at) => at >> 10));
    partner.write(sent);
    await new Promise((onOutcome) => awaitFirstByte(socket, { timeoutMs: 20_000, onOutcome }));
    while (socket.readableLength < socket.readableHighWaterMark) await turn();
    const early = new EarlyBytes(socket);
    early.flowTo(new Sink());
    early.hold();
    await turn();
    await turn();
    const sink = new Sink(65_536);
    early.flowTo(sink);
    await sink.until(() => sink.length >= 65_536);
    expect(Buffer.concat(sink.got).equals(sent.subarray(0, sink.length))).toBe(true);
  });

  it("keeps the end of the partner's direction for every try", async () => {
    const { partner, socket } = await partnerAndSocket();
    const early = new EarlyBytes(socket);
    const first = new Sink();
    early.flowTo(first);
    partner.end("all");
    await first.until(() => first.ended === 1);
    early.hold();
    const second = new Sink();
    early.flowTo(second);
    expect([second.text, second.ended]).toEqual(["all", 1]);
    const account = early.handOver();
    let ended = 0;
    account.onceEnded(() => (ended += 1));
    expect([ended, account.bytes]).toEqual([1, 3]);
    expect(account.firstByteAt).toBeLessThanOrEqual(performance.now());
  });

  it("tells whoever reads the socket next of an end that comes later", async () => {
    const { partner, socket } = await partnerAndSocket();
    const early = new EarlyBytes(socket);
    early.flowTo(new Sink());
    const account = early.handOver();
    const ended = new Promise<void>((resolve) => account.onceEnded(resolve));
    socket.resume();
    partner.end();
    await ended;
    expect(account.bytes).toBe(0);
  });

  it("is read no further than the stream takes, and one chunk", async () => {
    const { partner, socket } = await partnerAndSocket();
    const early = new EarlyBytes(socket);
    const sink = new Sink(16_384);
    early.flowTo(sink);
    partner.write(Buffer.alloc(4_000_000));
    await sink.until(() => sink.length >= 16_384);
    const read = early.bytes;
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
    expect(early.bytes).toBe(read);
    expect(read).toBeLessThanOrEqual(16_384 + 65_536);
    expect(socket.isPaused()).toBe(true);
  });

  it("is bounded however much the stream would take", async () => {
    const { partner, socket } = await partnerAndSocket();
    const early = new EarlyBytes(socket);
    const sink = new Sink(Number.POSITIVE_INFINITY);
    early.flowTo(sink);
    partner.write(Buffer.alloc(4_000_000));
    await sink.until(() => sink.length >= 65_536);
    early.resume();
    expect(socket.isPaused()).toBe(true);
    expect(early.bytes).toBeLessThanOrEqual(65_536 + 65_536);
  });
});
