/** Reads the one line that `join` takes. */
import type { Readable } from "node:stream";

/** More than any pairing line; what is longer is refused by its parser. */
const MAX_CHARACTERS = 100_000;

/** The first line that is not blank, or everything there is. A terminal does not have to end its input. */
export async function readPairingLine(input: Readable): Promise<string> {
  input.setEncoding("latin1");
  let text = "";
  for await (const chunk of input) {
    text += String(chunk);
    // Lines after the first are looked at only as far as they have come: a paste that broke into two is seen as such.
    if (text.length > MAX_CHARACTERS || text.trimStart().includes("\n")) break;
  }
  return text;
}
