/**
 * The candidate that someone most likely meant, by the number of letters to insert, drop or change (Levenshtein);
 * undefined when nothing is near: more than a third of the longer word is wrong, at least two letters being allowed.
 */
export function nearestWord(word: string, candidates: readonly string[]): string | undefined {
  // Longer than any key or option of ours; the table below grows with the product of the lengths.
  if (word.length > 64) {
    return undefined;
  }
  let best: string | undefined;
  let bestDistance = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    const bound = Math.max(2, Math.ceil(Math.max(word.length, candidate.length) / 3));
    // Half of a short word is another word.
    if (distance <= bound && distance < candidate.length && distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, at) => at);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const changed = (row[j - 1] ?? 0) + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(changed, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[to.length] ?? 0;
}
