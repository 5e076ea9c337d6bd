/**
 * Longest-prefix search over the rules of one IP filter and one address family: a trie that is compressed both ways. The
 * bits that all prefixes below a node begin with are compared at once, and a node branches by as many bits as keep half of
 * its slots in use. Among 100,000 scattered rules a search meets two to four nodes; with one bit a node it would meet
 * seventeen. What a search costs is cache misses, so nodes are few and small, and lie together in one Int32Array:
 *
 * ```
 *   length + 256 * stride | answer outside | words of the prefix | 2^stride slots
 * ```
 *
 * The length of the prefix and the stride are in bits. Of the prefix there are only the words with bits that no node above
 * has compared. For an address that does not begin with it, what holds around it is the answer; for any other, the next
 * `stride` bits choose a slot. A slot above zero is the index of a node, any other slot is `~answer`. An answer is the
 * position of a rule, or `NO_RULE`.
 *
 * No rule has to be remembered on the way down: one that ends within a stride has filled all slots of its block, and one
 * that ends with the prefix all slots of the node. If there is no other rule inside, the stride is 0, with a single slot.
 */
import type { Cidr, IpFamily } from "@sallyport/host";
import {
  at,
  countSharedBits,
  NO_RULE,
  readWords,
  type RuleAction,
  type RulePrefixes,
  sortRulePrefixes,
} from "./rule-prefixes.ts";

const OUTSIDE = 1;
const PREFIX = 2;

export class RuleTrie {
  readonly #words: number;
  readonly #nodes: Int32Array;
  /** As a slot would name it. */
  readonly #root: number;
  /** The address that is searched, and two words of zeros, because a node of stride 0 looks behind the end, too. */
  readonly #key: Int32Array;

  /**
   * Picks the rules of the family out of the list; their positions in it are the answers. The trie never changes. n rules
   * take 44n bytes at most for IPv4 and 68n for IPv6, and three times as much while it is built.
   */
  constructor(family: IpFamily, rules: ReadonlyArray<{ readonly cidr: Cidr; readonly action: RuleAction }>) {
    const prefixes = sortRulePrefixes(family, rules);
    const builder = new TrieBuilder(prefixes);
    this.#words = prefixes.words;
    this.#root = builder.root;
    this.#nodes = builder.nodes();
    this.#key = new Int32Array(prefixes.words + 2);
  }

  /**
   * The position of the rule that decides over the address in the first 4 or 16 bytes: the most specific block rule that
   * holds it, else the most specific allow rule, else -1.
   */
  find(address: Uint8Array): number {
    const nodes = this.#nodes;
    const key = this.#key;
    readWords(address, key, 0, this.#words);
    let slot = this.#root;
    let word = 0;
    while (slot > 0) {
      const shape = at(nodes, slot);
      const length = shape & 0xff;
      const stride = shape >>> 8;
      let index = slot + PREFIX;
      for (; word < length >>> 5; word++, index++) {
        if (at(nodes, index) !== at(key, word)) {
          return at(nodes, slot + OUTSIDE);
        }
      }
      const bits = length & 31;
      if (bits !== 0 && firstBits(at(nodes, index++) ^ at(key, word), bits) !== 0) {
        return at(nodes, slot + OUTSIDE);
      }
      slot = at(nodes, index + bitsBehind(key, word, bits, stride));
      word = (length + stride) >>> 5;
    }
    return ~slot;
  }
}

/**
 * Lays out the nodes, each in front of those below. Powers of two are shifts here, because V8 keeps what `**` makes as a
 * double: indices of that kind have it discard the compiled code of a search again and again.
 */
class TrieBuilder {
  /** As a slot would name it. */
  readonly root: number;

  readonly #prefixes: RulePrefixes;
  readonly #nodes: Int32Array;
  /** No node is at 0, which is the slot without a rule. */
  #end = 1;

  constructor(prefixes: RulePrefixes) {
    this.#prefixes = prefixes;
    // n prefixes need less than 2n nodes: one where a prefix ends, or one that parts others. A slot is in use if it leads to
    // a node or if a prefix that ends within the stride begins there: less than 2n in all. No node has more than twice the
    // slots that it uses, but for one slot in each of the n nodes at most without any below.
    this.#nodes = new Int32Array(1 + prefixes.count * (2 * (PREFIX + prefixes.words) + 5));
    this.root =
      prefixes.count === 0 ? ~NO_RULE : this.#build({ first: 0, end: prefixes.count, compared: 0, outside: NO_RULE });
  }

  nodes(): Int32Array {
    return this.#nodes.slice(0, this.#end);
  }

  /**
   * Adds the node of the prefixes from `first` to before `end`, of one at least, and then those below. The nodes above have
   * compared `compared` bits. Each call below starts from a longer prefix, so calls nest 129 deep at most.
   */
  #build({
    first,
    end,
    compared,
    outside,
  }: Readonly<{ first: number; end: number; compared: number; outside: number }>) {
    const { words, keys, lengths, shared, answers } = this.#prefixes;
    const node = this.#end;
    // What the first and the last one have in common, all have; and none is shorter than that but perhaps the first.
    const length = Math.min(at(lengths, first), countSharedBits(keys, words, first, end - 1));
    let slots = node + PREFIX;
    for (let word = compared >>> 5; word < (length + 31) >>> 5; word++) {
      this.#nodes[slots++] = at(keys, first * words + word);
    }
    const hasOwn = at(lengths, first) === length;
    const inner = hasOwn ? first + 1 : first;
    const stride = inner === end ? 0 : this.#strideOf(inner, end, length);
    this.#nodes[node] = length | (stride << 8);
    this.#nodes[node + OUTSIDE] = outside;
    this.#end = slots + (1 << stride);
    this.#fill(slots, this.#end, ~(hasOwn ? at(answers, first) : outside));

    const depth = length + stride;
    for (let row = inner; row < end; ) {
      const slot = slots + bitsBehind(keys, row * words + (length >>> 5), length & 31, stride);
      if (at(lengths, row) <= depth) {
        this.#fill(slot, slot + (1 << (depth - at(lengths, row))), ~at(answers, row));
        row++;
      } else {
        const start = row++;
        while (row < end && at(shared, row) >= depth) row++;
        const around = ~at(this.#nodes, slot);
        this.#nodes[slot] = this.#build({ first: start, end: row, compared: depth, outside: around });
      }
    }
    return node;
  }

  #fill(from: number, to: number, slot: number): void {
    for (let index = from; index < to; index++) this.#nodes[index] = slot;
  }

  /** The most bits behind `length` of which half of the values occur, one at least. */
  #strideOf(first: number, end: number, length: number): number {
    let stride = 1;
    while (
      length + stride < 32 * this.#prefixes.words &&
      2 * this.#countDistinct(first, end, length + stride + 1) >= 1 << (stride + 1)
    ) {
      stride++;
    }
    return stride;
  }

  /** In how many ways the addresses begin, if only so many bits are looked at. */
  #countDistinct(first: number, end: number, bits: number): number {
    let count = 1;
    for (let row = first + 1; row < end; row++) {
      if (at(this.#prefixes.shared, row) < bits) count++;
    }
    return count;
  }
}

/** As many bits (0-31) as a number, from `skipped` (0-31) bits behind the start of a word on. */
function bitsBehind(words: Int32Array, word: number, skipped: number, count: number): number {
  return firstBits((at(words, word) << skipped) | firstBits(at(words, word + 1), skipped), count);
}

/** The first `count` (0-31) bits of a word as a number. In two steps, because a shift by 32 would be none. */
function firstBits(word: number, count: number): number {
  return (word >>> 1) >>> (31 - count);
}
