import { PassThrough } from "node:stream";
import { expect, it } from "vitest";
import { withDeadline } from "../../../test/support/deadline.ts";
import { readPairingLine } from "./standard-input.ts";

it("takes the first line that is not blank without waiting for the end", async () => {
  const input = new PassThrough();
  const line = readPairingLine(input);
  input.write("\n  \n");
  input.write("sallyport-");
  input.write("pair:1:x:y\n");
  expect((await withDeadline(line, { what: "line" })).trim()).toBe("sallyport-pair:1:x:y");
});

it("takes a line without an end, and nothing at all", async () => {
  const input = new PassThrough();
  input.end("sallyport-pair:1:x:y");
  expect(await readPairingLine(input)).toBe("sallyport-pair:1:x:y");
  const empty = new PassThrough();
  empty.end();
  expect(await readPairingLine(empty)).toBe("");
});

it("does not read without end", async () => {
  const input = new PassThrough();
  const text = readPairingLine(input);
  input.write("x".repeat(150_000));
  expect((await withDeadline(text, { what: "text" })).length).toBe(150_000);
});
