/** The most characters of a name, without the dot at its end (RFC 1035 §2.3.4). */
const MAX_LENGTH = 253;

/**
 * Whether the text is a host name that nothing can take for an address: labels of letters, digits, `-` and `_`, the last
 * one neither decimal nor `0x` hexadecimal (the "ends in a number" of the WHATWG URL Standard: `10.1`, `0x7f.1`,
 * `2130706433` are addresses to some readers). International names are written in their ASCII form.
 */
export function isDnsName(text: string): boolean {
  const labels = text.split(".");
  return (
    text.length <= MAX_LENGTH &&
    labels.every((label) => /^[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?$/.test(label)) &&
    !/^(?:[0-9]+|0[xX][0-9a-fA-F]*)$/.test(labels.at(-1) ?? "")
  );
}
