import { createCipheriv, createHash } from "node:crypto";
import type { Hash } from "node:crypto";
import { Readable } from "node:stream";

/**
 * A reproducible stream of bytes that no compression or pattern can shorten: the AES-128-CTR key stream of a key made
 * from the seed. It runs at memory speed, which a generator written in JavaScript does not.
 */
export class PseudoRandomBytes {
  readonly #cipher;
  readonly #hash: Hash = createHash("sha256");
  #totalBytes = 0;

  constructor(seed: string) {
    const material = createHash("sha256").update(seed).digest();
    this.#cipher = createCipheriv("aes-128-ctr", material.subarray(0, 16), material.subarray(16));
  }

  get totalBytes(): number {
    return this.#totalBytes;
  }

  next(sizeBytes: number): Buffer {
    const bytes = this.#cipher.update(Buffer.alloc(sizeBytes));
    this.#hash.update(bytes);
    this.#totalBytes += sizeBytes;
    return bytes;
  }

  /** SHA-256, in hex, of everything that `next` has returned so far. */
  digest(): string {
    return this.#hash.copy().digest("hex");
  }
}

/** The first `sizeBytes` of the seed's bytes as a stream, in chunks of 64 KiB. */
export function pseudoRandomStream(source: PseudoRandomBytes, sizeBytes: number): Readable {
  let leftBytes = sizeBytes;
  return new Readable({
    highWaterMark: 1024 * 1024,
    read() {
      const chunkBytes = Math.min(leftBytes, 64 * 1024);
      leftBytes -= chunkBytes;
      this.push(chunkBytes === 0 ? null : source.next(chunkBytes));
    },
  });
}
