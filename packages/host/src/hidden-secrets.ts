/**
 * Takes tokens and pairing lines out of what an operator is shown. People paste them into the wrong place: as a path, as a
 * name, as a key. An error has to name what it is about, and its line ends up in terminals, logs and tickets.
 */

/** A pairing line, whole or cut off, but not its prefix alone; its form is fixed by `formatPairingLine` of the tunnel. */
const PAIRING_LINE = /sallyport-pair:[^\s"',;/\\]+/g;

/** 32 bytes in base64url, alone or between other characters: the form of every token. Names of exactly 43 are hidden, too. */
const TOKEN = /(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])/g;

/** The text with `(hidden)` for everything in it that has the form of a secret of ours. */
export function hideSecrets(text: string): string {
  return text.replace(PAIRING_LINE, "(hidden)").replace(TOKEN, "(hidden)");
}
