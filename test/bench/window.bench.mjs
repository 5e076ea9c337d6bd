/**
 * How fast streams go over a long path: both ends of a tunnel in one process over real sockets and TLS, with a relay between
 * them that holds every chunk back for half of a round trip, in each direction. Run after the build:
 *
 *   node test/bench/window.bench.mjs [round trip in ms] [seconds]
 *
 * One line for each window and number of streams: MB/s over the second half of the time, and the largest sum of windows.
 */
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { MemoryBudget, Session } from "@sallyport/protocol";
import { connectTunnel, createToken, deriveVerifier, Link, SessionDriver, TunnelServer } from "@sallyport/tunnel";
import { makeSelfSignedCertificate } from "../../packages/edge/dist/self-signed-certificate.js";

const roundTripMs = Number(process.argv[2] ?? 50);
const seconds = Number(process.argv[3] ?? 6);
const noop = () => undefined;

/** Holds what `from` sends back for half of the round trip; bytes under way are not bounded. */
function delay(from, to) {
  const waiting = [];
  let timer;
  const run = () => {
    timer = undefined;
    while (waiting.length > 0 && waiting[0].dueAt <= performance.now()) to.write(waiting.shift().bytes);
    if (waiting.length > 0) timer = setTimeout(run, waiting[0].dueAt - performance.now());
  };
  from.on("data", (bytes) => {
    waiting.push({ dueAt: performance.now() + roundTripMs / 2, bytes });
    timer ??= setTimeout(run, roundTripMs / 2);
  });
  from.on("error", noop);
  from.once("close", () => to.destroy());
}

const certificate = await makeSelfSignedCertificate({ host: "127.0.0.1" });
const token = createToken();

async function measure({ session, streams }) {
  const options = { maxStreams: 100, initialCredit: 16_384 };
  const memory = new MemoryBudget();
  const events = { onGoAway: noop, onDetached: noop, onLinkClosed: noop, onEnded: noop };
  const edge = new SessionDriver(new Session({ role: "edge", ...options, ...session, memory }), {
    ...events,
    onOpen: noop,
  });
  const chunk = Buffer.alloc(65_536, 0x5a);
  const agent = new SessionDriver(new Session({ role: "agent", ...options, ...session }), {
    ...events,
    onOpen: (_, stream) => {
      const feed = () => {
        while (stream.write(chunk));
      };
      setImmediate(() => {
        stream.accept("");
        feed();
      });
      return { onAccept: noop, onData: noop, onEnd: noop, onWritable: feed, onReset: noop, onFinished: noop };
    },
  });
  let attached = noop;
  const ready = new Promise((resolve) => {
    attached = resolve;
  });
  const server = new TunnelServer({
    listen: { host: "127.0.0.1", port: 0 },
    tls: { key: certificate.key, cert: certificate.certificate },
    credentials: () => [deriveVerifier(token, "lan")],
    onPeer: (peer) => {
      edge.attach(new Link(peer, "edge"));
      attached();
    },
    onEvent: noop,
  });
  const { port } = await server.listen();
  const relay = createServer((near) => {
    const far = connect({ port, host: "127.0.0.1", noDelay: true });
    near.setNoDelay(true);
    delay(near, far);
    delay(far, near);
  });
  await new Promise((resolve) => relay.listen(0, "127.0.0.1", resolve));
  const address = { host: "127.0.0.1", port: relay.address().port };
  agent.attach(
    new Link(await connectTunnel({ address, certificate: certificate.certificate, client: "lan", token }), "agent"),
  );
  await ready;
  await sleep(2 * roundTripMs);

  let received = 0;
  for (let count = 0; count < streams; count += 1) {
    edge.open({ connection: "c", target: "t", deployment: "d", partner: "" }, (stream) => ({
      onAccept: noop,
      onData: (bytes) => {
        received += bytes.length;
        stream.consume(bytes.length);
      },
      onEnd: noop,
      onWritable: noop,
      onReset: noop,
      onFinished: noop,
    }));
  }
  let mostWindowBytes = 0;
  const sampler = setInterval(() => {
    mostWindowBytes = Math.max(mostWindowBytes, edge.session.windowBytes);
  }, 20);
  await sleep(seconds * 500);
  const before = received;
  const start = performance.now();
  await sleep(seconds * 500);
  const megabytesPerSecond = (received - before) / 1_000 / (performance.now() - start);
  clearInterval(sampler);
  edge.close(4_000, "measured");
  agent.close(4_000, "measured");
  relay.close();
  await server.close();
  return { megabytesPerSecond, mostWindowMiB: mostWindowBytes / 1_048_576 };
}

for (const streams of [1, 8]) {
  for (const [name, session] of [
    ["256 KiB, fixed", { windowBytes: 262_144 }],
    ["adaptive", {}],
  ]) {
    const { megabytesPerSecond, mostWindowMiB } = await measure({ session, streams });
    console.log(
      `${roundTripMs} ms, ${streams} streams, ${name.padEnd(14)}: ${megabytesPerSecond.toFixed(1).padStart(6)} MB/s, ` +
        `windows at most ${mostWindowMiB.toFixed(1)} MiB`,
    );
  }
}
