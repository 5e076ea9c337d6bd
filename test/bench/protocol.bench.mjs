/**
 * How fast two sessions move bytes from one into the other, in memory: the cost of the protocol itself, both ends in one
 * thread, without sockets and TLS. Run after the build:
 *
 *   node test/bench/protocol.bench.mjs [MiB]
 *
 * One line for each number of streams and size of write: MB/s, and CPU seconds per GB for both ends together.
 */
import { FrameWriter, MemoryBudget, Session } from "@sallyport/protocol";

const totalBytes = Number(process.argv[2] ?? 1_024) * 1_048_576;
const WRITE_BYTES = 65_536;

/** A WebSocket's header of four bytes, with the length in it so that the frames can be found again. */
const framing = {
  headerBytes: () => 4,
  writeHeader(out, at, length) {
    out[at] = 0x82;
    out[at + 1] = 126;
    out[at + 2] = length >>> 8;
    out[at + 3] = length;
  },
};

function measure({ streams, chunkBytes }) {
  // A fixed window and memory for all of them: how far windows go is another question than what a byte costs.
  const memory = new MemoryBudget(2 ** 40);
  const options = { maxStreams: streams, initialCredit: 262_144, windowBytes: 262_144, memory };
  const edge = new Session({ role: "edge", ...options });
  const agent = new Session({ role: "agent", ...options });
  edge.attach(1, 0);
  agent.attach(1, 0);
  const writer = new FrameWriter(new Uint8Array(WRITE_BYTES), framing);
  const chunk = new Uint8Array(chunkBytes).fill(0x5a);
  const perStream = Math.ceil(totalBytes / streams / chunkBytes) * chunkBytes;
  const written = new Float64Array(streams + 1);
  let received = 0;
  let finished = 0;

  const write = (id) => {
    while (written[id] < perStream) {
      written[id] += chunkBytes;
      if (!edge.write(id, chunk)) return;
    }
    edge.end(id);
  };
  const carry = (from, to) => {
    let moved = false;
    while (from.wantsWrite(1)) {
      writer.clear();
      from.poll(1, writer, 0);
      if (writer.used === 0) break;
      moved = true;
      // What a socket would deliver is memory of its own, of which frames are views.
      const bytes = writer.bytes.slice(0, writer.used);
      for (let at = 0; at < bytes.length; ) {
        const length = bytes[at + 2] * 256 + bytes[at + 3];
        to.receive(1, bytes.subarray(at + 4, at + 4 + length), 0);
        at += 4 + length;
      }
      drain();
    }
    return moved;
  };
  const drain = () => {
    for (let event = edge.takeEvent(); event !== undefined; event = edge.takeEvent()) {
      if (event.type === "writable") write(event.stream);
      else if (event.type === "end") edge.consumeEnd(event.stream);
    }
    for (let event = agent.takeEvent(); event !== undefined; event = agent.takeEvent()) {
      if (event.type === "open") agent.accept(event.stream, "");
      else if (event.type === "data") {
        received += event.bytes.length;
        agent.consume(event.stream, event.bytes.length);
      } else if (event.type === "end") {
        agent.consumeEnd(event.stream);
        agent.end(event.stream);
      } else if (event.type === "finished") finished += 1;
    }
  };

  const cpu = process.cpuUsage();
  const start = performance.now();
  for (let id = 1; id <= streams; id += 1) {
    edge.open({ connection: "c", target: "t", deployment: "d", partner: "" });
    write(id);
  }
  while (carry(edge, agent) || carry(agent, edge));
  const seconds = (performance.now() - start) / 1_000;
  const { user, system } = process.cpuUsage(cpu);
  if (received !== perStream * streams || finished !== streams)
    throw new Error(`${received} bytes, ${finished} streams`);
  return {
    megabytesPerSecond: received / 1e6 / seconds,
    cpuSecondsPerGigabyte: (user + system) / 1e6 / (received / 1e9),
  };
}

const cases = [
  { streams: 1, chunkBytes: 65_536 },
  { streams: 100, chunkBytes: 65_536 },
  { streams: 1, chunkBytes: 16_384 },
  { streams: 100, chunkBytes: 1_400 },
  { streams: 1_000, chunkBytes: 100 },
];
for (const { streams, chunkBytes } of cases) {
  // Small writes are slow per byte; a tenth of the bytes tells as much.
  measure({ streams: Math.min(streams, 10), chunkBytes: 65_536 });
  const { megabytesPerSecond, cpuSecondsPerGigabyte } = measure({ streams, chunkBytes });
  console.log(
    `${String(streams).padStart(5)} streams, writes of ${String(chunkBytes).padStart(6)} bytes: ` +
      `${megabytesPerSecond.toFixed(0).padStart(6)} MB/s, ${cpuSecondsPerGigabyte.toFixed(3)} CPU s/GB`,
  );
}
