/**
 * Longest-prefix search over the rules of one IP filter and one address family: a binary trie in which runs of nodes with
 * a single child are collapsed, so that n rules need at most 2n + 1 nodes whatever the length of the addresses is. A node
 * is a row of one Int32Array, because a hundred thousand objects would cost the collector more than the searches:
 *
 * ```
 *   prefix (1 or 4 words) | prefix length in bits | child for bit 0 | child for bit 1 | block rule | allow rule
 * ```
 *
 * Child 0 means none (the root is nobody's child), rule -1 means none. Block and allow rules share the trie, so one walk
 * answers for both lists.
 */
import type { Cidr, IpFamily } from "@sallyport/host";

export type RuleAction = "allow" | "block";

const ROOT = 0;
const NONE = 0;
const NO_RULE = -1;

export class RuleTrie {
  readonly #words: number;
  readonly #rowLength: number;
  readonly #rows: Int32Array;
  #nodeCount = 0;

  /** The trie never grows: `maxRules` fixes its memory, 48 bytes a rule for IPv4 and 72 for IPv6. */
  constructor(family: IpFamily, maxRules: number) {
    this.#words = family === 4 ? 1 : 4;
    this.#rowLength = this.#words + 5;
    // A rule adds its own node and at most one branching node above it.
    this.#rows = new Int32Array((2 * maxRules + 1) * this.#rowLength);
    this.#addNode(new Int32Array(this.#words), 0);
  }

  /** Adds the rule with this index. Of several rules with the same action and block, the first one added stays. */
  insert(rule: { cidr: Cidr; action: RuleAction; index: number }): void {
    const key = new Int32Array(4);
    readWords(rule.cidr.address.bytes, key);
    const node = this.#nodeFor(key.subarray(0, this.#words), rule.cidr.prefixLength);
    const column = node * this.#rowLength + this.#words + (rule.action === "block" ? 3 : 4);
    if (this.#rows[column] === NO_RULE) {
      this.#rows[column] = rule.index;
    }
  }

  /**
   * The index of the rule that decides over the address in `key` (as `readWords` leaves it): the most specific block rule
   * that holds it, else the most specific allow rule, else -1.
   */
  find(key: Int32Array): number {
    const rows = this.#rows;
    const words = this.#words;
    let blockRule = NO_RULE;
    let allowRule = NO_RULE;
    let row = ROOT;
    let checkedWords = 0;
    for (;;) {
      const length = at(rows, row + words);
      // The words before are equal to the parent's, which were compared.
      const wholeWords = length >>> 5;
      for (; checkedWords < wholeWords; checkedWords++) {
        if (at(rows, row + checkedWords) !== at(key, checkedWords)) {
          return blockRule === NO_RULE ? allowRule : blockRule;
        }
      }
      const bits = length & 31;
      if (bits !== 0 && (at(rows, row + wholeWords) ^ at(key, wholeWords)) >>> (32 - bits) !== 0) {
        break;
      }
      const columns = row + words;
      if (at(rows, columns + 3) !== NO_RULE) {
        blockRule = at(rows, columns + 3);
      }
      if (at(rows, columns + 4) !== NO_RULE) {
        allowRule = at(rows, columns + 4);
      }
      if (wholeWords === words) {
        break;
      }
      const child = at(rows, columns + 1 + ((at(key, wholeWords) >>> (31 - bits)) & 1));
      if (child === NONE) {
        break;
      }
      row = child * this.#rowLength;
    }
    return blockRule === NO_RULE ? allowRule : blockRule;
  }

  /** Finds or makes the node of a block. */
  #nodeFor(key: Int32Array, length: number): number {
    let node = ROOT;
    for (;;) {
      const nodeLength = this.#lengthOf(node);
      if (nodeLength === length) {
        return node;
      }
      const link = this.#linkColumn(node, bitAt(key, nodeLength));
      const child = at(this.#rows, link);
      if (child === NONE) {
        return this.#link(link, this.#addNode(key, length));
      }
      const childKey = this.#keyOf(child);
      const shared = Math.min(sharedBits(key, childKey), length, this.#lengthOf(child));
      if (shared === this.#lengthOf(child)) {
        node = child;
        continue;
      }
      // The child's prefix goes on differently: a node for what both share comes between.
      const between = this.#link(link, this.#addNode(key, shared));
      this.#link(this.#linkColumn(between, bitAt(childKey, shared)), child);
      if (shared === length) {
        return between;
      }
      return this.#link(this.#linkColumn(between, bitAt(key, shared)), this.#addNode(key, length));
    }
  }

  #addNode(key: Int32Array, length: number): number {
    const node = this.#nodeCount++;
    const row = node * this.#rowLength;
    // Bits behind the prefix may be left standing, nothing compares them.
    this.#rows.set(key, row);
    this.#rows[row + this.#words] = length;
    this.#rows[row + this.#words + 3] = NO_RULE;
    this.#rows[row + this.#words + 4] = NO_RULE;
    return node;
  }

  #link(column: number, child: number): number {
    this.#rows[column] = child;
    return child;
  }

  #linkColumn(node: number, bit: number): number {
    return node * this.#rowLength + this.#words + 1 + bit;
  }

  #lengthOf(node: number): number {
    return at(this.#rows, node * this.#rowLength + this.#words);
  }

  #keyOf(node: number): Int32Array {
    const row = node * this.#rowLength;
    return this.#rows.subarray(row, row + this.#words);
  }
}

/** Reads the 4 bytes of an IPv4 address or the 16 of an IPv6 address into 32-bit words. */
export function readWords(bytes: Uint8Array, words: Int32Array): void {
  for (let byte = 0, word = 0; byte < bytes.length; byte += 4, word++) {
    words[word] =
      (at(bytes, byte) << 24) | (at(bytes, byte + 1) << 16) | (at(bytes, byte + 2) << 8) | at(bytes, byte + 3);
  }
}

/** Element access for indices that are in bounds by construction. */
function at(array: Int32Array | Uint8Array, index: number): number {
  return array[index] ?? 0;
}

function bitAt(key: Int32Array, bit: number): number {
  return (at(key, bit >>> 5) >>> (31 - (bit & 31))) & 1;
}

/** How many leading bits two prefixes have in common. */
function sharedBits(left: Int32Array, right: Int32Array): number {
  for (let word = 0; word < left.length; word++) {
    const difference = at(left, word) ^ at(right, word);
    if (difference !== 0) {
      return word * 32 + Math.clz32(difference);
    }
  }
  return left.length * 32;
}
