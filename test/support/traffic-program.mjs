// Load as a process of its own, so that what a test measures is not its own work.
//
// `node traffic-program.mjs target` serves connections whose first byte says what is wanted and prints `port N`.
// `node traffic-program.mjs partners PORT` opens such connections through PORT. Both take orders as lines of JSON on the
// standard input and answer each with one line of JSON.
//
//   kind       first byte   partner           target
//   pull       p            reads             sends without end
//   pull-none  p            never reads       sends without end
//   push       d            sends without end reads
//   push-none  n            sends without end never reads
//   echo       e            (not used here)   returns every byte
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";

const [role, port] = process.argv.slice(2);
const chunk = Buffer.alloc(64 * 1024, 0x2a);
const firstBytes = { pull: "p", "pull-none": "p", push: "d", "push-none": "n" };
/** By kind, bounded by the orders. */
const groups = new Map();

function send(socket) {
  const more = () => {
    while (!socket.destroyed && socket.write(chunk));
  };
  socket.on("drain", more);
  more();
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
    const group = groups.get(kind) ?? { sockets: new Set(), receivedBytes: 0, failures: 0 };
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
      if (kind.startsWith("push")) send(socket);
      if (kind === "pull-none") continue;
      socket.on("data", (bytes) => {
        group.receivedBytes += bytes.length;
      });
    }
    return {};
  },
  count({ kind }) {
    const group = groups.get(kind);
    let sentBytes = 0;
    for (const socket of group.sockets) sentBytes += socket.bytesWritten - socket.writableLength;
    return { receivedBytes: group.receivedBytes, sentBytes, failures: group.failures };
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
