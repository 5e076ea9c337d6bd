// A TCP relay as a process of its own, so that a test can kill it and so that its work is not the test's:
// `node relay-program.mjs LISTEN_HOST LISTEN_PORT TARGET_HOST TARGET_PORT`. Orders come as lines on the standard input and are
// answered by one line `done ORDER CONNECTIONS` when they are carried out:
//
//   cut       resets every connection, in both directions
//   cut-one   resets the one that was relayed last
//   stall     every connection of now goes silent for ever, and no socket learns of it; new ones are relayed
//   hole      nothing passes, old connections or new, and no socket learns of it
//   heal      ends the hole: what waited goes on
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";

const [listenHost, listenPort, targetHost, targetPort] = process.argv.slice(2);
/** Each entry is the two sockets of a connection; one that stalls stays until either side closes it. */
const connections = new Set();
let isHole = false;

function join({ near, far }) {
  near.pipe(far);
  far.pipe(near);
}

function part({ near, far }) {
  for (const [from, to] of [
    [near, far],
    [far, near],
  ]) {
    from.unpipe(to);
    from.pause();
  }
}

function reset(connection) {
  connections.delete(connection);
  connection.near.resetAndDestroy();
  connection.far.resetAndDestroy();
}

const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (near) => {
  const far = connect({ port: Number(targetPort), host: targetHost, allowHalfOpen: true, noDelay: true });
  const connection = { near, far };
  connections.add(connection);
  for (const socket of [near, far]) {
    socket.on("error", () => reset(connection));
    socket.once("close", () => {
      if (near.destroyed && far.destroyed) connections.delete(connection);
    });
  }
  if (!isHole) join(connection);
});
server.listen(Number(listenPort), listenHost, () => console.log("ready"));

const orders = {
  cut() {
    for (const connection of connections) reset(connection);
  },
  "cut-one"() {
    const last = [...connections].at(-1);
    if (last !== undefined) reset(last);
  },
  stall() {
    for (const connection of connections) {
      part(connection);
      // It is silent for good: neither a later heal nor a later cut concerns it.
      connections.delete(connection);
    }
  },
  hole() {
    isHole = true;
    for (const connection of connections) part(connection);
  },
  heal() {
    isHole = false;
    for (const connection of connections) join(connection);
  },
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const count = connections.size;
  orders[line]?.();
  console.log(`done ${line} ${count}`);
});
// Whoever started it is gone.
process.stdin.once("end", () => process.exit(0));
