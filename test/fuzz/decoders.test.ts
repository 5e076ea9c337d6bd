/**
 * Every decoder of the protocol, with hostile input. FUZZ_RUNS sets how many inputs there are, FUZZ_SEED where the
 * generator starts; a failure names the input in hexadecimal.
 */
import { readFileSync } from "node:fs";
import { decodeFrame, encodeFrame, type Frame, ProtocolError } from "@sallyport/protocol";
import { describe, expect, it } from "vitest";
import { mutate, Random } from "./mutation.ts";

const runs = Number(process.env["FUZZ_RUNS"] ?? 300_000);
const seed = Number(process.env["FUZZ_SEED"] ?? Date.now() % 1e9);
/** A decoder that takes longer for one message is a way to stop the process. */
const MAX_INPUT_MS = 50;

const vectors = JSON.parse(readFileSync(new URL("../vectors/frames.json", import.meta.url), "utf8")) as {
  valid: { hex: string }[];
  invalid: { hex: string }[];
};
const seeds = [...vectors.valid, ...vectors.invalid]
  .map(({ hex }) => new Uint8Array(Buffer.from(hex, "hex")))
  // The longest vectors stand for lengths only; mutating them is slow and finds nothing.
  .filter((bytes) => bytes.length < 1_000);
const valid = seeds.slice(0, vectors.valid.length - 1);
const control = seeds.filter((bytes) => (bytes[0] ?? 0) < 0x10);

interface Findings {
  accepted: number;
  slowestMs: number;
  readonly failures: string[];
}

/** Only a ProtocolError may be thrown, and what is accepted means the same when it is written and read again. */
function check(bytes: Uint8Array, findings: Findings): void {
  let frame: Frame | undefined;
  const decode = () => {
    const start = performance.now();
    try {
      frame = decodeFrame(bytes);
    } catch (error) {
      if (!(error instanceof ProtocolError)) findings.failures.push(`${String(error)}: ${hex(bytes)}`);
    }
    return performance.now() - start;
  };
  let ms = decode();
  // A pause of the machine or of the garbage collector is not the input's fault: that is slow each time.
  for (let again = 0; again < 3 && ms >= MAX_INPUT_MS; again += 1) ms = decode();
  findings.slowestMs = Math.max(findings.slowestMs, ms);
  if (frame === undefined) return;
  findings.accepted += 1;
  const again = decodeFrame(encodeFrame(frame));
  if (JSON.stringify(plain(again)) !== JSON.stringify(plain(frame))) findings.failures.push(`changed: ${hex(bytes)}`);
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const plain = (frame: Frame) => (frame.type === "data" ? { ...frame, bytes: hex(frame.bytes) } : frame);

describe(`the decoder, from seed ${seed}`, () => {
  it.each<[string, number, (random: Random) => Uint8Array]>([
    ["mutations of valid frames", 0.2, (random) => mutate(random, valid)],
    ["mutations of all vectors", 0.2, (random) => mutate(random, seeds)],
    ["mutations of control messages", 0.4, (random) => mutate(random, control)],
    ["random bytes", 0.1, (random) => random.bytes(random.below(80))],
    [
      "random bodies behind a control type",
      0.1,
      (random) => new Uint8Array([1 + random.below(5), 0x80 + random.below(16), ...random.bytes(random.below(60))]),
    ],
  ])("refuses or understands %s", { timeout: 600_000 }, (_, part, make) => {
    const random = new Random(seed);
    const findings: Findings = { accepted: 0, slowestMs: 0, failures: [] };
    for (let run = 0; run < runs * part; run += 1) check(make(random), findings);
    expect(findings.failures.slice(0, 3)).toEqual([]);
    expect(findings.slowestMs).toBeLessThan(MAX_INPUT_MS);
  });

  it("understands enough mutations for the fuzzing to reach behind it", () => {
    const random = new Random(seed);
    const findings: Findings = { accepted: 0, slowestMs: 0, failures: [] };
    for (let run = 0; run < 5_000; run += 1) check(mutate(random, valid), findings);
    expect(findings.accepted).toBeGreaterThan(500);
  });
});
