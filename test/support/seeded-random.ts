import { createHash } from "node:crypto";

/** Numbers from 0 up to and without 1 that a seed reproduces (SHA-256 of seed and counter). */
export function seededRandom(seed: string): () => number {
  let counter = 0;
  return () => {
    counter += 1;
    return createHash("sha256").update(`${seed} ${counter}`).digest().readUInt32BE() / 2 ** 32;
  };
}
