// Measures round trips of 64 bytes to an echo target: `node echo-probe.mjs one-by-one|paced PORT SECONDS`. Prints milliseconds as
// JSON. `paced` has four connections, each with a message every 10 ms whether or not the one before is back: a tunnel that
// stalls is asked all the same, and its delay counts in full.
import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

const [mode, port, seconds] = process.argv.slice(2);
const SIZE = 64;
const INTERVAL_MS = 10;
const PACED_CONNECTIONS = 4;
const WARM_UP = 50;
/** How long the last answers may take after the last message. */
const LINGER_MS = 5_000;

const times = [];
const message = Buffer.alloc(SIZE, 0x65);

class Connection {
  #sentAt = [];
  #arrived = 0;
  #waiting = () => undefined;

  async open() {
    this.socket = connect({ port: Number(port), host: "127.0.0.1", noDelay: true });
    this.socket.on("data", (bytes) => {
      this.#arrived += bytes.length;
      while (this.#arrived >= SIZE) {
        this.#arrived -= SIZE;
        times.push(performance.now() - this.#sentAt.shift());
        this.#waiting();
      }
    });
    await once(this.socket, "connect");
  }

  send() {
    this.#sentAt.push(performance.now());
    this.socket.write(message);
  }

  async roundTrip() {
    const back = new Promise((resolve) => (this.#waiting = resolve));
    this.send();
    await back;
  }

  get outstanding() {
    return this.#sentAt.length;
  }
}

const connections = Array.from({ length: mode === "paced" ? PACED_CONNECTIONS : 1 }, () => new Connection());
for (const connection of connections) {
  await connection.open();
  // The first ones open the way.
  for (let count = 0; count < (mode === "paced" ? 1 : WARM_UP); count++) await connection.roundTrip();
}
times.length = 0;
const endsAt = performance.now() + Number(seconds) * 1000;
if (mode === "paced") {
  let next = performance.now();
  while (performance.now() < endsAt) {
    for (const connection of connections) connection.send();
    next += INTERVAL_MS;
    await delay(Math.max(0, next - performance.now()));
  }
  const until = performance.now() + LINGER_MS;
  while (connections.some(({ outstanding }) => outstanding > 0) && performance.now() < until) await delay(5);
  // What is not back by then counts with the time it has waited.
  for (const connection of connections) for (let rest = connection.outstanding; rest > 0; rest--) times.push(LINGER_MS);
} else {
  while (performance.now() < endsAt) await connections[0].roundTrip();
}
times.sort((a, b) => a - b);
const quantile = (q) => times[Math.min(times.length - 1, Math.ceil(q * times.length) - 1)];
console.log(JSON.stringify({ p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999), count: times.length }));
process.exit();
