// Load as a process of its own, so that what a test measures is not its own work.
//
// `node traffic-program.mjs target SIZE PAUSE` serves connections whose first byte says what is wanted and prints `port N`.
// `node traffic-program.mjs partners PORT SIZE PAUSE` opens such connections through PORT. Both take orders as lines of JSON
// on the standard input and answer each with one line of JSON.
//
//   kind        first byte   partner           target
//   pull        p            reads             sends without end
//   pull-none   p            never reads       sends without end
//   pull-pause  f            reads SIZE bytes  sends SIZE bytes
//   push        d            sends without end reads
//   push-none   n            sends without end never reads
//   push-pause  h            sends SIZE bytes  reads SIZE bytes
//   echo        e            (not used here)   returns every byte
//
// Who reads SIZE bytes stands still after PAUSE of them, until the order `resume`.
import { createCipheriv } from "node:crypto";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";

const [role, ...args] = process.argv.slice(2);
const port = role === "partners" ? args.shift() : undefined;
const [sizeBytes, pauseBytes] = args.map(Number);
const chunk = Buffer.alloc(64 * 1024, 0x2a);
const zeros = Buffer.alloc(64 * 1024);
const firstBytes = {
  pull: "p",
  "pull-none": "p",
  "pull-pause": "f",
  push: "d",
  "push-none": "n",
  "push-pause": "h",
};
/** By kind, bounded by the orders. */
const groups = new Map();
/** Transfers with a pause that this end reads, by kind; one of each. */
const transfers = new Map();

function send(socket) {
  const more = () => {
    while (!socket.destroyed && socket.write(chunk));
  };
  socket.on("drain", more);
  more();
}

/** The bytes of every transfer with a pause, as a cipher: the key stream that AES makes of zeros has no pattern. */
function keyStream() {
  return createCipheriv("aes-128-ctr", Buffer.alloc(16, 0x2a), Buffer.alloc(16));
}

function sendAll(socket) {
  const bytes = keyStream();
  let leftBytes = sizeBytes;
  const more = () => {
    while (leftBytes > 0) {
      const piece = bytes.update(zeros.subarray(0, Math.min(leftBytes, zeros.length)));
      leftBytes -= piece.length;
      if (!socket.write(piece) && leftBytes > 0) return;
    }
    socket.end();
  };
  socket.on("drain", more);
  more();
}

/** Both ends make the same bytes, so that every one is compared and none is kept. */
function readWithPause(socket, kind) {
  const bytes = keyStream();
  const transfer = { socket, receivedBytes: 0, isRight: true, isPaused: false, hasEnded: false };
  transfers.set(kind, transfer);
  socket.on("data", (piece) => {
    const before = transfer.receivedBytes;
    transfer.receivedBytes += piece.length;
    for (let offset = 0; offset < piece.length; offset += zeros.length) {
      const part = piece.subarray(offset, offset + zeros.length);
      if (!bytes.update(zeros.subarray(0, part.length)).equals(part)) transfer.isRight = false;
    }
    if (before < pauseBytes && transfer.receivedBytes >= pauseBytes) {
      socket.pause();
      transfer.isPaused = true;
    }
  });
  socket.once("end", () => {
    transfer.hasEnded = true;
    socket.end();
  });
}

function answer(value) {
  console.log(JSON.stringify(value));
}

function serve() {
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    socket.on("error", () => undefined);
    socket.once("data", (bytes) => {
      switch (String.fromCharCode(bytes[0])) {
        case "p":
          socket.resume();
          send(socket);
          return;
        case "d":
          socket.resume();
          return;
        case "n":
          socket.pause();
          return;
        case "f":
          socket.resume();
          sendAll(socket);
          return;
        case "h":
          if (bytes.length > 1) socket.unshift(bytes.subarray(1));
          readWithPause(socket, "push-pause");
          return;
        default:
          socket.write(bytes);
          socket.pipe(socket);
      }
    });
    socket.once("end", () => socket.end());
  });
  // All partners of an order may come at once.
  server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => console.log(`port ${server.address().port}`));
}

const orders = {
  async open({ kind, count }) {
    const group = groups.get(kind) ?? { sockets: new Set(), failures: 0 };
    groups.set(kind, group);
    for (let index = 0; index < count; index++) {
      const socket = connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
      group.sockets.add(socket);
      socket.on("error", () => {
        group.failures += 1;
      });
      await new Promise((resolve) => {
        socket.once("connect", resolve);
        socket.once("close", resolve);
      });
      socket.write(firstBytes[kind]);
      if (kind === "push-pause") sendAll(socket);
      else if (kind.startsWith("push")) send(socket);
      if (kind === "pull-pause") readWithPause(socket, kind);
      if (kind === "pull-none") continue;
      // Nobody keeps the bytes; the socket counts them.
      socket.resume();
    }
    return {};
  },
  count({ kind }) {
    const group = groups.get(kind);
    const streamBytes = [...group.sockets].map(
      (socket) => socket.bytesRead + socket.bytesWritten - socket.writableLength,
    );
    return { streamBytes, failures: group.failures };
  },
  transfer({ kind }) {
    const { receivedBytes = 0, isRight = true, isPaused = false, hasEnded = false } = transfers.get(kind) ?? {};
    return { receivedBytes, isRight, isPaused, hasEnded };
  },
  resume({ kind }) {
    const transfer = transfers.get(kind);
    transfer.isPaused = false;
    transfer.socket.resume();
    return {};
  },
  close({ kind }) {
    for (const socket of groups.get(kind)?.sockets ?? []) socket.resetAndDestroy();
    groups.delete(kind);
    return {};
  },
};

/** A failure is not caught: it ends this program, and the test sees that. */
async function carryOut(order) {
  answer(await orders[order.order](order));
}

if (role === "target") serve();
else console.log("ready");
createInterface({ input: process.stdin }).on("line", (line) => void carryOut(JSON.parse(line)));
// Whoever started it is gone.
process.stdin.once("end", () => process.exit(0));
