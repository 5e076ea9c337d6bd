import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { buffer } from "node:stream/consumers";
import { ResetCode } from "@sallyport/protocol";
import { Splice, type SpliceEnd, type TunnelStream } from "@sallyport/tunnel";
import { describe, expect, test } from "vitest";
import { pacedSocket } from "./paced-socket.ts";
import { TokenBucket } from "./token-bucket.ts";

const RATE = 400_000;
const BURST = 40_000;
const SLOW = { perSecond: 30_000, burst: 16_384 };

async function pair(): Promise<{ partner: Socket; accepted: Socket; close: () => void }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const arriving = once(server, "connection");
  const partner = connect({ host: "127.0.0.1", port, allowHalfOpen: true });
  const [accepted] = (await arriving) as [Socket];
  return {
    partner,
    accepted,
    close: () => {
      partner.destroy();
      server.close();
    },
  };
}

const bucket = () => new TokenBucket({ perSecond: RATE, burst: BURST }, performance.now());
const bytes = (length: number) => Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 7) & 255));

describe("a paced socket", () => {
  test("passes every byte both ways, never faster than the rate, and both ends", async () => {
    const { partner, accepted, close } = await pair();
    const started = performance.now();
    const paced = pacedSocket(accepted, { in: [bucket()], out: [bucket()] });
    const sent = bytes(200_000);
    partner.end(sent);
    paced.end(sent);
    const [there, back] = await Promise.all([buffer(paced), buffer(partner)]);
    const seconds = (performance.now() - started) / 1_000;
    expect(there.equals(sent) && back.equals(sent)).toBe(true);
    expect(seconds).toBeGreaterThan((200_000 - BURST) / RATE - 0.005);
    close();
  });

  test("connections that share a bucket have its rate together", async () => {
    const shared = bucket();
    const ends = await Promise.all([pair(), pair()]);
    const started = performance.now();
    const all = await Promise.all(
      ends.map(async ({ partner, accepted }) => {
        const paced = pacedSocket(accepted, { in: [shared], out: [] });
        partner.end(bytes(100_000));
        return (await buffer(paced)).length;
      }),
    );
    expect(all).toEqual([100_000, 100_000]);
    expect((performance.now() - started) / 1_000).toBeGreaterThan((200_000 - BURST) / RATE - 0.005);
    for (const { close } of ends) close();
  });

  test("a reset of the partner is an error, and a reset of ours reaches the partner", async () => {
    const one = await pair();
    const paced = pacedSocket(one.accepted, { in: [bucket()], out: [] });
    paced.resume();
    one.partner.resetAndDestroy();
    const [error] = (await once(paced, "error")) as [NodeJS.ErrnoException];
    expect(error.code).toBe("ECONNRESET");
    one.close();

    const other = await pair();
    const ours = pacedSocket(other.accepted, { in: [bucket()], out: [bucket()] });
    other.partner.resume();
    ours.resetAndDestroy();
    const [told] = (await once(other.partner, "error")) as [NodeJS.ErrnoException];
    expect(told.code).toBe("ECONNRESET");
    other.close();
  });

  test("a reset that comes before the target is connected closes it, and nothing more", async () => {
    const { partner, accepted, close } = await pair();
    const paced = pacedSocket(accepted, { in: [bucket()], out: [] });
    const closed = new Promise((resolve) => paced.once("close", resolve));
    paced.resume();
    partner.write("x", () => partner.resetAndDestroy());
    await closed;
    expect(accepted.destroyed).toBe(true);
    close();
  });

  test("a splice is not idle while the rate makes what it writes take longer than the idle timeout", async () => {
    const { partner, accepted, close } = await pair();
    const paced = pacedSocket(accepted, { in: [], out: [bucket(), new TokenBucket(SLOW, performance.now())] });
    const stream: Partial<TunnelStream> = { consume() {}, consumeEnd() {}, reset() {}, acknowledgedBytes: 0 };
    const ends: SpliceEnd[] = [];
    const splice = new Splice(paced, stream as TunnelStream, {
      idleTimeoutMs: 1_000,
      halfCloseTimeoutMs: 0,
      onEnd: (end) => ends.push(end),
    });
    const written = bytes(65_536);
    stream.flushLater = (writer) => writer.flush();
    splice.onData(written);
    splice.onEnd();
    expect((await buffer(partner)).equals(written)).toBe(true);
    splice.abort(ResetCode.killed);
    expect(ends).toMatchObject([{ type: "aborted" }]);
    close();
  });
});
