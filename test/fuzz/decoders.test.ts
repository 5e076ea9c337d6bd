/**
 * Every decoder of `decoders.ts`, with hostile input. FUZZ_RUNS sets how many inputs there are in all, the frames of
 * `session.test.ts` among them; FUZZ_SEED where the generator starts. A failure names the input in hexadecimal.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { decoders, type FuzzedDecoder } from "./decoders.ts";
import { mutate, Random } from "./mutation.ts";
import { DECODER_SHARE, fuzzRuns, fuzzSeed } from "./runs.ts";

/** A decoder that takes longer for one message is a way to stop the process. */
const MAX_INPUT_MS = 50;
const MAX_HEAP_GROWTH_BYTES = 64 * 1024 ** 2;

const totalWeight = decoders.reduce((sum, { weight }) => sum + weight, 0);

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

function heapBytes(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed;
}

interface Findings {
  inputs: number;
  accepted: number;
  slowestMs: number;
  readonly failures: string[];
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
/** Comparable text of a value; bytes by their contents. */
const plain = (value: unknown) =>
  JSON.stringify(value, (_, field: unknown) => (field instanceof Uint8Array ? hex(field) : field));

/** What a decoder makes of an input: a value, nothing, or a refusal by an error of its own kind. */
function outcome(decoder: FuzzedDecoder, bytes: Uint8Array): { readonly value?: unknown; readonly fault?: string } {
  try {
    const value = decoder.decode(bytes);
    return value === undefined ? {} : { value };
  } catch (error) {
    return decoder.allows?.(error) === true ? {} : { fault: String(error) };
  }
}

function check(decoder: FuzzedDecoder, bytes: Uint8Array, context: { random: Random; findings: Findings }): void {
  const { random, findings } = context;
  findings.inputs += 1;
  const timed = () => {
    const start = performance.now();
    const result = outcome(decoder, bytes);
    return { result, ms: performance.now() - start };
  };
  let { result, ms } = timed();
  // A pause of the machine or of the garbage collector is not the input's fault: that is slow each time.
  for (let again = 0; again < 10 && ms >= MAX_INPUT_MS; again += 1) ({ result, ms } = timed());
  findings.slowestMs = Math.max(findings.slowestMs, ms);
  const { value, fault } = result;
  if (fault !== undefined) findings.failures.push(`${fault}: ${hex(bytes)}`);
  if (decoder.stream !== undefined) comparePieces(decoder, bytes, { random, findings, value });
  if (value === undefined) return;
  findings.accepted += 1;
  if (decoder.encode === undefined) return;
  const again = outcome(decoder, decoder.encode(value as never));
  if (plain(again.value) !== plain(value)) findings.failures.push(`changed: ${hex(bytes)}`);
}

/** Bytes that come in pieces mean what they mean in one. */
function comparePieces(
  decoder: FuzzedDecoder,
  bytes: Uint8Array,
  context: { random: Random; findings: Findings; value: unknown },
): void {
  const stream = decoder.stream!();
  let value: unknown;
  let isRefused = false;
  try {
    for (let at = 0; at < bytes.length && value === undefined; ) {
      const end = Math.min(bytes.length, at + 1 + context.random.below(8));
      value = stream.push(bytes.subarray(at, end));
      at = end;
    }
  } catch (error) {
    isRefused = decoder.allows?.(error) === true;
    if (!isRefused) context.findings.failures.push(`in pieces, ${String(error)}: ${hex(bytes)}`);
  }
  const isSame = context.value === undefined ? value === undefined : plain(value) === plain(context.value);
  if (!isSame) context.findings.failures.push(`in pieces${isRefused ? ", refused" : ""}: ${hex(bytes)}`);
}

describe.each(decoders)(`$name, from seed ${fuzzSeed}`, (decoder) => {
  it("are refused or understood, quickly and without a trace in memory", { timeout: 3_600_000 }, () => {
    const random = new Random(fuzzSeed);
    const findings: Findings = { inputs: 0, accepted: 0, slowestMs: 0, failures: [] };
    const seedTypes = decoder.seeds.map((seed) => seed[0] ?? 0);
    const makers: readonly [share: number, make: () => Uint8Array][] = [
      [0.8, () => mutate(random, decoder.seeds)],
      [0.1, () => random.bytes(random.below(80))],
      // What begins as a seed does, and goes on at random.
      [
        0.1,
        () => Uint8Array.from([random.pick(seedTypes), 0x80 + random.below(16), ...random.bytes(random.below(60))]),
      ],
    ];
    const runs = (fuzzRuns * DECODER_SHARE * decoder.weight) / totalWeight;
    const heapBefore = heapBytes();
    const startedAt = performance.now();
    for (const [share, make] of makers) {
      for (let run = 0; run < runs * share; run += 1) check(decoder, make(), { random, findings });
    }
    const seconds = (performance.now() - startedAt) / 1_000;
    const { inputs, accepted, slowestMs, failures } = findings;
    console.log(
      `fuzz ${decoder.name}: ${inputs} inputs in ${seconds.toFixed(1)} s (${Math.round(inputs / seconds)}/s), ` +
        `${accepted} accepted, slowest ${slowestMs.toFixed(1)} ms, ${failures.length} findings`,
    );
    expect(failures.slice(0, 3)).toEqual([]);
    expect(slowestMs).toBeLessThan(MAX_INPUT_MS);
    expect(heapBytes() - heapBefore).toBeLessThan(MAX_HEAP_GROWTH_BYTES);
  });

  it("are understood often enough for the fuzzing to reach behind the first check", () => {
    const random = new Random(fuzzSeed);
    const findings: Findings = { inputs: 0, accepted: 0, slowestMs: 0, failures: [] };
    for (const seed of decoder.seeds) check(decoder, seed, { random, findings });
    expect(findings.accepted).toBeGreaterThan(0);
    const accepted = findings.accepted;
    for (let run = 0; run < 5_000; run += 1) check(decoder, mutate(random, decoder.seeds), { random, findings });
    expect(findings.failures.slice(0, 3)).toEqual([]);
    expect(findings.accepted - accepted).toBeGreaterThanOrEqual(decoder.sealed === undefined ? 5 : 0);
  });
});
