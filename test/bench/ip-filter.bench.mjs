/**
 * What a look-up in an IP filter costs: `npm run build && node test/bench/ip-filter.bench.mjs`. Prints microseconds for
 * each look-up of an address in text (as accepting a connection needs it) and the time and memory a filter takes to build.
 */
import { formatIpAddress, parseCidr } from "@sallyport/host";
import { IpFilter } from "../../packages/edge/dist/ip-filter.js";

const LOOKUPS = 1_000_000;
const ADDRESSES = 65_536;

/** Xorshift with a fixed seed, so that two runs measure the same rules. */
let state = 0x2545f491;
function randomWord() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
}

function randomBytes(family) {
  const bytes = new Uint8Array(family === 4 ? 4 : 16);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 4) view.setUint32(at, randomWord());
  if (family === 6) bytes[0] = 0x20;
  return bytes;
}

function randomRule(family) {
  const prefixLength = family === 4 ? 20 + (randomWord() % 13) : 32 + (randomWord() % 97);
  const bytes = randomBytes(family);
  for (let bit = prefixLength; bit < bytes.length * 8; bit++) bytes[bit >> 3] &= ~(0x80 >> (bit & 7));
  const cidr = parseCidr(`${formatIpAddress({ family, bytes })}/${prefixLength}`);
  return { action: randomWord() & 1 ? "allow" : "block", cidr };
}

console.log("family  rules    build ms  memory MiB  µs per look-up (hit)  µs per look-up (random)");
for (const family of [4, 6]) {
  for (const count of [10, 1_000, 100_000]) {
    const rules = Array.from({ length: count }, () => randomRule(family));
    const before = process.memoryUsage().arrayBuffers;
    const started = performance.now();
    const filter = new IpFilter({ default: "block", rules });
    const buildMs = performance.now() - started;
    const mebibytes = (process.memoryUsage().arrayBuffers - before) / 2 ** 20;

    const hits = Array.from({ length: ADDRESSES }, () => formatIpAddress(rules[randomWord() % count].cidr.address));
    const random = Array.from({ length: ADDRESSES }, () => formatIpAddress({ family, bytes: randomBytes(family) }));
    const [hitUs, randomUs] = [hits, random].map((addresses) => {
      const run = (lookups) => {
        for (let index = 0; index < lookups; index++) filter.decidePeer(addresses[index % ADDRESSES]);
      };
      run(2 * ADDRESSES);
      const from = performance.now();
      run(LOOKUPS);
      return ((performance.now() - from) * 1_000) / LOOKUPS;
    });
    console.log(
      `IPv${family}    ${String(count).padEnd(7)}  ${buildMs.toFixed(1).padStart(8)}  ${mebibytes.toFixed(1).padStart(10)}  ` +
        `${hitUs.toFixed(2).padStart(20)}  ${randomUs.toFixed(2).padStart(23)}`,
    );
  }
}
