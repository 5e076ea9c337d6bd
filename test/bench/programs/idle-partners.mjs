// Partners that stay and say nothing: `node idle-partners.mjs PORT`. The order `hold N` opens or closes connections until N
// stand, and is answered by `{"open": N}` when a byte has come back on each. They come from ten source addresses in turn, so
// that no limit for one source is met. An order that cannot be carried out is answered with what stands and the reason.
import { connect } from "node:net";
import { createInterface } from "node:readline";

const port = Number(process.argv[2]);
const SOURCES = 10;
const MAX_AT_ONCE = 100;
const OPEN_TIMEOUT_MS = 15_000;

/** Those that stand, oldest first. */
const open = new Set();

function openOne(index) {
  return new Promise((resolve, reject) => {
    const socket = connect({
      port,
      host: "127.0.0.1",
      localAddress: `127.0.0.${2 + (index % SOURCES)}`,
      noDelay: true,
    });
    const timer = setTimeout(() => socket.destroy(new Error("no byte came back")), OPEN_TIMEOUT_MS);
    socket.on("error", reject);
    socket.once("connect", () => socket.write("x"));
    socket.once("data", () => {
      clearTimeout(timer);
      open.add(socket);
      resolve();
    });
    socket.once("close", () => {
      clearTimeout(timer);
      open.delete(socket);
      reject(new Error("closed before a byte came back"));
    });
  });
}

async function hold(count) {
  let reason;
  let next = open.size;
  const openSome = async () => {
    while (next < count && reason === undefined) {
      try {
        await openOne(next++);
      } catch (error) {
        reason ??= error.code ?? error.message;
      }
    }
  };
  await Promise.all(Array.from({ length: MAX_AT_ONCE }, openSome));
  for (const socket of [...open].slice(0, Math.max(0, open.size - count))) {
    open.delete(socket);
    socket.destroy();
  }
  return { open: open.size, ...(reason === undefined ? {} : { reason }) };
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await hold(Number(line.split(" ")[1]))));
}
