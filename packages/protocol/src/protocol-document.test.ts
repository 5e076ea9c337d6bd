/** docs/protocol.md says what the code does: every type, code and limit of the source stands in it. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { CloseCode, ResetCode } from "./codes.ts";
import { FrameType, MAX_CONTROL_FRAME_BYTES, MAX_DATA_BYTES, MAX_FRAME_BYTES } from "./frame.ts";

const text = readFileSync(new URL("../../../docs/protocol.md", import.meta.url), "utf8");
/** First and second cell of every row of every table. */
const rows = [...text.matchAll(/^\| ([^|]+) \| ([^|]+) \|/gm)].map(
  ([, first, second]) => `${first?.trim()} ${second?.trim()}`,
);
const inDocument = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();

describe("docs/protocol.md", () => {
  it.each(Object.entries(FrameType))("has the frame %s with its type", (name, type) => {
    expect(rows).toContain(`0x${type.toString(16).padStart(2, "0")} ${inDocument(name)}`);
  });

  it.each(Object.entries(ResetCode))("has the reset code %s with its number", (name, code) => {
    expect(rows).toContain(`${code} ${name}`);
  });

  it.each(Object.entries(CloseCode))("has the close code %s with its number", (name, code) => {
    expect(rows).toContain(`${code} ${name}`);
  });

  it("has no code and no type that the source does not have", () => {
    const codes = rows.filter((row) => /^(\d{1,2}|4\d{3}|0x\d\d) \w+$/.test(row));
    const expected = Object.keys(FrameType).length + Object.keys(ResetCode).length + Object.keys(CloseCode).length;
    expect(codes).toHaveLength(expected);
  });

  it.each([MAX_FRAME_BYTES, MAX_CONTROL_FRAME_BYTES, MAX_DATA_BYTES])("has the limit of %i bytes", (bytes) => {
    expect(text).toContain(bytes.toLocaleString("en-US"));
  });
});
