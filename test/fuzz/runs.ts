/** How much is fuzzed, and from where. */

/** Inputs of one run over all decoders and sessions; `FUZZ_RUNS`. */
export const fuzzRuns = Number(process.env["FUZZ_RUNS"] ?? 600_000);

/** Where the generators start; `FUZZ_SEED`. Default: the time, which each failure names. */
export const fuzzSeed = Number(process.env["FUZZ_SEED"] ?? Date.now() % 1e9);

/** The part of the inputs that goes to decoders; the rest are frames into sessions. */
export const DECODER_SHARE = 0.6;
