/**
 * What an outsider wrote, made safe for one line on a terminal or in a log: control characters (C0, DEL, C1), line and
 * paragraph separators and invisible format characters (the ones that turn the direction of text are among them) become
 * `\uXXXX`, so nothing forges a second line, colours a terminal or hides a part of what was said.
 */

// With the flag `u` a surrogate (Cs) matches only where it stands alone.
/** Nearly every line is printable ASCII, and to see that costs a tenth of looking for categories of Unicode. */
const beyondPrintableAscii = /[^ -~]/;
const unprintable = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** The text on one line. `maxLength` (in UTF-16 units, default unbounded) cuts it and appends `…`. */
export function printableText(text: string, maxLength: number = Number.POSITIVE_INFINITY): string {
  const escaped = beyondPrintableAscii.test(text) ? text.replace(unprintable, escapeUnits) : text;
  return escaped.length > maxLength ? `${escaped.slice(0, maxLength)}…` : escaped;
}

/** One escape for each UTF-16 unit, which makes it an escape of JSON, too. */
function escapeUnits(character: string): string {
  return character
    .split("")
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .join("");
}
