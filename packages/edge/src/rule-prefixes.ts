/**
 * The rules of one IP filter and one address family as distinct prefixes, each with its answer: the rule that decides over
 * an address of which this is the longest prefix in the list. That is the most specific block rule around the prefix, else
 * the most specific allow rule. Once this is worked out, all that is left to ask of an address is its longest prefix.
 *
 * The prefixes are sorted by address and, of one address, the shortest first: each stands in front of all that it holds.
 */
import type { Cidr, IpFamily } from "@sallyport/host";

export type RuleAction = "allow" | "block";

/** The answer where no rule decides. */
export const NO_RULE = -1;

/** Columns, of which the first `count` rows are used. A trie is built from them, then they are dropped. */
export interface RulePrefixes {
  readonly count: number;
  /** How many 32-bit words an address has: 1 or 4. */
  readonly words: number;
  /** The addresses, word by word; all bits behind the prefix are zero. */
  readonly keys: Int32Array;
  /** In bits. */
  readonly lengths: Int32Array;
  /** How many leading bits the address has in common with that of the row before. */
  readonly shared: Int32Array;
  /** The position of the deciding rule in the list of rules, or `NO_RULE`. */
  readonly answers: Int32Array;
}

/** Picks the rules of the family out of the list. Of several with the same action and block, the first one decides. */
export function sortRulePrefixes(
  family: IpFamily,
  rules: ReadonlyArray<{ readonly cidr: Cidr; readonly action: RuleAction }>,
): RulePrefixes {
  const words = family === 4 ? 1 : 4;
  const addresses = new Int32Array(rules.length * words);
  const positions = new Int32Array(rules.length);
  let ruleCount = 0;
  for (const [position, { cidr }] of rules.entries()) {
    if (cidr.family === family) {
      readWords(cidr.address.bytes, addresses, position * words, words);
      positions[ruleCount++] = position;
    }
  }
  const lengthOf = (position: number): number => rules[position]?.cidr.prefixLength ?? 0;
  const sorted = positions.subarray(0, ruleCount).sort((left, right) => {
    for (let word = 0; word < words; word++) {
      const difference = (at(addresses, left * words + word) >>> 0) - (at(addresses, right * words + word) >>> 0);
      if (difference !== 0) return difference;
    }
    // Of equal prefixes the first in the list comes last, and overwrites the others below.
    return lengthOf(left) - lengthOf(right) || right - left;
  });

  const keys = new Int32Array(ruleCount * words);
  const lengths = new Int32Array(ruleCount);
  const shared = new Int32Array(ruleCount);
  const answers = new Int32Array(ruleCount);
  let count = 0;
  /** The last prefix and all that hold it, the widest first: no two of one length. */
  const around: Array<{ readonly length: number; block: number; allow: number }> = [];
  for (const position of sorted) {
    // For good only if the prefix is not that of the row before.
    for (let word = 0; word < words; word++) {
      keys[count * words + word] = at(addresses, position * words + word);
    }
    const length = lengthOf(position);
    const sharedBits = count === 0 ? 0 : countSharedBits(keys, words, count - 1, count);
    let inner = around.at(-1);
    while (inner !== undefined && inner.length > sharedBits) {
      around.pop();
      inner = around.at(-1);
    }
    if (inner?.length !== length) {
      lengths[count] = length;
      shared[count] = sharedBits;
      count++;
      inner = { length, block: inner?.block ?? NO_RULE, allow: inner?.allow ?? NO_RULE };
      around.push(inner);
    }
    inner[rules[position]?.action ?? "block"] = position;
    answers[count - 1] = inner.block === NO_RULE ? inner.allow : inner.block;
  }
  return { count, words, keys, lengths, shared, answers };
}

/** Reads `count` big-endian words of 32 bits from the start of `bytes` into `words`, from the index `first` on. */
export function readWords(bytes: Uint8Array, words: Int32Array, first: number, count: number): void {
  for (let word = 0, byte = 0; word < count; word++, byte += 4) {
    words[first + word] =
      ((bytes[byte] ?? 0) << 24) |
      ((bytes[byte + 1] ?? 0) << 16) |
      ((bytes[byte + 2] ?? 0) << 8) |
      (bytes[byte + 3] ?? 0);
  }
}

/** How many leading bits the addresses in two rows have in common. */
export function countSharedBits(keys: Int32Array, words: number, left: number, right: number): number {
  for (let word = 0; word < words; word++) {
    const difference = at(keys, left * words + word) ^ at(keys, right * words + word);
    if (difference !== 0) {
      return word * 32 + Math.clz32(difference);
    }
  }
  return words * 32;
}

/** Element access for indices that are in bounds by construction. */
export function at(array: Int32Array, index: number): number {
  return array[index] ?? 0;
}
