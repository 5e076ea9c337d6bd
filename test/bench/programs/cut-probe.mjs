// A partner whose link is about to be cut: `node cut-probe.mjs PORT`. `flow` is answered when bytes come back. From `cut` on it
// waits until bytes flow again and answers `{"isKept", "milliseconds", "lostBytes"}`. Every message has its number, and those
// that come back are checked.
import { once } from "node:events";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

const port = Number(process.argv[2]);
const SIZE = 256;
const INTERVAL_MS = 2;
const RETRY_MS = 5;
const ATTEMPT_TIMEOUT_MS = 1_000;
const FLOWING = 50;

let sent = 0;
let returned = Buffer.alloc(0);
let arrived = 0;
/** The messages that were sent before the cut. */
let sentBeforeCut = Infinity;
let cutAt;
let isOver = false;
let onFlow = () => undefined;
let onReturn = () => undefined;
let onLoss = () => undefined;

const socket = connect({ port, host: "127.0.0.1", noDelay: true });
socket.on("data", (bytes) => {
  returned = Buffer.concat([returned, bytes]);
  while (returned.length >= SIZE) {
    const number = returned.readUInt32BE(0);
    if (number !== arrived) throw new Error(`message ${number} came back, not ${arrived}`);
    returned = returned.subarray(SIZE);
    arrived++;
  }
  if (arrived > FLOWING) onFlow();
  // One that was written after the cut cannot have passed before it.
  if (arrived > sentBeforeCut + 1) onReturn();
});
socket.on("error", () => onLoss());
socket.once("end", () => onLoss());
socket.once("close", () => onLoss());
const timer = setInterval(() => {
  if (isOver || socket.destroyed) return;
  const message = Buffer.alloc(SIZE, 0x2e);
  message.writeUInt32BE(sent++, 0);
  socket.write(message);
}, INTERVAL_MS);

async function worksAnew() {
  const fresh = connect({ port, host: "127.0.0.1", noDelay: true });
  const timeout = setTimeout(() => fresh.destroy(), ATTEMPT_TIMEOUT_MS);
  try {
    return await new Promise((resolve) => {
      fresh.once("data", () => resolve(true));
      fresh.once("error", () => resolve(false));
      fresh.once("end", () => resolve(false));
      fresh.once("close", () => resolve(false));
      fresh.write("x");
    });
  } finally {
    clearTimeout(timeout);
    fresh.destroy();
  }
}

async function recover() {
  cutAt = performance.now();
  sentBeforeCut = sent;
  const isKept = await new Promise((resolve) => {
    onReturn = () => resolve(true);
    onLoss = () => resolve(false);
    if (socket.destroyed) resolve(false);
  });
  if (!isKept) {
    clearInterval(timer);
    while (!(await worksAnew())) await delay(RETRY_MS);
  }
  const milliseconds = performance.now() - cutAt;
  isOver = true;
  if (isKept && arrived < sent) {
    await new Promise((resolve) => {
      onReturn = () => {
        if (arrived === sent) resolve();
      };
      onLoss = resolve;
    });
  }
  return { isKept: isKept && !socket.destroyed, milliseconds, lostBytes: (sent - arrived) * SIZE };
}

await once(socket, "connect");
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "flow") {
    if (arrived <= FLOWING) await new Promise((resolve) => (onFlow = resolve));
    console.log("{}");
  } else console.log(JSON.stringify(await recover()));
}
