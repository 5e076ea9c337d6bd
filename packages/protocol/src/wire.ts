/**
 * Numbers on the wire: big endian, unsigned. Offsets are 64 bits wide and at most 2^53 - 1, so that they are exact in
 * JavaScript; at 1 GB/s a stream reaches that bound after 104 days and is then refused, never wrapped.
 */
import { ProtocolError } from "./codes.ts";

/** The largest offset, limit or size that may stand in a frame. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

const TWO_32 = 0x1_0000_0000;

export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

export function writeU64(bytes: Uint8Array, at: number, value: number): void {
  writeU32(bytes, at, Math.floor(value / TWO_32));
  writeU32(bytes, at + 4, value % TWO_32);
}

export function readU8(bytes: Uint8Array, at: number): number {
  const value = bytes[at];
  if (value === undefined) throw new ProtocolError("frame is too short");
  return value;
}

export function readU16(bytes: Uint8Array, at: number): number {
  return readU8(bytes, at) * 256 + readU8(bytes, at + 1);
}

export function readU32(bytes: Uint8Array, at: number): number {
  return readU16(bytes, at) * 65_536 + readU16(bytes, at + 2);
}

export function readU64(bytes: Uint8Array, at: number): number {
  const value = readU32(bytes, at) * TWO_32 + readU32(bytes, at + 4);
  if (value > MAX_OFFSET) throw new ProtocolError("offset exceeds 2^53 - 1");
  return value;
}
